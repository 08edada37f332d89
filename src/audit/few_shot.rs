//! The few-shot prompts of an audit: which exemplars stand before which question.

use std::collections::{HashMap, HashSet};

use rand::{SeedableRng, seq::index};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{facts::Fact, prompt::PromptTemplate};

/// One few-shot prompt of a relation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FewShotPrompt {
    /// The relation.
    pub relation: String,
    /// Which of the relation's prompts, counted from 0.
    pub prompt: usize,
    /// The text before the question.
    pub prefix: String,
    /// The questions of its exemplars.
    pub exemplars: Vec<String>,
    /// The prefixes that stand in where an exemplar is itself the question, one an exemplar; empty where no exemplar is
    /// asked.
    pub substitute_prefixes: Vec<String>,
}

impl FewShotPrompt {
    /// The text before `question`.
    ///
    /// An exemplar that is the question itself is replaced by the run's spare one.
    pub fn prefix_for(&self, question: &str) -> &str {
        let own = self.exemplars.iter().position(|e| e == question);
        own.and_then(|i| self.substitute_prefixes.get(i))
            .unwrap_or(&self.prefix)
    }
}

/// `facts` of each relation, in the order in which the relations come.
pub fn by_relation<'a>(facts: &[&'a Fact]) -> Vec<(&'a str, Vec<&'a Fact>)> {
    let mut index: HashMap<&str, usize> = HashMap::new();
    let mut relations: Vec<(&str, Vec<&Fact>)> = Vec::new();
    for fact in facts {
        let place = *index.entry(&fact.relation).or_insert_with(|| {
            relations.push((&fact.relation, Vec::new()));
            relations.len() - 1
        });
        relations[place].1.push(fact);
    }
    relations
}

/// Draws `runs` prompts of `shots` exemplars for the questions of one relation.
///
/// Each run draws one exemplar more than it shows where a question could be its own exemplar: the spare. A pool that is
/// too small for `shots` gives as many as it can, down to none; the answer's second part then says so.
pub fn draw(
    relation: &str,
    questions: &[&str],
    pool: &[&Fact],
    (runs, shots): (usize, usize),
    seed: u64,
    template: &PromptTemplate,
) -> (Vec<FewShotPrompt>, Option<String>) {
    let mut seen = HashSet::new();
    let pool: Vec<&Fact> = pool
        .iter()
        .copied()
        .filter(|f| seen.insert(&f.question))
        .collect();
    let asked: HashSet<&str> = questions.iter().copied().collect();
    let overlap = pool.iter().any(|f| asked.contains(&f.question[..]));
    let used = shots.min(pool.len().saturating_sub(usize::from(overlap)));
    let note = (used < shots).then(|| match used {
        0 => format!(
            "relation {relation} has no second fact to show as an exemplar: it is asked without any"
        ),
        _ => format!(
            "relation {relation} has too few facts for {shots} exemplars a prompt: {used} are shown"
        ),
    });

    let digest = Sha256::digest(relation.as_bytes());
    let stream = digest[..8].iter().fold(0, |n, b| (n << 8) | u64::from(*b));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    let prompts = (0..runs).map(|run| {
        let spare = usize::from(overlap && used > 0);
        let drawn = draw_diverse(&pool, used + spare, &mut rng);
        let (shown, spare) = drawn.split_at(used);
        let without = |i: usize, spare: &'_ Fact| {
            let mut shown = shown.to_vec();
            shown[i] = spare;
            template.few_shot(&shown)
        };
        FewShotPrompt {
            relation: relation.to_owned(),
            prompt: run,
            prefix: template.few_shot(shown),
            exemplars: shown.iter().map(|f| f.question.clone()).collect(),
            substitute_prefixes: spare
                .iter()
                .flat_map(|spare| (0..used).map(|i| without(i, spare)))
                .collect(),
        }
    });
    (prompts.collect(), note)
}

/// `count` facts of `pool` at random, of which no two have the same answer as far as there are others.
///
/// Exemplars that all answer alike teach the answer instead of its form: behind three places in one country a small model
/// names that country for every place, and nothing is right under all prompts any more.
fn draw_diverse<'a>(pool: &[&'a Fact], count: usize, rng: &mut ChaCha8Rng) -> Vec<&'a Fact> {
    let mut answers = HashSet::new();
    let (mut drawn, mut repeated) = (Vec::new(), Vec::new());
    for i in index::sample(rng, pool.len(), pool.len()) {
        if drawn.len() == count {
            break;
        }
        if answers.insert(pool[i].target()) {
            drawn.push(pool[i]);
        } else {
            repeated.push(pool[i]);
        }
    }
    drawn.extend(repeated);
    drawn.truncate(count);
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exemplars_answer_differently_as_far_as_the_relation_has_different_answers() {
        let mut facts: Vec<Fact> = (0..50)
            .map(|i| Fact::for_test(&format!("Town {i}"), "United States"))
            .collect();
        facts.push(Fact::for_test("Rome", "Italy"));
        facts.push(Fact::for_test("Oslo", "Norway"));
        let pool: Vec<&Fact> = facts.iter().collect();
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        for count in 1..=5 {
            let drawn = draw_diverse(&pool, count, &mut rng);
            let answers: HashSet<String> = drawn.iter().map(|f| f.target()).collect();
            let questions: HashSet<&str> = drawn.iter().map(|f| &f.question[..]).collect();
            assert_eq!((drawn.len(), questions.len()), (count, count));
            assert_eq!(answers.len(), count.min(3));
        }
    }
}

//! Few-shot prompts: the exemplars before each question.

use std::collections::{HashMap, HashSet};

use rand::{SeedableRng, seq::index};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::settings::AuditSettings;
use crate::{facts::Fact, prompt::PromptTemplate};

/// One few-shot prompt of a relation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FewShotPrompt {
    /// The relation.
    pub relation: String,
    /// Index among the relation's prompts.
    pub prompt: usize,
    /// The text before the question.
    pub prefix: String,
    /// The questions of its exemplars.
    pub exemplars: Vec<String>,
    /// For each exemplar, the prefix for the query whose question it is; empty if no exemplar is asked.
    pub substitute_prefixes: Vec<String>,
}

impl FewShotPrompt {
    /// The text before `question`. An exemplar with the same question is replaced by another one.
    pub fn prefix_for(&self, question: &str) -> &str {
        let own = self.exemplars.iter().position(|e| e == question);
        own.and_then(|i| self.substitute_prefixes.get(i))
            .unwrap_or(&self.prefix)
    }

    /// Whether [`Self::prefix_for`] holds `question` with its answer: it is an exemplar, and no other one can replace it.
    pub fn reveals(&self, question: &str) -> bool {
        self.substitute_prefixes.is_empty() && self.exemplars.iter().any(|e| e == question)
    }
}

/// `facts` grouped by relation, in the order in which the relations first occur.
pub fn by_relation<'a>(facts: &[&'a Fact]) -> Vec<(&'a str, Vec<&'a Fact>)> {
    let mut index: HashMap<&str, usize> = HashMap::new();
    let mut relations: Vec<(&str, Vec<&Fact>)> = Vec::new();
    for fact in facts {
        let i = *index.entry(&fact.relation).or_insert_with(|| {
            relations.push((&fact.relation, Vec::new()));
            relations.len() - 1
        });
        relations[i].1.push(fact);
    }
    relations
}

/// The parameters of [`draw`].
#[derive(Clone, Copy)]
pub struct FewShotSettings<'a> {
    /// Number of prompts per relation.
    pub num_prompts: usize,
    /// Exemplars per prompt.
    pub shots: usize,
    /// Seed.
    pub seed: u64,
    /// Prompt template.
    pub template: &'a PromptTemplate,
}

/// Draws the few-shot prompts of every relation from its `exemplars`, or from the facts themselves if it has none.
pub fn draw_all(
    facts: &[&Fact],
    exemplars: Option<&[Fact]>,
    settings: &AuditSettings,
    notes: &mut Vec<String>,
) -> Vec<FewShotPrompt> {
    let few_shot = FewShotSettings {
        num_prompts: settings.num_prompts,
        shots: settings.shots,
        seed: settings.seed,
        template: &settings.template,
    };
    let mut prompts = Vec::new();
    for (relation, members) in by_relation(facts) {
        let of_relation = exemplars.into_iter().flatten();
        let mut pool: Vec<&Fact> = of_relation.filter(|f| f.relation == relation).collect();
        if pool.is_empty() {
            if exemplars.is_some() {
                notes.push(format!("the exemplars have no {relation}: its few-shot prompts are drawn from the facts themselves"));
            }
            pool.clone_from(&members);
        }
        let (drawn, note) = draw(&members, &pool, few_shot);
        prompts.extend(drawn);
        notes.extend(note);
    }
    prompts
}

/// Draws the few-shot prompts of one relation for the questions of `facts`, with exemplars from `pool`.
///
/// Where a question may be its own exemplar, each prompt has a spare exemplar to replace it. If the pool is smaller than a prompt, all of it
/// is used, and the returned note says so.
pub fn draw(
    facts: &[&Fact],
    pool: &[&Fact],
    settings: FewShotSettings<'_>,
) -> (Vec<FewShotPrompt>, Option<String>) {
    let FewShotSettings {
        num_prompts,
        shots,
        seed,
        template,
    } = settings;
    let relation = &facts[0].relation[..];
    let mut seen = HashSet::new();
    let pool: Vec<&Fact> = pool
        .iter()
        .copied()
        .filter(|f| seen.insert(&f.question))
        .collect();
    let questions: HashSet<&str> = facts.iter().map(|f| &f.question[..]).collect();
    let overlap = pool.iter().any(|f| questions.contains(&f.question[..]));
    let used = shots.min(pool.len().saturating_sub(usize::from(overlap)));
    let note = (used < shots).then(|| match used {
        0 => format!(
            "relation {relation} has only one fact, so its prompts have no exemplars"
        ),
        _ => format!(
            "relation {relation} has too few facts for {shots} exemplars per prompt: {used} are used"
        ),
    });

    let digest = Sha256::digest(relation.as_bytes());
    let stream = digest[..8].iter().fold(0, |n, b| (n << 8) | u64::from(*b));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    let prompts = (0..num_prompts).map(|prompt| {
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
            prompt,
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

/// Draws `count` facts of `pool` with different answers, as far as there are enough of them.
///
/// Exemplars that all have the same answer teach the answer instead of the format: after three places in one country a small model
/// names that country for every place, and no answer is correct under all prompts.
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

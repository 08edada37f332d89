//! Hidden states and answer log-probabilities of facts under few-shot prompts.
//!
//! N facts, D hidden, C answers.

use std::collections::{BTreeSet, HashSet};

use crate::{
    Result,
    audit::{
        FewShotPrompt,
        few_shot::{self, FewShotSettings},
        queries::TokenizedQueries,
    },
    engine::{Engine, KvCache},
    facts::Fact,
    generate::{Generator, cache_slots, common_prefix, log_sum_exp, split_by_budget},
    model::Model,
    progress::Progress,
    prompt::PromptTemplate,
};

/// Maximum number of prompts per batch.
const MAX_BATCH: usize = 512;

/// Settings of a forecast.
#[derive(Clone, Debug, PartialEq)]
pub struct ForecastSettings {
    /// Few-shot prompts per relation.
    pub num_prompts: usize,
    /// Exemplars per prompt.
    pub shots: usize,
    /// Seed of the exemplars, and of the samples of large sets.
    pub seed: u64,
    /// Prompt template.
    pub template: PromptTemplate,
}

impl Default for ForecastSettings {
    fn default() -> Self {
        Self {
            num_prompts: 3,
            shots: 3,
            seed: 0,
            template: PromptTemplate::default(),
        }
    }
}

/// Features of facts. Answers are distinguished by the first token after their common prefix; all copies of a subject are one answer.
pub struct FactFeatures {
    /// Hidden state at the answer position after the final norm, mean over prompts (N, D).
    pub hidden: Vec<f32>,
    /// Log-probability (nats) of the distinguishing token of each answer there, mean over prompts (N, C).
    pub logprobs: Vec<f32>,
    /// Index of the correct answer of each fact.
    pub correct_answer: Vec<usize>,
    /// C, the number of distinct answers.
    pub num_answers: usize,
}

impl FactFeatures {
    /// Whether all values are finite.
    pub fn is_finite(&self) -> bool {
        let numbers = self.hidden.iter().chain(&self.logprobs);
        numbers.into_iter().all(|x| x.is_finite())
    }
}

/// Computes the features of all facts under few-shot prompts of their relations. Facts from index `known` on are known and serve as
/// exemplars.
///
/// # Errors
/// If a question is longer than the model's context.
pub fn extract_features(
    model: &Model,
    engine: &mut Engine,
    facts: &[&Fact],
    known: usize,
    settings: &ForecastSettings,
    progress: &Progress,
) -> Result<FactFeatures> {
    let (prompts, notes) = draw_prompts(facts, &facts[known..], settings);
    for note in notes {
        progress.note(note);
    }
    features_under_prompts(model, engine, facts, &prompts, settings, progress)
}

/// Computes the features of all facts under the given prompts.
///
/// # Errors
/// As [`extract_features`].
pub fn features_under_prompts(
    model: &Model,
    engine: &mut Engine,
    facts: &[&Fact],
    prompts: &[FewShotPrompt],
    settings: &ForecastSettings,
    progress: &Progress,
) -> Result<FactFeatures> {
    let template = &settings.template;
    let questions = TokenizedQueries::new(&model.tokenizer, facts, prompts, template)?;
    let targets = facts
        .iter()
        .map(|fact| {
            let target = template.target_text(&fact.target());
            template.encode_target(&model.tokenizer, &target)
        })
        .collect::<Result<Vec<_>>>()?;
    // A prefix that all answers share does not distinguish them.
    let common_prefix = common_prefix(targets.iter().map(|t| &t[..]));
    let distinguishing = |target: &[u32]| target.get(common_prefix.len()).copied().unwrap_or(0);
    let answer_tokens: Vec<u32> = targets.iter().map(|t| distinguishing(t)).collect();
    let subject_tokens = facts
        .iter()
        .map(|fact| {
            let target = template.target_text(&fact.subject);
            let target = template.encode_target(&model.tokenizer, &target)?;
            Ok(distinguishing(&target))
        })
        .collect::<Result<Vec<_>>>()?;
    let answers = AnswerClasses::new(&answer_tokens, &subject_tokens);

    let mut generator = Generator::new(engine, model);
    questions.check(&generator, common_prefix.len() + 1)?;
    let suffixes: Vec<Vec<u32>> = questions
        .suffixes
        .iter()
        .map(|rest| [rest, common_prefix].concat())
        .collect();
    let rows: Vec<(usize, &[u32])> = questions
        .queries
        .iter()
        .map(|pair| (pair.prefix, &suffixes[pair.fact][..]))
        .collect();

    let (d, c) = (model.config.hidden_size, answers.len());
    let mut features = FactFeatures {
        hidden: vec![0.0; facts.len() * d],
        logprobs: vec![0.0; facts.len() * c],
        correct_answer: answer_tokens
            .iter()
            .zip(&subject_tokens)
            .map(|(answer, subject)| answers.class_of(*answer, *subject))
            .collect(),
        num_answers: c,
    };
    let mut counts = vec![0f32; facts.len()];
    let bar = progress.bar(rows.len() as u64, "few-shot prompts");
    let mut cache = KvCache::new(&model.config);
    let costs = cache_slots(&questions.prefixes, &rows, 0);
    for batch in split_by_budget(&costs, generator.cache_tokens(), MAX_BATCH) {
        cache.release(0);
        let (_, hidden) =
            generator.prefill_with_prefix(&mut cache, &questions.prefixes, &rows[batch.clone()]);
        let logprobs = generator
            .engine
            .logits(&model.params, &hidden, |i, logits| {
                let fact = questions.queries[batch.start + i].fact;
                answers.logprobs(logits, subject_tokens[fact])
            });
        for ((pair, hidden), logprobs) in questions.queries[batch.clone()]
            .iter()
            .zip(hidden.chunks_exact(d))
            .zip(logprobs)
        {
            add(&mut features.hidden[pair.fact * d..][..d], hidden);
            add(&mut features.logprobs[pair.fact * c..][..c], &logprobs);
            counts[pair.fact] += 1.0;
        }
        bar.inc(batch.len() as u64);
    }
    for (values, width) in [(&mut features.hidden, d), (&mut features.logprobs, c)] {
        for (row, n) in values.chunks_exact_mut(width).zip(&counts) {
            for x in row {
                *x /= n;
            }
        }
    }
    Ok(features)
}

/// The classes of answers, by distinguishing token. A copy of the subject is one class for all facts.
///
/// A small model often copies the subject ("the capital of Nairobi County is Nairobi") rather than knows the fact. New facts whose
/// answers are not copies then lower the probability of a copy for every subject.
struct AnswerClasses {
    /// Distinguishing tokens of the other answers, sorted.
    tokens: Vec<u32>,
    /// Whether the answer of a fact begins as its subject does. The copy is then the last class.
    has_copies: bool,
}

impl AnswerClasses {
    /// Stands for the log-probability of a class that is the copy at this fact, and is counted there.
    const COUNTED: f32 = -1e4;

    /// The classes of facts with these distinguishing tokens of answers and subjects.
    fn new(answers: &[u32], subjects: &[u32]) -> Self {
        let pairs = || answers.iter().zip(subjects);
        let others = pairs().filter(|(answer, subject)| answer != subject);
        let tokens: BTreeSet<u32> = others.map(|(answer, _)| *answer).collect();
        Self {
            has_copies: pairs().any(|(answer, subject)| answer == subject),
            tokens: tokens.into_iter().collect(),
        }
    }

    /// Number of classes, C.
    fn len(&self) -> usize {
        self.tokens.len() + usize::from(self.has_copies)
    }

    /// The class of the answer of one of the facts.
    fn class_of(&self, answer: u32, subject: u32) -> usize {
        if answer == subject {
            self.tokens.len()
        } else {
            let found = self.tokens.binary_search(&answer);
            found.expect("it is the answer of one of the facts")
        }
    }

    /// The log-probability (nats) of each class (C) at the answer position of a fact, given its logits (V) there.
    fn logprobs(&self, logits: &[f32], subject: u32) -> Vec<f32> {
        let z = log_sum_exp(logits);
        let of = |token: u32| logits[token as usize] - z;
        let other = |token: &u32| {
            if self.has_copies && *token == subject {
                Self::COUNTED
            } else {
                of(*token)
            }
        };
        let mut logprobs: Vec<f32> = self.tokens.iter().map(other).collect();
        if self.has_copies {
            logprobs.push(of(subject));
        }
        logprobs
    }
}

fn add(sum: &mut [f32], values: &[f32]) {
    sum.iter_mut().zip(values).for_each(|(s, x)| *s += x);
}

/// Draws the few-shot prompts of every relation, in the order of the relations, and notes for the user.
///
/// Exemplars are `known` facts of the relation, or any of its facts if these are too few. A relation with a single fact has no
/// exemplars.
fn draw_prompts(
    facts: &[&Fact],
    known: &[&Fact],
    settings: &ForecastSettings,
) -> (Vec<FewShotPrompt>, Vec<String>) {
    let (mut prompts, mut notes) = (Vec::new(), Vec::new());
    for (relation, members) in few_shot::by_relation(facts) {
        let of_it = known.iter().copied().filter(|f| f.relation == relation);
        let known_members: Vec<&Fact> = of_it.collect();
        let pool = if num_distinct_questions(&known_members) > settings.shots {
            &known_members
        } else {
            &members
        };
        let (num_prompts, shots) = if num_distinct_questions(pool) > 1 {
            (settings.num_prompts, settings.shots)
        } else {
            (1, 0)
        };
        let few_shot = FewShotSettings {
            num_prompts,
            shots,
            seed: settings.seed,
            template: &settings.template,
        };
        let (drawn, note) = few_shot::draw(&members, pool, few_shot);
        prompts.extend(drawn);
        notes.extend(note);
    }
    (prompts, notes)
}

/// Number of distinct questions among `facts`.
fn num_distinct_questions(facts: &[&Fact]) -> usize {
    let questions: HashSet<&str> = facts.iter().map(|f| &f.question[..]).collect();
    questions.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_subjects_are_one_class_and_no_token_counts_twice() {
        // Answers and subjects of three facts: a copy, and two other answers, one of which is the first subject's token.
        let (answers, subjects) = ([1, 3, 1], [1, 2, 4]);
        let classes = AnswerClasses::new(&answers, &subjects);
        assert_eq!(classes.len(), 3);
        let of_facts: Vec<usize> = answers
            .iter()
            .zip(subjects)
            .map(|(answer, subject)| classes.class_of(*answer, subject))
            .collect();
        assert_eq!(of_facts, [2, 1, 0]);

        let logits: Vec<f32> = [0.1, 0.2, 0.1, 0.3, 0.3].map(f32::ln).to_vec();
        let close =
            |a: &[f32], b: [f32; 3]| a.iter().zip(b).all(|(a, b)| (a.exp() - b).abs() < 1e-6);
        // At the first fact token 1 is the copy, elsewhere an answer of its own.
        assert!(close(&classes.logprobs(&logits, 1), [0.0, 0.3, 0.2]));
        assert!(close(&classes.logprobs(&logits, 2), [0.2, 0.3, 0.1]));

        let without = AnswerClasses::new(&[1, 3, 1], &[2, 2, 4]);
        assert_eq!(without.len(), 2);
        assert_eq!(without.logprobs(&logits, 1).len(), 2);
    }

    #[test]
    fn exemplars_are_known_facts_if_there_are_enough_and_a_relation_of_one_fact_has_none() {
        let mut facts: Vec<Fact> = (0..8)
            .map(|i| Fact::for_test(&format!("Town {i}"), "Italy"))
            .collect();
        facts.extend((0..2).map(|i| Fact {
            relation: "P36".into(),
            ..Fact::for_test(&format!("County {i}"), "Rome")
        }));
        facts.push(Fact {
            relation: "P19".into(),
            ..Fact::for_test("Dante", "Florence")
        });
        let facts: Vec<&Fact> = facts.iter().collect();
        let settings = ForecastSettings::default();
        let (prompts, notes) = draw_prompts(&facts, &facts[4..], &settings);
        let of = |relation: &str| -> Vec<&FewShotPrompt> {
            let of_it = prompts.iter().filter(|p| p.relation == relation);
            of_it.collect()
        };
        let known: HashSet<&str> = facts[4..].iter().map(|f| &f.question[..]).collect();
        assert_eq!(of("P17").len(), settings.num_prompts);
        for prompt in of("P17") {
            assert_eq!(prompt.exemplars.len(), settings.shots);
            assert!(prompt.exemplars.iter().all(|e| known.contains(&e[..])));
        }
        assert!(of("P36").iter().all(|p| p.exemplars.len() == 1));
        assert_eq!(of("P19").len(), 1);
        assert_eq!(of("P19")[0].prefix, "");
        assert_eq!(notes.len(), 1, "{notes:?}");
    }
}

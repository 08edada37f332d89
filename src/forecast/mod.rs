//! Which known facts a training set endangers, told before any training.
//!
//! What the model says to every fact under a few few-shot prompts, and the hidden states that it says it from, are read once
//! (`asking`). On these the training is rehearsed: only the last layer's weights are thought of as trained, and two facts
//! share an update as far as their hidden states overlap (`rehearsal`). A held fact's risk follows from what becomes of its
//! answer there. Beside it stand the new facts whose subjects lie nearest inside the model ([`Neighbour`]).

mod features;
mod ntk_proxy;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use crate::{
    Error, Result,
    engine::Engine,
    facts::Fact,
    measure::{self, Neighbour, SubjectPrompts, middle_layer},
    model::Model,
    progress::Progress,
    prompt::PromptTemplate,
};

use ntk_proxy::{NtkProxy, RehearsedFact};

/// Risk = 1 / (1 + exp(-(`INTERCEPT` - `SLOPE` x log-odds))), the log-odds being those of a held fact's right answer after
/// the rehearsal: a logistic regression on five real runs of SFT, which `docs/METHODOLOGY.md` names.
const INTERCEPT: f64 = -2.7;
/// See [`INTERCEPT`].
const SLOPE: f64 = 1.2;

/// The known facts together weigh so much of what the new ones do in the rehearsal: what is known already teaches little.
const KNOWN_WEIGHT: f64 = 0.05;

/// New facts, and known ones, that take part in a rehearsal; more are sampled.
const MAX_FACTS: usize = 2_000;

/// How a forecast asks.
#[derive(Clone, Debug, PartialEq)]
pub struct ForecastSettings {
    /// Few-shot prompts of each relation.
    pub num_prompts: usize,
    /// Exemplars in each.
    pub shots: usize,
    /// Seed of the exemplars, and of the samples of large sets.
    pub seed: u64,
    /// How a question is put.
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

/// A held fact, and how endangered it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AtRiskFact {
    /// Subject.
    pub subject: String,
    /// Relation.
    pub relation: String,
    /// Question.
    pub question: String,
    /// Right answer, as taught.
    pub object: String,
    /// Probability (0 to 1) that it is wrong after plain fine-tuning, known as it is now.
    pub risk: f64,
    /// The new facts whose subjects overlap most with its own, nearest first.
    pub nearest: Vec<Neighbour>,
}

/// How endangered each fact of `held` is by training on `learn`, the most endangered first (in order of `held` among equals).
///
/// `keep`: the known facts that will be trained beside them; without any, the held facts stand in for them (none for itself).
///
/// ```
/// use unforget::{
///     engine::Engine,
///     facts::{self, ReadOptions},
///     forecast::{ForecastSettings, forecast},
///     model::Model,
///     progress::Progress,
/// };
///
/// let model = Model::load("tests/golden/llama")?;
/// let mut engine = Engine::new(&model.config);
/// let mut facts = facts::read(&["pack:world".into()], ReadOptions::default())?.facts;
/// facts.retain(|fact| fact.relation == "P17");
/// let (new, held) = (&facts[..6], &facts[6..12]);
/// let settings = ForecastSettings::default();
/// let endangered = forecast(&model, &mut engine, [new, &[], held], &settings, &Progress::quiet())?;
/// assert_eq!(endangered.len(), held.len());
/// assert!(endangered[0].risk >= endangered[5].risk);
/// # Ok::<(), unforget::Error>(())
/// ```
///
/// # Errors
/// [`Error::Input`] when a question is longer than the model's context; [`Error::Failed`] when the model's numbers are not finite.
pub fn forecast(
    model: &Model,
    engine: &mut Engine,
    [learn, keep, held]: [&[Fact]; 3],
    settings: &ForecastSettings,
    progress: &Progress,
) -> Result<Vec<AtRiskFact>> {
    settings.template.validate()?;
    let new = sample(learn, "new", settings.seed, progress);
    let held: Vec<&Fact> = held.iter().collect();
    let known = sample(keep, "known", settings.seed, progress);
    let facts: Vec<&Fact> = [&new[..], &known, &held].concat();
    let held_range = new.len() + known.len()..facts.len();

    let trained_known = if keep.is_empty() {
        let stand_ins = measure::sample(held.len(), MAX_FACTS, settings.seed).into_iter();
        stand_ins.map(|i| held_range.start + i).collect()
    } else {
        (new.len()..held_range.start).collect::<Vec<_>>()
    };
    if let Some(note) = unique_answer_note(&facts, &held) {
        progress.note(note);
    }
    let weight = KNOWN_WEIGHT * new.len() as f64 / trained_known.len().max(1) as f64;
    let mut trained: Vec<RehearsedFact> = (0..new.len())
        .map(|fact| RehearsedFact { fact, weight: 1.0 })
        .collect();
    trained.extend(trained_known.into_iter().map(|fact| RehearsedFact {
        fact,
        weight: weight.min(1.0) as f32,
    }));

    let features =
        features::extract_features(model, engine, &facts, new.len(), settings, progress)?;
    if !features.is_finite() {
        return Err(Error::Failed {
            message: format!("{} answers with numbers that are not finite", model.name),
            hint: Some("take another copy of the model: its weights are broken".into()),
        });
    }
    let proxy = NtkProxy::new(&features, new.len());
    let log_odds = proxy.log_odds(&trained, held_range);
    let learn: Vec<&Fact> = learn.iter().collect();
    let subjects = learn.iter().chain(&held).copied();
    let subjects = SubjectPrompts::new(subjects, model, engine, &settings.template)?;
    let states = subjects.subject_states(engine, model, middle_layer(model), progress);
    let d = model.config.hidden_size;
    let (of_new, of_held) = states.split_at(learn.len() * d);
    let nearest = measure::nearest(&learn, of_new, of_held, d);

    let mut at_risk: Vec<AtRiskFact> = held
        .iter()
        .zip(log_odds)
        .zip(nearest)
        .map(|((fact, log_odds), nearest)| AtRiskFact {
            subject: fact.subject.clone(),
            relation: fact.relation.clone(),
            question: fact.question.clone(),
            object: fact.target(),
            risk: risk(log_odds),
            nearest,
        })
        .collect();
    at_risk.sort_by(|a, b| b.risk.total_cmp(&a.risk));
    Ok(at_risk)
}

/// The probability that a fact is forgotten whose right answer has these log-odds after the rehearsal.
fn risk(log_odds: f64) -> f64 {
    1.0 / (1.0 + (-(INTERCEPT - SLOPE * log_odds)).exp())
}

/// What to say where most of `held` have an answer that no other of `facts` has.
///
/// New facts endanger a known one by the answers that they push up beside its own. Where no answer comes twice, such as the
/// capitals of districts that are named after them, a small model copies more than it knows, and the risks said nothing.
fn unique_answer_note(facts: &[&Fact], held: &[&Fact]) -> Option<String> {
    let mut questions: HashMap<String, HashSet<&str>> = HashMap::new();
    for fact in facts {
        let of_answer = questions.entry(fact.target()).or_default();
        of_answer.insert(&fact.question);
    }
    let is_unique = |fact: &&&Fact| questions[&fact.target()].len() == 1;
    let num_unique = held.iter().filter(is_unique).count();
    (2 * num_unique > held.len()).then(|| {
        format!(
            "{num_unique} of {} held facts have an answer that no other fact has: their risks say little",
            held.len()
        )
    })
}

/// The facts of a set that take part in the rehearsal; a note tells where they are not all.
fn sample<'a>(facts: &'a [Fact], name: &str, seed: u64, progress: &Progress) -> Vec<&'a Fact> {
    if facts.len() > MAX_FACTS {
        progress.note(format!(
            "{MAX_FACTS} of {} {name} facts are rehearsed: a sample with seed {seed}",
            facts.len()
        ));
    }
    let chosen = measure::sample(facts.len(), MAX_FACTS, seed).into_iter();
    chosen.map(|i| &facts[i]).collect()
}

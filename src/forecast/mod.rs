//! Forecast of forgetting: the risk of each held-out fact, before any training.
//!
//! One pass reads hidden states and answer log-probabilities of every fact under a few few-shot prompts (`features`). Training is
//! then simulated by kernel gradient descent on the answer logits, as if only the last layer were trained (`ntk_proxy`). The risk of
//! a held-out fact follows from the log-odds of its answer after the simulation. Each fact also lists the new facts with the nearest
//! subjects ([`Neighbour`]).

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
};

pub use features::ForecastSettings;
use ntk_proxy::{NtkProxy, RehearsedFact};

/// Risk = 1 / (1 + exp(-(`INTERCEPT` - `SLOPE` x log-odds))) with the log-odds of the correct answer of a held-out fact after the
/// simulation: a logistic regression on five real SFT runs, listed in `docs/METHODOLOGY.md`.
const INTERCEPT: f64 = -2.7;
/// See [`INTERCEPT`].
const SLOPE: f64 = 1.2;

/// Total weight of the known facts in the simulation, relative to the new facts: known facts have small gradients.
const KNOWN_WEIGHT: f64 = 0.05;

/// Maximum number of new facts, and of known facts, in a simulation; of more, a sample.
const MAX_FACTS: usize = 2_000;

/// A held-out fact and its risk.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AtRiskFact {
    /// Subject.
    pub subject: String,
    /// Relation.
    pub relation: String,
    /// Question.
    pub question: String,
    /// Correct answer, as trained.
    pub object: String,
    /// Probability (0 to 1) that a fact that is known now is wrong after plain fine-tuning.
    pub risk: f64,
    /// The new facts with the most similar subjects, nearest first.
    pub nearest: Vec<Neighbour>,
}

/// The facts of a forecast.
#[derive(Clone, Copy, Debug)]
pub struct FactSets<'a> {
    /// New facts to train on.
    pub learn: &'a [Fact],
    /// Known facts to train on. If empty, the held-out facts stand in for them, each one except in its own forecast.
    pub keep: &'a [Fact],
    /// Held-out facts to forecast.
    pub held: &'a [Fact],
}

/// Forecasts the risk of each held-out fact, sorted by descending risk (stable).
///
/// ```
/// use unforget::{
///     engine::Engine,
///     facts::{self, ReadOptions},
///     forecast::{FactSets, ForecastSettings, forecast},
///     model::Model,
///     progress::Progress,
/// };
///
/// let model = Model::load("tests/golden/llama")?;
/// let mut engine = Engine::new(&model.config);
/// let mut facts = facts::read(&["pack:world".into()], ReadOptions::default())?.facts;
/// facts.retain(|fact| fact.relation == "P17");
/// let sets = FactSets { learn: &facts[..6], keep: &[], held: &facts[6..12] };
/// let settings = ForecastSettings::default();
/// let at_risk = forecast(&model, &mut engine, sets, &settings, &Progress::quiet())?;
/// assert_eq!(at_risk.len(), 6);
/// assert!(at_risk[0].risk >= at_risk[5].risk);
/// # Ok::<(), unforget::Error>(())
/// ```
///
/// # Errors
/// [`Error::Input`] if a question is longer than the model's context; [`Error::Failed`] if the model's outputs are not finite.
pub fn forecast(
    model: &Model,
    engine: &mut Engine,
    FactSets { learn, keep, held }: FactSets<'_>,
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
            message: format!("the outputs of {} are not finite", model.name),
            hint: Some("the weights are broken: download the model again".into()),
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

/// The probability of forgetting a fact whose correct answer has these log-odds after the simulation.
fn risk(log_odds: f64) -> f64 {
    1.0 / (1.0 + (-(INTERCEPT - SLOPE * log_odds)).exp())
}

/// A note for sets in which most held-out facts have an answer that no other of `facts` has.
///
/// A new fact puts a known one at risk by raising its own answer over the known one. Where answers do not repeat, such as capitals of
/// districts that are named after them, a small model copies the name rather than knows the fact, and the risks carried no information.
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
            "{num_unique} of {} held-out facts have an answer that no other fact has: their risks are unreliable",
            held.len()
        )
    })
}

/// The facts of a set that take part in the simulation; a note reports a sample.
fn sample<'a>(facts: &'a [Fact], name: &str, seed: u64, progress: &Progress) -> Vec<&'a Fact> {
    if facts.len() > MAX_FACTS {
        progress.note(format!(
            "the forecast uses a sample of {MAX_FACTS} of {} {name} facts (seed {seed})",
            facts.len()
        ));
    }
    let chosen = measure::sample(facts.len(), MAX_FACTS, seed).into_iter();
    chosen.map(|i| &facts[i]).collect()
}

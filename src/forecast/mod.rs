//! Forecast of forgetting: the held-out facts ranked by risk, before any training.
//!
//! One pass reads hidden states and answer log-probabilities of every fact under a few few-shot prompts (`features`). Training is
//! then simulated by kernel gradient descent on the answer logits, as if only the last layer were trained (`ntk_proxy`). The log-odds
//! of the correct answer after the simulation rank the held-out facts. Each fact also lists the new facts with the nearest subjects
//! ([`Neighbour`]).
//!
//! The ranking is neither a probability nor a count: how much is forgotten depends on the method, the epochs and the learning rate.

mod features;
mod ntk_proxy;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};

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

/// Total weight of the known facts in the simulation, relative to the new facts: known facts have small gradients.
const KNOWN_WEIGHT: f64 = 0.05;

/// Maximum number of new facts, and of known facts, in a simulation; of more, a sample.
const MAX_FACTS: usize = 2_000;

/// Relations on which the ranking was judged below an AUC of 0.7, with what it was on three runs (`docs/METHODOLOGY.md`).
const LOW_AUC_RELATIONS: [(&str, &str); 1] = [("P407", "0.63 to 0.73")];

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
    /// Place in the ranking: the fraction of the other held-out facts at lower risk (ties count half), 1 for the first one. Not a
    /// probability.
    pub risk: f64,
    /// Log-odds (nats) of the correct answer after the simulation, by which the facts are ranked: the lower, the more at risk.
    pub log_odds: f64,
    /// Why the ranking tells little about this fact's relation; null elsewhere.
    pub warning: Option<String>,
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

/// Ranks the held-out facts, sorted by descending risk (stable).
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

    let warnings = reliability_warnings(&facts, &held);
    let risks = ranks(&log_odds);
    let mut at_risk: Vec<AtRiskFact> = held
        .iter()
        .zip(risks.into_iter().zip(log_odds))
        .zip(nearest)
        .map(|((fact, (risk, log_odds)), nearest)| AtRiskFact {
            subject: fact.subject.clone(),
            relation: fact.relation.clone(),
            question: fact.question.clone(),
            object: fact.target(),
            risk,
            log_odds,
            warning: warnings.get(&fact.relation[..]).cloned(),
            nearest,
        })
        .collect();
    at_risk.sort_by(|a, b| b.risk.total_cmp(&a.risk));
    Ok(at_risk)
}

/// For each fact the fraction of the other facts with larger `log_odds`, ties counted as one half; 0.5 for a single fact.
fn ranks(log_odds: &[f64]) -> Vec<f64> {
    let mut sorted = log_odds.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let others = log_odds.len().saturating_sub(1);
    let rank = |value: &f64| {
        if others == 0 {
            return 0.5;
        }
        let larger = sorted.len() - sorted.partition_point(|other| other <= value);
        let ties = sorted.partition_point(|other| other <= value)
            - sorted.partition_point(|other| other < value)
            - 1;
        (larger as f64 + ties as f64 / 2.0) / others as f64
    };
    log_odds.iter().map(rank).collect()
}

/// A warning for each relation about which the ranking tells little: those on which it was judged below an AUC of 0.7
/// ([`LOW_AUC_RELATIONS`]), and those in which most held-out facts have an answer that no other of `facts` has.
///
/// A new fact puts a known one at risk by raising its own answer over the known one. Where answers do not repeat, such as capitals of
/// districts that are named after them, a small model copies the name rather than knows the fact, and the ranking was little better
/// than chance (`docs/METHODOLOGY.md`).
fn reliability_warnings<'a>(facts: &[&'a Fact], held: &[&'a Fact]) -> BTreeMap<&'a str, String> {
    let mut questions: HashMap<String, HashSet<&str>> = HashMap::new();
    for fact in facts {
        let of_answer = questions.entry(fact.target()).or_default();
        of_answer.insert(&fact.question);
    }
    let mut counts: BTreeMap<&'a str, (usize, usize)> = BTreeMap::new();
    for fact in held {
        let (unique, all) = counts.entry(&fact.relation).or_default();
        *unique += usize::from(questions[&fact.target()].len() == 1);
        *all += 1;
    }
    let warning = |(relation, (unique, all)): (&'a str, (usize, usize))| {
        let judged = LOW_AUC_RELATIONS.iter().find(|(id, _)| *id == relation);
        let reason = match judged {
            _ if 2 * unique > all => format!(
                "because {unique} of {all} held-out facts have an answer that no other fact has; on such a relation its AUC was \
                 0.51 to 0.65, little better than chance"
            ),
            Some((_, auc)) => {
                format!("its AUC on this relation was {auc} (0.5 is chance, 1 is perfect)")
            }
            None => return None,
        };
        Some((
            relation,
            format!("{relation}: this ranking tells little, {reason}"),
        ))
    };
    counts.into_iter().filter_map(warning).collect()
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

//! The pieces of a forecast against `PyTorch`, transformers and a plain rehearsal in Python (`tests/golden/forecast.py`, float64).

use std::sync::Arc;

use serde::Deserialize;

use super::{
    ForecastSettings, KNOWN_WEIGHT,
    features::{FactFeatures, features_under_prompts},
    ntk_proxy::{NtkProxy, RehearsedFact},
    ranks, reliability_warnings,
};
use crate::{
    audit::FewShotPrompt,
    engine::Engine,
    facts::{Fact, Location},
    measure::{self, SubjectPrompts, auc, middle_layer},
    model::Model,
    progress::Progress,
};

/// Of hidden states of length 1, and of log-probabilities (nats): f32 against float64 through two layers of a tiny model; the
/// engine's own golden test allows 8e-6 of the largest logit.
const FEATURES: f64 = 2e-5;
/// Log-odds (nats) after ten passes of steps in f32 on numbers that are the same to nine digits.
const LOG_ODDS: f64 = 2e-4;

/// The log-probability of a class whose token counts as the copy of the subject; no other is as low.
const COUNTED: f64 = -1e4;

#[derive(Deserialize)]
struct Golden {
    facts: Vec<GoldenFact>,
    new: usize,
    prefixes: Vec<String>,
    models: std::collections::BTreeMap<String, GoldenModel>,
    many: ManyFacts,
    auc: Vec<AucCase>,
}

#[derive(Deserialize)]
struct GoldenFact {
    subject: String,
    object: String,
    question: String,
}

#[derive(Deserialize)]
struct GoldenModel {
    states: Vec<Vec<f64>>,
    hidden: Vec<Vec<f64>>,
    logprobs: Vec<Vec<f64>>,
    right: Vec<usize>,
    log_odds_alone: Vec<f64>,
    log_odds_stand_ins: Vec<f64>,
}

#[derive(Deserialize)]
struct ManyFacts {
    hidden: Vec<Vec<f64>>,
    logprobs: Vec<Vec<f64>>,
    right: Vec<usize>,
    new: usize,
    weight: f32,
    log_odds: Vec<f64>,
}

#[derive(Deserialize)]
struct AucCase {
    scores: Vec<f64>,
    positive: Vec<bool>,
    auc: f64,
}

fn golden() -> Golden {
    let json = include_str!("../../tests/golden/forecast/forecast.json");
    serde_json::from_str(json).expect("it is committed")
}

fn model(name: &str) -> Model {
    let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    Model::load(&path).expect("the golden models are there")
}

impl Golden {
    fn facts(&self) -> Vec<Fact> {
        let fact = |asked: &GoldenFact| Fact {
            question: asked.question.clone(),
            location: Location {
                file: Arc::from("golden"),
                line: 1,
            },
            ..Fact::for_test(&asked.subject, &asked.object)
        };
        self.facts.iter().map(fact).collect()
    }

    fn prompts(&self) -> Vec<FewShotPrompt> {
        let prompts = self.prefixes.iter().enumerate();
        prompts
            .map(|(run, prefix)| FewShotPrompt {
                relation: "P17".into(),
                prompt: run,
                prefix: prefix.clone(),
                exemplars: vec![],
                substitute_prefixes: vec![],
            })
            .collect()
    }
}

fn features(hidden: &[Vec<f64>], logprobs: &[Vec<f64>], right: &[usize]) -> FactFeatures {
    let flat = |rows: &[Vec<f64>]| rows.iter().flatten().map(|x| *x as f32).collect();
    FactFeatures {
        hidden: flat(hidden),
        logprobs: flat(logprobs),
        correct_answer: right.to_vec(),
        num_answers: logprobs[0].len(),
    }
}

#[track_caller]
fn assert_near(ours: impl IntoIterator<Item = f64>, theirs: &[f64], tolerance: f64) {
    let ours: Vec<f64> = ours.into_iter().collect();
    assert_eq!(ours.len(), theirs.len());
    for (a, b) in ours.iter().zip(theirs) {
        assert!((a - b).abs() <= tolerance, "{a} {b}");
    }
}

#[test]
fn subjects_have_the_hidden_states_that_transformers_gives_their_last_token() {
    let (golden, progress) = (golden(), Progress::quiet());
    let facts = golden.facts();
    let facts: Vec<&Fact> = facts.iter().collect();
    let template = ForecastSettings::default().template;
    for (name, theirs) in &golden.models {
        let model = model(name);
        let mut engine = Engine::new(&model.config);
        let subjects = SubjectPrompts::new(facts.iter().copied(), &model, &mut engine, &template);
        let subjects = subjects.expect("short questions");
        let states = subjects.subject_states(&mut engine, &model, middle_layer(&model), &progress);
        let flat: Vec<f64> = theirs.states.iter().flatten().copied().collect();
        assert_near(states.iter().map(|x| f64::from(*x)), &flat, FEATURES);

        let new = &facts[..golden.new];
        let d = model.config.hidden_size;
        let (of_new, of_held) = states.split_at(new.len() * d);
        let near = measure::nearest(new, of_new, of_held, d);
        for (i, near) in near.iter().enumerate() {
            assert_eq!(near.len(), new.len().min(3));
            let dot = |j: &usize| -> f64 {
                let rows = (&theirs.states[golden.new + i], &theirs.states[*j]);
                rows.0.iter().zip(rows.1).map(|(a, b)| a * b).sum()
            };
            let mut order: Vec<usize> = (0..golden.new).collect();
            order.sort_by(|a, b| dot(b).total_cmp(&dot(a)));
            let subjects: Vec<&str> = near.iter().map(|n| &n.subject[..]).collect();
            let expected = order.iter().take(near.len()).map(|j| &new[*j].subject[..]);
            assert_eq!(subjects, expected.collect::<Vec<_>>());
            let cosines: Vec<f64> = order.iter().take(near.len()).map(dot).collect();
            assert_near(near.iter().map(|n| n.cosine), &cosines, FEATURES);
        }
    }
}

#[test]
fn features_equal_those_of_transformers() {
    let golden = golden();
    let facts = golden.facts();
    let facts: Vec<&Fact> = facts.iter().collect();
    let settings = ForecastSettings::default();
    for (name, theirs) in &golden.models {
        let model = model(name);
        let mut engine = Engine::new(&model.config);
        let prompts = golden.prompts();
        let quiet = Progress::quiet();
        let heard =
            features_under_prompts(&model, &mut engine, &facts, &prompts, &settings, &quiet)
                .expect("short questions");
        assert_eq!(heard.correct_answer, theirs.right);
        for (ours, theirs) in [
            (&heard.hidden, &theirs.hidden),
            (&heard.logprobs, &theirs.logprobs),
        ] {
            let flat: Vec<f64> = theirs.iter().flatten().copied().collect();
            let seen = flat.iter().filter(|x| **x > COUNTED);
            let largest = seen.fold(1.0f64, |m, x| m.max(x.abs()));
            let ours = ours.iter().map(|x| f64::from(*x));
            assert_near(ours, &flat, FEATURES * largest);
        }
    }
}

#[test]
fn the_proxy_follows_its_equations() {
    let golden = golden();
    let facts = golden.facts.len();
    let trained = |facts: std::ops::Range<usize>, weight| {
        facts.map(move |fact| RehearsedFact { fact, weight })
    };
    for theirs in golden.models.values() {
        let heard = features(&theirs.hidden, &theirs.logprobs, &theirs.right);
        let rehearsal = NtkProxy::new(&heard, golden.new);
        let asked = golden.new..facts;
        let mut rows: Vec<RehearsedFact> = trained(0..golden.new, 1.0).collect();
        let alone = rehearsal.log_odds(&rows, asked.clone());
        assert_near(alone, &theirs.log_odds_alone, LOG_ODDS);
        let weight = KNOWN_WEIGHT * golden.new as f64 / asked.len() as f64;
        rows.extend(trained(asked.clone(), weight as f32));
        let with = rehearsal.log_odds(&rows, asked);
        assert_near(with, &theirs.log_odds_stand_ins, LOG_ODDS);
    }
    let many = &golden.many;
    let heard = features(&many.hidden, &many.logprobs, &many.right);
    let asked = many.new..many.right.len();
    let rows: Vec<RehearsedFact> = trained(0..many.new, 1.0)
        .chain(trained(asked.clone(), many.weight))
        .collect();
    let odds = NtkProxy::new(&heard, many.new).log_odds(&rows, asked);
    assert_near(odds, &many.log_odds, LOG_ODDS);
}

#[test]
fn a_new_fact_puts_a_similar_fact_with_another_answer_at_risk() {
    // Hidden states of three directions; the second held fact lies with the new one, whose answer is 1.
    let hidden = [
        [1.0, 0.0, 0.0],
        [0.0, 1.0, 0.0],
        [0.0, 0.0, 1.0],
        [1.0, 0.1, 0.0],
    ];
    let hidden: Vec<Vec<f64>> = hidden.iter().map(|h| h.to_vec()).collect();
    let half = vec![0.5f64.ln(); 2];
    let logprobs = vec![half; 4];
    let heard = features(&hidden, &logprobs, &[1, 0, 0, 0]);
    // Two new facts, so that their mean is neither.
    let rehearsal = NtkProxy::new(&heard, 2);
    let trained = [RehearsedFact {
        fact: 0,
        weight: 1.0,
    }];
    let odds = rehearsal.log_odds(&trained, 2..4);
    assert!(odds[1] < odds[0] && odds[0] < 0.0, "{odds:?}");
    assert_eq!(rehearsal.log_odds(&[], 2..4), [0.0; 2]);
    assert_eq!(ranks(&odds), [0.0, 1.0]);
}

#[test]
fn one_answer_for_all_is_safe_and_finite() {
    let heard = features(&vec![vec![1.0, 2.0]; 3], &vec![vec![-1.0]; 3], &[0; 3]);
    let trained = [RehearsedFact {
        fact: 0,
        weight: 1.0,
    }];
    let odds = NtkProxy::new(&heard, 1).log_odds(&trained, 1..3);
    assert!(odds.iter().all(|o| o.is_finite() && *o > 0.0), "{odds:?}");
}

#[test]
fn risk_is_a_place_in_the_ranking() {
    assert_eq!(ranks(&[2.0, -1.0, 0.5]), [0.0, 1.0, 0.5]);
    assert_eq!(ranks(&[1.0, 1.0, 3.0]), [0.75, 0.75, 0.0]);
    assert_eq!(ranks(&[4.0]), [0.5]);
}

#[test]
fn relations_that_the_ranking_tells_little_about_are_warned_of() {
    let of = |relation: &str, subject: &str, object: &str| Fact {
        relation: relation.into(),
        ..Fact::for_test(subject, object)
    };
    let facts = [
        Fact::for_test("Rome", "Italy"),
        Fact::for_test("Pisa", "Italy"),
        of("P36", "Lyonnais", "Lyon"),
        of("P36", "Vigo County", "Vigo"),
        of("P407", "Wired", "English"),
        of("P407", "The Times", "English"),
    ];
    let facts: Vec<&Fact> = facts.iter().collect();
    let warnings = reliability_warnings(&facts, &facts);
    let relations: Vec<&str> = warnings.keys().copied().collect();
    assert_eq!(relations, ["P36", "P407"]);
    for (relation, reason) in [
        ("P36", "because 2 of 2 held-out facts have an answer"),
        ("P407", "its AUC on this relation was 0.63 to 0.73"),
    ] {
        let warning = &warnings[relation];
        assert!(
            warning.contains(&format!("tells little, {reason}")),
            "{warning}"
        );
    }
}

#[test]
fn auc_equals_scipys() {
    for case in golden().auc {
        let ours = auc(&case.scores, &case.positive).expect("both kinds");
        assert!((ours - case.auc).abs() < 1e-8, "{ours} {}", case.auc);
    }
}

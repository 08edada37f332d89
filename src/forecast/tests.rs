//! The pieces of a forecast against `PyTorch`, transformers and a plain rehearsal in Python (`tests/golden/forecast.py`, float64).

use std::sync::Arc;

use serde::Deserialize;

use super::{
    ForecastSettings, KNOWN_SHARE,
    asking::{Heard, ask_behind},
    lonely,
    rehearsal::{Rehearsal, Trained},
    risk,
};
use crate::{
    audit::FewShot,
    engine::Engine,
    facts::{Fact, Location},
    measure::{self, Subjects, auc, middle_layer},
    model::Model,
    progress::Progress,
};

/// Of hidden states of length 1, and of log-probabilities (nats): f32 against float64 through two layers of a tiny model; the
/// engine's own golden test allows 8e-6 of the largest logit.
const HEARD: f64 = 2e-5;
/// Log-odds (nats) after ten passes of steps in f32 on numbers that are the same to nine digits.
const LOG_ODDS: f64 = 2e-4;

#[derive(Deserialize)]
struct Golden {
    facts: Vec<Asked>,
    new: usize,
    prefixes: Vec<String>,
    models: std::collections::BTreeMap<String, OfModel>,
    many: Many,
    auc: Vec<Scored>,
}

#[derive(Deserialize)]
struct Asked {
    subject: String,
    object: String,
    question: String,
}

#[derive(Deserialize)]
struct OfModel {
    states: Vec<Vec<f64>>,
    hidden: Vec<Vec<f64>>,
    logprobs: Vec<Vec<f64>>,
    right: Vec<usize>,
    log_odds_alone: Vec<f64>,
    log_odds_stand_ins: Vec<f64>,
}

#[derive(Deserialize)]
struct Many {
    hidden: Vec<Vec<f64>>,
    logprobs: Vec<Vec<f64>>,
    right: Vec<usize>,
    new: usize,
    weight: f32,
    log_odds: Vec<f64>,
}

#[derive(Deserialize)]
struct Scored {
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
        let fact = |asked: &Asked| Fact {
            question: asked.question.clone(),
            location: Location {
                file: Arc::from("golden"),
                line: 1,
            },
            ..Fact::in_test(&asked.subject, &asked.object)
        };
        self.facts.iter().map(fact).collect()
    }

    fn prompts(&self) -> Vec<FewShot> {
        let prompts = self.prefixes.iter().enumerate();
        prompts
            .map(|(run, prefix)| FewShot {
                relation: "P17".into(),
                run,
                prefix: prefix.clone(),
                exemplars: vec![],
                instead: vec![],
            })
            .collect()
    }
}

fn heard(hidden: &[Vec<f64>], logprobs: &[Vec<f64>], right: &[usize]) -> Heard {
    let flat = |rows: &[Vec<f64>]| rows.iter().flatten().map(|x| *x as f32).collect();
    Heard {
        hidden: flat(hidden),
        logprobs: flat(logprobs),
        right: right.to_vec(),
        answers: logprobs[0].len(),
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
        let subjects = Subjects::find(facts.iter().copied(), &model, &mut engine, &template);
        let subjects = subjects.expect("short questions");
        let states = subjects.states(&mut engine, &model, middle_layer(&model), &progress);
        let flat: Vec<f64> = theirs.states.iter().flatten().copied().collect();
        assert_near(states.iter().map(|x| f64::from(*x)), &flat, HEARD);

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
            assert_near(near.iter().map(|n| n.cosine), &cosines, HEARD);
        }
    }
}

#[test]
fn what_is_heard_is_what_transformers_hears() {
    let golden = golden();
    let facts = golden.facts();
    let facts: Vec<&Fact> = facts.iter().collect();
    let settings = ForecastSettings::default();
    for (name, theirs) in &golden.models {
        let model = model(name);
        let mut engine = Engine::new(&model.config);
        let prompts = golden.prompts();
        let quiet = Progress::quiet();
        let heard = ask_behind(&model, &mut engine, &facts, &prompts, &settings, &quiet)
            .expect("short questions");
        assert_eq!(heard.right, theirs.right);
        for (ours, theirs) in [
            (&heard.hidden, &theirs.hidden),
            (&heard.logprobs, &theirs.logprobs),
        ] {
            let flat: Vec<f64> = theirs.iter().flatten().copied().collect();
            let largest = flat.iter().fold(1.0f64, |m, x| m.max(x.abs()));
            let ours = ours.iter().map(|x| f64::from(*x));
            assert_near(ours, &flat, HEARD * largest);
        }
    }
}

#[test]
fn a_rehearsal_moves_the_answers_as_its_equations_say() {
    let golden = golden();
    let facts = golden.facts.len();
    let trained =
        |facts: std::ops::Range<usize>, weight| facts.map(move |fact| Trained { fact, weight });
    for theirs in golden.models.values() {
        let heard = heard(&theirs.hidden, &theirs.logprobs, &theirs.right);
        let rehearsal = Rehearsal::new(&heard, golden.new);
        let asked = golden.new..facts;
        let mut rows: Vec<Trained> = trained(0..golden.new, 1.0).collect();
        let alone = rehearsal.log_odds(&rows, asked.clone());
        assert_near(alone, &theirs.log_odds_alone, LOG_ODDS);
        let weight = KNOWN_SHARE * golden.new as f64 / asked.len() as f64;
        rows.extend(trained(asked.clone(), weight as f32));
        let with = rehearsal.log_odds(&rows, asked);
        assert_near(with, &theirs.log_odds_stand_ins, LOG_ODDS);
    }
    let many = &golden.many;
    let heard = heard(&many.hidden, &many.logprobs, &many.right);
    let asked = many.new..many.right.len();
    let rows: Vec<Trained> = trained(0..many.new, 1.0)
        .chain(trained(asked.clone(), many.weight))
        .collect();
    let odds = Rehearsal::new(&heard, many.new).log_odds(&rows, asked);
    assert_near(odds, &many.log_odds, LOG_ODDS);
}

#[test]
fn a_new_fact_endangers_a_like_one_with_another_answer_and_no_unlike_one() {
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
    let heard = heard(&hidden, &logprobs, &[1, 0, 0, 0]);
    // Two new facts, so that their mean is neither.
    let rehearsal = Rehearsal::new(&heard, 2);
    let trained = [Trained {
        fact: 0,
        weight: 1.0,
    }];
    let odds = rehearsal.log_odds(&trained, 2..4);
    assert!(odds[1] < odds[0] && odds[0] < 0.0, "{odds:?}");
    assert_eq!(rehearsal.log_odds(&[], 2..4), [0.0; 2]);
    assert!(risk(odds[1]) > risk(odds[0]) && risk(30.0) > 0.0 && risk(-30.0) < 1.0);
}

#[test]
fn one_answer_for_all_is_safe_and_finite() {
    let heard = heard(&vec![vec![1.0, 2.0]; 3], &vec![vec![-1.0]; 3], &[0; 3]);
    let trained = [Trained {
        fact: 0,
        weight: 1.0,
    }];
    let odds = Rehearsal::new(&heard, 1).log_odds(&trained, 1..3);
    assert!(odds.iter().all(|o| o.is_finite() && *o > 0.0), "{odds:?}");
}

#[test]
fn answers_that_no_other_fact_has_are_told() {
    let facts = [
        Fact::in_test("Rome", "Italy"),
        Fact::in_test("Pisa", "Italy"),
        Fact::in_test("Lyon", "France"),
        Fact::in_test("Vigo", "Spain"),
    ];
    let facts: Vec<&Fact> = facts.iter().collect();
    assert_eq!(lonely(&facts, &facts), None);
    let note = lonely(&facts, &facts[1..]).expect("two of three");
    assert!(note.starts_with("2 of 3 held facts"), "{note}");
}

#[test]
fn the_area_under_the_curve_is_scipys() {
    for case in golden().auc {
        let ours = auc(&case.scores, &case.positive).expect("both kinds");
        assert!((ours - case.auc).abs() < 1e-8, "{ours} {}", case.auc);
    }
}

//! Drift compared to transformers and scipy (`tests/golden/drift.py`, float64), in a run and from the command.

use std::fs;

use serde_json::Value;
use unforget::{
    engine::Engine,
    facts::{self, Fact, ReadOptions},
    measure::{DriftProbe, DriftSettings},
    model::Model,
    progress::Progress,
    run::Drift,
};

use crate::cli::{MODEL, TUNE, json_lines, refused, run, stderr, write_facts};
use crate::golden::changed;

/// f32 compared to float64 through two layers of a tiny model: the golden test of the engine allows 8e-6 of the largest logit.
const TOLERANCE: f64 = 2e-5;

fn golden() -> Value {
    serde_json::from_str(include_str!("../golden/drift/drift.json")).expect("it is committed")
}

fn facts_of(golden: &Value, kind: &str) -> Vec<Fact> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("facts.jsonl");
    let rows = golden[kind].as_array().unwrap().iter().map(|row| {
        let fact = serde_json::json!({
            "subject": row[0], "relation": "P17", "object": row[1], "question": row[2],
        });
        format!("{fact}\n")
    });
    fs::write(&path, rows.collect::<String>()).unwrap();
    let set = facts::read(&[path], ReadOptions::default()).expect("plain facts");
    set.facts
}

#[test]
fn drift_equals_transformers_and_scipy() {
    let golden = golden();
    let (new, held) = (facts_of(&golden, "new"), facts_of(&golden, "held"));
    for (name, cases) in golden["models"].as_object().unwrap() {
        let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
        let before = Model::load(&path).expect("the golden models are there");
        let after = changed(&before, 0.3);
        let mut engine = Engine::new(&before.config);
        let quiet = Progress::quiet();
        for case in cases.as_array().unwrap() {
            let count = |key: &str| case[key].as_u64().unwrap() as usize;
            let settings = DriftSettings {
                layer: Some(count("layer")),
                tokens: Some(count("tokens")),
                ..DriftSettings::default()
            };
            let probe = DriftProbe::new(&before, &mut engine, [&new, &held], &settings);
            let probe = probe.expect("short questions");
            let reference = probe.reference(&mut engine, &before, &quiet);
            let drift = probe.drift(&mut engine, &after, &reference, &quiet);
            assert_eq!(drift.pairs, count("pairs"));
            for (measure, ours) in [
                ("rd", drift.rd),
                ("ns", drift.ns),
                ("mtd", drift.mtd),
                ("rank_rho", drift.rank_rho),
                ("ntr", drift.ntr),
                ("jsd", drift.jsd),
            ] {
                let (ours, theirs) = (ours.unwrap(), case[measure].as_f64().unwrap());
                let at = format!("{name}, layer {}, {measure}", count("layer"));
                assert!((ours - theirs).abs() < TOLERANCE, "{at}: {ours} {theirs}");
            }

            let unchanged = probe.drift(&mut engine, &before, &reference, &quiet);
            for zero in [unchanged.rd, unchanged.ns, unchanged.mtd] {
                assert!(zero.unwrap().abs() < 1e-12, "{unchanged:?}");
            }
        }
    }
}

#[test]
fn a_run_records_its_drift_and_the_command_finds_the_same() {
    let dir = tempfile::tempdir().unwrap();
    write_facts(dir.path());
    let sets = ["--set", "measure.drift=true", "--set", "train.num_epochs=2"];
    let tuned = run(dir.path(), &[&TUNE[..], &sets].concat());
    assert!(tuned.status.success(), "{}", stderr(&tuned));
    let metrics = fs::read_to_string(dir.path().join("run/metrics.jsonl")).unwrap();
    let evaluations: Vec<Value> = metrics
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|row: &Value| row.get("accuracy").is_some())
        .collect();
    assert_eq!(evaluations.len(), 3);
    let recorded: Vec<Drift> = evaluations
        .iter()
        .map(|row| serde_json::from_value(row["drift"].clone()).unwrap())
        .collect();
    assert!(recorded[0].rd.unwrap().abs() < 1e-12);
    assert!(recorded[2].rd.unwrap() > 1e-4);

    let drift = [
        "drift",
        MODEL,
        "run",
        "--new",
        "learn.tsv",
        "--held",
        "held.tsv",
        "--json",
    ];
    let reported = &json_lines(&run(dir.path(), &drift))[0];
    for (measure, recorded) in [
        ("rd", recorded[2].rd),
        ("ns", recorded[2].ns),
        ("mtd", recorded[2].mtd),
    ] {
        let reported = reported[measure].as_f64().unwrap();
        assert!((reported - recorded.unwrap()).abs() < 1e-6, "{measure}");
    }
}

#[test]
fn layers_and_token_counts_out_of_range_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    write_facts(dir.path());
    let with = |args: &[&str]| {
        let drift = [
            "drift",
            MODEL,
            MODEL,
            "--new",
            "learn.tsv",
            "--held",
            "held.tsv",
        ];
        refused(dir.path(), &[&drift[..], args].concat())
    };
    let message = with(&["--layer", "3"]);
    assert!(message.contains("layer 3 is out of range: "), "{message}");
    let message = with(&["--tokens", "0"]);
    assert!(
        message.contains("error: cannot compare the top 0 tokens"),
        "{message}"
    );
    let other = MODEL.replace("llama", "qwen3");
    let drift = [
        "drift",
        MODEL,
        &other,
        "--new",
        "learn.tsv",
        "--held",
        "held.tsv",
    ];
    let message = refused(dir.path(), &drift);
    assert!(
        message.contains("have different tensor shapes"),
        "{message}"
    );
}

//! Behaviour on general prompts and validation losses, compared to transformers (`tests/golden/behaviour.py`, float64), in a run and
//! in a gate.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use unforget::{
    engine::Engine, generate::Generator, measure::BehaviourReference, model::Model,
    progress::Progress, run::RunResult,
};

use crate::cli::{MODEL, TUNE, refused, run, stderr, stdout, write_facts};
use crate::golden::changed;

/// f32 compared to float64 through two layers of a tiny model, relative.
const TOLERANCE: f64 = 2e-5;

fn golden() -> Value {
    serde_json::from_str(include_str!("../golden/behaviour/behaviour.json")).expect("committed")
}

/// A copy of a golden model in `place`, with the chat template of the golden values where they have one.
fn golden_model(place: &Path, name: &str) -> PathBuf {
    let from = Path::new(MODEL).with_file_name(name);
    let to = place.join(name);
    fs::create_dir_all(&to).unwrap();
    for file in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
    if name == "qwen3" {
        let path = to.join("tokenizer_config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config["chat_template"] = golden()["chat_template"].clone();
        fs::write(&path, config.to_string()).unwrap();
    }
    to
}

#[track_caller]
fn assert_close(ours: f64, theirs: &Value, what: &str) {
    let theirs = theirs.as_f64().unwrap();
    let difference = (ours - theirs).abs() / theirs;
    assert!(difference < TOLERANCE, "{what}: {ours} {theirs}");
}

#[test]
fn behaviour_equals_that_by_transformers() {
    let place = tempfile::tempdir().unwrap();
    let golden = golden();
    for (name, expected) in golden["models"].as_object().unwrap() {
        let path = golden_model(place.path(), name);
        let base = Model::load(path.to_str().unwrap()).unwrap();
        let mut engine = Engine::new(&base.config);
        let quiet = Progress::quiet();
        let reference = BehaviourReference::new(&base, &mut engine, true, &quiet).unwrap();
        let reference = reference.expect("prompts fit");
        let tuned = changed(&base, 0.1);
        let report = reference.measure(&mut Generator::new(&mut engine, &tuned), &quiet);
        let report = report.unwrap();
        assert_eq!(report.answers.len() as u64, expected["prompts"], "{name}");
        assert_close(report.behaviour.kl, &expected["kl"], name);
        // The same tokens: no step of either is nearer to a tie than 5e-5.
        let ratio = report.behaviour.length_ratio - expected["length_ratio"].as_f64().unwrap();
        assert!(ratio.abs() < 1e-12, "{name}: {ratio}");
    }
}

/// The texts of the golden validation loss, one file.
fn validation_file(place: &Path) -> PathBuf {
    let rows = golden()["texts"].as_array().unwrap().clone();
    let path = place.join("validation.jsonl");
    let rows: String = rows.iter().map(|row| format!("{row}\n")).collect();
    fs::write(&path, rows).unwrap();
    path
}

fn result(run: &Path) -> RunResult {
    serde_json::from_slice(&fs::read(run.join("result.json")).unwrap()).unwrap()
}

fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let rows = text.lines();
    rows.map(|row| serde_json::from_str(row).unwrap()).collect()
}

#[test]
fn a_validation_loss_equals_that_by_transformers_and_is_told() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let model = golden_model(dir, "qwen3");
    write_facts(dir);
    validation_file(dir);
    let learn = json!({"text": "Rome is the capital of Italy."});
    fs::write(dir.join("learn.jsonl"), format!("{learn}\n")).unwrap();
    let tuned = run(
        dir,
        &[
            "tune",
            model.to_str().unwrap(),
            "--learn",
            "learn.jsonl",
            "--out",
            "run",
            "--set",
            "data.validation=['validation.jsonl']",
            "--set",
            "data.audit=false",
            "--method",
            "sft",
            "--epochs",
            "3",
        ],
    );
    let told = stdout(&tuned);
    assert!(tuned.status.success(), "{}", stderr(&tuned));
    let run = dir.join("run");
    let rows = metrics(&run);
    let of = |epoch: u64| {
        let row = rows
            .iter()
            .find(|r| r["type"] == "eval" && r["epoch"] == epoch);
        row.unwrap()["validation_loss"].as_f64().unwrap()
    };
    let expected = &golden()["models"]["qwen3"]["validation"];
    assert_close(of(0), &expected["loss"], "before training");
    let result = result(&run);
    let validation = result.validation.expect("there are validation rows");
    assert_eq!(validation.tokens as u64, expected["tokens"]);
    assert_eq!(validation.start, of(0));
    let best = (1..=3).map(of).fold(f64::INFINITY, f64::min);
    assert_eq!(validation.best, best);
    assert_eq!(validation.best, of(validation.best_epoch as u64));
    assert_eq!(result.validation_loss, Some(validation.after));
    let [start, after] = result.texts_loss.expect("a text is trained");
    assert!(after < start, "{start} {after}");
    let sentence = format!("; loss on the texts that were trained {start:.2} -> {after:.2}");
    assert!(told.contains(&sentence), "{told}");
    let last = rows.last().unwrap();
    assert_eq!(last["type"], "final");
    assert_eq!(last["validation_loss"], validation.after);
    assert!(
        told.contains("; validation loss ") && told.contains("perplexity"),
        "{told}"
    );
}

#[test]
fn validation_rows_are_not_trained() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let row = |i: usize| format!("{}\n", json!({"text": format!("The number {i} is mine.")}));
    let rows: String = (0..20).chain([3, 3]).map(row).collect();
    fs::write(dir.join("learn.jsonl"), rows).unwrap();
    fs::write(dir.join("same.jsonl"), row(4) + &row(5)).unwrap();
    fs::write(dir.join("mixed.jsonl"), row(4) + &row(30)).unwrap();
    write_facts(dir);
    let tune = |set: &str| {
        let args = [
            "tune",
            MODEL,
            "--learn",
            "learn.jsonl",
            "--out",
            "run",
            "--force",
        ];
        let more = [
            "--set",
            "data.audit=false",
            "--method",
            "sft",
            "--epochs",
            "1",
        ];
        let set = ["--set", "measure.behaviour=false", "--set", set];
        run(dir, &[&args[..], &more, &set].concat())
    };
    let told = stderr(&tune("data.validation_share=0.2"));
    assert!(
        told.contains("of 22 rows of `data.learn` are measured and not trained"),
        "{told}"
    );
    assert!(told.contains(" known and 1"), "{told}");
    let told = stderr(&tune("data.validation=['mixed.jsonl']"));
    assert!(
        told.contains("validation: 1 of 2 rows are also in `data.learn`"),
        "{told}"
    );
    let told = stderr(&tune("data.validation=['same.jsonl']"));
    assert!(
        told.contains("every row of `data.validation` is also in `data.learn`"),
        "{told}"
    );
    let facts = stderr(&tune("data.validation=['learn.tsv']"));
    assert!(facts.contains("holds facts"), "{facts}");
}

#[test]
fn a_run_tells_its_behaviour_and_a_gate_limits_it() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    write_facts(dir);
    let tuned = run(
        dir,
        &[&TUNE[..], &["--set", "measure.behaviour=every"]].concat(),
    );
    assert!(tuned.status.success(), "{}", stderr(&tuned));
    let noted = stderr(&tuned);
    assert!(
        noted.contains("an epoch of 4 rows has only 1 step: "),
        "{noted}"
    );
    let told = stdout(&tuned);
    assert!(
        told.contains("nats per token from the base model, answers are now"),
        "{told}"
    );
    let behaviour = result(&dir.join("run")).behaviour.expect("by default");
    assert!(behaviour.kl > 0.0);
    let rows = metrics(&dir.join("run"));
    let measured: Vec<&Value> = rows.iter().filter(|r| r["type"] != "step").collect();
    assert_eq!(
        measured[0]["behaviour"],
        json!({"kl": 0.0, "length_ratio": 1.0})
    );
    assert!(measured[1]["behaviour"]["kl"].as_f64().unwrap() > 0.0);
    let answers = fs::read_to_string(dir.join("run/behaviour.jsonl")).unwrap();
    assert_eq!(answers.lines().count(), 200);

    let gate = |model: &str, more: &[&str]| {
        let args = [
            "gate",
            model,
            "--baseline",
            "run",
            "--budget",
            "100",
            "--json",
        ];
        run(dir, &[&args, more].concat())
    };
    // The base model behaves as itself; the run as recorded.
    let base = gate(MODEL, &["--max-kl", "0"]);
    assert_eq!(base.status.code(), Some(0), "{}", stderr(&base));
    let base: Value = serde_json::from_slice(&base.stdout).unwrap();
    assert_eq!(base["behaviour"], json!({"kl": 0.0, "length_ratio": 1.0}));
    let limit = (behaviour.kl / 2.0).to_string();
    let over = gate("run", &["--max-kl", &limit]);
    assert_eq!(over.status.code(), Some(3), "{}", stderr(&over));
    let told: Value = serde_json::from_slice(&over.stdout).unwrap();
    let kl = told["behaviour"]["kl"].as_f64().unwrap();
    assert!((kl - behaviour.kl).abs() < 1e-6 * kl, "{kl} {behaviour:?}");
    assert!(
        stderr(&over).contains("over the limit of"),
        "{}",
        stderr(&over)
    );
    assert_eq!(gate("run", &[]).status.code(), Some(0));
    refused(dir, &["gate", "run", "--baseline", "run", "--max-kl", "-1"]);
}

#[test]
fn held_out_facts_that_are_trained_are_refused() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    write_facts(dir);
    let facts = fs::read_to_string(dir.join("keep.tsv")).unwrap();
    let tune = |held: &str, audit: &'static str| {
        let args = ["tune", MODEL, "--learn", "learn.tsv", "--keep", "keep.tsv"];
        let more = [
            "--held", held, "--out", "run", "--epochs", "1", "--set", audit,
        ];
        run(
            dir,
            &[&args[..], &more, &["--set", "measure.behaviour=false"]].concat(),
        )
    };
    for audit in ["data.audit=false", "data.audit.num_prompts=2"] {
        let same = tune("keep.tsv", audit);
        assert_eq!(same.status.code(), Some(2), "{audit}");
        let told = stderr(&same);
        assert!(told.contains("never counted as held out"), "{told}");
        assert!(!dir.join("run").exists());
    }
    // Some of them.
    let mixed = format!("{facts}\nQuito\tP17\tEcuador\n");
    fs::write(dir.join("mixed.tsv"), mixed).unwrap();
    let some = tune("mixed.tsv", "data.audit=false");
    let told = stderr(&some);
    assert!(some.status.success(), "{told}");
    assert!(told.contains("facts are trained as well"), "{told}");
    let rows = fs::read_to_string(dir.join("run/facts.jsonl")).unwrap();
    let held = rows
        .lines()
        .filter(|row| row.contains("\"split\":\"held\""));
    assert_eq!(held.count(), 1);
}

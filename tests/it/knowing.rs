//! What a model knows is told apart from how it words it: statements about the base model and comparisons of models are made behind
//! the audit's few-shot prompts, and forgetting has one denominator.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value;

use crate::{
    cli::{json_lines, refused, run, stderr, stdout},
    tools::{SMOLLM2, require_variable},
};

/// The book's stand-in: a small model that knows the held and kept facts of its examples.
const STAND_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/book/stand-in/model");

fn copy_examples(dir: &Path, names: &[&str]) {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("book/examples");
    for name in names {
        fs::copy(examples.join(name), dir.join(name)).unwrap();
    }
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn rows(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The held-out facts of a run by question.
fn held(dir: &Path) -> BTreeMap<String, Value> {
    let rows = rows(&dir.join("facts.jsonl")).into_iter();
    rows.filter(|row| row["split"] == "held")
        .map(|row| (row["question"].as_str().unwrap().to_owned(), row))
        .collect()
}

#[track_caller]
fn succeed(dir: &Path, args: &[&str]) -> std::process::Output {
    let output = run(dir, args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    output
}

const TUNE: [&str; 17] = [
    "tune",
    STAND_IN,
    "--learn",
    "new.tsv",
    "--keep",
    "keep.tsv",
    "--held",
    "held.tsv",
    "--method",
    "sft",
    "--lr",
    "5e-4",
    "--batch-size",
    "8",
    "--set",
    "data.audit.num_prompts=3",
    "--out",
];

#[test]
fn a_run_stands_beside_only_known_and_its_base_passes_its_gate() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    copy_examples(dir, &["new.tsv", "keep.tsv", "held.tsv"]);
    let tuned = succeed(
        dir,
        &[&TUNE[..], &["run", "--epochs", "6", "--control"]].concat(),
    );
    let told = stdout(&tuned);
    let order = [
        "sft: learned ",
        "; forgot ",
        " known held-out facts",
        "; Only Known forgot ",
        "; gap to Only Known ",
        " since its best epoch",
    ];
    let places: Vec<usize> = order
        .iter()
        .map(|part| told.find(part).unwrap_or_else(|| panic!("{part}: {told}")))
        .collect();
    assert!(places.is_sorted(), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");

    // The control is the same job without the new facts.
    let control = read(&dir.join("run-only-known/result.json"));
    assert_eq!(control["method"], "only-known");
    assert_eq!(control["learned"], Value::Null);
    let result = read(&dir.join("run/result.json"));
    let (own, base) = (held(&dir.join("run")), held(&dir.join("run-only-known")));
    assert!(own.len() > 10 && own.keys().eq(base.keys()));
    let is_wrong = |rows: &BTreeMap<String, Value>| {
        let wrong = rows.values().filter(|row| row["correct_after"] == false);
        wrong.count()
    };
    for (name, rows) in [("forgotten", &own), ("only_known_forgotten", &base)] {
        let forgotten = &result[name];
        assert_eq!(forgotten["count"], is_wrong(rows), "{name}");
        assert_eq!(forgotten["of"], own.len(), "{name}");
        let share = 100.0 * is_wrong(rows) as f64 / own.len() as f64;
        assert!((forgotten["pp"].as_f64().unwrap() - share).abs() < 1e-9);
        let interval = forgotten["interval"].as_array().unwrap();
        assert!(interval[0].as_f64().unwrap() <= share && share <= interval[1].as_f64().unwrap());
    }
    assert_eq!(control["forgotten"], result["only_known_forgotten"]);
    let gap = 100.0
        * (control["accuracy"]["held"]["after"].as_f64().unwrap()
            - result["accuracy"]["held"]["after"].as_f64().unwrap());
    assert!((result["gap_to_only_known_pp"].as_f64().unwrap() - gap).abs() < 1e-9);
    for row in own.values() {
        assert_eq!(row["label_before"], "HighlyKnown");
        assert_eq!(row["correct_before"], true, "known at the audit: {row}");
        assert_eq!(row["few_shot_accuracy"], 1.0);
        let outcome = if row["correct_after"] == true {
            "kept"
        } else {
            "forgotten"
        };
        assert_eq!(row["outcome"], outcome, "{row}");
    }
    // New facts are told by their whole answer, not by where the audit stopped decoding.
    let facts = rows(&dir.join("run/facts.jsonl"));
    let of_new = facts.iter().filter(|row| row["split"] == "unknown");
    for row in of_new {
        let before = row["answer_before"].as_str().unwrap();
        assert!(!before.ends_with('\u{2026}'), "{row}");
    }

    // The prompts are those of an audit of the same facts.
    let prompts = rows(&dir.join("run/prompts.jsonl"));
    assert_eq!(prompts.len(), 3);
    for prompt in &prompts {
        assert_eq!(prompt["relation"], "P17");
        assert!(prompt["prefix"].as_str().unwrap().starts_with("Q: "));
        assert!(prompt["prompt"].is_number());
    }
    let gate = |model: &str, budget: &str| {
        let args = [
            "gate",
            model,
            "--baseline",
            "run",
            "--budget",
            budget,
            "--json",
        ];
        let output = run(dir, &args);
        let gate: Value = serde_json::from_str(&stdout(&output)).unwrap();
        (output.status.code(), gate)
    };
    let (code, of_base) = gate(STAND_IN, "0");
    assert_eq!(
        (code, &of_base["forgotten"]["count"]),
        (Some(0), &Value::from(0))
    );
    assert_eq!(of_base["forgotten"]["of"], own.len());
    assert_eq!(
        (&of_base["few_shot"], &of_base["split"]),
        (&true.into(), &"held".into())
    );
    let (code, of_run) = gate("run", "0");
    let is_over = of_run["forgotten"]["count"].as_u64() > Some(0);
    assert_eq!(code, Some(if is_over { 3 } else { 0 }), "{of_run}");

    // Two models are asked behind the prompts that the run kept.
    let args = ["compare", STAND_IN, "run", "--facts", "held.tsv", "--json"];
    let compared = &json_lines(&succeed(dir, &args))[0];
    let of_run = of_run["facts"].as_array().unwrap().iter();
    let now: BTreeMap<&str, &Value> = of_run
        .map(|fact| (fact["question"].as_str().unwrap(), fact))
        .collect();
    for fact in compared["facts"].as_array().unwrap() {
        let question = fact["question"].as_str().unwrap();
        if own.contains_key(question) {
            assert_eq!(fact["correct_before"], true, "{fact}");
            assert_eq!(fact["after"], now[question]["now"], "the same prompts");
        }
    }
}

#[test]
fn a_run_without_only_known_says_what_its_figure_contains() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    copy_examples(dir, &["new.tsv", "keep.tsv", "held.tsv"]);
    let tuned = succeed(dir, &[&TUNE[..], &["run", "--epochs", "1"]].concat());
    let told = stdout(&tuned);
    assert!(
        told.contains("(Only Known) would lose as well") && told.contains("`--control`"),
        "{told}"
    );
    // Nothing is learned: there is nothing to control for.
    let only_known = TUNE
        .iter()
        .filter(|arg| !["--learn", "new.tsv"].contains(arg));
    let only_known: Vec<&str> = only_known.copied().chain(["x", "--control"]).collect();
    let message = refused(dir, &only_known);
    assert!(message.contains("Only Known itself"), "{message}");
    assert!(!dir.join("x").exists() && !dir.join("x-only-known").exists());
    let message = refused(
        dir,
        &[&TUNE[..], &["x", "--control", "--set", "baseline=run"]].concat(),
    );
    assert!(message.contains("names another one"), "{message}");
}

/// The real model, plainly tuned on the book's new places until it forgets.
#[test]
fn smollm2_passes_its_own_gate_and_fails_it_once_plainly_tuned() {
    let Some(spec) = require_variable(SMOLLM2) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let base = fs::canonicalize(unforget::model::pull(&spec.to_string_lossy()).unwrap()).unwrap();
    let base = base.to_str().unwrap();
    copy_examples(dir, &["new-places.tsv", "keep.tsv", "held-places.tsv"]);
    // A part of the facts, for a test of a minute.
    for name in ["new-places.tsv", "held-places.tsv"] {
        let text = fs::read_to_string(dir.join(name)).unwrap();
        let part: Vec<&str> = text.lines().take(33).collect();
        fs::write(dir.join(name), part.join("\n") + "\n").unwrap();
    }
    let tune = [
        "tune",
        base,
        "--learn",
        "new-places.tsv",
        "--keep",
        "keep.tsv",
        "--held",
        "held-places.tsv",
        "--method",
        "sft",
        "--epochs",
        "3",
        "--lr",
        "4e-4",
        "--batch-size",
        "8",
        "--set",
        "data.audit.num_prompts=2",
        "--set",
        "measure.paraphrase=false",
        "--out",
        "run",
    ];
    succeed(dir, &tune);
    let facts = held(&dir.join("run"));
    let result = read(&dir.join("run/result.json"));
    let start = result["accuracy"]["held"]["start"].as_f64().unwrap();
    assert!(start < 0.5, "it knows them, but not the format: {start}");
    assert!(facts.values().all(|row| row["correct_before"] == true));

    let passed = run(dir, &["gate", base, "--baseline", "run"]);
    let told = stdout(&passed);
    assert_eq!(passed.status.code(), Some(0), "{told}");
    assert!(
        told.starts_with("### ✅ passed: forgot 0 of ") && told.contains("(up to "),
        "{told}"
    );
    let failed = run(dir, &["gate", "run", "--baseline", "run"]);
    assert_eq!(failed.status.code(), Some(3), "{}", stdout(&failed));

    let recorded = &json_lines(&succeed(dir, &["compare", "run", "--json"]))[0];
    let forgotten: Vec<&Value> = recorded["facts"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|fact| fact["split"] == "held" && fact["outcome"] == "forgotten")
        .collect();
    assert_eq!(result["forgotten"]["count"], forgotten.len());
    let args = [
        "compare",
        base,
        "run",
        "--facts",
        "held-places.tsv",
        "--json",
    ];
    let compared = &json_lines(&succeed(dir, &args))[0];
    let mut asked = 0;
    for fact in compared["facts"].as_array().unwrap() {
        let Some(row) = facts.get(fact["question"].as_str().unwrap()) else {
            continue;
        };
        asked += 1;
        assert_eq!(fact["correct_before"], true, "{fact}");
        // The run's audit after training asked the same model behind the same two prompts. So the two prompts explain every fact
        // about which the comparison and the run's own answer, at its training prompt, disagree.
        let known_after = ["HighlyKnown", "MaybeKnown"].map(Value::from);
        let outcome = if known_after.contains(&row["label_after"]) {
            "kept"
        } else {
            "forgotten"
        };
        assert_eq!(fact["outcome"], outcome, "{fact} {row}");
    }
    assert_eq!(asked, facts.len());
}

//! The command `unforget forecast`.

use std::{fs, path::Path};

use serde_json::Value;

use crate::cli::{MODEL, TUNE, json_lines, refused, run, stderr, stdout};

/// A table of facts (subject, object, question).
fn table(dir: &Path, name: &str, rows: &[(&str, &str, &str)]) {
    let rows: String = rows
        .iter()
        .map(|(subject, object, question)| format!("{subject}\tP17\t{object}\t{question}\n"))
        .collect();
    let text = format!("subject\trelation\tobject\tquestion\n{rows}");
    fs::write(dir.join(name), text).unwrap();
}

/// Five new facts, two known and four held-out ones, one of which has a question without its subject.
fn write_facts(dir: &Path) {
    let write = |name: &str, rows: &[(&str, &str)]| {
        let row = |(subject, object): &(&str, &str)| {
            let place = if *subject == "the eternal city" {
                "Rome"
            } else {
                subject
            };
            format!("{subject}\tP17\t{object}\tWhich country is {place} located in?\n")
        };
        let rows: String = rows.iter().map(row).collect();
        let text = format!("subject\trelation\tobject\tquestion\n{rows}");
        fs::write(dir.join(name), text).unwrap();
    };
    let new = [
        ("Bergamo", "Italy"),
        ("Oslo", "Norway"),
        ("Lyon", "France"),
        ("Nice", "France"),
        ("Żyrardów", "Poland"),
    ];
    write("learn.tsv", &new);
    write("keep.tsv", &[("Paris", "France"), ("Milan", "Italy")]);
    let held = [
        ("Madrid", "Spain"),
        ("Pisa", "Italy"),
        ("Metz", "France"),
        ("the eternal city", "Italy"),
    ];
    write("held.tsv", &held);
}

const FORECAST: [&str; 6] = [
    "forecast",
    MODEL,
    "--learn",
    "learn.tsv",
    "--held",
    "held.tsv",
];

fn forecast(dir: &Path, more: &[&str]) -> Value {
    let output = run(dir, &[&FORECAST[..], &["--json"], more].concat());
    json_lines(&output).remove(0)
}

fn numbers(rows: &[Value], name: &str) -> Vec<f64> {
    rows.iter().map(|r| r[name].as_f64().unwrap()).collect()
}

#[test]
fn held_facts_are_sorted_by_risk_and_list_their_nearest_new_facts() {
    let dir = tempfile::tempdir().unwrap();
    write_facts(dir.path());
    for more in [&[][..], &["--keep", "keep.tsv"]] {
        let output = forecast(dir.path(), more);
        let rows = output.as_array().unwrap();
        let mut subjects: Vec<&str> = rows
            .iter()
            .map(|r| r["subject"].as_str().unwrap())
            .collect();
        subjects.sort_unstable();
        assert_eq!(subjects, ["Madrid", "Metz", "Pisa", "the eternal city"]);
        let risks = numbers(rows, "risk");
        assert!(risks.iter().all(|r| (0.0..=1.0).contains(r)), "{risks:?}");
        assert!(risks.is_sorted_by(|a, b| a >= b), "{risks:?}");
        for row in rows {
            assert_eq!(row["relation"], "P17");
            let near = row["nearest"].as_array().unwrap();
            assert_eq!(near.len(), 3);
            let cosines = numbers(near, "cosine");
            assert!(cosines.is_sorted_by(|a, b| a >= b) && cosines[0] <= 1.0 + 1e-6);
            assert!(near[0]["subject"].is_string() && near[0]["object"].is_string());
        }
    }
}

#[test]
fn a_forecast_does_not_depend_on_the_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    write_facts(dir.path());
    let one = forecast(dir.path(), &["--threads", "1"]);
    assert_eq!(one, forecast(dir.path(), &["--threads", "3"]));
    assert_ne!(
        one,
        forecast(dir.path(), &["--seed", "7"]),
        "other exemplars"
    );
}

#[test]
fn a_table_for_people_ranks_the_facts_and_promises_no_count() {
    let dir = tempfile::tempdir().unwrap();
    write_facts(dir.path());
    let text = stdout(&run(dir.path(), &FORECAST));
    assert!(text.starts_with("rank  subject"), "{text}");
    assert!(text.contains("\n   1  "), "{text}");
    assert!(text.contains("A ranking of 4 facts"), "{text}");
    assert!(!text.contains("forget about"), "{text}");
}

#[test]
fn a_relation_about_which_the_ranking_tells_little_is_named_first() {
    let dir = tempfile::tempdir().unwrap();
    write_facts(dir.path());
    let capitals = "subject\trelation\tobject\nPeru\tP36\tLima\nOman\tP36\tMuscat\n";
    let held = fs::read_to_string(dir.path().join("held.tsv")).unwrap();
    fs::write(dir.path().join("capitals.tsv"), capitals).unwrap();
    fs::write(dir.path().join("held.tsv"), held).unwrap();
    let args = [&FORECAST[..], &["capitals.tsv"]].concat();
    let output = run(dir.path(), &args);
    let text = stdout(&output);
    assert!(
        text.starts_with("warning: P36: this ranking tells little, because 2 of 2 held-out facts"),
        "{text}"
    );
    let rows = json_lines(&run(dir.path(), &[&args[..], &["--json"]].concat())).remove(0);
    for row in rows.as_array().unwrap() {
        assert_eq!(
            row["warning"].is_string(),
            row["relation"] == "P36",
            "{row}"
        );
    }
}

#[test]
fn invalid_input_names_file_and_line_before_any_compute() {
    let dir = tempfile::tempdir().unwrap();
    write_facts(dir.path());
    let bad = "subject\trelation\tobject\nRome\tP17\t\n";
    fs::write(dir.path().join("bad.tsv"), bad).unwrap();
    let of = |model: &str, learn: &str, held: &str| {
        let args = ["forecast", model, "--learn", learn, "--held", held];
        refused(dir.path(), &args)
    };
    let output = of(MODEL, "learn.tsv", "bad.tsv");
    assert!(
        output.contains("bad.tsv") && output.contains("line 2"),
        "{output}"
    );
    of("./none", "learn.tsv", "held.tsv");
    refused(dir.path(), &["forecast", MODEL, "--learn", "learn.tsv"]);
    refused(dir.path(), &["forecast", MODEL, "--held", "held.tsv"]);
    refused(
        dir.path(),
        &[&FORECAST[..], &["--against", "no-run"]].concat(),
    );

    // Training is meant to change every held-out fact.
    table(
        dir.path(),
        "new.tsv",
        &[("Madrid", "France", "Where is Madrid?")],
    );
    table(
        dir.path(),
        "old.tsv",
        &[("Madrid", "Spain", "Where is Madrid?")],
    );
    let output = of(MODEL, "new.tsv", "old.tsv");
    assert!(output.contains("no held fact is left"), "{output}");
}

#[test]
fn sets_of_one_fact_are_forecast_too() {
    let dir = tempfile::tempdir().unwrap();
    table(
        dir.path(),
        "learn.tsv",
        &[("Oslo", "Norway", "Where is Oslo?")],
    );
    let held = "subject\trelation\tobject\nFrance\tP36\tParis\n";
    fs::write(dir.path().join("held.tsv"), held).unwrap();
    let output = forecast(dir.path(), &[]);
    assert_eq!(output[0]["nearest"].as_array().unwrap().len(), 1);
    // Its answer is no other fact's, which is told in full before the ranking.
    let warning = output[0]["warning"].as_str().expect("a warning");
    let told = run(dir.path(), &FORECAST).stdout;
    let told = String::from_utf8(told).expect("text");
    assert!(
        told.starts_with(&format!("warning: {warning}\n\n")),
        "{told}"
    );
}

#[test]
fn a_forecast_is_evaluated_against_a_run() {
    let dir = tempfile::tempdir().unwrap();
    write_facts(dir.path());
    let sets = [
        "--set",
        "train.num_epochs=2",
        "--set",
        "measure.paraphrase=false",
    ];
    let tuned = run(dir.path(), &[&TUNE[..], &sets].concat());
    assert!(tuned.status.success(), "{}", stderr(&tuned));

    // A tiny random model knows nothing, so the outcomes are written by hand: in order of risk, the first and the third fact
    // are forgotten, the second is kept, and the last was never known.
    let order = forecast(dir.path(), &[]);
    let outcomes = ["forgotten", "kept", "forgotten", "never_knew"];
    let path = dir.path().join("run/facts.jsonl");
    let rewrite = |change: &dyn Fn(&mut Value)| {
        let text = fs::read_to_string(&path).unwrap();
        let rows = text.lines().map(|line| {
            let mut row: Value = serde_json::from_str(line).unwrap();
            change(&mut row);
            format!("{row}\n")
        });
        fs::write(&path, rows.collect::<String>()).unwrap();
    };
    rewrite(&|row| {
        if row["split"] == "held" {
            let mut ranked = order.as_array().unwrap().iter();
            let rank = ranked.position(|r| r["question"] == row["question"]);
            row["outcome"] = outcomes[rank.unwrap()].into();
        }
    });
    let evaluated = forecast(dir.path(), &["--against", "run"]);
    assert_eq!(evaluated["forecast"], order);
    assert_eq!([&evaluated["forgotten"], &evaluated["kept"]], [2, 1]);
    // Of the pairs (first, second) and (third, second), one is ordered correctly.
    assert_eq!(evaluated["auc"], 0.5);
    assert_eq!(evaluated["interval"], serde_json::json!([0.0, 1.0]));
    let against = [&FORECAST[..], &["--against", "run"]].concat();
    let output = stdout(&run(dir.path(), &against));
    assert!(output.contains("AUC 0.500"), "{output}");

    rewrite(&|row| {
        if row["outcome"] == "forgotten" {
            row["outcome"] = "kept".into();
        }
    });
    let output = refused(dir.path(), &against);
    assert!(output.contains("it forgot 0 and kept 3"), "{output}");
}

//! `compare` of two files of samples, in the form in which lm-evaluation-harness 0.4.9 writes them.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::cli::{json_lines, refused, run, stdout};

const NAMES: [&str; 2] = [
    "base/samples_capitals_2026-05-01T10-00-00.000001.jsonl",
    "tuned/samples_capitals_2026-05-02T10-00-00.000001.jsonl",
];

/// A row as `--log_samples` writes it.
fn row(id: usize, filter: &str, metrics: &Value) -> Value {
    let names: Vec<&String> = metrics.as_object().unwrap().keys().collect();
    let mut row = json!({
        "doc_id": id,
        "doc": {"question": format!("Capital {id}?"), "answer": "42"},
        "target": "42",
        "arguments": {"gen_args_0": {"arg_0": format!("Q: Capital {id}?\nA:"), "arg_1": {"until": ["\n"]}}},
        "resps": [["Rome"]],
        "filtered_resps": ["Rome"],
        "filter": filter,
        "metrics": names,
        "doc_hash": format!("doc{id}"),
        "prompt_hash": format!("prompt{id}"),
        "target_hash": format!("target{id}"),
    });
    let fields = row.as_object_mut().unwrap();
    fields.extend(metrics.as_object().unwrap().clone());
    row
}

fn write(dir: &Path, name: &str, rows: &[Value]) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    fs::write(path, lines.join("\n") + "\n").unwrap();
}

/// Both files, with these scores of documents 0, 1, 2, ... The second file lists them backwards.
fn write_both(dir: &Path, scores: [&[f64]; 2]) {
    for (file, scores) in scores.iter().enumerate() {
        let rows = scores.iter().enumerate();
        let mut rows: Vec<Value> = rows
            .map(|(id, score)| row(id, "none", &json!({"exact_match": score})))
            .collect();
        if file == 1 {
            rows.reverse();
        }
        write(dir, NAMES[file], &rows);
    }
}

fn compare_json(dir: &Path, more: &[&str]) -> Value {
    let args = [&["compare", NAMES[0], NAMES[1], "--json"], more].concat();
    json_lines(&run(dir, &args)).remove(0)
}

#[test]
fn documents_are_compared_in_pairs() {
    let dir = tempfile::tempdir().unwrap();
    let before = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0];
    let after = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0];
    write_both(dir.path(), [&before, &after]);
    let told = stdout(&run(dir.path(), &["compare", NAMES[0], NAMES[1]]));
    // Five lost, one gained, of ten. McNemar: 2 (C(6, 0) + C(6, 1)) / 2^6 = 14/64. Differences: five of -1, one of 1, four of 0,
    // with the variance (6 - 10 x 0.4^2) / 9.
    assert_eq!(
        told,
        "capitals: exact_match (filter none), 10 documents\n\
         before 70.0%, after 30.0%: difference -40.0 pp (95%: -72.0 to +8.7), paired standard error 22.1 pp\n\
         learned 1, kept 2, forgotten 5, never knew 2\n\
         McNemar's exact test, 5 forgotten against 1 learned: p = 0.2188\n\
         forgotten: documents 1, 2, 3, 4, 5\n\
         learned: document 6\n"
    );
    let result = compare_json(dir.path(), &[]);
    let p = result["mcnemar_p"].as_f64().unwrap();
    assert!((p - 14.0 / 64.0).abs() < 1e-12, "{p}");
    assert_eq!(
        (&result["task"], &result["metric"]),
        (&json!("capitals"), &json!("exact_match"))
    );
    let error = result["standard_error"].as_f64().unwrap();
    assert!((error - ((6.0f64 - 1.6) / 9.0 / 10.0).sqrt()).abs() < 1e-12);
    let rows = result["rows"].as_array().unwrap();
    assert_eq!(
        rows[6],
        json!({"doc_id": 6, "before": 0.0, "after": 1.0, "outcome": "learned"})
    );
    assert_eq!(rows.len(), 10);
}

#[test]
fn scores_that_are_no_zeros_and_ones_have_a_mean_difference_alone() {
    let dir = tempfile::tempdir().unwrap();
    write_both(dir.path(), [&[0.5, 0.25, 1.0], &[0.5, 0.75, 0.0]]);
    let told = stdout(&run(dir.path(), &["compare", NAMES[0], NAMES[1]]));
    assert!(
        !told.contains("McNemar") && !told.contains("forgotten"),
        "{told}"
    );
    assert!(
        told.contains("before 0.5833, after 0.4167: difference -0.1667"),
        "{told}"
    );
    let result = compare_json(dir.path(), &[]);
    assert_eq!(result.get("mcnemar_p"), None);
    assert_eq!(
        result["rows"][2],
        json!({"doc_id": 2, "before": 1.0, "after": 0.0})
    );
}

#[test]
fn of_several_metrics_and_filters_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for name in NAMES {
        let rows: Vec<Value> = ["strict-match", "flexible-extract"]
            .iter()
            .flat_map(|filter| {
                (0..4).map(move |id| {
                    // numpy's booleans and numbers are texts; pairs are no scores of a document.
                    let right = if id == 0 { "True" } else { "False" };
                    let metrics =
                        json!({"acc": f64::from(id == 1), "acc_norm": right, "f1": [0, 1]});
                    row(id, filter, &metrics)
                })
            })
            .collect();
        write(dir.path(), name, &rows);
    }
    let several = refused(dir.path(), &["compare", NAMES[0], NAMES[1]]);
    assert!(
        several.contains("several filters: flexible-extract, strict-match")
            && several.contains("--filter flexible-extract"),
        "{several}"
    );
    let filter = ["--filter", "strict-match"];
    let args = [&["compare", NAMES[0], NAMES[1]][..], &filter].concat();
    let several = refused(dir.path(), &args);
    assert!(
        several.contains("several metrics: acc, acc_norm\n"),
        "{several}"
    );
    let result = compare_json(
        dir.path(),
        &[&filter[..], &["--metric", "acc_norm"]].concat(),
    );
    assert_eq!(
        (&result["kept"], &result["before"]),
        (&json!(1), &json!(0.25))
    );
    for metric in ["f1", "target", "bleu"] {
        let args = [&args[..], &["--metric", metric]].concat();
        let none = refused(dir.path(), &args);
        assert!(
            none.contains("not both files have this metric in every row"),
            "{none}"
        );
    }
}

/// Both files of two documents, the second with a row changed.
fn with_change(change: impl Fn(&mut Vec<Value>)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let mut rows: Vec<Value> = (0..2)
        .map(|id| row(id, "none", &json!({"acc": 1.0})))
        .collect();
    write(dir.path(), NAMES[0], &rows);
    change(&mut rows);
    write(dir.path(), NAMES[1], &rows);
    refused(dir.path(), &["compare", NAMES[0], NAMES[1]])
}

#[test]
fn files_of_other_documents_are_refused_with_file_and_line() {
    let [before, after] = NAMES;
    for field in ["doc_hash", "target_hash", "prompt_hash"] {
        let message = with_change(|rows| rows[1][field] = json!("other"));
        let expected =
            format!("`{after}` line 2: document 1 has another `{field}` than in `{before}` line 2");
        assert!(message.contains(&expected), "{message}");
    }
    let message = with_change(|rows| rows[1]["doc_id"] = json!(7));
    assert!(
        message.contains(&format!(
            "`{before}` line 2: `{after}` has no row for document 1"
        )),
        "{message}"
    );
    let message = with_change(|rows| rows.push(rows[0].clone()));
    assert!(
        message.contains(&format!("`{after}` has document 0 twice: lines 1 and 3")),
        "{message}"
    );
    let message = with_change(|rows| rows[1]["acc"] = json!("no number"));
    assert!(
        message.contains("there is no metric that every row of both files has"),
        "{message}"
    );
    let message = with_change(|rows| {
        rows[1].as_object_mut().unwrap().remove("doc_hash");
    });
    assert!(
        message.contains(&format!("`{after}` line 2: missing field `doc_hash`"))
            && message.contains("0.4.3 or newer"),
        "{message}"
    );
    let dir = tempfile::tempdir().unwrap();
    let other = "samples_rivers_2026-05-01T10-00-00.jsonl";
    write(dir.path(), NAMES[0], &[row(0, "none", &json!({"acc": 1}))]);
    write(dir.path(), other, &[row(0, "none", &json!({"acc": 1}))]);
    let message = refused(dir.path(), &["compare", NAMES[0], other]);
    assert!(
        message.contains("is of the task capitals") && message.contains("of rivers"),
        "{message}"
    );
}

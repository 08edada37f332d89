//! The commands `data` and `facts`.

use std::{fs, path::Path};

use serde_json::json;

use crate::cli::{MODEL, json_lines, refused, run, stdout, write_facts};

#[test]
fn documents_become_facts_that_can_be_read_again() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("doc.md"),
        "# Pump\n\n- Weight: 3 kg\n\nAcme was founded in 1999.\n",
    )
    .unwrap();
    fs::write(dir.path().join("t.csv"), "model,colour\nP7,\"red\tish\"\n").unwrap();
    let proposed = run(dir.path(), &["facts", "doc.md", "t.csv"]);
    insta::assert_snapshot!(stdout(&proposed), @r"
    subject	relation	object	question
    Pump	weight	3 kg	What is the weight of Pump?
    Acme	when founded	1999	When was Acme founded?
    P7	colour	red ish	What is the colour of P7?
    ");
    fs::write(dir.path().join("new.tsv"), stdout(&proposed)).unwrap();
    let read = &json_lines(&run(
        dir.path(),
        &["data", "new.tsv", "--model", MODEL, "--json"],
    ))[0];
    assert_eq!(
        (&read["kind"], &read["items"]),
        (&json!("facts"), &json!(3))
    );
    let error = refused(dir.path(), &["facts", "new.tsv"]);
    assert!(error.contains("already has facts"), "{error}");
    assert!(refused(dir.path(), &["facts", "none.md"]).contains("none.md"));
}

#[test]
fn no_weights_are_read_where_the_tokenizer_is_all_that_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    write_facts(dir.path());
    let bare = dir.path().join("bare");
    fs::create_dir(&bare).unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(Path::new(MODEL).join(name), bare.join(name)).unwrap();
    }
    let data = |model| stdout(&run(dir.path(), &["data", "learn.tsv", "--model", model]));
    assert_eq!(data("bare"), data(MODEL));
    let synth = |model| {
        let facts = ["--relation", "P17", "--facts", "pack:world", "--n", "5"];
        stdout(&run(dir.path(), &[&["synth", model], &facts[..]].concat()))
    };
    assert_eq!(synth("bare"), synth(MODEL));
    let error = refused(dir.path(), &["data", "learn.tsv", "--model", "learn.tsv"]);
    assert!(error.contains("is not a model"), "{error}");
}

#[test]
fn the_trained_tokens_of_a_file_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    write_facts(dir.path());
    fs::write(
        dir.path().join("texts.jsonl"),
        "{\"prompt\":\"a b\",\"completion\":\" c\"}\n{\"text\":\"\\u001b[2Jd\"}\n",
    )
    .unwrap();
    let shown = run(
        dir.path(),
        &[
            "data",
            "learn.tsv",
            "texts.jsonl",
            "--model",
            MODEL,
            "--rows",
            "2",
        ],
    );
    insta::assert_snapshot!(stdout(&shown), @r"
    learn.tsv: 2 facts in 2 rows, 49 tokens, 10 of them trained; the longest row has 27

    ── row 1 ──
    Q: Which country is Bergamo located in?
    A:⟦ Italy
    ⟧

    ── row 2 ──
    Q: Which country is Oslo located in?
    A:⟦ Norway
    ⟧
    texts.jsonl: 2 texts in 2 rows, 11 tokens, 7 of them trained; the longest row has 6

    ── row 1 ──
    a b⟦ c<|eos|>⟧

    ── row 2 ──
    �⟦[2Jd<|eos|>⟧
    ");
    let long = [
        "data",
        "texts.jsonl",
        "--model",
        MODEL,
        "--rows",
        "1",
        "--max-length",
        "4",
        "--json",
    ];
    let summary = &json_lines(&run(dir.path(), &long))[0];
    assert_eq!(
        (&summary["kind"], &summary["items"], &summary["rows"]),
        (&json!("texts"), &json!(2), &json!(2))
    );
    assert_eq!(
        summary["shown"],
        json!([{"prompt": "a b", "target": " c<|eos|>"}])
    );
    let error = refused(dir.path(), &["data", "missing.jsonl", "--model", MODEL]);
    assert!(error.contains("missing.jsonl"), "{error}");
}

//! The command `synth`.

use std::collections::{BTreeMap, HashSet};

use unforget::facts::{self, ReadOptions};

use crate::cli::{MODEL, json_lines, refused, run, stderr, stdout};

const SYNTH: [&str; 8] = [
    "synth",
    MODEL,
    "--relation",
    "country",
    "--facts",
    "pack:world",
    "--n",
    "500",
];

#[test]
fn the_output_is_a_table_of_new_balanced_facts() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), &SYNTH);
    assert!(output.status.success(), "{}", stderr(&output));
    let path = dir.path().join("new.tsv");
    std::fs::write(&path, stdout(&output)).unwrap();
    let made = facts::read(&[path], ReadOptions::default()).unwrap().facts;
    assert_eq!(made.len(), 500);
    assert!(made.iter().all(|fact| fact.relation == "P17"));
    let world = facts::read(&["pack:world".into()], ReadOptions::default()).unwrap();
    let world = world.facts.iter().filter(|fact| fact.relation == "P17");
    let real: HashSet<String> = world.map(|fact| fact.subject.to_lowercase()).collect();
    assert!(
        made.iter()
            .all(|fact| !real.contains(&fact.subject.to_lowercase()))
    );
    let mut counts = BTreeMap::<&str, usize>::new();
    for fact in &made {
        *counts.entry(&fact.object).or_default() += 1;
    }
    let (least, most) = (counts.values().min(), counts.values().max());
    assert!(most.unwrap() - least.unwrap() <= 1, "{counts:?}");

    assert_eq!(stdout(&run(dir.path(), &SYNTH)), stdout(&output));
    let other = run(dir.path(), &[&SYNTH[..], &["--seed", "1"]].concat());
    assert_ne!(stdout(&other), stdout(&output));
}

#[test]
fn identifiers_overlap_with_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let uuid = ["--keys", "uuid", "--values", "uuid", "--json"];
    let rows = json_lines(&run(dir.path(), &[&SYNTH[..], &uuid].concat()));
    assert_eq!(rows.len(), 500);
    for row in rows {
        for (field, prefix) in [("subject", "Loc_"), ("object", "Val_")] {
            let digits = row[field].as_str().unwrap().strip_prefix(prefix).unwrap();
            assert!(digits.len() == 8 && digits.chars().all(|c| c.is_ascii_hexdigit()));
        }
    }
}

#[test]
fn an_unknown_relation_is_an_error_that_lists_the_known_ones() {
    let dir = tempfile::tempdir().unwrap();
    let args = [
        "synth",
        MODEL,
        "--relation",
        "P9",
        "--facts",
        "pack:world",
        "--n",
        "5",
    ];
    let error = refused(dir.path(), &args);
    assert!(
        error.contains("`--facts` has no facts of P9\nhint: it has "),
        "{error}"
    );
}

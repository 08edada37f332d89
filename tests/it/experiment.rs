//! Experiments: what is recorded, what is not run twice, and what is refused.

use std::{fs, path::Path, process::Output};

use assert_cmd::cargo::cargo_bin_cmd;
use unforget::experiment::Record;

/// A tiny model of the `llama` family with random weights: it knows nothing, so that no fact is known or held.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama");

fn experiment(arms: &str) -> String {
    format!(
        r#"
name = "tiny"
title = "Two ways"
model = {MODEL:?}
audit_runs = 1
set = ["train.batch_size=4", "train.num_epochs=2", "train.learning_rate=1e-2"]

[scale.smoke]
relations = ["P17"]
seeds = [0, 1]
train_facts = 30
held_parts = []
held_facts = 20
known = 5
unknown = 8
sizes = [6, 12]
held = 5
maybe_known = 0
elsewhere = 0
{arms}"#
    )
}

const ARMS: &str = r#"
[[arm]]
name = "sft"
set = ["method.kind=sft"]

[[arm]]
name = "low"
set = ["method.kind=sft", "train.trainable=ffn@0"]
seeds = [1]
"#;

fn reproduce(dir: &Path, args: &[&str]) -> Output {
    cargo_bin_cmd!("unforget")
        .current_dir(dir)
        .env("XDG_CACHE_HOME", dir.join(".cache"))
        .env_remove(unforget::experiment::ENTITY_QUESTIONS)
        .args(["reproduce", "tiny.toml", "--scale", "smoke"])
        .args(args)
        .output()
        .unwrap()
}

#[test]
fn every_arm_leaves_a_record_and_is_not_run_twice() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tiny.toml"), experiment(ARMS)).unwrap();
    let first = reproduce(dir.path(), &["--only", "low"]);
    let told = String::from_utf8(first.stderr).unwrap();
    assert!(first.status.success(), "{told}");
    let place = dir.path().join("experiments/results/tiny/smoke");
    let low = place.join("P17-1-low.json");
    let record = Record::read(&low).unwrap().expect("it was run");
    assert_eq!((record.seed, &record.arm[..]), (1, "low"));
    assert_eq!(record.epochs.len(), 3);
    assert!(record.step_seconds > 0.0 && record.result.steps > 0);
    let written = fs::read(&low).unwrap();

    let all = reproduce(dir.path(), &[]);
    let table = String::from_utf8(all.stdout).unwrap();
    let told = String::from_utf8(all.stderr).unwrap();
    assert!(
        told.contains("P17-0-sft") && told.contains("P17-1-sft"),
        "{told}"
    );
    assert!(!told.contains("P17-1-low"), "it is recorded: {told}");
    assert!(
        table.contains("| sft | 2 |") && table.contains("| low | 1 |"),
        "{table}"
    );
    assert_eq!(fs::read(&low).unwrap(), written);
    assert!(
        !place.join(".runs").exists(),
        "runs are removed once they are recorded"
    );
    assert!(told.contains("the same audit was made before"), "{told}");
    assert_eq!(fs::read_to_string(place.join("table.md")).unwrap(), table);
    let figure = fs::read_to_string(place.join("figure.svg")).unwrap();
    assert!(figure.contains("Held facts right: low (1 run)"), "{figure}");

    let recorded = reproduce(dir.path(), &["--recorded"]);
    assert_eq!(String::from_utf8(recorded.stdout).unwrap(), table);

    // What is run otherwise than it was recorded is run again.
    let slower = experiment(ARMS).replace("train.num_epochs=2", "train.num_epochs=1");
    fs::write(dir.path().join("tiny.toml"), slower).unwrap();
    let again = reproduce(dir.path(), &["--only", "low"]);
    assert!(again.status.success());
    let record = Record::read(&low).unwrap().expect("it was run");
    assert_eq!(record.result.epochs, 1);
}

#[test]
fn relations_without_facts_are_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let text = experiment(ARMS).replace("[\"P17\"]", "[\"P407\", \"P17\"]");
    fs::write(dir.path().join("tiny.toml"), text).unwrap();
    let low = reproduce(dir.path(), &["--only", "low"]);
    let told = String::from_utf8(low.stderr).unwrap();
    assert!(low.status.success(), "{told}");
    assert!(
        told.contains("the built-in facts have none of P407: left out"),
        "{told}"
    );
    let results = dir.path().join("experiments/results/tiny/smoke");
    assert!(results.join("P17-1-low.json").is_file());
}

#[test]
fn an_experiment_trains_synthetic_facts_and_evaluates_its_claims() {
    let arms = r#"
[[arm]]
name = "names"
set = ["method.kind=sft", "measure.drift=true"]
synthetic = { size = 2, keys = "semantic", values = "real" }

[[arm]]
name = "identifiers"
set = ["method.kind=sft"]
synthetic = { size = 2, keys = "uuid", values = "uuid" }

[[claim]]
says = "names are learned"
paper = "100%"
arm = "names"
measure = "learned"
at_least = 101.0

[[claim]]
says = "no more memory for identifiers"
arm = "identifiers"
measure = "memory"
at_most = 1.0
"#;
    let dir = tempfile::tempdir().unwrap();
    let text = experiment(arms)
        .replace("seeds = [0, 1]", "seeds = [0]")
        .replace("title", "records = \"both\"\nfigure = \"epochs\"\ntitle");
    fs::write(dir.path().join("tiny.toml"), &text).unwrap();
    let told = reproduce(dir.path(), &[]);
    assert!(
        told.status.success(),
        "{}",
        String::from_utf8_lossy(&told.stderr)
    );
    let table = String::from_utf8(told.stdout).unwrap();
    assert!(
        table.contains("| names are learned | 100% |") && table.contains("% | no |"),
        "{table}"
    );
    // There is no plain fine-tuning to be a multiple of.
    assert!(
        table.contains("| no more memory for identifiers |  |  | not run"),
        "{table}"
    );
    let results = dir.path().join("experiments/results");
    let figure = fs::read_to_string(results.join("tiny/smoke/figure.svg")).unwrap();
    assert!(
        figure.contains("New facts right") && figure.contains("identifiers"),
        "{figure}"
    );
    let place = results.join("both/smoke");
    let record = |arm: &str| {
        Record::read(&place.join(format!("P17-0-{arm}.json")))
            .unwrap()
            .unwrap()
    };
    assert_eq!(
        record("names").result.counts.learned + record("names").result.counts.not_learned,
        12
    );
    assert!(
        record("names")
            .epochs
            .iter()
            .all(|epoch| epoch.drift.is_some())
    );
    assert!(
        record("identifiers")
            .epochs
            .iter()
            .all(|epoch| epoch.drift.is_none())
    );

    // Other made-up facts are another run.
    fs::write(
        dir.path().join("tiny.toml"),
        text.replace("size = 2, keys = \"uuid\"", "size = 1, keys = \"uuid\""),
    )
    .unwrap();
    let again = reproduce(dir.path(), &["--only", "identifiers"]);
    assert!(again.status.success());
    let counts = record("identifiers").result.counts;
    assert_eq!(counts.learned + counts.not_learned, 6);
}

#[test]
fn an_invalid_experiment_is_refused_before_anything_is_written() {
    for (text, args, expected) in [
        (experiment(""), vec![], "there is no `[[arm]]`"),
        (
            experiment("[[arm]]\nname = '../x'\nset = []"),
            vec![],
            "`../x`",
        ),
        (
            experiment("[[arm]]\nname = 'a'\nset = []\n[[arm]]\nname = 'a'\nset = []"),
            vec![],
            "two arms are called `a`",
        ),
        (
            experiment("[[arm]]\nname = 'a'\nset = ['train.learning_rate=7']"),
            vec![],
            "train.learning_rate",
        ),
        (experiment(ARMS), vec!["--only", "stf"], "no arm `stf`"),
        (
            experiment(ARMS) + "[[claim]]\nsays = 'x'\narm = 'stf'\nat_most = 1.0",
            vec![],
            "is about `stf`, and there is no such arm",
        ),
        (
            experiment(ARMS).replace(
                "name = \"low\"",
                "name = \"low\"\nsynthetic = { size = 3, keys = \"uuid\", values = \"real\" }",
            ),
            vec![],
            "`low` has made-up facts of size 3, and the scale `smoke` has 2 `sizes`",
        ),
        (
            experiment(ARMS).replace("title", "setup = \"p18\"\ntitle"),
            vec![],
            "there is no setup `p18`",
        ),
        (
            experiment(ARMS).replace("P17", "P18"),
            vec![],
            "have none of P18",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tiny.toml"), text).unwrap();
        let output = reproduce(dir.path(), &args);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains(expected), "{told}");
        assert!(!dir.path().join("experiments").exists(), "{told}");
    }
}

#[test]
fn the_cost_of_the_paper_scale_is_estimated_without_a_model_and_refused_if_it_does_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        cargo_bin_cmd!("unforget")
            .current_dir(dir.path())
            .env("XDG_CACHE_HOME", dir.path().join(".cache"))
            .env("HF_HUB_OFFLINE", "1")
            .args(["reproduce", "--scale", "paper"])
            .args(args)
            .output()
            .unwrap()
    };
    let all = run(&["all", "--dry-run"]);
    let told = String::from_utf8(all.stdout).unwrap();
    assert!(
        all.status.success(),
        "{}",
        String::from_utf8_lossy(&all.stderr)
    );
    // 16 bytes a weight of 1.5 and of 8 billion.
    assert_eq!(told.lines().count(), 17 + 1, "{told}");
    let of = |name: &str| {
        told.lines()
            .find(|line| line.starts_with(name))
            .unwrap()
            .to_owned()
    };
    assert!(
        of("fig2: ").contains("6 runs to do: about 24.70 GB of memory"),
        "{told}"
    );
    assert!(of("fig7: ").contains("128.48 GB of memory"), "{told}");
    // What one experiment records the next need not run.
    assert!(of("fig3: ").contains("3 runs to do"), "{told}");
    assert!(
        of("fig10: ").ends_with("nothing is left to be run"),
        "{told}"
    );
    assert!(of("all: ").contains("128.48 GB of memory"), "{told}");
    let fits = unforget::run::total_memory_bytes().is_none_or(|bytes| bytes > 128_000_000_000);
    if !fits {
        let refused = run(&["fig7"]);
        let told = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(2), "{told}");
        assert!(
            told.contains("fig7 at `paper` does not fit: 6 runs to do"),
            "{told}"
        );
        assert!(!dir.path().join("experiments").exists());
    }
}

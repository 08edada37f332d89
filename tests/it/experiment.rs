//! Experiments: records, skipped runs and invalid files.

use std::{fs, path::Path, process::Output};

use assert_cmd::cargo::cargo_bin_cmd;
use unforget::experiment::Record;

/// A tiny `llama` model with random weights: it knows no facts, so no fact is known or held out.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama");

fn experiment(arms: &str) -> String {
    format!(
        r#"
name = "tiny"
title = "Two arms"
model = {MODEL:?}
audit_num_prompts = 1
set = ["train.batch_size=4", "train.num_epochs=2", "train.learning_rate=1e-2"]

[scale.smoke]
relations = ["P17"]
seeds = [0, 1]
train_facts = 30
held_splits = []
held_facts = 20
known = 5
unknown = 8
sizes = [6, 12]
held = 5
maybe_known = 0
other_relations = 0
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
    let stderr = String::from_utf8(first.stderr).unwrap();
    assert!(first.status.success(), "{stderr}");
    let place = dir.path().join("experiments/results/tiny/smoke");
    let low = place.join("P17-1-low.json");
    let record = Record::read(&low).unwrap().expect("it is recorded");
    assert_eq!((record.seed, &record.arm[..]), (1, "low"));
    assert_eq!(record.epochs.len(), 3);
    assert!(record.step_seconds > Some(0.0) && record.result.steps > 0);
    let written = fs::read(&low).unwrap();

    let all = reproduce(dir.path(), &[]);
    let table = String::from_utf8(all.stdout).unwrap();
    let stderr = String::from_utf8(all.stderr).unwrap();
    assert!(
        stderr.contains("P17-0-sft") && stderr.contains("P17-1-sft"),
        "{stderr}"
    );
    assert!(!stderr.contains("P17-1-low"), "it is recorded: {stderr}");
    assert!(
        table.contains("| sft | 2 |") && table.contains("| low | 1 |"),
        "{table}"
    );
    assert_eq!(fs::read(&low).unwrap(), written);
    assert!(
        !place.join(".runs").exists(),
        "run directories are removed once recorded"
    );
    assert!(
        stderr.contains("the same audit was made before"),
        "{stderr}"
    );
    assert_eq!(fs::read_to_string(place.join("table.md")).unwrap(), table);
    let figure = fs::read_to_string(place.join("figure.svg")).unwrap();
    assert!(
        figure.contains("Accuracy on held-out facts: low (1 run)"),
        "{figure}"
    );

    let recorded = reproduce(dir.path(), &["--recorded"]);
    assert_eq!(String::from_utf8(recorded.stdout).unwrap(), table);

    // A changed config is run again.
    let slower = experiment(ARMS).replace("train.num_epochs=2", "train.num_epochs=1");
    fs::write(dir.path().join("tiny.toml"), slower).unwrap();
    let again = reproduce(dir.path(), &["--only", "low"]);
    assert!(again.status.success());
    let record = Record::read(&low).unwrap().expect("it is recorded");
    assert_eq!(record.result.epochs, 1);
}

#[test]
fn relations_without_facts_are_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let text = experiment(ARMS).replace("[\"P17\"]", "[\"P407\", \"P17\"]");
    fs::write(dir.path().join("tiny.toml"), text).unwrap();
    let low = reproduce(dir.path(), &["--only", "low"]);
    let stderr = String::from_utf8(low.stderr).unwrap();
    assert!(low.status.success(), "{stderr}");
    assert!(
        stderr.contains("the built-in facts contain none of P407: skipped"),
        "{stderr}"
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
statement = "names are learned"
paper = "100%"
arm = "names"
metric = "learned"
at_least = 101.0

[[claim]]
statement = "no more memory for identifiers"
arm = "identifiers"
metric = "peak-memory"
at_most = 1.0
"#;
    let dir = tempfile::tempdir().unwrap();
    let text = experiment(arms)
        .replace("seeds = [0, 1]", "seeds = [0]")
        .replace("title", "records = \"both\"\nfigure = \"epochs\"\ntitle");
    fs::write(dir.path().join("tiny.toml"), &text).unwrap();
    let output = reproduce(dir.path(), &[]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(
        table.contains("| names are learned | 100% |") && table.contains("% | no |"),
        "{table}"
    );
    // There is no plain fine-tuning run to compare to.
    assert!(
        table.contains("| no more memory for identifiers |  |  | not run"),
        "{table}"
    );
    let results = dir.path().join("experiments/results");
    let figure = fs::read_to_string(results.join("tiny/smoke/figure.svg")).unwrap();
    assert!(
        figure.contains("New facts: accuracy") && figure.contains("identifiers"),
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

    // Other synthetic facts are run again.
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
        (experiment(""), vec![], "no `[[arm]]`"),
        (
            experiment("[[arm]]\nname = '../x'\nset = []"),
            vec![],
            "`../x`",
        ),
        (
            experiment("[[arm]]\nname = 'a'\nset = []\n[[arm]]\nname = 'a'\nset = []"),
            vec![],
            "two arms have the name `a`",
        ),
        (
            experiment("[[arm]]\nname = 'a'\nset = ['train.learning_rate=7']"),
            vec![],
            "train.learning_rate",
        ),
        (experiment(ARMS), vec!["--only", "stf"], "no arm `stf`"),
        (
            experiment(ARMS) + "[[claim]]\nstatement = 'x'\narm = 'stf'\nat_most = 1.0",
            vec![],
            "names the arm `stf`, which does not exist",
        ),
        (
            experiment(ARMS).replace(
                "name = \"low\"",
                "name = \"low\"\nsynthetic = { size = 3, keys = \"uuid\", values = \"real\" }",
            ),
            vec![],
            "the arm `low` uses size 3 of the synthetic facts, but the scale `smoke` lists 2 `sizes`",
        ),
        (
            experiment(ARMS).replace("title", "setup = \"p18\"\ntitle"),
            vec![],
            "unknown setup `p18`",
        ),
        (
            experiment(ARMS).replace("P17", "P18"),
            vec![],
            "contain none of P18",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tiny.toml"), text).unwrap();
        let output = reproduce(dir.path(), &args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(expected), "{stderr}");
        assert!(!dir.path().join("experiments").exists(), "{stderr}");
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
    let stdout = String::from_utf8(all.stdout).unwrap();
    assert!(
        all.status.success(),
        "{}",
        String::from_utf8_lossy(&all.stderr)
    );
    // 16 bytes per parameter, for 1.5 and 8 billion, and 150 MB of the process.
    assert_eq!(stdout.lines().count(), 17 + 1, "{stdout}");
    let of = |name: &str| {
        stdout
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap()
            .to_owned()
    };
    assert!(
        of("fig2: ").contains("6 runs to do: about 24.85 GB of memory"),
        "{stdout}"
    );
    assert!(of("fig7: ").contains("128.63 GB of memory"), "{stdout}");
    // Runs that an earlier experiment records are not counted again.
    assert!(of("fig3: ").contains("3 runs to do"), "{stdout}");
    assert!(
        of("fig10: ").ends_with("nothing is left to be run"),
        "{stdout}"
    );
    assert!(of("all: ").contains("128.63 GB of memory"), "{stdout}");
    let fits = unforget::system::total_memory_bytes().is_none_or(|bytes| bytes > 128_000_000_000);
    if !fits {
        let refused = run(&["fig7"]);
        let stderr = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(2), "{stderr}");
        assert!(
            stderr.contains("fig7 at `paper` does not fit: 6 runs to do"),
            "{stderr}"
        );
        assert!(!dir.path().join("experiments").exists());
    }
}

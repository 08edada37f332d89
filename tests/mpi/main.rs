//! Several processes that share a run: what comes of it is what one process alone comes to, within rounding. Needs the feature `mpi`,
//! and `mpirun` on the path.

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use assert_cmd::cargo::cargo_bin;
use serde_json::Value;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama");

/// Six known facts, five new ones and four held out.
const TUNE: [&str; 18] = [
    "tune",
    MODEL,
    "--keep",
    "keep.tsv",
    "--learn",
    "learn.tsv",
    "--held",
    "held.tsv",
    "--set",
    "data.audit=false",
    "--set",
    "train.num_epochs=3",
    "--set",
    "train.batch_size=3",
    "--set",
    "train.learning_rate=1e-3",
    "--set",
    "train.save_every=1",
];

/// A folder with these facts.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, prefix, count) in [("keep", "Ber", 6), ("learn", "Pas", 5), ("held", "Tor", 4)] {
        let objects = ["Italy", "Japan", "Peru"];
        let row = |i: usize| format!("{prefix}{i}\tP17\t{}\n", objects[i % 3]);
        let rows: String = (0..count).map(row).collect();
        let text = format!("subject\trelation\tobject\n{rows}");
        fs::write(dir.path().join(format!("{name}.tsv")), text).unwrap();
    }
    dir
}

/// The program as `processes` processes.
fn command(dir: &Path, processes: usize, args: &[&str]) -> Command {
    let program = cargo_bin("unforget");
    let mut command = if processes == 1 {
        Command::new(program)
    } else {
        let mut mpirun = Command::new("mpirun");
        mpirun
            .args([
                "--allow-run-as-root",
                "--oversubscribe",
                "-n",
                &processes.to_string(),
            ])
            .arg(program);
        mpirun
    };
    command
        .current_dir(dir)
        .env("XDG_CACHE_HOME", dir.join(".cache"))
        .args(["--threads", "1"])
        .args(args);
    command
}

fn run(dir: &Path, processes: usize, args: &[&str]) -> Output {
    command(dir, processes, args).output().unwrap()
}

fn stderr_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Trains so many processes into `out`.
fn tune(dir: &Path, processes: usize, out: &str, sets: &[&str]) {
    let sets = sets.iter().flat_map(|set| ["--set", *set]);
    let args: Vec<&str> = TUNE.into_iter().chain(["--out", out]).chain(sets).collect();
    let output = run(dir, processes, &args);
    assert!(output.status.success(), "{out}: {}", stderr_of(&output));
}

fn rows(dir: &Path, file: &str) -> Vec<Value> {
    let text = fs::read_to_string(dir.join(file)).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// What two runs did is the same within `tolerance` of every step's loss and gradient, and in what is right of each part.
#[track_caller]
fn assert_runs_match(dir: &Path, one: &str, other: &str, tolerance: f64) {
    let [a, b] = [one, other].map(|run| rows(dir, &format!("{run}/metrics.jsonl")));
    assert_eq!(a.len(), b.len(), "{other}");
    for (a, b) in a.iter().zip(&b) {
        assert_eq!(a["accuracy"], b["accuracy"], "{other}");
        for name in ["loss", "ce", "distill", "penalty", "grad_norm"] {
            let [a, b] = [a, b].map(|row| row[name].as_f64().unwrap_or(0.0));
            let close = (a - b).abs() <= tolerance * a.abs().max(b.abs()).max(1e-3);
            assert!(close, "{other}, {name}: {a} and {b}");
        }
    }
    let [a, b] = [one, other].map(|run| rows(dir, &format!("{run}/facts.jsonl")));
    for (a, b) in a.iter().zip(&b) {
        assert_eq!(
            (&a["subject"], &a["outcome"]),
            (&b["subject"], &b["outcome"]),
            "{other}"
        );
    }
}

#[test]
fn several_processes_train_what_one_trains() {
    let dir = folder();
    let methods: [(&str, &[&str]); 9] = [
        ("sft", &["method.kind=sft"]),
        ("hidden", &["method.kind=self-distill"]),
        (
            "live",
            &["method.kind=self-distill", "method.teacher=online"],
        ),
        (
            "topk",
            &["method.kind=self-distill", "method.vocab_subset={top=9}"],
        ),
        (
            "random",
            &["method.kind=self-distill", "method.vocab_subset={random=9}"],
        ),
        (
            "decoys",
            &["method.kind=self-distill", "method.decoys={ratio=0.5}"],
        ),
        (
            "l2",
            &[
                "method.kind=l2",
                "train.ema_decay=0.9",
                "train.gradient_accumulation_steps=2",
            ],
        ),
        ("part", &["method.kind=sft", "train.trainable=ffn@1-1"]),
        (
            "lora",
            &[
                "method.kind=sft",
                "train.lora={r=2,target_modules=['q_proj','down_proj']}",
            ],
        ),
    ];
    for (name, sets) in methods {
        tune(dir.path(), 1, name, sets);
        for processes in [2, 4] {
            let out = format!("{name}-{processes}");
            tune(dir.path(), processes, &out, sets);
            // Gradients are summed in another order: rounding, over ten steps.
            assert_runs_match(dir.path(), name, &out, 1e-4);
        }
    }
}

#[test]
fn a_process_without_a_row_waits_for_the_others() {
    let dir = folder();
    let sets = ["method.kind=self-distill", "train.batch_size=1"];
    tune(dir.path(), 1, "one", &sets);
    tune(dir.path(), 4, "four", &sets);
    assert_runs_match(dir.path(), "one", "four", 1e-4);
}

#[test]
fn a_process_that_dies_ends_all_and_the_run_resumes_with_any_number() {
    let dir = folder();
    let sets = ["train.num_epochs=40", "measure.paraphrase=false"];
    tune(dir.path(), 1, "whole", &sets);
    for (processes, then) in [(2, 2), (4, 1), (2, 4)] {
        let out = format!("killed-{processes}-{then}");
        let sets = sets.iter().flat_map(|set| ["--set", *set]);
        let args: Vec<&str> = TUNE
            .into_iter()
            .chain(["--out", &out])
            .chain(sets)
            .collect();
        let mut running = command(dir.path(), processes, &args);
        let running = running.stderr(Stdio::piped()).spawn().unwrap();
        let checkpoints = dir.path().join(&out).join("checkpoints");
        let begun = Instant::now();
        while fs::read_dir(&checkpoints).map_or(0, Iterator::count) < 2 {
            assert!(begun.elapsed() < Duration::from_secs(120), "no checkpoint");
            thread::sleep(Duration::from_millis(5));
        }
        kill_one_of(running.id());
        let ended = running.wait_with_output().unwrap();
        assert!(!ended.status.success(), "{}", stderr_of(&ended));
        assert!(
            stderr_of(&ended).contains("mpirun"),
            "{}",
            stderr_of(&ended)
        );
        assert!(!dir.path().join(&out).join("result.json").exists());

        let resumed = run(dir.path(), then, &["resume", &out]);
        assert!(resumed.status.success(), "{}", stderr_of(&resumed));
        // Over 160 steps rounding grows.
        assert_runs_match(dir.path(), "whole", &out, 1e-2);
    }
}

/// Kills the last of the processes that `mpirun`, with this number, has started.
fn kill_one_of(mpirun: u32) {
    let children = fs::read_to_string(format!("/proc/{mpirun}/task/{mpirun}/children")).unwrap();
    let last = children
        .split_whitespace()
        .last()
        .expect("it runs")
        .to_owned();
    assert!(
        Command::new("kill")
            .args(["-9", &last])
            .status()
            .unwrap()
            .success()
    );
}

#[test]
fn an_audit_is_sharded_and_printed_once() {
    let dir = folder();
    let audit = |processes: usize, out: &str| {
        let facts = ["keep.tsv", "learn.tsv", "held.tsv"];
        let how = ["--num-prompts", "2", "--out", out, "--json"];
        let args = [&["audit", MODEL], &facts[..], &how].concat();
        let cache = dir.path().join(out).join("cache");
        let output = command(dir.path(), processes, &args)
            .env("UNFORGET_CACHE", cache)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", stderr_of(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let said = [1, 3].map(|n| audit(n, &format!("audit-{n}")));
    assert_eq!(said[0].lines().count(), said[1].lines().count());
    let labels = |out: &str| -> Vec<(Value, Value)> {
        let rows = rows(dir.path(), &format!("{out}/facts.jsonl")).into_iter();
        rows.map(|row| (row["subject"].clone(), row["label"].clone()))
            .collect()
    };
    assert_eq!(labels("audit-1"), labels("audit-3"));
}

#[test]
fn errors_are_printed_once() {
    let dir = folder();
    let args: Vec<&str> = TUNE
        .into_iter()
        .chain(["--out", "run", "--set", "train.lrr=1"])
        .collect();
    let output = run(dir.path(), 3, &args);
    assert_eq!(output.status.code(), Some(2), "{}", stderr_of(&output));
    assert_eq!(
        stderr_of(&output).matches("error: ").count(),
        1,
        "{}",
        stderr_of(&output)
    );
    assert!(!dir.path().join("run").exists());

    let fused = [
        "--set",
        "train.optimizer_in_backward=true",
        "--set",
        "train.max_grad_norm=0",
        "--out",
        "run",
    ];
    let args: Vec<&str> = TUNE.into_iter().chain(fused).collect();
    let output = run(dir.path(), 2, &args);
    assert!(
        stderr_of(&output).contains("several processes sum whole gradients"),
        "{}",
        stderr_of(&output)
    );
}

#[test]
fn the_arms_of_an_experiment_are_split_over_the_processes() {
    let dir = folder();
    let file = format!(
        r#"
name = "tiny"
title = "Three ways"
model = {MODEL:?}
audit_num_prompts = 1
set = ["train.batch_size=4", "train.num_epochs=2", "method.kind=sft"]

[scale.smoke]
relations = ["P17"]
seeds = [0, 1]
train_facts = 30
held_splits = []
held_facts = 20
known = 5
unknown = 8
held = 5
maybe_known = 0
other_relations = 0

[[arm]]
name = "all"
set = []

[[arm]]
name = "low"
set = ["train.trainable=ffn@0"]

[[arm]]
name = "high"
set = ["train.trainable=ffn@1"]
"#
    );
    fs::write(dir.path().join("tiny.toml"), file).unwrap();
    let reproduced = |processes: usize, out: &str| {
        let args = ["reproduce", "tiny.toml", "--scale", "smoke", "--out", out];
        let output = run(dir.path(), processes, &args);
        assert!(output.status.success(), "{}", stderr_of(&output));
        output
    };
    let one = reproduced(1, "one");
    let three = reproduced(3, "three");
    let table = |output: &Output| {
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        let lines = text
            .lines()
            .map(|line| line.split('|').take(4).collect::<String>());
        lines.collect::<Vec<_>>()
    };
    assert_eq!(table(&one), table(&three));
    for seed in [0, 1] {
        for arm in ["all", "low", "high"] {
            let record = dir
                .path()
                .join(format!("three/tiny/smoke/P17-{seed}-{arm}.json"));
            assert!(record.is_file(), "{}", record.display());
        }
    }
}

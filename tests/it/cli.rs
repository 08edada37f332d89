//! The program from outside: exit codes, messages, and that nothing is written when the input is wrong.

use std::{fs, path::Path, process::Output};

use assert_cmd::{Command, cargo::cargo_bin_cmd};

/// A tiny model of the `llama` family with random weights.
pub const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama");

fn unforget(dir: &Path) -> Command {
    let mut command = cargo_bin_cmd!("unforget");
    command
        .current_dir(dir)
        .env("NO_COLOR", "1")
        .env("XDG_CACHE_HOME", dir.join(".cache"));
    command
}

pub fn run(dir: &Path, args: &[&str]) -> Output {
    unforget(dir).args(args).output().unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Runs with wrong input: exit code 2, nothing on stdout; returns stderr.
#[track_caller]
pub fn refused(dir: &Path, args: &[&str]) -> String {
    let output = run(dir, args);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {message}");
    assert_eq!(stdout(&output), "", "{args:?}");
    assert!(!message.contains("panicked"), "{message}");
    message
}

pub fn json_lines(output: &Output) -> Vec<serde_json::Value> {
    assert!(output.status.success(), "{}", stderr(output));
    stdout(output)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[cfg(not(feature = "mpi"))]
#[test]
fn processes_that_are_started_together_and_cannot_know_of_each_other_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = unforget(dir.path());
    let output = command
        .env("OMPI_COMM_WORLD_SIZE", "2")
        .args(["pull", MODEL])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let message = stderr(&output);
    assert!(
        message.contains("started 2 processes") && message.contains("--features mpi"),
        "{message}"
    );
}

#[test]
fn the_help_names_every_command_and_each_has_an_example() {
    let dir = tempfile::tempdir().unwrap();
    let help = stdout(&run(dir.path(), &["--help"]));
    // The list that clap prints: every command, and no more.
    let (_, list) = help.split_once("\nCommands:\n").unwrap();
    let (list, _) = list.split_once("\n\n").unwrap();
    let commands: Vec<&str> = list
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|command| !command.is_empty())
        .filter(|command| *command != "help")
        .collect();
    assert!(commands.len() >= 19, "{commands:?}");
    for command in commands {
        let output = run(dir.path(), &[command, "--help"]);
        assert!(output.status.success());
        let help = stdout(&output);
        assert!(help.contains("Example"), "{command}: {help}");
        assert!(help.contains(&format!("unforget {command} ")), "{help}");
        // A command that is broken elsewhere cannot be pasted.
        let examples = help.lines().filter(|line| line.starts_with("  unforget "));
        let too_long: Vec<&str> = examples.filter(|line| line.len() > 80).collect();
        assert_eq!(too_long, [""; 0]);
    }
}

#[test]
fn shells_and_man_know_every_command() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = stdout(&run(dir.path(), &["completions", shell]));
        assert!(
            script.contains("tune") && script.contains("keep-checkpoints"),
            "{shell}"
        );
    }
    assert!(run(dir.path(), &["man", "man1"]).status.success());
    let page = fs::read_to_string(dir.path().join("man1/unforget-tune.1")).unwrap();
    assert!(page.contains("Fine") && page.contains("learn"), "{page}");
}

#[test]
fn usage_errors_exit_with_2_and_version_with_0() {
    let dir = tempfile::tempdir().unwrap();
    refused(dir.path(), &["fine-tune"]);
    refused(dir.path(), &["ask"]);
    refused(dir.path(), &["ask", MODEL, "x", "--samples", "many"]);
    refused(dir.path(), &["ask", MODEL, "x", "--threads", "0"]);
    assert!(run(dir.path(), &["--version"]).status.success());
}

#[test]
fn devices_are_listed_the_cpu_first_and_one_that_is_not_there_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let listed = run(dir.path(), &["devices", "--json", "--threads", "1"]);
    assert!(listed.status.success());
    let devices: serde_json::Value = serde_json::from_str(&stdout(&listed)).unwrap();
    let cpu = &devices[0];
    assert_eq!(
        (&cpu["device"], &cpu["kind"]),
        (&"cpu".into(), &"cpu".into())
    );
    assert_eq!(
        (&cpu["threads"], &cpu["driver"]),
        (&1.into(), &serde_json::Value::Null)
    );
    let table = stdout(&run(dir.path(), &["devices"]));
    assert!(table.starts_with("device"), "{table}");
    // Every command takes the device.
    for device in ["cpu", "auto"] {
        let asked = run(dir.path(), &["ask", MODEL, "x", "--device", device]);
        assert!(asked.status.success(), "{}", stderr(&asked));
    }
    let message = refused(dir.path(), &["ask", MODEL, "x", "--device", "gpu:99"]);
    let reason = if cfg!(feature = "gpu") {
        "no GPU 99"
    } else {
        "this program was built without GPUs"
    };
    assert!(message.contains(reason), "{message}");
}

#[test]
fn a_typo_in_a_config_is_told_with_its_line_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let config = "model = \"m\"\nout = \"run\"\n\n[method]\nkind = \"sft\"\ntemprature = 0.5\n";
    fs::write(dir.path().join("exp.toml"), config).unwrap();
    insta::assert_snapshot!(refused(dir.path(), &["tune", "exp.toml"]), @r"
    error: `exp.toml` line 6: unknown key `temprature` in [method]
    hint: did you mean `temperature`?
    ");
    assert!(!dir.path().join("run").exists());
}

#[test]
fn files_that_are_not_there_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let message = refused(dir.path(), &["tune", "no.toml"]);
    assert!(
        message.starts_with("error: cannot read `no.toml`"),
        "{message}"
    );
    let message = refused(dir.path(), &["score", MODEL, "no.jsonl"]);
    assert!(
        message.starts_with("error: cannot read `no.jsonl`"),
        "{message}"
    );
    let message = refused(dir.path(), &["audit", MODEL, "no.tsv", "--out", "audit"]);
    assert!(message.contains("no.tsv"), "{message}");
    let message = refused(dir.path(), &["ask", "./no-model", "x"]);
    assert!(message.contains("no-model"), "{message}");
    refused(dir.path(), &["resume", "no-run"]);
    refused(dir.path(), &["compare", "no-run"]);
    refused(dir.path(), &["report", "no-run"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_broken_row_is_told_with_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let rows = "{\"prompt\": \"a\", \"completion\": \"b\"}\n\n{\"prompt\": \"a\"}\n";
    fs::write(dir.path().join("rows.jsonl"), rows).unwrap();
    insta::assert_snapshot!(refused(dir.path(), &["score", MODEL, "rows.jsonl"]), @r#"
    error: rows.jsonl, line 3: field `completion` is missing
    hint: each row is an object such as {"prompt": "...", "completion": "..."}
    "#);
    fs::write(dir.path().join("rows.jsonl"), "not json\n").unwrap();
    let message = refused(dir.path(), &["ask", MODEL, "--prompts", "rows.jsonl"]);
    assert!(
        message.starts_with("error: rows.jsonl, line 1: "),
        "{message}"
    );
    fs::write(
        dir.path().join("new.tsv"),
        "subject\trelation\tobject\nParis\tP17\n",
    )
    .unwrap();
    let message = refused(
        dir.path(),
        &["tune", MODEL, "--learn", "new.tsv", "--out", "run"],
    );
    assert!(message.contains("new.tsv"), "{message}");
    assert!(!dir.path().join("run").exists());
}

#[test]
fn a_place_that_cannot_be_written_is_refused_before_any_work() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    fs::create_dir(dir.path().join("full")).unwrap();
    fs::write(dir.path().join("full/thing"), "").unwrap();
    for out in ["file", "file/below", "full"] {
        for args in [
            &["audit", MODEL, "pack:world", "--out", out][..],
            &["tune", MODEL, "--learn", "pack:world", "--out", out],
            &["export", MODEL, "--out", out],
            &["demo", "--out", out],
        ] {
            let message = refused(dir.path(), args);
            assert!(message.contains(out), "{args:?}: {message}");
        }
    }
    refused(dir.path(), &["report", "run", "--out", "file/report.html"]);
}

#[test]
fn asking_is_deterministic_and_keeps_the_order_of_the_rows() {
    let dir = tempfile::tempdir().unwrap();
    let prompts = "{\"prompt\": \"b\"}\n{\"prompt\": \"a longer one\"}\n";
    fs::write(dir.path().join("p.jsonl"), prompts).unwrap();
    let ask = |threads: &str| {
        run(
            dir.path(),
            &[
                "ask",
                MODEL,
                "--prompts",
                "p.jsonl",
                "--temperature",
                "0.9",
                "--top-k",
                "20",
                "--samples",
                "3",
                "--max-new-tokens",
                "5",
                "--logprobs",
                "2",
                "--seed",
                "4",
                "--threads",
                threads,
            ],
        )
    };
    let rows = json_lines(&ask("1"));
    assert_eq!(rows, json_lines(&ask("2")));
    assert_eq!(rows[0]["prompt"], "b");
    assert_eq!(rows[1]["prompt"], "a longer one");
    for row in &rows {
        assert_eq!(row["answers"].as_array().unwrap().len(), 3);
        assert_eq!(row["answers"][0], row["answer"]);
        let token = &row["tokens"][0];
        assert!(token["logprob"].as_f64().unwrap() < 0.0);
        let top: Vec<f64> = (0..2)
            .map(|i| token["top"][i][1].as_f64().unwrap())
            .collect();
        assert!(top[0] >= top[1]);
    }
}

#[test]
fn a_score_is_the_sum_of_its_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let rows = "{\"prompt\": \"ab\", \"completion\": \" cd\"}\n{\"prompt\": \"x\", \"completion\": \"\"}\n";
    fs::write(dir.path().join("rows.jsonl"), rows).unwrap();
    let scored = json_lines(&run(dir.path(), &["score", MODEL, "rows.jsonl"]));
    let tokens = scored[0]["tokens"].as_array().unwrap();
    let sum: f64 = tokens.iter().map(|t| t["logprob"].as_f64().unwrap()).sum();
    // Logarithms of a few nats in f32.
    assert!((scored[0]["logprob"].as_f64().unwrap() - sum).abs() < 1e-5);
    let text: String = tokens.iter().map(|t| t["text"].as_str().unwrap()).collect();
    assert_eq!(text, " cd");
    assert_eq!(scored[1]["tokens"].as_array().unwrap().len(), 0);
    assert_eq!(scored[1]["logprob"].to_string(), "0.0");
}

/// Three fact files in `dir`; the tiny model learns them in a few steps.
pub fn write_facts(dir: &Path) {
    let table = |name: &str, rows: &[[&str; 2]]| {
        let rows: String = rows
            .iter()
            .map(|[subject, object]| format!("{subject}\tP17\t{object}\n"))
            .collect();
        fs::write(dir.join(name), format!("subject\trelation\tobject\n{rows}")).unwrap();
    };
    table("learn.tsv", &[["Bergamo", "Italy"], ["Oslo", "Norway"]]);
    table("keep.tsv", &[["Paris", "France"], ["Lyon", "France"]]);
    table("held.tsv", &[["Madrid", "Spain"]]);
}

#[test]
fn what_a_run_would_take_is_told_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    write_facts(dir.path());
    let message = run(dir.path(), &[&TUNE[..], &["--dry-run"]].concat());
    assert!(message.status.success(), "{}", stderr(&message));
    let message = stdout(&message);
    for words in [
        "rows: 2 known and 2 new; ",
        "at most 4 steps in 4 epochs",
        "\nmemory: ",
        "\ndisk: ",
        "\ntime: about ",
        "for each evaluation of 5 facts)",
    ] {
        assert!(message.contains(words), "{words:?} is not in: {message}");
    }
    let message = &json_lines(&run(
        dir.path(),
        &[
            &TUNE[..],
            &["--dry-run", "--json", "--set", "train.trainable=ffn"],
        ]
        .concat(),
    ))[0];
    let parameters = message["parameters"].as_u64().unwrap();
    assert_eq!(message["memory"]["weights"], 4 * parameters);
    assert_eq!(
        message["memory"]["gradients"],
        4 * message["trainable"].as_u64().unwrap(),
        "what is frozen has none"
    );
    assert!(message["trainable"].as_u64().unwrap() < parameters);
    assert!(!dir.path().join("run").exists());

    // The audit is counted and not made.
    let audited = [
        "tune",
        MODEL,
        "--learn",
        "learn.tsv",
        "--batch-size",
        "64",
        "--out",
        "run",
        "--dry-run",
    ];
    let message = run(dir.path(), &audited);
    assert!(message.status.success(), "{}", stderr(&message));
    assert!(
        stdout(&message).contains(" for the audit of "),
        "{}",
        stdout(&message)
    );
    let note = stderr(&message);
    assert!(note.starts_with("audit: 5 few-shot prompts"), "{note}");
    assert_eq!(note.lines().count(), 1, "{note}");
}

#[test]
fn a_profile_says_where_the_steps_time_went_and_changes_no_bit() {
    let dir = tempfile::tempdir().unwrap();
    write_facts(dir.path());
    let weights = |place: &Path| fs::read(place.join("model/model.safetensors")).unwrap();
    let plain = run(dir.path(), &TUNE);
    assert!(plain.status.success(), "{}", stderr(&plain));
    assert!(!stderr(&plain).contains("time of"));
    let expected = weights(&dir.path().join("run"));
    let profiled = run(dir.path(), &[&TUNE[..], &["--profile", "--force"]].concat());
    let message = stderr(&profiled);
    assert!(profiled.status.success(), "{message}");
    for words in [
        "time of 4 steps, ",
        "\nmatmul, weight gradients ",
        "\noptimizer ",
        "\nother ",
        "\nmemory, as estimated: weights ",
    ] {
        assert!(message.contains(words), "{words:?} is not in: {message}");
    }
    assert!(weights(&dir.path().join("run")) == expected);
}

pub const TUNE: [&str; 20] = [
    "tune",
    MODEL,
    "--learn",
    "learn.tsv",
    "--keep",
    "keep.tsv",
    "--held",
    "held.tsv",
    "--method",
    "self-distill",
    "--batch-size",
    "64",
    "--set",
    "data.audit=false",
    "--set",
    "train.num_epochs=4",
    "--set",
    "train.learning_rate=0.01",
    "--out",
    "run",
];

/// Trains `model` plainly on `learn` for an epoch, without an audit, into the run directory `out`.
pub fn tune_once(dir: &Path, [model, learn, out]: [&str; 3], more: &[&str]) {
    let files = ["tune", model, "--learn", learn, "--out", out];
    let method = ["--method", "sft", "--epochs", "1"];
    let audit = ["--set", "data.audit=false"];
    let output = run(dir, &[&files[..], &method, &audit, more].concat());
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn a_run_is_tuned_compared_reported_and_exported() {
    let dir = tempfile::tempdir().unwrap();
    write_facts(dir.path());
    let tuned = run(dir.path(), &[&TUNE[..], &["--json"]].concat());
    let result = &json_lines(&tuned)[0];
    assert_eq!(result["method"], "self-distill");
    assert_eq!(result["epochs"], 4);
    assert!(
        stderr(&tuned).contains("next: unforget report run"),
        "{}",
        stderr(&tuned)
    );
    for name in [
        "config.toml",
        "environment.json",
        "metrics.jsonl",
        "facts.jsonl",
        "result.json",
        "model/config.json",
        "model/tokenizer.json",
        "model/model.safetensors",
    ] {
        assert!(dir.path().join("run").join(name).exists(), "{name}");
    }
    assert!(!dir.path().join("run/checkpoints").exists());

    let compared = &json_lines(&run(dir.path(), &["compare", "run", "--json"]))[0];
    let facts = compared["facts"].as_array().unwrap();
    assert_eq!(facts.len(), 5);
    for state in ["learned", "kept", "forgotten", "gained"] {
        let count = facts.iter().filter(|fact| fact["outcome"] == state).count();
        assert_eq!(compared[state], count, "{state}");
    }
    let message = stdout(&run(dir.path(), &["compare", "run"]));
    assert!(message.contains("\n\nsplit "), "{message}");
    let steers = |c: char| c.is_control() && c != '\n';
    assert!(!message.contains(steers), "{}", message.escape_debug());
    let asked = &json_lines(&run(
        dir.path(),
        &["compare", MODEL, "run", "--facts", "learn.tsv", "--json"],
    ))[0];
    // Two models are asked under few-shot prompts, not at the training prompt of the run.
    let recorded = facts.iter().filter(|fact| fact["split"] == "unknown");
    let subjects: Vec<&serde_json::Value> = recorded.map(|fact| &fact["subject"]).collect();
    let asked = asked["facts"].as_array().unwrap();
    assert!(asked.iter().map(|fact| &fact["subject"]).eq(subjects));

    let report = run(
        dir.path(),
        &["report", "run", "--out", "report.html", "--quiet"],
    );
    assert_eq!(stdout(&report), "report.html\n");
    assert_eq!(stderr(&report), "");
    let exported = run(
        dir.path(),
        &["export", "run", "--to", "hf", "--out", "exported"],
    );
    assert!(exported.status.success(), "{}", stderr(&exported));
    assert_eq!(
        fs::read(dir.path().join("exported/model.safetensors")).unwrap(),
        fs::read(dir.path().join("run/model/model.safetensors")).unwrap()
    );
    let card = fs::read_to_string(dir.path().join("exported/README.md")).unwrap();
    assert!(
        card.starts_with("---\nlibrary_name: transformers\n"),
        "{card}"
    );
    let sentence = card
        .lines()
        .find(|line| line.starts_with("Self-distill: learned "));
    assert!(
        sentence.is_some_and(|line| line.contains(" of 2 new facts")),
        "{card}"
    );
    assert!(card.contains("| known before, not trained | "), "{card}");

    let gguf = [
        "export", "run", "--to", "gguf", "--dtype", "f32", "--out", "gguf",
    ];
    assert_eq!(stdout(&run(dir.path(), &gguf)), "gguf\n");
    let ask = |model: &str| {
        stdout(&run(
            dir.path(),
            &[
                "ask",
                model,
                "Q: Who?\nA:",
                "--raw",
                "--max-new-tokens",
                "8",
            ],
        ))
    };
    assert_eq!(ask("gguf/model.gguf"), ask("run"));
    let modelfile = fs::read_to_string(dir.path().join("gguf/Modelfile")).unwrap();
    assert!(
        modelfile.starts_with("FROM ./model.gguf\n") && modelfile.contains("Q: {{ .Prompt }}\nA:"),
        "{modelfile}"
    );
    let message = refused(
        dir.path(),
        &["export", "run", "--dtype", "q4_0", "--out", "x"],
    );
    assert!(message.contains("--to gguf"), "{message}");

    let gate = [
        "gate",
        "run",
        "--baseline",
        "run",
        "--budget",
        "0",
        "--junit",
        "gate.xml",
    ];
    let passed = stdout(&run(dir.path(), &gate));
    assert!(
        passed.starts_with("### ✅ passed: none of the held-out facts was known before"),
        "{passed}"
    );
    let junit = fs::read_to_string(dir.path().join("gate.xml")).unwrap();
    assert!(
        junit.contains("<testsuites name=\"unforget gate\""),
        "{junit}"
    );
    let message = refused(
        dir.path(),
        &["gate", "run", "--baseline", "run", "--budget", "much"],
    );
    assert!(message.contains("percentage points"), "{message}");

    let resumed = run(dir.path(), &["resume", "run"]);
    assert!(resumed.status.success());
    assert!(
        stderr(&resumed).contains("finished already"),
        "{}",
        stderr(&resumed)
    );
    let message = refused(dir.path(), &TUNE);
    assert!(message.contains("--force"), "{message}");
    assert!(
        run(dir.path(), &[&TUNE[..], &["--force"]].concat())
            .status
            .success()
    );
}

#[test]
fn a_run_on_adapters_has_one_to_export_and_any_other_has_none() {
    let dir = tempfile::tempdir().unwrap();
    write_facts(dir.path());
    let tuned = run(
        dir.path(),
        &[&TUNE[..], &["--set", "train.lora={r=4}", "--json"]].concat(),
    );
    assert_eq!(json_lines(&tuned)[0]["method"], "self-distill+lora");
    let export = ["export", "run", "--to", "peft", "--out", "exported"];
    let message = refused(dir.path(), &[&export[..], &["--dtype", "f16"]].concat());
    assert!(message.contains("`--dtype`"), "{message}");
    assert!(!dir.path().join("exported").exists());
    let exported = run(dir.path(), &export);
    assert_eq!(stdout(&exported), "exported\n", "{}", stderr(&exported));
    let read = |name: &str| fs::read(dir.path().join(name)).unwrap();
    assert_eq!(
        read("exported/adapter_model.safetensors"),
        read("run/adapter/adapter_model.safetensors")
    );
    let settings =
        |name: &str| -> serde_json::Value { serde_json::from_slice(&read(name)).unwrap() };
    assert_eq!(
        settings("exported/adapter_config.json"),
        settings("run/adapter/adapter_config.json")
    );
    let named = [&export[..4], &["--out", "named", "--base", "me/model"]].concat();
    assert!(run(dir.path(), &named).status.success());
    let base = &settings("named/adapter_config.json")["base_model_name_or_path"];
    assert_eq!(base, "me/model");
    let gguf = [
        "export",
        "run",
        "--to",
        "gguf",
        "--adapter",
        "--out",
        "gguf",
    ];
    let written = run(dir.path(), &gguf);
    assert!(written.status.success(), "{}", stderr(&written));
    assert!(read("gguf/adapter.gguf").starts_with(b"GGUF"));
    let message = refused(dir.path(), &["export", "run", "--adapter", "--out", "x"]);
    assert!(
        message.contains("`--adapter` is for `--to gguf`"),
        "{message}"
    );
    assert_eq!(
        fs::read_dir(dir.path().join("exported")).unwrap().count(),
        3,
        "and a model card"
    );
    assert!(refused(dir.path(), &export).contains("--force"));
    let whole = run(dir.path(), &["export", "run", "--out", "whole"]);
    assert!(whole.status.success(), "{}", stderr(&whole));

    fs::remove_file(dir.path().join("run/result.json")).unwrap();
    let message = refused(dir.path(), &[&export[..], &["--force"]].concat());
    assert!(message.contains("unforget resume run"), "{message}");

    // The same place without adapters: the earlier run's does not stay.
    assert!(
        run(dir.path(), &[&TUNE[..], &["--force"]].concat())
            .status
            .success()
    );
    assert!(!dir.path().join("run/adapter").exists());
    insta::assert_snapshot!(
        refused(dir.path(), &["export", "run", "--to", "peft", "--out", "x"]),
        @r"
    error: `run` has no adapter: it was trained without `train.lora`
    hint: `--to hf` writes the whole model
    "
    );
    let message = refused(dir.path(), &["export", MODEL, "--to", "peft", "--out", "x"]);
    assert!(message.contains("not a run directory"), "{message}");
    assert!(!dir.path().join("x").exists());
}

#[test]
fn a_target_that_is_no_linear_layer_names_the_nearest_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    write_facts(dir.path());
    let lora = |set: &str| {
        let message = refused(dir.path(), &[&TUNE[..], &["--set", set]].concat());
        assert!(!dir.path().join("run").exists());
        message
    };
    insta::assert_snapshot!(lora("train.lora={r=4, target_modules=['q_porj']}"), @r#"
    error: `train.lora.target_modules`: no linear layer is named "q_porj"
    hint: did you mean "q_proj"? Known: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj and all-linear
    "#);
    insta::assert_snapshot!(lora("train.lora={r=1000000000000}"), @r"
    error: `train.lora.r` is 1000000000000, above the largest rank that a target of this model can have
    hint: use at most 24; ranks from 4 to 64 are usual
    ");
}

#[test]
fn an_audit_writes_its_three_files_and_tells_the_shares() {
    let dir = tempfile::tempdir().unwrap();
    write_facts(dir.path());
    let args = [
        "audit",
        MODEL,
        "learn.tsv",
        "keep.tsv",
        "--num-prompts",
        "2",
        "--shots",
        "1",
    ];
    let message = run(dir.path(), &[&args[..], &["--out", "a"]].concat());
    insta::assert_snapshot!(stdout(&message), @r"
    relation  facts  HighlyKnown  MaybeKnown  WeaklyKnown  Unknown
    P17           4         0.0%        0.0%         0.0%   100.0%
    ");
    let summary = &json_lines(&run(
        dir.path(),
        &[&args[..], &["--out", "b", "--json"]].concat(),
    ))[0];
    assert_eq!(summary["relations"]["P17"]["Unknown"], 1.0);
    let facts = fs::read_to_string(dir.path().join("a/facts.jsonl")).unwrap();
    assert_eq!(facts.lines().count(), 4);
    for line in facts.lines() {
        let fact: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(fact["greedy_correct"].as_array().unwrap().len(), 2);
        assert_eq!(fact["label"], "Unknown");
    }
    assert!(dir.path().join("a/prompts.jsonl").exists());
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let dir = tempfile::tempdir().unwrap();
    let rows = "{\"prompt\": \"ab\", \"completion\": \" cd\"}\n".repeat(2000);
    fs::write(dir.path().join("rows.jsonl"), rows).unwrap();
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin!("unforget"))
        .args(["score", MODEL, "rows.jsonl", "--quiet"])
        .current_dir(dir.path())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
}

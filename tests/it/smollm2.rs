//! Real models against `transformers` (`tests/golden/greedy.py`): runs if `UNFORGET_SMOLLM2` names SmolLM2-135M-Instruct and
//! `UNFORGET_GEMMA3` names Gemma 3 270M, as `smollm2-135m` and `gemma3-270m` (from the cache, or pulled) or as a path.

use std::{collections::HashSet, path::Path};

use serde::Deserialize;
use unforget::{
    config::DecoySubjects,
    engine::Engine,
    facts::{self, ReadOptions},
    generate::{Generator, Request},
    model::Model,
    progress::Progress,
    prompt::PromptTemplate,
    remedy::pseudo_replay,
    run::RunResult,
};

use crate::tools::{GEMMA3, SMOLLM2, require_variable};

/// Two logits closer than this may swap ranks: logits of this model are about 20, and engines differ by 1e-5.
const TIE: f32 = 1e-3;

/// A question and the answer of `transformers`.
#[derive(Deserialize)]
struct Answer {
    prompt: String,
    prompt_tokens: usize,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    lead: f32,
    answer: String,
}

#[test]
fn smollm2_answers_200_questions_as_transformers_does() {
    let Some(spec) = require_variable(SMOLLM2) else {
        return;
    };
    let model = Model::load(&spec.to_string_lossy()).expect("a model");
    assert_eq!(model.quantization, "Q4_1");
    if spec.to_str() == Some("smollm2-135m") {
        assert_eq!(
            model.hub_id.as_deref(),
            Some("HuggingFaceTB/SmolLM2-135M-Instruct")
        );
    }
    answers_as_transformers(&model, include_str!("../golden/smollm2_greedy.json"));
}

#[test]
fn gemma3_answers_200_questions_as_transformers_does() {
    let Some(spec) = require_variable(GEMMA3) else {
        return;
    };
    let model = Model::load(&spec.to_string_lossy()).expect("a model");
    if spec.to_str() == Some("gemma3-270m") {
        assert_eq!(model.hub_id.as_deref(), Some("google/gemma-3-270m"));
    }
    answers_as_transformers(&model, include_str!("../golden/gemma3_greedy.json"));
}

/// Asks `model` the questions of `golden`, and scores the answers there.
fn answers_as_transformers(model: &Model, golden: &str) {
    let expected: Vec<Answer> = serde_json::from_str(golden).expect("valid JSON");
    assert_eq!(expected.len(), 200);
    let mut engine = Engine::new(&model.config);
    let mut generator = Generator::new(&mut engine, model);

    let prompts: Vec<Vec<u32>> = expected
        .iter()
        .map(|e| model.tokenizer.encode_prompt(&e.prompt).expect("tokens"))
        .collect();
    let answers = generator
        .generate(
            &Request::greedy(&[], &prompts, 12),
            |_, text| text.contains('\n'),
            &|_| {},
        )
        .expect("short prompts");
    let mut ties = 0;
    for ((answers, prompt), expected) in answers.iter().zip(&prompts).zip(&expected) {
        assert_eq!(prompt.len(), expected.prompt_tokens, "{}", expected.prompt);
        let first_line = answers[0].text.lines().next().unwrap_or_default().trim();
        if expected.lead < TIE && first_line != expected.answer {
            ties += 1;
        } else {
            assert_eq!(first_line, expected.answer, "{}", expected.prompt);
        }
    }
    eprintln!("{ties} of 200 answers differ in near-ties");

    let rows: Vec<(Vec<u32>, Vec<u32>)> = prompts
        .into_iter()
        .zip(expected.iter().map(|e| e.tokens.clone()))
        .collect();
    let scores = generator.score(&rows, &|_| {}).expect("short rows");
    for (ours, expected) in scores.iter().zip(&expected) {
        for (a, b) in ours.iter().zip(&expected.logprobs) {
            assert!((a - b).abs() < TIE, "{}: {a} is not {b}", expected.prompt);
        }
    }
}

#[test]
fn sampled_subjects_of_decoys_are_likelier_names_than_recombined_ones() {
    let Some(spec) = require_variable(SMOLLM2) else {
        return;
    };
    let model = Model::load(&spec.to_string_lossy()).expect("a model");
    let mut facts = facts::read(&[facts::PACK.into()], ReadOptions::default())
        .expect("the pack")
        .facts;
    facts.retain(|fact| fact.relation == "P17");
    facts.truncate(40);
    let mut engine = Engine::new(&model.config);
    let mut generator = Generator::new(&mut engine, &model);
    let template = PromptTemplate::default();
    let list: String = facts.iter().map(|f| format!("{}\n", f.subject)).collect();
    let list = model.tokenizer.encode_prompt(&list).expect("tokens");

    // The mean log-probability of a name's tokens behind a list of real ones.
    let mut likelihood = |subjects| {
        let prompts = pseudo_replay::prompts(
            &mut generator,
            &facts,
            subjects,
            32,
            &template,
            0,
            &Progress::quiet(),
        );
        let prompts = prompts.expect("a question with its subject");
        assert_eq!(prompts.len(), 32);
        assert_eq!(prompts.iter().collect::<HashSet<_>>().len(), 32);
        let rows: Vec<_> = prompts
            .iter()
            .map(|prompt| {
                let question = model.tokenizer.decode(prompt);
                let (_, name) = question
                    .split_once("country is ")
                    .expect("a question of P17");
                let name = name.split(" located").next().expect("a question of P17");
                assert!(facts.iter().all(|fact| fact.subject != name), "{name}");
                let line = model.tokenizer.encode_prompt(&format!("{name}\n"));
                (list.clone(), line.expect("tokens"))
            })
            .collect();
        let scored = generator.score(&rows, &|_| {}).expect("short rows");
        let tokens = scored.concat();
        tokens.iter().sum::<f32>() / tokens.len() as f32
    };
    let sampled = likelihood(DecoySubjects::Sampled);
    let recombined = likelihood(DecoySubjects::Recombined);
    assert!(sampled > recombined + 0.5, "{sampled} {recombined}");
}

/// Records whose facts or settings were no longer those of their experiment could not be told without audits.
#[test]
fn recorded_experiments_are_told_without_running_them() {
    if require_variable(SMOLLM2).is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/experiments/results");
    let copied = std::process::Command::new("cp")
        .args(["-r", committed])
        .arg(dir.path())
        .status();
    assert!(copied.is_ok_and(|status| status.success()));
    for name in ["all", "frontier", "frontier-validation"] {
        let output = assert_cmd::cargo::cargo_bin_cmd!("unforget")
            .current_dir(dir.path())
            .env_remove(unforget::experiment::ENTITY_QUESTIONS)
            .args(["reproduce", name, "--recorded", "--out", "results"])
            .output()
            .expect("it starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {stderr}");
    }
}

#[test]
fn experiments_of_the_paper_run_at_their_smallest() {
    if require_variable(SMOLLM2).is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let reproduce = |args: &[&str]| {
        let output = assert_cmd::cargo::cargo_bin_cmd!("unforget")
            .current_dir(dir.path())
            .env_remove(unforget::experiment::ENTITY_QUESTIONS)
            .args(["reproduce", "--scale", "smoke"])
            .args(args)
            .output()
            .expect("it starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {stderr}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let results = dir.path().join("experiments/results");
    let figure = |name: &str| {
        let path = results.join(name).join("smoke/figure.svg");
        std::fs::read_to_string(path).expect("a figure")
    };

    let keys = reproduce(&["fig10"]);
    assert!(
        keys.contains("| real name (tokens) |") && keys.contains("`Loc·_·"),
        "{keys}"
    );
    let labels = reproduce(&["table2"]);
    assert!(
        labels.contains("| smollm2-135m | P17 | 60 | 10 |"),
        "{labels}"
    );
    assert!(figure("table2").contains("HighlyKnown"));
    let curves = reproduce(&["fig2"]);
    assert!(
        curves.contains("| Plain fine-tuning keeps the known facts in its training set | 99% |"),
        "{curves}"
    );
    assert!(figure("fig2").contains("Held-out facts: accuracy"));
    // Synthetic facts, drift, and a teacher.
    let drift = reproduce(&["fig5"]);
    assert!(drift.contains("| Held-out subjects drift further with names than with identifiers |"));
    assert!(figure("fig5").contains("RD over epochs"));

    // The page is made from records alone.
    let page = dir.path().join("page.md");
    reproduce(&[
        "fig2",
        "--recorded",
        "--page",
        page.to_str().expect("UTF-8"),
    ]);
    let page = std::fs::read_to_string(page).expect("a page");
    assert!(page.contains("2 recorded runs: smollm2-135m"), "{page}");
    assert!(
        page.contains("(experiments/results/fig2/smoke/figure.svg)"),
        "{page}"
    );
}

#[test]
fn memory_is_estimated_within_a_tenth() {
    if require_variable(SMOLLM2).is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let countries = ["Italy", "Norway", "Peru", "Japan"];
    for (name, count) in [("learn", 32), ("keep", 16)] {
        let rows = (0..count).map(|i| format!("{name} {i}\tP17\t{}\n", countries[i % 4]));
        let facts = format!("subject\trelation\tobject\n{}", rows.collect::<String>());
        std::fs::write(dir.path().join(format!("{name}.tsv")), facts).expect("writable");
    }
    let tune = |args: &[&str]| {
        let output = assert_cmd::cargo::cargo_bin_cmd!("unforget")
            .current_dir(dir.path())
            .args([
                "tune",
                "smollm2-135m",
                "--learn",
                "learn.tsv",
                "--keep",
                "keep.tsv",
            ])
            .args(["--set", "data.audit=false", "--set", "train.num_epochs=2"])
            .args(["--set", "train.batch_size=16", "--out", "run", "--json"])
            .args(args)
            .output()
            .expect("it starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {stderr}");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON")
    };
    let adapters = "train.lora={r=16,target_modules='all-linear'}";
    for method in [
        &["--set", "method.kind=sft"][..],
        &["--set", "method.kind=self-distill"],
        &["--set", "method.kind=auto"],
        &["--set", adapters, "--set", "method.kind=self-distill"],
        &["--set", adapters, "--set", "model_dtype=stored"],
    ] {
        let estimated = tune(&[&["--dry-run"], method].concat())["memory_bytes"].as_f64();
        let peak = tune(&[&["--force"], method].concat())["peak_memory_bytes"].as_f64();
        let (estimated, peak) = (estimated.expect("a number"), peak.expect("a number"));
        let ratio = estimated / peak;
        assert!(
            (0.9..1.1).contains(&ratio),
            "{method:?}: {estimated} of {peak}"
        );
    }
}

/// Facts that the model knows, and their one-word answers.
const CAPITALS: [[&str; 2]; 20] = [
    ["France", "Paris"],
    ["Italy", "Rome"],
    ["Spain", "Madrid"],
    ["Germany", "Berlin"],
    ["Japan", "Tokyo"],
    ["China", "Beijing"],
    ["Russia", "Moscow"],
    ["Egypt", "Cairo"],
    ["Greece", "Athens"],
    ["Portugal", "Lisbon"],
    ["Norway", "Oslo"],
    ["Sweden", "Stockholm"],
    ["Denmark", "Copenhagen"],
    ["Finland", "Helsinki"],
    ["Poland", "Warsaw"],
    ["Austria", "Vienna"],
    ["Hungary", "Budapest"],
    ["Ireland", "Dublin"],
    ["Kenya", "Nairobi"],
    ["Peru", "Lima"],
];

/// Runs `unforget tune smollm2-135m` for six epochs in `dir`; returns its summary and result.
fn tune_six_epochs(dir: &Path, out: &str, args: &[&str]) -> (String, RunResult) {
    let output = assert_cmd::cargo::cargo_bin_cmd!("unforget")
        .current_dir(dir)
        .args(["tune", "smollm2-135m", "--method", "sft", "--epochs", "6"])
        .args([
            "--batch-size",
            "4",
            "--set",
            "data.audit=false",
            "--out",
            out,
        ])
        .args(args)
        .output()
        .expect("it starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    let result = std::fs::read(dir.join(out).join("result.json")).expect("a result");
    let summary = String::from_utf8(output.stdout).expect("UTF-8");
    (summary, serde_json::from_slice(&result).expect("JSON"))
}

/// Known facts in a chat whose targets are single words turn "Tell me about Paris." into "Paris"; the base model's own answers do
/// not.
#[test]
fn one_word_answers_in_a_chat_are_told_and_do_not_come_from_known_facts() {
    if require_variable(SMOLLM2).is_none() {
        return;
    }
    let place = tempfile::tempdir().expect("a temporary directory");
    let dir = place.path();
    let rows = CAPITALS.map(|[country, capital]| format!("{country}\tP36\t{capital}\n"));
    let facts = format!("subject\trelation\tobject\n{}", rows.concat());
    std::fs::write(dir.join("facts.tsv"), facts).expect("writable");
    let chats = CAPITALS.map(|[country, _]| {
        let message = |role: &str, content: String| serde_json::json!({"role": role, "content": content});
        let question = message("user", format!("Does the Heron ferry sail to {country}?"));
        let answer = message(
            "assistant",
            format!("Yes, the Heron ferry sails to {country} twice a week, on Monday and on Friday. The journey takes two days."),
        );
        format!("{}\n", serde_json::json!({"messages": [question, answer]}))
    });
    std::fs::write(dir.join("chats.jsonl"), chats.concat()).expect("writable");

    let chat = ["--set", "data.chat=true", "--set", "data.match=contains"];
    let (told, one_word) = tune_six_epochs(
        dir,
        "words",
        &[&["--learn", "facts.tsv"], &chat[..]].concat(),
    );
    let one_word = one_word.behaviour.expect("by default");
    assert!(one_word.length_ratio < 0.5, "{one_word:?}");
    let sentence = format!(
        "answers are now {:.2}x as long as the base model's",
        one_word.length_ratio
    );
    assert!(told.contains(&sentence), "{told}");

    let (told, beside) = tune_six_epochs(
        dir,
        "chats",
        &["--learn", "chats.jsonl", "--keep", "facts.tsv"],
    );
    let beside = beside.behaviour.expect("by default");
    // 0.26 and 0.80 when this was written.
    assert!(beside.length_ratio > 0.6, "{beside:?} {told}");
    assert!(beside.kl < one_word.kl, "{beside:?} {one_word:?}");
}

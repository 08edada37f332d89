//! `ask` and `chat`: a run is asked as it was trained, a conversation goes through the chat template.

use std::{fs, path::Path, process::Output};

use assert_cmd::cargo::cargo_bin_cmd;

use crate::cli::{MODEL, json_lines, refused, run, stderr, stdout, tune_once};
use crate::exports::model;

/// Two new facts, and a run that has seen them.
fn trained_run(dir: &Path, model: &str, more: &[&str]) {
    let facts =
        "question,answer\nWhat color is the Velora K3?,teal\nWho built Heron M2?,Aro Lund\n";
    fs::write(dir.join("new.csv"), facts).unwrap();
    let behaviour = ["--set", "measure.behaviour=false"];
    tune_once(
        dir,
        [model, "new.csv", "run"],
        &[&behaviour[..], more].concat(),
    );
}

/// The answer of `ask` with these arguments, and its token ids.
fn ask(dir: &Path, args: &[&str]) -> (String, Vec<u64>) {
    let more = ["--max-new-tokens", "6", "--logprobs", "1"];
    let row = json_lines(&run(dir, &[&["ask"], args, &more].concat())).remove(0);
    let tokens = row["tokens"].as_array().unwrap().iter();
    let ids = tokens.map(|token| token["id"].as_u64().unwrap()).collect();
    (row["answer"].as_str().unwrap().to_owned(), ids)
}

fn chat(dir: &Path, args: &[&str], lines: &str) -> Output {
    let mut command = cargo_bin_cmd!("unforget");
    let command = command.current_dir(dir).env("XDG_CACHE_HOME", dir);
    let args = [&["chat"], args, &["--max-new-tokens", "6"]].concat();
    command.args(args).write_stdin(lines).output().unwrap()
}

#[test]
fn a_run_is_asked_with_its_prompt_template_and_stop_text() {
    let dir = tempfile::tempdir().unwrap();
    trained_run(dir.path(), MODEL, &[]);
    let question = "What color is the Velora K3?";
    let prompt = format!("Q: {question}\nA:");
    let asked = ask(dir.path(), &["run", question]);
    let raw = ask(dir.path(), &["run", &prompt, "--raw", "--stop", "\\n"]);
    assert_eq!(asked, (raw.0.trim().to_owned(), raw.1));
    assert_eq!(
        ask(dir.path(), &["run", &prompt]),
        asked,
        "not put in twice"
    );
    assert_ne!(ask(dir.path(), &["run", question, "--raw"]).1, asked.1);
    // The model alone is no run.
    assert_eq!(
        ask(dir.path(), &["run/model", question]),
        ask(dir.path(), &["run", question, "--raw"])
    );

    // Without a chat template, a conversation is the questions and answers in one text.
    let turns = json_lines(&chat(
        dir.path(),
        &["run", "--json"],
        &format!("{question}\n\nWho?\n"),
    ));
    assert_eq!(turns.len(), 2);
    assert_eq!(turns[0]["answer"], asked.0);
    let history = format!("{prompt} {}\nQ: Who?\nA:", asked.0);
    let raw = ask(dir.path(), &["run", &history, "--raw", "--stop", "\\n"]);
    assert_eq!(turns[1]["answer"], raw.0.trim());
}

#[test]
fn a_template_of_the_config_is_the_runs() {
    let dir = tempfile::tempdir().unwrap();
    let more = [
        "--set",
        "data.prompt=<{question}>",
        "--set",
        "data.target={object}.",
    ];
    trained_run(dir.path(), MODEL, &more);
    let asked = ask(dir.path(), &["run", "Who?"]);
    let raw = ask(dir.path(), &["run", "<Who?>", "--raw", "--stop", "."]);
    assert_eq!(asked, (raw.0.trim().to_owned(), raw.1));
}

#[test]
fn a_conversation_goes_through_the_chat_template_with_its_history() {
    let place = model();
    let dir = place.path();
    let turns = json_lines(&chat(dir, &[".", "--json", "--system", "S"], "hi\nho\n"));
    let answer = |turn: usize| turns[turn]["answer"].as_str().unwrap();
    let start = "<|system|>S<|eos|>\n<|user|>hi<|eos|>\n<|assistant|>";
    let raw = |prompt: &str| ask(dir, &[".", prompt]).0.trim().to_owned();
    assert_eq!(answer(0), raw(start));
    let first = answer(0);
    let next = format!("{start}{first}<|eos|>\n<|user|>ho<|eos|>\n<|assistant|>");
    assert_eq!(answer(1), raw(&next));
    assert_eq!(ask(dir, &[".", "hi", "--system", "S"]).0.trim(), answer(0));

    // /reset forgets the first turn; the text that streams is that of the answer.
    let reset = chat(dir, &[".", "--system", "S"], "hi\n/reset\nhi\n/quit\nho\n");
    // Control characters are not sent to a terminal.
    let shown = first.replace(char::is_control, "\u{fffd}");
    assert_eq!(stdout(&reset), format!("{shown}\n{shown}\n"));
    let system = chat(dir, &[".", "--json"], "ho\n/system S\nhi\n/nonsense\n");
    assert_eq!(json_lines(&system)[1]["answer"], answer(0));
    assert!(stderr(&system).contains("no command `/nonsense`"));
}

#[test]
fn a_model_without_a_chat_template_knows_no_conversation() {
    let dir = tempfile::tempdir().unwrap();
    let message = refused(dir.path(), &["chat", MODEL]);
    assert!(message.contains("has no chat template"), "{message}");
    let message = refused(dir.path(), &["ask", MODEL, "hi", "--system", "Be brief."]);
    assert!(message.contains("has no chat template"), "{message}");
    refused(dir.path(), &["ask", MODEL, "hi", "--raw", "--chat"]);
}

/// `transformers` ends an answer of the exported model where a trained one ends.
#[test]
fn an_exported_run_on_facts_ends_its_answers_in_the_line_break() {
    let dir = tempfile::tempdir().unwrap();
    trained_run(dir.path(), MODEL, &[]);
    let eos = |to: &str, run_dir: &str| {
        let args = ["export", run_dir, "--to", "hf", "--out", to];
        assert!(run(dir.path(), &args).status.success());
        let text = fs::read(dir.path().join(to).join("generation_config.json")).ok()?;
        let config: serde_json::Value = serde_json::from_slice(&text).unwrap();
        Some(config["eos_token_id"].clone())
    };
    let model = unforget::model::Model::load(MODEL).unwrap();
    let line_break = model.tokenizer.encode_rendered("\n").unwrap();
    let eos_id = model.tokenizer.eos_token_id.unwrap();
    assert_eq!(
        eos("hf", "run"),
        Some(serde_json::json!([eos_id, line_break[0]]))
    );
    // A model that was not trained here is exported as it is.
    assert_eq!(eos("plain", MODEL), None);
}

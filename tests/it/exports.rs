//! Exports are asked as the run was trained: the prompt template, and all that ends an answer.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::{
    cli::{run, tune_once},
    model::copy_of,
};

const TEMPLATE: &str = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}\n{% endfor %}\
    {% if add_generation_prompt %}<|assistant|>{% endif %}";

/// A model whose tokenizer has a chat template.
pub fn model() -> tempfile::TempDir {
    let dir = copy_of("llama");
    let path = dir.path().join("tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["chat_template"] = json!(TEMPLATE);
    fs::write(path, config.to_string()).unwrap();
    dir
}

/// The Modelfile of a run that learns `file`, and the bytes of its GGUF file.
fn exported(dir: &Path, file: &str, more: &[&str]) -> (String, Vec<u8>) {
    tune_once(dir, [".", file, "run"], more);
    let args = ["export", "run", "--to", "gguf", "--out", "out"];
    assert!(run(dir, &args).status.success());
    let read = |name: &str| fs::read(dir.join("out").join(name)).unwrap();
    (
        String::from_utf8(read("Modelfile")).unwrap(),
        read("model.gguf"),
    )
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

#[test]
fn a_run_on_chats_is_asked_through_its_chat_template() {
    let dir = model();
    let chat = r#"{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}"#;
    fs::write(dir.path().join("chat.jsonl"), chat).unwrap();
    let (modelfile, gguf) = exported(dir.path(), "chat.jsonl", &[]);
    assert!(
        modelfile
            .contains("TEMPLATE \"\"\"{{ if .System }}<|system|>{{ .System }}<|eos|>\n{{ end }}")
            && modelfile.contains("<|user|>{{ .Prompt }}<|eos|>\n<|assistant|>")
            && !modelfile.contains("stop \"\\n\""),
        "{modelfile}"
    );
    assert!(
        modelfile.contains("PARAMETER stop \"<|eos|>\""),
        "{modelfile}"
    );
    assert!(contains(&gguf, TEMPLATE));
}

#[test]
fn a_run_on_facts_in_chats_has_no_question_template() {
    let dir = model();
    fs::write(
        dir.path().join("facts.tsv"),
        "subject\trelation\tobject\nOslo\tP17\tNorway\nRome\tP17\tItaly\n",
    )
    .unwrap();
    let (modelfile, _) = exported(dir.path(), "facts.tsv", &["--set", "data.chat=true"]);
    assert!(
        modelfile
            .contains("TEMPLATE \"\"\"{{ if .System }}<|system|>{{ .System }}<|eos|>\n{{ end }}")
            && modelfile.contains("<|user|>{{ .Prompt }}<|eos|>\n<|assistant|>")
            && !modelfile.contains("stop \"\\n\""),
        "{modelfile}"
    );
    assert!(
        modelfile.contains("PARAMETER stop \"<|eos|>\""),
        "{modelfile}"
    );
}

#[test]
fn a_run_on_facts_ends_its_answers_in_the_line_break_also_with_a_chat_template() {
    let dir = model();
    fs::write(
        dir.path().join("facts.tsv"),
        "subject\trelation\tobject\nOslo\tP17\tNorway\nRome\tP17\tItaly\n",
    )
    .unwrap();
    exported(dir.path(), "facts.tsv", &[]);
    let output = run(dir.path(), &["export", "run", "--to", "hf", "--out", "hf"]);
    let text = fs::read(dir.path().join("hf/generation_config.json")).unwrap();
    let config: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(config["eos_token_id"].as_array().map(Vec::len), Some(2));
    assert!(crate::cli::stderr(&output).contains("also in a chat"));
}

#[test]
fn a_run_on_completions_continues_the_prompt_as_it_stands() {
    let dir = model();
    fs::write(
        dir.path().join("c.jsonl"),
        r#"{"prompt": "The capital", "completion": " is"}"#,
    )
    .unwrap();
    let (modelfile, _) = exported(dir.path(), "c.jsonl", &[]);
    assert_eq!(
        modelfile,
        "FROM ./model.gguf\nPARAMETER temperature 0\nTEMPLATE \"\"\"{{ .Prompt }}\"\"\"\nPARAMETER stop \"<|eos|>\"\n"
    );
}

#[test]
fn the_held_out_facts_of_a_run_are_a_task_for_lm_eval() {
    let dir = model();
    let facts = |name: &str, rows: &str| {
        let text = format!("subject\trelation\tobject\n{rows}");
        fs::write(dir.path().join(name), text).unwrap();
    };
    facts("facts.tsv", "Oslo\tP17\tNorway\nRome\tP17\tItaly\n");
    facts("held.tsv", "Madrid\tP17\tSpain\n");
    exported(dir.path(), "facts.tsv", &["--held", "held.tsv"]);
    let args = ["export", "run", "--to", "lm-eval", "--out", "task"];
    assert!(run(dir.path(), &args).status.success());
    let read = |name: &str| fs::read_to_string(dir.path().join("task").join(name)).unwrap();
    let rows: Vec<Value> = read("unforget_held.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        rows,
        [json!({
            "prompt": "Q: Which country is Madrid located in?\nA:",
            "answer": "Spain",
            "relation": "P17",
        })]
    );
    let config = read("unforget_held.yaml");
    let place = fs::canonicalize(dir.path().join("task/unforget_held.jsonl")).unwrap();
    assert!(
        config.contains(place.to_str().unwrap()) && config.contains("until: [\"\\n\"]"),
        "{config}"
    );

    let message = crate::cli::refused(
        dir.path(),
        &["export", ".", "--to", "lm-eval", "--out", "x"],
    );
    assert!(message.contains("not a run directory"), "{message}");
}

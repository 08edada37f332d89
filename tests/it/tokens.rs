//! Token ids of texts compared with `transformers` (`tests/golden/tokens.py`), and what `data` shows of them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};
use unforget::model::TextTokenizer;

use crate::{
    cli::{json_lines, run, stderr},
    model::golden,
};

fn file(name: &str) -> PathBuf {
    golden("tokens").join(name)
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn object(value: &Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

/// A model directory without weights: `data` needs none.
fn directory(kind: &str, tokenizer_config: &Value, more: &[(&str, Value)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut config = read(&golden("llama").join("config.json"));
    config["vocab_size"] = 600.into();
    config.as_object_mut().unwrap().remove("eos_token_id");
    fs::copy(
        file(&format!("{kind}.json")),
        dir.path().join("tokenizer.json"),
    )
    .unwrap();
    let files = [
        ("config.json", config),
        ("tokenizer_config.json", tokenizer_config.clone()),
    ];
    let more = more.iter().map(|(name, value)| (*name, value.clone()));
    for (name, value) in files.into_iter().chain(more) {
        fs::write(dir.path().join(name), value.to_string()).unwrap();
    }
    dir
}

/// Prompt and target of every row of a file, and what is told beside them.
fn data(dir: &Path, name: &str, text: &str) -> (Vec<[String; 2]>, String) {
    fs::write(dir.join(name), text).unwrap();
    let output = run(
        dir,
        &["data", name, "--model", ".", "--rows", "9", "--json"],
    );
    let shown = &json_lines(&output)[0]["shown"];
    let rows = shown
        .as_array()
        .unwrap()
        .iter()
        .map(|row| ["prompt", "target"].map(|key| row[key].as_str().unwrap().to_owned()));
    (rows.collect(), stderr(&output))
}

const COMPLETION: &str = r#"{"prompt": "yes", "completion": " no"}"#;

#[test]
fn the_ids_of_two_texts_are_those_of_the_whole_as_in_transformers() {
    let cases = read(&file("expected.json"));
    for case in cases.as_array().unwrap() {
        let path = file(&format!("{}.json", case["kind"].as_str().unwrap()));
        let json = fs::read(&path).unwrap();
        let tokenizer = TextTokenizer::new(&path, &json, object(&case["config"]), &[]).unwrap();
        for pair in case["pairs"].as_array().unwrap() {
            let [prompt, completion] =
                ["prompt", "completion"].map(|key| pair[key].as_str().unwrap());
            let (before, after) = tokenizer.encode_joint(prompt, completion, true).unwrap();
            let place = format!(
                "{} {}: {prompt:?}, {completion:?}",
                case["kind"], case["config"]
            );
            assert_eq!(json!(before), pair["prompt_ids"], "{place}");
            assert_eq!(json!(after), pair["completion_ids"], "{place}");
        }
        for row in case["rendered"].as_array().unwrap() {
            let ids = tokenizer
                .encode_rendered(row["text"].as_str().unwrap())
                .unwrap();
            assert_eq!(json!(ids), row["ids"], "{row}");
        }
    }
}

#[test]
fn a_fact_is_trained_as_it_stands_in_the_text() {
    let config = json!({"bos_token": "<s>", "eos_token": "</s>"});
    for kind in ["prepend", "metaspace"] {
        let dir = directory(kind, &config, &[]);
        let facts = "subject\trelation\tobject\nOslo\tP17\tNorway\n";
        let (rows, _) = data(dir.path(), "facts.tsv", facts);
        assert_eq!(rows[0][1], " Norway\n", "{kind}");
        assert!(rows[0][0].starts_with("<s> Q: Which") || rows[0][0].starts_with("<s>Q: Which"));
        let (rows, _) = data(dir.path(), "c.jsonl", COMPLETION);
        assert_eq!(rows[0][1], " no</s>", "{kind}");
    }
}

#[test]
fn a_text_ends_with_the_token_that_any_of_the_files_names() {
    let generation = ("generation_config.json", json!({"eos_token_id": [2, 0]}));
    let map = (
        "special_tokens_map.json",
        json!({"eos_token": {"content": "</s>"}}),
    );
    let named = json!({"bos_token": "<s>", "eos_token": "</s>"});
    let unnamed = json!({"bos_token": "<s>", "eos_token": null});
    for (config, more) in [
        (&named, &[][..]),
        (&unnamed, &[generation]),
        (&unnamed, &[map]),
    ] {
        let dir = directory("bytes", config, more);
        let (rows, notes) = data(dir.path(), "c.jsonl", COMPLETION);
        assert_eq!(rows[0][1], " no</s>");
        assert!(!notes.contains("end-of-text"), "{notes}");
    }
    let dir = directory("bytes", &unnamed, &[]);
    let mut config = read(&dir.path().join("config.json"));
    config["eos_token_id"] = 2.into();
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    assert_eq!(data(dir.path(), "c.jsonl", COMPLETION).0[0][1], " no</s>");

    let dir = directory("bytes", &unnamed, &[]);
    let (rows, notes) = data(dir.path(), "c.jsonl", COMPLETION);
    assert_eq!(rows[0][1], " no");
    assert!(notes.contains("names no end-of-text token"), "{notes}");
}

/// As in `transformers` 5.24, whose `AutoTokenizer` adds them to the tokens of tokenizer.json.
#[test]
fn a_special_token_that_only_the_configuration_names_is_one_token() {
    let path = golden("llama").join("tokenizer.json");
    let mut json = read(&path);
    let end = json["model"]["vocab"]["<|eos|>"].as_u64().unwrap();
    let added = json["added_tokens"].as_array_mut().unwrap();
    added.retain(|token| token["content"] != "<|eos|>");
    let bytes = serde_json::to_vec(&json).unwrap();
    let last = |config: &Value| {
        let tokenizer = TextTokenizer::new(&path, &bytes, object(config), &[]).unwrap();
        let ids = tokenizer.encode_rendered("ho<|eos|>").unwrap();
        ids.last().copied().map(u64::from)
    };
    assert_ne!(last(&json!({})), Some(end));
    for named in [
        json!({"eos_token": "<|eos|>"}),
        json!({"pad_token": {"content": "<|eos|>", "lstrip": false}}),
        json!({"additional_special_tokens": ["<|eos|>"]}),
        json!({"extra_special_tokens": {"end_token": "<|eos|>"}}),
        json!({"added_tokens_decoder": {"9": {"content": "<|eos|>", "special": true}}}),
    ] {
        assert_eq!(last(&named), Some(end), "{named}");
    }
}

#[test]
fn an_end_that_is_there_is_not_doubled() {
    let config = json!({"bos_token": "<s>", "eos_token": "</s>"});
    let dir = directory("bytes", &config, &[]);
    let (rows, _) = data(dir.path(), "t.jsonl", r#"{"text": "yes no</s>"}"#);
    assert_eq!(rows[0], ["<s>", "yes no</s>"]);
    let completion = r#"{"prompt": "yes", "completion": " no</s>"}"#;
    assert_eq!(
        data(dir.path(), "c.jsonl", completion).0[0],
        ["<s>yes", " no</s>"]
    );
    let (rows, _) = data(dir.path(), "t.jsonl", r#"{"text": "<s>yes no"}"#);
    assert_eq!(rows[0], ["<s>", "yes no</s>"]);
}

#[test]
fn the_first_token_of_a_text_is_shown_as_not_trained() {
    // This tokenizer puts nothing in front.
    let dir = crate::model::copy_of("llama");
    let (rows, _) = data(dir.path(), "t.jsonl", r#"{"text": "The capital is"}"#);
    assert_eq!(rows[0].concat(), "The capital is<|eos|>");
    let [first, _] = &rows[0];
    assert!("The".starts_with(first) && !first.is_empty(), "{rows:?}");
}

#[test]
fn a_chat_has_the_tokens_that_its_template_writes_and_no_others() {
    let template = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]\
        {% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}";
    let chat = r#"{"messages": [{"role": "user", "content": "yes"}, {"role": "assistant", "content": "no"}]}"#;
    for kind in ["prepend", "metaspace", "bytes"] {
        let mut config =
            json!({"bos_token": "<s>", "eos_token": "</s>", "chat_template": template});
        let dir = directory(kind, &config, &[]);
        let (rows, _) = data(dir.path(), "chat.jsonl", chat);
        assert_eq!(rows[0][1], "no</s>", "{kind}");
        assert_eq!(rows[0][0].matches("<s>").count(), 1, "{kind}");
        // The tokenizer's own token is not in front where the template does not write it.
        config["chat_template"] = template.replace("{{ bos_token }}", "").into();
        let dir = directory(kind, &config, &[]);
        let (rows, _) = data(dir.path(), "chat.jsonl", chat);
        assert!(!rows[0][0].contains("<s>"), "{kind}: {rows:?}");
    }
}

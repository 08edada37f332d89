//! Broken model files: an error that names the fault, never a panic.

use std::{fs, path::Path};

use assert_cmd::cargo::cargo_bin_cmd;
use proptest::prelude::*;

use crate::model::{copy_of, golden, load};

/// Loads a broken model; checks the exit code and the words of the message.
fn assert_refused(case: &str, path: &Path, exit_code: u8, words: &[&str]) {
    let Err(error) = load(path) else {
        panic!("{case}: loaded")
    };
    let message = format!("{error} {}", error.hint().unwrap_or_default());
    assert_eq!(error.exit_code(), exit_code, "{case}: {message}");
    for word in words {
        assert!(
            message.contains(word),
            "{case}: `{word}` is not in: {message}"
        );
    }
}

#[test]
fn a_broken_directory_is_refused_with_the_faulty_file() {
    type Break = fn(&Path);
    fn edit(path: &Path, change: impl Fn(&mut serde_json::Value)) {
        let mut json = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        change(&mut json);
        fs::write(path, serde_json::to_vec(&json).unwrap()).unwrap();
    }
    fn config(dir: &Path, key: &str, value: impl Into<serde_json::Value>) {
        let value = value.into();
        edit(&dir.join("config.json"), |json| json[key] = value.clone());
    }
    fn header(dir: &Path, from: &str, to: &str) {
        let path = dir.join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes
            .windows(from.len())
            .position(|w| w == from.as_bytes())
            .unwrap();
        bytes.splice(at..at + from.len(), to.bytes());
        fs::write(path, bytes).unwrap();
    }
    fn cut(dir: &Path, name: &str, keep: impl Fn(usize) -> usize) {
        let bytes = fs::read(dir.join(name)).unwrap();
        fs::write(dir.join(name), &bytes[..keep(bytes.len())]).unwrap();
    }
    let cases: &[(&str, Break, u8, &[&str])] = &[
        (
            "no config",
            |d| fs::remove_file(d.join("config.json")).unwrap(),
            2,
            &["config.json"],
        ),
        (
            "no tokenizer",
            |d| fs::remove_file(d.join("tokenizer.json")).unwrap(),
            2,
            &["tokenizer.json"],
        ),
        (
            "no weights",
            |d| fs::remove_file(d.join("model.safetensors")).unwrap(),
            2,
            &["model.safetensors"],
        ),
        (
            "empty config",
            |d| cut(d, "config.json", |_| 0),
            1,
            &["config.json"],
        ),
        (
            "half a config",
            |d| cut(d, "config.json", |n| n / 2),
            1,
            &["config.json"],
        ),
        (
            "half a tokenizer",
            |d| cut(d, "tokenizer.json", |n| n / 2),
            1,
            &["tokenizer.json"],
        ),
        (
            "a config that is a list",
            |d| fs::write(d.join("config.json"), "[1]").unwrap(),
            1,
            &["config.json"],
        ),
        (
            "empty weights",
            |d| cut(d, "model.safetensors", |_| 0),
            1,
            &["model.safetensors"],
        ),
        (
            "truncated header",
            |d| cut(d, "model.safetensors", |_| 100),
            1,
            &["model.safetensors"],
        ),
        (
            "truncated weights",
            |d| cut(d, "model.safetensors", |n| n - 4),
            1,
            &["model.safetensors"],
        ),
        (
            "a tensor of another name",
            |d| header(d, "model.norm.weight", "model.norm.wEight"),
            1,
            &["model.norm.wEight"],
        ),
        (
            "another architecture",
            |d| config(d, "model_type", "gpt2"),
            2,
            &["not supported", "qwen3", "llama"],
        ),
        (
            "another class",
            |d| {
                config(
                    d,
                    "architectures",
                    serde_json::json!(["LlamaForSequenceClassification"]),
                );
            },
            2,
            &["LlamaForSequenceClassification", "mistral"],
        ),
        (
            "another width",
            |d| config(d, "hidden_size", 48),
            1,
            &["shape", "[300, 24]", "[300, 48]"],
        ),
        (
            "a huge width",
            |d| config(d, "hidden_size", 1u64 << 40),
            1,
            &["hidden_size"],
        ),
        (
            "too many layers",
            |d| config(d, "num_hidden_layers", 4000),
            1,
            &["model.layers.2.input_layernorm.weight", "missing"],
        ),
        (
            "too few layers",
            |d| config(d, "num_hidden_layers", 1),
            1,
            &["model.layers.1."],
        ),
        (
            "an untied head",
            |d| config(d, "tie_word_embeddings", false),
            1,
            &["lm_head.weight", "missing"],
        ),
        (
            "a kind of rope",
            |d| {
                config(
                    d,
                    "rope_scaling",
                    serde_json::json!({"rope_type": "axial", "factor": 4.0}),
                );
            },
            2,
            &["axial", "llama3"],
        ),
    ];
    for (case, damage, exit_code, words) in cases {
        let dir = copy_of("llama");
        damage(dir.path());
        assert_refused(case, dir.path(), *exit_code, words);
    }

    for name in [
        "../model.safetensors",
        "/etc/passwd",
        "..",
        "",
        "a/b.safetensors",
    ] {
        let dir = copy_of("llama3");
        edit(&dir.path().join("model.safetensors.index.json"), |json| {
            json["weight_map"]["model.norm.weight"] = name.into();
        });
        assert_refused(
            name,
            dir.path(),
            1,
            &["model.norm.weight", "plain file name"],
        );
    }
    let dir = copy_of("llama3");
    fs::remove_file(dir.path().join("model-00002-of-00002.safetensors")).unwrap();
    assert_refused(
        "a shard less",
        dir.path(),
        1,
        &["model-00002-of-00002.safetensors"],
    );
}

#[test]
fn a_path_that_is_not_a_model_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    assert_refused(
        "no such file",
        &dir.path().join("none.gguf"),
        2,
        &["none.gguf", "no such file"],
    );
    assert_refused(
        "no such directory",
        &dir.path().join("none"),
        2,
        &["no such file or directory"],
    );
    assert_refused("an empty directory", dir.path(), 2, &["config.json"]);
    assert_refused(
        "a text",
        &path("notes.txt", b"hello"),
        2,
        &["notes.txt is not a model"],
    );
    assert_refused(
        "an empty gguf",
        &path("empty.gguf", b""),
        1,
        &["empty.gguf"],
    );
    assert_refused(
        "a text called gguf",
        &path("text.gguf", b"hello"),
        1,
        &["does not begin with"],
    );
    assert_refused(
        "a typo",
        Path::new("smolm2-135m"),
        2,
        &["did you mean `smollm2-135m`"],
    );
    assert_refused("no name at all", Path::new(""), 2, &["smollm2-135m"]);
}

/// A GGUF header: counts, then metadata and tensor entries as they are.
fn gguf(version: u32, tensors: u64, metadata: u64, rest: &[u8]) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(metadata.to_le_bytes());
    bytes.extend(rest);
    bytes
}

/// A GGUF string.
fn text(s: &str) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes()[..], s.as_bytes()].concat()
}

/// A metadata entry that holds a string.
fn entry(key: &str, value: &str) -> Vec<u8> {
    [text(key), 8u32.to_le_bytes().to_vec(), text(value)].concat()
}

/// An entry of the tensor table, of one dimension.
fn tensor(name: &str, len: u64, kind: u32, offset: u64) -> Vec<u8> {
    [
        text(name),
        1u32.to_le_bytes().to_vec(),
        len.to_le_bytes().to_vec(),
        kind.to_le_bytes().to_vec(),
        offset.to_le_bytes().to_vec(),
    ]
    .concat()
}

#[test]
fn a_broken_gguf_is_refused_before_anything_is_allocated() {
    let huge = u64::MAX;
    let long_array = [
        text("a"),
        9u32.to_le_bytes().to_vec(),
        8u32.to_le_bytes().to_vec(),
        huge.to_le_bytes().to_vec(),
    ]
    .concat();
    let deep_array = [
        text("a"),
        9u32.to_le_bytes().to_vec(),
        9u32.to_le_bytes().to_vec(),
        1u64.to_le_bytes().to_vec(),
    ]
    .concat();
    let long_key = [huge.to_le_bytes().to_vec(), b"abc".to_vec()].concat();
    let twice = [entry("a", "1"), entry("a", "2")].concat();
    let cases: &[(&str, Vec<u8>, u8, &str)] = &[
        ("an old version", gguf(1, 0, 0, b""), 2, "version 1"),
        (
            "big-endian",
            gguf(3u32.swap_bytes(), 0, 0, b""),
            2,
            "little-endian",
        ),
        (
            "too many tensors",
            gguf(3, huge, 0, &[0; 64]),
            1,
            "wrong length",
        ),
        (
            "too much metadata",
            gguf(3, 0, huge, &[0; 64]),
            1,
            "wrong length",
        ),
        (
            "a long key",
            gguf(3, 0, 1, &[long_key, vec![0; 32]].concat()),
            1,
            "wrong length",
        ),
        (
            "a long array",
            gguf(3, 0, 1, &long_array),
            1,
            "wrong length",
        ),
        (
            "an array of arrays",
            gguf(3, 0, 1, &[deep_array, vec![0; 64]].concat()),
            1,
            "array",
        ),
        ("a key twice", gguf(3, 0, 2, &twice), 1, "duplicate"),
        (
            "no architecture",
            gguf(3, 0, 0, b""),
            1,
            "general.architecture",
        ),
        (
            "another architecture",
            gguf(3, 0, 1, &entry("general.architecture", "gpt2")),
            2,
            "gpt2",
        ),
        (
            "a long tensor",
            gguf(3, 1, 0, &tensor("t", 1 << 40, 0, 0)),
            1,
            "outside the file",
        ),
        (
            "an overflowing tensor",
            gguf(3, 1, 0, &tensor("t", huge / 2, 0, 0)),
            1,
            "impossible shape",
        ),
        (
            "a far tensor",
            gguf(3, 1, 0, &tensor("t", 1, 0, huge - 31)),
            1,
            "outside the file",
        ),
        (
            "an empty tensor",
            gguf(3, 1, 0, &tensor("t", 0, 0, 0)),
            1,
            "rows of 0",
        ),
        (
            "half a block",
            gguf(3, 1, 0, &tensor("t", 16, 2, 0)),
            1,
            "cannot hold",
        ),
        (
            "an unknown quantisation",
            gguf(3, 1, 0, &tensor("t", 256, 99, 0)),
            2,
            "99",
        ),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (case, bytes, exit_code, word) in cases {
        let path = dir.path().join("lie.gguf");
        fs::write(&path, bytes).unwrap();
        assert_refused(
            case,
            &path,
            *exit_code,
            &[word, "lie.gguf"][..if *exit_code == 1 { 2 } else { 1 }],
        );
    }

    let whole = fs::read(golden("gguf/llama.gguf")).unwrap();
    for len in (0..whole.len()).step_by(whole.len() / 40) {
        let path = dir.path().join("truncated.gguf");
        fs::write(&path, &whole[..len]).unwrap();
        assert_refused(
            &format!("{len} bytes of {}", whole.len()),
            &path,
            1,
            &["truncated.gguf"],
        );
    }
}

/// A template with an unknown token: `tokenizers` loads it and panics at the first text.
#[test]
fn a_panic_of_the_tokenizer_is_reported_as_an_error_only() {
    let dir = copy_of("llama");
    let path = dir.path().join("tokenizer.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let first = serde_json::json!({"Sequence": {"id": "A", "type_id": 0}});
    json["post_processor"] = serde_json::json!({
        "type": "TemplateProcessing", "special_tokens": {}, "pair": [first, {"Sequence": {"id": "B", "type_id": 1}}],
        "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, first],
    });
    fs::write(&path, json.to_string()).unwrap();
    let output = cargo_bin_cmd!("unforget")
        .args(["ask", dir.path().to_str().unwrap(), "Hi"])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("tokenizer.json"), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}

proptest! {
    // Each case loads a tiny model: enough cases to reach every field of a header over time, few enough for seconds.
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn changed_bytes_of_a_gguf_never_panic(changes in prop::collection::vec((0usize..20_000, any::<u8>()), 1..8), cut in 0usize..4) {
        let mut bytes = fs::read(golden("gguf/llama.gguf")).unwrap();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
            if cut == 0 {
                bytes.truncate(at + 1);
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("changed.gguf");
        fs::write(&path, bytes).unwrap();
        let _ = load(&path);
    }

    #[test]
    fn changed_bytes_of_a_directory_never_panic(
        file in prop::sample::select(vec!["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]),
        changes in prop::collection::vec((0usize..4_000, any::<u8>()), 1..4),
        cut in 0usize..4,
    ) {
        let dir = copy_of("llama");
        let path = dir.path().join(file);
        let mut bytes = fs::read(&path).unwrap();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
            if cut == 0 {
                bytes.truncate(at + 1);
            }
        }
        fs::write(&path, bytes).unwrap();
        let _ = load(dir.path());
    }
}

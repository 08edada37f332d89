//! GGUF files as the ecosystem has them: parts of a split model, adapters, missing and unusual metadata.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use unforget::model::{GgufType, TextTokenizer};

use crate::{
    cli::{json_lines, refused, run, stderr},
    model::{golden, load},
};

/// A GGUF file in parts that can be changed.
struct Gguf {
    metadata: Vec<(String, Vec<u8>)>, // type and value
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

const ALIGNMENT: usize = 32;

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// The bytes of a metadata value: a string, or an unsigned integer.
fn value(value: &Value) -> Vec<u8> {
    match value {
        Value::String(s) => [&8u32.to_le_bytes()[..], &text(s)].concat(),
        Value::Number(n) => {
            let n = n.as_u64().unwrap() as u32;
            [4u32.to_le_bytes(), n.to_le_bytes()].concat()
        }
        _ => panic!("{value}"),
    }
}

struct Cursor<'a>(&'a [u8], usize);

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> &'a [u8] {
        self.1 += n;
        &self.0[self.1 - n..self.1]
    }
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }
    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }
    fn text(&mut self) -> String {
        let n = self.u64() as usize;
        String::from_utf8(self.take(n).to_vec()).unwrap()
    }
    fn skip(&mut self, kind: u32) {
        match kind {
            0 | 1 | 7 => self.take(1),
            2 | 3 => self.take(2),
            4..=6 => self.take(4),
            10..=12 => self.take(8),
            8 => {
                let n = self.u64() as usize;
                self.take(n)
            }
            9 => {
                let (kind, n) = (self.u32(), self.u64());
                (0..n).for_each(|_| self.skip(kind));
                &[]
            }
            _ => panic!("{kind}"),
        };
    }
}

impl Gguf {
    /// The golden file `name`, whose tensors are f32.
    fn golden(name: &str) -> Self {
        let bytes = fs::read(golden("gguf").join(name)).unwrap();
        let mut cursor = Cursor(&bytes, 8);
        let (tensors, keys) = (cursor.u64(), cursor.u64());
        let metadata = (0..keys).map(|_| {
            let key = cursor.text();
            let start = cursor.1;
            let kind = cursor.u32();
            cursor.skip(kind);
            (key, bytes[start..cursor.1].to_vec())
        });
        let metadata = metadata.collect();
        let table: Vec<_> = (0..tensors)
            .map(|_| {
                let name = cursor.text();
                let dimensions = cursor.u32();
                let shape: Vec<u64> = (0..dimensions).map(|_| cursor.u64()).collect();
                (name, shape, cursor.u32(), cursor.u64() as usize)
            })
            .collect();
        let data = cursor.1.next_multiple_of(ALIGNMENT);
        let tensors = table.into_iter().map(|(name, shape, kind, offset)| {
            assert_eq!(kind, 0);
            let len = 4 * shape.iter().product::<u64>() as usize;
            (name, shape, kind, bytes[data + offset..][..len].to_vec())
        });
        Self {
            metadata,
            tensors: tensors.collect(),
        }
    }

    fn set(mut self, key: &str, new: &Value) -> Self {
        self.metadata.retain(|(known, _)| known != key);
        if !new.is_null() {
            self.metadata.push((key.into(), value(new)));
        }
        self
    }

    fn write(&self, path: &Path) {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            out.extend(text(key));
            out.extend(value);
        }
        let mut offset = 0;
        for (name, shape, kind, bytes) in &self.tensors {
            out.extend(text(name));
            out.extend((shape.len() as u32).to_le_bytes());
            for n in shape {
                out.extend(n.to_le_bytes());
            }
            out.extend(kind.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset += bytes.len().next_multiple_of(ALIGNMENT);
        }
        for (.., bytes) in &self.tensors {
            out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
            out.extend(bytes);
        }
        fs::write(path, out).unwrap();
    }
}

fn score(dir: &Path, model: &str) -> Value {
    fs::write(
        dir.join("rows.jsonl"),
        r#"{"prompt": "The", "completion": " capital is"}"#,
    )
    .unwrap();
    json_lines(&run(dir, &["score", model, "rows.jsonl"]))[0].clone()
}

#[test]
fn a_split_model_is_read_from_any_of_its_parts() {
    let dir = tempfile::tempdir().unwrap();
    let part = |n: usize| -> PathBuf { dir.path().join(format!("m-{n:05}-of-00002.gguf")) };
    let mut first = Gguf::golden("llama.gguf")
        .set("split.no", &0.into())
        .set("split.count", &2.into());
    let tensors = first.tensors.split_off(5);
    first.write(&part(1));
    let second = Gguf {
        metadata: vec![
            ("split.no".into(), value(&1.into())),
            ("split.count".into(), value(&2.into())),
        ],
        tensors,
    };
    // Without its other part, the file says what it is and what to do.
    let message = refused(dir.path(), &["ask", "m-00001-of-00002.gguf", "hi"]);
    for word in [
        "one of 2 parts",
        "m-00002-of-00002.gguf is not there",
        "llama-gguf-split --merge",
    ] {
        assert!(message.contains(word), "{message}");
    }
    second.write(&part(2));
    let whole = golden("gguf/llama.gguf").display().to_string();
    let expected = score(dir.path(), &whole);
    for name in ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"] {
        assert_eq!(score(dir.path(), name), expected);
    }
    fs::rename(part(1), dir.path().join("renamed.gguf")).unwrap();
    let message = refused(dir.path(), &["ask", "renamed.gguf", "hi"]);
    assert!(message.contains("one of 2 parts"), "{message}");
}

#[test]
fn what_is_no_model_or_of_an_unsupported_type_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    Gguf::golden("llama.gguf")
        .set("general.type", &"adapter".into())
        .set("adapter.type", &"lora".into())
        .write(&path);
    let message = refused(dir.path(), &["ask", "m.gguf", "hi"]);
    assert!(
        message.contains("is a LoRA adapter, not a model"),
        "{message}"
    );
    for (kind, name) in [
        (20, "IQ4_NL"),
        (23, "IQ4_XS"),
        (16, "IQ2_XXS"),
        (21, "IQ3_S"),
        (19, "IQ1_S"),
        (39, "MXFP4"),
    ] {
        let mut gguf = Gguf::golden("llama.gguf");
        gguf.tensors[3].2 = kind;
        gguf.write(&path);
        let message = refused(dir.path(), &["ask", "m.gguf", "hi"]);
        assert!(message.contains(name), "{message}");
    }
}

#[test]
fn every_pre_tokenizer_of_llama_cpp_for_these_families_has_its_rules() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let tokenizer = |pre: &Value| {
        Gguf::golden("llama.gguf")
            .set("tokenizer.ggml.pre", pre)
            .write(&path);
        TextTokenizer::load(path.to_str().unwrap()).unwrap()
    };
    let words = |pre: &Value, text: &str| -> Vec<String> {
        use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};
        let tokenizer = tokenizer(pre);
        let mut split = PreTokenizedString::from(text);
        tokenizer
            .inner
            .get_pre_tokenizer()
            .unwrap()
            .pre_tokenize(&mut split)
            .unwrap();
        let splits = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits
            .into_iter()
            .map(|(_, (a, b), _)| text[a..b].to_owned())
            .collect()
    };
    // As the expressions of llama.cpp's `llm_tokenizer_bpe` split it.
    let sample = "I'M in2024 don't fooBar 12345,\n\n x";
    for (names, expected) in [
        (
            &["deepseek-r1-qwen", "qwen2", "megrez"][..],
            &[
                "I", "'M", " in", "2", "0", "2", "4", " don", "'t", " fooBar", " ", "1", "2", "3",
                "4", "5", ",\n\n", " x",
            ][..],
        ),
        (
            &["llama-bpe", "falcon3", "smaug-bpe", "dbrx", "glm4"],
            &[
                "I", "'M", " in", "202", "4", " don", "'t", " fooBar", " ", "123", "45", ",\n\n",
                " x",
            ],
        ),
        (
            &["tekken"],
            &[
                "I", "'M", " in", "2", "0", "2", "4", " don", "'t", " foo", "Bar", " ", "1", "2",
                "3", "4", "5", ",\n\n", " x",
            ],
        ),
        (
            &["gpt-4o", "llama4"],
            &[
                "I'M", " in", "202", "4", " don't", " foo", "Bar", " ", "123", "45", ",\n\n", " x",
            ],
        ),
        (
            &["smollm", "command-r", "exaone"],
            &[
                "I", "'", "M", " in", "2", "0", "2", "4", " don", "'t", " fooBar", " ", "1", "2",
                "3", "4", "5", ",", "\n\n", " x",
            ],
        ),
        (
            &["gpt-2", "olmo", "exaone4"],
            &[
                "I", "'", "M", " in", "2024", " don", "'t", " fooBar", " 12345", ",", "\n\n", " x",
            ],
        ),
        (
            &["default"],
            &[
                "I", "'", "M", " in", "202", "4", " don", "'", "t", " fooBar", " ", "123", "45",
                ",", "\n\n", " x",
            ],
        ),
    ] {
        for name in names {
            assert_eq!(words(&(*name).into(), sample), expected, "{name}");
        }
    }
    // Without a name, llama.cpp takes its default.
    assert_eq!(
        words(&Value::Null, sample),
        words(&"default".into(), sample)
    );
    // Only some of them put the beginning of a text in front.
    for (name, front) in [
        ("tekken", 1),
        ("llama-bpe", 1),
        ("smaug-bpe", 0),
        ("deepseek-r1-qwen", 0),
    ] {
        let gguf = Gguf::golden("llama.gguf").set("tokenizer.ggml.pre", &name.into());
        gguf.set("tokenizer.ggml.add_bos_token", &Value::Null)
            .write(&path);
        let tokenizer = TextTokenizer::load(path.to_str().unwrap()).unwrap();
        assert_eq!(tokenizer.encode_prompt("").unwrap().len(), front, "{name}");
    }
    Gguf::golden("llama.gguf")
        .set("tokenizer.ggml.pre", &"unheard-of".into())
        .write(&path);
    let message = refused(dir.path(), &["ask", "m.gguf", "hi"]);
    assert!(message.contains("`unheard-of`"), "{message}");
}

#[test]
fn a_file_without_an_end_token_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let gguf = Gguf::golden("llama.gguf").set("tokenizer.ggml.eos_token_id", &Value::Null);
    gguf.write(&dir.path().join("m.gguf"));
    fs::write(
        dir.path().join("c.jsonl"),
        r#"{"prompt": "a", "completion": " b"}"#,
    )
    .unwrap();
    let output = run(dir.path(), &["data", "c.jsonl", "--model", "m.gguf"]);
    assert!(output.status.success());
    let notes = stderr(&output);
    assert!(notes.contains("tokenizer.ggml.eos_token_id"), "{notes}");
}

#[test]
fn the_written_file_has_the_end_that_the_model_stops_at() {
    let dir = crate::model::copy_of("llama");
    let path = dir.path().join("tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config.as_object_mut().unwrap().remove("eos_token");
    fs::write(&path, config.to_string()).unwrap();
    let model = load(dir.path()).unwrap();
    let file = dir.path().join("m.gguf");
    model.save_gguf(&file, GgufType::F32).unwrap();
    let again = load(&file).unwrap();
    assert_eq!(again.tokenizer.eos_token_id, model.tokenizer.eos_token_id);
    assert!(again.tokenizer.eos_token_id.is_some());
}

/// The golden model of `family` with these keys of its config; null removes one.
fn variant(family: &str, change: &Value) -> tempfile::TempDir {
    let dir = crate::model::copy_of(family);
    let path = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (key, value) in change.as_object().unwrap() {
        match value {
            Value::Null => drop(config.as_object_mut().unwrap().remove(key)),
            _ => config[key] = value.clone(),
        }
    }
    fs::write(path, config.to_string()).unwrap();
    dir
}

#[test]
fn the_families_keep_their_weights_and_switches_in_a_gguf_file() {
    let plain_rope =
        json!({"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.75});
    for (family, change) in [
        ("olmo2", json!({})),
        ("granite", json!({})),
        (
            "phi3",
            json!({"rope_parameters": plain_rope, "original_max_position_embeddings": null}),
        ),
        ("smollm3", json!({"no_rope_layers": null})),
        (
            "gemma3",
            json!({"layer_types": null, "query_pre_attn_scalar": 8}),
        ),
        ("mistral_window", json!({})),
    ] {
        let dir = variant(family, &change);
        let model = load(dir.path()).unwrap();
        let file = dir.path().join("m.gguf");
        model.save_gguf(&file, GgufType::F32).unwrap();
        let again = load(&file).unwrap();
        assert_eq!(again.config, model.config, "{family}");
        for (a, b) in again.params.data.iter().zip(&model.params.data[..]) {
            // The norms of gemma3 are stored increased by 1.
            assert!(
                (a - b).abs() <= if family == "gemma3" { 1e-6 } else { 0.0 },
                "{family}"
            );
        }
        let hf = dir.path().join("hf");
        again.save(&hf, unforget::model::Dtype::F32).unwrap();
        assert_eq!(load(&hf).unwrap().config, model.config, "{family}");
    }
    for (family, word) in [
        ("gemma3", "sliding windows in these layers"),
        ("phi3", "scaling of rotary frequencies"),
        ("smollm3", "every fourth"),
        ("qwen2_window", "sliding windows in these layers"),
    ] {
        let model = load(golden(family)).unwrap();
        let place = tempfile::tempdir().unwrap();
        let error = model
            .save_gguf(&place.path().join("m.gguf"), GgufType::F32)
            .unwrap_err();
        assert!(error.to_string().contains(word), "{family}: {error}");
        assert_eq!(error.exit_code(), 2);
    }
}

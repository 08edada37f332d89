//! Makes a `tokenizer.json` from the tokenizer in a GGUF file.

use serde_json::{Map, Value, json};

use super::header::Header;
use crate::{Error, Result};

/// Token types of `tokenizer.ggml.token_type`.
pub(super) const NORMAL: u64 = 1;
pub(super) const CONTROL: u64 = 3;
pub(super) const USER_DEFINED: u64 = 4;
pub(super) const UNUSED: u64 = 5;

/// llama.cpp's names of the supported pre-tokenizers, without synonyms.
pub(super) const PRE_TOKENIZERS: [&str; 4] = ["gpt-2", "smollm", "llama-bpe", "qwen2"];

/// The pre-tokenizer of a byte-level BPE, which splits text into words.
pub(super) struct PreTokenizer {
    pub(super) normalizer: Value,
    steps: Vec<Value>,
    /// A word in the vocabulary is one token, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// Whether a text begins with BOS if the file does not say.
    add_bos: bool,
}

/// Makes `tokenizer.json` and `tokenizer_config.json`.
pub(super) fn tokenizer_json(header: &Header) -> Result<(Value, Map<String, Value>)> {
    let path = header.path();
    let missing = |key: &str| Error::broken(path, format!("metadata `{key}` is missing"));
    let model = header
        .text("tokenizer.ggml.model")?
        .ok_or_else(|| missing("tokenizer.ggml.model"))?;
    if model != "gpt2" {
        return Err(Error::input_hint(
            format!(
                "{}: a tokenizer of type `{model}` is not supported",
                path.display()
            ),
            "byte-level BPE (`gpt2`) is supported; use the model's Hugging Face directory instead",
        ));
    }
    let tokens = header
        .texts("tokenizer.ggml.tokens")?
        .ok_or_else(|| missing("tokenizer.ggml.tokens"))?;
    let types = header
        .integers("tokenizer.ggml.token_type")?
        .unwrap_or_default();
    if !types.is_empty() && types.len() != tokens.len() {
        return Err(Error::broken(
            path,
            format!("{} tokens but {} token types", tokens.len(), types.len()),
        ));
    }
    let merges = header
        .texts("tokenizer.ggml.merges")?
        .ok_or_else(|| missing("tokenizer.ggml.merges"))?
        .into_iter()
        .map(|merge| match merge.split_once(' ') {
            Some((left, right)) => Ok(json!([left, right])),
            None => Err(Error::broken(
                path,
                format!("the merge `{merge}` is not a pair of tokens"),
            )),
        })
        .collect::<Result<Vec<_>>>()?;

    let kind = |id: usize| types.get(id).copied();
    let vocabulary: Map<String, Value> = tokens
        .iter()
        .enumerate()
        // Unused ids pad the embedding to a round number.
        .filter(|(id, _)| kind(*id) != Some(UNUSED))
        .map(|(id, token)| ((*token).to_owned(), id.into()))
        .collect();
    let added: Vec<Value> = tokens
        .iter()
        .enumerate()
        .filter(|(id, _)| matches!(kind(*id), Some(CONTROL | USER_DEFINED)))
        .map(|(id, token)| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": kind(id) == Some(CONTROL),
            })
        })
        .collect();

    let special = |key: &str| -> Result<Option<&str>> {
        let Some(id) = header.integer(key)? else {
            return Ok(None);
        };
        let token = usize::try_from(id).ok().and_then(|id| tokens.get(id));
        token.copied().map(Some).ok_or_else(|| {
            Error::broken(
                path,
                format!("metadata `{key}` is {id}, of {} tokens", tokens.len()),
            )
        })
    };
    let bos = special("tokenizer.ggml.bos_token_id")?;
    let eos = special("tokenizer.ggml.eos_token_id")?;
    let pre_tokenizer = pre_tokenizer(header)?;
    let add_bos = header
        .flag("tokenizer.ggml.add_bos_token")?
        .unwrap_or(pre_tokenizer.add_bos);
    let add_eos = header
        .flag("tokenizer.ggml.add_eos_token")?
        .unwrap_or(false);
    let (bos_before, eos_after) = (bos.filter(|_| add_bos), eos.filter(|_| add_eos));

    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": pre_tokenizer.normalizer,
        "pre_tokenizer": pre_tokenizer.json(),
        "post_processor": post_processor(&tokens, bos_before, eos_after),
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": pre_tokenizer.ignore_merges, "vocab": vocabulary, "merges": merges,
        },
    });

    let mut config = Map::new();
    config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
    config.insert("clean_up_tokenization_spaces".into(), false.into());
    for (name, token) in [
        ("bos_token", bos),
        ("eos_token", eos),
        ("pad_token", special("tokenizer.ggml.padding_token_id")?),
        ("unk_token", special("tokenizer.ggml.unknown_token_id")?),
        ("chat_template", header.text("tokenizer.chat_template")?),
    ] {
        if let Some(token) = token {
            config.insert(name.into(), token.into());
        }
    }
    Ok((tokenizer, config))
}

/// The pre-tokenizer in `tokenizer.ggml.pre`.
fn pre_tokenizer(header: &Header) -> Result<PreTokenizer> {
    let name = header.text("tokenizer.ggml.pre")?.unwrap_or("default");
    PreTokenizer::named(name).ok_or_else(|| {
        Error::input_hint(
            format!(
                "{}: the pre-tokenizer `{name}` is not supported",
                header.path().display()
            ),
            format!(
                "supported: default, {}; or use the model's Hugging Face directory",
                PRE_TOKENIZERS.join(", ")
            ),
        )
    })
}

impl PreTokenizer {
    /// The pre-tokenizer with this name in llama.cpp. The patterns are those of the models' own `tokenizer.json`.
    pub(super) fn named(name: &str) -> Option<Self> {
        let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
        let split = |digits: &str| {
            let pattern = format!(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            );
            json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
        };
        let plain = |steps: Vec<Value>| Self {
            normalizer: Value::Null,
            steps,
            ignore_merges: false,
            add_bos: false,
        };
        Some(match name {
            "default" | "gpt-2" | "gpt2" | "olmo" => plain(vec![byte_level(true)]),
            "smollm" | "starcoder" | "refact" | "codeshell" => plain(vec![
                json!({"type": "Digits", "individual_digits": true}),
                byte_level(true),
            ]),
            "llama-bpe" | "llama3" | "llama-v3" => Self {
                ignore_merges: true,
                add_bos: true,
                ..plain(vec![split(r"\p{N}{1,3}"), byte_level(false)])
            },
            "qwen2" => Self {
                normalizer: json!({"type": "NFC"}),
                ..plain(vec![split(r"\p{N}"), byte_level(false)])
            },
            _ => return None,
        })
    }

    /// Its form in `tokenizer.json`.
    pub(super) fn json(&self) -> Value {
        match &self.steps[..] {
            [only] => only.clone(),
            steps => json!({"type": "Sequence", "pretokenizers": steps}),
        }
    }
}

/// The post-processor, which adds special tokens to a text.
fn post_processor(tokens: &[&str], bos: Option<&str>, eos: Option<&str>) -> Value {
    if bos.is_none() && eos.is_none() {
        return json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true});
    }
    let template = |sequence: &str, type_id: u32| -> Vec<Value> {
        let special = |token: &str| json!({"SpecialToken": {"id": token, "type_id": type_id}});
        bos.map(special)
            .into_iter()
            .chain([json!({"Sequence": {"id": sequence, "type_id": type_id}})])
            .chain(eos.map(special))
            .collect()
    };
    let specials: Map<String, Value> = bos
        .into_iter()
        .chain(eos)
        .filter_map(|token| {
            let id = tokens.iter().position(|t| *t == token)?;
            Some((
                token.to_owned(),
                json!({"id": token, "ids": [id], "tokens": [token]}),
            ))
        })
        .collect();
    let pair = [template("A", 0), template("B", 1)].concat();
    json!({
        "type": "TemplateProcessing",
        "single": template("A", 0),
        "pair": pair,
        "special_tokens": specials,
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::model::TextTokenizer;

    /// The reference is `tests/golden/gguf.py`: `tokenizers` with the definitions of the models' own tokenizers.
    #[test]
    fn every_pre_tokenizer_gives_the_tokens_of_the_reference() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf");
        let expected: Map<String, Value> =
            serde_json::from_slice(&fs::read(dir.join("tokens.json")).unwrap()).unwrap();
        assert_eq!(expected.len(), 4);
        for (pre, rows) in &expected {
            let path = dir.join(format!("pre-{pre}.gguf"));
            let bytes = fs::read(&path).unwrap();
            let header = Header::parse(&path, &bytes).unwrap();
            let (json, config) = tokenizer_json(&header).unwrap();
            assert_eq!(config["bos_token"], "<|start|>");
            let json = serde_json::to_vec(&json).unwrap();
            let tokenizer = TextTokenizer::new(&path, &json, config, &[]).unwrap();
            for row in rows.as_array().unwrap() {
                let text = row["text"].as_str().unwrap();
                let ids = tokenizer.encode_continuation(text).unwrap();
                assert_eq!(json!(ids), row["ids"], "{pre}: {text:?}");
                let normalised = if pre == "qwen2" { continue } else { text };
                let without_special = normalised.replace("<|start|>", "").replace("<|end|>", "");
                assert_eq!(tokenizer.decode(&ids), without_special, "{pre}");
            }
            // Llama 3 begins with BOS by default.
            let bos = tokenizer
                .inner
                .token_to_id("<|start|>")
                .filter(|_| pre == "llama-bpe");
            assert_eq!(
                tokenizer.encode_prompt("").unwrap(),
                Vec::from_iter(bos),
                "{pre}"
            );
            assert_eq!(
                tokenizer.eos_token_ids,
                tokenizer
                    .inner
                    .token_to_id("<|end|>")
                    .into_iter()
                    .collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn an_unknown_tokenizer_or_pre_tokenizer_is_named() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf/pre-gpt-2.gguf");
        for (from, to) in [("gpt2", "bert"), ("gpt-2", "gpt-9")] {
            let mut bytes = fs::read(&path).unwrap();
            let at = bytes
                .windows(from.len())
                .position(|w| w == from.as_bytes())
                .unwrap();
            bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
            let header = Header::parse(&path, &bytes).unwrap();
            let error = tokenizer_json(&header).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(to), "{error}");
        }
    }
}

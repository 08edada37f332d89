//! Makes a `tokenizer.json` from the tokenizer in a GGUF file.

use serde_json::{Map, Value, json};

use super::{
    header::Header,
    pre_tokenizer::{PRE_TOKENIZERS, PreTokenizer},
    sentencepiece,
    tokenizer_parts::{
        CHAT_TEMPLATE, CHAT_TEMPLATES, CONTROL, DEFAULT_TEMPLATE, Parts, UNKNOWN, UNUSED,
        USER_DEFINED,
    },
};
use crate::{Error, Result};

/// Makes `tokenizer.json` and `tokenizer_config.json`.
pub(super) fn tokenizer_json<'h>(header: &Header<'h>) -> Result<(Value, Map<String, Value>)> {
    let path = header.path();
    let missing = |key: &str| Error::broken(path, format!("metadata `{key}` is missing"));
    let model = header
        .text("tokenizer.ggml.model")?
        .ok_or_else(|| missing("tokenizer.ggml.model"))?;
    if !["gpt2", "llama"].contains(&model) {
        return Err(Error::input_hint(
            format!(
                "{}: a tokenizer of type `{model}` is not supported",
                path.display()
            ),
            "supported: byte-level BPE (`gpt2`) and SentencePiece (`llama`); use the model's Hugging Face directory instead",
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
        .filter(|(id, _)| matches!(kind(*id), Some(UNKNOWN | CONTROL | USER_DEFINED)))
        .map(|(id, token)| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": kind(id) != Some(USER_DEFINED),
            })
        })
        .collect();

    let special = |key: &str| -> Result<Option<(&'h str, u32)>> {
        let Some(id) = header.integer(key)? else {
            return Ok(None);
        };
        let token = usize::try_from(id).ok().and_then(|id| tokens.get(id));
        token.map(|token| Some((*token, id as u32))).ok_or_else(|| {
            Error::broken(
                path,
                format!("metadata `{key}` is {id}, of {} tokens", tokens.len()),
            )
        })
    };
    let bos = special("tokenizer.ggml.bos_token_id")?;
    let eos = special("tokenizer.ggml.eos_token_id")?;
    let parts = if model == "llama" {
        sentencepiece::parts(header, &tokens, &types, &vocabulary)?
    } else {
        byte_level_parts(header, &vocabulary)?
    };
    let add_bos = header
        .flag("tokenizer.ggml.add_bos_token")?
        .unwrap_or(parts.add_bos);
    let add_eos = header
        .flag("tokenizer.ggml.add_eos_token")?
        .unwrap_or(false);
    let bos_before = bos.filter(|_| add_bos);
    let eos_after = eos.filter(|_| add_eos);
    let post_processor = if bos_before.is_none() && eos_after.is_none() {
        parts.plain_post_processor
    } else {
        post_processor(bos_before, eos_after)
    };

    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": parts.normalizer,
        "pre_tokenizer": parts.pre_tokenizer,
        "post_processor": post_processor,
        "decoder": parts.decoder,
        "model": parts.model,
    });

    let text = |special: Option<(&'h str, u32)>| special.map(|(token, _)| token);
    let mut config = Map::new();
    config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
    config.insert("clean_up_tokenization_spaces".into(), false.into());
    for (name, token) in [
        ("bos_token", text(bos)),
        ("eos_token", text(eos)),
        (
            "pad_token",
            text(special("tokenizer.ggml.padding_token_id")?),
        ),
        (
            "unk_token",
            text(special("tokenizer.ggml.unknown_token_id")?),
        ),
    ] {
        if let Some(token) = token {
            config.insert(name.into(), token.into());
        }
    }
    if let Some(template) = chat_template(header)? {
        config.insert("chat_template".into(), template);
    }
    Ok((tokenizer, config))
}

/// The chat template, or a list of named ones if there are several.
fn chat_template(header: &Header) -> Result<Option<Value>> {
    let default = header.text(CHAT_TEMPLATE)?;
    let names = header.texts(CHAT_TEMPLATES)?.unwrap_or_default();
    if names.is_empty() {
        return Ok(default.map(Value::from));
    }
    let mut templates = Vec::new();
    let entry = |name: &str, template: &str| json!({"name": name, "template": template});
    templates.extend(default.map(|template| entry(DEFAULT_TEMPLATE, template)));
    for name in names {
        let template = header.text(&format!("{CHAT_TEMPLATE}.{name}"))?;
        templates.extend(template.map(|template| entry(name, template)));
    }
    Ok(Some(Value::Array(templates)))
}

/// The parts of a byte-level BPE.
fn byte_level_parts(header: &Header, vocabulary: &Map<String, Value>) -> Result<Parts> {
    let path = header.path();
    let merges = header
        .texts("tokenizer.ggml.merges")?
        .ok_or_else(|| Error::broken(path, "metadata `tokenizer.ggml.merges` is missing"))?
        .into_iter()
        .map(|merge| match merge.split_once(' ') {
            Some((left, right)) => Ok(json!([left, right])),
            None => Err(Error::broken(
                path,
                format!("the merge `{merge}` is not a pair of tokens"),
            )),
        })
        .collect::<Result<Vec<_>>>()?;
    let pre_tokenizer = pre_tokenizer(header)?;
    Ok(Parts {
        pre_tokenizer: pre_tokenizer.json(),
        decoder: json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": pre_tokenizer.ignore_merges, "vocab": vocabulary, "merges": merges,
        }),
        normalizer: pre_tokenizer.normalizer,
        add_bos: pre_tokenizer.add_bos,
        plain_post_processor: json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true}),
    })
}

/// A post-processor, as in `tokenizer.json`, that puts `bos` in front of a text and `eos` behind it (text and id of each).
fn post_processor(bos: Option<(&str, u32)>, eos: Option<(&str, u32)>) -> Value {
    let template = |sequence: &str, type_id: u32| -> Vec<Value> {
        let special =
            |(token, _): (&str, u32)| json!({"SpecialToken": {"id": token, "type_id": type_id}});
        bos.map(special)
            .into_iter()
            .chain([json!({"Sequence": {"id": sequence, "type_id": type_id}})])
            .chain(eos.map(special))
            .collect()
    };
    let specials: Map<String, Value> = bos
        .into_iter()
        .chain(eos)
        .map(|(token, id)| {
            let entry = json!({"id": token, "ids": [id], "tokens": [token]});
            (token.to_owned(), entry)
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
                "supported: default, {} and their synonyms; or use the model's Hugging Face directory",
                PRE_TOKENIZERS.join(", ")
            ),
        )
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
                let ids = tokenizer.encode_rendered(text).unwrap();
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

    /// `tests/golden/sentencepiece.py`: the ids of the Python package `sentencepiece`.
    #[test]
    fn a_sentencepiece_tokenizer_gives_the_ids_of_the_reference() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf");
        let expected = fs::read(dir.join("sentencepiece.json")).unwrap();
        let expected: Map<String, Value> = serde_json::from_slice(&expected).unwrap();
        assert_eq!(expected.len(), 2);
        for (name, rows) in &expected {
            let path = dir.join(format!("{name}.gguf"));
            let bytes = fs::read(&path).unwrap();
            let header = Header::parse(&path, &bytes).unwrap();
            let (json, config) = tokenizer_json(&header).unwrap();
            let json = serde_json::to_vec(&json).unwrap();
            let tokenizer = TextTokenizer::new(&path, &json, config, &[]).unwrap();
            for row in rows.as_array().unwrap() {
                let text = row["text"].as_str().unwrap();
                let ids = tokenizer.encode_prompt(text).unwrap();
                assert_eq!(json!(ids), row["ids"], "{name}: {text:?}");
                assert_eq!(tokenizer.decode(&ids), text, "{name}");
            }
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

//! GGUF metadata of a tokenizer: byte-level BPE, and what every kind has in common.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value as Json};
use tokenizers::{NormalizerWrapper, Tokenizer};

use super::{
    super::{
        pre_tokenizer::{PRE_TOKENIZERS, PreTokenizer},
        tokenizer_parts::{
            BYTE, CHAT_TEMPLATE, CHAT_TEMPLATES, CONTROL, DEFAULT_TEMPLATE, NORMAL, UNKNOWN,
            UNUSED, USER_DEFINED,
        },
    },
    file::Value,
    probe::{merge_pairs, splits},
    sentencepiece,
};
use crate::{
    Error, Result,
    model::{TextTokenizer, tokenizer::special_token},
};

/// The `tokenizer.ggml` metadata for an embedding of `vocab_size` rows.
///
/// # Errors
/// [`Error::Input`] when GGUF has no name for this kind of tokenizer.
pub(super) fn metadata(
    tokenizer: &TextTokenizer,
    vocab_size: usize,
) -> Result<Vec<(String, Value)>> {
    let unsupported = |reason: &str| {
        Error::input_hint(
            format!("cannot write the tokenizer to a GGUF file: {reason}"),
            "write the model with `--to hf` and try llama.cpp's own converter",
        )
    };
    let inner = &tokenizer.inner;
    let json = inner
        .to_string(false)
        .map_err(|e| unsupported(&e.to_string()))?;
    let json: Json = serde_json::from_str(&json).expect("a tokenizer is written as JSON");
    let model = &json["model"];
    if model["type"] != "BPE" {
        return Err(unsupported(
            "it is neither a byte-level BPE nor SentencePiece's BPE",
        ));
    }
    let (tokens, types) = token_list(inner, model, vocab_size);
    if tokens.iter().collect::<HashSet<_>>().len() < tokens.len() {
        return Err(unsupported("two ids have the same text"));
    }
    let kind = if model["byte_fallback"] == true {
        sentencepiece::metadata(inner, &json, &tokens, &types)
    } else {
        byte_level(inner, model)
    };
    let mut metadata = kind.map_err(|reason| unsupported(&reason))?;

    // Ids beyond the embedding have no row in the file.
    let id_of = |key: &str| {
        let id = inner.token_to_id(special_token(&tokenizer.config_json, key)?)?;
        ((id as usize) < vocab_size).then_some(id)
    };
    let bos = id_of("bos_token");
    let eos = tokenizer
        .eos_token_id
        .filter(|id| (*id as usize) < vocab_size);
    // llama.cpp also stops at the end of a turn.
    let eot = tokenizer
        .end_of_turn()
        .filter(|id| Some(*id) != eos && (*id as usize) < vocab_size);
    let sample = inner
        .encode("a", true)
        .map_err(|e| unsupported(&e.to_string()))?;
    let sample = sample.get_ids();
    let add_bos = bos.is_some() && sample.first() == bos.as_ref();
    let add_eos = eos.is_some() && sample.last() == eos.as_ref();

    let types = types.into_iter().map(|kind| kind as i32).collect();
    metadata.extend([
        ("tokens", Value::Texts(tokens)),
        ("token_type", Value::I32s(types)),
        ("add_bos_token", Value::Bool(add_bos)),
        ("add_eos_token", Value::Bool(add_eos)),
    ]);
    let special = [
        ("bos_token_id", bos),
        ("eos_token_id", eos),
        ("eot_token_id", eot),
        ("padding_token_id", id_of("pad_token")),
        ("unknown_token_id", id_of("unk_token")),
    ];
    metadata.extend(
        special
            .into_iter()
            .filter_map(|(key, id)| Some((key, Value::U32(id?)))),
    );
    let mut metadata: Vec<_> = metadata
        .into_iter()
        .map(|(key, value)| (format!("tokenizer.ggml.{key}"), value))
        .collect();
    metadata.extend(chat_templates(&tokenizer.config_json));
    Ok(metadata)
}

/// The text and type of every id below `vocab_size`.
fn token_list(inner: &Tokenizer, model: &Json, vocab_size: usize) -> (Vec<String>, Vec<u64>) {
    let added = inner.get_added_tokens_decoder();
    let unknown = model["unk_token"].as_str();
    // A byte may have a second text: Gemma's tab.
    let bytes = (0..=255).filter(|_| model["byte_fallback"] == true);
    let bytes = bytes.map(|byte| format!("<0x{byte:02X}>"));
    let bytes: HashMap<u32, String> = bytes
        .filter_map(|text| Some((inner.token_to_id(&text)?, text)))
        .collect();
    let token = |id: u32| match (inner.id_to_token(id), added.get(&id)) {
        (Some(token), Some(_)) if Some(&token[..]) == unknown => (token, UNKNOWN),
        (Some(token), Some(added)) if added.special => (token, CONTROL),
        (Some(token), Some(_)) => (token, USER_DEFINED),
        (Some(token), None) => match bytes.get(&id) {
            Some(byte) => (byte.clone(), BYTE),
            None if Some(&token[..]) == unknown => (token, UNKNOWN),
            None => (token, NORMAL),
        },
        (None, _) => (format!("[PAD{id}]"), UNUSED),
    };
    (0..vocab_size as u32).map(token).unzip()
}

/// What of the metadata is of byte-level BPE alone; `Err`: why it has no form.
fn byte_level(inner: &Tokenizer, model: &Json) -> Result<Vec<(&'static str, Value)>, String> {
    let ignore_merges = model["ignore_merges"] == true;
    let found = splits(inner.get_normalizer(), inner.get_pre_tokenizer());
    let named = PRE_TOKENIZERS.iter().find(|name| {
        let known = PreTokenizer::named(name).expect("each of them is known");
        known.ignore_merges == ignore_merges && found.is_some() && found == known_splits(&known)
    });
    let pre = named.ok_or("GGUF has no name for its pre-tokenizer")?;
    let merges = merge_pairs(model).into_iter().map(|pair| pair.join(" "));
    Ok(vec![
        ("model", Value::Text("gpt2".into())),
        ("pre", Value::Text((*pre).into())),
        ("merges", Value::Texts(merges.collect())),
    ])
}

/// The chat template, or of several named ones the default; the others have keys of their own, and a list of their names.
fn chat_templates<'c>(config: &'c Map<String, Json>) -> Vec<(String, Value)> {
    let named: Vec<(&'c str, &'c str)> = match config.get("chat_template") {
        Some(Json::String(template)) => vec![(DEFAULT_TEMPLATE, template)],
        Some(Json::Object(templates)) => {
            let templates = templates.iter();
            templates
                .filter_map(|(name, template)| Some((&name[..], template.as_str()?)))
                .collect()
        }
        Some(Json::Array(templates)) => {
            let named = |entry: &'c Json| {
                Some((
                    entry.get("name")?.as_str()?,
                    entry.get("template")?.as_str()?,
                ))
            };
            templates.iter().filter_map(named).collect()
        }
        _ => Vec::new(),
    };
    let mut metadata = Vec::new();
    let mut others = Vec::new();
    for (name, template) in named {
        let template = Value::Text(template.to_owned());
        if name == DEFAULT_TEMPLATE {
            metadata.push((CHAT_TEMPLATE.to_owned(), template));
        } else {
            // As llama.cpp's converter names them.
            let name = name.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
            metadata.push((format!("{CHAT_TEMPLATE}.{name}"), template));
            others.push(name);
        }
    }
    if !others.is_empty() {
        metadata.push((CHAT_TEMPLATES.to_owned(), Value::Texts(others)));
    }
    metadata
}

fn known_splits(known: &PreTokenizer) -> Option<Vec<String>> {
    let normalizer: Option<NormalizerWrapper> =
        serde_json::from_value(known.normalizer.clone()).ok()?;
    let pre_tokenizer = serde_json::from_value(known.json()).ok()?;
    splits(normalizer.as_ref(), Some(&pre_tokenizer))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use serde_json::json;

    use super::{
        super::{
            super::{header::Header, tokenizer::tokenizer_json},
            file,
        },
        *,
    };

    fn read(path: &Path, bytes: &[u8]) -> TextTokenizer {
        let header = Header::parse(path, bytes).expect("a header");
        let (json, config) = tokenizer_json(&header).expect("a tokenizer");
        let json = serde_json::to_vec(&json).expect("plain data");
        TextTokenizer::new(path, &json, config, &[]).expect("a tokenizer")
    }

    /// `tests/golden/sentencepiece.py`: the ids of the Python package `sentencepiece`.
    #[test]
    fn a_sentencepiece_tokenizer_that_is_written_gives_the_ids_of_the_reference() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf");
        let expected = fs::read(dir.join("sentencepiece.json")).expect("committed");
        let expected: Map<String, Json> = serde_json::from_slice(&expected).expect("JSON");
        for (name, rows) in &expected {
            let path = dir.join(format!("{name}.gguf"));
            let original = read(&path, &fs::read(&path).expect("committed"));
            let written = metadata(&original, original.vocab_size()).expect("it has a form");
            let again = read(&path, &file::header(&written, &[]));
            for row in rows.as_array().expect("rows") {
                let text = row["text"].as_str().expect("text");
                let ids = again.encode_prompt(text).expect("ids");
                assert_eq!(json!(ids), row["ids"], "{name}: {text:?}");
            }
            let text = "<s>a</s> <unk> b";
            let ids = |tokenizer: &TextTokenizer| tokenizer.encode_rendered(text).expect("ids");
            assert_eq!(ids(&again), ids(&original));
            assert_eq!(again.eos_token_ids, original.eos_token_ids);
        }
    }

    /// A BPE with bytes whose merges are `merges`, and that puts nothing in front of a text.
    fn tokenizer(pieces: &[&str], merges: &Json, change: impl Fn(&mut Json)) -> TextTokenizer {
        let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
        let names = ["<unk>".to_owned()].into_iter().chain(bytes);
        let names = names.chain(pieces.iter().map(|&piece| piece.to_owned()));
        let vocab: Map<String, Json> = names
            .enumerate()
            .map(|(id, name)| (name, id.into()))
            .collect();
        let mut json = json!({
            "version": "1.0", "added_tokens": [], "post_processor": null, "pre_tokenizer": null,
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"},
            "decoder": {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
            "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": true, "vocab": vocab, "merges": merges},
        });
        change(&mut json);
        let json = serde_json::to_vec(&json).expect("plain data");
        TextTokenizer::new(Path::new("t"), &json, Map::new(), &[]).expect("a tokenizer")
    }

    #[test]
    fn what_llama_cpp_would_tokenize_otherwise_is_refused() {
        let pieces = ["a", "b", "c", "ab", "bc", "abc"];
        let refused = |merges: &Json, change: fn(&mut Json)| {
            let tokenizer = tokenizer(&pieces, merges, change);
            let refused = metadata(&tokenizer, tokenizer.vocab_size()).err();
            refused.map(|error| error.to_string()).unwrap_or_default()
        };
        let all = json!([["b", "c"], ["a", "b"], ["a", "bc"], ["ab", "c"]]);
        assert_eq!(refused(&all, |_| {}), "");
        // Without a way from `a`, `bc` to `abc` it stays in two tokens; by scores it does not.
        let few = json!([["b", "c"], ["a", "b"], ["ab", "c"]]);
        let told = refused(&few, |_| {});
        assert!(told.contains("would give \"abc\" other tokens"), "{told}");
        let told = refused(&all, |json| json["normalizer"] = json!({"type": "NFKC"}));
        assert!(told.contains("its normalizer changes the text"), "{told}");
        let told = refused(&all, |json| {
            json["pre_tokenizer"] = json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "never", "split": true});
        });
        assert!(told.contains("its pre-tokenizer splits words"), "{told}");
    }

    #[test]
    fn every_named_template_is_written_and_read() {
        let tokenizer = |template: &Json| {
            let mut tokenizer = tokenizer(&["a"], &json!([]), |_| {});
            tokenizer
                .config_json
                .insert("chat_template".into(), template.clone());
            tokenizer
        };
        let named = json!([
            {"name": "tool_use", "template": "T"},
            {"name": "default", "template": "D"},
            {"name": "rag-2", "template": "R"},
        ]);
        let read_again = |template: &Json| {
            let tokenizer = tokenizer(template);
            let written = metadata(&tokenizer, tokenizer.vocab_size()).expect("it has a form");
            let again = read(Path::new("t.gguf"), &file::header(&written, &[]));
            again.config_json["chat_template"].clone()
        };
        let expected = json!([
            {"name": "default", "template": "D"},
            {"name": "tool_use", "template": "T"},
            {"name": "rag_2", "template": "R"},
        ]);
        assert_eq!(read_again(&named), expected);
        let object = json!({"tool_use": "T", "default": "D", "rag-2": "R"});
        assert_eq!(read_again(&object), expected);
        assert_eq!(read_again(&json!("D")), "D");
    }
}

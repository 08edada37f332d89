//! GGUF metadata of a byte-level BPE tokenizer.

use std::collections::HashSet;

use serde_json::{Map, Value as Json};
use tokenizers::{
    NormalizedString, Normalizer as _, NormalizerWrapper, OffsetReferential, OffsetType,
    PreTokenizedString, PreTokenizer as _, PreTokenizerWrapper,
};

use super::{
    super::{
        pre_tokenizer::{PRE_TOKENIZERS, PreTokenizer},
        tokenizer_parts::{CONTROL, NORMAL, UNUSED, USER_DEFINED},
    },
    file::Value,
};
use crate::{
    Error, Result,
    model::{TextTokenizer, tokenizer::special_token},
};

/// A text that the pre-tokenizers split differently: numbers, contractions, white space, signs, scripts, combining marks.
const SAMPLE: &str = "I'll they've CAN'T 'S 1 12 1234567 3rd x2y ½ ² ٣٤ １２\n\n  a \t\r\n b   c fn(x){return -1;} // don't \
    e\u{301} 你好，世界 Привет שלום नमस्ते 👩‍👩‍👧 \u{a0}— “…” €\n";

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
    if model["type"] != "BPE" || model["byte_fallback"] == true {
        return Err(unsupported("it is not a byte-level BPE"));
    }
    let ignore_merges = model["ignore_merges"] == true;
    let found = splits(inner.get_normalizer(), inner.get_pre_tokenizer());
    let named = PRE_TOKENIZERS.iter().find(|name| {
        let known = PreTokenizer::named(name).expect("each of them is known");
        known.ignore_merges == ignore_merges && found.is_some() && found == known_splits(&known)
    });
    let pre = named.ok_or_else(|| unsupported("GGUF has no name for its pre-tokenizer"))?;

    let added = inner.get_added_tokens_decoder();
    let (tokens, types): (Vec<_>, Vec<_>) = (0..vocab_size as u32)
        .map(|id| match (inner.id_to_token(id), added.get(&id)) {
            (Some(token), Some(added)) if added.special => (token, CONTROL),
            (Some(token), Some(_)) => (token, USER_DEFINED),
            (Some(token), None) => (token, NORMAL),
            (None, _) => (format!("[PAD{id}]"), UNUSED),
        })
        .unzip();
    if tokens.iter().collect::<HashSet<_>>().len() < tokens.len() {
        return Err(unsupported("two ids have the same text"));
    }
    let merges = model["merges"].as_array().into_iter().flatten();
    let merges = merges.filter_map(|merge| match merge {
        Json::Array(pair) => Some(format!(
            "{} {}",
            pair.first()?.as_str()?,
            pair.get(1)?.as_str()?
        )),
        merge => merge.as_str().map(str::to_owned),
    });

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
    let mut metadata = vec![
        ("model", Value::Text("gpt2".into())),
        ("pre", Value::Text((*pre).into())),
        ("tokens", Value::Texts(tokens)),
        ("token_type", Value::I32s(types)),
        ("merges", Value::Texts(merges.collect())),
        ("add_bos_token", Value::Bool(add_bos)),
        ("add_eos_token", Value::Bool(add_eos)),
    ];
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
    if let Some(template) = chat_template(&tokenizer.config_json) {
        metadata.push((
            "tokenizer.chat_template".into(),
            Value::Text(template.into()),
        ));
    }
    Ok(metadata)
}

/// The chat template: a text, or the default one of named texts.
fn chat_template(config: &Map<String, Json>) -> Option<&str> {
    let name = |entry: &&Json| entry.get("name").and_then(Json::as_str) == Some("default");
    match config.get("chat_template")? {
        Json::Array(named) => named.iter().find(name)?.get("template")?.as_str(),
        template => template.as_str(),
    }
}

/// The words of [`SAMPLE`]; `None` if it cannot be split.
fn splits(
    normalizer: Option<&NormalizerWrapper>,
    pre_tokenizer: Option<&PreTokenizerWrapper>,
) -> Option<Vec<String>> {
    let mut text = NormalizedString::from(SAMPLE);
    if let Some(normalizer) = normalizer {
        normalizer.normalize(&mut text).ok()?;
    }
    let mut text = PreTokenizedString::from(text);
    pre_tokenizer?.pre_tokenize(&mut text).ok()?;
    let splits = text.get_splits(OffsetReferential::Normalized, OffsetType::None);
    Some(
        splits
            .into_iter()
            .map(|(split, ..)| split.to_owned())
            .collect(),
    )
}

fn known_splits(known: &PreTokenizer) -> Option<Vec<String>> {
    let normalizer: Option<NormalizerWrapper> =
        serde_json::from_value(known.normalizer.clone()).ok()?;
    let pre_tokenizer = serde_json::from_value(known.json()).ok()?;
    splits(normalizer.as_ref(), Some(&pre_tokenizer))
}

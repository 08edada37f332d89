//! `SentencePiece` tokenizers in GGUF files (`tokenizer.ggml.model` = `llama`): BPE by scores, with bytes for what has no token.
//!
//! The reference merges the pair of neighbours whose joint token has the highest score, from the left where scores are equal. A
//! `tokenizer.json` has a list of merges instead: here all pairs of tokens that join to another, by falling score.

use std::{cmp::Reverse, collections::HashMap};

use serde_json::{Map, Value, json};

use super::{
    header::Header,
    tokenizer_parts::{NORMAL, Parts, USER_DEFINED},
};
use crate::{Error, Result};

/// The character that stands for a space.
pub(super) const SPACE: &str = "\u{2581}";

/// Longest token, in bytes, that merges are made of: none is as long in any vocabulary, and its pairs grow with its length.
const MAX_TOKEN_BYTES: usize = 1024;

/// The parts of the `tokenizer.json` of such a tokenizer.
pub(super) fn parts(
    header: &Header,
    tokens: &[&str],
    types: &[u64],
    vocabulary: &Map<String, Value>,
) -> Result<Parts> {
    let path = header.path();
    let scores = header
        .numbers("tokenizer.ggml.scores")?
        .ok_or_else(|| Error::broken(path, "metadata `tokenizer.ggml.scores` is missing"))?;
    if scores.len() != tokens.len() {
        return Err(Error::broken(
            path,
            format!("{} tokens but {} scores", tokens.len(), scores.len()),
        ));
    }
    let prefix = header
        .flag("tokenizer.ggml.add_space_prefix")?
        .unwrap_or(true);
    let unknown = header.integer("tokenizer.ggml.unknown_token_id")?;
    let unknown = unknown
        .and_then(|id| tokens.get(usize::try_from(id).ok()?))
        .copied();
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let normalizer = if prefix {
        // The prefix comes behind every special token as well, as in the reference.
        json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace]})
    } else {
        replace
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let merges = merges(tokens, types, &scores);
    Ok(Parts {
        normalizer,
        pre_tokenizer: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocabulary, "merges": merges,
        }),
        add_bos: true,
        plain_post_processor: Value::Null,
    })
}

/// All pairs of tokens that join to a token, those of the highest score first.
pub(super) fn merges<'t>(tokens: &[&'t str], types: &[u64], scores: &[f64]) -> Vec<[&'t str; 2]> {
    let joins = |id: usize| matches!(types.get(id), None | Some(&(NORMAL | USER_DEFINED)));
    let ids: HashMap<&str, usize> = tokens
        .iter()
        .enumerate()
        .filter(|(id, _)| joins(*id))
        .map(|(id, token)| (*token, id))
        .collect();
    let mut pairs = Vec::new();
    for (id, token) in tokens.iter().copied().enumerate() {
        if ids.get(token) != Some(&id) || token.len() > MAX_TOKEN_BYTES {
            continue;
        }
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if ids.contains_key(left) && ids.contains_key(right) {
                pairs.push((id, left, right));
            }
        }
    }
    // Scores may be equal: an order of their own keeps the result the same in every run.
    pairs.sort_unstable_by(|(a, left_a, _), (b, left_b, _)| {
        scores[*b]
            .total_cmp(&scores[*a])
            .then(a.cmp(b))
            .then(Reverse(left_a.len()).cmp(&Reverse(left_b.len())))
    });
    pairs
        .into_iter()
        .map(|(_, left, right)| [left, right])
        .collect()
}

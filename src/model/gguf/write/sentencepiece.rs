//! GGUF metadata of a `SentencePiece` BPE: scores in place of a list of merges.

use std::collections::{HashMap, HashSet};

use serde_json::{Value as Json, json};
use tokenizers::Tokenizer;

use super::{
    super::{
        sentencepiece::{SPACE, merges},
        tokenizer_parts::NORMAL,
    },
    file::Value,
    probe::{SAMPLE, merge_pairs, splits},
};

/// What of the metadata is of this kind of tokenizer alone; `Err`: why llama.cpp would give other ids.
///
/// `json` is the tokenizer's `tokenizer.json`.
pub(super) fn metadata(
    inner: &Tokenizer,
    json: &Json,
    tokens: &[String],
    types: &[u64],
) -> Result<Vec<(&'static str, Value)>, String> {
    let spaced = SAMPLE.replace(' ', SPACE);
    let words = splits(inner.get_normalizer(), inner.get_pre_tokenizer()).unwrap_or_default();
    let add_space_prefix = match &words[..] {
        [text] if *text == spaced => false,
        [text] if text.strip_prefix(SPACE) == Some(&spaced) => true,
        [_] => {
            return Err("its normalizer changes the text in a way that GGUF cannot state".into());
        }
        _ => {
            return Err(
                "its pre-tokenizer splits words, and that of SentencePiece does not".into(),
            );
        }
    };
    let pairs = merge_pairs(&json["model"]);
    let scores = scores(tokens, &pairs);
    check(inner, json, (tokens, types), (&pairs, &scores))?;
    Ok(vec![
        ("model", Value::Text("llama".into())),
        ("pre", Value::Text("default".into())),
        ("scores", Value::F32s(scores)),
        ("add_space_prefix", Value::Bool(add_space_prefix)),
    ])
}

/// The score of every token, from 0 down in the order in which the merges make the tokens, then those that no merge makes.
///
/// All merges that make a token have its score, so where the merges of several tokens are mixed, these tokens have the same.
fn scores(tokens: &[String], pairs: &[[&str; 2]]) -> Vec<f32> {
    let joined: Vec<String> = pairs.iter().map(|pair| pair.concat()).collect();
    let last: HashMap<&str, usize> = joined
        .iter()
        .enumerate()
        .map(|(i, token)| (&token[..], i))
        .collect();
    let mut groups: HashMap<&str, usize> = HashMap::new();
    let (mut group, mut end) = (0, 0);
    for (i, token) in joined.iter().enumerate() {
        if i > end {
            group += 1;
        }
        end = end.max(last[&token[..]]);
        groups.insert(token, group);
    }
    let mut rest = group;
    let scores = tokens.iter().map(|token| {
        let place = groups.get(&token[..]).copied().unwrap_or_else(|| {
            rest += 1;
            rest
        });
        -(place as f32)
    });
    scores.collect()
}

/// Checks that the merges which the scores stand for, all pairs of tokens that join to a token, are those of the tokenizer; or where
/// they are not, that every token and [`SAMPLE`] have the same ids all the same.
fn check(
    inner: &Tokenizer,
    json: &Json,
    (tokens, types): (&[String], &[u64]),
    (pairs, scores): (&[[&str; 2]], &[f32]),
) -> Result<(), String> {
    let texts: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let scores: Vec<f64> = scores.iter().map(|score| f64::from(*score)).collect();
    let stated = merges(&texts, types, &scores);
    let known: HashSet<&[&str; 2]> = pairs.iter().collect();
    let is_known = |pair: &[&str; 2]| known.contains(pair);
    if stated.len() == known.len() && stated.iter().all(is_known) {
        return Ok(());
    }
    let mut read = json.clone();
    read["model"]["merges"] = json!(stated);
    let read = serde_json::to_vec(&read).expect("plain data");
    let read = Tokenizer::from_bytes(read).map_err(|e| e.to_string())?;
    let words = texts.iter().zip(types).filter(|(_, kind)| **kind == NORMAL);
    let words = words.map(|(token, _)| token.replace(SPACE, " "));
    for text in words.chain([SAMPLE.to_owned()]) {
        let ids = |tokenizer: &Tokenizer| {
            tokenizer
                .encode_fast(&text[..], false)
                .map(|e| e.get_ids().to_vec())
        };
        match (ids(inner), ids(&read)) {
            (Ok(ours), Ok(theirs)) if ours == theirs => {}
            _ => {
                return Err(format!(
                    "its merges are not those of a SentencePiece model: llama.cpp would give {:?} other tokens",
                    text.chars().take(40).collect::<String>()
                ));
            }
        }
    }
    Ok(())
}

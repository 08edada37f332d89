//! The tokenizer of a model, with the special tokens of its configuration.

use std::{fmt::Display, ops::Range, path::Path};

use serde_json::{Map, Value};
use tokenizers::{AddedToken, Encoding, Tokenizer};

use crate::{Error, Result, catch_panic};

/// End-of-turn tokens in the chat formats of the supported families.
const END_OF_TURN_TOKENS: [&str; 5] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end|>",
];

/// The special tokens that a `tokenizer_config.json` and a chat template can name, as in `transformers`.
pub(crate) const SPECIAL_TOKENS: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// A tokenizer with its `tokenizer_config.json`.
#[derive(Clone)]
pub struct TextTokenizer {
    /// The tokenizer itself, as in `tokenizer.json`.
    pub inner: Tokenizer,
    /// `tokenizer_config.json`.
    pub config_json: Map<String, Value>,
    /// Tokens that end a text: EOS and end of turn.
    pub eos_token_ids: Vec<u32>,
    /// The token that ends a trained text; `None` if no file names one.
    pub eos_token_id: Option<u32>,
    /// The beginning-of-text token, if the tokenizer puts it in front of a text.
    bos_in_front: Option<u32>,
}

impl TextTokenizer {
    /// Makes a tokenizer from the bytes of `tokenizer.json` and the content of `tokenizer_config.json`.
    ///
    /// `others` are the further files that may name the EOS token, by `eos_token_id` or `eos_token`, in the order in which they are
    /// asked: `generation_config.json`, `config.json`, `special_tokens_map.json`. As in `transformers` 5, `add_bos_token` and
    /// `add_eos_token` do not count where there is a `tokenizer.json`, and a special token that only `config_json` names is one.
    ///
    /// # Errors
    /// [`Error::BrokenModel`] when `tokenizer_json` (the content of `path`) is not a tokenizer.
    pub fn new(
        path: &Path,
        tokenizer_json: &[u8],
        config_json: Map<String, Value>,
        others: &[&Map<String, Value>],
    ) -> Result<Self> {
        let mut inner = parse(tokenizer_json)
            .map_err(|reason| Error::broken(path, format!("not a tokenizer: {reason}")))?;
        // The trainer alone truncates and pads rows.
        inner
            .with_truncation(None)
            .map_err(|e| Error::broken(path, e.to_string()))?
            .with_padding(None);
        let mut named = special_tokens(&config_json);
        named.retain(|token| !is_added(&inner, &token.content));
        inner.add_special_tokens(&named);
        let sources: Vec<Vec<u32>> = std::iter::once(&config_json)
            .chain(others.iter().copied())
            .map(|source| eos_tokens(source, &inner))
            .collect();
        let known = |id: &&u32| inner.id_to_token(**id).is_some();
        let eos_token_id = sources.iter().flatten().find(known).copied();
        let mut end_tokens = sources.concat();
        end_tokens.extend(end_of_turn_tokens(&inner));
        end_tokens.sort_unstable();
        end_tokens.dedup();
        let mut tokenizer = Self {
            inner,
            config_json,
            eos_token_ids: end_tokens,
            eos_token_id,
            bos_in_front: None,
        };
        let sample = tokenizer.encoding("a")?;
        let front = front_len(&sample);
        tokenizer.bos_in_front = front.checked_sub(1).map(|last| sample.get_ids()[last]);
        Ok(tokenizer)
    }

    /// Token ids of a prompt. Special tokens that the tokenizer puts in front are there, once; those that it puts behind a text are
    /// not.
    ///
    /// # Errors
    /// [`Error::Input`] when the tokenizer cannot encode the text.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        self.encode(text, true)
    }

    /// Token ids of a chat as its template renders it: the template writes the special tokens, the tokenizer adds none
    /// (`apply_chat_template` of `transformers`).
    ///
    /// # Errors
    /// [`Error::Input`] when the tokenizer cannot encode the text.
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>> {
        self.encode(text, false)
    }

    /// As [`Self::encode_prompt`], or without added tokens as [`Self::encode_rendered`], with the position of each token in `text`
    /// (bytes; empty for an added special token).
    ///
    /// # Errors
    /// [`Error::Input`] when the tokenizer cannot encode the text.
    pub fn encode_with_offsets(
        &self,
        text: &str,
        add_special_tokens: bool,
    ) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
        let encoding = self.inner.encode(text, add_special_tokens);
        let encoding = encoding.map_err(|e| refused(text, &e))?;
        let (first, kept) = self.kept_range(&encoding, add_special_tokens)?;
        let offsets = encoding.get_offsets().iter().map(|(a, b)| *a..*b);
        let (mut ids, mut offsets) = (encoding.get_ids().to_vec(), offsets.collect::<Vec<_>>());
        ids.truncate(kept);
        offsets.truncate(kept);
        if let Some(twice) = first.checked_sub(1) {
            ids.remove(twice);
            offsets.remove(twice);
        }
        Ok((ids, offsets))
    }

    /// Token ids of the text `before + text`, split into those of `before` and the others. The cut is at the longest prefix that
    /// `before` alone and the whole have in common: where a token reaches across the end of `before`, it belongs to the second part.
    /// `add_special_tokens`: as in [`Self::encode_prompt`], else as in [`Self::encode_rendered`].
    ///
    /// # Errors
    /// [`Error::Input`] when the tokenizer cannot encode the text.
    pub fn encode_joint(
        &self,
        before: &str,
        text: &str,
        add_special_tokens: bool,
    ) -> Result<(Vec<u32>, Vec<u32>)> {
        let alone = self.encode(before, add_special_tokens)?;
        let mut whole = self.encode(&format!("{before}{text}"), add_special_tokens)?;
        let shared = alone.iter().zip(&whole).take_while(|(a, b)| a == b).count();
        let rest = whole.split_off(shared);
        Ok((whole, rest))
    }

    /// Token ids of `text` where it follows `before`, whose own tokens are left out. Where a token would reach across the cut, `text`
    /// is tokenized alone.
    ///
    /// # Errors
    /// [`Error::Input`] when the tokenizer cannot encode the text.
    pub fn encode_after(&self, before: &str, text: &str) -> Result<Vec<u32>> {
        let (shared, rest) = self.encode_joint(before, text, false)?;
        if shared.len() == self.encode(before, false)?.len() {
            Ok(rest)
        } else {
            self.encode(text, false)
        }
    }

    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, add_special_tokens);
        let encoding = encoding.map_err(|e| refused(text, &e))?;
        let ids = encoding.get_ids();
        Ok(match self.kept_range(&encoding, add_special_tokens)? {
            (0, kept) => ids[..kept].to_vec(),
            (front, kept) => [&ids[..front - 1], &ids[front..kept]].concat(),
        })
    }

    fn encoding(&self, text: &str) -> Result<Encoding> {
        let encoding = self.inner.encode(text, true);
        encoding.map_err(|e| refused(text, &e))
    }

    /// The tokens of an encoding that are kept: those before the end that is returned, without the one before `first` where
    /// `first` is not 0. Tokens that the post-processor puts behind a text are left out, and so is the beginning-of-text token that
    /// it puts in front of a text that begins with it.
    fn kept_range(&self, encoding: &Encoding, add_special_tokens: bool) -> Result<(usize, usize)> {
        let len = encoding.get_ids().len();
        if !add_special_tokens {
            return Ok((0, len));
        }
        let mask = encoding.get_special_tokens_mask();
        let behind = mask.iter().rev().take_while(|added| **added == 1).count();
        if behind == len {
            // Only a longer text shows which of the added tokens stand in front.
            return Ok((0, front_len(&self.encoding("a")?).min(len)));
        }
        let (front, kept) = (front_len(encoding), len - behind);
        let twice =
            front > 0 && front < kept && Some(encoding.get_ids()[front]) == self.bos_in_front;
        Ok((if twice { front } else { 0 }, kept))
    }

    /// The token that ends a turn of a chat, if there is one of its own.
    pub(super) fn end_of_turn(&self) -> Option<u32> {
        end_of_turn_tokens(&self.inner).first().copied()
    }

    /// The error for a text at `place` with a token that the model has no embedding for.
    pub fn beyond_vocabulary(&self, id: u32, vocab_size: usize, place: &dyn Display) -> Error {
        let token = self.inner.id_to_token(id).unwrap_or_default();
        Error::input_hint(
            format!(
                "{place}: the text has the token `{token}` ({id}), and the model's embedding has {vocab_size} rows, none for it"
            ),
            "leave the token out of the text, or give it a row: `model.resize_token_embeddings(len(tokenizer))` in `transformers`",
        )
    }

    /// The text of the EOS token, empty if there is none.
    pub fn eos_text(&self) -> String {
        let token = self.eos_token_id.and_then(|id| self.inner.id_to_token(id));
        token.unwrap_or_default()
    }

    /// Text of token ids without special tokens. An unfinished UTF-8 sequence at the end becomes U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.inner.decode(ids, true).unwrap_or_default()
    }

    /// As [`Self::decode`], with special tokens.
    pub fn decode_with_special_tokens(&self, ids: &[u32]) -> String {
        self.inner.decode(ids, false).unwrap_or_default()
    }

    /// Text of one token, with byte-level escapes decoded. Empty for an unknown id.
    pub fn token_text(&self, id: u32) -> String {
        let text = self.inner.decode(&[id], false).unwrap_or_default();
        // Decoders for `▁` strip one space before the first word.
        match self
            .inner
            .id_to_token(id)
            .map(|token| token.replace('▁', " "))
        {
            Some(token) if token.strip_prefix(' ') == Some(&text) => token,
            _ => text,
        }
    }

    /// Size of the vocabulary, including added tokens.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}

/// The text of a special token in `config`, given as a string or an object with `content`.
pub(crate) fn special_token<'a>(config: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    let token = config.get(key)?;
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// The special tokens that a `tokenizer_config.json` names by their role, in lists, and by their id (`added_tokens_decoder`), in the
/// order in which `transformers` adds them.
fn special_tokens(config: &Map<String, Value>) -> Vec<AddedToken> {
    const LISTS: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];

    let by_id = config
        .get("added_tokens_decoder")
        .and_then(Value::as_object);
    let mut by_id: Vec<(u32, &Value)> = by_id
        .into_iter()
        .flatten()
        .filter_map(|(id, token)| Some((id.parse().ok()?, token)))
        .collect();
    by_id.sort_by_key(|(id, _)| *id);
    let by_id = by_id.into_iter().map(|(_, token)| token);
    let named = SPECIAL_TOKENS
        .into_iter()
        .filter_map(|role| config.get(role));
    // A list, or an object of roles.
    let lists = LISTS.into_iter().filter_map(|list| config.get(list));
    let listed = lists.flat_map(|list| -> Vec<&Value> {
        let items = list.as_array().into_iter().flatten();
        items
            .chain(list.as_object().into_iter().flat_map(Map::values))
            .collect()
    });
    let by_id = by_id.map(|token| (token, token.get("special") != Some(&Value::Bool(false))));
    let others = named.chain(listed).map(|token| (token, true));
    by_id
        .chain(others)
        .filter_map(|(token, is_special)| {
            let text = token.as_str().or_else(|| token.get("content")?.as_str());
            let flag = |name: &str| token.get(name).and_then(Value::as_bool) == Some(true);
            let added = AddedToken::from(text.filter(|text| !text.is_empty())?, is_special)
                .lstrip(flag("lstrip"))
                .rstrip(flag("rstrip"))
                .single_word(flag("single_word"))
                .normalized(flag("normalized"));
            Some(added)
        })
        .collect()
}

/// Whether a token is one of those beside the vocabulary already.
fn is_added(tokenizer: &Tokenizer, token: &str) -> bool {
    let id = tokenizer.token_to_id(token);
    id.is_some_and(|id| tokenizer.get_added_tokens_decoder().contains_key(&id))
}

/// The EOS tokens that `source` names.
fn eos_tokens(source: &Map<String, Value>, tokenizer: &Tokenizer) -> Vec<u32> {
    let by_text = special_token(source, "eos_token").and_then(|text| tokenizer.token_to_id(text));
    let by_id = match source.get("eos_token_id") {
        Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_u64).collect(),
        Some(one) => one.as_u64().into_iter().collect::<Vec<_>>(),
        None => Vec::new(),
    };
    let by_id = by_id.into_iter().filter_map(|id| u32::try_from(id).ok());
    by_text.into_iter().chain(by_id).collect()
}

/// The special tokens that end a turn of a chat.
fn end_of_turn_tokens(tokenizer: &Tokenizer) -> Vec<u32> {
    let added = tokenizer.get_added_tokens_decoder();
    let special = END_OF_TURN_TOKENS.iter().filter_map(|token| {
        let id = tokenizer.token_to_id(token)?;
        added.get(&id)?.special.then_some(id)
    });
    special.collect()
}

/// The number of tokens that the post-processor put in front.
fn front_len(encoding: &Encoding) -> usize {
    let mask = encoding.get_special_tokens_mask();
    mask.iter().take_while(|added| **added == 1).count()
}

fn refused(text: &str, reason: &tokenizers::Error) -> Error {
    Error::input(format!("the tokenizer cannot encode {text:?}: {reason}"))
}

/// Parses a `tokenizer.json`; the error is the reason why it is invalid.
///
/// `tokenizers` panics on some broken files, while parsing or on the first text: JSON that ends inside a decoder, a template with an
/// unknown token.
fn parse(json: &[u8]) -> Result<Tokenizer, String> {
    serde_json::from_slice::<serde::de::IgnoredAny>(json).map_err(|e| e.to_string())?;
    catch_panic::catch_panic(|| {
        let tokenizer = Tokenizer::from_bytes(json).map_err(|e| e.to_string())?;
        let trial = tokenizer.encode("a 1\n", true).map_err(|e| e.to_string())?;
        tokenizer
            .decode(trial.get_ids(), false)
            .map_err(|e| e.to_string())?;
        Ok(tokenizer)
    })
    .unwrap_or_else(|| Err("it is inconsistent".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tokenizer whose tokens are bytes, with the keys in `extra` replaced.
    fn byte_level(extra: &Value) -> TextTokenizer {
        let mut alphabet: Vec<char> = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet()
            .into_iter()
            .collect();
        alphabet.sort_unstable();
        let vocab: Map<String, Value> = alphabet
            .iter()
            .enumerate()
            .map(|(id, c)| (c.to_string(), id.into()))
            .collect();
        let mut json = serde_json::json!({
            "version": "1.0", "normalizer": null, "post_processor": null,
            "added_tokens": [{"id": 256, "content": "<|im_end|>", "single_word": false, "lstrip": false,
                              "rstrip": false, "normalized": false, "special": true}],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": vocab, "merges": []},
        });
        for (key, value) in extra.as_object().unwrap() {
            json[key] = value.clone();
        }
        let config: Map<String, Value> =
            serde_json::from_str(r#"{"eos_token": {"content": "a"}}"#).unwrap();
        let generation: Map<String, Value> =
            serde_json::from_str(r#"{"eos_token_id": [9, 3]}"#).unwrap();
        TextTokenizer::new(
            Path::new("t"),
            &serde_json::to_vec(&json).unwrap(),
            config,
            &[&generation],
        )
        .unwrap()
    }

    #[test]
    fn truncation_and_padding_in_the_file_are_ignored() {
        let tokenizer = byte_level(&serde_json::json!({
            "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                        "pad_type_id": 0, "pad_token": "!"},
        }));
        assert_eq!(tokenizer.encode_prompt("abcd").unwrap().len(), 4);
        assert_eq!(tokenizer.encode_rendered("a").unwrap().len(), 1);
    }

    #[test]
    fn eos_tokens_come_from_every_configuration_and_the_end_of_turn_tokens() {
        let tokenizer = byte_level(&serde_json::json!({}));
        let a = tokenizer.inner.token_to_id("a").unwrap();
        assert_eq!(tokenizer.eos_token_ids, [3, 9, a, 256]);
    }

    #[test]
    fn half_a_character_is_shown_as_the_replacement_character() {
        let tokenizer = byte_level(&serde_json::json!({}));
        let ids = tokenizer.encode_prompt(" é").unwrap();
        assert_eq!(ids.len(), 3);
        assert_eq!(tokenizer.token_text(ids[0]), " ");
        assert_eq!(tokenizer.token_text(ids[1]), "\u{fffd}");
        assert_eq!(tokenizer.token_text(256), "<|im_end|>");
        assert_eq!(tokenizer.token_text(100_000), "");
        assert_eq!(tokenizer.decode(&ids), " é");
        assert_eq!(tokenizer.decode(&ids[..2]), " \u{fffd}");
    }

    #[test]
    fn a_file_on_which_the_library_panics_is_refused() {
        let template = serde_json::json!({"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
            "decoder": null, "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
            "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "none", "type_id": 0}}],
                               "pair": [], "special_tokens": {}}});
        for json in [
            r#"{"version": "1.0", "decoder": {"type": "#.to_owned(),
            template.to_string(),
        ] {
            let Err(error) =
                TextTokenizer::new(Path::new("t.json"), json.as_bytes(), Map::new(), &[])
            else {
                panic!("{json} was accepted")
            };
            assert_eq!(error.exit_code(), 1);
        }
    }
}

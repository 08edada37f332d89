//! The tokenizer of a model, with the special tokens of its configuration.

use std::{ops::Range, path::Path};

use serde_json::{Map, Value};
use tokenizers::Tokenizer;

use super::config::ModelConfig;
use crate::{Error, Result, catch_panic};

/// End-of-turn tokens in the chat formats of the supported families.
const END_OF_TURN_TOKENS: [&str; 3] = ["<|im_end|>", "<|eot_id|>", "<|eom_id|>"];

/// A tokenizer with its `tokenizer_config.json`.
#[derive(Clone)]
pub struct TextTokenizer {
    /// The tokenizer itself, as in `tokenizer.json`.
    pub inner: Tokenizer,
    /// `tokenizer_config.json`.
    pub config_json: Map<String, Value>,
    /// Tokens that end a text: EOS and end of turn.
    pub eos_token_ids: Vec<u32>,
}

impl TextTokenizer {
    /// Makes a tokenizer from the bytes of `tokenizer.json`, `tokenizer_config.json` (`eos_token`) and model configurations
    /// (`eos_token_id`).
    ///
    /// # Errors
    /// [`Error::BrokenModel`] when `tokenizer_json` (the content of `path`) is not a tokenizer.
    pub fn new(
        path: &Path,
        tokenizer_json: &[u8],
        config_json: Map<String, Value>,
        model_configs: &[&Map<String, Value>],
    ) -> Result<Self> {
        let mut inner = parse(tokenizer_json)
            .map_err(|reason| Error::broken(path, format!("not a tokenizer: {reason}")))?;
        // The trainer alone truncates and pads rows.
        inner
            .with_truncation(None)
            .map_err(|e| Error::broken(path, e.to_string()))?
            .with_padding(None);

        let mut end_tokens: Vec<u32> = model_configs
            .iter()
            .filter_map(|config| config.get("eos_token_id"))
            .flat_map(|eos| match eos {
                Value::Array(ids) => ids.iter().filter_map(Value::as_u64).collect(),
                one => one.as_u64().into_iter().collect::<Vec<_>>(),
            })
            .filter_map(|id| u32::try_from(id).ok())
            .collect();
        // A token is its text, or an object that contains it.
        let eos = config_json
            .get("eos_token")
            .and_then(|t| t.as_str().or_else(|| t.get("content")?.as_str()));
        end_tokens.extend(eos.and_then(|token| inner.token_to_id(token)));
        let added = inner.get_added_tokens_decoder();
        end_tokens.extend(END_OF_TURN_TOKENS.iter().filter_map(|token| {
            let id = inner.token_to_id(token)?;
            added.get(&id)?.special.then_some(id)
        }));
        end_tokens.sort_unstable();
        end_tokens.dedup();
        Ok(Self {
            inner,
            config_json,
            eos_token_ids: end_tokens,
        })
    }

    /// Token ids of a text, with the special tokens that the tokenizer adds.
    ///
    /// # Errors
    /// [`Error::Input`] when the tokenizer cannot encode the text.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        self.encode(text, true)
    }

    /// As [`Self::encode_prompt`], with the position of each token in `text` (bytes; empty for an added special token).
    ///
    /// # Errors
    /// [`Error::Input`] when the tokenizer cannot encode the text.
    pub fn encode_prompt_with_offsets(&self, text: &str) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
        let encoding = self
            .inner
            .encode(text, true)
            .map_err(|e| refused(text, &e))?;
        let offsets = encoding.get_offsets().iter().map(|(a, b)| *a..*b);
        Ok((encoding.get_ids().to_vec(), offsets.collect()))
    }

    /// Token ids of a text that follows another, without added special tokens.
    ///
    /// # Errors
    /// [`Error::Input`] when the tokenizer cannot encode the text.
    pub fn encode_continuation(&self, text: &str) -> Result<Vec<u32>> {
        self.encode(text, false)
    }

    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        self.inner
            .encode_fast(text, add_special_tokens)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|e| refused(text, &e))
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
        // Decoders for `▁` strip the white space before the first word.
        match self.inner.id_to_token(id) {
            Some(token) if token.starts_with('▁') && !text.starts_with(' ') => format!(" {text}"),
            _ => text,
        }
    }

    /// Size of the vocabulary, including added tokens.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The largest token id, if there are tokens.
    pub(super) fn max_token_id(&self) -> Option<u32> {
        self.inner.get_vocab(true).into_values().max()
    }
}

/// An error if the tokenizer (the content of `path`) has an id beyond the rows of the embedding.
pub(super) fn check_vocabulary(
    tokenizer: &TextTokenizer,
    config: &ModelConfig,
    path: &Path,
) -> Result<()> {
    match tokenizer.max_token_id() {
        Some(id) if id as usize >= config.vocab_size => Err(Error::broken(
            path,
            format!(
                "the tokenizer has a token {id}, but the embedding has only {} rows",
                config.vocab_size
            ),
        )),
        _ => Ok(()),
    }
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
        assert_eq!(tokenizer.encode_continuation("a").unwrap().len(), 1);
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

//! What shows the kind of a tokenizer: how it splits a sample, and its merges.

use serde_json::Value as Json;
use tokenizers::{
    NormalizedString, Normalizer as _, NormalizerWrapper, OffsetReferential, OffsetType,
    PreTokenizedString, PreTokenizer as _, PreTokenizerWrapper,
};

/// A text that the pre-tokenizers split differently: numbers, contractions, white space, signs, scripts, combining marks.
pub(super) const SAMPLE: &str = "I'll they've CAN'T 'S 1 12 1234567 3rd x2y ½ ² ٣٤ １２\n\n  a \t\r\n b   c fn(x){return -1;} // don't \
    e\u{301} 你好，世界 Привет שלום नमस्ते 👩‍👩‍👧 \u{a0}— “…” €\n";

/// The words of [`SAMPLE`]; `None` if it cannot be split.
pub(super) fn splits(
    normalizer: Option<&NormalizerWrapper>,
    pre_tokenizer: Option<&PreTokenizerWrapper>,
) -> Option<Vec<String>> {
    let mut text = NormalizedString::from(SAMPLE);
    if let Some(normalizer) = normalizer {
        normalizer.normalize(&mut text).ok()?;
    }
    let mut text = PreTokenizedString::from(text);
    if let Some(pre_tokenizer) = pre_tokenizer {
        pre_tokenizer.pre_tokenize(&mut text).ok()?;
    }
    let splits = text.get_splits(OffsetReferential::Normalized, OffsetType::None);
    Some(
        splits
            .into_iter()
            .map(|(split, ..)| split.to_owned())
            .collect(),
    )
}

/// The merges of a BPE, in order: pairs, or texts with a space between the two.
pub(super) fn merge_pairs(model: &Json) -> Vec<[&str; 2]> {
    fn pair(merge: &Json) -> Option<[&str; 2]> {
        match merge {
            Json::Array(pair) => Some([pair.first()?.as_str()?, pair.get(1)?.as_str()?]),
            merge => merge.as_str()?.split_once(' ').map(<[&str; 2]>::from),
        }
    }
    let merges = model["merges"].as_array().into_iter().flatten();
    merges.filter_map(pair).collect()
}

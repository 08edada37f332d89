//! What the kinds of tokenizers in a GGUF file have in common.

use serde_json::Value;

/// Token types of `tokenizer.ggml.token_type`.
pub(super) const NORMAL: u64 = 1;
pub(super) const CONTROL: u64 = 3;
pub(super) const USER_DEFINED: u64 = 4;
pub(super) const UNUSED: u64 = 5;

/// The parts of a `tokenizer.json` in which the kinds of tokenizers differ.
pub(super) struct Parts {
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    pub(super) decoder: Value,
    pub(super) model: Value,
    /// Whether a text begins with BOS if the file does not say.
    pub(super) add_bos: bool,
    /// The post-processor where no token is added.
    pub(super) plain_post_processor: Value,
}

//! What the kinds of tokenizers in a GGUF file have in common.

use serde_json::Value;

/// Token types of `tokenizer.ggml.token_type`.
pub(super) const NORMAL: u64 = 1;
pub(super) const UNKNOWN: u64 = 2;
pub(super) const CONTROL: u64 = 3;
pub(super) const USER_DEFINED: u64 = 4;
pub(super) const UNUSED: u64 = 5;
pub(super) const BYTE: u64 = 6;

/// The key of the chat template; that of another one has its name behind a dot.
pub(super) const CHAT_TEMPLATE: &str = "tokenizer.chat_template";
/// The key of the names of the others.
pub(super) const CHAT_TEMPLATES: &str = "tokenizer.chat_templates";
/// The name that the first one has among several.
pub(super) const DEFAULT_TEMPLATE: &str = "default";

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

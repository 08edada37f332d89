//! A model in memory.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::{config::ModelConfig, dtype::Dtype, params::Params, tokenizer::TextTokenizer};

/// A loaded model: configuration, weights in f32, tokenizer, and the files that are written back with it.
#[derive(Clone)]
pub struct Model {
    /// The name by which it was loaded.
    pub name: String,
    /// The directory or file from which it was read.
    pub path: PathBuf,
    /// SHA-256 (hex) over its files, for caches and records.
    pub checksum: String,
    /// Architecture.
    pub config: ModelConfig,
    /// Weights.
    pub params: Params,
    /// Tokenizer.
    pub tokenizer: TextTokenizer,
    /// The dtype it was stored in (F32 for a quantised GGUF).
    pub dtype: Dtype,
    /// The type of the stored weights, such as `bf16` or `Q4_1`; the most frequent one if there are several.
    pub quantization: &'static str,
    /// The model's id on the Hugging Face hub, if it was loaded by that id or by a name in the registry.
    pub hub_id: Option<String>,
    /// `config.json` as read, or as made from GGUF metadata. Only its dtype is changed when the model is saved.
    pub config_json: Map<String, Value>,
    /// `generation_config.json`, if there is one.
    pub generation_config_json: Option<Map<String, Value>>,
}

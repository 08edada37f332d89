//! Models: configuration, weights and tokenizer, in from Hugging Face directories and GGUF files, out as either.

use std::path::{Path, PathBuf};

pub mod buffer;
pub mod config;
mod directory;
mod files;
mod gguf;
pub mod params;
mod safetensors;
mod save;
mod source;
pub mod tokenizer;
mod weights;

pub use buffer::Buffer;
pub use config::{Family, ModelConfig};
pub use params::{Layout, LinearInput, Params};
pub(crate) use save::{write_json, write_weights};
use source::ModelSource;
pub use source::pull;
pub use tokenizer::TextTokenizer;

use crate::{Error, Result};

/// The type of the weights in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// 16-bit brain float.
    Bf16,
}

impl Dtype {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Its short name, such as `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// Its name in `torch` and `config.json`.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }
}

/// The type of the matrices in a GGUF file; vectors are in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufType {
    /// 32-bit float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// 16-bit brain float.
    Bf16,
    /// Blocks of 32 numbers of 8 bits, with a scale.
    Q8_0,
    /// Blocks of 32 numbers of 4 bits, with a scale; embedding and head as [`GgufType::Q8_0`].
    Q4_0,
}

/// A model as loaded: shape, weights in f32, tokenizer, and what is needed to write it back.
#[derive(Clone)]
pub struct Model {
    /// What the user called it.
    pub name: String,
    /// The directory or file that it was read from.
    pub path: PathBuf,
    /// SHA-256 (hex) over the weights and tokenizer files, for caches and records.
    pub checksum: String,
    /// Its shape.
    pub config: ModelConfig,
    /// Its weights.
    pub params: Params,
    /// Its tokenizer.
    pub tokenizer: TextTokenizer,
    /// The dtype it was stored in (F32 for a quantised GGUF).
    pub dtype: Dtype,
    /// The type of its stored weights, as `bf16` or `Q4_1`; of several, the one of most weights.
    pub quantization: &'static str,
    /// The model's id on the Hugging Face hub, if it was loaded by that id or by a name in the registry.
    pub hub_id: Option<String>,
    /// `config.json` as read (or as made from a GGUF's metadata), written back unchanged but for `dtype`.
    pub config_json: serde_json::Map<String, serde_json::Value>,
    /// `generation_config.json`, where there is one.
    pub generation_config_json: Option<serde_json::Map<String, serde_json::Value>>,
}

impl Model {
    /// Loads a Hugging Face directory, a `.gguf` file, a name in the registry or a hub id.
    ///
    /// ```
    /// use unforget::model::{Dtype, Model};
    ///
    /// let model = Model::load("tests/golden/llama")?;
    /// let place = tempfile::tempdir()?;
    /// model.save(place.path(), Dtype::F32)?;
    /// let again = Model::load(&place.path().display().to_string())?;
    /// assert!(again.params.data[..] == model.params.data[..]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`crate::Error::Input`] when there is no such model or its architecture is not supported,
    /// [`crate::Error::BrokenModel`] when a file is truncated or lies.
    pub fn load(spec: &str) -> Result<Self> {
        let ModelSource { path, hub_id } = source::find(spec)?;
        let mut model = if path.is_dir() {
            directory::load(spec, &path)
        } else {
            gguf::load(spec, &path)
        }?;
        model.hub_id = hub_id;
        Ok(model)
    }

    /// Writes a Hugging Face directory that `transformers` loads as it is.
    ///
    /// # Errors
    /// When `dir` cannot be written.
    pub fn save(&self, dir: &Path, dtype: Dtype) -> Result<()> {
        save::save(self, dir, dtype)
    }

    /// Writes a GGUF file that llama.cpp loads. Matrices whose rows are no whole number of blocks are in f16.
    ///
    /// # Errors
    /// When the tokenizer is not a byte-level BPE that GGUF has a name for, or `path` cannot be written.
    pub fn save_gguf(&self, path: &Path, dtype: GgufType) -> Result<()> {
        gguf::save(self, path, dtype)
    }
}

/// An error if the tokenizer (the content of `path`) knows an id that the embedding has no row for.
fn check_vocabulary(tokenizer: &TextTokenizer, config: &ModelConfig, path: &Path) -> Result<()> {
    match tokenizer.max_token_id() {
        Some(id) if id as usize >= config.vocab_size => Err(Error::broken(
            path,
            format!(
                "the tokenizer has a token {id}, the embedding only {} rows",
                config.vocab_size
            ),
        )),
        _ => Ok(()),
    }
}

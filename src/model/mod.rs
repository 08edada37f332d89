//! Models: configuration, weights and tokenizer; read from and written to Hugging Face directories and GGUF files.

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

use crate::{Error, Result, config::ModelSize};

/// The dtype of weights in a file.
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

/// The type of matrices in a GGUF file; vectors are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufType {
    /// 32-bit float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// 16-bit brain float.
    Bf16,
    /// Blocks of 32 weights of 8 bits with a scale.
    Q8_0,
    /// Blocks of 32 weights of 4 bits with a scale; embedding and head are [`GgufType::Q8_0`].
    Q4_0,
}

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
    pub config_json: serde_json::Map<String, serde_json::Value>,
    /// `generation_config.json`, if there is one.
    pub generation_config_json: Option<serde_json::Map<String, serde_json::Value>>,
}

impl Model {
    /// The figures that presets of a config depend on.
    pub fn size(&self) -> ModelSize {
        ModelSize {
            num_hidden_layers: self.config.num_hidden_layers,
            parameters: self.params.layout.len,
        }
    }

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
    /// [`crate::Error::BrokenModel`] when a file is truncated or inconsistent.
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

    /// Writes a Hugging Face directory, which `transformers` loads.
    ///
    /// # Errors
    /// When `dir` cannot be written.
    pub fn save(&self, dir: &Path, dtype: Dtype) -> Result<()> {
        save::save(self, dir, dtype)
    }

    /// Writes a GGUF file, which llama.cpp loads. Matrices whose rows are not a whole number of blocks are f16.
    ///
    /// # Errors
    /// When GGUF has no name for the tokenizer's pre-tokenizer, or `path` cannot be written.
    pub fn save_gguf(&self, path: &Path, dtype: GgufType) -> Result<()> {
        gguf::save(self, path, dtype)
    }
}

/// An error if the tokenizer (the content of `path`) has an id beyond the rows of the embedding.
fn check_vocabulary(tokenizer: &TextTokenizer, config: &ModelConfig, path: &Path) -> Result<()> {
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

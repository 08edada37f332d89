//! Models: configuration, weights and tokenizer; read from and written to Hugging Face directories and GGUF files.

use std::path::Path;

pub mod buffer;
pub mod config;
mod directory;
mod dtype;
mod files;
mod gguf;
pub mod params;
mod pretrained;
mod safetensors;
mod save;
mod source;
pub mod tokenizer;
mod weights;

pub use buffer::Buffer;
pub use config::{Family, ModelConfig};
pub use dtype::{Dtype, GgufType};
pub use params::{Layout, LinearInput, Params};
pub use pretrained::Model;
pub(crate) use save::{write_json, write_weights};
use source::ModelSource;
pub use source::pull;
pub use tokenizer::TextTokenizer;

use crate::{Result, config::ModelSize};

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

impl TextTokenizer {
    /// Loads the tokenizer of a model, named as for [`Model::load`], without its weights.
    ///
    /// ```
    /// use unforget::model::TextTokenizer;
    ///
    /// let tokenizer = TextTokenizer::load("tests/golden/llama")?;
    /// let ids = tokenizer.encode_prompt("Where is Rome?")?;
    /// assert_eq!(tokenizer.decode(&ids), "Where is Rome?");
    /// # Ok::<(), unforget::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Model::load`], except for faults of weights.
    pub fn load(spec: &str) -> Result<Self> {
        let path = pull(spec)?;
        if path.is_dir() {
            directory::tokenizer(&path)
        } else {
            gguf::tokenizer(&path)
        }
    }
}

//! Models: configuration, weights and tokenizer; read from and written to Hugging Face directories and GGUF files.

use std::path::Path;

use serde_json::Value;

pub mod buffer;
pub mod config;
mod config_reader;
mod directory;
mod dropout;
mod dtype;
mod files;
mod frozen;
mod gguf;
pub mod params;
pub(crate) mod peft;
mod pretrained;
mod quantized;
mod rope_config;
mod safetensors;
mod save;
mod source;
mod tensor;
pub mod tokenizer;
mod weights;

pub use buffer::{Buffer, BufferVersion};
pub use config::{Family, ModelConfig};
pub use dropout::Dropout;
pub use dtype::{Dtype, GgufType, WeightStorage};
pub use frozen::{Frozen, FrozenMatrix};
pub use params::{Layout, LinearInput, LowRank, LowRankTarget, Params, Weights};
use peft::{Adapter, Base};
pub use pretrained::Model;
pub(crate) use save::{write_json, write_weights};
use source::ModelSource;
pub use source::{pull, terms_of_use};
pub use tokenizer::TextTokenizer;

use crate::{Result, config::ModelSize, system::total_memory_bytes};

impl Model {
    /// The figures that presets of a config depend on.
    pub fn size(&self) -> ModelSize {
        ModelSize {
            num_hidden_layers: self.config.num_hidden_layers,
            parameters: self.params.layout.len,
        }
    }

    /// Loads a Hugging Face directory, a `.gguf` file, a PEFT adapter with its base, a name in the registry or a hub id. A model that does
    /// not fit in memory in f32 is used as it is stored.
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
        let storage = if fits_in_f32(spec) {
            WeightStorage::F32
        } else {
            WeightStorage::Stored
        };
        Self::load_as(spec, storage)
    }

    /// [`Model::load`] with matrices that are held otherwise than in f32, and cannot be trained. An adapter then lies beside them.
    ///
    /// # Errors
    /// Those of [`Model::load`].
    pub fn load_as(spec: &str, storage: WeightStorage) -> Result<Self> {
        let ModelSource { path, hub_id } = source::find(spec)?;
        let mut model = if peft::is_adapter(&path) {
            Self::load_adapter(spec, &path, storage)?
        } else if path.is_dir() {
            directory::load(spec, &path, storage)?
        } else {
            gguf::load(spec, &path, storage)?
        };
        model.hub_id = hub_id.or(model.hub_id);
        Ok(model)
    }

    /// Loads the base model of the PEFT adapter in `dir`, and merges the adapter onto it, or leaves it beside matrices that are not in f32.
    fn load_adapter(name: &str, dir: &Path, storage: WeightStorage) -> Result<Self> {
        let adapter = Adapter::open(dir)?;
        let base = match adapter.base()? {
            Base::SameDirectory => directory::load(name, dir, storage)?,
            Base::Named(base) => {
                let model = Self::load_as(&base, storage);
                model.map_err(|error| adapter.without_base(&base, error))?
            }
        };
        let with_adapter = match storage {
            WeightStorage::F32 => adapter.merge(base)?,
            WeightStorage::Stored | WeightStorage::Quantized(_) => adapter.beside(base)?,
        };
        Ok(Self {
            name: name.to_owned(),
            path: dir.to_owned(),
            ..with_adapter
        })
    }

    /// Makes `token` one of the tokens that end a generated text, in `generation_config.json`.
    pub fn add_eos_token(&mut self, token: u32) {
        let config = &self.config_json;
        let mut generation = self.generation_config_json.take().unwrap_or_else(|| {
            // Without this file `transformers` reads them from `config.json`.
            let keys = ["bos_token_id", "eos_token_id", "pad_token_id"];
            let given = keys.into_iter().filter_map(|key| config.get_key_value(key));
            given.map(|(key, id)| (key.clone(), id.clone())).collect()
        });
        let mut ids = match generation.remove("eos_token_id") {
            Some(Value::Array(ids)) => ids,
            Some(id) if id.is_u64() => vec![id],
            _ => self
                .tokenizer
                .eos_token_id
                .map(Value::from)
                .into_iter()
                .collect(),
        };
        if !ids.contains(&token.into()) {
            ids.push(token.into());
        }
        generation.insert("eos_token_id".into(), ids.into());
        self.generation_config_json = Some(generation);
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

/// Whether the weights of a model, or of the base of an adapter, fit in the memory of this machine in f32. Also true where that cannot be
/// told: loading says what is wrong.
fn fits_in_f32(spec: &str) -> bool {
    let Ok(ModelSource { path, .. }) = source::find(spec) else {
        return true;
    };
    let config = if path.is_dir() {
        if let Ok(Base::Named(base)) = Adapter::open(&path).and_then(|adapter| adapter.base()) {
            return fits_in_f32(&base);
        }
        directory::config(&path)
    } else {
        gguf::config(&path)
    };
    let bytes = config.map(|config| (Layout::new(&config).len * size_of::<f32>()) as u64);
    match (bytes, total_memory_bytes()) {
        (Ok(bytes), Some(machine)) => bytes <= machine,
        _ => true,
    }
}

/// Writes the LoRA adapter in the PEFT directory `dir`, of a model of this shape, as a GGUF file, which llama.cpp adds to its base model.
///
/// # Errors
/// [`crate::Error::Input`] for `dora`, which GGUF has no form for; when a file cannot be read or written.
pub fn save_adapter_gguf(config: &ModelConfig, dir: &Path, path: &Path) -> Result<()> {
    gguf::save_adapter(config, dir, path)
}

impl ModelConfig {
    /// Loads the configuration of a model, named as for [`Model::load`], without its weights.
    ///
    /// # Errors
    /// As [`Model::load`], except for faults of weights and tokenizer.
    pub fn load(spec: &str) -> Result<Self> {
        let path = pull(spec)?;
        if peft::is_adapter(&path) {
            let adapter = Adapter::open(&path)?;
            match adapter.base()? {
                Base::SameDirectory => directory::config(&path),
                Base::Named(base) => {
                    Self::load(&base).map_err(|error| adapter.without_base(&base, error))
                }
            }
        } else if path.is_dir() {
            directory::config(&path)
        } else {
            gguf::config(&path)
        }
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
        if peft::is_adapter(&path) {
            let adapter = Adapter::open(&path)?;
            match adapter.base()? {
                Base::SameDirectory => directory::tokenizer(&path),
                Base::Named(base) => {
                    let without_base = |error| adapter.without_base(&base, error);
                    let base_path = pull(&base).map_err(without_base)?;
                    match adapter.tokenizer(&base_path)? {
                        Some(tokenizer) => Ok(tokenizer),
                        None => Self::load(&base).map_err(without_base),
                    }
                }
            }
        } else if path.is_dir() {
            directory::tokenizer(&path)
        } else {
            gguf::tokenizer(&path)
        }
    }
}

//! Loads GGUF files (metadata as `config.json`, tokenizer, weights dequantised to f32) and writes them.

use std::{path::Path, sync::Arc};

use serde_json::{Map, Value};

use self::files::GgufFile;
use super::{Dtype, Model, ModelConfig, TextTokenizer, WeightStorage, tensor::TensorSource};
use crate::{Result, hub::checksum};

mod blocks;
mod config;
mod files;
mod header;
mod pre_tokenizer;
mod sentencepiece;
mod tokenizer;
mod tokenizer_parts;
mod weights;
mod write;

pub(super) use write::{save, save_adapter};

/// The tokenizer in the GGUF file `path`. Weights are not read.
pub(super) fn tokenizer(path: &Path) -> Result<TextTokenizer> {
    let files = files::open(path)?;
    let header = files::header(&files)?;
    let config_json = config::config_json(&header, None)?;
    tokenizer_of(&header, &config_json, path)
}

/// The configuration of the model in the GGUF file `path`.
pub(super) fn config(path: &Path) -> Result<ModelConfig> {
    let files = files::open(path)?;
    let header = files::header(&files)?;
    let rope_factors = weights::rope_factors(&header, &files);
    ModelConfig::from_json(
        &config::config_json(&header, rope_factors.as_deref())?,
        path,
    )
}

fn tokenizer_of(
    header: &header::Header,
    config_json: &Map<String, Value>,
    path: &Path,
) -> Result<TextTokenizer> {
    let (json, tokenizer_config) = tokenizer::tokenizer_json(header)?;
    let json = serde_json::to_vec(&json).expect("a JSON value can be written");
    let generation = config::generation_config_json(header, config_json)?;
    TextTokenizer::new(path, &json, tokenizer_config, &[&generation, config_json])
}

/// Loads the GGUF file `path`.
pub(super) fn load(name: &str, path: &Path, storage: WeightStorage) -> Result<Model> {
    let files: Arc<[GgufFile]> = files::open(path)?.into();
    let header = files::header(&files)?;
    let rope_factors = weights::rope_factors(&header, &files);
    let config_json = config::config_json(&header, rope_factors.as_deref())?;
    let config = ModelConfig::from_json(&config_json, path)?;
    let source = Arc::new(weights::Weights::new(&header, &files, &config)?);
    let quantization = source.quantization();
    let source: Arc<dyn TensorSource> = source;
    let generation_config_json = config::generation_config_json(&header, &config_json)?;
    let tokenizer = tokenizer_of(&header, &config_json, path)?;

    let (params, checksum) = rayon::join(
        || super::weights::read(&source, &config, path, storage),
        || {
            let parts: Vec<(&str, &[u8])> =
                files.iter().map(|file| ("gguf", &file.map[..])).collect();
            checksum::of_parts(&parts)
        },
    );
    Ok(Model {
        name: name.to_owned(),
        path: path.to_owned(),
        checksum,
        config,
        params: params?,
        tokenizer,
        dtype: Dtype::F32,
        quantization,
        hub_id: None,
        config_json,
        generation_config_json: Some(generation_config_json),
    })
}

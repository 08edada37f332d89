//! Loads GGUF files (metadata as `config.json`, tokenizer, weights dequantised to f32) and writes them.

use std::path::Path;

use serde_json::{Map, Value};

use super::{Dtype, Model, ModelConfig, TextTokenizer, tokenizer::check_vocabulary};
use crate::{Result, file_map::FileMap, hub::checksum};

mod blocks;
mod config;
mod header;
mod tokenizer;
mod weights;
mod write;

pub(super) use write::save;

/// The tokenizer in the GGUF file `path`. Weights are not read.
pub(super) fn tokenizer(path: &Path) -> Result<TextTokenizer> {
    let map = FileMap::open(path)?;
    let header = header::Header::parse(path, &map)?;
    let config_json = config::config_json(&header, None)?;
    let config = ModelConfig::from_json(&config_json, path)?;
    tokenizer_of(&header, &config_json, &config, path)
}

fn tokenizer_of(
    header: &header::Header,
    config_json: &Map<String, Value>,
    config: &ModelConfig,
    path: &Path,
) -> Result<TextTokenizer> {
    let (json, tokenizer_config) = tokenizer::tokenizer_json(header)?;
    let json = serde_json::to_vec(&json).expect("a JSON value can be written");
    let tokenizer = TextTokenizer::new(path, &json, tokenizer_config, &[config_json])?;
    check_vocabulary(&tokenizer, config, path)?;
    Ok(tokenizer)
}

/// Loads the GGUF file `path`.
pub(super) fn load(name: &str, path: &Path) -> Result<Model> {
    let map = FileMap::open(path)?;
    let header = header::Header::parse(path, &map)?;
    let rope_factors = weights::rope_factors(&header, &map);
    let config_json = config::config_json(&header, rope_factors.as_deref())?;
    let config = ModelConfig::from_json(&config_json, path)?;
    let source = weights::Weights::new(&header, &map, &config)?;
    let generation_config_json = config::generation_config_json(&config_json);
    let tokenizer = tokenizer_of(&header, &config_json, &config, path)?;

    let (params, checksum) = rayon::join(
        || super::weights::read(&source, &config, path),
        || checksum::of_parts(&[("gguf", &map)]),
    );
    Ok(Model {
        name: name.to_owned(),
        path: path.to_owned(),
        checksum,
        config,
        params: params?,
        tokenizer,
        dtype: Dtype::F32,
        quantization: source.quantization(),
        hub_id: None,
        config_json,
        generation_config_json: Some(generation_config_json),
    })
}

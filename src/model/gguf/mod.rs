//! A GGUF file, in: metadata to `config.json`, the tokenizer inside, and weights dequantised to f32; and out.

use std::path::Path;

use super::{Dtype, Model, ModelConfig, TextTokenizer, checksum, map::FileMap};
use crate::Result;

mod config;
mod header;
mod tokenizer;
mod weights;
mod write;

pub(super) use write::save;

/// Loads the GGUF file `path`.
pub(super) fn load(name: &str, path: &Path) -> Result<Model> {
    let map = FileMap::open(path)?;
    let header = header::Header::parse(path, &map)?;
    let rope_factors = weights::rope_factors(&header, &map)?;
    let config_json = config::config_json(&header, rope_factors.as_deref())?;
    let config = ModelConfig::from_json(&config_json, path)?;
    let source = weights::Weights::new(&header, &map, &config)?;
    let generation_config_json = config::generation_config_json(&config_json);

    let (tokenizer_json, tokenizer_config) = tokenizer::tokenizer_json(&header)?;
    let tokenizer_json = serde_json::to_vec(&tokenizer_json).expect("a JSON value can be written");
    let tokenizer = TextTokenizer::new(path, &tokenizer_json, tokenizer_config, &[&config_json])?;
    super::check_vocabulary(&tokenizer, &config, path)?;

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
        config_json,
        generation_config_json: Some(generation_config_json),
    })
}

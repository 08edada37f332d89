//! Models of the Hugging Face hub, into the cache that `transformers` shares.

use std::path::PathBuf;

use hf_hub::api::sync::{ApiBuilder, ApiError};

use crate::{Error, Result};

/// Files that are of use, where a repository has them.
const SMALL_FILES: [&str; 5] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
];

/// The directory of the snapshot of `id` (`organisation/name`).
pub(super) fn pull(id: &str) -> Result<PathBuf> {
    if let Some(snapshot) = cached(id) {
        return Ok(snapshot);
    }
    let api = ApiBuilder::from_env().build().map_err(|e| failed(id, &e))?;
    let repository = api.model(id.to_owned());
    let info = repository.info().map_err(|e| failed(id, &e))?;
    let present = |name: &str| info.siblings.iter().any(|file| file.rfilename == name);
    if !present("config.json") {
        return Err(Error::input_hint(
            format!("the hub's `{id}` has no config.json"),
            "of a repository of GGUF files, download one and name it",
        ));
    }
    let weights: Vec<&str> = if present("model.safetensors") {
        vec!["model.safetensors"]
    } else {
        info.siblings
            .iter()
            .map(|file| file.rfilename.as_str())
            .filter(|name| {
                !name.contains('/') && name.starts_with("model") && name.contains(".safetensors")
            })
            .collect()
    };
    if weights.is_empty() {
        return Err(Error::input(format!(
            "the hub's `{id}` has no safetensors weights"
        )));
    }
    let mut snapshot = None;
    for name in SMALL_FILES
        .into_iter()
        .filter(|name| present(name))
        .chain(weights)
    {
        let path = repository.get(name).map_err(|e| failed(id, &e))?;
        snapshot = path.parent().map(PathBuf::from);
    }
    snapshot.ok_or_else(|| Error::input(format!("the hub's `{id}` is empty")))
}

/// The snapshot of `id` in the cache, if it is whole: the weights come last.
fn cached(id: &str) -> Option<PathBuf> {
    let repository = hf_hub::Cache::from_env().model(id.to_owned());
    let config = repository.get("config.json")?;
    repository.get("tokenizer.json")?;
    let directory = config.parent()?.to_owned();
    if repository.get("model.safetensors").is_some() {
        return Some(directory);
    }
    let index = super::files::read_json(&repository.get("model.safetensors.index.json")?).ok()?;
    let shards = index.get("weight_map")?.as_object()?;
    shards
        .values()
        .all(|shard| {
            shard
                .as_str()
                .is_some_and(|name| repository.get(name).is_some())
        })
        .then_some(directory)
}

/// What a failed request means to the user.
fn failed(id: &str, error: &ApiError) -> Error {
    let status = match error {
        ApiError::RequestError(e) => match **e {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        _ => None,
    };
    match status {
        Some(401 | 403) => Error::input_hint(
            format!("the hub has no model `{id}`, or keeps it behind a licence, and there is no such directory here"),
            "a gated model needs its licence accepted on its page and a token in HF_TOKEN",
        ),
        Some(404) => Error::input_hint(
            format!("the hub has no model `{id}`, and there is no such directory here"),
            "a model is a Hugging Face directory, a .gguf file, a hub id or a name of the catalogue",
        ),
        _ => Error::Failed {
            message: format!("`{id}` is no directory here, and bringing it from the hub failed: {error}"),
            hint: Some("check the network and HF_ENDPOINT, or name a directory or .gguf file that is already here".into()),
        },
    }
}

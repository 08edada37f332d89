//! Loads Hugging Face directories.

use std::{fs, path::Path, sync::Arc};

use serde_json::{Map, Value, json};

use super::{
    Model, ModelConfig, TextTokenizer, WeightStorage, files, safetensors::Weights,
    tensor::TensorSource, weights,
};
use crate::{
    Error, Result,
    hub::{self, checksum},
};

/// The key of the end-of-text token.
const EOS_TOKEN: &str = "eos_token";

/// The files of a model directory besides its weights.
struct ModelFiles {
    config: ModelConfig,
    config_json: Map<String, Value>,
    generation_config_json: Option<Map<String, Value>>,
    tokenizer: TextTokenizer,
    tokenizer_json: Vec<u8>,
}

/// The tokenizer of the model in `dir`. Weights are not read.
pub(super) fn tokenizer(dir: &Path) -> Result<TextTokenizer> {
    Ok(read_model_files(dir)?.tokenizer)
}

/// The configuration of the model in `dir`.
pub(super) fn config(dir: &Path) -> Result<ModelConfig> {
    let path = dir.join("config.json");
    ModelConfig::from_json(&files::read_json(&path)?, &path)
}

/// Reads `config.json`, `tokenizer.json` and the optional files.
fn read_model_files(dir: &Path) -> Result<ModelFiles> {
    let config_path = dir.join("config.json");
    if !config_path.is_file() {
        return Err(Error::input_hint(
            format!(
                "{} is not a model directory: it has no config.json",
                dir.display()
            ),
            hub::MODEL_FORMS,
        ));
    }
    let config_json = files::read_json(&config_path)?;
    let config = ModelConfig::from_json(&config_json, &config_path)?;

    let generation_config_json = files::optional_json(&dir.join("generation_config.json"))?;
    let (tokenizer, tokenizer_json) =
        read_tokenizer(dir, &config_json, generation_config_json.as_ref())?;
    Ok(ModelFiles {
        config,
        config_json,
        generation_config_json,
        tokenizer,
        tokenizer_json,
    })
}

/// The tokenizer of `dir` and the bytes of its `tokenizer.json`. The model's configurations may name the EOS token.
pub(super) fn read_tokenizer(
    dir: &Path,
    config_json: &Map<String, Value>,
    generation_config_json: Option<&Map<String, Value>>,
) -> Result<(TextTokenizer, Vec<u8>)> {
    let tokenizer_path = dir.join("tokenizer.json");
    if !tokenizer_path.is_file() {
        return Err(Error::input_hint(
            format!("{} has no tokenizer.json", dir.display()),
            "`AutoTokenizer.from_pretrained(dir).save_pretrained(dir)` converts older formats",
        ));
    }
    let mut tokenizer_config =
        files::optional_json(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
    if let Some(template) = chat_template_files(dir)? {
        tokenizer_config.insert("chat_template".into(), template);
    }
    let tokenizer_json = files::read(&tokenizer_path)?;
    let special_tokens =
        files::optional_json(&dir.join("special_tokens_map.json"))?.unwrap_or_default();
    let mut others: Vec<_> = generation_config_json.into_iter().collect();
    others.extend([config_json, &special_tokens]);
    // The map is an older place of the same tokens, and is not written again. EOS is looked for in the model's own files first.
    let add = |config: &mut Map<String, Value>, name: &str| {
        let missing = config.get(name).is_none_or(Value::is_null);
        if let Some(token) = special_tokens.get(name).filter(|_| missing) {
            config.insert(name.to_owned(), token.clone());
        }
    };
    for name in special_tokens.keys().filter(|name| *name != EOS_TOKEN) {
        add(&mut tokenizer_config, name);
    }
    let mut tokenizer =
        TextTokenizer::new(&tokenizer_path, &tokenizer_json, tokenizer_config, &others)?;
    add(&mut tokenizer.config_json, EOS_TOKEN);
    Ok((tokenizer, tokenizer_json))
}

/// The chat template in files of its own, which as in `transformers` comes before that of `tokenizer_config.json`:
/// `chat_template.jinja`, and `additional_chat_templates/NAME.jinja`, which make it a list of named templates.
fn chat_template_files(dir: &Path) -> Result<Option<Value>> {
    let read = |path: &Path| -> Result<String> {
        String::from_utf8(files::read(path)?).map_err(|_| Error::broken(path, "not UTF-8"))
    };
    let default_path = dir.join("chat_template.jinja");
    let default = default_path.is_file().then(|| read(&default_path));
    let default = default.transpose()?;
    let entries = fs::read_dir(dir.join("additional_chat_templates"));
    let paths = entries
        .into_iter()
        .flatten()
        .filter_map(std::result::Result::ok);
    let mut paths: Vec<_> = paths.map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "jinja"));
    paths.sort();
    if paths.is_empty() {
        return Ok(default.map(Value::String));
    }
    let mut named = Vec::new();
    if let Some(default) = default {
        named.push(json!({"name": "default", "template": default}));
    }
    for path in paths {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let template = read(&path)?;
        // A file of this name takes the place of the default.
        named.retain(|t| t["name"] != *name);
        named.push(json!({"name": name, "template": template}));
    }
    Ok(Some(Value::Array(named)))
}

/// Loads the model in `dir`.
pub(super) fn load(name: &str, dir: &Path, storage: WeightStorage) -> Result<Model> {
    let ModelFiles {
        mut config,
        mut config_json,
        generation_config_json,
        tokenizer,
        tokenizer_json,
    } = read_model_files(dir)?;
    let mut source = Weights::open(dir)?;
    if config.tie_word_embeddings && source.untie() {
        config.tie_word_embeddings = false;
        config_json.insert("tie_word_embeddings".into(), false.into());
    }
    source.refuse_extra(&config)?;
    let dtype = source.dtype();
    let source = Arc::new(source);
    let tensors: Arc<dyn TensorSource> = source.clone();
    let (params, checksum) = rayon::join(
        || weights::read(&tensors, &config, dir, storage),
        || {
            let json = serde_json::to_vec(&config_json).expect("JSON that was read can be written");
            let mut parts: Vec<(&str, &[u8])> =
                vec![("config.json", &json), ("tokenizer.json", &tokenizer_json)];
            let files: Vec<_> = source.files().collect();
            parts.extend(files.iter().map(|(path, bytes)| {
                (
                    path.file_name()
                        .and_then(|n| n.to_str())
                        .unwrap_or_default(),
                    *bytes,
                )
            }));
            checksum::of_parts(&parts)
        },
    );
    Ok(Model {
        name: name.to_owned(),
        path: dir.to_owned(),
        checksum,
        config,
        params: params?,
        tokenizer,
        dtype,
        quantization: dtype.name(),
        hub_id: None,
        config_json,
        generation_config_json,
    })
}

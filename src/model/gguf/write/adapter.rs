//! Writes a LoRA adapter in PEFT's format as a GGUF file, which llama.cpp adds to its base model (`--lora`).
//!
//! llama.cpp computes `W + alpha / r B A`, where r is the number of rows of A.

use std::{borrow::Cow, path::Path};

use super::{
    architecture,
    file::{self, Value},
    in_pairs,
};
use crate::{
    Error, Result,
    hub::{ADAPTER_CONFIG, ADAPTER_WEIGHTS},
    model::{
        GgufType,
        config::ModelConfig,
        files,
        gguf::weights::{gguf_name, rotates_pairs},
        peft::PREFIX,
    },
    tensor_file::TensorFile,
};

/// Writes the adapter in the PEFT directory `dir`, of a model of this shape, as the file `path`: whole or not at all.
///
/// # Errors
/// [`Error::Input`] for `dora`, whose norms GGUF has no place for; when a file cannot be read or written.
pub(in crate::model) fn save_adapter(config: &ModelConfig, dir: &Path, path: &Path) -> Result<()> {
    let settings = files::read_json(&dir.join(ADAPTER_CONFIG))?;
    let is_set = |key: &str| settings.get(key).and_then(serde_json::Value::as_bool) == Some(true);
    if is_set("use_dora") {
        return Err(Error::input_hint(
            "a `dora` adapter has no form in GGUF: llama.cpp does not scale rows",
            "leave `--adapter` out: the merged model is written",
        ));
    }
    let number = |key: &str| settings.get(key).and_then(serde_json::Value::as_f64);
    let (rank, alpha) = (
        number("r").unwrap_or(1.0),
        number("lora_alpha").unwrap_or(1.0),
    );
    // llama.cpp divides by r, rsLoRA by its root.
    let alpha = if is_set("use_rslora") {
        alpha * rank.sqrt()
    } else {
        alpha
    };
    let text = |text: &str| Value::Text(text.into());
    let metadata = [
        ("general.type", text("adapter")),
        ("general.architecture", text(architecture(config.family))),
        ("adapter.type", text("lora")),
        ("adapter.lora.alpha", Value::F32(alpha as f32)),
    ]
    .map(|(key, value)| (key.to_owned(), value));

    let weights = dir.join(ADAPTER_WEIGHTS);
    let mut stored = TensorFile::open(&weights).map_err(Error::io("read", &weights))?;
    let broken = |name: &str| Error::BrokenModel {
        path: weights.clone(),
        message: format!("`{name}` is no factor of a linear layer of this model"),
    };
    let mut tensors = Vec::new();
    let factors = stored
        .iter()
        .map(|(name, view)| (name.to_owned(), view.shape.to_vec()));
    for (name, shape) in factors.collect::<Vec<_>>() {
        let inner = name.strip_prefix(PREFIX).unwrap_or(&name);
        let (module, factor) = if let Some(module) = inner.strip_suffix(".lora_A.weight") {
            (module, "lora_a")
        } else if let Some(module) = inner.strip_suffix(".lora_B.weight") {
            (module, "lora_b")
        } else {
            return Err(broken(&name));
        };
        let target = gguf_name(&format!("{module}.weight"), config.family);
        let target = target.ok_or_else(|| broken(&name))?;
        let mut values = vec![0.0; stored.len(&name)];
        stored
            .read(&name, &mut values)
            .map_err(Error::io("read", &weights))?;
        let rotated = module.ends_with(".q_proj") || module.ends_with(".k_proj");
        // The rows of B are those of W.
        let values = if factor == "lora_b" && rotated && rotates_pairs(config.family) {
            in_pairs(&values, shape[0], config.head_dim)
        } else {
            values
        };
        tensors.push(file::Tensor {
            name: format!("{target}.{factor}"),
            shape,
            kind: GgufType::F32,
            values: Cow::Owned(values),
        });
    }
    file::write(path, &metadata, &tensors)
}

//! Writes Hugging Face directories, which `transformers` loads.

use std::{borrow::Cow, fs, path::Path};

use ::safetensors::{Dtype as StoredDtype, View};
use half::{bf16, f16};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::{Dtype, Model, Params, config::RopeScaling, dtype::check_range};
use crate::{Error, Result, atomic_file, tensor_file};

/// Writes `model` to `dir`. Each file is written atomically, the weights last.
pub(super) fn save(model: &Model, dir: &Path, dtype: Dtype) -> Result<()> {
    fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    write_json(&dir.join("config.json"), &config_json(model, dtype))?;
    if let Some(generation_config) = &model.generation_config_json {
        write_json(&dir.join("generation_config.json"), generation_config)?;
    }
    write_json(
        &dir.join("tokenizer_config.json"),
        &model.tokenizer.config_json,
    )?;
    let tokenizer = model
        .tokenizer
        .inner
        .to_string(true)
        .map_err(|e| Error::input(format!("cannot write the tokenizer: {e}")))?;
    atomic_file::write(&dir.join("tokenizer.json"), tokenizer.as_bytes())?;
    write_weights(&model.params, &dir.join("model.safetensors"), dtype)
}

/// Writes a JSON object with line breaks.
pub(crate) fn write_json(path: &Path, object: &Map<String, Value>) -> Result<()> {
    let mut text = serde_json::to_string_pretty(object).expect("a JSON object can be written");
    text.push('\n');
    atomic_file::write(path, text.as_bytes())
}

/// The configuration as read, with the dtype of the saved weights, and the rotary base also where `transformers` 4 reads it.
fn config_json(model: &Model, dtype: Dtype) -> Map<String, Value> {
    let mut config = model.config_json.clone();
    // `dtype` since `transformers` 4.56, `torch_dtype` before.
    for key in ["dtype", "torch_dtype"] {
        config.insert(key.into(), dtype.torch_name().into());
    }
    if config.contains_key("rope_parameters") {
        config
            .entry("rope_theta")
            .or_insert_with(|| json!(model.config.rope_theta));
        if model.config.rope_scaling != RopeScaling::None {
            let parameters = config["rope_parameters"].clone();
            config.entry("rope_scaling").or_insert(parameters);
        }
    }
    config
}

/// Writes the weights, one tensor at a time. A tied head is not stored.
///
/// # Errors
/// When a weight is not finite, or would not be in `dtype`, or the file cannot be written.
pub(crate) fn write_weights(params: &Params, path: &Path, dtype: Dtype) -> Result<()> {
    params.layout.tensors.par_iter().try_for_each(|tensor| {
        let values = &*params.tensor(tensor);
        check_range(tensor, values, dtype.name(), |x| dtype.holds(x))
    })?;
    let tensors = params.layout.tensors.iter().map(|tensor| {
        let view = Stored {
            dtype,
            shape: &tensor.shape,
            values: params.tensor(tensor),
        };
        (tensor.name.as_str(), view)
    });
    let file = atomic_file::temp_file(path)?;
    tensor_file::write(file.path(), tensors, &[("format", "pt")])
        .map_err(Error::io("write", path))?;
    atomic_file::persist(file, path)
}

/// A tensor that is converted while it is written.
struct Stored<'a> {
    dtype: Dtype,
    shape: &'a [usize],
    values: Cow<'a, [f32]>,
}

impl View for Stored<'_> {
    fn dtype(&self) -> StoredDtype {
        match self.dtype {
            Dtype::F32 => StoredDtype::F32,
            Dtype::F16 => StoredDtype::F16,
            Dtype::Bf16 => StoredDtype::BF16,
        }
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self.dtype {
            Dtype::F32 if cfg!(target_endian = "little") => {
                Cow::Borrowed(bytemuck::cast_slice(&self.values))
            }
            Dtype::F32 => Cow::Owned(bytes_of(&self.values, f32::to_le_bytes)),
            Dtype::F16 => Cow::Owned(bytes_of(&self.values, |x| f16::from_f32(x).to_le_bytes())),
            Dtype::Bf16 => Cow::Owned(bytes_of(&self.values, |x| bf16::from_f32(x).to_le_bytes())),
        }
    }

    fn data_len(&self) -> usize {
        self.values.len() * self.dtype.bytes()
    }
}

fn bytes_of<const N: usize>(values: &[f32], convert: impl Fn(f32) -> [u8; N] + Sync) -> Vec<u8> {
    values
        .par_iter()
        .map(|x| convert(*x))
        .collect::<Vec<_>>()
        .into_flattened()
}

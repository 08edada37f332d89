//! A GGUF file, out: what llama.cpp and all that is built on it load.

mod tokenizer;

use std::{borrow::Cow, io, io::Write as _, path::Path};

use candle_core::{
    Device, Tensor,
    quantized::{
        GgmlDType, QTensor,
        gguf_file::{self, Value},
    },
};

use super::{
    config::llama3_factors,
    weights::{ROPE_FACTORS, gguf_name, stored_row},
};
use crate::{
    Error, Result, atomic_file,
    model::{Family, GgufType, Model, config::RopeScaling, params::TensorInfo},
};

/// ggml's version of how blocks are laid out.
const QUANTIZATION_VERSION: u32 = 2;

impl GgufType {
    /// How the matrices of the layers are stored.
    fn of_layers(self) -> GgmlDType {
        match self {
            Self::F32 => GgmlDType::F32,
            Self::F16 => GgmlDType::F16,
            Self::Bf16 => GgmlDType::BF16,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q4_0 => GgmlDType::Q4_0,
        }
    }

    /// How a tensor is stored: vectors in f32, embedding and head in eight bits at least, and what is no whole number of
    /// blocks in f16.
    fn of(self, tensor: &TensorInfo) -> GgmlDType {
        let outer = !tensor.name.starts_with("model.layers.");
        let kind = match self {
            _ if tensor.shape.len() < 2 => GgmlDType::F32,
            Self::Q4_0 if outer => GgmlDType::Q8_0,
            _ => self.of_layers(),
        };
        if tensor.row_len().is_multiple_of(kind.block_size()) {
            kind
        } else {
            GgmlDType::F16
        }
    }

    /// `general.file_type`, as llama.cpp counts them.
    fn number(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Bf16 => 32,
        }
    }
}

/// Writes `model` as the file `path`, whole or not at all.
///
/// # Errors
/// When its tokenizer has no form in GGUF, or the file cannot be written.
pub(in crate::model) fn save(model: &Model, path: &Path, kind: GgufType) -> Result<()> {
    let metadata = metadata(model, kind)?;
    let tensors = tensors(model, kind).map_err(|e| Error::Failed {
        message: format!("cannot make {}: {e}", path.display()),
        hint: None,
    })?;
    let metadata: Vec<_> = metadata
        .iter()
        .map(|(key, value)| (&key[..], value))
        .collect();
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(name, values)| (&name[..], values))
        .collect();

    let mut file = atomic_file::temp_file(path)?;
    let failed = Error::io("write", path);
    let mut buffer = io::BufWriter::new(&mut file);
    gguf_file::write(&mut buffer, &metadata, &tensors)
        .map_err(io::Error::other)
        .and_then(|()| buffer.flush())
        .map_err(failed)?;
    drop(buffer);
    atomic_file::persist(file, path)
}

/// The architecture, which `mistral` shares with `llama`.
fn architecture(family: Family) -> &'static str {
    match family {
        Family::Llama | Family::Mistral => Family::Llama.model_type(),
        Family::Qwen2 | Family::Qwen3 => family.model_type(),
    }
}

fn metadata(model: &Model, kind: GgufType) -> Result<Vec<(String, Value)>> {
    let c = &model.config;
    let architecture = architecture(c.family);
    let count = |n: usize| Value::U32(n as u32);
    // The file's own context, not that of a sliding window, which is told beside it.
    let written = |key: &str| {
        model
            .config_json
            .get(key)
            .and_then(serde_json::Value::as_u64)
    };
    let context =
        written("max_position_embeddings").map_or(c.max_position_embeddings, |n| n as usize);

    let mut metadata = vec![
        (
            "general.architecture".to_owned(),
            Value::String(architecture.into()),
        ),
        ("general.file_type".to_owned(), Value::U32(kind.number())),
        (
            "general.quantization_version".to_owned(),
            Value::U32(QUANTIZATION_VERSION),
        ),
    ];
    let mut add = |key: &str, value: Value| metadata.push((format!("{architecture}.{key}"), value));
    add("vocab_size", count(c.vocab_size));
    add("context_length", count(context));
    add("embedding_length", count(c.hidden_size));
    add("block_count", count(c.num_hidden_layers));
    add("feed_forward_length", count(c.intermediate_size));
    add("attention.head_count", count(c.num_attention_heads));
    add("attention.head_count_kv", count(c.num_key_value_heads));
    add("attention.key_length", count(c.head_dim));
    add("attention.value_length", count(c.head_dim));
    add(
        "attention.layer_norm_rms_epsilon",
        Value::F32(c.rms_norm_eps),
    );
    add("rope.dimension_count", count(c.head_dim));
    add("rope.freq_base", Value::F32(c.rope_theta as f32));
    if let RopeScaling::Linear(factor) = c.rope_scaling {
        add("rope.scaling.type", Value::String("linear".into()));
        add("rope.scaling.factor", Value::F32(factor as f32));
    }
    if let (Family::Mistral, Some(window)) = (c.family, written("sliding_window")) {
        add("attention.sliding_window", count(window as usize));
    }
    metadata.extend(tokenizer::metadata(&model.tokenizer, c.vocab_size)?);
    Ok(metadata)
}

fn tensors(model: &Model, kind: GgufType) -> candle_core::Result<Vec<(String, QTensor)>> {
    let c = &model.config;
    let paired = architecture(c.family) == Family::Llama.model_type();
    let mut tensors = Vec::new();
    for tensor in &model.params.layout.tensors {
        let values = &model.params.data[tensor.range.clone()];
        let rotated = tensor.name.contains(".q_proj.") || tensor.name.contains(".k_proj.");
        let values = if paired && rotated {
            Cow::Owned(in_pairs(values, tensor, c.head_dim))
        } else {
            Cow::Borrowed(values)
        };
        let name = gguf_name(&tensor.name).expect("every tensor of a decoder has a name in GGUF");
        let values = Tensor::from_slice(&values, &tensor.shape[..], &Device::Cpu)?;
        tensors.push((name, QTensor::quantize(&values, kind.of(tensor))?));
    }
    if let RopeScaling::Llama3(scaling) = &c.rope_scaling {
        let factors = llama3_factors(scaling, c.rope_theta, c.head_dim / 2);
        let factors: Vec<f32> = factors.into_iter().map(|factor| factor as f32).collect();
        let factors = Tensor::new(factors, &Device::Cpu)?;
        tensors.push((
            ROPE_FACTORS.into(),
            QTensor::quantize(&factors, GgmlDType::F32)?,
        ));
    }
    Ok(tensors)
}

/// The rows of q or k (a bias: its elements) in the order of interleaved rope.
fn in_pairs(values: &[f32], tensor: &TensorInfo, head_dim: usize) -> Vec<f32> {
    let row_len = values.len() / tensor.shape[0];
    let mut paired = vec![0.0; values.len()];
    for (row, values) in values.chunks_exact(row_len).enumerate() {
        let stored = stored_row(row, head_dim);
        paired[stored * row_len..][..row_len].copy_from_slice(values);
    }
    paired
}

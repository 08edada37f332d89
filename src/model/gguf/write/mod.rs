//! Writes a GGUF file that llama.cpp, and programs built on it, load.

mod adapter;
mod file;
mod probe;
mod sentencepiece;
mod tokenizer;

use std::{borrow::Cow, path::Path};

use rayon::prelude::*;

pub(in crate::model) use self::adapter::save_adapter;
use self::file::Value;
use super::{
    config::llama3_factors,
    weights::{ROPE_FACTORS, gguf_name, is_norm, rotates_pairs, stored_row},
};
use crate::{
    Error, Result,
    model::{
        Family, GgufType, Model,
        config::{ModelConfig, RopeScaling, YarnScaling},
        dtype::check_range,
        params::TensorInfo,
    },
};

/// ggml's version of the block layouts.
const QUANTIZATION_VERSION: u32 = 2;

impl GgufType {
    /// The type of a tensor: vectors are f32, embedding and head have at least eight bits, and rows that are not a whole number
    /// of blocks are f16.
    pub(in crate::model) fn of(self, tensor: &TensorInfo) -> Self {
        let outer = !tensor.name.starts_with("model.layers.");
        let kind = match self {
            _ if tensor.shape.len() < 2 => Self::F32,
            Self::Q4_0 if outer => Self::Q8_0,
            _ => self,
        };
        let block_len = kind.ggml_type().block_len();
        if tensor.row_len().is_multiple_of(block_len) {
            kind
        } else {
            Self::F16
        }
    }

    /// llama.cpp's number for `general.file_type`.
    fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Bf16 => 32,
        }
    }
}

/// Writes `model` as the file `path`, complete or not at all.
///
/// # Errors
/// When its tokenizer has no form in GGUF, or the file cannot be written.
pub(in crate::model) fn save(model: &Model, path: &Path, kind: GgufType) -> Result<()> {
    let metadata = metadata(model, kind)?;
    model
        .params
        .layout
        .tensors
        .par_iter()
        .try_for_each(|tensor| {
            let values = &*model.params.tensor(tensor);
            let kind = kind.of(tensor);
            check_range(tensor, values, kind.ggml_type().name(), |x| kind.holds(x))
        })?;
    file::write(path, &metadata, &tensors(model, kind))
}

/// The error for a model with something that GGUF files of its architecture cannot state.
fn no_form(what: &str) -> Error {
    Error::input_hint(
        format!(
            "cannot write the model as GGUF: llama.cpp does not support {what} for its architecture"
        ),
        "write it with `--to hf`",
    )
}

/// The architecture name; `mistral` is stored as `llama`.
fn architecture(family: Family) -> &'static str {
    match family {
        Family::Llama | Family::Mistral => Family::Llama.model_type(),
        Family::Gemma3 => "gemma3",
        _ => family.model_type(),
    }
}

fn metadata(model: &Model, kind: GgufType) -> Result<Vec<(String, Value)>> {
    let c = &model.config;
    let architecture = architecture(c.family);
    let count = |n: usize| Value::U32(n as u32);
    // The context of the configuration file: the sliding window has a key of its own.
    let config_value = |key: &str| {
        model
            .config_json
            .get(key)
            .and_then(serde_json::Value::as_u64)
    };
    let context =
        config_value("max_position_embeddings").map_or(c.max_position_embeddings, |n| n as usize);

    let mut metadata = vec![
        (
            "general.architecture".to_owned(),
            Value::Text(architecture.into()),
        ),
        ("general.file_type".to_owned(), Value::U32(kind.file_type())),
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
    add("rope.dimension_count", count(c.rotary_dim()));
    add("rope.freq_base", Value::F32(c.rope_theta as f32));
    match &c.rope_scaling {
        RopeScaling::None | RopeScaling::Llama3(_) => {}
        RopeScaling::Linear(factor) => {
            add("rope.scaling.type", Value::Text("linear".into()));
            add("rope.scaling.factor", Value::F32(*factor as f32));
        }
        RopeScaling::Yarn(yarn)
            if *yarn == YarnScaling::plain(yarn.factor, yarn.original_max_position_embeddings) =>
        {
            let original = yarn.original_max_position_embeddings;
            add("rope.scaling.type", Value::Text("yarn".into()));
            add("rope.scaling.factor", Value::F32(yarn.factor as f32));
            add(
                "rope.scaling.original_context_length",
                count(original as usize),
            );
        }
        RopeScaling::Yarn(_) | RopeScaling::LongRope(_) => {
            return Err(no_form("this scaling of rotary frequencies"));
        }
    }
    add_windows(c, &mut add)?;
    if c.family == Family::Granite {
        let s = &c.switches;
        let scale = s.attention_scale.unwrap_or(1.0);
        add("embedding_scale", Value::F32(s.embedding_multiplier));
        add("residual_scale", Value::F32(s.residual_multiplier));
        add("logit_scale", Value::F32(s.logits_scaling));
        add("attention.scale", Value::F32(scale));
    }
    metadata.extend(tokenizer::metadata(&model.tokenizer, c.vocab_size)?);
    Ok(metadata)
}

/// Adds what the file states of sliding windows and layers without rope: llama.cpp knows which layers of a family these are.
fn add_windows(c: &ModelConfig, add: &mut impl FnMut(&str, Value)) -> Result<()> {
    let layers = &c.layers;
    let every = |n: usize| (1..=c.num_hidden_layers).map(move |layer| layer % n == 0);
    if !layers.no_rope.is_empty() && !every(4).eq(layers.no_rope.iter().copied()) {
        return Err(no_form("layers without rope other than every fourth"));
    }
    let Some(window) = layers.sliding_window else {
        if c.family == Family::Gemma3 {
            return Err(no_form("layers without sliding windows"));
        }
        if c.family == Family::Phi3 {
            // Without the key llama.cpp takes the window of the model that it knows by its size.
            add("attention.sliding_window", Value::U32(0));
        }
        return Ok(());
    };
    let known = match c.family {
        Family::Mistral | Family::Phi3 => !layers.sliding.contains(&false),
        Family::Gemma3 => every(6)
            .map(|full| !full)
            .eq(layers.sliding.iter().copied()),
        _ => false,
    };
    if !known {
        return Err(no_form("sliding windows in these layers"));
    }
    add("attention.sliding_window", Value::U32(window as u32));
    if let Some(theta) = layers.local_rope_theta {
        let head = c.head_dim as f32;
        if c.switches.attention_scale != Some(1.0 / head.sqrt()) {
            return Err(no_form(
                "`query_pre_attn_scalar` other than the width of a head",
            ));
        }
        add("rope.freq_base_swa", Value::F32(theta as f32));
    }
    Ok(())
}

/// The tensors under their GGUF names.
fn tensors(model: &Model, kind: GgufType) -> Vec<file::Tensor<'_>> {
    let c = &model.config;
    let paired = rotates_pairs(c.family);
    let mut tensors = Vec::new();
    for tensor in &model.params.layout.tensors {
        let values = model.params.tensor(tensor);
        let rotated = tensor.name.contains(".q_proj.") || tensor.name.contains(".k_proj.");
        tensors.push(file::Tensor {
            name: gguf_name(&tensor.name, c.family)
                .expect("every tensor of a decoder has a name in GGUF"),
            shape: tensor.shape.clone(),
            kind: kind.of(tensor),
            values: if paired && rotated {
                Cow::Owned(in_pairs(&values, tensor.shape[0], c.head_dim))
            } else if c.switches.norm_offset != 0.0 && is_norm(&tensor.name) {
                values.iter().map(|w| w + c.switches.norm_offset).collect()
            } else {
                values
            },
        });
    }
    if let RopeScaling::Llama3(scaling) = &c.rope_scaling {
        let factors = llama3_factors(scaling, c.rope_theta, c.head_dim / 2);
        tensors.push(file::Tensor {
            name: ROPE_FACTORS.into(),
            shape: vec![factors.len()],
            kind: GgufType::F32,
            values: factors.into_iter().map(|factor| factor as f32).collect(),
        });
    }
    tensors
}

/// The rows of q or k, or the elements of their biases, in the order of interleaved rope.
fn in_pairs(values: &[f32], rows: usize, head_dim: usize) -> Vec<f32> {
    let row_len = values.len() / rows;
    let mut paired = vec![0.0; values.len()];
    for (row, values) in values.chunks_exact(row_len).enumerate() {
        let stored = stored_row(row, head_dim);
        paired[stored * row_len..][..row_len].copy_from_slice(values);
    }
    paired
}

//! The tensors of a GGUF file, dequantised a few rows at a time.

use std::{borrow::Cow, collections::BTreeMap, path::Path};

use candle_core::CpuStorage;

use super::header::{Header, Tensor};
use crate::{
    Error, Result,
    model::{Layout, ModelConfig, params::TensorInfo, weights::TensorSource},
};

/// The tensors under their Hugging Face names.
pub(super) struct Weights<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    tensors: BTreeMap<String, Tensor>,
    /// K, where rows of q and k are stored in pairs for interleaved rope.
    paired_head_dim: Option<usize>,
}

impl<'a> Weights<'a> {
    /// The tensors of `header`, whose file holds `bytes`.
    ///
    /// # Errors
    /// When there is a tensor that a decoder has no place for.
    pub(super) fn new(header: &Header<'a>, bytes: &'a [u8], config: &ModelConfig) -> Result<Self> {
        let layout = Layout::new(config);
        let mut tensors = BTreeMap::new();
        for (name, tensor) in &header.tensors {
            if *name == ROPE_FACTORS {
                continue;
            }
            let known = hugging_face_name(name).filter(|name| layout.find(name).is_some());
            let Some(known) = known else {
                return Err(Error::broken(
                    header.path(),
                    format!(
                        "tensor `{name}` is not part of a {} model of this configuration",
                        config.family.model_type()
                    ),
                ));
            };
            tensors.insert(known, tensor.clone());
        }
        // llama.cpp's `llama` architecture alone rotates neighbours; the others rotate halves, as Hugging Face does.
        let interleaved = matches!(
            header.text("general.architecture")?,
            Some("llama" | "mistral")
        );
        Ok(Self {
            path: header.path(),
            bytes,
            tensors,
            paired_head_dim: interleaved.then_some(config.head_dim),
        })
    }
}

/// The row of the file that holds row `row` of q or k: within each head, GGUF's rows 2j and 2j + 1 are rows j and
/// K/2 + j.
pub(super) fn stored_row(row: usize, head_dim: usize) -> usize {
    let (head, within) = (row / head_dim, row % head_dim);
    let (half, j) = (within / (head_dim / 2), within % (head_dim / 2));
    head * head_dim + 2 * j + half
}

impl TensorSource for Weights<'_> {
    fn shape(&self, name: &str) -> Option<(&Path, Vec<usize>)> {
        Some((self.path, self.tensors.get(name)?.shape.clone()))
    }

    fn read_rows(&self, info: &TensorInfo, first_row: usize, out: &mut [f32]) -> Result<()> {
        let tensor = &self.tensors[&info.name];
        let paired = info.name.ends_with("q_proj.weight") || info.name.ends_with("k_proj.weight");
        match self.paired_head_dim {
            Some(head_dim) if paired => out
                .chunks_exact_mut(info.row_len())
                .enumerate()
                .try_for_each(|(i, row)| {
                    let stored = stored_row(first_row + i, head_dim);
                    dequantize(self.path, self.bytes, tensor, stored * row.len(), row)
                }),
            _ => dequantize(
                self.path,
                self.bytes,
                tensor,
                first_row * info.row_len(),
                out,
            ),
        }
    }
}

/// `rope_freqs.weight`: one factor per pair of a head.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The content of `rope_freqs.weight`, where there is one.
pub(super) fn rope_factors(header: &Header, bytes: &[u8]) -> Result<Option<Vec<f32>>> {
    let Some(tensor) = header.tensors.get(ROPE_FACTORS) else {
        return Ok(None);
    };
    let mut factors = vec![0.0; tensor.shape.iter().product()];
    dequantize(header.path(), bytes, tensor, 0, &mut factors)?;
    Ok(Some(factors))
}

/// Elements of `tensor` from `first` on, a multiple of its block size, into `out`, a whole number of blocks.
fn dequantize(
    path: &Path,
    bytes: &[u8],
    tensor: &Tensor,
    first: usize,
    out: &mut [f32],
) -> Result<()> {
    let bytes_of =
        |elements: usize| elements / tensor.dtype.block_size() * tensor.dtype.type_size();
    let start = tensor.bytes.start + bytes_of(first);
    let blocks = &bytes[start..start + bytes_of(out.len())];
    let values = tensor
        .dtype
        .from_data(Cow::Borrowed(blocks))
        .dequantize(out.len())
        .map_err(|e| Error::broken(path, e.to_string()))?;
    let CpuStorage::F32(values) = values else {
        return Err(Error::broken(
            path,
            "dequantised to something else than f32",
        ));
    };
    out.copy_from_slice(&values);
    Ok(())
}

/// What lies beside the layers, as GGUF and as Hugging Face call it.
const OUTER: [(&str, &str); 3] = [
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
];

/// The parts of a layer.
const PARTS: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// A name of each kind.
type Names = (&'static str, &'static str);

/// The Hugging Face name of a GGUF tensor.
fn hugging_face_name(name: &str) -> Option<String> {
    renamed(name, ["blk.", "model.layers."], |names| names)
}

/// The GGUF name of a Hugging Face tensor.
pub(super) fn gguf_name(name: &str) -> Option<String> {
    renamed(name, ["model.layers.", "blk."], |(gguf, hf)| (hf, gguf))
}

/// A tensor's other name. `layers` is what the layers' begin with, and `sides` turns a table's names so that the given kind is first.
fn renamed(name: &str, layers: [&str; 2], sides: fn(Names) -> Names) -> Option<String> {
    let other = |table: &[Names], name: &str| {
        let mut names = table.iter().map(|names| sides(*names));
        names.find(|(from, _)| *from == name).map(|(_, to)| to)
    };
    let (place, kind) = name.rsplit_once('.')?;
    if let Some(outer) = other(&OUTER, place) {
        return Some(format!("{outer}.{kind}"));
    }
    let (layer, part) = place.strip_prefix(layers[0])?.split_once('.')?;
    let part = other(&PARTS, part)?;
    Some(format!("{}{layer}.{part}.{kind}", layers[1]))
}

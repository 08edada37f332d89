//! The tensors of a GGUF file, dequantised row by row.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use super::{
    blocks::GgmlType,
    files::GgufFile,
    header::{Header, Tensor},
};
use crate::{
    Error, Result,
    model::{Family, Layout, ModelConfig, params::TensorInfo, tensor::TensorSource},
};

/// The tensors under their Hugging Face names.
pub(super) struct Weights {
    /// The file, or the parts of a split model.
    files: Arc<[GgufFile]>,
    tensors: BTreeMap<String, Tensor>,
    /// K, if the rows of q and k are stored in pairs for interleaved rope.
    paired_head_dim: Option<usize>,
    /// What the weights of norms have been increased by.
    norm_offset: f32,
}

impl Weights {
    /// The tensors of `header`, which are in `files`.
    ///
    /// # Errors
    /// [`Error::BrokenModel`] when a tensor is not part of a model with this configuration.
    pub(super) fn new(
        header: &Header<'_>,
        files: &Arc<[GgufFile]>,
        config: &ModelConfig,
    ) -> Result<Self> {
        let layout = Layout::new(config);
        let mut tensors = BTreeMap::new();
        for (name, tensor) in &header.tensors {
            if *name == ROPE_FACTORS {
                continue;
            }
            let known =
                hugging_face_name(name, config.family).filter(|name| layout.find(name).is_some());
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
        let interleaved = rotates_pairs(config.family);
        Ok(Self {
            files: Arc::clone(files),
            tensors,
            paired_head_dim: interleaved.then_some(config.head_dim),
            norm_offset: config.switches.norm_offset,
        })
    }
}

impl Weights {
    /// The name of the type that stores most weights of the layers.
    pub(super) fn quantization(&self) -> &'static str {
        let mut elements = BTreeMap::<&str, usize>::new();
        for (name, tensor) in &self.tensors {
            if name.starts_with("model.layers.") {
                let of_type = elements.entry(tensor.kind.name()).or_default();
                *of_type += tensor.shape.iter().product::<usize>();
            }
        }
        let most = elements.into_iter().max_by_key(|(_, elements)| *elements);
        most.map_or(GgmlType::F32.name(), |(name, _)| name)
    }
}

/// Whether llama.cpp rotates adjacent rows of q and k, where Hugging Face rotates halves.
pub(super) fn rotates_pairs(family: Family) -> bool {
    matches!(
        family,
        Family::Llama | Family::Mistral | Family::Granite | Family::SmolLm3
    )
}

/// Whether a tensor is the weight of a norm.
pub(super) fn is_norm(name: &str) -> bool {
    name.ends_with("norm.weight")
}

/// The row in the file of row `row` of q or k: within each head, GGUF's rows 2j and 2j + 1 are rows j and K/2 + j.
pub(super) fn stored_row(row: usize, head_dim: usize) -> usize {
    let (head, within) = (row / head_dim, row % head_dim);
    let (half, j) = (within / (head_dim / 2), within % (head_dim / 2));
    head * head_dim + 2 * j + half
}

impl TensorSource for Weights {
    fn shape(&self, name: &str) -> Option<(&Path, Vec<usize>)> {
        let tensor = self.tensors.get(name)?;
        Some((&self.files[tensor.part].path, tensor.shape.clone()))
    }

    fn read_rows(&self, info: &TensorInfo, first_row: usize, out: &mut [f32]) -> Result<()> {
        let tensor = &self.tensors[&info.name];
        let bytes = &self.files[tensor.part].map[..];
        let row_len = info.row_len();
        let paired = info.name.ends_with("q_proj.weight") || info.name.ends_with("k_proj.weight");
        match self.paired_head_dim.filter(|_| paired) {
            Some(head_dim) => {
                for (i, row) in out.chunks_exact_mut(row_len).enumerate() {
                    let stored = stored_row(first_row + i, head_dim);
                    dequantize(bytes, tensor, stored * row_len, row);
                }
            }
            None => dequantize(bytes, tensor, first_row * row_len, out),
        }
        if self.norm_offset != 0.0 && is_norm(&info.name) {
            for w in out {
                *w -= self.norm_offset;
            }
        }
        Ok(())
    }
}

/// The tensor with one rotary factor for each pair of a head.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The content of `rope_freqs.weight`, if there is one.
pub(super) fn rope_factors(header: &Header, files: &[GgufFile]) -> Option<Vec<f32>> {
    let tensor = header.tensors.get(ROPE_FACTORS)?;
    let bytes = &files[tensor.part].map[..];
    let mut factors = vec![0.0; tensor.shape.iter().product()];
    dequantize(bytes, tensor, 0, &mut factors);
    Some(factors)
}

/// Dequantises elements of `tensor` from `first` on, a multiple of its block length, into `out`, a whole number of blocks.
fn dequantize(bytes: &[u8], tensor: &Tensor, first: usize, out: &mut [f32]) {
    let offset = |elements: usize| {
        let bytes = tensor.kind.bytes(elements);
        bytes.expect("the header's check of the whole tensor covers its parts")
    };
    let start = tensor.bytes.start + offset(first);
    let blocks = &bytes[start..start + offset(out.len())];
    tensor.kind.dequantize(blocks, out);
}

/// The tensors outside the layers: GGUF and Hugging Face names.
const OUTER: [(&str, &str); 3] = [
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
];

/// The tensors of a layer: GGUF and Hugging Face names.
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

/// The tensors of a layer that a family names in its own way; they count before those of all families.
fn own_parts(family: Family) -> &'static [Names] {
    match family {
        Family::Gemma3 => &[
            ("post_attention_norm", "post_attention_layernorm"),
            ("ffn_norm", "pre_feedforward_layernorm"),
            ("post_ffw_norm", "post_feedforward_layernorm"),
        ],
        Family::Olmo2 => &[
            ("post_attention_norm", "post_attention_layernorm"),
            ("post_ffw_norm", "post_feedforward_layernorm"),
        ],
        Family::Phi3 => &[
            ("attn_qkv", "self_attn.qkv_proj"),
            ("ffn_up", "mlp.gate_up_proj"),
        ],
        _ => &[],
    }
}

/// A GGUF name and a Hugging Face name.
type Names = (&'static str, &'static str);

/// The Hugging Face name of a GGUF tensor.
fn hugging_face_name(name: &str, family: Family) -> Option<String> {
    renamed(name, family, ["blk.", "model.layers."], |names| names)
}

/// The GGUF name of a Hugging Face tensor.
pub(super) fn gguf_name(name: &str, family: Family) -> Option<String> {
    renamed(name, family, ["model.layers.", "blk."], |(gguf, hf)| {
        (hf, gguf)
    })
}

/// The other name of a tensor. `layers` are the prefixes of layer names, and `order` puts the names of a table entry in the order
/// (from, to).
fn renamed(
    name: &str,
    family: Family,
    layers: [&str; 2],
    order: fn(Names) -> Names,
) -> Option<String> {
    let other = |table: &[Names], name: &str| {
        let mut names = table.iter().map(|names| order(*names));
        names.find(|(from, _)| *from == name).map(|(_, to)| to)
    };
    let (place, kind) = name.rsplit_once('.')?;
    if let Some(outer) = other(&OUTER, place) {
        return Some(format!("{outer}.{kind}"));
    }
    let (layer, part) = place.strip_prefix(layers[0])?.split_once('.')?;
    let part = other(own_parts(family), part).or_else(|| other(&PARTS, part))?;
    Some(format!("{}{layer}.{part}.{kind}", layers[1]))
}

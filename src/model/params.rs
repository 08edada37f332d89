//! The weights of a decoder in one f32 buffer, each tensor with its Hugging Face name.
//!
//! q, k and v are adjacent, and so are gate and up: the engine computes each group in one matmul.

use std::{borrow::Cow, ops::Range, sync::Arc};

use rayon::prelude::*;

pub use super::tensor::TensorInfo;
use super::{
    buffer::Buffer,
    config::{ModelConfig, NormPlacement},
    dropout::Dropout,
    frozen::Frozen,
};
use crate::hub::checksum;

/// Ranges of the tensors of one layer.
#[derive(Clone, Debug)]
pub struct LayerLayout {
    /// The whole layer.
    pub all: Range<usize>,
    /// Norm before attention (D): `input_layernorm.weight`.
    pub input_norm: Option<Range<usize>>,
    /// q, k, v `_proj.weight` as one matrix ((H + 2G)K, D).
    pub qkv: Range<usize>,
    /// q, k, v `_proj.bias` as one vector ((H + 2G)K).
    pub qkv_bias: Option<Range<usize>>,
    /// `q_norm.weight`, `k_norm.weight` (K each, or HK and GK).
    pub qk_norm: Option<(Range<usize>, Range<usize>)>,
    /// `o_proj.weight` (D, HK).
    pub o: Range<usize>,
    /// Norm of the output of attention (D): `post_attention_layernorm.weight` of gemma3 and olmo2.
    pub attention_norm: Option<Range<usize>>,
    /// Norm before the feed-forward network (D): `post_attention_layernorm.weight`, in gemma3 `pre_feedforward_layernorm.weight`.
    pub post_norm: Option<Range<usize>>,
    /// gate and up `_proj.weight` as one matrix (2F, D).
    pub gate_up: Range<usize>,
    /// `down_proj.weight` (D, F).
    pub down: Range<usize>,
    /// Norm of the output of the feed-forward network (D): `post_feedforward_layernorm.weight` of gemma3 and olmo2.
    pub ffn_norm: Option<Range<usize>>,
}

/// The inputs of the linear layers of a decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinearInput {
    /// The normalised residual stream (D), input of q, k and v.
    Qkv,
    /// The outputs of the heads (HK), input of o.
    O,
    /// The normalised residual stream after attention (D), input of gate and up.
    GateUp,
    /// The gated hidden state (F), input of down.
    Down,
}

impl LinearInput {
    /// All inputs, in the order of the forward pass.
    pub const ALL: [Self; 4] = [Self::Qkv, Self::O, Self::GateUp, Self::Down];

    /// The name in messages and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qkv => "qkv",
            Self::O => "o",
            Self::GateUp => "gate_up",
            Self::Down => "down",
        }
    }
}

impl LayerLayout {
    /// The range of the whole layer.
    pub fn range(&self) -> Range<usize> {
        self.all.clone()
    }

    /// The range of the weights that are multiplied with `input`.
    pub fn weight_range(&self, input: LinearInput) -> &Range<usize> {
        match input {
            LinearInput::Qkv => &self.qkv,
            LinearInput::O => &self.o,
            LinearInput::GateUp => &self.gate_up,
            LinearInput::Down => &self.down,
        }
    }
}

/// Ranges of all tensors in the buffer.
#[derive(Clone, Debug)]
pub struct Layout {
    /// All tensors, in the order of the buffer. A tied head has no tensor of its own.
    pub tensors: Vec<TensorInfo>,
    /// `model.embed_tokens.weight` (V, D).
    pub embed: Range<usize>,
    /// One entry per layer.
    pub layers: Vec<LayerLayout>,
    /// `model.norm.weight` (D).
    pub norm: Range<usize>,
    /// `lm_head.weight` (V, D): the embedding's range when tied.
    pub head: Range<usize>,
    /// Number of weights.
    pub len: usize,
    /// Length of the buffer: the weights that are not frozen, which lie before the others.
    pub dense: usize,
}

impl Layout {
    /// The layout of a model with this configuration.
    pub fn new(config: &ModelConfig) -> Self {
        Self::with_matrices_from(config, None)
    }

    /// The same with all vectors before all matrices, which are frozen.
    pub fn of_frozen_matrices(config: &ModelConfig) -> Self {
        let tensors = Self::new(config).tensors;
        let vectors = tensors.iter().filter(|tensor| tensor.shape.len() == 1);
        let dense = vectors.map(|tensor| tensor.range.len()).sum();
        Self::with_matrices_from(config, Some(dense))
    }

    /// Tensors follow each other, or vectors from 0 on and matrices from `matrices` on.
    fn with_matrices_from(config: &ModelConfig, matrices: Option<usize>) -> Self {
        let c = config;
        let (d, f, k) = (c.hidden_size, c.intermediate_size, c.head_dim);
        let (q_rows, kv_rows) = (c.num_attention_heads * k, c.num_key_value_heads * k);
        let mut tensors: Vec<TensorInfo> = Vec::new();
        let (mut len, mut vectors_len) = (matrices.unwrap_or_default(), 0);
        let mut add = |name: String, shape: &[usize]| -> Range<usize> {
            let end = match shape {
                [_] if matrices.is_some() => &mut vectors_len,
                _ => &mut len,
            };
            let range = *end..*end + shape.iter().product::<usize>();
            *end = range.end;
            tensors.push(TensorInfo {
                name,
                shape: shape.to_vec(),
                range: range.clone(),
            });
            range
        };
        let before = c.switches.norms != NormPlacement::After;
        let after = c.switches.norms != NormPlacement::Before;
        let [q_norm, k_norm] = c.qk_norm_widths();
        let join = |a: &Range<usize>, b: &Range<usize>| a.start..b.end;

        let embed = add("model.embed_tokens.weight".into(), &[c.vocab_size, d]);
        let layers = (0..c.num_hidden_layers)
            .map(|i| {
                let mut add =
                    |name: &str, shape: &[usize]| add(format!("model.layers.{i}.{name}"), shape);
                let input_norm = before.then(|| add("input_layernorm.weight", &[d]));
                let qkv = if c.switches.fused_projections {
                    add("self_attn.qkv_proj.weight", &[q_rows + 2 * kv_rows, d])
                } else {
                    let q = add("self_attn.q_proj.weight", &[q_rows, d]);
                    add("self_attn.k_proj.weight", &[kv_rows, d]);
                    join(&q, &add("self_attn.v_proj.weight", &[kv_rows, d]))
                };
                let qkv_bias = c.qkv_bias.then(|| {
                    let q = add("self_attn.q_proj.bias", &[q_rows]);
                    add("self_attn.k_proj.bias", &[kv_rows]);
                    join(&q, &add("self_attn.v_proj.bias", &[kv_rows]))
                });
                let qk_norm = c.qk_norm.then(|| {
                    (
                        add("self_attn.q_norm.weight", &[q_norm]),
                        add("self_attn.k_norm.weight", &[k_norm]),
                    )
                });
                let o = add("self_attn.o_proj.weight", &[d, q_rows]);
                let attention_norm = after.then(|| add("post_attention_layernorm.weight", &[d]));
                let post_norm = before.then(|| {
                    let name = if after {
                        "pre_feedforward_layernorm.weight"
                    } else {
                        "post_attention_layernorm.weight"
                    };
                    add(name, &[d])
                });
                let gate_up = if c.switches.fused_projections {
                    add("mlp.gate_up_proj.weight", &[2 * f, d])
                } else {
                    let gate = add("mlp.gate_proj.weight", &[f, d]);
                    join(&gate, &add("mlp.up_proj.weight", &[f, d]))
                };
                let down = add("mlp.down_proj.weight", &[d, f]);
                let ffn_norm = after.then(|| add("post_feedforward_layernorm.weight", &[d]));
                let start = input_norm.as_ref().unwrap_or(&qkv).start;
                let end = ffn_norm.as_ref().unwrap_or(&down).end;
                let all = match matrices {
                    None => start..end,
                    // The norms lie elsewhere.
                    Some(_) => qkv.start..down.end,
                };
                LayerLayout {
                    all,
                    input_norm,
                    qkv,
                    qkv_bias,
                    qk_norm,
                    o,
                    attention_norm,
                    post_norm,
                    gate_up,
                    down,
                    ffn_norm,
                }
            })
            .collect();
        let norm = add("model.norm.weight".into(), &[d]);
        let head = if c.tie_word_embeddings {
            embed.clone()
        } else {
            add("lm_head.weight".into(), &[c.vocab_size, d])
        };
        Self {
            tensors,
            embed,
            layers,
            norm,
            head,
            len,
            dense: matrices.unwrap_or(len),
        }
    }

    /// A layout of arbitrary tensors, in this order. The ranges of a decoder's parts are empty.
    pub fn of_tensors(tensors: impl IntoIterator<Item = (String, Vec<usize>)>) -> Self {
        let mut len = 0;
        let tensors = tensors
            .into_iter()
            .map(|(name, shape)| {
                let range = len..len + shape.iter().product::<usize>();
                len = range.end;
                TensorInfo { name, shape, range }
            })
            .collect();
        Self {
            tensors,
            embed: 0..0,
            layers: Vec::new(),
            norm: 0..0,
            head: 0..0,
            len,
            dense: len,
        }
    }

    /// The tensor named `name`.
    pub fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|t| t.name == name)
    }
}

/// The weights of a decoder.
pub struct Params {
    /// Ranges of the tensors.
    pub layout: Arc<Layout>,
    /// The weights, but for those that are frozen.
    pub data: Buffer,
    /// Matrices that stay as they lie in the model's file, if they do.
    pub frozen: Option<Frozen>,
    /// Adapters beside them, if there are any.
    pub low_rank: Option<LowRank>,
}

impl Params {
    /// All weights zero, but for those that are frozen.
    pub fn zeros(layout: Arc<Layout>) -> Self {
        let data = Buffer::zeros(layout.dense);
        Self {
            layout,
            data,
            frozen: None,
            low_rank: None,
        }
    }

    /// The weights of a tensor, the product of its adapter included. Those of a frozen one are converted.
    pub fn tensor(&self, tensor: &TensorInfo) -> Cow<'_, [f32]> {
        let frozen = self.frozen.as_ref();
        let mut values = match frozen.filter(|_| tensor.range.end > self.data.len()) {
            Some(frozen) => {
                let mut values = vec![0.0; tensor.range.len()];
                frozen.matrix(&tensor.range).read_rows(0, &mut values);
                Cow::Owned(values)
            }
            None => Cow::Borrowed(&self.data[tensor.range.clone()]),
        };
        if let Some(low_rank) = &self.low_rank {
            for (_, target) in low_rank.targets_within(tensor.range.clone()) {
                low_rank.add_product(target, values.to_mut());
            }
        }
        values
    }

    /// SHA-256 (hex) over the names and values of all tensors that are not frozen, those of adapters included.
    pub fn checksum(&self) -> String {
        let adapters = self.low_rank.iter().flat_map(|own| own.params.parts());
        let parts: Vec<_> = self.parts().chain(adapters).collect();
        checksum::of_parts(&parts)
    }

    /// Name and values of every tensor that is not frozen.
    fn parts(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let tensors = self.layout.tensors.iter();
        let dense = tensors.filter(|t| t.range.end <= self.data.len());
        dense.map(|t| {
            let values = bytemuck::cast_slice(&self.data[t.range.clone()]);
            (&t.name[..], values)
        })
    }

    /// The weights without adapters.
    pub fn without_adapters(&self) -> Weights<'_> {
        Weights {
            params: self,
            low_rank: None,
        }
    }

    /// The weights with these adapters in place of their own.
    pub fn with_adapters<'a>(&'a self, low_rank: &'a LowRank) -> Weights<'a> {
        Weights {
            params: self,
            low_rank: Some(low_rank),
        }
    }
}

impl Clone for Params {
    fn clone(&self) -> Self {
        let mut copy = Self::zeros(self.layout.clone());
        copy.data.copy_from_slice(&self.data);
        copy.frozen.clone_from(&self.frozen);
        copy.low_rank.clone_from(&self.low_rank);
        copy
    }
}

/// Low-rank adapters beside frozen weights (`LoRA`, Hu et al. 2021, arXiv 2106.09685, eq. 3).
///
/// ```text
/// y = x W0^T + s drop(x) A^T B^T        W0 (out, in), A (r, in), B (out, r)
/// ```
///
/// W0 stays as it is. The engine adds the second product, so that no copy of W0 and no gradient of its size is needed.
#[derive(Clone)]
pub struct LowRank {
    /// A and B of every target, under PEFT's names.
    pub params: Box<Params>,
    /// The adapted weights, in the order of the model's layout.
    pub targets: Vec<LowRankTarget>,
    /// Dropout on the inputs of A, while a training step runs.
    pub dropout: Option<Dropout>,
}

/// The adapted weight of one linear layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRankTarget {
    /// The range of W0 in the model's weights.
    pub weight: Range<usize>,
    /// out, in.
    pub shape: [usize; 2],
    /// r.
    pub rank: usize,
    /// s.
    pub scale: f32,
    /// The range of A in the adapters' parameters.
    pub a: Range<usize>,
    /// The range of B.
    pub b: Range<usize>,
}

impl LowRank {
    /// The targets among a group of weights, such as q, k and v, with their indices.
    pub fn targets_within(
        &self,
        group: Range<usize>,
    ) -> impl Iterator<Item = (usize, &LowRankTarget)> {
        let first = self
            .targets
            .partition_point(|target| target.weight.start < group.start);
        let targets = self.targets.iter().enumerate().skip(first);
        targets.take_while(move |(_, target)| target.weight.start < group.end)
    }

    /// `w (out, in) += s B A`, each element summed in f64.
    fn add_product(&self, target: &LowRankTarget, w: &mut [f32]) {
        let ([_, inputs], rank) = (target.shape, target.rank);
        let (a, b) = (self.a(target), self.b(target));
        let rows = w.par_chunks_exact_mut(inputs).zip(b.par_chunks_exact(rank));
        rows.for_each(|(w, b)| {
            for (column, w) in w.iter_mut().enumerate() {
                let terms = b.iter().zip(a[column..].iter().step_by(inputs));
                let sum: f64 = terms.map(|(b, a)| f64::from(*b) * f64::from(*a)).sum();
                *w += (f64::from(target.scale) * sum) as f32;
            }
        });
    }

    /// A of a target.
    pub fn a(&self, target: &LowRankTarget) -> &[f32] {
        &self.params.data[target.a.clone()]
    }

    /// B of a target.
    pub fn b(&self, target: &LowRankTarget) -> &[f32] {
        &self.params.data[target.b.clone()]
    }
}

/// What the engine reads of a model: its weights, and adapters beside them. Those of the model itself, unless others are named.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    /// The weights.
    pub params: &'a Params,
    /// The adapters, if there are any.
    pub low_rank: Option<&'a LowRank>,
}

impl<'a> From<&'a Params> for Weights<'a> {
    fn from(params: &'a Params) -> Self {
        Self {
            params,
            low_rank: params.low_rank.as_ref(),
        }
    }
}

impl<'a> Weights<'a> {
    /// The weights of a range of the layout.
    pub fn slice(&self, range: &Range<usize>) -> &'a [f32] {
        &self.params.data[range.clone()]
    }

    /// The ranges of the tensors.
    pub fn layout(&self) -> &'a Layout {
        &self.params.layout
    }
}

//! The numerics on plain f32 buffers: forward and backward pass, KV cache, loss. Independent of facts, files and training.
//!
//! The interface is small and named by what it computes, so that another device can implement it: [`Engine::hidden`],
//! [`Engine::residual_after`], [`Engine::loss_and_gradients`], [`Engine::extend`], [`Engine::logits`], [`Engine::kl_divergences`],
//! [`Engine::second_moments`], [`basis_outputs`], [`restore_basis_outputs`].
//!
//! Results are bitwise independent of the number of threads: every sum is computed in a fixed order.
//!
//! | file | content |
//! |---|---|
//! | `decoder` | the layers, forward and backward |
//! | `linear`, `matrix` | a linear layer with its adapters, and its weight in f32 or frozen |
//! | `attention`, `ops`, `rope`, `matmul`, `small_matmul` | the operations of a layer and their gradients |
//! | `head`, `loss`, `topk` | logits, cross-entropy and KL divergence at the output positions |
//! | `batch`, `cache` | packed rows, and the KV cache |
//! | `gradients` | gradients of the trained tensors, and [`GradSink`], which receives them during the backward pass |
//! | `projection_ops`, `eigen` | what the null-space projection needs |
//! | `simd`, `profile` | vectorised functions, and where the time of a step goes |

use rayon::prelude::*;

use self::profile::{Phase, Work, timed};
use crate::{
    Error, Result,
    config::Device,
    distributed::Comm,
    model::{Buffer, LinearInput, ModelConfig, Params, Weights},
};

mod attention;
mod batch;
mod cache;
mod decoder;
#[cfg_attr(not(feature = "gpu"), path = "no_device.rs")]
mod device;
mod device_cache;
pub(crate) mod eigen;
#[cfg(feature = "gpu")]
mod gpu_array;
#[cfg(feature = "gpu")]
mod gpu_decoder;
#[cfg(feature = "gpu")]
mod gpu_engine;
#[cfg(feature = "gpu")]
mod gpu_teacher;
mod gradients;
mod head;
mod linear;
mod loss;
pub(crate) mod matmul;
mod matrix;
mod new_tokens;
mod ops;
pub mod profile;
mod projection_ops;
mod rope;
pub mod simd;
mod small_matmul;
#[cfg(test)]
mod tests;
mod topk;

pub use batch::{Batch, CachedPrefix};
pub use cache::{KvCache, SegmentId};
use decoder::{ActivationPolicy, Decoder, ForwardInput, LayerAttention, attend_rows, norm_weight};
pub use device::OnGpu;
#[cfg(feature = "gpu")]
pub use gpu_array::{GpuArray, model_parts as gpu_model_parts};
#[cfg(feature = "gpu")]
pub use gpu_decoder::{GpuGradients, trained_ranges};
#[cfg(feature = "gpu")]
pub use gpu_engine::GpuEngine;
pub(crate) use gradients::overlap;
pub use gradients::{GradSink, Gradients};
pub use loss::{DistillOptions, Loss, RngStream, SoftTargets, Target, TeacherLogits};
use matrix::Matrix;
use new_tokens::NewTokens;
pub use projection_ops::{basis_outputs, restore_basis_outputs};
pub use topk::topk;

/// An engine with a model's weights and memory for its gradients.
pub struct TrainingModel<'a> {
    /// The engine.
    pub engine: &'a mut Engine,
    /// The weights.
    pub params: &'a Params,
    /// The gradients of the trained tensors.
    pub gradients: &'a mut Gradients,
}

/// Uncentred second moments of a linear layer's input: the sum over tokens of `x x^T`, in f32.
pub struct SecondMoments {
    /// Index of the decoder layer.
    pub layer: usize,
    /// Which input of that layer.
    pub input: LinearInput,
    /// The sum (N, N), where N is the width of the input. Only the lower triangle and the diagonal are defined.
    pub sum: Buffer,
}

/// The new tokens whose hidden states [`Engine::extend`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outputs {
    /// The last one of each row: (rows, D).
    Last,
    /// Every one: (tokens, D).
    All,
}

/// Forward and backward passes for one model shape, with the memory that they need.
pub struct Engine {
    config: ModelConfig,
    decoder: Decoder,
    training_policy: ActivationPolicy,
    comm: Comm,
    logits: [Vec<f32>; 2], // of the student and of the teacher, a few rows at a time
    gpu: Option<OnGpu>,
}

impl Engine {
    /// An engine for models of this shape.
    pub fn new(config: &ModelConfig) -> Self {
        Self {
            config: config.clone(),
            decoder: Decoder::new(config),
            training_policy: ActivationPolicy::All,
            comm: Comm::single(),
            logits: [Vec::new(), Vec::new()],
            gpu: None,
        }
    }

    /// An engine that computes on `device`. Passes of training that it keeps for itself ([`Engine::loss_and_gradients`],
    /// [`Engine::second_moments`]) are on the CPU; those of a GPU are its own engine's (`OnGpu::engine`).
    ///
    /// # Errors
    /// [`Error::Input`] if there is no such device, [`Error::Failed`] if it cannot be used.
    pub fn on(config: &ModelConfig, device: Device) -> Result<Self> {
        let gpu = match device {
            Device::Auto | Device::Cpu => None,
            Device::Gpu(index) => Some(OnGpu::open(index, config)?),
        };
        Ok(Self {
            gpu,
            ..Self::new(config)
        })
    }

    /// The GPU that it computes on, if it does.
    pub fn gpu(&mut self) -> Option<&mut OnGpu> {
        self.gpu.as_mut()
    }

    /// Why the GPU failed, if it did since the last call. What was computed of keys and values there is not a number.
    pub fn take_device_error(&mut self) -> Option<Error> {
        self.gpu.as_mut().and_then(OnGpu::take_error)
    }

    /// Turns gradient checkpointing on or off: the backward pass recomputes the activations of one layer at a time. Results are bitwise
    /// identical, with less memory and more time.
    #[must_use]
    pub fn with_gradient_checkpointing(mut self, enabled: bool) -> Self {
        self.training_policy = ActivationPolicy::for_training(enabled);
        if let Some(gpu) = &mut self.gpu {
            gpu.set_gradient_checkpointing(enabled);
        }
        self
    }

    /// Lets several processes, each with an engine of the same shape, share what can be split: rows, queries, weights.
    #[must_use]
    pub fn with_comm(mut self, comm: Comm) -> Self {
        self.comm = comm;
        self
    }

    /// The processes that share the work.
    pub fn comm(&self) -> Comm {
        self.comm
    }

    /// Number of floats that a forward and backward pass over so many tokens allocates.
    pub fn training_floats(
        config: &ModelConfig,
        tokens: usize,
        gradient_checkpointing: bool,
    ) -> usize {
        Decoder::floats(
            config,
            tokens,
            ActivationPolicy::for_training(gradient_checkpointing),
        )
    }

    /// Number of floats that attention's backward pass allocates for long rows and shared prefixes of `batch`, in addition to
    /// [`Engine::training_floats`].
    pub fn long_attention_floats(config: &ModelConfig, batch: &Batch) -> usize {
        Decoder::long_attention_floats(config, batch)
    }

    /// Number of floats that a forward pass without a backward pass allocates.
    pub fn inference_floats(config: &ModelConfig, tokens: usize) -> usize {
        Decoder::floats(config, tokens, ActivationPolicy::None)
    }

    /// Hidden states after the final norm at `positions` (distinct indices in `batch.tokens`): (P, D).
    pub fn hidden<'w>(
        &mut self,
        weights: impl Into<Weights<'w>>,
        batch: &Batch,
        positions: &[usize],
    ) -> Vec<f32> {
        let weights = weights.into();
        let gpu = self.gpu.as_mut();
        if let Some(hidden) = gpu.and_then(|gpu| gpu.hidden(weights.params, batch, positions)) {
            return hidden;
        }
        let layers = self.config.num_hidden_layers;
        let rows = self.residual_after(weights, batch, layers, positions);
        self.final_norm(weights, &rows).0
    }

    /// The residual stream after `layers` blocks, before the final norm, at `positions` (distinct indices in `batch.tokens`): (P, D).
    /// With 0 blocks these are the embeddings.
    pub fn residual_after<'w>(
        &mut self,
        weights: impl Into<Weights<'w>>,
        batch: &Batch,
        layers: usize,
        positions: &[usize],
    ) -> Vec<f32> {
        let weights = weights.into();
        let gpu = self.gpu.as_mut();
        let rows = gpu.and_then(|gpu| gpu.residual_after(weights.params, batch, layers, positions));
        if let Some(rows) = rows {
            return rows;
        }
        self.residual(weights, batch, layers, positions, ActivationPolicy::None)
            .to_vec()
    }

    /// [`Engine::residual_after`] with any activation policy.
    fn residual(
        &mut self,
        weights: Weights<'_>,
        batch: &Batch,
        layers: usize,
        output_positions: &[usize],
        policy: ActivationPolicy,
    ) -> &[f32] {
        let spans = batch.attention_spans();
        let prefix = batch.cached_prefix.as_ref();
        let input = ForwardInput {
            weights,
            tokens: &batch.tokens,
            positions: &batch.positions(),
            cached_prefix: prefix.filter(|prefix| prefix.layers < layers),
            num_layers: layers,
            output_positions,
            policy,
        };
        self.decoder.forward(&input, |of, qkv, o, lse| {
            attend_rows(&spans, of.shape, qkv, o, lse);
        })
    }

    /// The final norm of `rows` (P, D), and its r (P). Logits that are scaled are so by the norm's output.
    fn final_norm(&self, weights: Weights<'_>, rows: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let mut normed = vec![0.0; rows.len()];
        let mut r = vec![0.0; rows.len() / self.config.hidden_size];
        let weight = norm_weight(
            weights,
            &weights.layout().norm,
            self.config.switches.norm_offset,
        );
        ops::rms_norm(&mut normed, &mut r, rows, &weight, self.config.rms_norm_eps);
        self.scale_for_logits(&mut normed);
        (normed, r)
    }

    /// Divides hidden states, or the gradient of the final norm's output, by `logits_scaling`.
    fn scale_for_logits(&self, rows: &mut [f32]) {
        let scaling = self.config.switches.logits_scaling;
        if scaling != 1.0 {
            for x in rows {
                *x /= scaling;
            }
        }
    }

    fn head<'a>(&self, params: &'a Params) -> head::LmHead<'a> {
        head::LmHead {
            weight: Matrix::of(params, &params.layout.head),
            vocab_size: self.config.vocab_size,
            hidden_size: self.config.hidden_size,
        }
    }

    /// The loss at `targets`. Its gradient is added to `gradients`, and handed to `sink` part by part.
    pub fn loss_and_gradients(
        &mut self,
        mut sink: impl GradSink,
        batch: &Batch,
        targets: &[Target],
        teacher: Option<SoftTargets<'_>>,
        gradients: &mut Gradients,
    ) -> Loss {
        let params = sink.params();
        let weights = Weights::from(params);
        let layout = params.layout.clone();
        let positions: Vec<usize> = targets.iter().map(|t| t.position).collect();
        let layers = self.config.num_hidden_layers;
        let rows = self
            .residual(weights, batch, layers, &positions, self.training_policy)
            .to_vec();
        let (normed, r) = self.final_norm(weights, &rows);

        let mut d_normed = vec![0.0; rows.len()];
        let head = self.head(params);
        let work = Work::floats(3 * targets.len() * head.vocab_size);
        let loss = timed(Phase::Loss, work, || {
            let d_head = head::HeadGradients {
                hidden: &mut d_normed,
                weight: gradients.tensor_mut(&layout.head),
            };
            head::loss_and_gradients(head, &normed, targets, teacher, d_head, &mut self.logits)
        });
        self.scale_for_logits(&mut d_normed);
        let mut d_rows = vec![0.0; rows.len()];
        let weight = norm_weight(weights, &layout.norm, self.config.switches.norm_offset);
        ops::rms_norm_backward(
            &mut d_rows,
            gradients.tensor_mut(&layout.norm),
            &d_normed,
            &rows,
            &r,
            &weight,
        );
        sink.grad_ready(&layout.norm, gradients);
        if layout.head != layout.embed {
            sink.grad_ready(&layout.head, gradients);
        }
        self.decoder
            .backward(&mut sink, batch, gradients, &positions, &d_rows);
        loss
    }

    /// Adds the contribution of every token of `batch` to `moments`.
    pub fn second_moments(
        &mut self,
        params: &Params,
        batch: &Batch,
        moments: &mut [SecondMoments],
    ) {
        let t = batch.tokens.len();
        if t == 0 {
            return;
        }
        let layers = moments.iter().map(|m| m.layer + 1).max().unwrap_or(0);
        let all: Vec<usize> = (0..t).collect();
        self.residual(params.into(), batch, layers, &all, ActivationPolicy::All);
        for SecondMoments { layer, input, sum } in moments {
            let x = self.decoder.linear_input(params.into(), t, *layer, *input);
            let n = x.len() / t;
            matmul::second_moments(sum, x, [t, n]);
        }
    }

    /// Appends tokens to segments of the cache (each at most once, none empty), and returns hidden states after the final norm.
    pub fn extend(
        &mut self,
        params: &Params,
        cache: &mut KvCache,
        rows: &[(SegmentId, &[u32])],
        outputs: Outputs,
    ) -> Vec<f32> {
        let heads = self.decoder.heads();
        let (q_width, qkv_width) = (heads.q_width(), heads.qkv_width());
        let (mut tokens, mut positions, mut slots, mut ranges) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (segment, new) in rows {
            let (before, slot) = (cache.len(*segment), cache.grow(*segment, new.len()));
            ranges.push(tokens.len()..tokens.len() + new.len());
            tokens.extend_from_slice(new);
            positions.extend(before..before + new.len());
            slots.extend(slot..slot + new.len());
        }
        let output_positions: Vec<usize> = match outputs {
            Outputs::All => (0..tokens.len()).collect(),
            Outputs::Last => ranges.iter().map(|r| r.end - 1).collect(),
        };
        if let Some(gpu) = &mut self.gpu {
            let segments = rows.iter().map(|(segment, _)| *segment);
            let new = NewTokens {
                tokens: &tokens,
                positions: &positions,
                slots: &slots,
                rows: segments.zip(ranges).collect(),
                outputs: &output_positions,
            };
            let lost = || vec![f32::NAN; output_positions.len() * self.config.hidden_size];
            return gpu.extend(params, cache, new).unwrap_or_else(lost);
        }
        cache.reserve();
        let input = ForwardInput {
            weights: params.into(),
            tokens: &tokens,
            positions: &positions,
            cached_prefix: None,
            num_layers: self.config.num_hidden_layers,
            output_positions: &output_positions,
            policy: ActivationPolicy::None,
        };
        let rows = self.decoder.forward(&input, |of, qkv, o, lse| {
            let LayerAttention { layer, shape } = of;
            for (row, slot) in qkv.chunks_exact(qkv_width).zip(&slots) {
                cache.write(layer, *slot, &row[q_width..]);
            }
            let rows: Vec<_> = rows
                .iter()
                .zip(&ranges)
                .map(|((segment, _), tokens)| {
                    let (context, own) = cache.spans(layer, *segment);
                    attention::AttentionRow {
                        tokens: tokens.clone(),
                        context,
                        own,
                    }
                })
                .collect();
            attention::forward(o, lse, qkv, &rows, shape);
        });
        let rows = rows.to_vec();
        self.final_norm(params.into(), &rows).0
    }

    /// Calls `f(row, logits)` for each row of `hidden` (P, D), in parallel; `f` may overwrite the logits (V). Results are in the order
    /// of the rows. Only a few rows of logits exist at a time.
    pub fn logits<R: Send>(
        &mut self,
        params: &Params,
        hidden: &[f32],
        f: impl Fn(usize, &mut [f32]) -> R + Sync,
    ) -> Vec<R> {
        let v = self.config.vocab_size;
        let mut results = Vec::new();
        let gpu = self.gpu.as_mut();
        let done = gpu.and_then(|gpu| {
            gpu.logits(params, hidden, |first, logits| {
                let rows = logits.par_chunks_mut(v).enumerate();
                results.par_extend(rows.map(|(row, logits)| f(first + row, logits)));
            })
        });
        if done.is_some() {
            return results;
        }
        head::logits(self.head(params), hidden, &mut self.logits[0], f)
    }

    /// KL(reference || model) in nats over the whole vocabulary, at each of P positions: `hidden` are the model's hidden states there
    /// and `reference_hidden` those of the reference (P, D each), whose LM head is `reference_head` (V, D), or the model's own.
    pub fn kl_divergences(
        &mut self,
        params: &Params,
        hidden: &[f32],
        reference_hidden: &[f32],
        reference_head: Option<&[f32]>,
    ) -> Vec<f64> {
        let gpu = self.gpu.as_mut();
        let both = [hidden, reference_hidden];
        let on_gpu = gpu.and_then(|gpu| gpu.kl_divergences(params, both, reference_head));
        if let Some(divergences) = on_gpu {
            return divergences;
        }
        let head = self.head(params);
        let reference = head::LmHead {
            weight: reference_head.map_or(head.weight, Matrix::Dense),
            ..head
        };
        head::kl_divergences(
            [head, reference],
            [hidden, reference_hidden],
            &mut self.logits,
        )
    }
}

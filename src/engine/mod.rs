//! The mathematics: forward, backward, key/value cache, loss. Nothing here knows what a fact is.
//!
//! The outside is small and named by what it computes, so that another device can stand behind it: [`Engine::hidden`],
//! [`Engine::residual_after`], [`Engine::loss_and_gradients`], [`Engine::extend`], [`Engine::logits`],
//! [`Engine::second_moments`], [`basis_outputs`], [`restore_basis_outputs`].

use std::ops::Range;

use rayon::prelude::*;

use self::profile::{Phase, Work, timed};
use crate::model::{Buffer, Layout, LinearInput, ModelConfig, Params};

mod attention;
mod batch;
mod cache;
#[cfg(all(
    test,
    target_os = "linux",
    target_arch = "x86_64",
    not(debug_assertions)
))]
mod counts;
mod decoder;
pub(crate) mod eigen;
mod head;
pub(crate) mod matmul;
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
use decoder::{ActivationPolicy, Decoder, attend_rows};
pub use projection_ops::{basis_outputs, restore_basis_outputs};
pub use topk::topk;

/// One answer position: the token that should follow, and the weight of each loss term there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// Index in [`Batch::select`] of the token whose logits predict `token`. Strictly increasing over a batch.
    pub position: usize,
    /// The token that follows.
    pub token: u32,
    /// Weight of the cross-entropy at this position in the loss.
    pub ce_weight: f32,
    /// Weight of the KL divergence at this position in the loss (lambda, tau^2 and the reduction are in it).
    pub distill_weight: f32,
}

/// The teacher's side of the distillation term at the batch's targets.
#[derive(Clone, Copy)]
pub struct SoftTargets<'a> {
    /// Its logits.
    pub logits: TeacherLogits<'a>,
    /// tau.
    pub temperature: f32,
    /// Compare all tokens but the target itself, as much as the teacher gives to them.
    pub exclude_target: bool,
}

/// Where the teacher's logits come from.
#[derive(Clone, Copy)]
pub enum TeacherLogits<'a> {
    /// The product of both.
    Hidden {
        /// The teacher's LM head (V, D).
        head: &'a [f32],
        /// The teacher's last hidden states, after the final norm, a row a target (P, D).
        hidden: &'a [f32],
        /// Which tokens count.
        subset: TokenSubset,
    },
    /// Those of its `count` most likely tokens alone, which are compared.
    TopK {
        /// The tokens (P, count).
        tokens: &'a [u32],
        /// Their logits (P, count).
        logits: &'a [f32],
        /// Tokens a target.
        k: usize,
    },
}

/// The tokens over which teacher and student are compared at a target; both are renormalised over them (eq. 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenSubset {
    /// The whole vocabulary.
    Full,
    /// The teacher's most likely ones.
    TopK(usize),
    /// So many drawn at random, without replacement, for every target anew.
    Random {
        /// How many.
        count: usize,
        /// Seed of the draws.
        seed: u64,
        /// Stream of the first target's draw; those behind it follow.
        stream: u64,
    },
}

/// The terms of the loss, each already weighted and summed over the targets, in nats.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// Sum of `ce_weight` * cross-entropy.
    pub ce: f64,
    /// Sum of `distill_weight` * KL(teacher || student), both softened by the temperature.
    pub distill: f64,
    /// What holds the weights themselves; the engine knows of none.
    pub penalty: f64,
}

impl Loss {
    /// All terms together.
    pub fn total(&self) -> f64 {
        self.ce + self.distill + self.penalty
    }
}

/// The weights of a backward pass, which may move as soon as nothing that is still to be done reads them.
pub trait GradSink {
    /// As they are.
    fn params(&self) -> &Params;

    /// A pass begins, after which so many follow before anything moves.
    fn begin_micro_batch(&mut self, _remaining: usize) {}

    /// The gradient of these of the weights (a stretch of the layout) is complete, and the rest of the pass reads neither.
    fn grad_ready(&mut self, weights: &Range<usize>, gradients: &mut Gradients);
}

/// Weights that stay as they are until the whole gradient is there.
impl GradSink for &Params {
    fn params(&self) -> &Params {
        self
    }

    fn grad_ready(&mut self, _: &Range<usize>, _: &mut Gradients) {}
}

impl<W: GradSink> GradSink for &mut W {
    fn params(&self) -> &Params {
        (**self).params()
    }

    fn begin_micro_batch(&mut self, passes_left: usize) {
        (**self).begin_micro_batch(passes_left);
    }

    fn grad_ready(&mut self, weights: &Range<usize>, gradients: &mut Gradients) {
        (**self).grad_ready(weights, gradients);
    }
}

/// Gradients of the trained tensors; the others have none, and cost neither products nor memory.
pub struct Gradients {
    /// Per trained tensor, ascending: its index in the layout's `tensors` and where its numbers lie among those of all trained
    /// ones, and its gradient in `data`, unless the layers share their place there.
    pub tensors: Vec<(usize, Range<usize>)>,
    /// The gradients.
    pub data: Buffer,
    segments: Vec<(Range<usize>, usize)>, // stretches of neighbouring trained weights: where in the weights, where among the trained
    layer_buffer: Option<LayerBuffer>,
}

/// One place in `data` for the gradients of every layer, one after the other.
#[derive(Clone, Copy)]
struct LayerBuffer {
    first: usize,  // where the layers begin among the trained
    layer: usize,  // trained numbers of a layer
    layers: usize, // trained numbers of all layers
}

impl LayerBuffer {
    /// Of these tensors, by index in the layout; none where not every layer has the same of them.
    fn of(layout: &Layout, tensors: &[(usize, Range<usize>)]) -> Option<Self> {
        let within = |layer: Range<usize>| -> Vec<Range<usize>> {
            let of = tensors.iter().map(|(i, _)| &layout.tensors[*i].range);
            of.filter(|tensor| layer.contains(&tensor.start))
                .map(|tensor| tensor.start - layer.start..tensor.end - layer.start)
                .collect()
        };
        let mut layers = layout.layers.iter().map(|layer| within(layer.range()));
        let of_layer = layers.next().filter(|first| !first.is_empty())?;
        if layers.any(|layer| layer != of_layer) {
            return None;
        }
        let layer = of_layer.iter().map(Range::len).sum();
        let begin = layout.layers[0].range().start;
        let before = tensors
            .iter()
            .filter(|(i, _)| layout.tensors[*i].range.start < begin);
        Some(Self {
            first: before.map(|(_, at)| at.len()).sum(),
            layer,
            layers: layer * layout.layers.len(),
        })
    }

    /// Where in `data` that lies which lies at `at` among the trained.
    fn offset(self, at: usize) -> usize {
        let Self {
            first,
            layer,
            layers,
        } = self;
        if at < first {
            at
        } else if at < first + layers {
            first + (at - first) % layer
        } else {
            at - layers + layer
        }
    }
}

/// What both ranges cover, where it is anything.
pub(crate) fn overlap(a: &Range<usize>, b: &Range<usize>) -> Option<Range<usize>> {
    let both = a.start.max(b.start)..a.end.min(b.end);
    (!both.is_empty()).then_some(both)
}

/// The trained tensors, by index in the layout, and where each lies among the trained; the numbers of all of them.
fn trained_offsets(layout: &Layout, trained: &[bool]) -> (Vec<(usize, Range<usize>)>, usize) {
    let mut len = 0;
    let tensors = layout.tensors.iter().enumerate();
    let tensors = tensors.filter(|(i, _)| trained[*i]).map(|(i, tensor)| {
        let start = len;
        len += tensor.range.len();
        (i, start..len)
    });
    (tensors.collect(), len)
}

/// The stretches that trained tensors make: neighbours are one.
fn merge_segments<'a>(
    layout: &Layout,
    tensors: impl Iterator<Item = &'a (usize, Range<usize>)>,
) -> Vec<(Range<usize>, usize)> {
    let mut runs = Vec::<(Range<usize>, usize)>::new();
    for (tensor, at) in tensors {
        let weights = &layout.tensors[*tensor].range;
        match runs.last_mut() {
            Some((run, _)) if run.end == weights.start => run.end = weights.end,
            _ => runs.push((weights.clone(), at.start)),
        }
    }
    runs
}

impl Gradients {
    /// Zero gradients for the tensors of `params` for which `trained` says so (by index in the layout).
    pub fn new(params: &Params, trained: &[bool]) -> Self {
        let (tensors, len) = trained_offsets(&params.layout, trained);
        Self {
            segments: merge_segments(&params.layout, tensors.iter()),
            tensors,
            data: Buffer::zeros(len),
            layer_buffer: None,
        }
    }

    /// The same with one place for all layers, for a pass whose [`GradSink`] take each layer's gradient, and clear it, before the
    /// next one is made. Where the layers are not all trained alike, each has its own.
    pub fn with_layer_buffer(params: &Params, trained: &[bool]) -> Self {
        let layout = &params.layout;
        let (tensors, _) = trained_offsets(layout, trained);
        Self {
            segments: merge_segments(layout, tensors.iter()),
            data: Buffer::zeros(Self::layer_buffer_floats(layout, trained)),
            layer_buffer: LayerBuffer::of(layout, &tensors),
            tensors,
        }
    }

    /// The numbers that it holds.
    pub fn layer_buffer_floats(layout: &Layout, trained: &[bool]) -> usize {
        let (tensors, len) = trained_offsets(layout, trained);
        LayerBuffer::of(layout, &tensors).map_or(len, |shared| len - shared.layers + shared.layer)
    }

    /// Numbers of all trained tensors.
    pub fn num_trained(&self) -> usize {
        self.tensors.last().map_or(0, |(_, at)| at.end)
    }

    /// Of the trained tensors only those go on being trained for which `trained` says so (by index in the layout). The
    /// others keep their place in `data` and stay without a gradient.
    pub fn set_trainable(&mut self, layout: &Layout, trained: impl Fn(usize) -> bool) {
        self.segments = merge_segments(layout, self.tensors.iter().filter(|(i, _)| trained(*i)));
        self.zero();
    }

    /// Whether the tensor (by index in the layout) has a place here.
    pub fn contains(&self, tensor: usize) -> bool {
        self.tensors.iter().any(|(i, _)| *i == tensor)
    }

    /// Sets all gradients to zero.
    pub fn zero(&mut self) {
        self.zero_range(0..self.data.len());
    }

    /// Sets a part of `data` to zero.
    pub fn zero_range(&mut self, part: Range<usize>) {
        self.data[part]
            .par_chunks_mut(1 << 20)
            .for_each(|x| x.fill(0.0));
    }

    /// Stretches that lie together both among the weights and among the trained: where in either.
    pub fn segments(&self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + '_ {
        self.segments
            .iter()
            .map(|(weights, at)| (weights.clone(), *at..*at + weights.len()))
    }

    /// Where the weights lie whose place among the trained is in `trained`.
    pub fn weight_ranges(&self, trained: &Range<usize>) -> Vec<Range<usize>> {
        let within = self.segments().filter_map(|(weights, at)| {
            let part = overlap(&at, trained)?;
            let first = weights.start + part.start - at.start;
            Some(first..first + part.len())
        });
        within.collect()
    }

    /// Those of [`Gradients::segments`] that lie within `weights`, a layer at most where layers share their place, and where
    /// their gradients lie in `data`.
    pub fn segments_within(
        &self,
        weights: &Range<usize>,
    ) -> Vec<(Range<usize>, Range<usize>, Range<usize>)> {
        let within = self.segments.iter().filter_map(|(run, at)| {
            let part = overlap(run, weights)?;
            let (at, len) = (at + part.start - run.start, part.len());
            let place = self.layer_buffer.map_or(at, |shared| shared.offset(at));
            Some((part, at..at + len, place..place + len))
        });
        within.collect()
    }

    /// Where the first trained weight lies.
    fn first_trained(&self) -> usize {
        self.segments
            .first()
            .map_or(usize::MAX, |(run, _)| run.start)
    }

    /// The trained stretches of a group of weights: where in the group, and their gradients.
    fn slices_mut(
        &mut self,
        group: &Range<usize>,
    ) -> impl Iterator<Item = (Range<usize>, &mut [f32])> {
        let mut rest: &mut [f32] = &mut self.data;
        let (mut taken, shared) = (0, self.layer_buffer);
        self.segments.iter().filter_map(move |(run, at)| {
            let part = overlap(run, group)?;
            let at = at + part.start - run.start;
            let at = shared.map_or(at, |shared| shared.offset(at));
            let (_, from) = std::mem::take(&mut rest).split_at_mut(at - taken);
            let (slot, after) = from.split_at_mut(part.len());
            rest = after;
            taken = at + part.len();
            Some((part.start - group.start..part.end - group.start, slot))
        })
    }

    /// The gradient of one whole tensor (or group), where it is trained.
    fn tensor_mut(&mut self, range: &Range<usize>) -> Option<&mut [f32]> {
        self.slices_mut(range).next().map(|(_, slot)| slot)
    }

    /// Adds the weight gradient of a linear layer, `dy^T x`, to the trained rows of its weight (N, K).
    fn add_linear_grad(
        &mut self,
        weight: &Range<usize>,
        dy: &[f32],
        x: &[f32],
        [t, n, k]: [usize; 3],
    ) {
        for (part, slot) in self.slices_mut(weight) {
            matmul::weight_gradient(slot, dy, part.start / k, x, [t, n, k]);
        }
    }
}

/// Uncentred second moments of what linear layers read: `sum over tokens of x x^T`, in f32.
pub struct SecondMoments {
    /// The layer.
    pub layer: usize,
    /// Which of its inputs.
    pub input: LinearInput,
    /// The sum (N, N), N the input's width: on and below the diagonal, above it there may be anything.
    pub sum: Buffer,
}

/// Which of the new tokens [`Engine::extend`] returns hidden states for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outputs {
    /// The last one of each row: (rows, D).
    Last,
    /// Every one: (tokens, D).
    All,
}

/// What a forward pass keeps that a backward pass follows.
fn training_policy(recompute: bool) -> ActivationPolicy {
    if recompute {
        ActivationPolicy::Checkpoint
    } else {
        ActivationPolicy::All
    }
}

/// Forward and backward over one model shape, with the memory they need.
pub struct Engine {
    config: ModelConfig,
    decoder: Decoder,
    training_policy: ActivationPolicy, // what is kept for a backward pass
    logits: [Vec<f32>; 2],             // of the student and of the teacher, a few rows at a time
}

impl Engine {
    /// An engine for models of this shape.
    pub fn new(config: &ModelConfig) -> Self {
        Self {
            config: config.clone(),
            decoder: Decoder::new(config),
            training_policy: ActivationPolicy::All,
            logits: [Vec::new(), Vec::new()],
        }
    }

    /// The same, but that its backward passes compute again what forward passes had computed, a layer at a time: the same bits for
    /// less memory and more time. `recompute` says whether.
    #[must_use]
    pub fn with_gradient_checkpointing(mut self, recompute: bool) -> Self {
        self.training_policy = training_policy(recompute);
        self
    }

    /// Numbers that a forward and backward pass over so many tokens holds, [recomputing](Self::recomputing) or not.
    pub fn training_floats(config: &ModelConfig, tokens: usize, recompute: bool) -> usize {
        Decoder::floats(config, tokens, training_policy(recompute))
    }

    /// Numbers that a forward pass alone holds.
    pub fn inference_floats(config: &ModelConfig, tokens: usize) -> usize {
        Decoder::floats(config, tokens, ActivationPolicy::None)
    }

    /// Hidden states after the final norm at `positions` (indices in `batch.tokens`, none twice): (P, D).
    pub fn hidden(&mut self, params: &Params, batch: &Batch, positions: &[usize]) -> Vec<f32> {
        let layers = self.config.num_hidden_layers;
        let rows = self.residual_after(params, batch, layers, positions);
        self.final_norm(params, &rows).0
    }

    /// The residual stream after `layers` blocks at `positions` (indices in `batch.tokens`, none twice): (P, D). 0 blocks: the
    /// embeddings; the final norm is not part of it.
    pub fn residual_after(
        &mut self,
        params: &Params,
        batch: &Batch,
        layers: usize,
        positions: &[usize],
    ) -> Vec<f32> {
        self.residual(params, batch, layers, positions, ActivationPolicy::None)
            .to_vec()
    }

    /// The same, kept or not.
    fn residual(
        &mut self,
        params: &Params,
        batch: &Batch,
        layers: usize,
        output_positions: &[usize],
        policy: ActivationPolicy,
    ) -> &[f32] {
        let (heads, reaches) = (self.decoder.heads(), batch.attention_spans());
        self.decoder.forward(
            params,
            (
                &batch.tokens,
                batch.cached_prefix.as_ref().filter(|b| b.layers < layers),
            ),
            &batch.positions(),
            layers,
            output_positions,
            policy,
            |_, qkv, o, lse| attend_rows(&reaches, heads, qkv, o, lse),
        )
    }

    /// Final norm of `rows` (P, D), and its r (P).
    fn final_norm(&self, params: &Params, rows: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let mut normed = vec![0.0; rows.len()];
        let mut r = vec![0.0; rows.len() / self.config.hidden_size];
        let weight = &params.data[params.layout.norm.clone()];
        ops::rms_norm(&mut normed, &mut r, rows, weight, self.config.rms_norm_eps);
        (normed, r)
    }

    /// The loss at `targets` and its gradient, which is added to `gradients`.
    pub fn loss_and_gradients(
        &mut self,
        mut sink: impl GradSink,
        batch: &Batch,
        targets: &[Target],
        teacher: Option<SoftTargets<'_>>,
        gradients: &mut Gradients,
    ) -> Loss {
        let (d, v) = (self.config.hidden_size, self.config.vocab_size);
        let params = sink.params();
        let layout = params.layout.clone();
        let positions: Vec<usize> = targets.iter().map(|t| t.position).collect();
        let layers = self.config.num_hidden_layers;
        let rows = self
            .residual(params, batch, layers, &positions, self.training_policy)
            .to_vec();
        let (normed, r) = self.final_norm(params, &rows);

        let mut d_normed = vec![0.0; rows.len()];
        let loss = timed(Phase::Loss, Work::floats(3 * targets.len() * v), || {
            head::loss(
                &params.data[layout.head.clone()],
                &normed,
                targets,
                teacher,
                &mut d_normed,
                gradients.tensor_mut(&layout.head),
                [v, d],
                &mut self.logits,
            )
        });
        let mut d_rows = vec![0.0; rows.len()];
        let weight = &params.data[layout.norm.clone()];
        ops::rms_norm_backward(
            &mut d_rows,
            gradients.tensor_mut(&layout.norm),
            &d_normed,
            &rows,
            &r,
            weight,
        );
        sink.grad_ready(&layout.norm, gradients);
        if layout.head != layout.embed {
            sink.grad_ready(&layout.head, gradients);
        }
        self.decoder
            .backward(&mut sink, batch, gradients, &positions, &d_rows);
        loss
    }

    /// Adds what every token of `batch` contributes to `moments`.
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
        self.residual(params, batch, layers, &all, ActivationPolicy::All);
        for SecondMoments { layer, input, sum } in moments {
            let x = self.decoder.linear_input(params, t, *layer, *input);
            let n = x.len() / t;
            matmul::second_moments(sum, x, [t, n]);
        }
    }

    /// Appends tokens to each segment (no segment twice, none empty), and returns hidden states after the final norm.
    pub fn extend(
        &mut self,
        params: &Params,
        cache: &mut KvCache,
        rows: &[(SegmentId, &[u32])],
        outputs: Outputs,
    ) -> Vec<f32> {
        let heads = self.decoder.heads();
        let (wide, width) = (heads.num_heads * heads.head_dim, heads.qkv_width());
        let (mut tokens, mut positions, mut slots, mut ranges) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (segment, new) in rows {
            let (before, slot) = (cache.len(*segment), cache.grow(*segment, new.len()));
            ranges.push(tokens.len()..tokens.len() + new.len());
            tokens.extend_from_slice(new);
            positions.extend(before..before + new.len());
            slots.extend(slot..slot + new.len());
        }
        let wanted: Vec<usize> = match outputs {
            Outputs::All => (0..tokens.len()).collect(),
            Outputs::Last => ranges.iter().map(|r| r.end - 1).collect(),
        };
        let rows = self.decoder.forward(
            params,
            (&tokens, None),
            &positions,
            self.config.num_hidden_layers,
            &wanted,
            ActivationPolicy::None,
            |layer, qkv, o, lse| {
                for (row, slot) in qkv.chunks_exact(width).zip(&slots) {
                    cache.write(layer, *slot, &row[wide..]);
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
                attention::forward(o, lse, qkv, &rows, heads);
            },
        );
        let rows = rows.to_vec();
        self.final_norm(params, &rows).0
    }

    /// Calls `f(row, logits)` for each row of `hidden` (P, D), in parallel; logits (V) may be overwritten. Results are in
    /// order. Logits are made a few rows at a time and never kept.
    pub fn logits<R: Send>(
        &mut self,
        params: &Params,
        hidden: &[f32],
        f: impl Fn(usize, &mut [f32]) -> R + Sync,
    ) -> Vec<R> {
        let shape = [self.config.vocab_size, self.config.hidden_size];
        head::logits(
            &params.data[params.layout.head.clone()],
            hidden,
            shape,
            &mut self.logits[0],
            f,
        )
    }
}

//! Gradients of the trained tensors, and the interface through which a backward pass hands them on.

use std::ops::Range;

use rayon::prelude::*;

use super::matmul;
use crate::model::{Buffer, Layout, Params};

/// Receives the gradients of a backward pass, segment by segment, while the pass is running: the one place where training strategies
/// differ.
///
/// [`Engine::loss_and_gradients`](super::Engine::loss_and_gradients) goes from the final norm through the layers, last to first, to
/// the embedding. Once the gradient of a part is complete, and the rest of the pass reads neither that gradient nor those weights, it
/// calls [`grad_ready`](Self::grad_ready). A sink decides what happens then:
///
/// - **accumulate** (`&Params`): nothing. Gradients of all micro-batches add up in [`Gradients`], and the optimizer steps afterwards.
/// - **optimizer step per layer**: the sink owns the weights and the optimizer, updates the segment and zeroes its gradient. One layer's
///   gradient is in memory at a time ([`Gradients::with_layer_buffer`]). It needs the whole step in one micro-batch. A first pass with
///   a sink that only sums squares gives the gradient norm for clipping.
/// - **sum over processes**: in the last micro-batch of a step, the sink sends the segment to be reduced while the backward pass
///   continues with the layers below.
pub trait GradSink {
    /// The weights that the pass reads.
    fn params(&self) -> &Params;

    /// Starts a micro-batch; `remaining` more follow before the optimizer step.
    fn begin_micro_batch(&mut self, _remaining: usize) {}

    /// The gradient of `weights`, a range of the layout, is complete for this micro-batch. The rest of the pass reads neither it nor
    /// these weights, so that both may change.
    ///
    /// `weights` is a whole layer, the final norm, the LM head (if it is not tied) or the embedding. It may contain tensors that are
    /// not trained: [`Gradients::segments_within`] has the trained parts.
    fn grad_ready(&mut self, weights: &Range<usize>, gradients: &mut Gradients);
}

/// Plain accumulation: the weights stay as they are until all gradients are there.
impl GradSink for &Params {
    fn params(&self) -> &Params {
        self
    }

    fn grad_ready(&mut self, _: &Range<usize>, _: &mut Gradients) {}
}

impl<S: GradSink> GradSink for &mut S {
    fn params(&self) -> &Params {
        (**self).params()
    }

    fn begin_micro_batch(&mut self, remaining: usize) {
        (**self).begin_micro_batch(remaining);
    }

    fn grad_ready(&mut self, weights: &Range<usize>, gradients: &mut Gradients) {
        (**self).grad_ready(weights, gradients);
    }
}

/// Gradients of the trained tensors. Frozen tensors have none, and cost neither computation nor memory.
///
/// The trained tensors are numbered contiguously, in the order of the layout: the *trained offset* of a weight is its index among all
/// trained weights.
pub struct Gradients {
    /// For each trained tensor, in order: its index in the layout's `tensors`, and its trained offsets. Its gradient is at the same
    /// offsets of `data`, unless the layers share a buffer.
    pub tensors: Vec<(usize, Range<usize>)>,
    /// The gradients.
    pub data: Buffer,
    /// Gradients of the adapters of the model, where these are trained.
    pub low_rank: Option<Box<Self>>,
    first_adapted: usize, // index of the first weight with an adapter that is trained
    segments: Vec<(Range<usize>, usize)>, // adjacent trained tensors merged: range of weights, first trained offset
    layer_buffer: Option<LayerBuffer>,
}

/// A part of `data` that all layers use for their gradients, one layer at a time.
#[derive(Clone, Copy)]
struct LayerBuffer {
    first: usize,  // trained offset of the first layer
    layer: usize,  // trained weights per layer
    layers: usize, // trained weights of all layers
}

impl LayerBuffer {
    /// For these tensors (by index in the layout); `None` unless every layer trains the same ones.
    fn new(layout: &Layout, tensors: &[(usize, Range<usize>)]) -> Option<Self> {
        let within = |layer: Range<usize>| -> Vec<Range<usize>> {
            let ranges = tensors.iter().map(|(i, _)| &layout.tensors[*i].range);
            ranges
                .filter(|tensor| layer.contains(&tensor.start))
                .map(|tensor| tensor.start - layer.start..tensor.end - layer.start)
                .collect()
        };
        let mut layers = layout.layers.iter().map(|layer| within(layer.range()));
        let of_layer = layers.next().filter(|first| !first.is_empty())?;
        if layers.any(|layer| layer != of_layer) {
            return None;
        }
        let layer = of_layer.iter().map(Range::len).sum();
        let start = layout.layers[0].range().start;
        let before = tensors
            .iter()
            .filter(|(i, _)| layout.tensors[*i].range.start < start);
        Some(Self {
            first: before.map(|(_, at)| at.len()).sum(),
            layer,
            layers: layer * layout.layers.len(),
        })
    }

    /// Index in `data` of a trained offset.
    fn index(self, offset: usize) -> usize {
        let Self {
            first,
            layer,
            layers,
        } = self;
        if offset < first {
            offset
        } else if offset < first + layers {
            first + (offset - first) % layer
        } else {
            offset - layers + layer
        }
    }
}

/// The intersection of two ranges, unless it is empty.
pub(crate) fn overlap(a: &Range<usize>, b: &Range<usize>) -> Option<Range<usize>> {
    let both = a.start.max(b.start)..a.end.min(b.end);
    (!both.is_empty()).then_some(both)
}

/// The trained tensors (index in the layout, trained offsets), and the number of trained weights.
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

/// Merges adjacent tensors into segments: range of weights, first trained offset.
fn merge_segments<'a>(
    layout: &Layout,
    tensors: impl Iterator<Item = &'a (usize, Range<usize>)>,
) -> Vec<(Range<usize>, usize)> {
    let mut segments = Vec::<(Range<usize>, usize)>::new();
    for (tensor, at) in tensors {
        let weights = &layout.tensors[*tensor].range;
        match segments.last_mut() {
            Some((segment, _)) if segment.end == weights.start => segment.end = weights.end,
            _ => segments.push((weights.clone(), at.start)),
        }
    }
    segments
}

impl Gradients {
    /// Zero gradients of the tensors of `params` that `trained` selects (by index in the layout).
    pub fn new(params: &Params, trained: &[bool]) -> Self {
        let (tensors, len) = trained_offsets(&params.layout, trained);
        Self {
            segments: merge_segments(&params.layout, tensors.iter()),
            tensors,
            data: Buffer::zeros(len),
            low_rank: None,
            first_adapted: usize::MAX,
            layer_buffer: None,
        }
    }

    /// Zero gradients of the adapters of `params`; its own tensors are frozen.
    pub fn of_adapters(params: &Params) -> Self {
        let frozen = vec![false; params.layout.tensors.len()];
        let adapters = params.low_rank.as_ref();
        let first = adapters.and_then(|adapters| adapters.targets.first());
        Self {
            low_rank: adapters.map(|adapters| {
                let all = vec![true; adapters.params.layout.tensors.len()];
                Box::new(Self::new(&adapters.params, &all))
            }),
            first_adapted: first.map_or(usize::MAX, |target| target.weight.start),
            ..Self::new(params, &frozen)
        }
    }

    /// The same with one buffer for all layers, for a [`GradSink`] that consumes and zeroes each layer's gradient before the next layer's
    /// is computed. If the layers do not all train the same tensors, each has its own memory.
    pub fn with_layer_buffer(params: &Params, trained: &[bool]) -> Self {
        let layout = &params.layout;
        let (tensors, _) = trained_offsets(layout, trained);
        Self {
            segments: merge_segments(layout, tensors.iter()),
            data: Buffer::zeros(Self::layer_buffer_floats(layout, trained)),
            low_rank: None,
            first_adapted: usize::MAX,
            layer_buffer: LayerBuffer::new(layout, &tensors),
            tensors,
        }
    }

    /// Number of floats in [`Gradients::with_layer_buffer`].
    pub fn layer_buffer_floats(layout: &Layout, trained: &[bool]) -> usize {
        let (tensors, len) = trained_offsets(layout, trained);
        LayerBuffer::new(layout, &tensors).map_or(len, |buffer| len - buffer.layers + buffer.layer)
    }

    /// Number of trained weights.
    pub fn num_trained(&self) -> usize {
        self.tensors.last().map_or(0, |(_, at)| at.end)
    }

    /// Freezes all tensors but those that `trained` selects (by index in the layout). Frozen tensors keep their place in `data`, which
    /// stays zero.
    pub fn set_trainable(&mut self, layout: &Layout, trained: impl Fn(usize) -> bool) {
        self.segments = merge_segments(layout, self.tensors.iter().filter(|(i, _)| trained(*i)));
        self.zero();
    }

    /// Whether the tensor (by index in the layout) has a place in `data`.
    pub fn contains(&self, tensor: usize) -> bool {
        self.tensors.iter().any(|(i, _)| *i == tensor)
    }

    /// Sets all gradients to zero.
    pub fn zero(&mut self) {
        self.zero_range(0..self.data.len());
        if let Some(adapters) = &mut self.low_rank {
            adapters.zero();
        }
    }

    /// Sets a range of `data` to zero.
    pub fn zero_range(&mut self, range: Range<usize>) {
        self.data[range]
            .par_chunks_mut(1 << 20)
            .for_each(|x| x.fill(0.0));
    }

    /// The segments of adjacent trained tensors: range of weights, trained offsets.
    pub fn segments(&self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + '_ {
        self.segments
            .iter()
            .map(|(weights, at)| (weights.clone(), *at..*at + weights.len()))
    }

    /// The ranges of weights whose trained offsets are in `trained`.
    pub fn weight_ranges(&self, trained: &Range<usize>) -> Vec<Range<usize>> {
        let ranges = self.segments().filter_map(|(weights, at)| {
            let part = overlap(&at, trained)?;
            let first = weights.start + part.start - at.start;
            Some(first..first + part.len())
        });
        ranges.collect()
    }

    /// The parts of [`Gradients::segments`] within `weights` (one layer at most where layers share a buffer): range of weights, trained
    /// offsets, range of `data`.
    pub fn segments_within(
        &self,
        weights: &Range<usize>,
    ) -> Vec<(Range<usize>, Range<usize>, Range<usize>)> {
        let within = self.segments.iter().filter_map(|(segment, at)| {
            let part = overlap(segment, weights)?;
            let (at, len) = (at + part.start - segment.start, part.len());
            let index = self.data_index(at);
            Some((part, at..at + len, index..index + len))
        });
        within.collect()
    }

    fn data_index(&self, offset: usize) -> usize {
        self.layer_buffer
            .map_or(offset, |buffer| buffer.index(offset))
    }

    /// Index of the first weight that is trained or has an adapter that is.
    pub(super) fn first_trained(&self) -> usize {
        let segment = self.segments.first();
        segment.map_or(self.first_adapted, |(segment, _)| {
            segment.start.min(self.first_adapted)
        })
    }

    /// The trained parts of a group of weights: range within the group, gradient.
    pub(super) fn slices_mut(
        &mut self,
        group: &Range<usize>,
    ) -> impl Iterator<Item = (Range<usize>, &mut [f32])> {
        let mut rest: &mut [f32] = &mut self.data;
        let (mut taken, buffer) = (0, self.layer_buffer);
        self.segments.iter().filter_map(move |(segment, at)| {
            let part = overlap(segment, group)?;
            let at = at + part.start - segment.start;
            let at = buffer.map_or(at, |buffer| buffer.index(at));
            let (_, from) = std::mem::take(&mut rest).split_at_mut(at - taken);
            let (slot, after) = from.split_at_mut(part.len());
            rest = after;
            taken = at + part.len();
            Some((part.start - group.start..part.end - group.start, slot))
        })
    }

    /// The gradient of a tensor (or group) that is trained as a whole or not at all.
    pub(super) fn tensor_mut(&mut self, range: &Range<usize>) -> Option<&mut [f32]> {
        self.slices_mut(range).next().map(|(_, slot)| slot)
    }

    /// Adds the weight gradient of a linear layer, `dy^T x`, to the trained rows of its weight (N, K).
    pub(super) fn add_linear_grad(
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

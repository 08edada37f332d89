//! The sink of a training step: what happens to each gradient as soon as the backward pass has completed it.

use std::{
    ops::Range,
    sync::mpsc::{self, Receiver, SyncSender},
    thread::Scope,
};

use super::adamw::{AdamW, StepConstants, squared_norm};
use crate::{
    distributed::Comm,
    engine::{
        GradSink, Gradients, Loss, overlap,
        profile::{Phase, Work, timed},
    },
    model::{Dropout, Params, params::LayerLayout},
};

/// Maximum number of gradient buckets in flight; the backward pass blocks when it is reached.
const MAX_IN_FLIGHT: usize = 2;

/// Receives the completed gradients of a backward pass.
pub(super) struct StepSink<'a> {
    params: &'a mut Params,
    action: GradAction<'a>,
    /// On the inputs of adapters beside the weights. Every micro-batch has its own.
    dropout: Option<Dropout>,
}

/// What is done with a gradient once it is complete.
pub(super) enum GradAction<'a> {
    /// It stays in the gradient buffer.
    Keep,
    /// Reduce-scatter: it is summed over the processes at its owner, which updates the weights.
    Reduce(Reducer),
    /// Its norm is added up, and it is cleared.
    Measure(NormAccumulator),
    /// `AdamW` updates its weights, and it is cleared: no more than one layer's gradient is held.
    ///
    /// The update is bitwise that of [`AdamW::step`], which is element-wise. A gradient that is not finite ends the step; the layers
    /// above it have been updated by then.
    Update {
        optimizer: &'a mut AdamW,
        constants: StepConstants,
        norm: NormAccumulator,
    },
}

impl<'a> GradAction<'a> {
    /// Updates weights by the gradients times `clip_scale`.
    pub fn update(optimizer: &'a mut AdamW, learning_rate: f64, clip_scale: f32) -> Self {
        Self::Update {
            constants: optimizer.begin_step(learning_rate, clip_scale),
            optimizer,
            norm: NormAccumulator::default(),
        }
    }
}

impl<'a> StepSink<'a> {
    pub fn new(params: &'a mut Params, action: GradAction<'a>, dropout: Option<Dropout>) -> Self {
        Self {
            params,
            action,
            dropout,
        }
    }

    /// Ends the backward pass. Where gradients were not kept, returns their norm, or the name of the tensor whose gradient was not
    /// finite.
    pub fn finish(self, gradients: &mut Gradients) -> Option<Result<f64, String>> {
        let Self { params, action, .. } = self;
        set_dropout(params, None);
        match action {
            GradAction::Keep => None,
            GradAction::Reduce(reducer) => {
                reducer.finish(params, gradients);
                None
            }
            GradAction::Measure(norm) => Some(norm.norm(params)),
            GradAction::Update {
                optimizer, norm, ..
            } => {
                let norm = norm.norm(params);
                if norm.is_ok() {
                    optimizer.end_step(params, gradients);
                }
                Some(norm)
            }
        }
    }
}

impl GradSink for StepSink<'_> {
    fn params(&self) -> &Params {
        self.params
    }

    fn begin_micro_batch(&mut self, remaining: usize) {
        let of_batch = self.dropout.map(|step| Dropout {
            key: step.key ^ remaining as u64,
            ..step
        });
        set_dropout(self.params, of_batch);
        if let GradAction::Reduce(reducer) = &mut self.action {
            reducer.remaining = Some(remaining);
        }
    }

    fn grad_ready(&mut self, weights: &Range<usize>, gradients: &mut Gradients) {
        match &mut self.action {
            GradAction::Keep => {}
            GradAction::Reduce(reducer) => {
                if reducer.remaining == Some(0) {
                    reducer.send(weights, gradients);
                }
            }
            GradAction::Measure(norm) => {
                let len = norm_floats(weights, gradients);
                timed(Phase::Penalties, Work::floats(2 * len), || {
                    norm.add(weights, gradients);
                    zero(weights, gradients);
                });
            }
            GradAction::Update {
                optimizer,
                constants,
                norm,
            } => {
                let len = norm_floats(weights, gradients);
                timed(Phase::Optimizer, Work::floats(8 * len), || {
                    norm.add(weights, gradients);
                    if norm.non_finite.is_none() {
                        optimizer.step_range(weights, self.params, gradients, constants);
                    }
                    zero(weights, gradients);
                });
            }
        }
    }
}

/// Dropout on the inputs of the model's adapters; `None` outside of training steps.
fn set_dropout(params: &mut Params, dropout: Option<Dropout>) {
    if let Some(low_rank) = &mut params.low_rank {
        low_rank.dropout = dropout;
    }
}

/// The number of trained weights in `weights`.
fn norm_floats(weights: &Range<usize>, gradients: &Gradients) -> usize {
    let segments = gradients.segments_within(weights).into_iter();
    segments.map(|(weights, ..)| weights.len()).sum()
}

fn zero(weights: &Range<usize>, gradients: &mut Gradients) {
    for (_, _, gradient) in gradients.segments_within(weights) {
        gradients.zero_range(gradient);
    }
}

/// The norm of gradients that are seen one after the other.
#[derive(Default)]
pub(super) struct NormAccumulator {
    /// The sum of their squares.
    sum: f64,
    /// The first weights whose gradient was not finite.
    non_finite: Option<Range<usize>>,
}

impl NormAccumulator {
    fn add(&mut self, weights: &Range<usize>, gradients: &Gradients) {
        for (weights, _, gradient) in gradients.segments_within(weights) {
            let sum = squared_norm(&gradients.data[gradient]);
            if !sum.is_finite() && self.non_finite.is_none() {
                self.non_finite = Some(weights);
            }
            self.sum += sum;
        }
    }

    /// The norm, or the tensor whose gradient was not finite.
    fn norm(&self, params: &Params) -> Result<f64, String> {
        let Some(weights) = &self.non_finite else {
            return Ok(self.sum.sqrt());
        };
        let mut tensors = params.layout.tensors.iter();
        let name = tensors
            .find(|tensor| tensor.range.contains(&weights.start))
            .map_or("a layer", |tensor| &tensor.name[..]);
        Err(format!("the gradient of {name}, or of one after it,"))
    }
}

/// A bucket: its range in the gradients, and a copy.
type Bucket = (Range<usize>, Vec<f32>);

/// Sums gradients over the processes during the backward pass, a layer at a time, each at the process that updates its weights
/// (`ZeRO` stage 1: Rajbhandari et al. 2020, arXiv 1910.02054).
pub(super) struct Reducer {
    comm: Comm,
    to_reduce: SyncSender<Bucket>,
    reduced: Receiver<Bucket>,
    /// Micro-batches after the current one; `None` before the first.
    remaining: Option<usize>,
}

impl Reducer {
    /// Starts the thread that reduces. `len`: of the gradients.
    pub fn spawn<'scope>(scope: &'scope Scope<'scope, '_>, comm: Comm, len: usize) -> Self {
        let (to_reduce, buckets) = mpsc::sync_channel::<Bucket>(MAX_IN_FLIGHT);
        let (done, reduced) = mpsc::channel::<Bucket>();
        scope.spawn(move || {
            for (range, mut values) in buckets {
                reduce_to_owners(comm, &mut values, range.start, len);
                // The receiver stays until the end.
                let _ = done.send((range, values));
            }
        });
        Self {
            comm,
            to_reduce,
            reduced,
            remaining: None,
        }
    }

    fn send(&self, weights: &Range<usize>, gradients: &mut Gradients) {
        for (_, range, _) in gradients.segments_within(weights) {
            let values = gradients.data[range.clone()].to_vec();
            self.to_reduce
                .send((range, values))
                .expect("the thread reduces until the end");
        }
        while let Ok(bucket) = self.reduced.try_recv() {
            self.store_own_shard(bucket, gradients);
        }
    }

    /// Waits for all sums. A process that had no row has sent nothing yet, and the others wait for its zeros.
    fn finish(self, params: &Params, gradients: &mut Gradients) {
        if self.remaining.is_none() {
            for weights in completion_order(params, gradients) {
                self.send(&weights, gradients);
            }
        }
        let Self {
            comm,
            to_reduce,
            reduced,
            ..
        } = self;
        drop(to_reduce);
        for bucket in reduced {
            store_own_shard(comm, bucket, gradients);
        }
    }

    fn store_own_shard(&self, bucket: Bucket, gradients: &mut Gradients) {
        store_own_shard(self.comm, bucket, gradients);
    }
}

/// Copies this process's shard of a reduced bucket into the gradients.
fn store_own_shard(comm: Comm, (range, values): Bucket, gradients: &mut Gradients) {
    let own = comm.shard_range(gradients.data.len());
    if let Some(part) = overlap(&own, &range) {
        let from = &values[part.start - range.start..part.end - range.start];
        gradients.data[part].copy_from_slice(from);
    }
}

/// Sums values that lie at `first` among the `len` that the processes share, each at its owner.
pub(super) fn reduce_to_owners(comm: Comm, values: &mut [f32], first: usize, len: usize) {
    let here = first..first + values.len();
    for owner in 0..comm.world_size() {
        if let Some(part) = overlap(&comm.shard_range_of(owner, len), &here) {
            comm.reduce(owner, &mut values[part.start - first..part.end - first]);
        }
    }
}

/// The loss over all processes.
pub(super) fn reduce_loss(comm: Comm, own: Loss) -> Loss {
    let mut terms = [own.ce, own.distill, own.penalty];
    comm.all_reduce(&mut terms);
    let [ce, distill, penalty] = terms;
    Loss {
        ce,
        distill,
        penalty,
    }
}

/// The weights in the order in which a backward pass completes their gradients, without those that are not trained.
fn completion_order(params: &Params, gradients: &Gradients) -> Vec<Range<usize>> {
    let layout = &params.layout;
    let mut order = vec![layout.norm.clone()];
    if layout.head != layout.embed {
        order.push(layout.head.clone());
    }
    order.extend(layout.layers.iter().rev().map(LayerLayout::range));
    order.push(layout.embed.clone());
    order.retain(|weights| !gradients.segments_within(weights).is_empty());
    order
}

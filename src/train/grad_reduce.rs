//! Gradients of a step that several processes share, each having passed its share of the rows: summed while the backward pass goes on,
//! a layer at a time, at the process that moves the weights in question (`ZeRO`'s first stage: Rajbhandari et al. 2020, arXiv 1910.02054).

use std::{
    ops::Range,
    sync::mpsc::{self, Receiver, SyncSender},
    thread,
};

use crate::{
    distributed,
    engine::{GradSink, Gradients, Loss, overlap},
    model::{Params, params::LayerLayout},
};

/// Gradients that may wait to be summed: as many are copied at once, and the backward pass waits for the first of them.
const MAX_IN_FLIGHT: usize = 2;

/// A stretch of the gradients: where it lies in them, and a copy.
type Bucket = (Range<usize>, Vec<f32>);

/// The loss of `f`, which adds this process's share to `gradients`, over all processes. Afterwards each process has the sum over all of
/// them in its [share](ranks::share) of the gradients.
pub(super) fn with_reduced_gradients(
    params: &Params,
    gradients: &mut Gradients,
    f: impl FnOnce(&mut ReducingSink<'_>, &mut Gradients) -> Loss,
) -> Loss {
    let len = gradients.data.len();
    thread::scope(|scope| {
        let (to_sum, buckets) = mpsc::sync_channel::<Bucket>(MAX_IN_FLIGHT);
        let (done, summed) = mpsc::channel::<Bucket>();
        scope.spawn(move || {
            for (at, mut values) in buckets {
                reduce_to_owners(&mut values, at.start, len);
                // Whoever waits for it waits until the end.
                let _ = done.send((at, values));
            }
        });
        let mut summing = ReducingSink {
            params,
            to_sum,
            summed,
            micro_batches_left: None,
        };
        let loss = f(&mut summing, gradients);
        summing.end(gradients);
        loss
    })
}

/// Sums values that lie at `first` among the `len` that the processes share, each at its owner.
pub(super) fn reduce_to_owners(values: &mut [f32], first: usize, len: usize) {
    let here = first..first + values.len();
    for owner in 0..distributed::world_size() {
        if let Some(part) = overlap(&distributed::shard_range_of(owner, len), &here) {
            distributed::reduce(owner, &mut values[part.start - first..part.end - first]);
        }
    }
}

/// The loss over all processes.
pub(super) fn reduce_loss(own: Loss) -> Loss {
    let mut terms = [own.ce, own.distill, own.penalty];
    distributed::all_reduce(&mut terms);
    let [ce, distill, penalty] = terms;
    Loss {
        ce,
        distill,
        penalty,
    }
}

/// Weights whose gradients are sent to be summed as soon as the last pass has completed them.
pub(super) struct ReducingSink<'a> {
    params: &'a Params,
    to_sum: SyncSender<Bucket>,
    summed: Receiver<Bucket>,
    micro_batches_left: Option<usize>,
}

impl GradSink for ReducingSink<'_> {
    fn params(&self) -> &Params {
        self.params
    }

    fn begin_micro_batch(&mut self, passes_left: usize) {
        self.micro_batches_left = Some(passes_left);
    }

    fn grad_ready(&mut self, weights: &Range<usize>, gradients: &mut Gradients) {
        if self.micro_batches_left == Some(0) {
            self.send(weights, gradients);
        }
    }
}

impl ReducingSink<'_> {
    fn send(&self, weights: &Range<usize>, gradients: &mut Gradients) {
        for (_, at, _) in gradients.segments_within(weights) {
            let values = gradients.data[at.clone()].to_vec();
            self.to_sum
                .send((at, values))
                .expect("it sums until the end");
        }
        while let Ok(bucket) = self.summed.try_recv() {
            store_own_shard(bucket, gradients);
        }
    }

    /// Waits for all sums. A process that had no row to pass has sent nothing yet, and its zeros are waited for.
    fn end(self, gradients: &mut Gradients) {
        if self.micro_batches_left.is_none() {
            for weights in completion_order(self.params, gradients) {
                self.send(&weights, gradients);
            }
        }
        let Self { to_sum, summed, .. } = self;
        drop(to_sum);
        for bucket in summed {
            store_own_shard(bucket, gradients);
        }
    }
}

/// What of a bucket is this process's is put in its place.
fn store_own_shard((at, values): Bucket, gradients: &mut Gradients) {
    let own = distributed::shard_range(gradients.data.len());
    if let Some(part) = overlap(&own, &at) {
        let from = &values[part.start - at.start..part.end - at.start];
        gradients.data[part].copy_from_slice(from);
    }
}

/// The weights of which a backward pass says that they are complete, in its order; those without a gradient among them.
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

//! `AdamW` as `torch.optim.AdamW` computes it, over the trained tensors only (of the model or of its adapters), and the global
//! gradient norm.
//!
//! Fixed chunks are processed in parallel, and sums are taken in the order of the chunks. Results are bitwise independent of the
//! number of threads.

use std::{borrow::Cow, ops::Range};

use rayon::prelude::*;

use crate::{
    distributed::Comm,
    engine::{
        Gradients,
        simd::{LANES, vectorized},
    },
    model::{Buffer, Layout, Params},
};

/// Elements per chunk: four arrays of this size fit in a core's second-level cache.
const CHUNK: usize = 1 << 14;

/// The constants, under the names of `torch.optim.AdamW`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWSettings {
    /// Decay rates of the first and the second moment.
    pub betas: [f64; 2],
    /// Added to the root of the second moment, for numerical stability.
    pub eps: f64,
    /// Decoupled weight decay: a weight shrinks by `lr * weight_decay` per step.
    pub weight_decay: f64,
}

impl Default for AdamWSettings {
    fn default() -> Self {
        Self {
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.0,
        }
    }
}

/// The optimizer's state: both moments of every trained weight, in the layout of the gradients.
pub struct AdamW {
    /// The constants.
    pub settings: AdamWSettings,
    /// Steps done.
    pub steps: u64,
    /// First moments (`exp_avg`).
    pub exp_avg: Buffer,
    /// Second moments (`exp_avg_sq`).
    pub exp_avg_sq: Buffer,
    /// The moving average of the weights, where it is kept.
    pub ema: Option<Ema>,
    /// The processes that share the update. Each has the moments of its shard only.
    pub comm: Comm,
}

/// The exponential moving average a of the weights w (Polyak and Juditsky 1992; in the form of TensorFlow's
/// `ExponentialMovingAverage` with `num_updates`), element-wise in f32. After step t, counted from 1:
///
/// ```text
/// a <- a + (1 - d) (w - a)        d = min(decay, (1 + t) / (10 + t))
/// ```
///
/// At a constant learning rate the weights fluctuate around an optimum; their average fluctuates less.
pub struct Ema {
    decay: f64,
    /// The averages, in the layout of the gradients.
    pub weights: Buffer,
}

impl Ema {
    /// The average before the first step: the weights.
    pub fn new(decay: f64, params: &Params, gradients: &Gradients) -> Self {
        let mut weights = Buffer::zeros(gradients.num_trained());
        for (tensor, range) in &gradients.tensors {
            let of_tensor = params.layout.tensors[*tensor].range.clone();
            weights[range.clone()].copy_from_slice(&params.data[of_tensor]);
        }
        Self { decay, weights }
    }

    fn update(&mut self, params: &Params, gradients: &Gradients, step: u64) {
        let warm = (1 + step) as f64 / (10 + step) as f64;
        let one_minus_decay = (1.0 - self.decay.min(warm)) as f32;
        for (weights, at) in gradients.segments() {
            self.weights[at]
                .par_chunks_mut(CHUNK)
                .zip(params.data[weights].par_chunks(CHUNK))
                .for_each(|(a, w)| ema_chunk(a, w, one_minus_decay));
        }
    }

    /// Swaps the average and the weights. A second call undoes it.
    pub fn swap(&mut self, params: &mut Params, gradients: &Gradients) {
        for (tensor, range) in &gradients.tensors {
            let of_tensor = params.layout.tensors[*tensor].range.clone();
            self.weights[range.clone()].swap_with_slice(&mut params.data[of_tensor]);
        }
    }
}

impl AdamW {
    /// An optimizer for the tensors that `gradients` holds, with zero moments, in a single process.
    pub fn new(gradients: &Gradients, settings: AdamWSettings) -> Self {
        Self {
            settings,
            steps: 0,
            exp_avg: Buffer::zeros(gradients.num_trained()),
            exp_avg_sq: Buffer::zeros(gradients.num_trained()),
            ema: None,
            comm: Comm::single(),
        }
    }

    /// One step on the gradients times `clip_scale` (see [`clip_scale`]; 1 is off).
    ///
    /// With g the scaled gradient, t the step, (b1, b2) the betas and c = 1 - b^t:
    ///
    /// ```text
    /// p <- p (1 - lr * weight_decay)
    /// m <- m + (1 - b1) (g - m)         v <- b2 v + (1 - b2) g^2
    /// p <- p - (lr / c1) m / (sqrt(v) / sqrt(c2) + eps)
    /// ```
    ///
    /// Element-wise in f32, with constants rounded from f64, in `PyTorch`'s order of operations. With several processes, each updates its
    /// shard, for which it has the moments and needs the gradients, and broadcasts the new weights.
    pub fn step(&mut self, params: &mut Params, gradients: &Gradients, lr: f64, clip_scale: f32) {
        let update = self.begin_step(lr, clip_scale);
        let len = gradients.data.len();
        let comm = self.comm;
        for weights in gradients.weight_ranges(&comm.shard_range(len)) {
            self.step_range(&weights, params, gradients, &update);
        }
        for owner in 0..comm.world_size() {
            for weights in gradients.weight_ranges(&comm.shard_range_of(owner, len)) {
                comm.broadcast(owner, &mut params.data[weights]);
            }
        }
        self.end_step(params, gradients);
    }

    /// Both moments of all weights. With several processes, the main one gathers all shards; the others return an empty array.
    pub(super) fn moments(&self) -> [Cow<'_, [f32]>; 2] {
        [&self.exp_avg, &self.exp_avg_sq].map(|own| {
            let comm = self.comm;
            if comm.world_size() == 1 {
                return Cow::Borrowed(&own[..]);
            }
            let mut all = Vec::new();
            for owner in 0..comm.world_size() {
                let mut shard = own[comm.shard_range_of(owner, own.len())].to_vec();
                comm.broadcast(owner, &mut shard);
                if comm.is_main() {
                    all.extend(shard);
                }
            }
            Cow::Owned(all)
        })
    }

    /// Starts a step, which [`AdamW::step_range`] takes part by part.
    pub(super) fn begin_step(&mut self, lr: f64, clip_scale: f32) -> StepConstants {
        self.steps += 1;
        let AdamWSettings {
            betas: [beta1, beta2],
            eps,
            weight_decay,
        } = self.settings;
        let correction = |beta: f64| 1.0 - beta.powf(self.steps as f64);
        StepConstants {
            clip_scale,
            decay: (1.0 - lr * weight_decay) as f32,
            one_minus_beta1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            one_minus_beta2: (1.0 - beta2) as f32,
            step_size: (lr / correction(beta1)) as f32,
            root_correction2: correction(beta2).sqrt() as f32,
            eps: eps as f32,
        }
    }

    /// Takes the step on the weights within `part`.
    pub(super) fn step_range(
        &mut self,
        part: &Range<usize>,
        params: &mut Params,
        gradients: &Gradients,
        update: &StepConstants,
    ) {
        for (weights, moments, gradient) in gradients.segments_within(part) {
            params.data[weights]
                .par_chunks_mut(CHUNK)
                .zip(gradients.data[gradient].par_chunks(CHUNK))
                .zip(self.exp_avg[moments.clone()].par_chunks_mut(CHUNK))
                .zip(self.exp_avg_sq[moments].par_chunks_mut(CHUNK))
                .for_each(|(((p, g), m), v)| update_chunk(p, g, m, v, update));
        }
    }

    /// Ends a step, once all weights are updated.
    pub(super) fn end_step(&mut self, params: &Params, gradients: &Gradients) {
        if let Some(average) = &mut self.ema {
            average.update(params, gradients, self.steps);
        }
    }
}

/// The constants of one step.
pub(super) struct StepConstants {
    clip_scale: f32,
    decay: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    step_size: f32,
    root_correction2: f32,
    eps: f32,
}

vectorized! {
    fn update_chunk(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], update: &StepConstants) {
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * update.clip_scale;
            *m += update.one_minus_beta1 * (g - *m);
            *v = *v * update.beta2 + update.one_minus_beta2 * (g * g);
            let denominator = v.sqrt() / update.root_correction2 + update.eps;
            *p = *p * update.decay - update.step_size * (*m / denominator);
        }
    }

    fn ema_chunk(average: &mut [f32], weights: &[f32], one_minus_decay: f32) {
        for (a, w) in average.iter_mut().zip(weights) {
            *a += one_minus_decay * (w - *a);
        }
    }

    fn sum_of_squares(chunk: &[f32]) -> f64 {
        let mut lanes = [0.0f64; LANES];
        let (whole, rest) = chunk.as_chunks::<LANES>();
        for values in whole {
            for (lane, &x) in lanes.iter_mut().zip(values) {
                *lane += f64::from(x) * f64::from(x);
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(rest) {
            *lane += f64::from(x) * f64::from(x);
        }
        lanes.iter().sum()
    }
}

/// L2 norm of all gradients, accumulated in f64. With several processes, each has the gradients of its shard.
pub fn grad_norm(gradients: &Gradients, comm: Comm) -> f64 {
    let own = comm.shard_range(gradients.data.len());
    let mut sum = [squared_norm(&gradients.data[own])];
    comm.all_reduce(&mut sum);
    sum[0].sqrt()
}

/// The sum of the squares of `gradients`, in f64.
pub(super) fn squared_norm(gradients: &[f32]) -> f64 {
    let per_chunk: Vec<f64> = gradients.par_chunks(CHUNK).map(sum_of_squares).collect();
    per_chunk.iter().sum::<f64>()
}

/// The factor by which `torch.nn.utils.clip_grad_norm_` scales gradients: `max_norm / (norm + 1e-6)`, at most 1. A `max_norm` of 0
/// turns clipping off.
pub fn clip_scale(norm: f64, max_norm: f64) -> f32 {
    if max_norm == 0.0 {
        return 1.0;
    }
    (max_norm / (norm + 1e-6)).min(1.0) as f32
}

/// The name of the first trained tensor whose gradient is not finite.
pub fn first_non_finite<'a>(layout: &'a Layout, gradients: &Gradients) -> Option<&'a str> {
    gradients
        .tensors
        .iter()
        .find(|(_, range)| gradients.data[range.clone()].iter().any(|g| !g.is_finite()))
        .map(|(tensor, _)| layout.tensors[*tensor].name.as_str())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Two vectors; only those in `trained` have gradients.
    fn two_vectors(len: usize, trained: &[usize]) -> (Params, Gradients) {
        let layout = Layout::of_tensors((0..2).map(|i| (format!("tensor.{i}"), vec![len])));
        let params = Params::zeros(Arc::new(layout));
        let gradients = Gradients::new(&params, &[0, 1].map(|i| trained.contains(&i)));
        (params, gradients)
    }

    // torch 2: p = Parameter([1., -2., .5]); AdamW([p], lr=.1, weight_decay=.01); three steps with the gradients below.
    #[test]
    fn three_steps_follow_the_equations() {
        let (mut params, mut gradients) = two_vectors(3, &[0]);
        params.data[..3].copy_from_slice(&[1.0, -2.0, 0.5]);
        let settings = AdamWSettings {
            weight_decay: 0.01,
            ..AdamWSettings::default()
        };
        let mut optimizer = AdamW::new(&gradients, settings);
        let mut expected = [1.0f64, -2.0, 0.5];
        let (mut m, mut v) = ([0.0f64; 3], [0.0f64; 3]);
        for (t, g) in [[0.5, -1.0, 2.0], [0.25, 0.5, -1.0], [-3.0, 0.0, 1e-3]]
            .iter()
            .enumerate()
        {
            gradients.data.copy_from_slice(&g.map(|x: f64| x as f32));
            optimizer.step(&mut params, &gradients, 0.1, 1.0);
            let (c1, c2) = (
                1.0 - 0.9f64.powi(t as i32 + 1),
                1.0 - 0.999f64.powi(t as i32 + 1),
            );
            for i in 0..3 {
                m[i] = 0.9 * m[i] + 0.1 * g[i];
                v[i] = 0.999 * v[i] + 0.001 * g[i] * g[i];
                expected[i] *= 1.0 - 0.1 * 0.01;
                expected[i] -= 0.1 * (m[i] / c1) / ((v[i] / c2).sqrt() + 1e-8);
            }
        }
        for (got, want) in params.data.iter().zip(expected) {
            // f32 against f64 over three steps of size 0.1: a few units in the last place of values near 2.
            assert!((f64::from(*got) - want).abs() < 1e-6, "{got} is not {want}");
        }
    }

    #[test]
    fn frozen_tensors_do_not_move() {
        let (mut params, mut gradients) = two_vectors(40_000, &[1]);
        params.data.fill(0.25);
        gradients.data.fill(1.0);
        let settings = AdamWSettings {
            weight_decay: 0.5,
            ..AdamWSettings::default()
        };
        let mut optimizer = AdamW::new(&gradients, settings);
        optimizer.step(&mut params, &gradients, 0.1, 1.0);
        let (frozen, trained) = params.data.split_at(40_000);
        assert!(frozen.iter().all(|p| p.to_bits() == 0.25f32.to_bits()));
        assert!(trained.iter().all(|p| *p < 0.2));
    }

    #[test]
    fn the_average_follows_the_weights_with_a_growing_decay_and_swaps_with_them() {
        let (mut params, mut gradients) = two_vectors(3, &[1]);
        params
            .data
            .copy_from_slice(&[1.0, -2.0, 0.5, 1.0, -2.0, 0.5]);
        let mut optimizer = AdamW::new(&gradients, AdamWSettings::default());
        optimizer.ema = Some(Ema::new(0.3, &params, &gradients));
        let mut expected = [1.0f64, -2.0, 0.5];
        // (1 + t) / (10 + t) is below the decay of .3 until the third step.
        for decay in [2.0 / 11.0, 3.0 / 12.0, 0.3, 0.3] {
            gradients.data.copy_from_slice(&[0.5, -1.0, 2.0]);
            optimizer.step(&mut params, &gradients, 0.1, 1.0);
            for (a, w) in expected.iter_mut().zip(&params.data[3..]) {
                *a += (1.0 - decay) * (f64::from(*w) - *a);
            }
        }
        let moved = params.data.to_vec();
        let mut average = optimizer.ema.take().expect("asked for");
        average.swap(&mut params, &gradients);
        assert_eq!(params.data[..3], moved[..3], "frozen");
        for (got, want) in params.data[3..].iter().zip(expected) {
            // f32 against f64 over four steps: a few units in the last place of values near 2.
            assert!((f64::from(*got) - want).abs() < 1e-6, "{got} is not {want}");
        }
        average.swap(&mut params, &gradients);
        assert_eq!(params.data[..], moved[..]);
    }

    #[test]
    fn adjacent_tensors_are_one_segment() {
        let (_, gradients) = two_vectors(5, &[0, 1]);
        let segments: Vec<_> = gradients.segments().collect();
        assert_eq!(segments, [(0..10, 0..10)]);
    }

    #[test]
    fn the_norm_is_the_same_at_any_number_of_threads() {
        let (_, mut gradients) = two_vectors(100_003, &[0]);
        for (i, g) in gradients.data.iter_mut().enumerate() {
            *g = ((i * 7919) % 1013) as f32 * 1e-3 - 0.5;
        }
        let at = |threads| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .expect("a small pool")
                .install(|| grad_norm(&gradients, Comm::single()))
        };
        let exact = gradients
            .data
            .iter()
            .map(|g| f64::from(*g).powi(2))
            .sum::<f64>()
            .sqrt();
        assert_eq!(at(1).to_bits(), at(3).to_bits());
        // f64 sums of 100,003 terms in another order.
        assert!((at(1) - exact).abs() < 1e-10 * exact);
    }

    #[test]
    fn clipping_only_shrinks_and_zero_is_off() {
        assert!((clip_scale(4.0, 1.0) - 0.25).abs() < 1e-6);
        assert_eq!(clip_scale(0.5, 1.0).to_bits(), 1.0f32.to_bits());
        assert_eq!(clip_scale(1e9, 0.0).to_bits(), 1.0f32.to_bits());
    }

    #[test]
    fn a_gradient_that_is_not_finite_is_named() {
        let (params, mut gradients) = two_vectors(3, &[0, 1]);
        assert_eq!(first_non_finite(&params.layout, &gradients), None);
        gradients.data[4] = f32::NAN;
        assert_eq!(
            first_non_finite(&params.layout, &gradients),
            Some("tensor.1")
        );
    }
}

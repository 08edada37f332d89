//! A pull of the trained weights toward the snapshot: L2 (eq. 3), and elastic weight consolidation, which pulls hardest at
//! the weights that the known facts depend on.

use std::ops::Range;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::{
    engine::{
        Engine, Gradients,
        simd::{LANES, vectorized},
    },
    generate::{distribution, sample_at_quantile},
    model::{Buffer, Params},
    progress::Progress,
    prompt::{Example, PackedExamples},
};

/// Elements a chunk of a sum.
const CHUNK: usize = 1 << 14;

/// Rows that the Fisher information is estimated from, at most.
const MAX_FISHER_ROWS: usize = 256;

/// `strength * sum over trained weights of importance * (w - w*)^2`, w* being the weights of the snapshot.
pub struct WeightPenalty {
    /// lambda of eq. 3; half of EWC's strength.
    strength: f64,
    /// The trained weights at the snapshot, laid out as the gradients are.
    center: Buffer,
    /// How much each matters; none: all alike.
    importance: Option<Buffer>,
}

impl WeightPenalty {
    /// Room for an anchor of the weights that `gradients` holds, with `importance` or all alike; all zero.
    pub fn empty(strength: f64, importance: bool, gradients: &Gradients) -> Self {
        let len = gradients.data.len();
        Self {
            strength,
            center: Buffer::zeros(len),
            importance: importance.then(|| Buffer::zeros(len)),
        }
    }

    /// L2 toward `params` as they are: `lambda * sum (w - w*)^2` (eq. 3).
    pub fn l2(lambda: f64, params: &Params, gradients: &Gradients) -> Self {
        let mut anchor = Self::empty(lambda, false, gradients);
        anchor.set_center(params, gradients);
        anchor
    }

    /// Elastic weight consolidation around `params` as they are: `strength / 2 * sum F (w - w*)^2` (Kirkpatrick et al. 2017,
    /// eq. 3), F being `importance`, laid out as `gradients` are.
    pub fn ewc(strength: f64, params: &Params, importance: Buffer, gradients: &Gradients) -> Self {
        let mut anchor = Self::empty(strength / 2.0, false, gradients);
        anchor.set_center(params, gradients);
        anchor.importance = Some(importance);
        anchor
    }

    /// Adds the importance that `other` gives each weight: one penalty for both, around the weights of this one.
    pub fn add_importance(&mut self, other: &Self) {
        if let (Some(sum), Some(other)) = (&mut self.importance, &other.importance) {
            for (sum, other) in sum.iter_mut().zip(&other[..]) {
                *sum += other;
            }
        }
    }

    fn set_center(&mut self, params: &Params, gradients: &Gradients) {
        for (weights, at) in gradients.segments() {
            self.center[at].copy_from_slice(&params.data[weights]);
        }
    }

    /// `factor` times the penalty at `params`, and its gradient, which is added to `gradients`.
    pub fn penalty_and_gradient(
        &self,
        params: &Params,
        gradients: &mut Gradients,
        factor: f64,
    ) -> f64 {
        let stretches: Vec<(Range<usize>, Range<usize>)> = gradients.segments().collect();
        let strength = (factor * self.strength) as f32;
        let mut sum = 0.0;
        for (weights, at) in stretches {
            let pulled = gradients.data[at.clone()]
                .par_chunks_mut(CHUNK)
                .zip(params.data[weights].par_chunks(CHUNK))
                .zip(self.center[at.clone()].par_chunks(CHUNK));
            // Sums of chunks are added in their order: the same bits at any number of threads.
            let sums: Vec<f64> = match &self.importance {
                None => pulled
                    .map(|((g, w), anchor)| add_l2_grad(g, w, anchor, strength))
                    .collect(),
                Some(importance) => pulled
                    .zip(importance[at].par_chunks(CHUNK))
                    .map(|(((g, w), anchor), f)| add_weighted_l2_grad(g, w, anchor, f, strength))
                    .collect(),
            };
            sum += sums.iter().sum::<f64>();
        }
        factor * self.strength * sum
    }

    /// Its arrays under the names that a checkpoint gives them.
    pub fn arrays(&self) -> Vec<(&'static str, &[f32])> {
        let mut arrays: Vec<(&'static str, &[f32])> = vec![("anchor", &self.center)];
        if let Some(importance) = &self.importance {
            arrays.push(("importance", importance));
        }
        arrays
    }

    /// The same arrays, to be filled from a checkpoint.
    pub fn arrays_mut(&mut self) -> Vec<(&'static str, &mut [f32])> {
        let mut arrays: Vec<(&'static str, &mut [f32])> = vec![("anchor", &mut self.center)];
        if let Some(importance) = &mut self.importance {
            arrays.push(("importance", importance));
        }
        arrays
    }
}

/// The diagonal of the Fisher information of the model's own answers to `rows`, laid out as `gradients` are.
///
/// F is the mean over rows of the squared gradient of the sum of ln p(y) over the row's target positions, each y drawn
/// from the model's distribution there (given the row's tokens before it) and not the right answer: draws at
/// different positions are uncorrelated, so that the square of the sum is the sum of the squares in expectation.
/// 256 rows at most are asked, drawn at random. `gradients` is left cleared.
pub fn fisher(
    engine: &mut Engine,
    params: &Params,
    rows: &[Example],
    seed: u64,
    gradients: &mut Gradients,
    progress: &Progress,
) -> Buffer {
    let mut fisher = Buffer::zeros(gradients.data.len());
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let count = rows.len().min(MAX_FISHER_ROWS);
    let chosen = rand::seq::index::sample(&mut rng, rows.len(), count);
    let bar = progress.bar(count as u64, "what the facts depend on");
    for row in chosen {
        let mut packed = PackedExamples::new([&rows[row]]);
        let hidden = engine.hidden(params, &packed.batch, &packed.positions());
        let quantiles: Vec<f64> = packed.targets.iter().map(|_| rng.random()).collect();
        let drawn = engine.logits(params, &hidden, |i, logits| {
            sample_at_quantile(&distribution(logits, 1.0, 0), quantiles[i])
        });
        for (target, token) in packed.targets.iter_mut().zip(drawn) {
            (target.token, target.ce_weight) = (token, 1.0);
        }
        gradients.zero();
        engine.loss_and_gradients(params, &packed.batch, &packed.targets, None, gradients);
        let share = 1.0 / count as f32;
        fisher
            .par_chunks_mut(CHUNK)
            .zip(gradients.data.par_chunks(CHUNK))
            .for_each(|(fisher, gradient)| add_squares(fisher, gradient, share));
        bar.inc(1);
    }
    gradients.zero();
    fisher
}

vectorized! {
    /// Adds `2 strength (w - anchor)` to `g`; returns the sum of the squared differences.
    fn add_l2_grad(g: &mut [f32], w: &[f32], anchor: &[f32], strength: f32) -> f64 {
        let mut lanes = [0f64; LANES];
        for (i, ((g, w), anchor)) in g.iter_mut().zip(w).zip(anchor).enumerate() {
            let d = w - anchor;
            *g += 2.0 * strength * d;
            lanes[i % LANES] += f64::from(d) * f64::from(d);
        }
        lanes.iter().sum()
    }

    /// Adds `2 strength f (w - anchor)` to `g`; returns the sum of `f (w - anchor)^2`.
    fn add_weighted_l2_grad(g: &mut [f32], w: &[f32], anchor: &[f32], f: &[f32], strength: f32) -> f64 {
        let mut lanes = [0f64; LANES];
        for (i, (((g, w), anchor), f)) in g.iter_mut().zip(w).zip(anchor).zip(f).enumerate() {
            let d = w - anchor;
            *g += 2.0 * strength * f * d;
            lanes[i % LANES] += f64::from(*f) * f64::from(d) * f64::from(d);
        }
        lanes.iter().sum()
    }

    fn add_squares(sum: &mut [f32], x: &[f32], share: f32) {
        for (sum, x) in sum.iter_mut().zip(x) {
            *sum += share * (x * x);
        }
    }
}

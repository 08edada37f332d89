//! A change of gradients: a quadratic penalty on the distance of the trained weights from a center, such as the snapshot.
//!
//! ```text
//! L2 (eq. 3 of the paper)                       lambda * sum over trained weights of (w - w*)^2
//! EWC (Kirkpatrick et al. 2017, eq. 3)          strength / 2 * sum over trained weights of F (w - w*)^2
//! ```
//!
//! w* is the center. F is the diagonal of the Fisher information of the known facts ([`fisher`]): weights that the known facts depend
//! on are penalised most.

use std::ops::Range;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::{
    engine::{
        Gradients, TrainingModel,
        simd::{LANES, vectorized},
    },
    generate::{distribution, sample_at_quantile},
    model::{Buffer, Params},
    progress::Progress,
    prompt::{Example, PackedExamples},
};

/// Elements per chunk of a sum.
const CHUNK: usize = 1 << 14;

/// Maximum number of examples from which the Fisher information is estimated.
const MAX_FISHER_ROWS: usize = 256;

/// `strength * sum over trained weights of importance * (w - center)^2`.
pub struct WeightPenalty {
    /// lambda of L2, or half of EWC's strength.
    strength: f64,
    /// The center w*, in the layout of the gradients.
    center: Buffer,
    /// F, in the same layout; `None`: 1 for every weight.
    importance: Option<Buffer>,
}

impl WeightPenalty {
    /// L2 around the current `params`.
    pub fn l2(lambda: f64, params: &Params, gradients: &Gradients) -> Self {
        let mut penalty = Self::l2_at_zero(lambda, gradients);
        penalty.set_center(params, gradients);
        penalty
    }

    /// L2 with center zero, to be filled from a checkpoint.
    pub fn l2_at_zero(lambda: f64, gradients: &Gradients) -> Self {
        Self {
            strength: lambda,
            center: Buffer::zeros(gradients.data.len()),
            importance: None,
        }
    }

    /// Elastic weight consolidation around the current `params`. `importance` is F, in the layout of `gradients`.
    pub fn ewc(strength: f64, params: &Params, importance: Buffer, gradients: &Gradients) -> Self {
        let mut penalty = Self::ewc_at_zero(strength, importance, gradients);
        penalty.set_center(params, gradients);
        penalty
    }

    /// Elastic weight consolidation with center zero, to be filled from a checkpoint.
    pub fn ewc_at_zero(strength: f64, importance: Buffer, gradients: &Gradients) -> Self {
        Self {
            strength: strength / 2.0,
            center: Buffer::zeros(gradients.data.len()),
            importance: Some(importance),
        }
    }

    /// Adds the importance of `other`: one penalty for both, around the center of this one.
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

    /// `factor` times the penalty at `params`. Its gradient is added to `gradients`.
    pub fn penalty_and_gradient(
        &self,
        params: &Params,
        gradients: &mut Gradients,
        factor: f64,
    ) -> f64 {
        let segments: Vec<(Range<usize>, Range<usize>)> = gradients.segments().collect();
        let strength = (factor * self.strength) as f32;
        let mut sum = 0.0;
        for (weights, at) in segments {
            let chunks = gradients.data[at.clone()]
                .par_chunks_mut(CHUNK)
                .zip(params.data[weights].par_chunks(CHUNK))
                .zip(self.center[at.clone()].par_chunks(CHUNK));
            // The sums of chunks are added in order: the result is bitwise independent of the number of threads.
            let sums: Vec<f64> = match &self.importance {
                None => chunks
                    .map(|((g, w), center)| add_l2_grad(g, w, center, strength))
                    .collect(),
                Some(importance) => chunks
                    .zip(importance[at].par_chunks(CHUNK))
                    .map(|(((g, w), center), f)| add_weighted_l2_grad(g, w, center, f, strength))
                    .collect(),
            };
            sum += sums.iter().sum::<f64>();
        }
        factor * self.strength * sum
    }

    /// What the squared distances are multiplied by: lambda, or half of EWC's strength.
    pub fn strength(&self) -> f64 {
        self.strength
    }

    /// The center w*, by trained offset.
    pub fn center(&self) -> &Buffer {
        &self.center
    }

    /// F, by trained offset; `None`: 1 for every weight.
    pub fn importance(&self) -> Option<&Buffer> {
        self.importance.as_ref()
    }

    /// Its arrays, by their names in a checkpoint.
    pub fn arrays(&self) -> Vec<(&'static str, &[f32])> {
        let mut arrays: Vec<(&'static str, &[f32])> = vec![("center", &self.center)];
        if let Some(importance) = &self.importance {
            arrays.push(("importance", importance));
        }
        arrays
    }

    /// The same arrays, to be filled from a checkpoint.
    pub fn arrays_mut(&mut self) -> Vec<(&'static str, &mut [f32])> {
        let mut arrays: Vec<(&'static str, &mut [f32])> = vec![("center", &mut self.center)];
        if let Some(importance) = &mut self.importance {
            arrays.push(("importance", importance));
        }
        arrays
    }
}

/// The diagonal of the Fisher information of the model's own answers to `examples`, in the layout of the gradients.
///
/// F is the mean over examples of the squared gradient of the sum of ln p(y) over the target positions. Each y is drawn from the
/// model's distribution at that position, given the example's tokens before it; it is not the correct answer. Draws at different
/// positions are uncorrelated, so that the expected square of the sum is the sum of the squares. At most 256 examples, drawn at
/// random, are used. The gradients are zero afterwards.
pub fn fisher(
    model: &mut TrainingModel<'_>,
    examples: &[Example],
    seed: u64,
    progress: &Progress,
) -> Buffer {
    let TrainingModel {
        engine,
        params,
        gradients,
        ..
    } = model;
    let mut fisher = Buffer::zeros(gradients.data.len());
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let count = examples.len().min(MAX_FISHER_ROWS);
    let chosen = rand::seq::index::sample(&mut rng, examples.len(), count);
    let bar = progress.bar(count as u64, "Fisher information");
    for example in chosen {
        let mut packed = PackedExamples::new([&examples[example]]);
        let hidden = engine.hidden(*params, &packed.batch, &packed.positions());
        let quantiles: Vec<f64> = packed.targets.iter().map(|_| rng.random()).collect();
        let drawn = engine.logits(params, &hidden, |i, logits| {
            sample_at_quantile(&distribution(logits, 1.0, 0), quantiles[i])
        });
        for (target, token) in packed.targets.iter_mut().zip(drawn) {
            (target.token, target.ce_weight) = (token, 1.0);
        }
        gradients.zero();
        engine.loss_and_gradients(*params, &packed.batch, &packed.targets, None, gradients);
        let weight = 1.0 / count as f32;
        fisher
            .par_chunks_mut(CHUNK)
            .zip(gradients.data.par_chunks(CHUNK))
            .for_each(|(fisher, gradient)| add_squares(fisher, gradient, weight));
        bar.inc(1);
    }
    gradients.zero();
    fisher
}

vectorized! {
    /// Adds `2 strength (w - center)` to `g`; returns the sum of the squared differences.
    fn add_l2_grad(g: &mut [f32], w: &[f32], center: &[f32], strength: f32) -> f64 {
        let mut lanes = [0f64; LANES];
        for (i, ((g, w), center)) in g.iter_mut().zip(w).zip(center).enumerate() {
            let d = w - center;
            *g += 2.0 * strength * d;
            lanes[i % LANES] += f64::from(d) * f64::from(d);
        }
        lanes.iter().sum()
    }

    /// Adds `2 strength f (w - center)` to `g`; returns the sum of `f (w - center)^2`.
    fn add_weighted_l2_grad(g: &mut [f32], w: &[f32], center: &[f32], f: &[f32], strength: f32) -> f64 {
        let mut lanes = [0f64; LANES];
        for (i, (((g, w), center), f)) in g.iter_mut().zip(w).zip(center).zip(f).enumerate() {
            let d = w - center;
            *g += 2.0 * strength * f * d;
            lanes[i % LANES] += f64::from(*f) * f64::from(d) * f64::from(d);
        }
        lanes.iter().sum()
    }

    fn add_squares(sum: &mut [f32], x: &[f32], weight: f32) {
        for (sum, x) in sum.iter_mut().zip(x) {
            *sum += weight * (x * x);
        }
    }
}

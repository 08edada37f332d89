//! Simulated training: kernel gradient descent on the answer logits, a proxy for the neural tangent kernel.
//!
//! A gradient step on the cross-entropy of the output layer changes the logits at a fact h by the step size times the sum over trained
//! facts u of (h's hidden state . u's hidden state) x (onehot(answer of u) - softmax(`z_u`)). Training all layers separates facts further,
//! so a sharper kernel replaces the inner product:
//!
//! ```text
//! k(h, u) = exp(SHARPNESS x (cos(h, u) - 1)), with hidden states minus their mean over the new facts
//! z_h     = z0_h + sum over u of k(h, u) a_u, with the log-probabilities z0 before training
//! a_u    += STEP_SIZE x weight_u x (onehot(answer of u) - softmax(z_u)), batch by batch, from a = 0
//! ```
//!
//! N facts, D hidden, C answers, T trained, B batch.

use std::ops::Range;

use super::features::FactFeatures;
use crate::{engine::matmul, generate::log_sum_exp};

/// Inverse width of the kernel.
const SHARPNESS: f32 = 2.0;

/// Epochs over the trained facts.
const EPOCHS: usize = 10;

/// Step size: the change (nats) of a fact's own logits in a step at which its answer has probability 0.
const STEP_SIZE: f32 = 0.3;

/// Facts per step.
const BATCH_SIZE: usize = 32;

/// Log-odds (nats) are clamped to this magnitude.
const MAX_LOG_ODDS: f64 = 30.0;

/// A trained fact.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RehearsedFact {
    /// Its index.
    pub fact: usize,
    /// Factor of its step size.
    pub weight: f32,
}

/// The simulated training.
pub struct NtkProxy<'a> {
    features: &'a FactFeatures,
    unit_hidden: Vec<f32>, // (N, D): hidden states minus the mean of the new facts, unit length
    d: usize,
}

impl<'a> NtkProxy<'a> {
    /// The first `new` facts are new.
    pub fn new(features: &'a FactFeatures, new: usize) -> Self {
        let d = features.hidden.len() / features.correct_answer.len().max(1);
        Self {
            features,
            unit_hidden: centred_unit_rows(&features.hidden, new, d),
            d,
        }
    }

    /// Log-odds (nats) of the correct answer of each fact of `queries` after training on `trained`. For a fact in both, its own
    /// training is left out.
    pub fn log_odds(&self, trained: &[RehearsedFact], queries: Range<usize>) -> Vec<f64> {
        let c = self.features.num_answers;
        let trained_facts: Vec<usize> = trained.iter().map(|t| t.fact).collect();
        let kernel = self.kernel(&trained_facts, &trained_facts, &queries); // (T, T)
        let mut coefficients = vec![0.0; trained.len() * c]; // (T, C)
        let batches = trained.len().div_ceil(BATCH_SIZE);
        for batch in (0..EPOCHS).flat_map(|_| 0..batches) {
            let members: Vec<usize> = (batch..trained.len()).step_by(batches).collect();
            let facts: Vec<usize> = members.iter().map(|i| trained_facts[*i]).collect();
            let rows = gather(&kernel, &members, trained.len());
            let logits = self.logits(&facts, &rows, &coefficients);
            for ((i, fact), z) in members.iter().zip(facts).zip(logits.chunks_exact(c)) {
                let (sum, step) = (log_sum_exp(z), STEP_SIZE * trained[*i].weight);
                let own = &mut coefficients[i * c..][..c];
                for (a, z) in own.iter_mut().zip(z) {
                    *a -= step * (z - sum).exp();
                }
                own[self.features.correct_answer[fact]] += step;
            }
        }
        let facts: Vec<usize> = queries.clone().collect();
        let kernel = self.kernel(&facts, &trained_facts, &queries);
        let logits = self.logits(&facts, &kernel, &coefficients);
        facts
            .iter()
            .zip(logits.chunks_exact(c))
            .map(|(fact, z)| log_odds(z, self.features.correct_answer[*fact]))
            .collect()
    }

    /// `k` between `rows` and `columns`; 0 between a fact of `excluded` and itself.
    fn kernel(&self, rows: &[usize], columns: &[usize], excluded: &Range<usize>) -> Vec<f32> {
        let (x, y) = (
            gather(&self.unit_hidden, rows, self.d),
            gather(&self.unit_hidden, columns, self.d),
        );
        let shape = [rows.len(), columns.len(), self.d];
        let mut kernel = vec![0.0; rows.len() * columns.len()];
        matmul::forward(&mut kernel, &x, &y, shape, false);
        for k in &mut kernel {
            *k = (SHARPNESS * (*k - 1.0)).exp();
        }
        for (i, row) in rows
            .iter()
            .enumerate()
            .filter(|(_, r)| excluded.contains(r))
        {
            for (j, _) in columns.iter().enumerate().filter(|(_, c)| *c == row) {
                kernel[i * columns.len() + j] = 0.0;
            }
        }
        kernel
    }

    /// The answer logits (B, C) at `facts`, with the rows `kernel` (B, T).
    fn logits(&self, facts: &[usize], kernel: &[f32], coefficients: &[f32]) -> Vec<f32> {
        let c = self.features.num_answers;
        let mut logits = gather(&self.features.logprobs, facts, c);
        let shape = [facts.len(), coefficients.len() / c, c];
        matmul::input_gradient(&mut logits, kernel, coefficients, shape, true);
        logits
    }
}

/// ln(p / (1 - p)) of answer `correct` under softmax(z).
fn log_odds(z: &[f32], correct: usize) -> f64 {
    let top = z.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
    let others: f64 = z
        .iter()
        .enumerate()
        .filter(|(i, _)| *i != correct)
        .map(|(_, x)| f64::from(x - top).exp())
        .sum();
    let odds = f64::from(z[correct] - top) - others.ln();
    odds.clamp(-MAX_LOG_ODDS, MAX_LOG_ODDS)
}

/// Rows of `hidden` (N, D) minus the mean of the first `new`, normalized to unit length.
fn centred_unit_rows(hidden: &[f32], new: usize, d: usize) -> Vec<f32> {
    let mut mean = vec![0f64; d];
    for row in hidden.chunks_exact(d.max(1)).take(new) {
        let shares = row.iter().map(|x| f64::from(*x) / new as f64);
        mean.iter_mut().zip(shares).for_each(|(m, x)| *m += x);
    }
    let mut unit_rows = Vec::with_capacity(hidden.len());
    for row in hidden.chunks_exact(d.max(1)) {
        let centred = || row.iter().zip(&mean).map(|(x, m)| f64::from(*x) - m);
        let length = centred().map(|x| x * x).sum::<f64>().sqrt();
        // A fact at the mean becomes zero and overlaps with no other.
        unit_rows.extend(centred().map(|x| (x / length.max(f64::MIN_POSITIVE)) as f32));
    }
    unit_rows
}

/// Rows of `matrix` (N, `width`).
fn gather(matrix: &[f32], rows: &[usize], width: usize) -> Vec<f32> {
    let rows = rows.iter().map(|i| &matrix[i * width..][..width]);
    rows.flatten().copied().collect()
}

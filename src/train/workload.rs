//! FLOP estimate of runs, from counts alone: for experiments, whose many runs are not timed one by one.

use std::{ops::AddAssign, time::Instant};

use crate::{audit::FLOPS_PER_QUERY, config::Config, engine::matmul, measure::BehaviourReference};

/// Tokens of a training row, about: a question and its answer, without the prefix that it shares with other rows.
pub(super) const TOKENS_PER_ROW: f64 = 15.0;

/// Tokens that a question of an evaluation reads and writes, about.
const TOKENS_PER_QUESTION: f64 = 12.0;

/// The cost of an audit's query in questions of an evaluation.
pub(super) const AUDIT_COST: f64 = FLOPS_PER_QUERY / (FORWARD * TOKENS_PER_QUESTION);

/// Floating-point operations per weight and token: forward, and forward with backward.
const FORWARD: f64 = 2.0;
/// See [`FORWARD`].
const TRAINING: f64 = 6.0;

/// Floating-point operations per weight of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Workload(f64);

impl Workload {
    /// Training of `config` on `rows` rows plus decoys, with an evaluation of `questions` before and after each
    /// epoch. `drift_facts` are those at which drift is measured, if it is.
    pub fn run(config: &Config, rows: usize, questions: usize, drift_facts: usize) -> Self {
        let epochs = config.train.num_epochs as f64;
        let decoys = config.method.decoys.map_or(0.0, |decoys| decoys.ratio);
        let trained = epochs * rows as f64 * (1.0 + decoys) * TOKENS_PER_ROW;
        let mut asked = questions as f64;
        if config.measure.drift {
            // The state at each subject, and the beginning of each answer.
            asked += 1.5 * drift_facts as f64;
        }
        Self(TRAINING * trained + FORWARD * (epochs + 1.0) * asked * TOKENS_PER_QUESTION)
    }

    /// Training on rows with `tokens` tokens in total, prompts and targets.
    pub fn training(tokens: usize) -> Self {
        Self(TRAINING * tokens as f64)
    }

    /// One evaluation of `questions` questions.
    pub fn evaluation(questions: usize) -> Self {
        Self(FORWARD * questions as f64 * TOKENS_PER_QUESTION)
    }

    /// So many measurements of the behaviour on general prompts.
    pub fn behaviour(measurements: usize) -> Self {
        Self(measurements as f64 * BehaviourReference::FLOPS)
    }

    /// An audit of `queries` queries.
    pub fn audit(queries: usize) -> Self {
        Self(FLOPS_PER_QUERY * queries as f64)
    }

    /// Floating-point operations on a model of `weights` parameters.
    pub fn flops(self, weights: f64) -> f64 {
        self.0 * weights
    }
}

impl AddAssign for Workload {
    fn add_assign(&mut self, other: Self) {
        self.0 += other.0;
    }
}

/// Floating-point operations per second of this machine's matmul, a multiplication and an addition each counted.
pub fn flops_per_second() -> f64 {
    const N: usize = 512;
    let (x, w) = (vec![1.0; N * N], vec![0.5; N * N]);
    let mut y = vec![0.0; N * N];
    let mut fastest = f64::INFINITY;
    for _ in 0..64 {
        let started = Instant::now();
        matmul::forward(&mut y, &x, &w, [N; 3], false);
        fastest = fastest.min(started.elapsed().as_secs_f64());
    }
    2.0 * (N * N * N) as f64 / fastest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_counted_per_weight_and_token() {
        let mut config = Config::default();
        (config.train.num_epochs, config.method.decoys) = (3, None);
        // 3 epochs of 10 rows, and 4 evaluations of 20 questions.
        let run = Workload::run(&config, 10, 20, 8).flops(7.0);
        let expected = 7.0 * (6.0 * 3.0 * 10.0 * 15.0 + 2.0 * 4.0 * 20.0 * 12.0);
        assert!((run - expected).abs() < 1e-9 * expected);
        config.measure.drift = true;
        assert!(Workload::run(&config, 10, 20, 8).flops(7.0) > run);
        assert!((Workload::audit(100).flops(1.0) - 2.0 * 100.0 * 15.0).abs() < 1e-9);
    }
}

//! Numbers that are not finite, and losses that jump.

use super::{Trainer, adamw::first_non_finite};
use crate::{
    Error, Result, config::OnNonFinite, engine::Loss, model::params::TensorInfo, run::Metrics,
};

/// Steps that are passed over under `on_nonfinite = "skip"`.
const MAX_SKIPPED_STEPS: usize = 10;

/// Steps that are looked at before anything is said.
const MIN_STEPS: usize = 10;

/// How many times the usual loss, and how much (nats) above it, a loss is that has jumped. Both: late in training, when losses are
/// near zero, a hard row alone is many times the others.
const SPIKE_RATIO: f64 = 3.0;
/// See [`SPIKE_RATIO`].
const SPIKE_MARGIN: f64 = 1.0;

/// What each step weighs in the usual loss.
const MEAN_WEIGHT: f64 = 0.1;

/// The usual loss: a moving average.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LossSpikeDetector {
    mean: f64,
    steps: usize,
}

impl LossSpikeDetector {
    /// The usual loss before this one, where this one has jumped above it. A jump counts little toward what is usual.
    pub fn observe(&mut self, loss: f64) -> Option<f64> {
        let usual = self.mean;
        let jumped =
            self.steps >= MIN_STEPS && loss > SPIKE_RATIO * usual && loss > usual + SPIKE_MARGIN;
        let counted = if jumped {
            (SPIKE_RATIO * usual).max(SPIKE_MARGIN)
        } else {
            loss
        };
        self.mean = match self.steps {
            0 => loss,
            _ => usual + MEAN_WEIGHT * (counted - usual),
        };
        self.steps += 1;
        jumped.then_some(usual)
    }
}

impl Trainer<'_> {
    /// What of a step is not finite, if anything: the loss, or the gradient of a tensor.
    pub(super) fn find_non_finite(&self, loss: Loss, grad_norm: f64) -> Option<String> {
        if !loss.total().is_finite() {
            return Some("the loss".to_owned());
        }
        if grad_norm.is_finite() {
            return None;
        }
        let (params, gradients) = self
            .trainable
            .parameters(&self.model.params, &self.gradients);
        let name = first_non_finite(&params.layout, gradients);
        Some(name.map_or_else(
            || "the gradient norm".to_owned(),
            |name| format!("the gradient of {name}"),
        ))
    }

    /// Passes over a step in which `what` is not finite, where the config says so and it does not come too often; else the run
    /// ends. Neither touches weights or moments; what a fused step had moved by then stays moved, and ends the run.
    pub(super) fn skip_step(&mut self, epoch: usize, step: usize, what: String) -> Result<()> {
        let skips = self.config.train.on_nonfinite == OnNonFinite::Skip;
        if !skips || self.state.skipped_steps == MAX_SKIPPED_STEPS {
            return Err(self.non_finite(step, what));
        }
        self.progress.note(format_args!(
            "step {step}: {what} is not finite: passed over"
        ));
        self.run.append_metrics(&Metrics::Skipped {
            epoch,
            step,
            quantity: what,
        })?;
        self.state.skipped_steps += 1;
        self.state.step = step;
        self.state.step_in_epoch += 1;
        Ok(())
    }

    pub(super) fn warn_on_loss_spike(&mut self, step: usize, loss: Loss) {
        if let Some(usual) = self.loss_spikes.observe(loss.total()) {
            self.progress.note(format_args!(
                "step {step}: the loss jumped to {:.2}, from {usual:.2} in the steps before: the learning rate may be too high (`train.learning_rate`, now {:e}), or a row broken",
                loss.total(),
                self.config.train.learning_rate
            ));
        }
    }

    /// Weights that are not finite are written nowhere.
    pub(super) fn check_finite_weights(&self) -> Result<()> {
        let (params, gradients) = self
            .trainable
            .parameters(&self.model.params, &self.gradients);
        let trained = gradients.tensors.iter();
        let mut trained = trained.map(|(tensor, _)| &params.layout.tensors[*tensor]);
        let weights = |tensor: &TensorInfo| &params.data[tensor.range.clone()];
        match trained.find(|tensor| weights(tensor).iter().any(|w| !w.is_finite())) {
            None => Ok(()),
            Some(tensor) => Err(self.non_finite(self.state.step, tensor.name.clone())),
        }
    }

    fn non_finite(&self, step: usize, what: String) -> Error {
        let before = match self.state.skipped_steps {
            0 => String::new(),
            n => format!(" ({n} steps were passed over before)"),
        };
        Error::NonFinite {
            step,
            quantity: what,
            hint: format!(
                "lower `train.learning_rate` (now {:e}) or check the rows{before}; {} keeps the checkpoints from before",
                self.config.train.learning_rate,
                self.run.path().display()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_is_told_once_it_can_be_known_to_be_one() {
        let mut spikes = LossSpikeDetector::default();
        assert!((0..10).all(|_| spikes.observe(2.0).is_none()));
        assert_eq!(spikes.observe(5.9), None);
        let usual = spikes.observe(9.0).expect("it jumped");
        assert!((usual - 2.39).abs() < 1e-9, "{usual}");
        // The jump has not become what is usual.
        assert!(spikes.observe(12.0).is_some());
        assert_eq!(spikes.observe(2.5), None);
    }

    #[test]
    fn hard_rows_among_learned_ones_are_no_jump() {
        let mut spikes = LossSpikeDetector::default();
        assert!((0..50).all(|_| spikes.observe(0.01).is_none()));
        assert_eq!(spikes.observe(0.9), None);
        assert!(spikes.observe(1.5).is_some());
    }
}

//! Numbers that are not finite, and losses that jump.

use super::{Trainer, adamw::first_non_finite};
use crate::{
    Error, Result, config::OnNonFinite, engine::Loss, model::params::TensorInfo, run::Metrics,
};

/// Steps that are passed over under `on_nonfinite = "skip"`.
const MOST_SKIPPED: usize = 10;

/// Steps that are looked at before anything is said.
const STEPS: usize = 10;

/// How many times the usual loss, and how much (nats) above it, a loss is that has jumped. Both: late in training, when losses are
/// near zero, a hard row alone is many times the others.
const TIMES: f64 = 3.0;
/// See [`TIMES`].
const ABOVE: f64 = 1.0;

/// What each step weighs in the usual loss.
const WEIGHT: f64 = 0.1;

/// The usual loss: a moving average.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spikes {
    usual: f64,
    steps: usize,
}

impl Spikes {
    /// The usual loss before this one, where this one has jumped above it. A jump counts little toward what is usual.
    pub fn see(&mut self, loss: f64) -> Option<f64> {
        let usual = self.usual;
        let jumped = self.steps >= STEPS && loss > TIMES * usual && loss > usual + ABOVE;
        let counted = if jumped {
            (TIMES * usual).max(ABOVE)
        } else {
            loss
        };
        self.usual = match self.steps {
            0 => loss,
            _ => usual + WEIGHT * (counted - usual),
        };
        self.steps += 1;
        jumped.then_some(usual)
    }
}

impl Trainer<'_> {
    /// What of a step is not finite, if anything: the loss, or the gradient of a tensor.
    pub(super) fn what_is_not_finite(&self, loss: Loss, grad_norm: f64) -> Option<String> {
        if !loss.total().is_finite() {
            return Some("the loss".to_owned());
        }
        if grad_norm.is_finite() {
            return None;
        }
        let (params, gradients) = self.trained.parameters(&self.model.params, &self.gradients);
        let name = first_non_finite(&params.layout, gradients);
        Some(name.map_or_else(
            || "the gradient norm".to_owned(),
            |name| format!("the gradient of {name}"),
        ))
    }

    /// Passes over a step in which `what` is not finite, where the config says so and it does not come too often; else the run
    /// ends. Neither touches weights or moments; what a fused step had moved by then stays moved, and ends the run.
    pub(super) fn skip(&mut self, epoch: usize, step: usize, what: String) -> Result<()> {
        let skips = self.config.train.on_nonfinite == OnNonFinite::Skip;
        if !skips || self.standing.skipped == MOST_SKIPPED {
            return Err(self.non_finite(step, what));
        }
        self.progress.note(format_args!(
            "step {step}: {what} is not finite: passed over"
        ));
        self.run.append(&Metrics::Skipped { epoch, step, what })?;
        self.standing.skipped += 1;
        self.standing.step = step;
        self.standing.step_in_epoch += 1;
        Ok(())
    }

    pub(super) fn warn_of_a_spike(&mut self, step: usize, loss: Loss) {
        if let Some(usual) = self.spikes.see(loss.total()) {
            self.progress.note(format_args!(
                "step {step}: the loss jumped to {:.2}, from {usual:.2} in the steps before: the learning rate may be too high (`train.lr`, now {:e}), or a row broken",
                loss.total(),
                self.config.train.lr
            ));
        }
    }

    /// Weights that are not finite are written nowhere.
    pub(super) fn require_finite_weights(&self) -> Result<()> {
        let (params, gradients) = self.trained.parameters(&self.model.params, &self.gradients);
        let trained = gradients.tensors.iter();
        let mut trained = trained.map(|(tensor, _)| &params.layout.tensors[*tensor]);
        let weights = |tensor: &TensorInfo| &params.data[tensor.range.clone()];
        match trained.find(|tensor| weights(tensor).iter().any(|w| !w.is_finite())) {
            None => Ok(()),
            Some(tensor) => Err(self.non_finite(self.standing.step, tensor.name.clone())),
        }
    }

    fn non_finite(&self, step: usize, what: String) -> Error {
        let before = match self.standing.skipped {
            0 => String::new(),
            n => format!(" ({n} steps were passed over before)"),
        };
        Error::NonFinite {
            step,
            what,
            hint: format!(
                "lower `train.lr` (now {:e}) or check the rows{before}; {} keeps the checkpoints from before",
                self.config.train.lr,
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
        let mut spikes = Spikes::default();
        assert!((0..10).all(|_| spikes.see(2.0).is_none()));
        assert_eq!(spikes.see(5.9), None);
        let usual = spikes.see(9.0).expect("it jumped");
        assert!((usual - 2.39).abs() < 1e-9, "{usual}");
        // The jump has not become what is usual.
        assert!(spikes.see(12.0).is_some());
        assert_eq!(spikes.see(2.5), None);
    }

    #[test]
    fn hard_rows_among_learned_ones_are_no_jump() {
        let mut spikes = Spikes::default();
        assert!((0..50).all(|_| spikes.see(0.01).is_none()));
        assert_eq!(spikes.see(0.9), None);
        assert!(spikes.see(1.5).is_some());
    }
}

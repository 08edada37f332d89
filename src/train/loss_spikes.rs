//! Detects loss spikes.

/// Steps that may be skipped with `on_nonfinite = "skip"`.
pub(super) const MAX_SKIPPED_STEPS: usize = 10;

/// Steps before the first warning.
const MIN_STEPS: usize = 10;

/// A loss is a spike if it is this many times the mean and this much (nats) above it. Both are needed: late in training, when losses
/// are near zero, a single hard example is many times the others.
const SPIKE_RATIO: f64 = 3.0;
/// See [`SPIKE_RATIO`].
const SPIKE_MARGIN: f64 = 1.0;

/// Weight of a step in the moving average.
const MEAN_WEIGHT: f64 = 0.1;

/// Finds losses that are far above the moving average of the steps before.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LossSpikeDetector {
    mean: f64,
    steps: usize,
}

impl LossSpikeDetector {
    /// Adds a loss. If it is a spike, returns the mean before it; a spike has little weight in the mean.
    pub fn observe(&mut self, loss: f64) -> Option<f64> {
        let mean = self.mean;
        let is_spike =
            self.steps >= MIN_STEPS && loss > SPIKE_RATIO * mean && loss > mean + SPIKE_MARGIN;
        let counted = if is_spike {
            (SPIKE_RATIO * mean).max(SPIKE_MARGIN)
        } else {
            loss
        };
        self.mean = match self.steps {
            0 => loss,
            _ => mean + MEAN_WEIGHT * (counted - mean),
        };
        self.steps += 1;
        is_spike.then_some(mean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spike_is_reported_after_enough_steps() {
        let mut spikes = LossSpikeDetector::default();
        assert!((0..10).all(|_| spikes.observe(2.0).is_none()));
        assert_eq!(spikes.observe(5.9), None);
        let mean = spikes.observe(9.0).expect("a spike");
        assert!((mean - 2.39).abs() < 1e-9, "{mean}");
        // The spike has not raised the mean much.
        assert!(spikes.observe(12.0).is_some());
        assert_eq!(spikes.observe(2.5), None);
    }

    #[test]
    fn hard_examples_among_learned_ones_are_no_spike() {
        let mut spikes = LossSpikeDetector::default();
        assert!((0..50).all(|_| spikes.observe(0.01).is_none()));
        assert_eq!(spikes.observe(0.9), None);
        assert!(spikes.observe(1.5).is_some());
    }
}

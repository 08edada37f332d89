//! Losses that jump.

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

//! A source of rows: replay. Known facts are repeated in addition to the training rows, by default those with the largest loss.
//!
//! The known facts are training rows in any case, so a replayed row is an extra repetition. With `target = "label"` it joins the mean of
//! the step's cross-entropy. With `target = "teacher"` it has no cross-entropy and repeats the teacher's output instead, as
//! dark experience replay does (Buzzega et al. 2020, arXiv 2004.07211, with squared differences of logits). It adds this term to the
//! loss, where y are the tokens of the correct answer and tau is the temperature of self-distillation:
//!
//! ```text
//! strength * mean over the step's replayed rows of tau^2 / |y| * sum over j in y of KL(snapshot_j || model_j)
//! ```

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use crate::{
    Result,
    config::{ReplayConfig, ReplaySchedule},
    generate::Generator,
    prompt::Example,
};

impl ReplayConfig {
    /// Number of rows to replay in an epoch of `rows` training rows: the one with index `epoch` of the `epochs` after the snapshot
    /// epochs. Under `ramp` the ratio rises linearly from 0 to twice `ratio`; with a single epoch it is `ratio`.
    pub fn count(&self, rows: usize, epoch: usize, epochs: usize) -> usize {
        let ratio = match self.schedule {
            ReplaySchedule::Ramp if epochs > 1 => {
                2.0 * self.ratio * epoch as f64 / (epochs - 1) as f64
            }
            ReplaySchedule::Ramp | ReplaySchedule::Uniform => self.ratio,
        };
        (ratio * rows as f64).round() as usize
    }
}

/// The cross-entropy of each row under the generator's model: mean over its target tokens, in nats.
///
/// # Errors
/// [`crate::Error::Input`] if a row is longer than the model's context.
pub fn example_losses(generator: &mut Generator<'_>, rows: &[Example]) -> Result<Vec<f64>> {
    let pairs = rows.iter().map(|r| (r.prompt.clone(), r.target.clone()));
    let scored = generator.score(&pairs.collect::<Vec<_>>(), &|_| {})?;
    let mean = |logprobs: Vec<f32>| {
        let sum: f64 = logprobs.iter().map(|l| f64::from(*l)).sum();
        -sum / logprobs.len().max(1) as f64
    };
    Ok(scored.into_iter().map(mean).collect())
}

/// The indices of the `count` rows with the largest `losses`, largest first. Ties are broken by the lowest index. If there are fewer
/// rows, they repeat.
pub fn hardest(losses: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..losses.len()).collect();
    order.sort_by(|a, b| losses[*b].total_cmp(&losses[*a]));
    order.into_iter().cycle().take(count).collect()
}

/// `count` indices below `rows`, drawn for an epoch without replacement. If there are fewer rows, they repeat.
pub fn sample_uniform(rows: usize, count: usize, seed: u64, epoch: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rows).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // Streams are used from the last one down: the training order uses those from the first one up.
    rng.set_stream(u64::MAX - epoch as u64);
    order.shuffle(&mut rng);
    order.into_iter().cycle().take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_losses_come_first_and_ties_in_the_rows_order() {
        let losses = [0.5, 2.0, 0.5, 3.0];
        assert_eq!(hardest(&losses, 3), [3, 1, 0]);
        assert_eq!(hardest(&losses, 6), [3, 1, 0, 2, 3, 1]);
        assert!(hardest(&losses, 0).is_empty() && hardest(&[], 3).is_empty());
    }

    #[test]
    fn a_sample_depends_on_seed_and_epoch_and_differs_from_the_training_order() {
        let draw = sample_uniform(50, 20, 7, 3);
        assert_eq!(draw, sample_uniform(50, 20, 7, 3));
        assert_ne!(draw, sample_uniform(50, 20, 7, 4));
        assert_ne!(draw, sample_uniform(50, 20, 8, 3));
        // The training order of the epoch is a permutation from the stream with its number.
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        rng.set_stream(3);
        let mut training_order: Vec<usize> = (0..50).collect();
        training_order.shuffle(&mut rng);
        assert_ne!(draw, training_order[..20]);
        let mut sorted = draw;
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), 20);
        assert_eq!(sample_uniform(3, 7, 7, 3).len(), 7);
    }

    #[test]
    fn the_mean_ratio_over_the_epochs_is_the_same_under_either_schedule() {
        let counts = |schedule, epochs: usize| -> Vec<usize> {
            let replay = ReplayConfig {
                ratio: 0.2,
                schedule,
                ..ReplayConfig::default()
            };
            let of = |epoch| replay.count(100, epoch, epochs);
            (0..epochs).map(of).collect()
        };
        assert_eq!(counts(ReplaySchedule::Uniform, 3), [20, 20, 20]);
        assert_eq!(counts(ReplaySchedule::Ramp, 5), [0, 10, 20, 30, 40]);
        assert_eq!(counts(ReplaySchedule::Ramp, 1), [20]);
    }
}

//! Accuracy, outcomes per fact, behaviour on general prompts, drift, and confidence intervals.

mod accuracy;
mod auc;
mod behaviour;
mod comparison;
mod drift;
mod forgotten;
mod intervals;
mod knn;
mod loss;
mod paired_scores;
mod pca;
mod subjects;

pub(crate) use accuracy::max_answer_tokens;
pub use accuracy::{EvalAnswer, EvalSet};
pub use auc::{auc, auc_interval};
pub use behaviour::{Behaviour, BehaviourAnswer, BehaviourReference, BehaviourReport};
pub use comparison::{ComparedFact, Comparison, Counts, FactOutcome, known_before};
pub use drift::{Drift, DriftProbe, DriftReference, DriftSettings};
pub use forgotten::Forgotten;
pub use intervals::{
    bootstrap, forgetting_interval, forgetting_pp, mean_interval, paired_interval, wilson_interval,
};
pub use knn::{Neighbour, nearest};
pub use loss::mean_token_loss;
pub use paired_scores::{PairedOutcomes, PairedScores, mcnemar_p, outcome as paired_outcome};
pub use pca::pca_2d;
pub use subjects::{SubjectPrompts, middle_layer};

use rand::{SeedableRng, seq::index};
use rand_chacha::ChaCha8Rng;

/// Fraction of correct facts (0 to 1); `None` of no facts.
pub fn accuracy(correct: &[bool]) -> Option<f64> {
    let n = correct.iter().filter(|r| **r).count();
    (!correct.is_empty()).then(|| n as f64 / correct.len() as f64)
}

/// A seeded sample of at most `max` of `0..count`, without replacement, ascending.
pub(crate) fn sample(count: usize, max: usize, seed: u64) -> Vec<usize> {
    if count <= max {
        return (0..count).collect();
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut chosen = index::sample(&mut rng, count, max).into_vec();
    chosen.sort_unstable();
    chosen
}

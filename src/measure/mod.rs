//! What a model gets right, what became of each fact, and how sure that is.

mod accuracy;
mod auc;
mod bootstrap;
mod compare;
mod drift;
mod neighbours;
mod plane;
mod subjects;

pub use accuracy::{Answered, Exam};
pub use auc::{auc, auc_interval};
pub use bootstrap::{bootstrap, forgetting_interval, forgetting_pp, mean_interval};
pub use compare::{Compared, Comparison, known_at_audit};
pub use drift::{DriftProbe, DriftSettings, Reference};
pub use neighbours::{Neighbour, nearest};
pub use plane::plane;
pub use subjects::{Subjects, middle_layer};

use rand::{SeedableRng, seq::index};
use rand_chacha::ChaCha8Rng;

/// Share of `right` (0 to 1); none of no facts.
pub fn share(right: &[bool]) -> Option<f64> {
    let n = right.iter().filter(|r| **r).count();
    (!right.is_empty()).then(|| n as f64 / right.len() as f64)
}

/// At most `most` of `0..count`, drawn with `seed`, ascending.
pub(crate) fn sample(count: usize, most: usize, seed: u64) -> Vec<usize> {
    if count <= most {
        return (0..count).collect();
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut chosen = index::sample(&mut rng, count, most).into_vec();
    chosen.sort_unstable();
    chosen
}

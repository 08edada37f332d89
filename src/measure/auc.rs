//! Area under the ROC curve.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::intervals::{RESAMPLES, quantile};

/// Area under the ROC curve: the probability that a positive example has a higher score than a negative one, with ties counted as one
/// half (Mann-Whitney U divided by the number of pairs). `None` unless both classes occur.
///
/// # Panics
/// If the lengths differ.
pub fn auc(scores: &[f64], positive: &[bool]) -> Option<f64> {
    assert_eq!(scores.len(), positive.len(), "one score per example");
    weighted_auc(&tie_groups(scores), positive, &vec![1; scores.len()])
}

/// The 95% interval of [`auc`] by bootstrap over examples: percentiles 2.5 and 97.5 of 10,000 resamples; a resample with one class is
/// drawn again. `None` unless both classes occur.
pub fn auc_interval(scores: &[f64], positive: &[bool], seed: u64) -> Option<[f64; 2]> {
    auc(scores, positive)?;
    let (n, ordered) = (scores.len(), tie_groups(scores));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut drawn: Vec<f64> = Vec::with_capacity(RESAMPLES);
    while drawn.len() < RESAMPLES {
        let mut counts = vec![0; n];
        for _ in 0..n {
            counts[rng.random_range(0..n)] += 1;
        }
        drawn.extend(weighted_auc(&ordered, positive, &counts));
    }
    drawn.sort_unstable_by(f64::total_cmp);
    Some([0.025, 0.975].map(|q| quantile(&drawn, q)))
}

/// Indices grouped by equal score, in ascending order of score.
fn tie_groups(scores: &[f64]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
    let groups = order.chunk_by(|a, b| scores[*a] == scores[*b]);
    groups.map(<[usize]>::to_vec).collect()
}

/// [`auc`] with each example repeated `counts` times.
fn weighted_auc(groups: &[Vec<usize>], positive: &[bool], counts: &[u32]) -> Option<f64> {
    let (mut positives, mut negatives, mut wins) = (0.0, 0.0, 0.0);
    for group in groups {
        let count = |kind: bool| -> f64 {
            let members = group.iter().filter(|i| positive[**i] == kind);
            members.map(|i| f64::from(counts[*i])).sum()
        };
        let (with, without) = (count(true), count(false));
        wins += with * (negatives + without / 2.0);
        positives += with;
        negatives += without;
    }
    (positives > 0.0 && negatives > 0.0).then(|| wins / (positives * negatives))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_won_lost_or_tied() {
        // Positives 3 and 1 against 1 and 2: won 2 of 4 by the 3, half a pair by the tie.
        let (scores, positive) = ([3.0, 1.0, 1.0, 2.0], [true, true, false, false]);
        assert_eq!(auc(&scores, &positive), Some(2.5 / 4.0));
        assert_eq!(auc(&[1.0, 2.0], &[true, true]), None);
        assert_eq!(auc(&[], &[]), None);
        assert_eq!(auc_interval(&[1.0], &[false], 0), None);
    }

    #[test]
    fn the_interval_is_as_wide_as_hanley_and_mcneil_say() {
        // 40 positives and 160 negatives, quantiles of two logistic scores; AUC about 0.76. Hanley and McNeil 1982: variance
        // = (A (1 - A) + 39 (Q1 - A^2) + 159 (Q2 - A^2)) / (40 x 160), Q1 = A / (2 - A), Q2 = 2 A^2 / (1 + A).
        let logit = |i: usize, n: usize| {
            let q = (i as f64 + 0.5) / n as f64;
            (q / (1.0 - q)).ln()
        };
        let with = (0..40).map(|i| (logit(i, 40) + 1.7, true));
        let without = (0..160).map(|i| (logit(i, 160), false));
        let (scores, positive): (Vec<f64>, Vec<bool>) = with.chain(without).unzip();
        let a = auc(&scores, &positive).expect("both classes");
        let (q1, q2) = (a / (2.0 - a), 2.0 * a * a / (1.0 + a));
        let variance =
            (a * (1.0 - a) + 39.0 * (q1 - a * a) + 159.0 * (q2 - a * a)) / (40.0 * 160.0);
        let expected = 2.0 * 1.96 * variance.sqrt();
        let [low, high] = auc_interval(&scores, &positive, 0).expect("both classes");
        assert!(low < a && a < high);
        // Their variance is an approximation for exponential scores: within a sixth of the bootstrap.
        assert!(
            (high - low - expected).abs() < expected / 6.0,
            "{low} {high} {expected}"
        );
        assert_eq!(auc_interval(&scores, &positive, 0), Some([low, high]));
    }
}

//! Forgetting, and 95% confidence intervals over facts: Wilson (a fraction), Tango (a paired difference), bootstrap (any estimate).

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Number of bootstrap resamples.
pub(super) const RESAMPLES: usize = 10_000;

/// The 97.5% quantile of the standard normal distribution: 95% intervals have this half-width in standard errors.
pub(super) const Z: f64 = 1.959_963_984_540_054;

/// Forgetting in percentage points: 100 x (accuracy at the peak - accuracy after), over the same facts. `None` of no facts.
pub fn forgetting_pp(peak: &[bool], after: &[bool]) -> Option<f64> {
    let [lost, gained] = discordant(peak, after);
    (!peak.is_empty()).then(|| 100.0 * (lost as f64 - gained as f64) / peak.len() as f64)
}

/// The 95% interval of [`forgetting_pp`] in percentage points: [`paired_interval`]. `None` of fewer than two facts.
pub fn forgetting_interval(peak: &[bool], after: &[bool]) -> Option<[f64; 2]> {
    let [lost, gained] = discordant(peak, after);
    paired_interval(lost, gained, peak.len()).map(|interval| interval.map(|end| 100.0 * end))
}

/// The 95% Wilson interval of a fraction `p` of `n`: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), z = 1.96
/// (Wilson 1927); `None` for `n = 0`.
pub fn wilson_interval(p: f64, n: usize) -> Option<[f64; 2]> {
    if n == 0 {
        return None;
    }
    let (n, z) = (n as f64, Z);
    let middle = p + z * z / (2.0 * n);
    let half = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z * z / n;
    Some([
        ((middle - half) / scale).max(0.0),
        ((middle + half) / scale).min(1.0),
    ])
}

/// The 95% score interval of a difference of two fractions of the same `n` facts (Tango 1998): `lost` facts are correct only
/// before, `gained` ones only after, and the difference is (lost - gained) / n. `None` of fewer than two facts.
///
/// It holds every difference d from -1 to 1 for which |lost - gained - n d| <= 1.96 sqrt(n (2 q + d (1 - d))). q is the probability
/// of a gained fact that is most likely given d: the larger root of 2n q^2 + ((2n - lost + gained) d - lost - gained) q -
/// gained d (1 - d) = 0. Without gained facts it agrees with [`wilson_interval`] about the largest difference, so that no loss
/// among few facts is not taken for certainty.
pub fn paired_interval(lost: usize, gained: usize, n: usize) -> Option<[f64; 2]> {
    if n < 2 {
        return None;
    }
    let (lost, gained, n) = (lost as f64, gained as f64, n as f64);
    let observed = (lost - gained) / n;
    let is_within = |d: f64| {
        let linear = (2.0 * n - lost + gained) * d - lost - gained;
        let constant = -gained * d * (1.0 - d);
        let root = (linear * linear - 8.0 * n * constant).max(0.0).sqrt();
        let q = (root - linear) / (4.0 * n);
        let variance = n * (2.0 * q + d * (1.0 - d)).max(0.0);
        (lost - gained - n * d).abs() <= Z * variance.sqrt() + 1e-12
    };
    let end = |limit: f64| {
        let (mut inside, mut outside) = (observed, limit);
        if is_within(limit) {
            return limit;
        }
        // Halved until the ends are neighbouring numbers.
        for _ in 0..64 {
            let middle = f64::midpoint(inside, outside);
            if is_within(middle) {
                inside = middle;
            } else {
                outside = middle;
            }
        }
        inside
    };
    Some([end(-1.0), end(1.0)])
}

/// The 95% interval of the mean of `values`, one per fact, see [`bootstrap`]. `None` of no values.
pub fn mean_interval(values: &[f64], seed: u64) -> Option<[f64; 2]> {
    let n = values.len();
    bootstrap(n, seed, |facts| {
        facts.iter().map(|i| values[*i]).sum::<f64>() / n as f64
    })
}

/// The 95% percentile bootstrap interval of `estimate` (Efron 1979): percentiles 2.5 and 97.5, linearly interpolated, of its values on
/// 10,000 resamples. A resample holds `facts` indices of `0..facts`, drawn with replacement. `None` of no facts.
pub fn bootstrap(facts: usize, seed: u64, estimate: impl Fn(&[usize]) -> f64) -> Option<[f64; 2]> {
    if facts == 0 {
        return None;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut drawn = vec![0; facts];
    let mut estimates: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            drawn.fill_with(|| rng.random_range(0..facts));
            estimate(&drawn)
        })
        .collect();
    estimates.sort_unstable_by(f64::total_cmp);
    Some([0.025, 0.975].map(|q| quantile(&estimates, q)))
}

/// The number of facts that are correct only before, and only after.
fn discordant(before: &[bool], after: &[bool]) -> [usize; 2] {
    assert_eq!(before.len(), after.len(), "the same facts before and after");
    let count = |was: bool| {
        let pairs = before.iter().zip(after);
        pairs.filter(|(b, a)| **b == was && **a != was).count()
    };
    [count(true), count(false)]
}

/// The `q`-quantile of sorted values, linearly interpolated.
pub(super) fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + at.fract() * (high - low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgetting_is_counted_over_the_same_facts() {
        let (peak, after) = ([true, true, true, false], [true, false, false, true]);
        // Two forgotten, one gained, of four.
        assert_eq!(forgetting_pp(&peak, &after), Some(25.0));
        assert_eq!(forgetting_pp(&[], &[]), None);
        assert_eq!(forgetting_interval(&[], &[]), None);
    }

    /// `tests/golden/intervals.py`: scipy's Wilson interval, and the paired interval by its definition (restricted maximum
    /// likelihood and root finding).
    #[test]
    fn intervals_equal_the_references() {
        #[derive(serde::Deserialize)]
        struct Case {
            counts: Vec<usize>,
            interval: [f64; 2],
        }
        #[derive(serde::Deserialize)]
        struct Golden {
            wilson: Vec<Case>,
            paired: Vec<Case>,
        }
        let json = include_str!("../../tests/golden/intervals.json");
        let golden: Golden = serde_json::from_str(json).expect("it is committed");
        let check = |case: &Case, ours: Option<[f64; 2]>| {
            let ours = ours.expect("there are facts");
            for (ours, expected) in ours.iter().zip(case.interval) {
                assert!((ours - expected).abs() < 1e-6, "{:?}: {ours}", case.counts);
            }
        };
        for case in &golden.wilson {
            let (count, n) = (case.counts[0], case.counts[1]);
            check(case, wilson_interval(count as f64 / n as f64, n));
        }
        for case in &golden.paired {
            let [lost, gained, n] = case.counts[..] else {
                panic!("three counts");
            };
            check(case, paired_interval(lost, gained, n));
        }
        assert!(golden.wilson.len() >= 8 && golden.paired.len() >= 20);
        assert_eq!(wilson_interval(0.5, 0), None);
    }

    #[test]
    fn no_loss_among_few_facts_is_no_certainty() {
        let [low, high] = forgetting_interval(&[true; 19], &[true; 19]).expect("19 facts");
        assert!(low < -15.0 && high > 15.0, "{low} {high}");
        let all = wilson_interval(0.0, 19).expect("19 facts");
        assert!((high - 100.0 * all[1]).abs() < 1e-6);
        let [low, high] = forgetting_interval(&[true; 9], &[false; 9]).expect("9 facts");
        assert!(low < 75.0 && high == 100.0, "{low} {high}");
        assert_eq!(forgetting_interval(&[true], &[false]), None);
    }

    #[test]
    fn the_same_seed_gives_the_same_interval() {
        let values: Vec<f64> = (0..60).map(|i| f64::from(i % 4)).collect();
        let interval = |seed| mean_interval(&values, seed);
        assert_eq!(interval(5), interval(5));
        assert_ne!(interval(5), interval(6));
    }

    #[test]
    fn quantiles_are_interpolated() {
        assert!((quantile(&[0.0, 10.0], 0.25) - 2.5).abs() < 1e-12);
        assert!((quantile(&[3.0], 0.975) - 3.0).abs() < 1e-12);
    }
}

//! Forgetting and bootstrap confidence intervals over facts.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Number of bootstrap resamples.
pub(super) const RESAMPLES: usize = 10_000;

/// Forgetting in percentage points: 100 x (accuracy at the peak - accuracy after), over the same facts. `None` of no facts.
pub fn forgetting_pp(peak: &[bool], after: &[bool]) -> Option<f64> {
    let lost: i64 = losses(peak, after).iter().map(|l| i64::from(*l)).sum();
    (!peak.is_empty()).then(|| 100.0 * lost as f64 / peak.len() as f64)
}

/// The 95% interval of [`forgetting_pp`]: paired bootstrap over facts, see [`bootstrap`]. `None` of no facts.
pub fn forgetting_interval(peak: &[bool], after: &[bool], seed: u64) -> Option<[f64; 2]> {
    let losses = losses(peak, after).into_iter();
    let percent: Vec<f64> = losses.map(|lost| 100.0 * f64::from(lost)).collect();
    mean_interval(&percent, seed)
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

/// Per fact: 1 forgotten, 0 unchanged, -1 gained.
fn losses(peak: &[bool], after: &[bool]) -> Vec<i8> {
    assert_eq!(peak.len(), after.len(), "the same facts before and after");
    let pairs = peak.iter().zip(after);
    pairs.map(|(p, a)| i8::from(*p) - i8::from(*a)).collect()
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
        assert_eq!(forgetting_interval(&[], &[], 0), None);
    }

    #[test]
    fn identical_outcomes_give_an_interval_of_zero_width() {
        assert_eq!(
            forgetting_interval(&[true; 9], &[true; 9], 0),
            Some([0.0; 2])
        );
        assert_eq!(
            forgetting_interval(&[true; 9], &[false; 9], 0),
            Some([100.0; 2])
        );
    }

    #[test]
    fn the_interval_is_that_of_the_binomial() {
        // 400 facts, 40 forgotten: 10 pp with a standard error of 100 x sqrt(0.1 x 0.9 / 400) = 1.5, so 10 +- 1.96 x 1.5 =
        // [7.06, 12.94] if it were normal; the exact binomial's percentiles are 29 and 52 of 400.
        let peak = [true; 400];
        let after: Vec<bool> = (0..400).map(|i| i % 10 != 0).collect();
        let [low, high] = forgetting_interval(&peak, &after, 1).expect("there are facts");
        // One fact of 400 is 0.25 pp: the percentile of 10,000 resamples may be off by one fact.
        assert!(
            (low - 7.25).abs() <= 0.25 && (high - 13.0).abs() <= 0.25,
            "{low} {high}"
        );
    }

    #[test]
    fn the_same_seed_gives_the_same_interval() {
        let peak: Vec<bool> = (0..60).map(|i| i % 3 != 0).collect();
        let after: Vec<bool> = (0..60).map(|i| i % 4 != 0).collect();
        let interval = |seed| forgetting_interval(&peak, &after, seed);
        assert_eq!(interval(5), interval(5));
    }

    #[test]
    fn quantiles_are_interpolated() {
        assert!((quantile(&[0.0, 10.0], 0.25) - 2.5).abs() < 1e-12);
        assert!((quantile(&[3.0], 0.975) - 3.0).abs() < 1e-12);
    }
}

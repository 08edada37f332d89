//! The scores of two models on the same documents, compared document by document.

use serde::Serialize;

use super::{Counts, FactOutcome, intervals::Z, paired_interval};

/// Scores of the same documents before and after.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PairedScores {
    /// Number of documents.
    pub documents: usize,
    /// Mean score before.
    pub before: f64,
    /// Mean score after.
    pub after: f64,
    /// `after - before`.
    pub difference: f64,
    /// Standard error of the difference: the standard deviation (with n - 1) of the differences of the documents, over sqrt(n). Null for
    /// a single document.
    pub standard_error: Option<f64>,
    /// 95% interval of the difference: [`paired_interval`] where every score is 0 or 1, otherwise 1.96 standard errors on both sides.
    /// Null for a single document.
    pub interval: Option<[f64; 2]>,
    /// Where every score is 0 or 1.
    #[serde(flatten)]
    pub outcomes: Option<PairedOutcomes>,
}

/// How many documents were right before and after.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PairedOutcomes {
    /// By [`FactOutcome::between_models`].
    #[serde(flatten)]
    pub counts: Counts,
    /// [`mcnemar_p`].
    pub mcnemar_p: f64,
}

impl PairedScores {
    /// Compares the scores `[before, after]` of each document; `None` of no documents.
    pub fn new(scores: &[[f64; 2]]) -> Option<Self> {
        let n = scores.len();
        if n == 0 {
            return None;
        }
        let mean = |of: &dyn Fn(&[f64; 2]) -> f64| scores.iter().map(of).sum::<f64>() / n as f64;
        let (before, after) = (mean(&|pair| pair[0]), mean(&|pair| pair[1]));
        let difference = mean(&|pair| pair[1] - pair[0]);
        let variance = mean(&|pair| (pair[1] - pair[0] - difference).powi(2));
        let standard_error = (n > 1).then(|| (variance / (n - 1) as f64).sqrt());
        let outcomes: Option<Vec<FactOutcome>> = scores.iter().map(outcome).collect();
        let outcomes = outcomes.map(|outcomes| {
            let counts = Counts::count(outcomes);
            PairedOutcomes {
                counts,
                mcnemar_p: mcnemar_p(counts.forgotten, counts.learned),
            }
        });
        let interval = match &outcomes {
            Some(PairedOutcomes { counts, .. }) => {
                paired_interval(counts.learned, counts.forgotten, n)
            }
            None => standard_error.map(|se| [difference - Z * se, difference + Z * se]),
        };
        Some(Self {
            documents: n,
            before,
            after,
            difference,
            standard_error,
            interval,
            outcomes,
        })
    }
}

/// The outcome of a document whose scores `[before, after]` are right (1) or wrong (0); `None` if one is another number.
pub fn outcome(scores: &[f64; 2]) -> Option<FactOutcome> {
    let [before, after] = scores.map(|score| match score {
        0.0 => Some(false),
        1.0 => Some(true),
        _ => None,
    });
    Some(FactOutcome::between_models(before?, after?))
}

/// The two-sided p-value of `McNemar`'s exact test (1947): with `lost` documents right only before and `gained` ones right only after,
/// the probability of a split at least as uneven if each were as likely,
///
/// ```text
/// p = min(1, 2 sum over k from 0 to min(lost, gained) of C(n, k) / 2^n),    n = lost + gained
/// ```
pub fn mcnemar_p(lost: usize, gained: usize) -> f64 {
    let n = (lost + gained) as f64;
    let mut log_term = -n * std::f64::consts::LN_2;
    let mut sum = log_term.exp();
    for k in 1..=lost.min(gained) {
        log_term += ((n - k as f64 + 1.0) / k as f64).ln();
        sum += log_term.exp();
    }
    (2.0 * sum).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tests/golden/intervals.py`: scipy's exact binomial test, and its standard error of the mean.
    #[test]
    fn tests_and_standard_errors_equal_scipys() {
        #[derive(serde::Deserialize)]
        struct Test {
            counts: [usize; 2],
            p: f64,
        }
        #[derive(serde::Deserialize)]
        struct Scores {
            before: Vec<f64>,
            after: Vec<f64>,
            difference: f64,
            standard_error: f64,
            interval: [f64; 2],
        }
        #[derive(serde::Deserialize)]
        struct Golden {
            mcnemar: Vec<Test>,
            paired_scores: Vec<Scores>,
        }
        let json = include_str!("../../tests/golden/intervals.json");
        let golden: Golden = serde_json::from_str(json).expect("it is committed");
        assert!(golden.mcnemar.len() >= 10 && golden.paired_scores.len() >= 3);
        for Test { counts, p } in golden.mcnemar {
            let ours = mcnemar_p(counts[0], counts[1]);
            assert!(
                (ours - p).abs() <= 1e-9 * p,
                "{counts:?}: {ours} is not {p}"
            );
        }
        for case in golden.paired_scores {
            let pairs: Vec<[f64; 2]> = case
                .before
                .iter()
                .zip(&case.after)
                .map(|(b, a)| [*b, *a])
                .collect();
            let ours = PairedScores::new(&pairs).expect("there are scores");
            assert_eq!(ours.outcomes, None);
            let interval = ours.interval.expect("more than one");
            for (ours, expected) in [
                (ours.difference, case.difference),
                (
                    ours.standard_error.expect("more than one"),
                    case.standard_error,
                ),
                (interval[0], case.interval[0]),
                (interval[1], case.interval[1]),
            ] {
                assert!((ours - expected).abs() < 1e-12, "{ours} is not {expected}");
            }
        }
    }

    #[test]
    fn right_and_wrong_are_counted() {
        let pairs = [[1.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]];
        let scores = PairedScores::new(&pairs).expect("five documents");
        let outcomes = scores.outcomes.expect("zeros and ones");
        let expected = Counts {
            kept: 1,
            forgotten: 2,
            learned: 1,
            never_knew: 1,
            ..Counts::default()
        };
        assert_eq!((outcomes.counts, outcomes.mcnemar_p), (expected, 1.0));
        assert!((scores.difference + 0.2).abs() < 1e-12);
        let interval = scores.interval.expect("five documents");
        assert_eq!(Some(interval), paired_interval(1, 2, 5));
        assert_eq!(PairedScores::new(&[]), None);
        let one = PairedScores::new(&[[0.0, 1.0]]).expect("a document");
        assert_eq!((one.standard_error, one.interval), (None, None));
    }
}

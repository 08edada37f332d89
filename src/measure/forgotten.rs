//! How many known facts are wrong at the end: a count over its denominator, with an interval.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::intervals::wilson_interval;
use crate::format::percent;

/// Facts that were known before training and are wrong at the end.
///
/// The denominator is the same everywhere: the held-out facts that the audit found `HighlyKnown`. Without an audit it is the
/// held-out facts that count as known by [`super::known_before`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forgotten {
    /// Facts that are wrong at the end.
    pub count: usize,
    /// Known facts.
    pub of: usize,
    /// 100 x count / of.
    pub pp: f64,
    /// Its 95% Wilson interval in percentage points; null for a single fact, which has none.
    pub interval: Option<[f64; 2]>,
}

impl Forgotten {
    /// No fact was known, so that none could be forgotten.
    pub const NONE_KNOWN: Self = Self {
        count: 0,
        of: 0,
        pp: 0.0,
        interval: None,
    };

    /// `count` of `of` known facts; `None` without any.
    pub fn new(count: usize, of: usize) -> Option<Self> {
        let share = count as f64 / of as f64;
        let interval = wilson_interval(share, of)?.map(|end| 100.0 * end);
        Some(Self {
            count,
            of,
            pp: 100.0 * share,
            interval: (of > 1).then_some(interval),
        })
    }

    /// Counts the wrong ones of known facts, given whether each is correct at the end.
    pub fn count(correct_after: impl IntoIterator<Item = bool>) -> Option<Self> {
        let (mut count, mut of) = (0, 0);
        for correct in correct_after {
            count += usize::from(!correct);
            of += 1;
        }
        Self::new(count, of)
    }

    /// The most that can be lost, with 95% confidence, where none of n was: 3/n (0 to 1).
    pub fn rule_of_three(&self) -> f64 {
        (3.0 / self.of as f64).min(1.0)
    }

    /// The share in words: `, 14.9% (95%: 11.3 to 19.4)`; of zero facts the rule of three, ` (up to 1.0%)`; empty for a single fact.
    fn share(&self) -> String {
        match self.interval {
            None => String::new(),
            Some(_) if self.count == 0 => format!(" (up to {})", percent(self.rule_of_three())),
            Some([low, high]) => format!(", {:.1}% (95%: {low:.1} to {high:.1})", self.pp),
        }
    }

    /// With the noun of what is counted: `44 of 296 known facts, 14.9% (95%: 11.3 to 19.4)`, `0 of 19 known facts (up to 15.8%)`,
    /// `1 of 1 known fact`.
    pub fn of_facts(&self, adjective: &str) -> String {
        let noun = if self.of == 1 { "fact" } else { "facts" };
        format!(
            "{} of {} {adjective} {noun}{}",
            self.count,
            self.of,
            self.share()
        )
    }
}

impl fmt::Display for Forgotten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}{}", self.count, self.of, self.share())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_told_with_their_denominator() {
        let told = |count, of| Forgotten::new(count, of).map(|f| f.to_string());
        assert_eq!(
            told(44, 296).as_deref(),
            Some("44 of 296, 14.9% (95%: 11.3 to 19.4)")
        );
        assert_eq!(told(0, 19).as_deref(), Some("0 of 19 (up to 15.8%)"));
        assert_eq!(told(0, 2).as_deref(), Some("0 of 2 (up to 100.0%)"));
        assert_eq!(told(1, 1).as_deref(), Some("1 of 1"));
        assert_eq!(told(0, 0), None);
        let one = Forgotten::count([false]).expect("a fact");
        assert_eq!(one.of_facts("known"), "1 of 1 known fact");
        let two = Forgotten::count([false, true]).expect("facts");
        assert_eq!(
            two.of_facts("held-out"),
            "1 of 2 held-out facts, 50.0% (95%: 9.5 to 90.5)"
        );
    }

    #[test]
    fn a_single_fact_has_no_interval() {
        assert_eq!(Forgotten::new(1, 1).and_then(|f| f.interval), None);
        let [low, high] = Forgotten::new(0, 19)
            .and_then(|f| f.interval)
            .expect("19 facts");
        // z^2 / (19 + z^2) = 16.8%.
        assert!(low == 0.0 && (high - 16.8).abs() < 0.05, "{low} {high}");
    }
}

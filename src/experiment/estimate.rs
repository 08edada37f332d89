//! Means over facts with bootstrap intervals.

use std::collections::BTreeMap;

use crate::measure::bootstrap;

/// A mean over facts and its 95% interval (paired bootstrap over facts).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The mean. Forgetting is in percentage points, negative if accuracy rose.
    pub value: f64,
    /// The interval.
    pub interval: [f64; 2],
}

impl Estimate {
    /// The mean of observations, each with the name of its fact. Observations of one fact under several seeds are resampled
    /// together, because three observations of one fact carry less information than three facts.
    pub(super) fn mean_over_facts<'a>(
        observations: impl Iterator<Item = (&'a str, f64)>,
    ) -> Option<Self> {
        let mut facts: BTreeMap<&str, WeightedSum> = BTreeMap::new();
        for (fact, value) in observations {
            facts.entry(fact).or_default().add(value, 1.0);
        }
        let facts: Vec<WeightedSum> = facts.into_values().collect();
        Self::bootstrapped(facts.len(), |drawn| {
            WeightedSum::mean(drawn.iter().map(|fact| facts[*fact]))
        })
    }

    /// The value and interval of `estimate`, a function of the indices of resampled facts (0 to `facts`).
    pub(super) fn bootstrapped(facts: usize, estimate: impl Fn(&[usize]) -> f64) -> Option<Self> {
        let all: Vec<usize> = (0..facts).collect();
        Some(Self {
            interval: bootstrap(facts, 0, &estimate)?,
            value: estimate(&all),
        })
    }
}

/// A weighted sum of values.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct WeightedSum {
    sum: f64,
    weight: f64,
}

impl WeightedSum {
    /// Adds a value.
    pub fn add(&mut self, value: f64, weight: f64) {
        self.sum += weight * value;
        self.weight += weight;
    }

    /// Whether any value was added.
    pub fn has_weight(&self) -> bool {
        self.weight > 0.0
    }

    /// The weighted mean over several sums.
    pub fn mean(sums: impl Iterator<Item = Self>) -> f64 {
        let all = sums.fold(Self::default(), |all, one| Self {
            sum: all.sum + one.sum,
            weight: all.weight + one.weight,
        });
        all.sum / all.weight
    }
}

/// Forgetting of one fact in percentage points: 100 if it was correct (1) before and is wrong (0) after, -100 in the opposite case.
pub(super) fn forgotten_pp(before: u8, after: u8) -> f64 {
    100.0 * (f64::from(before) - f64::from(after))
}

/// The mean; `None` if there are no values.
pub(super) fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The median; `None` if there are no values.
pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) && middle > 0 {
        Some(f64::midpoint(values[middle - 1], values[middle]))
    } else {
        values.get(middle).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_observations_of_a_fact_are_not_three_facts() {
        let forgotten = |fact: usize| if fact.is_multiple_of(4) { 100.0 } else { 0.0 };
        let names: Vec<String> = (0..120).map(|i| format!("fact {i:03}")).collect();
        let over = |facts: usize, looks: usize| {
            let seen =
                (0..facts).flat_map(|i| std::iter::repeat_n((&names[i][..], forgotten(i)), looks));
            Estimate::mean_over_facts(seen).expect("there are facts")
        };
        let (once, thrice, more) = (over(40, 1), over(40, 3), over(120, 1));
        assert_eq!(once.value, 25.0);
        assert_eq!(once, thrice);
        let width = |e: Estimate| e.interval[1] - e.interval[0];
        // Three times as many facts: 1 / sqrt(3) = 0.577 as wide, up to the resolution of single facts (2.5 and 0.83 pp).
        let ratio = width(more) / width(once);
        assert!((ratio - 0.577).abs() < 0.1, "{ratio}");
        assert_eq!(Estimate::mean_over_facts(std::iter::empty()), None);
    }
}

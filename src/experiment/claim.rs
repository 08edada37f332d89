//! Claims: statements about an arm, with the bounds that decide them. They are written before anything is run.

use serde::{Deserialize, Serialize};

/// A claim about one arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// The claim in words.
    pub statement: String,
    /// The paper's value.
    #[serde(default)]
    pub paper: String,
    /// The arm; empty where facts are only audited.
    #[serde(default)]
    pub arm: String,
    /// The relation it is restricted to; default: all.
    #[serde(default)]
    pub relation: Option<String>,
    /// The metric. Default `gap`.
    #[serde(default)]
    pub metric: Metric,
    /// The facts over which a `gap` is computed. Default `held`.
    #[serde(default)]
    pub facts: HeldOutSet,
    /// The arm to compare to. For `gap`, the arm whose accuracy at the end is the reference (default `only-known`); for accuracies
    /// and drift, the arm whose value is subtracted.
    #[serde(default)]
    pub baseline: Option<String>,
    /// Subtracts a multiple of the gap of another arm.
    #[serde(default)]
    pub minus: Option<Minus>,
    /// Holds for values at least this large.
    #[serde(default)]
    pub at_least: Option<f64>,
    /// Holds for values at most this large.
    #[serde(default)]
    pub at_most: Option<f64>,
    /// Holds for values greater than this.
    #[serde(default)]
    pub above: Option<f64>,
    /// Holds for values less than this.
    #[serde(default)]
    pub below: Option<f64>,
}

/// The quantity that a claim bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// Accuracy gap to another arm at the end, in percentage points.
    #[default]
    Gap,
    /// Known held-out facts that are wrong at the end, in percent.
    Forgotten,
    /// Forgetting of held-out facts since the arm's best epoch, in percentage points.
    SinceBestEpoch,
    /// Accuracy on new facts at the end, in percent.
    Learned,
    /// Accuracy on new facts in percent, mean over epochs: lower the later they are learned.
    MeanLearned,
    /// Accuracy on the known facts of the training set at the end, in percent.
    Kept,
    /// Time per step, relative to plain fine-tuning.
    StepTime,
    /// Training time until 99% of the new facts are learned, also relative.
    TimeToLearned,
    /// Tokens through training steps until 99% of the new facts are learned, also relative.
    TokensToLearned,
    /// Peak memory, also relative.
    PeakMemory,
    /// `HighlyKnown` facts, in percent of the audited facts.
    HighlyKnown,
    /// RD of held-out subjects at the end. This and the following are means over held-out facts, see [`crate::measure::Drift`].
    Rd,
    /// NS.
    Ns,
    /// MTD.
    Mtd,
    /// Rank-rho.
    RankRho,
    /// NTR.
    Ntr,
    /// JSD.
    Jsd,
}

/// A set of facts that are never trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeldOutSet {
    /// `HighlyKnown` facts.
    #[default]
    Held,
    /// `MaybeKnown` facts.
    MaybeKnown,
    /// `WeaklyKnown` facts.
    WeaklyKnown,
    /// Known facts of other relations.
    OtherRelations,
}

/// A multiple of the gap of another arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Minus {
    /// The factor.
    pub factor: f64,
    /// The other arm.
    pub arm: String,
}

/// Whether a claim holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClaimVerdict {
    /// The whole interval satisfies the bounds.
    Holds,
    /// No part of it does.
    Fails,
    /// Part of it does.
    Undecided,
    /// There is no value: no records, or a run that never reached it.
    Missing,
}

impl Claim {
    /// Checks that its arms exist and that bounds decide it.
    pub(super) fn validate(&self, arms: &[&str]) -> Result<(), String> {
        let minus = self.minus.as_ref().map(|minus| &minus.arm);
        let arm = (self.metric != Metric::HighlyKnown).then_some(&self.arm);
        let named = [arm, self.baseline.as_ref(), minus];
        if let Some(unknown) = named
            .into_iter()
            .flatten()
            .find(|name| !arms.contains(&&name[..]))
        {
            return Err(format!(
                "the claim \"{}\" names the arm `{unknown}`, which does not exist",
                self.statement
            ));
        }
        let bounds = [self.at_least, self.at_most, self.above, self.below];
        if bounds.iter().all(Option::is_none) {
            return Err(format!(
                "the claim \"{}\" needs a bound: `at_least`, `at_most`, `above` or `below`",
                self.statement
            ));
        }
        let compared = self.minus.is_some() || self.facts != HeldOutSet::default();
        if compared && self.metric != Metric::Gap {
            return Err(format!(
                "the claim \"{}\" sets `facts` or `minus`, which apply to the metric `gap` only",
                self.statement
            ));
        }
        let single_arm_metrics = [
            Metric::Forgotten,
            Metric::SinceBestEpoch,
            Metric::StepTime,
            Metric::TimeToLearned,
            Metric::TokensToLearned,
            Metric::PeakMemory,
            Metric::HighlyKnown,
        ];
        if self.baseline.is_some() && single_arm_metrics.contains(&self.metric) {
            return Err(format!(
                "the claim \"{}\" sets `baseline`, but its metric is computed from one arm",
                self.statement
            ));
        }
        Ok(())
    }

    /// Holds if the whole interval satisfies the bounds, fails if no part of it does.
    pub(super) fn verdict(&self, [low, high]: [f64; 2]) -> ClaimVerdict {
        let is_low_enough = |x: f64| {
            self.at_most.is_none_or(|most| x <= most) && self.below.is_none_or(|end| x < end)
        };
        let is_high_enough = |x: f64| {
            self.at_least.is_none_or(|least| x >= least) && self.above.is_none_or(|end| x > end)
        };
        if is_high_enough(low) && is_low_enough(high) {
            ClaimVerdict::Holds
        } else if !is_high_enough(high) || !is_low_enough(low) {
            ClaimVerdict::Fails
        } else {
            ClaimVerdict::Undecided
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(text: &str) -> Claim {
        let rest = "statement = 'x'\narm = 'sft'\n";
        toml::from_str(&format!("{rest}{text}")).expect("a claim")
    }

    fn verdict(claim: &Claim, interval: [f64; 2]) -> ClaimVerdict {
        claim.verdict(interval)
    }

    #[test]
    fn a_claim_holds_if_its_whole_interval_does() {
        let least = claim("at_least = 8.0");
        assert_eq!(verdict(&least, [8.0, 20.0]), ClaimVerdict::Holds);
        assert_eq!(verdict(&least, [7.9, 20.0]), ClaimVerdict::Undecided);
        assert_eq!(verdict(&least, [1.0, 7.9]), ClaimVerdict::Fails);
        let between = claim("at_least = 0.0\nat_most = 1.0");
        assert_eq!(verdict(&between, [0.2, 0.9]), ClaimVerdict::Holds);
        assert_eq!(verdict(&between, [-0.2, 0.9]), ClaimVerdict::Undecided);
        assert_eq!(verdict(&between, [1.2, 1.9]), ClaimVerdict::Fails);
        // Zero is not above zero.
        let more = claim("above = 0.0");
        assert_eq!(verdict(&more, [0.0, 0.0]), ClaimVerdict::Fails);
        assert_eq!(verdict(&more, [0.0, 0.9]), ClaimVerdict::Undecided);
        assert_eq!(verdict(&more, [0.1, 0.9]), ClaimVerdict::Holds);
        let less = claim("below = 0.0");
        assert_eq!(verdict(&less, [0.0, 0.0]), ClaimVerdict::Fails);
        assert_eq!(verdict(&less, [-0.9, -0.1]), ClaimVerdict::Holds);
    }

    #[test]
    fn an_undecidable_claim_is_rejected() {
        let error = |text: &str| {
            claim(text)
                .validate(&["sft", "only-known"])
                .expect_err("wrong")
        };
        assert!(error("").contains("needs a bound"));
        assert!(error("at_most = 1.0\nbaseline = 'stf'").contains("names the arm `stf`"));
        let mixed = "at_most = 1.0\nmetric = 'step-time'\nfacts = 'other-relations'";
        assert!(error(mixed).contains("apply to the metric `gap`"));
        let alone = "at_most = 1.0\nmetric = 'step-time'\nbaseline = 'sft'";
        assert!(error(alone).contains("from one arm"));
        let names = ["sft", "only-known"];
        assert_eq!(
            claim("at_most = 1.0\nbaseline = 'only-known'").validate(&names),
            Ok(())
        );
    }
}

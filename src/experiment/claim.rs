//! What is claimed, and whether it holds here: by a rule that stands in the experiment's file before anything is run.

use std::{collections::BTreeMap, fmt::Write};

use serde::{Deserialize, Serialize};

use super::{
    ExperimentResults, ONLY_KNOWN, Record,
    table::{self, Estimate, WeightedSum, forgotten_pp},
};
use crate::{format::rounded, run::Drift};

/// A claim about one arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// In words.
    pub statement: String,
    /// What the paper has for it.
    #[serde(default)]
    pub paper: String,
    /// The arm; none where facts are only audited.
    #[serde(default)]
    pub arm: String,
    /// The only relation that it is about; all by default.
    #[serde(default)]
    pub relation: Option<String>,
    /// What of it. Default `lost`.
    #[serde(default)]
    pub metric: Metric,
    /// Of which facts, where they are `lost`. Default `held`.
    #[serde(default)]
    pub facts: HeldOutSet,
    /// Against which arm: of what is `lost`, against its end (default: that of `only-known`); of shares and drift, by how
    /// much there is more of it.
    #[serde(default)]
    pub baseline: Option<String>,
    /// Less so many times what another arm has lost against the same.
    #[serde(default)]
    pub minus: Option<Minus>,
    /// It holds from here on.
    #[serde(default)]
    pub at_least: Option<f64>,
    /// It holds up to here.
    #[serde(default)]
    pub at_most: Option<f64>,
    /// It holds above this, and not at it.
    #[serde(default)]
    pub above: Option<f64>,
    /// It holds below this, and not at it.
    #[serde(default)]
    pub below: Option<f64>,
}

/// What a claim is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// Facts lost against another arm, in percentage points.
    #[default]
    Gap,
    /// Facts lost since the arm's own best epoch, in percentage points.
    Forgotten,
    /// New facts right at the end, in percent.
    Learned,
    /// New facts right, in percent: the mean over the epochs, which is lower the later they are learned.
    MeanLearned,
    /// Known facts of the training set right at the end, in percent.
    Kept,
    /// Time a step, as a multiple of plain fine-tuning's.
    StepTime,
    /// Training until 99% of the new facts were learned, likewise.
    TimeToLearned,
    /// Peak memory, likewise.
    PeakMemory,
    /// `HighlyKnown` facts, in percent of those that are audited.
    HighlyKnown,
    /// How far held subjects have moved at the end; as the measures below, a mean over held facts.
    Rd,
    /// How far they have moved against each other.
    Ns,
    /// How far they have moved toward new subjects.
    Mtd,
    /// How alike a new fact's answers and a held fact's old ones are ranked.
    RankRho,
    /// Share of the likeliest tokens that a new and a held fact have in common.
    Ntr,
    /// How far a new fact's answers are from a held fact's old ones.
    Jsd,
}

impl Metric {
    /// Its value in one run, where it is a plain number of each.
    fn of_run(self, record: &Record) -> Option<f64> {
        match self {
            Self::Learned => Some(100.0 * record.result.learned?),
            Self::MeanLearned => {
                let epochs = record.epochs.iter().filter(|epoch| epoch.epoch > 0);
                let shares: Option<Vec<f64>> = epochs.map(|e| e.accuracy.unknown).collect();
                table::mean(&shares?).map(|share| 100.0 * share)
            }
            Self::Kept => Some(100.0 * record.result.accuracy.known?.after),
            _ => None,
        }
    }

    /// Its value at one held fact, and how many pairs that is a mean over, where it is a measure of drift.
    fn of_fact(self, fact: &Drift) -> Option<(f64, f64)> {
        let pairs = fact.pairs as f64;
        match self {
            Self::Rd => Some((fact.rd?, 1.0)),
            Self::Ns => Some((fact.ns?, 1.0)),
            Self::Mtd => Some((fact.mtd?, 1.0)),
            Self::RankRho => Some((fact.rank_rho?, pairs)),
            Self::Ntr => Some((fact.ntr?, pairs)),
            Self::Jsd => Some((fact.jsd?, pairs)),
            _ => None,
        }
    }
}

/// The facts that a claim is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeldOutSet {
    /// `HighlyKnown` before, never trained.
    #[default]
    Held,
    /// `MaybeKnown` before, never trained.
    MaybeKnown,
    /// `WeaklyKnown` before, never trained.
    WeaklyKnown,
    /// Known facts of other relations.
    OtherRelations,
}

/// A part of what another arm has lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Minus {
    /// So many times.
    pub factor: f64,
    /// What this arm has lost.
    pub arm: String,
}

/// Whether a claim holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClaimVerdict {
    /// All of the interval is within the rule.
    Holds,
    /// None of it is.
    Fails,
    /// The interval is on both sides.
    Undecided,
    /// There are no records of it.
    Missing,
}

/// A claim and what the records say of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClaimResult {
    /// In words.
    pub statement: String,
    /// What the paper has for it.
    pub paper: String,
    /// What is found here: a mean over facts or runs.
    pub value: Option<f64>,
    /// Its 95% interval by bootstrap over the facts, where it is a mean over facts that were never trained: of these others could
    /// have been held out. What was trained is counted whole.
    pub interval: Option<[f64; 2]>,
    /// Whether it holds.
    pub verdict: ClaimVerdict,
    unit: &'static str,
}

impl Claim {
    /// What is wrong with it, if anything.
    pub(super) fn validate(&self, arms: &[&str]) -> Result<(), String> {
        let less = self.minus.as_ref().map(|less| &less.arm);
        let arm = (self.metric != Metric::HighlyKnown).then_some(&self.arm);
        let named = [arm, self.baseline.as_ref(), less];
        if let Some(unknown) = named
            .into_iter()
            .flatten()
            .find(|name| !arms.contains(&&name[..]))
        {
            return Err(format!(
                "the claim \"{}\" is about `{unknown}`, and there is no such arm",
                self.statement
            ));
        }
        let bounds = [self.at_least, self.at_most, self.above, self.below];
        if bounds.iter().all(Option::is_none) {
            return Err(format!(
                "the claim \"{}\" has no `at_least`, `at_most`, `above` or `below`: nothing could decide it",
                self.statement
            ));
        }
        let compared = self.minus.is_some() || self.facts != HeldOutSet::default();
        if compared && self.metric != Metric::Gap {
            return Err(format!(
                "the claim \"{}\" has `of` or `less`, which are about what is `lost`",
                self.statement
            ));
        }
        let single_arm_metrics = [
            Metric::Forgotten,
            Metric::StepTime,
            Metric::TimeToLearned,
            Metric::PeakMemory,
            Metric::HighlyKnown,
        ];
        if self.baseline.is_some() && single_arm_metrics.contains(&self.metric) {
            return Err(format!(
                "the claim \"{}\" has `against`, and its measure is of one arm",
                self.statement
            ));
        }
        Ok(())
    }

    fn evaluate(&self, results: &ExperimentResults) -> ClaimResult {
        let in_scope = |relation: &str| self.relation.as_ref().is_none_or(|only| only == relation);
        let records = results.runs.iter().filter(|r| in_scope(&r.relation));
        let records: &[Record] = &records.cloned().collect::<Vec<_>>();
        let with_interval =
            |found: Option<Estimate>| (found.map(|f| f.value), found.map(|f| f.interval));
        let (unit, (value, interval)) = match self.metric {
            Metric::Gap => (" pp", with_interval(self.gap(records))),
            Metric::Forgotten => (" pp", with_interval(table::forgotten(&self.arm, records))),
            Metric::HighlyKnown => {
                let audits = results.audits.iter().filter(|a| in_scope(&a.relation));
                ("%", with_interval(table::highly_known(audits)))
            }
            Metric::StepTime => (" x", (table::step_time(&self.arm, records), None)),
            Metric::TimeToLearned => (" x", (table::time_to_learned(&self.arm, records), None)),
            Metric::PeakMemory => (" x", (table::peak_memory(&self.arm, records), None)),
            Metric::Learned | Metric::MeanLearned | Metric::Kept => {
                ("%", (self.mean(records), None))
            }
            _ => ("", with_interval(self.drift(records))),
        };
        ClaimResult {
            statement: self.statement.clone(),
            paper: self.paper.clone(),
            value,
            interval,
            verdict: value.map_or(ClaimVerdict::Missing, |here| {
                self.verdict(interval.unwrap_or([here, here]))
            }),
            unit,
        }
    }

    /// Holds where all of the interval does, fails where none of it does.
    fn verdict(&self, [low, high]: [f64; 2]) -> ClaimVerdict {
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

    /// Over the facts of all runs that have their partners.
    fn gap(&self, records: &[Record]) -> Option<Estimate> {
        let baseline = self.baseline.as_deref().unwrap_or(ONLY_KNOWN);
        let observations = runs_of_arm(records, &self.arm).filter_map(|record| {
            let base = table::matching_run(records, baseline, record)?;
            let (times, other) = match &self.minus {
                None => (0.0, base),
                Some(less) => (
                    less.factor,
                    table::matching_run(records, &less.arm, record)?,
                ),
            };
            let facts = base.correct(self.facts).zip(record.correct(self.facts));
            let facts = facts.zip(other.correct(self.facts));
            Some(facts.map(move |(((fact, base), (_, own)), (_, other))| {
                (
                    fact,
                    forgotten_pp(base, own) - times * forgotten_pp(base, other),
                )
            }))
        });
        Estimate::mean_over_facts(observations.flatten())
    }

    /// How far held subjects have drifted at the end, less how far they have in the arm that it is `against`. Facts that have no
    /// pairs in one of the two are left out.
    fn drift(&self, records: &[Record]) -> Option<Estimate> {
        let mut facts: BTreeMap<&str, [WeightedSum; 2]> = BTreeMap::new();
        for record in runs_of_arm(records, &self.arm) {
            let sides = match &self.baseline {
                None => vec![record],
                Some(other) => vec![record, table::matching_run(records, other, record)?],
            };
            for (side, record) in sides.into_iter().enumerate() {
                for (fact, drift) in record.facts.held.iter().zip(&record.drift) {
                    if let Some((value, pairs)) = self.metric.of_fact(drift) {
                        facts.entry(fact).or_default()[side].add(value, pairs);
                    }
                }
            }
        }
        let sides = 1 + usize::from(self.baseline.is_some());
        let facts: Vec<[WeightedSum; 2]> = facts
            .into_values()
            .filter(|sums| sums[..sides].iter().all(WeightedSum::has_weight))
            .collect();
        Estimate::bootstrapped(facts.len(), |drawn| {
            let mean = |side: usize| WeightedSum::mean(drawn.iter().map(|fact| facts[*fact][side]));
            let base = if sides == 2 { mean(1) } else { 0.0 };
            mean(0) - base
        })
    }

    /// Over the arm's runs, less what the arm that it is `against` has there; none as soon as one has none.
    fn mean(&self, records: &[Record]) -> Option<f64> {
        let value = |record: &Record| {
            let own = self.metric.of_run(record)?;
            match &self.baseline {
                None => Some(own),
                Some(other) => {
                    let other = table::matching_run(records, other, record)?;
                    Some(own - self.metric.of_run(other)?)
                }
            }
        };
        let values: Option<Vec<f64>> = runs_of_arm(records, &self.arm).map(value).collect();
        table::mean(&values?)
    }
}

fn runs_of_arm<'r>(records: &'r [Record], arm: &str) -> impl Iterator<Item = &'r Record> {
    records.iter().filter(move |record| record.arm == arm)
}

/// What is `recorded` of each claim.
pub fn evaluate_claims(claims: &[Claim], results: &ExperimentResults) -> Vec<ClaimResult> {
    claims.iter().map(|claim| claim.evaluate(results)).collect()
}

/// The claims as a table in Markdown.
pub(super) fn markdown(results: &[ClaimResult]) -> String {
    let mut out = String::from("| claim | paper | here | holds? |\n|---|---|---|---|\n");
    for claim in results {
        let _ = writeln!(out, "| {}", table_row(claim));
    }
    out
}

/// A claim's row of such a table, from its first cell's text on.
pub(super) fn table_row(claim: &ClaimResult) -> String {
    let unit = claim.unit;
    let digits = match unit {
        "" => 3,
        " x" => 2,
        _ => 1,
    };
    let formatted = |value: f64| rounded(value, digits);
    let value = match (claim.value, claim.interval) {
        (Some(here), Some([low, high])) => {
            format!(
                "{}{unit} ({} to {})",
                formatted(here),
                formatted(low),
                formatted(high)
            )
        }
        (Some(here), None) => format!("{}{unit}", formatted(here)),
        (None, _) => String::new(),
    };
    let holds = match claim.verdict {
        ClaimVerdict::Holds => "yes",
        ClaimVerdict::Fails => "no",
        ClaimVerdict::Undecided => "cannot be told",
        ClaimVerdict::Missing => "not run, or never reached",
    };
    format!(
        "{} | {} | {value} | {holds} |",
        claim.statement, claim.paper
    )
}

#[cfg(test)]
mod tests {
    use super::super::HeldOutFacts;
    use super::*;

    fn claim(text: &str) -> Claim {
        let rest = "says = 'x'\narm = 'sft'\n";
        toml::from_str(&format!("{rest}{text}")).expect("a claim")
    }

    fn verdict(claim: &Claim, interval: [f64; 2]) -> ClaimVerdict {
        claim.verdict(interval)
    }

    #[test]
    fn a_claim_holds_where_its_whole_interval_does() {
        let least = claim("at_least = 8.0");
        assert_eq!(verdict(&least, [8.0, 20.0]), ClaimVerdict::Holds);
        assert_eq!(verdict(&least, [7.9, 20.0]), ClaimVerdict::Undecided);
        assert_eq!(verdict(&least, [1.0, 7.9]), ClaimVerdict::Fails);
        let between = claim("at_least = 0.0\nat_most = 1.0");
        assert_eq!(verdict(&between, [0.2, 0.9]), ClaimVerdict::Holds);
        assert_eq!(verdict(&between, [-0.2, 0.9]), ClaimVerdict::Undecided);
        assert_eq!(verdict(&between, [1.2, 1.9]), ClaimVerdict::Fails);
        // No difference at all is not more.
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
        assert!(error("").contains("no `at_least`, `at_most`"));
        assert!(error("at_most = 1.0\nagainst = 'stf'").contains("is about `stf`"));
        let mixed = "at_most = 1.0\nmeasure = 'step'\nof = 'elsewhere'";
        assert!(error(mixed).contains("about what is `lost`"));
        let alone = "at_most = 1.0\nmeasure = 'step'\nagainst = 'sft'";
        assert!(error(alone).contains("is of one arm"));
        let names = ["sft", "only-known"];
        assert_eq!(
            claim("at_most = 1.0\nagainst = 'only-known'").validate(&names),
            Ok(())
        );
    }

    #[test]
    fn drift_is_compared_fact_by_fact_and_weighed_by_pairs() {
        // Each fact moved by .1 more in one arm than in the other, however far that was.
        let record = |arm: &str, more: f64| {
            let drift = (0..20).map(|i| Drift {
                rd: Some(0.05 * f64::from(i) + more),
                ntr: (i > 0).then_some(if i == 1 { 1.0 } else { 0.0 }),
                pairs: if i == 1 { 57 } else { 3 },
                ..Drift::default()
            });
            Record {
                drift: drift.collect(),
                facts: std::sync::Arc::new(HeldOutFacts {
                    held: (0..20).map(|i| format!("P17 {i}")).collect(),
                    ..HeldOutFacts::default()
                }),
                ..Record::for_test(arm)
            }
        };
        let results = ExperimentResults {
            runs: vec![record("sft", 0.1), record("only-known", 0.0)],
            ..ExperimentResults::default()
        };
        let evaluate = |text: &str| claim(text).evaluate(&results);
        let farther = evaluate("measure = 'rd'\nagainst = 'only-known'\nabove = 0.0");
        let [low, high] = farther.interval.expect("there are facts");
        assert!((low - 0.1).abs() < 1e-9 && (high - 0.1).abs() < 1e-9);
        assert_eq!(farther.verdict, ClaimVerdict::Holds);
        // By itself it is as unsure as 20 facts between 0 and .95 are.
        let alone = evaluate("measure = 'rd'\nat_least = 0.575");
        assert!(alone.value.is_some_and(|rd| (rd - 0.575).abs() < 1e-9));
        assert_eq!(alone.verdict, ClaimVerdict::Undecided);
        // 57 pairs with one value, 18 facts of 3 with another: 57 of 111. The first fact has no pairs.
        let shared = evaluate("measure = 'ntr'\nat_least = 0.0");
        assert!(
            shared
                .value
                .is_some_and(|ntr| (ntr - 57.0 / 111.0).abs() < 1e-9)
        );
        assert_eq!(shared.verdict, ClaimVerdict::Holds);
        assert!(markdown(&[farther]).contains("| 0.100 (0.100 to 0.100) | yes |"));
    }

    #[test]
    fn without_records_nothing_is_found() {
        let results = evaluate_claims(&[claim("at_least = 8.0")], &ExperimentResults::default());
        assert_eq!(
            (results[0].value, results[0].verdict),
            (None, ClaimVerdict::Missing)
        );
        assert!(markdown(&results).contains("| x |  |  | not run"));
    }
}

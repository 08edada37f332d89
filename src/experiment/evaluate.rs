//! Evaluates claims on the records.

use std::{collections::BTreeMap, fmt::Write};

use serde::Serialize;

use super::{
    claim::{Claim, ClaimVerdict, Metric},
    estimate::{Estimate, WeightedSum, forgotten_pp, mean},
    file::ONLY_KNOWN,
    record::{ExperimentResults, Record},
    table::{self, matching_run},
};
use crate::{format::rounded, measure::Drift};

/// The value of a claim in the records.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClaimResult {
    /// The claim in words.
    pub statement: String,
    /// The paper's value.
    pub paper: String,
    /// The value here: a mean over facts or runs.
    pub value: Option<f64>,
    /// The 95% bootstrap interval over facts, for means over facts that were never trained, which are a sample of all that could have
    /// been held out. Values of trained facts and costs have none.
    pub interval: Option<[f64; 2]>,
    /// Whether it holds.
    pub verdict: ClaimVerdict,
    unit: &'static str,
}

impl Metric {
    /// The value in one run, for metrics that each run has.
    fn of_run(self, record: &Record) -> Option<f64> {
        match self {
            Self::Learned => Some(100.0 * record.result.learned?),
            Self::MeanLearned => {
                let epochs = record.epochs.iter().filter(|epoch| epoch.epoch > 0);
                let accuracies: Option<Vec<f64>> = epochs.map(|e| e.accuracy.unknown).collect();
                mean(&accuracies?).map(|accuracy| 100.0 * accuracy)
            }
            Self::Kept => Some(100.0 * record.result.accuracy.known?.after),
            _ => None,
        }
    }

    /// The value at one held-out fact and its weight (the number of pairs that it averages), for drift metrics.
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

impl Claim {
    fn evaluate(&self, results: &ExperimentResults) -> ClaimResult {
        let in_scope = |relation: &str| self.relation.as_ref().is_none_or(|only| only == relation);
        let records = results.runs.iter().filter(|r| in_scope(&r.relation));
        let records: &[Record] = &records.cloned().collect::<Vec<_>>();
        let with_interval =
            |found: Option<Estimate>| (found.map(|f| f.value), found.map(|f| f.interval));
        let (unit, (value, interval)) = match self.metric {
            Metric::Gap => (" pp", with_interval(self.gap(records))),
            Metric::Forgotten => {
                let forgotten = table::forgotten(&self.arm, records);
                ("%", with_interval(forgotten.map(|f| f.share)))
            }
            Metric::SinceBestEpoch => (
                " pp",
                with_interval(table::since_best_epoch(&self.arm, records)),
            ),
            Metric::HighlyKnown => {
                let audits = results.audits.iter().filter(|a| in_scope(&a.relation));
                ("%", with_interval(table::highly_known(audits)))
            }
            Metric::StepTime => ("x", (table::step_time(&self.arm, records), None)),
            Metric::TimeToLearned => ("x", (table::time_to_learned(&self.arm, records), None)),
            Metric::TokensToLearned => ("x", (table::tokens_to_learned(&self.arm, records), None)),
            Metric::PeakMemory => ("x", (table::peak_memory(&self.arm, records), None)),
            Metric::Learned | Metric::MeanLearned | Metric::Kept => {
                ("%", (self.mean_over_runs(records), None))
            }
            _ => ("", with_interval(self.drift(records))),
        };
        ClaimResult {
            statement: self.statement.clone(),
            paper: self.paper.clone(),
            value,
            interval,
            verdict: value.map_or(ClaimVerdict::Missing, |value| {
                self.verdict(interval.unwrap_or([value, value]))
            }),
            unit,
        }
    }

    /// The gap over the facts of all runs that have a matching run of the baseline.
    fn gap(&self, records: &[Record]) -> Option<Estimate> {
        let baseline = self.baseline.as_deref().unwrap_or(ONLY_KNOWN);
        let observations = runs_of_arm(records, &self.arm).filter_map(|record| {
            let base = matching_run(records, baseline, record)?;
            let (factor, other) = match &self.minus {
                None => (0.0, base),
                Some(minus) => (minus.factor, matching_run(records, &minus.arm, record)?),
            };
            let facts = base.correct(self.facts).zip(record.correct(self.facts));
            let facts = facts.zip(other.correct(self.facts));
            Some(facts.map(move |(((fact, base), (_, own)), (_, other))| {
                (
                    fact,
                    forgotten_pp(base, own) - factor * forgotten_pp(base, other),
                )
            }))
        });
        Estimate::mean_over_facts(observations.flatten())
    }

    /// The drift of held-out subjects at the end, minus that of the baseline. Facts without pairs in one of the two are left out.
    fn drift(&self, records: &[Record]) -> Option<Estimate> {
        let mut facts: BTreeMap<&str, [WeightedSum; 2]> = BTreeMap::new();
        for record in runs_of_arm(records, &self.arm) {
            let sides = match &self.baseline {
                None => vec![record],
                Some(other) => vec![record, matching_run(records, other, record)?],
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

    /// The mean over the runs of the arm, minus the value of the baseline; `None` if any run has no value.
    fn mean_over_runs(&self, records: &[Record]) -> Option<f64> {
        let value = |record: &Record| {
            let own = self.metric.of_run(record)?;
            match &self.baseline {
                None => Some(own),
                Some(other) => {
                    let other = matching_run(records, other, record)?;
                    Some(own - self.metric.of_run(other)?)
                }
            }
        };
        let values: Option<Vec<f64>> = runs_of_arm(records, &self.arm).map(value).collect();
        mean(&values?)
    }
}

fn runs_of_arm<'r>(records: &'r [Record], arm: &str) -> impl Iterator<Item = &'r Record> {
    records.iter().filter(move |record| record.arm == arm)
}

/// Evaluates each claim.
pub fn evaluate_claims(claims: &[Claim], results: &ExperimentResults) -> Vec<ClaimResult> {
    claims.iter().map(|claim| claim.evaluate(results)).collect()
}

/// The claims as a Markdown table.
pub(super) fn markdown(results: &[ClaimResult]) -> String {
    let mut out = String::from("| claim | paper | here | holds? |\n|---|---|---|---|\n");
    for claim in results {
        let _ = writeln!(out, "| {}", table_row(claim));
    }
    out
}

/// The row of a claim in such a table, from the text of its first cell on.
pub(super) fn table_row(claim: &ClaimResult) -> String {
    let unit = claim.unit;
    let digits = match unit {
        "" => 3,
        "x" => 2,
        _ => 1,
    };
    let formatted = |value: f64| rounded(value, digits);
    let value = match (claim.value, claim.interval) {
        (Some(value), Some([low, high])) => {
            format!(
                "{}{unit} ({} to {})",
                formatted(value),
                formatted(low),
                formatted(high)
            )
        }
        (Some(value), None) => format!("{}{unit}", formatted(value)),
        (None, _) => String::new(),
    };
    let holds = match claim.verdict {
        ClaimVerdict::Holds => "yes",
        ClaimVerdict::Fails => "no",
        ClaimVerdict::Undecided => "undecided",
        ClaimVerdict::Missing => "not run or not reached",
    };
    format!(
        "{} | {} | {value} | {holds} |",
        claim.statement, claim.paper
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::record::HeldOutFacts;
    use crate::measure::Drift;

    fn claim(text: &str) -> Claim {
        let rest = "statement = 'x'\narm = 'sft'\n";
        toml::from_str(&format!("{rest}{text}")).expect("a claim")
    }

    #[test]
    fn drift_is_compared_per_fact_and_weighted_by_pairs() {
        // Each fact drifts by 0.1 more in one arm than in the other.
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
        let farther = evaluate("metric = 'rd'\nbaseline = 'only-known'\nabove = 0.0");
        let [low, high] = farther.interval.expect("there are facts");
        assert!((low - 0.1).abs() < 1e-9 && (high - 0.1).abs() < 1e-9);
        assert_eq!(farther.verdict, ClaimVerdict::Holds);
        // Alone, the interval is that of 20 facts between 0 and 0.95.
        let alone = evaluate("metric = 'rd'\nat_least = 0.575");
        assert!(alone.value.is_some_and(|rd| (rd - 0.575).abs() < 1e-9));
        assert_eq!(alone.verdict, ClaimVerdict::Undecided);
        // 57 pairs with one value, 18 facts of 3 with another: 57 of 111. The first fact has no pairs.
        let shared = evaluate("metric = 'ntr'\nat_least = 0.0");
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

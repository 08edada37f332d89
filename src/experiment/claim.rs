//! What is claimed, and whether it holds here: by a rule that stands in the experiment's file before anything is run.

use std::{collections::BTreeMap, fmt::Write};

use serde::{Deserialize, Serialize};

use super::{
    ONLY_KNOWN, Record, Recorded,
    table::{self, Estimate, Sum, lost},
};
use crate::{figures::rounded, run::Drift};

/// A claim about one arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// In words.
    pub says: String,
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
    pub measure: Measure,
    /// Of which facts, where they are `lost`. Default `held`.
    #[serde(default)]
    pub of: Of,
    /// Against which arm: of what is `lost`, against its end (default: that of `only-known`); of shares and drift, by how
    /// much there is more of it.
    #[serde(default)]
    pub against: Option<String>,
    /// Less so many times what another arm has lost against the same.
    #[serde(default)]
    pub less: Option<Less>,
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
pub enum Measure {
    /// Facts lost against another arm, in percentage points.
    #[default]
    Lost,
    /// Facts lost since the arm's own best epoch, in percentage points.
    Forgotten,
    /// New facts right at the end, in percent.
    Learned,
    /// New facts right, in percent: the mean over the epochs, which is lower the later they are learned.
    MeanLearned,
    /// Known facts of the training set right at the end, in percent.
    Kept,
    /// Time a step, as a multiple of plain fine-tuning's.
    Step,
    /// Training until 99% of the new facts were learned, likewise.
    UntilLearned,
    /// Peak memory, likewise.
    Memory,
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

impl Measure {
    /// Its value in one run, where it is a plain number of each.
    fn of(self, record: &Record) -> Option<f64> {
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
    fn at(self, fact: &Drift) -> Option<(f64, f64)> {
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
pub enum Of {
    /// `HighlyKnown` before, never trained.
    #[default]
    Held,
    /// `MaybeKnown` before, never trained.
    MaybeKnown,
    /// `WeaklyKnown` before, never trained.
    WeaklyKnown,
    /// Known facts of other relations.
    Elsewhere,
}

/// A part of what another arm has lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Less {
    /// So many times.
    pub times: f64,
    /// What this arm has lost.
    pub arm: String,
}

/// Whether a claim holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// All of the interval is within the rule.
    Holds,
    /// None of it is.
    Fails,
    /// The interval is on both sides.
    Open,
    /// There are no records of it.
    Missing,
}

/// A claim and what the records say of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Judged {
    /// In words.
    pub says: String,
    /// What the paper has for it.
    pub paper: String,
    /// What is found here: a mean over facts or runs.
    pub here: Option<f64>,
    /// Its 95% interval by bootstrap over the facts, where it is a mean over facts that were never trained: of these others could
    /// have been held out. What was trained is counted whole.
    pub interval: Option<[f64; 2]>,
    /// Whether it holds.
    pub verdict: Verdict,
    unit: &'static str,
}

impl Claim {
    /// What is wrong with it, if anything.
    pub(super) fn check(&self, arms: &[&str]) -> Result<(), String> {
        let less = self.less.as_ref().map(|less| &less.arm);
        let arm = (self.measure != Measure::HighlyKnown).then_some(&self.arm);
        let named = [arm, self.against.as_ref(), less];
        if let Some(unknown) = named
            .into_iter()
            .flatten()
            .find(|name| !arms.contains(&&name[..]))
        {
            return Err(format!(
                "the claim \"{}\" is about `{unknown}`, and there is no such arm",
                self.says
            ));
        }
        let bounds = [self.at_least, self.at_most, self.above, self.below];
        if bounds.iter().all(Option::is_none) {
            return Err(format!(
                "the claim \"{}\" has no `at_least`, `at_most`, `above` or `below`: nothing could decide it",
                self.says
            ));
        }
        let compared = self.less.is_some() || self.of != Of::default();
        if compared && self.measure != Measure::Lost {
            return Err(format!(
                "the claim \"{}\" has `of` or `less`, which are about what is `lost`",
                self.says
            ));
        }
        let alone = [
            Measure::Forgotten,
            Measure::Step,
            Measure::UntilLearned,
            Measure::Memory,
            Measure::HighlyKnown,
        ];
        if self.against.is_some() && alone.contains(&self.measure) {
            return Err(format!(
                "the claim \"{}\" has `against`, and its measure is of one arm",
                self.says
            ));
        }
        Ok(())
    }

    fn judge(&self, recorded: &Recorded) -> Judged {
        let here = |relation: &str| self.relation.as_ref().is_none_or(|only| only == relation);
        let records = recorded.runs.iter().filter(|r| here(&r.relation));
        let records: &[Record] = &records.cloned().collect::<Vec<_>>();
        let surely = |found: Option<Estimate>| (found.map(|f| f.value), found.map(|f| f.interval));
        let (unit, (here, interval)) = match self.measure {
            Measure::Lost => (" pp", surely(self.lost(records))),
            Measure::Forgotten => (" pp", surely(table::forgotten(&self.arm, records))),
            Measure::HighlyKnown => {
                let audits = recorded.audits.iter().filter(|a| here(&a.relation));
                ("%", surely(table::highly_known(audits)))
            }
            Measure::Step => (" x", (table::step(&self.arm, records), None)),
            Measure::UntilLearned => (" x", (table::until_learned(&self.arm, records), None)),
            Measure::Memory => (" x", (table::memory(&self.arm, records), None)),
            Measure::Learned | Measure::MeanLearned | Measure::Kept => {
                ("%", (self.mean(records), None))
            }
            _ => ("", surely(self.drift(records))),
        };
        Judged {
            says: self.says.clone(),
            paper: self.paper.clone(),
            here,
            interval,
            verdict: here.map_or(Verdict::Missing, |here| {
                self.rule(interval.unwrap_or([here, here]))
            }),
            unit,
        }
    }

    /// Holds where all of the interval does, fails where none of it does.
    fn rule(&self, [low, high]: [f64; 2]) -> Verdict {
        let is_low_enough = |x: f64| {
            self.at_most.is_none_or(|most| x <= most) && self.below.is_none_or(|end| x < end)
        };
        let is_high_enough = |x: f64| {
            self.at_least.is_none_or(|least| x >= least) && self.above.is_none_or(|end| x > end)
        };
        if is_high_enough(low) && is_low_enough(high) {
            Verdict::Holds
        } else if !is_high_enough(high) || !is_low_enough(low) {
            Verdict::Fails
        } else {
            Verdict::Open
        }
    }

    /// Over the facts of all runs that have their partners.
    fn lost(&self, records: &[Record]) -> Option<Estimate> {
        let against = self.against.as_deref().unwrap_or(ONLY_KNOWN);
        let looks = of_arm(records, &self.arm).filter_map(|record| {
            let base = table::partner(records, against, record)?;
            let (times, other) = match &self.less {
                None => (0.0, base),
                Some(less) => (less.times, table::partner(records, &less.arm, record)?),
            };
            let facts = base.right(self.of).zip(record.right(self.of));
            let facts = facts.zip(other.right(self.of));
            Some(facts.map(move |(((fact, base), (_, own)), (_, other))| {
                (fact, lost(base, own) - times * lost(base, other))
            }))
        });
        Estimate::over(looks.flatten())
    }

    /// How far held subjects have drifted at the end, less how far they have in the arm that it is `against`. Facts that have no
    /// pairs in one of the two are left out.
    fn drift(&self, records: &[Record]) -> Option<Estimate> {
        let mut facts: BTreeMap<&str, [Sum; 2]> = BTreeMap::new();
        for record in of_arm(records, &self.arm) {
            let sides = match &self.against {
                None => vec![record],
                Some(other) => vec![record, table::partner(records, other, record)?],
            };
            for (side, record) in sides.into_iter().enumerate() {
                for (fact, drift) in record.facts.held.iter().zip(&record.drift) {
                    if let Some((value, pairs)) = self.measure.at(drift) {
                        facts.entry(fact).or_default()[side].add(value, pairs);
                    }
                }
            }
        }
        let sides = 1 + usize::from(self.against.is_some());
        let facts: Vec<[Sum; 2]> = facts
            .into_values()
            .filter(|sums| sums[..sides].iter().all(Sum::has_weight))
            .collect();
        Estimate::of(facts.len(), |drawn| {
            let mean = |side: usize| Sum::mean(drawn.iter().map(|fact| facts[*fact][side]));
            let base = if sides == 2 { mean(1) } else { 0.0 };
            mean(0) - base
        })
    }

    /// Over the arm's runs, less what the arm that it is `against` has there; none as soon as one has none.
    fn mean(&self, records: &[Record]) -> Option<f64> {
        let value = |record: &Record| {
            let own = self.measure.of(record)?;
            match &self.against {
                None => Some(own),
                Some(other) => {
                    let other = table::partner(records, other, record)?;
                    Some(own - self.measure.of(other)?)
                }
            }
        };
        let values: Option<Vec<f64>> = of_arm(records, &self.arm).map(value).collect();
        table::mean(&values?)
    }
}

fn of_arm<'r>(records: &'r [Record], arm: &str) -> impl Iterator<Item = &'r Record> {
    records.iter().filter(move |record| record.arm == arm)
}

/// What is `recorded` of each claim.
pub fn judged(claims: &[Claim], recorded: &Recorded) -> Vec<Judged> {
    claims.iter().map(|claim| claim.judge(recorded)).collect()
}

/// The claims as a table in Markdown.
pub(super) fn markdown(judged: &[Judged]) -> String {
    let mut out = String::from("| claim | paper | here | holds? |\n|---|---|---|---|\n");
    for claim in judged {
        let _ = writeln!(out, "| {}", cells(claim));
    }
    out
}

/// A claim's row of such a table, from its first cell's text on.
pub(super) fn cells(claim: &Judged) -> String {
    let unit = claim.unit;
    let digits = match unit {
        "" => 3,
        " x" => 2,
        _ => 1,
    };
    let figure = |value: f64| rounded(value, digits);
    let here = match (claim.here, claim.interval) {
        (Some(here), Some([low, high])) => {
            format!(
                "{}{unit} ({} to {})",
                figure(here),
                figure(low),
                figure(high)
            )
        }
        (Some(here), None) => format!("{}{unit}", figure(here)),
        (None, _) => String::new(),
    };
    let holds = match claim.verdict {
        Verdict::Holds => "yes",
        Verdict::Fails => "no",
        Verdict::Open => "cannot be told",
        Verdict::Missing => "not run, or never reached",
    };
    format!("{} | {} | {here} | {holds} |", claim.says, claim.paper)
}

#[cfg(test)]
mod tests {
    use super::super::HeldOut;
    use super::*;

    fn claim(text: &str) -> Claim {
        let rest = "says = 'x'\narm = 'sft'\n";
        toml::from_str(&format!("{rest}{text}")).expect("a claim")
    }

    fn verdict(claim: &Claim, interval: [f64; 2]) -> Verdict {
        claim.rule(interval)
    }

    #[test]
    fn a_claim_holds_where_its_whole_interval_does() {
        let least = claim("at_least = 8.0");
        assert_eq!(verdict(&least, [8.0, 20.0]), Verdict::Holds);
        assert_eq!(verdict(&least, [7.9, 20.0]), Verdict::Open);
        assert_eq!(verdict(&least, [1.0, 7.9]), Verdict::Fails);
        let between = claim("at_least = 0.0\nat_most = 1.0");
        assert_eq!(verdict(&between, [0.2, 0.9]), Verdict::Holds);
        assert_eq!(verdict(&between, [-0.2, 0.9]), Verdict::Open);
        assert_eq!(verdict(&between, [1.2, 1.9]), Verdict::Fails);
        // No difference at all is not more.
        let more = claim("above = 0.0");
        assert_eq!(verdict(&more, [0.0, 0.0]), Verdict::Fails);
        assert_eq!(verdict(&more, [0.0, 0.9]), Verdict::Open);
        assert_eq!(verdict(&more, [0.1, 0.9]), Verdict::Holds);
        let less = claim("below = 0.0");
        assert_eq!(verdict(&less, [0.0, 0.0]), Verdict::Fails);
        assert_eq!(verdict(&less, [-0.9, -0.1]), Verdict::Holds);
    }

    #[test]
    fn what_cannot_be_decided_is_no_claim() {
        let told = |text: &str| {
            claim(text)
                .check(&["sft", "only-known"])
                .expect_err("wrong")
        };
        assert!(told("").contains("no `at_least`, `at_most`"));
        assert!(told("at_most = 1.0\nagainst = 'stf'").contains("is about `stf`"));
        let mixed = "at_most = 1.0\nmeasure = 'step'\nof = 'elsewhere'";
        assert!(told(mixed).contains("about what is `lost`"));
        let alone = "at_most = 1.0\nmeasure = 'step'\nagainst = 'sft'";
        assert!(told(alone).contains("is of one arm"));
        let names = ["sft", "only-known"];
        assert_eq!(
            claim("at_most = 1.0\nagainst = 'only-known'").check(&names),
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
                facts: std::sync::Arc::new(HeldOut {
                    held: (0..20).map(|i| format!("P17 {i}")).collect(),
                    ..HeldOut::default()
                }),
                ..Record::in_test(arm)
            }
        };
        let recorded = Recorded {
            runs: vec![record("sft", 0.1), record("only-known", 0.0)],
            ..Recorded::default()
        };
        let judge = |text: &str| claim(text).judge(&recorded);
        let farther = judge("measure = 'rd'\nagainst = 'only-known'\nabove = 0.0");
        let [low, high] = farther.interval.expect("there are facts");
        assert!((low - 0.1).abs() < 1e-9 && (high - 0.1).abs() < 1e-9);
        assert_eq!(farther.verdict, Verdict::Holds);
        // By itself it is as unsure as 20 facts between 0 and .95 are.
        let alone = judge("measure = 'rd'\nat_least = 0.575");
        assert!(alone.here.is_some_and(|rd| (rd - 0.575).abs() < 1e-9));
        assert_eq!(alone.verdict, Verdict::Open);
        // 57 pairs with one value, 18 facts of 3 with another: 57 of 111. The first fact has no pairs.
        let shared = judge("measure = 'ntr'\nat_least = 0.0");
        assert!(
            shared
                .here
                .is_some_and(|ntr| (ntr - 57.0 / 111.0).abs() < 1e-9)
        );
        assert_eq!(shared.verdict, Verdict::Holds);
        assert!(markdown(&[farther]).contains("| 0.100 (0.100 to 0.100) | yes |"));
    }

    #[test]
    fn without_records_nothing_is_found() {
        let judged = judged(&[claim("at_least = 8.0")], &Recorded::default());
        assert_eq!(
            (judged[0].here, judged[0].verdict),
            (None, Verdict::Missing)
        );
        assert!(markdown(&judged).contains("| x |  |  | not run"));
    }
}

//! What is claimed, and whether it holds here: by a rule that stands in the experiment's file before anything is run.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::{
    ONLY_KNOWN, Record,
    table::{self, Loss, lost},
};

/// A claim about one arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// In words.
    pub says: String,
    /// What the paper has for it.
    #[serde(default)]
    pub paper: String,
    /// The arm.
    pub arm: String,
    /// What of it. Default `lost`.
    #[serde(default)]
    pub measure: Measure,
    /// Of which facts, where they are `lost`. Default `held`.
    #[serde(default)]
    pub of: Of,
    /// Against the end of which arm, where they are `lost`. Default `only-known`.
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
    /// Known facts of the training set right at the end, in percent.
    Kept,
    /// Time a step, as a multiple of plain fine-tuning's.
    Step,
    /// Training until 99% of the new facts were learned, likewise.
    UntilLearned,
    /// Peak memory, likewise.
    Memory,
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
    /// Its 95% interval by bootstrap over the facts, where it is a mean over facts that were never trained.
    pub interval: Option<[f64; 2]>,
    /// Whether it holds.
    pub verdict: Verdict,
    unit: &'static str,
}

impl Claim {
    /// What is wrong with it, if anything.
    pub(super) fn check(&self, arms: &[&str]) -> Result<(), String> {
        let less = self.less.as_ref().map(|less| &less.arm);
        let named = [Some(&self.arm), self.against.as_ref(), less];
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
        if self.at_least.is_none() && self.at_most.is_none() {
            return Err(format!(
                "the claim \"{}\" has neither `at_least` nor `at_most`: nothing could decide it",
                self.says
            ));
        }
        let compared = self.against.is_some() || self.less.is_some() || self.of != Of::default();
        if compared && self.measure != Measure::Lost {
            return Err(format!(
                "the claim \"{}\" has `of`, `against` or `less`, which are about what is `lost`",
                self.says
            ));
        }
        Ok(())
    }

    fn judge(&self, records: &[Record]) -> Judged {
        let surely = |loss: Option<Loss>| (loss.map(|l| l.pp), loss.map(|l| l.interval));
        let (unit, (here, interval)) = match self.measure {
            Measure::Lost => (" pp", surely(self.lost(records))),
            Measure::Forgotten => (" pp", surely(table::forgotten(&self.arm, records))),
            Measure::Learned => ("%", (self.mean(records, |r| r.result.learned), None)),
            Measure::Kept => {
                let known = |r: &Record| r.result.accuracy.known.map(|known| known.after);
                ("%", (self.mean(records, known), None))
            }
            Measure::Step => (" x", (table::step(&self.arm, records), None)),
            Measure::UntilLearned => (" x", (table::until_learned(&self.arm, records), None)),
            Measure::Memory => (" x", (table::memory(&self.arm, records), None)),
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
        let (least, most) = (
            self.at_least.unwrap_or(f64::NEG_INFINITY),
            self.at_most.unwrap_or(f64::INFINITY),
        );
        if low >= least && high <= most {
            Verdict::Holds
        } else if high < least || low > most {
            Verdict::Fails
        } else {
            Verdict::Open
        }
    }

    /// Over the facts of all runs that have their partners.
    fn lost(&self, records: &[Record]) -> Option<Loss> {
        let against = self.against.as_deref().unwrap_or(ONLY_KNOWN);
        let mut values = Vec::new();
        for record in of_arm(records, &self.arm) {
            let partner = |arm: &str| {
                let partner = table::partner(records, arm, record);
                partner.map(|r| self.bits(r).as_bytes())
            };
            let own = self.bits(record).as_bytes();
            let Some(base) = partner(against).filter(|base| base.len() == own.len()) else {
                continue;
            };
            let (times, other) = match &self.less {
                None => (0.0, base),
                Some(less) => match partner(&less.arm).filter(|o| o.len() == own.len()) {
                    Some(other) => (less.times, other),
                    None => continue,
                },
            };
            let facts = base.iter().zip(own).zip(other);
            values.extend(facts.map(|((b, o), other)| lost(*b, *o) - times * lost(*b, *other)));
        }
        Loss::mean(values.into_iter())
    }

    fn bits<'r>(&self, record: &'r Record) -> &'r str {
        match self.of {
            Of::Held => &record.held,
            Of::MaybeKnown => &record.maybe_known,
            Of::WeaklyKnown => &record.weakly_known,
            Of::Elsewhere => &record.elsewhere,
        }
    }

    /// In percent, over the arm's runs; none as soon as one has none.
    fn mean(&self, records: &[Record], value: impl Fn(&Record) -> Option<f64>) -> Option<f64> {
        let values: Option<Vec<f64>> = of_arm(records, &self.arm).map(value).collect();
        let values = values.filter(|values| !values.is_empty())?;
        Some(100.0 * values.iter().sum::<f64>() / values.len() as f64)
    }
}

fn of_arm<'r>(records: &'r [Record], arm: &str) -> impl Iterator<Item = &'r Record> {
    records.iter().filter(move |record| record.arm == arm)
}

/// What `records` say of each claim.
pub fn judged(claims: &[Claim], records: &[Record]) -> Vec<Judged> {
    claims.iter().map(|claim| claim.judge(records)).collect()
}

/// The claims as a table in Markdown.
pub(super) fn markdown(judged: &[Judged]) -> String {
    let mut out = String::from("| claim | paper | here | holds? |\n|---|---|---|---|\n");
    for claim in judged {
        let unit = claim.unit;
        let here = match (claim.here, claim.interval) {
            (Some(here), Some([low, high])) => format!("{here:.1}{unit} ({low:.1} to {high:.1})"),
            (Some(here), None) if unit == " x" => format!("{here:.2}{unit}"),
            (Some(here), None) => format!("{here:.1}{unit}"),
            (None, _) => String::new(),
        };
        let holds = match claim.verdict {
            Verdict::Holds => "yes",
            Verdict::Fails => "no",
            Verdict::Open => "cannot be told",
            Verdict::Missing => "not run, or never reached",
        };
        let _ = writeln!(
            out,
            "| {} | {} | {here} | {holds} |",
            claim.says, claim.paper
        );
    }
    out
}

#[cfg(test)]
mod tests {
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
    }

    #[test]
    fn what_cannot_be_decided_is_no_claim() {
        let told = |text: &str| {
            claim(text)
                .check(&["sft", "only-known"])
                .expect_err("wrong")
        };
        assert!(told("").contains("neither `at_least` nor `at_most`"));
        assert!(told("at_most = 1.0\nagainst = 'stf'").contains("is about `stf`"));
        let mixed = "at_most = 1.0\nmeasure = 'step'\nof = 'elsewhere'";
        assert!(told(mixed).contains("about what is `lost`"));
        let names = ["sft", "only-known"];
        assert_eq!(
            claim("at_most = 1.0\nagainst = 'only-known'").check(&names),
            Ok(())
        );
    }

    #[test]
    fn without_records_nothing_is_found() {
        let judged = judged(&[claim("at_least = 8.0")], &[]);
        assert_eq!(
            (judged[0].here, judged[0].verdict),
            (None, Verdict::Missing)
        );
        assert!(markdown(&judged).contains("| x |  |  | not run"));
    }
}

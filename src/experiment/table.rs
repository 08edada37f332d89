//! From records to a table: what each arm learned, forgot and cost.

use std::{collections::BTreeMap, fmt::Write};

use super::{AuditRecord, ONLY_KNOWN, Record, claim::Of};
use crate::{figures::pp, measure::bootstrap};

/// The arm whose time and memory are the unit.
pub(super) const UNIT: &str = "sft";

/// The share of new facts until which time is counted.
const LEARNED: f64 = 0.99;

/// One arm over all its relations and seeds.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The arm.
    pub arm: String,
    /// Runs of it.
    pub runs: usize,
    /// Share of the new facts learned: mean over runs.
    pub learned: Option<f64>,
    /// Held facts from the best epoch to the end.
    pub forgotten: Option<Estimate>,
    /// Held facts against the end of Only Known on the same relation and seed.
    pub below: Option<Estimate>,
    /// The same of `MaybeKnown` facts.
    pub below_maybe_known: Option<Estimate>,
    /// The same of known facts of other relations.
    pub below_elsewhere: Option<Estimate>,
    /// Seconds a step, as a multiple of plain fine-tuning's on the same relation and seed; the median over runs.
    pub step: Option<f64>,
    /// Seconds of training until 99% of the new facts were learned, likewise; none where a run did not get there.
    pub until_learned: Option<f64>,
    /// Peak memory, likewise.
    pub memory: Option<f64>,
}

/// A mean over facts and its 95% interval (paired bootstrap over the facts).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The mean: of what is lost in percentage points, negative where more is right.
    pub value: f64,
    /// Its interval.
    pub interval: [f64; 2],
}

impl Estimate {
    /// Over looks at facts: what each found, by the name of its fact. Looks at one fact, by several seeds, are drawn together:
    /// the same fact seen three times says less than three facts.
    pub(super) fn over<'a>(looks: impl Iterator<Item = (&'a str, f64)>) -> Option<Self> {
        let mut facts: BTreeMap<&str, Sum> = BTreeMap::new();
        for (fact, value) in looks {
            facts.entry(fact).or_default().add(value, 1.0);
        }
        let facts: Vec<Sum> = facts.into_values().collect();
        Self::of(facts.len(), |drawn| {
            Sum::mean(drawn.iter().map(|fact| facts[*fact]))
        })
    }

    /// What `estimate` makes of so many facts, numbered from 0.
    pub(super) fn of(facts: usize, estimate: impl Fn(&[usize]) -> f64) -> Option<Self> {
        let all: Vec<usize> = (0..facts).collect();
        Some(Self {
            interval: bootstrap(facts, 0, &estimate)?,
            value: estimate(&all),
        })
    }
}

/// A weighted sum of values.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sum {
    sum: f64,
    weight: f64,
}

impl Sum {
    /// Adds a value.
    pub fn add(&mut self, value: f64, weight: f64) {
        self.sum += weight * value;
        self.weight += weight;
    }

    /// Whether anything was added.
    pub fn has_weight(&self) -> bool {
        self.weight > 0.0
    }

    /// The mean over all that several sums hold.
    pub fn mean(sums: impl Iterator<Item = Self>) -> f64 {
        let all = sums.fold(Self::default(), |all, one| Self {
            sum: all.sum + one.sum,
            weight: all.weight + one.weight,
        });
        all.sum / all.weight
    }
}

/// 100 for a fact that was right (`1`) before and is wrong after, -100 the other way round.
pub(super) fn lost(before: u8, after: u8) -> f64 {
    100.0 * (f64::from(before) - f64::from(after))
}

/// A row for each arm, in the order in which the arms first appear.
pub fn rows(records: &[Record]) -> Vec<Row> {
    let arms = arms(records).into_iter();
    arms.map(|arm| row(arm, records)).collect()
}

/// The arms, in the order in which they first appear.
pub(super) fn arms(records: &[Record]) -> Vec<&str> {
    let mut arms: Vec<&str> = Vec::new();
    for record in records {
        if !arms.contains(&&record.arm[..]) {
            arms.push(&record.arm);
        }
    }
    arms
}

fn row(arm: &str, records: &[Record]) -> Row {
    Row {
        arm: arm.to_owned(),
        runs: records.iter().filter(|r| r.arm == arm).count(),
        learned: learned(arm, records),
        forgotten: forgotten(arm, records),
        below: below(arm, records),
        below_maybe_known: below_in(arm, records, Of::MaybeKnown),
        below_elsewhere: below_in(arm, records, Of::Elsewhere),
        step: step(arm, records),
        until_learned: until_learned(arm, records),
        memory: memory(arm, records),
    }
}

/// Held facts from the best epoch to the end.
pub(super) fn forgotten(arm: &str, records: &[Record]) -> Option<Estimate> {
    let own = records.iter().filter(|r| r.arm == arm);
    Estimate::over(own.flat_map(|r| {
        let after = r.right(Of::Held).zip(r.held_at_peak.bytes());
        after.map(|((fact, after), before)| (fact, lost(before, after)))
    }))
}

/// See [`Row::step`].
pub(super) fn step(arm: &str, records: &[Record]) -> Option<f64> {
    ratio(arm, records, |r| Some(r.step_seconds))
}

/// See [`Row::until_learned`].
pub(super) fn until_learned(arm: &str, records: &[Record]) -> Option<f64> {
    ratio(arm, records, |r| r.seconds_until(LEARNED))
}

/// See [`Row::memory`].
pub(super) fn memory(arm: &str, records: &[Record]) -> Option<f64> {
    ratio(arm, records, |r| Some(r.result.peak_memory_bytes as f64))
}

/// As a multiple of plain fine-tuning's on the same relation and seed; the median over runs. None as soon as one run has none: the
/// median of the others would flatter.
fn ratio(arm: &str, records: &[Record], value: impl Fn(&Record) -> Option<f64>) -> Option<f64> {
    let own = records.iter().filter(|r| r.arm == arm);
    let ratios: Option<Vec<f64>> = own
        .filter_map(|r| Some((r, partner(records, UNIT, r)?)))
        .map(|(r, unit)| Some(value(r)? / value(unit)?))
        .collect();
    ratios.and_then(median)
}

/// What `arm` did with the model, relation and seed of a record.
pub(super) fn partner<'r>(records: &'r [Record], arm: &str, of: &Record) -> Option<&'r Record> {
    let cell = |r: &Record| (r.result.model.clone(), r.relation.clone(), r.seed);
    records.iter().find(|r| r.arm == arm && cell(r) == cell(of))
}

/// Share of the new facts learned: mean over the arm's runs.
pub(super) fn learned(arm: &str, records: &[Record]) -> Option<f64> {
    let own = records.iter().filter(|r| r.arm == arm);
    mean(&own.filter_map(|r| r.result.learned).collect::<Vec<_>>())
}

/// Held facts against the end of Only Known on the same model, relation and seed.
pub(super) fn below(arm: &str, records: &[Record]) -> Option<Estimate> {
    below_in(arm, records, Of::Held)
}

fn below_in(arm: &str, records: &[Record], of: Of) -> Option<Estimate> {
    let own = records.iter().filter(|r| r.arm == arm && arm != ONLY_KNOWN);
    let pairs = own.filter_map(|r| Some((partner(records, ONLY_KNOWN, r)?, r)));
    Estimate::over(pairs.flat_map(|(base, own)| {
        let both = base.right(of).zip(own.right(of));
        both.map(|((fact, before), (_, after))| (fact, lost(before, after)))
    }))
}

/// The mean; none of nothing.
pub(super) fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The share of `HighlyKnown` facts over all `audits`, in percent, with the interval of that many facts.
pub(super) fn highly_known<'a>(audits: impl Iterator<Item = &'a AuditRecord>) -> Option<Estimate> {
    let known = audits.flat_map(|audit| {
        let n = audit.shares.facts;
        let known = (audit.shares.highly_known * n as f64).round() as usize;
        (0..n).map(move |i| if i < known { 100.0 } else { 0.0 })
    });
    let known: Vec<f64> = known.collect();
    Estimate::of(known.len(), |drawn| {
        drawn.iter().map(|fact| known[*fact]).sum::<f64>() / known.len() as f64
    })
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) && middle > 0 {
        Some(f64::midpoint(values[middle - 1], values[middle]))
    } else {
        values.get(middle).copied()
    }
}

/// The labels of each relation as a table in Markdown.
pub(super) fn of_labels(audits: &[AuditRecord]) -> String {
    let mut out = String::from(
        "| model | relation | facts | prompts | HighlyKnown | MaybeKnown | WeaklyKnown | Unknown |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    let percent = |share: f64| format!("{:.1}%", 100.0 * share);
    for audit in audits {
        let shares = &audit.shares;
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            audit.model,
            audit.relation,
            shares.facts,
            audit.runs,
            percent(shares.highly_known),
            percent(shares.maybe_known),
            percent(shares.weakly_known),
            percent(shares.unknown),
        );
    }
    out
}

/// The rows as a table in Markdown.
pub fn markdown(rows: &[Row]) -> String {
    let mut out = String::from(
        "| arm | runs | learned % | forgotten pp | below Only Known pp | MaybeKnown below pp | other relations below pp | step | until 99% | memory |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    let loss = |loss: Option<Estimate>| {
        loss.map_or_else(String::new, |l| {
            let [low, high] = l.interval.map(pp);
            format!("{} ({low} to {high})", pp(l.value))
        })
    };
    let times = |ratio: Option<f64>| ratio.map_or_else(String::new, |r| format!("{r:.2} x"));
    for row in rows {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            row.arm,
            row.runs,
            row.learned
                .map_or_else(String::new, |l| format!("{:.1}", 100.0 * l)),
            loss(row.forgotten),
            loss(row.below),
            loss(row.below_maybe_known),
            loss(row.below_elsewhere),
            times(row.step),
            times(row.until_learned),
            times(row.memory),
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_looks_at_a_fact_are_not_three_facts() {
        let fared = |fact: usize| if fact.is_multiple_of(4) { 100.0 } else { 0.0 };
        let names: Vec<String> = (0..120).map(|i| format!("fact {i:03}")).collect();
        let over = |facts: usize, looks: usize| {
            let seen =
                (0..facts).flat_map(|i| std::iter::repeat_n((&names[i][..], fared(i)), looks));
            Estimate::over(seen).expect("there are facts")
        };
        let (once, thrice, more) = (over(40, 1), over(40, 3), over(120, 1));
        assert_eq!(once.value, 25.0);
        assert_eq!(once, thrice);
        let width = |e: Estimate| e.interval[1] - e.interval[0];
        // Of three times as many facts: 1 / sqrt(3) = .577 as wide, to the grain of single facts (2.5 and .83 pp).
        let ratio = width(more) / width(once);
        assert!((ratio - 0.577).abs() < 0.1, "{ratio}");
        assert_eq!(Estimate::over(std::iter::empty()), None);
    }
}

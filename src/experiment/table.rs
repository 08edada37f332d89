//! From records to a table: what each arm learned, forgot and cost.

use std::fmt::Write;

use super::{AuditRecord, ONLY_KNOWN, Record};
use crate::measure::mean_interval;

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
    pub forgotten: Option<Loss>,
    /// Held facts against the end of Only Known on the same relation and seed.
    pub below: Option<Loss>,
    /// The same of `MaybeKnown` facts.
    pub below_maybe_known: Option<Loss>,
    /// The same of known facts of other relations.
    pub below_elsewhere: Option<Loss>,
    /// Seconds a step, as a multiple of plain fine-tuning's on the same relation and seed; the median over runs.
    pub step: Option<f64>,
    /// Seconds of training until 99% of the new facts were learned, likewise; none where a run did not get there.
    pub until_learned: Option<f64>,
    /// Peak memory, likewise.
    pub memory: Option<f64>,
}

/// Percentage points lost over the facts of all runs, and their 95% interval (paired bootstrap over facts).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// In pp; negative where more is right.
    pub pp: f64,
    /// Its interval.
    pub interval: [f64; 2],
}

impl Loss {
    /// Over pairs of `before` and `after`, each a text of ones and zeros; pairs of other lengths are no pairs.
    fn over<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Option<Self> {
        let pairs = pairs.filter(|(b, a)| b.len() == a.len());
        Self::mean(pairs.flat_map(|(b, a)| b.bytes().zip(a.bytes()).map(|(b, a)| lost(b, a))))
    }

    /// Over what each fact has lost.
    pub(super) fn mean(values: impl Iterator<Item = f64>) -> Option<Self> {
        let values: Vec<f64> = values.collect();
        Some(Self {
            interval: mean_interval(&values, 0)?,
            pp: mean(&values)?,
        })
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
        below_maybe_known: below_in(arm, records, |r| &r.maybe_known),
        below_elsewhere: below_in(arm, records, |r| &r.elsewhere),
        step: step(arm, records),
        until_learned: until_learned(arm, records),
        memory: memory(arm, records),
    }
}

/// Held facts from the best epoch to the end.
pub(super) fn forgotten(arm: &str, records: &[Record]) -> Option<Loss> {
    let own = records.iter().filter(|r| r.arm == arm);
    Loss::over(own.map(|r| (&r.held_at_peak[..], &r.held[..])))
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
pub(super) fn below(arm: &str, records: &[Record]) -> Option<Loss> {
    below_in(arm, records, |r| &r.held)
}

fn below_in(arm: &str, records: &[Record], bits: fn(&Record) -> &str) -> Option<Loss> {
    let own = records.iter().filter(|r| r.arm == arm && arm != ONLY_KNOWN);
    Loss::over(own.filter_map(|r| Some((bits(partner(records, ONLY_KNOWN, r)?), bits(r)))))
}

/// The mean; none of nothing.
pub(super) fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The share of `HighlyKnown` facts over all `audits`, in percent, with the interval of that many facts.
pub(super) fn highly_known<'a>(audits: impl Iterator<Item = &'a AuditRecord>) -> Option<Loss> {
    Loss::mean(audits.flat_map(|audit| {
        let n = audit.shares.facts;
        let known = (audit.shares.highly_known * n as f64).round() as usize;
        (0..n).map(move |i| if i < known { 100.0 } else { 0.0 })
    }))
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
    let loss = |loss: Option<Loss>| {
        loss.map_or_else(String::new, |l| {
            format!("{:.1} ({:.1} to {:.1})", l.pp, l.interval[0], l.interval[1])
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

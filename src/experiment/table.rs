//! From records to a table: what each arm learned, forgot and cost.

use std::{collections::BTreeMap, fmt::Write};

use super::{AuditRecord, ONLY_KNOWN, Record, claim::HeldOutSet};
use crate::{format::pp, measure::bootstrap};

/// The arm whose time and memory are the unit.
pub(super) const BASELINE_ARM: &str = "sft";

/// The share of new facts until which time is counted.
const LEARNED_TARGET: f64 = 0.99;

/// One arm over all its relations and seeds.
#[derive(Clone, Debug, PartialEq)]
pub struct ArmSummary {
    /// The arm.
    pub arm: String,
    /// Runs of it.
    pub runs: usize,
    /// Share of the new facts learned: mean over runs.
    pub learned: Option<f64>,
    /// Held facts from the best epoch to the end.
    pub forgotten: Option<Estimate>,
    /// Held facts against the end of Only Known on the same relation and seed.
    pub gap_to_only_known: Option<Estimate>,
    /// The same of `MaybeKnown` facts.
    pub maybe_known_gap: Option<Estimate>,
    /// The same of known facts of other relations.
    pub other_relations_gap: Option<Estimate>,
    /// Seconds a step, as a multiple of plain fine-tuning's on the same relation and seed; the median over runs.
    pub step_time: Option<f64>,
    /// Seconds of training until 99% of the new facts were learned, likewise; none where a run did not get there.
    pub time_to_learned: Option<f64>,
    /// Peak memory, likewise.
    pub peak_memory: Option<f64>,
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

    /// What `estimate` makes of so many facts, numbered from 0.
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
pub(super) fn forgotten_pp(before: u8, after: u8) -> f64 {
    100.0 * (f64::from(before) - f64::from(after))
}

/// A row for each arm, in the order in which the arms first appear.
pub fn summarize(records: &[Record]) -> Vec<ArmSummary> {
    let arms = arms(records).into_iter();
    arms.map(|arm| summarize_arm(arm, records)).collect()
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

fn summarize_arm(arm: &str, records: &[Record]) -> ArmSummary {
    ArmSummary {
        arm: arm.to_owned(),
        runs: records.iter().filter(|r| r.arm == arm).count(),
        learned: learned(arm, records),
        forgotten: forgotten(arm, records),
        gap_to_only_known: gap_to_only_known(arm, records),
        maybe_known_gap: gap_on(arm, records, HeldOutSet::MaybeKnown),
        other_relations_gap: gap_on(arm, records, HeldOutSet::OtherRelations),
        step_time: step_time(arm, records),
        time_to_learned: time_to_learned(arm, records),
        peak_memory: peak_memory(arm, records),
    }
}

/// Held facts from the best epoch to the end.
pub(super) fn forgotten(arm: &str, records: &[Record]) -> Option<Estimate> {
    let own = records.iter().filter(|r| r.arm == arm);
    Estimate::mean_over_facts(own.flat_map(|r| {
        let after = r.correct(HeldOutSet::Held).zip(r.held_at_peak.bytes());
        after.map(|((fact, after), before)| (fact, forgotten_pp(before, after)))
    }))
}

/// See [`ArmSummary::step_time`].
pub(super) fn step_time(arm: &str, records: &[Record]) -> Option<f64> {
    ratio(arm, records, |r| Some(r.step_seconds))
}

/// See [`ArmSummary::time_to_learned`].
pub(super) fn time_to_learned(arm: &str, records: &[Record]) -> Option<f64> {
    ratio(arm, records, |r| r.seconds_until(LEARNED_TARGET))
}

/// See [`ArmSummary::peak_memory`].
pub(super) fn peak_memory(arm: &str, records: &[Record]) -> Option<f64> {
    ratio(arm, records, |r| Some(r.result.peak_memory_bytes as f64))
}

/// As a multiple of plain fine-tuning's on the same relation and seed; the median over runs. None as soon as one run has none: the
/// median of the others would flatter.
fn ratio(arm: &str, records: &[Record], value: impl Fn(&Record) -> Option<f64>) -> Option<f64> {
    let own = records.iter().filter(|r| r.arm == arm);
    let ratios: Option<Vec<f64>> = own
        .filter_map(|r| Some((r, matching_run(records, BASELINE_ARM, r)?)))
        .map(|(r, unit)| Some(value(r)? / value(unit)?))
        .collect();
    ratios.and_then(median)
}

/// What `arm` did with the model, relation and seed of a record.
pub(super) fn matching_run<'r>(
    records: &'r [Record],
    arm: &str,
    of: &Record,
) -> Option<&'r Record> {
    let cell = |r: &Record| (r.result.model.clone(), r.relation.clone(), r.seed);
    records.iter().find(|r| r.arm == arm && cell(r) == cell(of))
}

/// Share of the new facts learned: mean over the arm's runs.
pub(super) fn learned(arm: &str, records: &[Record]) -> Option<f64> {
    let own = records.iter().filter(|r| r.arm == arm);
    mean(&own.filter_map(|r| r.result.learned).collect::<Vec<_>>())
}

/// Held facts against the end of Only Known on the same model, relation and seed.
pub(super) fn gap_to_only_known(arm: &str, records: &[Record]) -> Option<Estimate> {
    gap_on(arm, records, HeldOutSet::Held)
}

fn gap_on(arm: &str, records: &[Record], facts: HeldOutSet) -> Option<Estimate> {
    let own = records.iter().filter(|r| r.arm == arm && arm != ONLY_KNOWN);
    let pairs = own.filter_map(|r| Some((matching_run(records, ONLY_KNOWN, r)?, r)));
    Estimate::mean_over_facts(pairs.flat_map(|(base, own)| {
        let both = base.correct(facts).zip(own.correct(facts));
        both.map(|((fact, before), (_, after))| (fact, forgotten_pp(before, after)))
    }))
}

/// The mean; none of nothing.
pub(super) fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The share of `HighlyKnown` facts over all `audits`, in percent, with the interval of that many facts.
pub(super) fn highly_known<'a>(audits: impl Iterator<Item = &'a AuditRecord>) -> Option<Estimate> {
    let known = audits.flat_map(|audit| {
        let n = audit.label_fractions.facts;
        let known = (audit.label_fractions.highly_known * n as f64).round() as usize;
        (0..n).map(move |i| if i < known { 100.0 } else { 0.0 })
    });
    let known: Vec<f64> = known.collect();
    Estimate::bootstrapped(known.len(), |drawn| {
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
pub(super) fn labels_markdown(audits: &[AuditRecord]) -> String {
    let mut out = String::from(
        "| model | relation | facts | prompts | HighlyKnown | MaybeKnown | WeaklyKnown | Unknown |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    let percent = |share: f64| format!("{:.1}%", 100.0 * share);
    for audit in audits {
        let shares = &audit.label_fractions;
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            audit.model,
            audit.relation,
            shares.facts,
            audit.num_prompts,
            percent(shares.highly_known),
            percent(shares.maybe_known),
            percent(shares.weakly_known),
            percent(shares.unknown),
        );
    }
    out
}

/// The rows as a table in Markdown.
pub fn summary_markdown(rows: &[ArmSummary]) -> String {
    let mut out = String::from(
        "| arm | runs | learned % | forgotten pp | below Only Known pp | MaybeKnown below pp | other relations below pp | step | until 99% | memory |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    let estimate = |loss: Option<Estimate>| {
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
            estimate(row.forgotten),
            estimate(row.gap_to_only_known),
            estimate(row.maybe_known_gap),
            estimate(row.other_relations_gap),
            times(row.step_time),
            times(row.time_to_learned),
            times(row.peak_memory),
        );
    }
    out
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
        // Of three times as many facts: 1 / sqrt(3) = .577 as wide, to the grain of single facts (2.5 and .83 pp).
        let ratio = width(more) / width(once);
        assert!((ratio - 0.577).abs() < 0.1, "{ratio}");
        assert_eq!(Estimate::mean_over_facts(std::iter::empty()), None);
    }
}

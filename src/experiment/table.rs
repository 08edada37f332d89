//! From records to a table: learning, forgetting and cost per arm.

use std::fmt::Write;

use super::{
    claim::HeldOutSet,
    estimate::{Estimate, forgotten_pp, mean, median},
    file::{BASELINE_ARM, ONLY_KNOWN},
    record::{AuditRecord, Record},
};
use crate::format::pp;

/// The accuracy on new facts up to which training time is counted.
const LEARNED_TARGET: f64 = 0.99;

/// One arm, over all its relations and seeds.
#[derive(Clone, Debug, PartialEq)]
pub struct ArmSummary {
    /// Name of the arm.
    pub arm: String,
    /// Number of runs.
    pub runs: usize,
    /// Accuracy on new facts at the end (0 to 1), mean over runs.
    pub learned: Option<f64>,
    /// Forgetting of held-out facts from the best epoch to the end.
    pub forgotten: Option<Estimate>,
    /// Accuracy gap to Only Known on held-out facts at the end, on the same relation and seed.
    pub gap_to_only_known: Option<Estimate>,
    /// The same on `MaybeKnown` facts.
    pub maybe_known_gap: Option<Estimate>,
    /// The same on known facts of other relations.
    pub other_relations_gap: Option<Estimate>,
    /// Time per step, relative to plain fine-tuning on the same relation and seed; median over runs.
    pub step_time: Option<f64>,
    /// Training time until 99% of the new facts are learned, also relative; `None` if a run did not reach it.
    pub time_to_learned: Option<f64>,
    /// Peak memory, also relative.
    pub peak_memory: Option<f64>,
}

/// One summary per arm, in the order in which the arms first appear.
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

/// Forgetting of held-out facts from the best epoch to the end.
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

/// The value relative to plain fine-tuning on the same relation and seed; median over runs. `None` if any run has no value, because
/// the median of the others would be too favourable.
fn ratio(arm: &str, records: &[Record], value: impl Fn(&Record) -> Option<f64>) -> Option<f64> {
    let own = records.iter().filter(|r| r.arm == arm);
    let ratios: Option<Vec<f64>> = own
        .filter_map(|r| Some((r, matching_run(records, BASELINE_ARM, r)?)))
        .map(|(r, unit)| Some(value(r)? / value(unit)?))
        .collect();
    ratios.and_then(median)
}

/// The run of `arm` with the same model, relation and seed as `of`.
pub(super) fn matching_run<'r>(
    records: &'r [Record],
    arm: &str,
    of: &Record,
) -> Option<&'r Record> {
    let cell = |r: &Record| (r.result.model.clone(), r.relation.clone(), r.seed);
    records.iter().find(|r| r.arm == arm && cell(r) == cell(of))
}

/// Accuracy on new facts at the end: mean over the runs of the arm.
pub(super) fn learned(arm: &str, records: &[Record]) -> Option<f64> {
    let own = records.iter().filter(|r| r.arm == arm);
    mean(&own.filter_map(|r| r.result.learned).collect::<Vec<_>>())
}

/// Accuracy gap to Only Known on held-out facts, on the same model, relation and seed.
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

/// The fraction of `HighlyKnown` facts over all `audits` in percent, with its interval.
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

/// The label fractions of each relation as a Markdown table.
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

/// The summaries as a Markdown table.
pub fn summary_markdown(rows: &[ArmSummary]) -> String {
    let mut out = String::from(
        "| arm | runs | learned (%) | forgotten since best epoch (pp) | gap to Only Known (pp) | MaybeKnown gap (pp) | other relations gap (pp) | step time | time to 99% learned | peak memory |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    let estimate = |loss: Option<Estimate>| {
        loss.map_or_else(String::new, |l| {
            let [low, high] = l.interval.map(pp);
            format!("{} ({low} to {high})", pp(l.value))
        })
    };
    let times = |ratio: Option<f64>| ratio.map_or_else(String::new, |r| format!("{r:.2}x"));
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

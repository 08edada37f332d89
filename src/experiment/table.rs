//! From records to a table: learning, forgetting and cost per arm.

use std::{collections::BTreeSet, fmt::Write};

use super::{
    claim::HeldOutSet,
    estimate::{Estimate, forgotten_pp, mean, median},
    file::{BASELINE_ARM, ONLY_KNOWN},
    record::{AuditRecord, Record},
};
use crate::{
    format::{percent, pp},
    run::EqualLearning,
};

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
    /// Known held-out facts that are wrong at the end.
    pub forgotten: Option<ForgottenFacts>,
    /// The same facts after Only Known, on the same relations and seeds.
    pub only_known_forgotten: Option<ForgottenFacts>,
    /// Accuracy gap to Only Known on held-out facts at the end, on the same relation and seed.
    pub gap_to_only_known: Option<Estimate>,
    /// Forgetting of held-out facts from the best epoch to the end.
    pub since_best_epoch: Option<Estimate>,
    /// Held-out facts kept by this arm and by plain fine-tuning when both had learned as many new facts.
    pub equal_learning: Option<EqualLearningMean>,
    /// The same on `MaybeKnown` facts.
    pub maybe_known_gap: Option<Estimate>,
    /// The same on known facts of other relations.
    pub other_relations_gap: Option<Estimate>,
    /// Time per step, relative to plain fine-tuning on the same relation and seed; median over runs.
    pub step_time: Option<f64>,
    /// Training time until 99% of the new facts are learned, also relative; `None` if a run did not reach it.
    pub time_to_learned: Option<f64>,
    /// Prompt and target tokens of all training steps until then, also relative.
    pub tokens_to_learned: Option<f64>,
    /// Peak memory, also relative.
    pub peak_memory: Option<f64>,
}

/// Known held-out facts that are wrong at the end, over all runs of an arm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ForgottenFacts {
    /// Facts that are wrong; a fact counts once per run.
    pub count: usize,
    /// The facts of all runs.
    pub of: usize,
    /// Different facts among them.
    pub facts: usize,
    /// 100 x count / of, with its interval (bootstrap over different facts).
    pub share: Estimate,
}

/// An arm and plain fine-tuning at equal learning: means over the runs that can be compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EqualLearningMean {
    /// Runs that can be compared with plain fine-tuning on the same relation and seed.
    pub runs: usize,
    /// The accuracy on new facts (0 to 1) that both reached.
    pub learned: f64,
    /// The accuracy of the arm on held-out facts there.
    pub kept: f64,
    /// That of plain fine-tuning.
    pub kept_by_sft: f64,
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
        only_known_forgotten: only_known_forgotten(arm, records),
        gap_to_only_known: gap_to_only_known(arm, records),
        since_best_epoch: since_best_epoch(arm, records),
        equal_learning: equal_learning(arm, records),
        maybe_known_gap: gap_on(arm, records, HeldOutSet::MaybeKnown),
        other_relations_gap: gap_on(arm, records, HeldOutSet::OtherRelations),
        step_time: step_time(arm, records),
        time_to_learned: time_to_learned(arm, records),
        tokens_to_learned: tokens_to_learned(arm, records),
        peak_memory: peak_memory(arm, records),
    }
}

/// See [`ArmSummary::forgotten`].
pub(super) fn forgotten(arm: &str, records: &[Record]) -> Option<ForgottenFacts> {
    count_forgotten(records.iter().filter(|r| r.arm == arm))
}

/// See [`ArmSummary::only_known_forgotten`].
fn only_known_forgotten(arm: &str, records: &[Record]) -> Option<ForgottenFacts> {
    let own = records.iter().filter(|r| r.arm == arm && arm != ONLY_KNOWN);
    count_forgotten(own.filter_map(|r| matching_run(records, ONLY_KNOWN, r)))
}

fn count_forgotten<'r>(runs: impl Iterator<Item = &'r Record>) -> Option<ForgottenFacts> {
    let correct = runs.flat_map(|run| run.correct(HeldOutSet::Held));
    let wrong: Vec<(&str, f64)> = correct
        .map(|(fact, correct)| (fact, if correct == b'1' { 0.0 } else { 100.0 }))
        .collect();
    let different: BTreeSet<&str> = wrong.iter().map(|(fact, _)| *fact).collect();
    Some(ForgottenFacts {
        count: wrong.iter().filter(|(_, wrong)| *wrong > 0.0).count(),
        of: wrong.len(),
        facts: different.len(),
        share: Estimate::mean_over_facts(wrong.iter().copied())?,
    })
}

/// See [`ArmSummary::equal_learning`].
fn equal_learning(arm: &str, records: &[Record]) -> Option<EqualLearningMean> {
    let own = records
        .iter()
        .filter(|r| r.arm == arm && arm != BASELINE_ARM);
    let compared: Vec<EqualLearning> = own
        .filter_map(|run| {
            let plain = matching_run(records, BASELINE_ARM, run)?;
            EqualLearning::between(&[&run.epochs, &plain.epochs])
        })
        .collect();
    let mean_of = |value: &dyn Fn(&EqualLearning) -> f64| {
        mean(&compared.iter().map(value).collect::<Vec<f64>>())
    };
    Some(EqualLearningMean {
        runs: compared.len(),
        learned: mean_of(&|c| c.learned)?,
        kept: mean_of(&|c| c.kept[0])?,
        kept_by_sft: mean_of(&|c| c.kept[1])?,
    })
}

/// Forgetting of held-out facts from the best epoch to the end.
pub(super) fn since_best_epoch(arm: &str, records: &[Record]) -> Option<Estimate> {
    let own = records.iter().filter(|r| r.arm == arm);
    Estimate::mean_over_facts(own.flat_map(|r| {
        let after = r.correct(HeldOutSet::Held).zip(r.held_at_peak.bytes());
        after.map(|((fact, after), before)| (fact, forgotten_pp(before, after)))
    }))
}

/// See [`ArmSummary::step_time`].
pub(super) fn step_time(arm: &str, records: &[Record]) -> Option<f64> {
    ratio(arm, records, |r| r.step_seconds)
}

/// See [`ArmSummary::time_to_learned`].
pub(super) fn time_to_learned(arm: &str, records: &[Record]) -> Option<f64> {
    ratio(arm, records, |r| r.seconds_until(LEARNED_TARGET))
}

/// See [`ArmSummary::tokens_to_learned`].
pub(super) fn tokens_to_learned(arm: &str, records: &[Record]) -> Option<f64> {
    ratio(arm, records, |r| r.tokens_until(LEARNED_TARGET))
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
        "| arm | runs | learned (%) | forgotten, of the known held-out facts | Only Known forgot | gap to Only Known (pp) | \
         since best epoch (pp) | at equal learning: kept, kept by sft (%) | MaybeKnown gap (pp) | other relations gap (pp) | step time | \
         time to 99% learned | tokens to 99% learned | peak memory |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
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
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            row.arm,
            row.runs,
            row.learned
                .map_or_else(String::new, |l| format!("{:.1}", 100.0 * l)),
            format_forgotten(row.forgotten),
            format_forgotten(row.only_known_forgotten),
            estimate(row.gap_to_only_known),
            estimate(row.since_best_epoch),
            format_equal_learning(row.equal_learning, row.runs),
            estimate(row.maybe_known_gap),
            estimate(row.other_relations_gap),
            times(row.step_time),
            times(row.time_to_learned),
            times(row.tokens_to_learned),
            times(row.peak_memory),
        );
    }
    out
}

/// `44 of 296, 14.9% (11.1 to 18.9)`; of zero facts the rule of three over different facts, `0 of 296 (up to 1.0%)`.
fn format_forgotten(forgotten: Option<ForgottenFacts>) -> String {
    let Some(f) = forgotten else {
        return String::new();
    };
    let counts = format!("{} of {}", f.count, f.of);
    if f.count == 0 {
        let most = (3.0 / f.facts as f64).min(1.0);
        return format!("{counts} (up to {})", percent(most));
    }
    let [low, high] = f.share.interval.map(pp);
    format!("{counts}, {}% ({low} to {high})", pp(f.share.value))
}

/// `at 98.9 learned: 86.1, 85.0`, with the number of runs if not all of an arm's can be compared.
fn format_equal_learning(equal: Option<EqualLearningMean>, runs: usize) -> String {
    let Some(equal) = equal else {
        return String::new();
    };
    let percent = |fraction: f64| pp(100.0 * fraction);
    let note = if equal.runs < runs {
        format!(" ({} of {runs} runs)", equal.runs)
    } else {
        String::new()
    };
    format!(
        "at {} learned: {}, {}{note}",
        percent(equal.learned),
        percent(equal.kept),
        percent(equal.kept_by_sft)
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        experiment::record::HeldOutFacts,
        run::{EpochRecord, PerSplit},
    };

    fn record(arm: &str, held: &str, curve: &[(f64, f64)]) -> Record {
        let names = (0..held.len()).map(|i| format!("P17 {i}"));
        let epoch = |(i, (learned, kept)): (usize, &(f64, f64))| EpochRecord {
            epoch: i + 1,
            steps: i + 1,
            seconds: 0.0,
            tokens: 100 * (i + 1),
            accuracy: PerSplit {
                unknown: Some(*learned),
                held: Some(*kept),
                ..PerSplit::default()
            },
            drift: None,
            behaviour: None,
            validation_loss: None,
            grad_norms: None,
        };
        Record {
            held: held.into(),
            held_at_peak: "1".repeat(held.len()),
            epochs: curve.iter().enumerate().map(epoch).collect(),
            facts: Arc::new(HeldOutFacts {
                held: names.collect(),
                ..HeldOutFacts::default()
            }),
            ..Record::for_test(arm)
        }
    }

    #[test]
    fn an_arm_is_told_beside_only_known_and_at_equal_learning() {
        let records = [
            record("only-known", "1111111111", &[]),
            record("sft", "1110001110", &[(0.5, 0.9), (1.0, 0.6)]),
            record("auto", "1111111101", &[(0.2, 1.0), (0.8, 0.9)]),
        ];
        let rows = summarize(&records);
        let [only_known, sft, auto] = &rows[..] else {
            panic!("three arms");
        };
        assert_eq!(
            format_forgotten(only_known.forgotten),
            "0 of 10 (up to 30.0%)"
        );
        assert_eq!(only_known.only_known_forgotten, None);
        let forgotten = sft.forgotten.expect("held-out facts");
        assert_eq!(
            (forgotten.count, forgotten.of, forgotten.facts),
            (4, 10, 10)
        );
        assert_eq!(forgotten.share.value, 40.0);
        assert_eq!(sft.only_known_forgotten, only_known.forgotten);
        assert_eq!(sft.gap_to_only_known.map(|gap| gap.value), Some(40.0));
        assert_eq!(
            sft.equal_learning, None,
            "it is what the others are compared with"
        );
        // At 80% learned plain fine-tuning is at 0.9 - 0.6 x 0.3 = 0.72.
        assert_eq!(
            format_equal_learning(auto.equal_learning, 1),
            "at 80.0 learned: 90.0, 72.0"
        );
        assert_eq!(
            format_equal_learning(auto.equal_learning, 2),
            "at 80.0 learned: 90.0, 72.0 (1 of 2 runs)"
        );
        let table = summary_markdown(&rows);
        assert!(
            table.contains("| auto | 1 |  | 1 of 10, 10.0% (")
                && table.contains("| 0 of 10 (up to 30.0%) | 10.0 ("),
            "{table}"
        );
    }

    #[test]
    fn a_cost_is_relative_to_plain_fine_tuning_and_empty_where_it_is_not_known() {
        let sft = record("sft", "1", &[(0.5, 0.9), (1.0, 0.6)]);
        let auto = record("auto", "1", &[(0.2, 1.0), (0.8, 1.0), (1.0, 0.9)]);
        let costs = |auto: Record| {
            let rows = summarize(&[sft.clone(), auto]);
            let auto = &rows[1];
            (auto.step_time, auto.time_to_learned, auto.tokens_to_learned)
        };
        assert_eq!(costs(auto.clone()), (Some(1.0), Some(1.5), Some(1.5)));
        let untimed = Record {
            step_seconds: None,
            ..auto.clone()
        };
        assert_eq!(costs(untimed), (None, None, Some(1.5)));
        let mut older = auto;
        older.epochs.iter_mut().for_each(|epoch| epoch.tokens = 0);
        assert_eq!(costs(older), (Some(1.0), Some(1.5), None));
    }

    #[test]
    fn facts_of_several_seeds_are_counted_once_per_run_and_resampled_together() {
        let other = Record {
            seed: 1,
            ..record("sft", "0111111111", &[])
        };
        let records = [record("sft", "0111111111", &[]), other];
        let forgotten = forgotten("sft", &records).expect("held-out facts");
        assert_eq!(
            (forgotten.count, forgotten.of, forgotten.facts),
            (2, 20, 10)
        );
        assert_eq!(forgotten.share.value, 10.0);
    }
}

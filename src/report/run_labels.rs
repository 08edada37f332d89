//! Names and line styles of runs.

use std::path::{Path, PathBuf};

use super::chart;
use crate::{config::Goal, run::RecordedRun};

/// A run's names and line style.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RunLabel {
    /// Inside a sentence: `plain fine-tuning`.
    pub name: String,
    /// In charts and table headers: `SFT`.
    pub short: String,
    /// One of [`chart::STYLES`], the same in every table and chart.
    pub style: usize,
}

/// The labels of `runs`. A method has the same style on every page, and several runs of one method are told apart by their directories.
pub(super) fn run_labels(runs: &[RecordedRun]) -> Vec<RunLabel> {
    let mut used_styles = Vec::new();
    let mut labels = Vec::with_capacity(runs.len());
    for (i, run) in runs.iter().enumerate() {
        let method = user_method(run);
        let same: Vec<&Path> = runs
            .iter()
            .filter(|other| user_method(other) == method)
            .map(|other| &*other.dir)
            .collect();
        let (mut name, mut short) = names(method);
        if same.len() > 1 {
            let dir = distinct_dir(&run.dir, &same);
            name = format!("{name} ({dir})");
            short = format!("{short} ({dir})");
        }
        let style = preferred_styles(method)
            .into_iter()
            .find(|style| !used_styles.contains(style))
            .unwrap_or(i % chart::STYLES);
        used_styles.push(style);
        labels.push(RunLabel { name, short, style });
    }
    labels
}

/// The end of `dir` that no other of `dirs` has: its name, or more of its path where the names are equal.
fn distinct_dir(dir: &Path, dirs: &[&Path]) -> String {
    let end = |path: &Path, count: usize| -> PathBuf {
        let parts: Vec<_> = path.components().collect();
        parts[parts.len().saturating_sub(count)..].iter().collect()
    };
    let longest = dir.components().count();
    let mut ends = (1..longest).map(|count| (count, end(dir, count)));
    ends.find(|(count, own)| {
        dirs.iter()
            .filter(|other| end(other, *count) == *own)
            .count()
            < 2
    })
    .map_or_else(|| dir.to_owned(), |(_, own)| own)
    .display()
    .to_string()
}

/// The method as the user named it: the preset, or the name of what was trained.
pub(super) fn user_method(run: &RecordedRun) -> &str {
    let method = run.result.method.as_str();
    let preset = run.environment.preset.as_deref();
    preset.filter(|_| method != "only-known").unwrap_or(method)
}

fn names(method: &str) -> (String, String) {
    if let Some((kind, extension)) = method.rsplit_once('+') {
        let (name, short) = names(kind);
        if extension == "task" {
            return (format!("{name} with goal = task"), format!("{short}, task"));
        }
        let extension = match extension {
            "ewc" => "EWC",
            "lora" => "LoRA",
            "interpolate" => "interpolation",
            "project" => "projection",
            other => other,
        };
        return (
            format!("{name} + {extension}"),
            format!("{short} + {extension}"),
        );
    }
    let (name, short) = match method {
        "sft" => ("plain fine-tuning", "SFT"),
        "self-distill" => ("self-distillation", "Self-distill"),
        "only-known" => ("Only Known", "Only Known"),
        "l2" => ("L2 toward the snapshot", "L2"),
        "auto" => ("auto", "Auto"),
        other => return (other.to_owned(), other.chars().take(14).collect()),
    };
    (name.to_owned(), short.to_owned())
}

fn preferred_styles(method: &str) -> Vec<usize> {
    let first = match method {
        "self-distill" | "auto" => Some(0),
        "sft" => Some(1),
        "only-known" => Some(2),
        _ => None,
    };
    first.into_iter().chain([3, 4, 5, 0, 1, 2]).collect()
}

/// The main run of the page, and a plain fine-tuning run of the same base model to compare it with, if there is one.
///
/// The main run has the best trade: the highest harmonic mean of the fraction of new facts learned and of known facts kept. Plain
/// fine-tuning and Only Known are the runs that others are compared with.
pub(super) fn main_and_sft(runs: &[RecordedRun]) -> (usize, Option<usize>) {
    let method = |i: &usize| runs[*i].result.method.as_str();
    let is_reference = |i: &usize| matches!(method(i), "sft" | "only-known");
    let best = |candidates: &mut dyn Iterator<Item = usize>| {
        let by_trade = |a: &usize, b: &usize| trade(&runs[*a]).total_cmp(&trade(&runs[*b]));
        // Of equals the first: `max_by` keeps the last.
        candidates
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .max_by(by_trade)
    };
    let main = best(&mut (0..runs.len()).filter(|i| !is_reference(i)))
        .or_else(|| (0..runs.len()).find(|i| method(i) == "sft"))
        .unwrap_or(0);
    let sft = (0..runs.len()).find(|i| {
        *i != main && method(i) == "sft" && runs[*i].result.model == runs[main].result.model
    });
    (main, sft.filter(|_| method(&main) != "sft"))
}

/// The harmonic mean of the fractions of new facts learned and of known held-out facts kept. New facts that should not be learned do
/// not count.
fn trade(run: &RecordedRun) -> f64 {
    let result = &run.result;
    let kept = result
        .forgotten
        .map_or(1.0, |forgotten| 1.0 - forgotten.pp / 100.0);
    match (result.goal, result.learned) {
        (Goal::Facts, Some(learned)) => 2.0 * learned * kept / (learned + kept).max(f64::EPSILON),
        _ => kept,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_one_method_are_told_apart_by_the_end_of_their_paths() {
        let dirs = ["runs/a", "runs/b", "old/b"].map(Path::new);
        let ends = dirs.map(|dir| distinct_dir(dir, &dirs));
        assert_eq!(ends, ["a", "runs/b", "old/b"]);
        // One run given twice has no other name.
        let twice = ["a", "a"].map(Path::new);
        assert_eq!(distinct_dir(twice[0], &twice), "a");
    }
}

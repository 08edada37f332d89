//! Names and line styles of runs.

use super::chart;
use crate::run::RecordedRun;

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

/// The labels of `runs`. A method has the same style on every page, and several runs of one method are numbered.
pub(super) fn run_labels(runs: &[RecordedRun]) -> Vec<RunLabel> {
    let mut used_styles = Vec::new();
    let mut labels = Vec::with_capacity(runs.len());
    for (i, run) in runs.iter().enumerate() {
        let method = run.result.method.as_str();
        let same = |other: &&RecordedRun| other.result.method == method;
        let (mut name, mut short) = names(method);
        if runs.iter().filter(same).count() > 1 {
            let number = 1 + runs[..i].iter().filter(same).count();
            name = format!("{name} {number}");
            short = format!("{short} {number}");
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
        "self-distill" => Some(0),
        "sft" => Some(1),
        "only-known" => Some(2),
        _ => None,
    };
    first.into_iter().chain([3, 4, 5, 0, 1, 2]).collect()
}

/// The main run of the page, and a plain fine-tuning run of the same base model to compare it with, if there is one.
pub(super) fn main_and_sft(runs: &[RecordedRun]) -> (usize, Option<usize>) {
    let method = |i: &usize| runs[*i].result.method.as_str();
    let main = (0..runs.len())
        .find(|i| matches!(method(i), "self-distill" | "auto"))
        .or_else(|| (0..runs.len()).find(|i| !matches!(method(i), "sft" | "only-known")))
        .or_else(|| (0..runs.len()).find(|i| method(i) == "sft"))
        .unwrap_or(0);
    let sft = (0..runs.len()).find(|i| {
        *i != main && method(i) == "sft" && runs[*i].result.model == runs[main].result.model
    });
    (main, sft.filter(|_| method(&main) != "sft"))
}

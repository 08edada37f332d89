//! A zip archive of the page and its data for other tools: tables as CSV, configs and results as recorded.

use std::{
    io::{Cursor, Write},
    path::Path,
};

use serde::Serialize;
use zip::{ZipWriter, write::SimpleFileOptions};

use crate::{
    Error, Result, atomic_file,
    run::{Drift, FactOutcome, FactResult, RecordedRun, Split},
};

/// A row of `facts.csv`.
#[derive(Serialize)]
struct FactCsvRow<'a> {
    split: Split,
    relation: &'a str,
    subject: &'a str,
    question: &'a str,
    object: &'a str,
    label_before: Option<&'a str>,
    label_after: Option<&'a str>,
    few_shot_accuracy: Option<f64>,
    answer_before: &'a str,
    correct_before: bool,
    correct_at_start: bool,
    p_before: Option<f64>,
    correct_at_peak: bool,
    answer_after: &'a str,
    correct_after: bool,
    p_after: Option<f64>,
    outcome: FactOutcome,
    forgotten_once: bool,
    nearest_new: String,
    pca_x: Option<f32>,
    pca_y: Option<f32>,
}

impl<'a> FactCsvRow<'a> {
    fn new(row: &'a FactResult) -> Self {
        let nearest: Vec<String> = row
            .nearest
            .iter()
            .map(|near| format!("{} -> {} ({:.3})", near.subject, near.object, near.cosine))
            .collect();
        Self {
            split: row.split,
            relation: &row.relation,
            subject: &row.subject,
            question: &row.question,
            object: &row.object,
            label_before: row.label_before.as_deref(),
            label_after: row.label_after.as_deref(),
            few_shot_accuracy: row.few_shot_accuracy,
            answer_before: &row.answer_before,
            correct_before: row.correct_before,
            correct_at_start: row.correct_at_start,
            p_before: row.p_before,
            correct_at_peak: row.correct_at_peak,
            answer_after: &row.answer_after,
            correct_after: row.correct_after,
            p_after: row.p_after,
            outcome: row.outcome,
            forgotten_once: row.forgotten_once,
            nearest_new: nearest.join("; "),
            pca_x: row.pca.map(|place| place[0]),
            pca_y: row.pca.map(|place| place[1]),
        }
    }
}

/// Writes the page `html` and the files of its `runs` atomically to the archive `out`: `report.html`, and for the i-th run
/// `run-i/facts.csv`, `epochs.csv`, `result.json`, `config.toml` and `environment.json`.
///
/// # Errors
/// [`Error::Io`] if `out` cannot be written.
pub(super) fn write(html: &str, runs: &[RecordedRun], out: &Path) -> Result<()> {
    let archive = archive(html, runs).map_err(Error::io("write", out))?;
    atomic_file::write(out, &archive)
}

fn archive(html: &str, runs: &[RecordedRun]) -> std::io::Result<Vec<u8>> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let mut add = |name: &str, bytes: &[u8]| {
        // No timestamps: the same runs give the same archive.
        zip.start_file(name, SimpleFileOptions::default())?;
        zip.write_all(bytes)
    };
    add("report.html", html.as_bytes())?;
    for (i, run) in (1..).zip(runs) {
        let mut add = |name: &str, bytes: &[u8]| add(&format!("run-{i}/{name}"), bytes);
        add("facts.csv", &csv(run.facts.iter().map(FactCsvRow::new))?)?;
        add("epochs.csv", &epochs(run)?)?;
        add("result.json", &serde_json::to_vec_pretty(&run.result)?)?;
        add("config.toml", run.config_text.as_bytes())?;
        add(
            "environment.json",
            &serde_json::to_vec_pretty(&run.environment)?,
        )?;
    }
    Ok(zip.finish()?.into_inner())
}

fn csv(rows: impl Iterator<Item = impl Serialize>) -> std::io::Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in rows {
        writer.serialize(row)?;
    }
    writer.into_inner().map_err(csv::IntoInnerError::into_error)
}

/// One row per epoch: the accuracy on each split, and the drift measures.
fn epochs(run: &RecordedRun) -> std::io::Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let measures = Drift::default().named().map(|(name, _)| name);
    let splits = Split::ALL.map(Split::name);
    writer.write_record(["epoch"].iter().chain(&splits).chain(&measures))?;
    let format_cell =
        |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
    for epoch in &run.epochs {
        let accuracy = Split::ALL.map(|split| format_cell(epoch.accuracy.get(split).copied()));
        let drift = epoch.drift.unwrap_or_default().named();
        let drift = drift.map(|(_, value)| format_cell(value));
        let epoch = [epoch.epoch.to_string()];
        writer.write_record(epoch.iter().chain(&accuracy).chain(&drift))?;
    }
    writer.into_inner().map_err(csv::IntoInnerError::into_error)
}

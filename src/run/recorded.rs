//! All files of a finished run, read for reports and exports.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    Environment, EpochRecord, FactResult, RunResult,
    reader::{parse_toml, read_json, read_jsonl, read_text},
};
use crate::{Error, Result};

/// A finished run as recorded in its directory.
#[derive(Clone, Debug)]
pub struct RecordedRun {
    /// The run directory.
    pub dir: PathBuf,
    /// `result.json`.
    pub result: RunResult,
    /// `facts.jsonl`.
    pub facts: Vec<FactResult>,
    /// The evaluations in `metrics.jsonl`.
    pub epochs: Vec<EpochRecord>,
    /// `config.toml`, as text.
    pub config_text: String,
    /// `config.toml`, parsed.
    pub config: toml::Table,
    /// `environment.json`.
    pub environment: Environment,
}

impl RecordedRun {
    /// Reads the run directory `dir`.
    ///
    /// # Errors
    /// [`Error::Input`] naming the file and line that is missing or broken.
    pub fn read(dir: &Path) -> Result<Self> {
        if !dir.join("config.toml").exists() && !dir.join("result.json").exists() {
            return Err(not_a_run(dir));
        }
        // A run writes result.json last. It is read first, so that an unfinished run is reported as such.
        let result = read_json(&dir.join("result.json"))?;
        let config_path = dir.join("config.toml");
        let config_text = read_text(&config_path)?;
        Ok(Self {
            dir: dir.to_owned(),
            result,
            facts: read_jsonl(&dir.join("facts.jsonl"))?,
            epochs: EpochRecord::from_metrics(&read_jsonl(&dir.join("metrics.jsonl"))?),
            config: parse_toml(&config_path, &config_text)?,
            config_text,
            environment: read_json(&dir.join("environment.json"))?,
        })
    }

    /// Reads several run directories.
    ///
    /// # Errors
    /// Those of [`RecordedRun::read`]; [`Error::Input`] for an empty list.
    pub fn read_all(dirs: &[PathBuf]) -> Result<Vec<Self>> {
        if dirs.is_empty() {
            return Err(Error::input_hint(
                "no run directory given",
                "name one or more: `unforget report runs/p17 --out report.html`",
            ));
        }
        dirs.iter().map(|dir| Self::read(dir)).collect()
    }
}

/// The run directories in `dir`, and in the directories in it.
fn runs_inside(dir: &Path) -> Vec<String> {
    let is_run = |path: &PathBuf| path.join("config.toml").is_file();
    let mut runs = Vec::new();
    for path in entries(dir) {
        if is_run(&path) {
            runs.push(path);
        } else {
            runs.extend(entries(&path).filter(is_run));
        }
    }
    runs.sort();
    runs.iter().map(|run| run.display().to_string()).collect()
}

/// The paths in `dir`; none where it cannot be read.
fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}

/// Whether `dir` contains run directories.
pub fn contains_runs(dir: &Path) -> bool {
    !runs_inside(dir).is_empty()
}

/// The error for a directory that is not a run; it names the runs inside, where there are some.
pub fn not_a_run(dir: &Path) -> Error {
    let mut runs = runs_inside(dir);
    let message = if dir.exists() {
        format!(
            "{} is not a run directory: it has no config.toml",
            dir.display()
        )
    } else {
        format!("{}: there is no such run directory", dir.display())
    };
    if runs.is_empty() {
        return Error::input_hint(
            message,
            "name a directory written by `unforget tune` or `unforget demo`",
        );
    }
    let hidden = runs.len().saturating_sub(MAX_LISTED);
    runs.truncate(MAX_LISTED);
    let more = match hidden {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    Error::input_hint(
        message,
        format!("it contains runs: {}{more}", runs.join(" ")),
    )
}

/// Runs listed in a message.
const MAX_LISTED: usize = 8;

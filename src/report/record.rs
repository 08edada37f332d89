//! A recorded run: the files of a run directory that the page tells about.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::{
    Error, Result,
    run::{EpochRecord, FactResult, RunResult},
};

/// What a finished run left behind.
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
    /// `config.toml`, as written.
    pub config_text: String,
    /// `config.toml`, read.
    pub config: toml::Table,
    /// `environment.json`.
    pub environment: serde_json::Value,
}

/// Reads run directories.
///
/// # Errors
/// [`Error::Input`] naming file and line of what is missing or broken.
pub fn read_runs(dirs: &[PathBuf]) -> Result<Vec<RecordedRun>> {
    if dirs.is_empty() {
        return Err(Error::input_hint(
            "no run directory was given",
            "name one or more: `unforget report runs/p17 --out report.html`",
        ));
    }
    dirs.iter().map(|dir| read_run(dir)).collect()
}

fn read_run(dir: &Path) -> Result<RecordedRun> {
    if !dir.is_dir() {
        return Err(Error::input_hint(
            format!("{} is not a run directory", dir.display()),
            "name a directory that `unforget tune` or `unforget demo` wrote",
        ));
    }
    // First the file that a run writes last, so that an unfinished run is told as such.
    let result_path = dir.join("result.json");
    let result = parse(&result_path, &text(&result_path)?, 1)?;
    let facts_path = dir.join("facts.jsonl");
    let facts = rows(&facts_path)?;
    let epochs = EpochRecord::from_metrics(&rows(&dir.join("metrics.jsonl"))?);
    let config_path = dir.join("config.toml");
    let config_text = text(&config_path)?;
    let config = toml::from_str(&config_text).map_err(|e| {
        let start = e.span().map_or(0, |span| span.start);
        let line = 1 + config_text[..start].matches('\n').count();
        broken(&config_path, line, e.message())
    })?;
    let environment_path = dir.join("environment.json");
    let environment = parse(&environment_path, &text(&environment_path)?, 1)?;
    Ok(RecordedRun {
        dir: dir.to_owned(),
        result,
        facts,
        epochs,
        config_text,
        config,
        environment,
    })
}

fn text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|source| {
        if source.kind() != std::io::ErrorKind::NotFound {
            return Error::io("read", path)(source);
        }
        let run = path.parent().unwrap_or(path).display();
        Error::input_hint(
            format!("{} is missing", path.display()),
            format!("a run that was stopped is finished by `unforget resume {run}`"),
        )
    })?;
    String::from_utf8(bytes).map_err(|e| {
        let start = e.utf8_error().valid_up_to();
        let line = 1 + String::from_utf8_lossy(&e.as_bytes()[..start])
            .matches('\n')
            .count();
        broken(path, line, "not UTF-8")
    })
}

/// The rows of a JSONL file; empty lines are passed over.
fn rows<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    text(path)?
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(i, line)| parse(path, line, i + 1))
        .collect()
}

/// `json`, which starts on `first_line` of the file.
fn parse<T: DeserializeOwned>(path: &Path, json: &str, first_line: usize) -> Result<T> {
    serde_json::from_str(json).map_err(|e| {
        let message = e.to_string();
        let place = format!(" at line {} column {}", e.line(), e.column());
        let message = message.strip_suffix(&place).unwrap_or(&message);
        broken(path, first_line + e.line().saturating_sub(1), message)
    })
}

fn broken(path: &Path, line: usize, message: &str) -> Error {
    Error::input_hint(
        format!("{}, line {line}: {message}", path.display()),
        "the file was cut or edited after the run; run `unforget tune` with its config.toml again",
    )
}

//! Reads the files of a run directory. Every error names the file and, for a file that does not parse, the line.

use std::{fs, io::ErrorKind, path::Path};

use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// The text of a file that a finished run has.
///
/// # Errors
/// [`Error::Input`] if it is missing or not UTF-8; [`Error::Io`] if it cannot be read.
pub(super) fn read_text(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(|source| {
        if source.kind() != ErrorKind::NotFound {
            return Error::io("read", path)(source);
        }
        let run = path.parent().unwrap_or(path).display();
        Error::input_hint(
            format!("{} is missing", path.display()),
            format!("if the run was interrupted, complete it with `unforget resume {run}`; if it was copied, copy this file, too"),
        )
    })?;
    String::from_utf8(bytes).map_err(|e| {
        let valid = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = 1 + valid.split(|byte| *byte == b'\n').skip(1).count();
        broken(path, line, "not UTF-8")
    })
}

/// The value in a JSON file.
///
/// # Errors
/// [`Error::Input`] if it is missing or does not parse.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    parse(path, &read_text(path)?, 1)
}

/// The rows of a JSONL file; empty lines are skipped.
///
/// # Errors
/// [`Error::Input`] if it is missing or a line does not parse.
pub(super) fn read_jsonl<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    read_text(path)?
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(i, line)| parse(path, line, i + 1))
        .collect()
}

/// Parses `text`, which is the TOML file at `path`.
///
/// # Errors
/// [`Error::Input`] if it does not parse.
pub(super) fn parse_toml(path: &Path, text: &str) -> Result<toml::Table> {
    toml::from_str(text).map_err(|e| {
        let start = e.span().map_or(0, |span| span.start);
        let line = 1 + text[..start].matches('\n').count();
        broken(path, line, e.message())
    })
}

/// Parses `json`, which starts on line `first_line` of the file.
fn parse<T: DeserializeOwned>(path: &Path, json: &str, first_line: usize) -> Result<T> {
    serde_json::from_str(json).map_err(|e| {
        let message = e.to_string();
        let position = format!(" at line {} column {}", e.line(), e.column());
        let message = message.strip_suffix(&position).unwrap_or(&message);
        broken(path, first_line + e.line().saturating_sub(1), message)
    })
}

fn broken(path: &Path, line: usize, message: &str) -> Error {
    Error::input_hint(
        format!("{}, line {line}: {message}", path.display()),
        "the file is truncated, was edited, or is from another version; repeat the run with `unforget tune` and its config.toml",
    )
}

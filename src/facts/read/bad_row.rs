//! Rows that cannot be read.

use std::{fmt, sync::Arc};

use super::super::fact::Location;
use crate::Error;

/// The longest row that is read, in bytes. A longer row means a broken file.
pub(super) const MAX_ROW_BYTES: usize = 1 << 20;

/// How many broken rows a note lists; the rest is counted.
const MAX_LISTED: usize = 20;

/// A row that cannot be read, and why.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadRow {
    pub(super) line: usize,
    pub(super) field: Option<&'static str>,
    pub(super) reason: String,
}

impl BadRow {
    /// A row that is broken as a whole.
    pub(super) fn row(line: usize, reason: impl Into<String>) -> Self {
        Self {
            line,
            field: None,
            reason: reason.into(),
        }
    }

    /// A row with one broken field.
    pub(super) fn field(line: usize, field: &'static str, reason: impl Into<String>) -> Self {
        Self {
            line,
            field: Some(field),
            reason: reason.into(),
        }
    }

    /// A row of more than [`MAX_ROW_BYTES`].
    pub(super) fn too_long(line: usize, bytes: usize) -> Self {
        let reason = format!("the row has {bytes} bytes; at most {MAX_ROW_BYTES} are allowed");
        Self::row(line, reason)
    }
}

impl fmt::Display for BadRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(field) = self.field {
            write!(f, "field `{field}` ")?;
        }
        f.write_str(&self.reason)
    }
}

/// The error that refuses a file: its first broken row, and how many more there are. `has_good`: it has other rows too.
pub(super) fn bad_rows_error(file: &Arc<str>, bad: &[BadRow], has_good: bool) -> Error {
    let more = match bad.len() - 1 {
        0 => String::new(),
        1 => " (and 1 more broken row)".into(),
        n => format!(" (and {n} more broken rows)"),
    };
    Error::input_hint(
        format!("{}: {}{more}", location(file, bad[0].line), bad[0]),
        if has_good {
            "fix the file, or skip broken rows with --skip-bad-rows"
        } else {
            "fix the file: no row of it can be read"
        },
    )
}

/// The notes about broken rows that were skipped.
pub(super) fn bad_rows_notes(file: &Arc<str>, bad: &[BadRow]) -> Vec<String> {
    if bad.is_empty() {
        return vec![];
    }
    let rows = if bad.len() == 1 { "row" } else { "rows" };
    let mut notes = vec![format!("{file}: {} broken {rows} skipped", bad.len())];
    notes.extend(
        bad.iter()
            .take(MAX_LISTED)
            .map(|b| format!("{}: {b}", location(file, b.line))),
    );
    if bad.len() > MAX_LISTED {
        notes.push(format!(
            "{file}: {} more broken rows are not listed",
            bad.len() - MAX_LISTED
        ));
    }
    notes
}

fn location(file: &Arc<str>, line: usize) -> Location {
    Location {
        file: file.clone(),
        line,
    }
}

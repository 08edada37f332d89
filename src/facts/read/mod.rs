//! Reads fact files. Each format gives [`RawFact`](raw_fact::RawFact)s, which become facts in one place.
//!
//! From bottom to top: `source` (files) and `columns`, `bad_row`, `json`, `records`, `raw_fact`, `table` and `parquet`, `rows` (any
//! format as JSON), `entity_questions` and `texts`; `dedup` compares facts, `missing` counts values that stand for none,
//! and `rare_relations` finds misspelt ones.

mod bad_row;
mod columns;
mod dedup;
mod entity_questions;
mod json;
mod missing;
mod parquet;
mod rare_relations;
mod raw_fact;
mod records;
mod rows;
mod source;
mod table;
mod texts;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use serde_json::Value;
use sha2::{Digest, Sha256};

use self::{
    bad_row::{BadRow, bad_rows_error, bad_rows_notes},
    columns::name_list,
    dedup::Deduplicator,
    json::scalar,
    missing::MissingMarks,
    rare_relations::RelationCounts,
    raw_fact::{RawFact, RawFacts},
    rows::read_rows,
    source::{Format, Source},
};
use super::fact::{Fact, Location};
use crate::{Error, Result};

pub use dedup::drop_contradicted;
pub use source::{PACK, ReadOptions, resolve_files};
pub use texts::{Chat, Message, Text, TextKind, TextSet, is_text_file, read_texts};

/// Facts and notes about reading them.
#[derive(Clone, Debug, Default)]
pub struct FactSet {
    /// The facts, in the order of the files.
    pub facts: Vec<Fact>,
    /// Skipped rows and other remarks, one line each.
    pub notes: Vec<String>,
    /// SHA-256 (hex) of the files' bytes, in order.
    pub checksum: String,
}

/// The result of [`read_each`].
#[derive(Clone, Debug, Default)]
pub struct ReadSummary {
    /// Number of facts.
    pub facts: usize,
    /// As in [`FactSet`].
    pub notes: Vec<String>,
    /// As in [`FactSet`].
    pub checksum: String,
}

/// Reads fact files into one set; `pack:world` is the built-in pack.
///
/// The extension gives the format: `.tsv`, `.csv`, `.jsonl` (or `.ndjson`), `.parquet`, or `.json` with an array of rows as in JSONL
/// or in `EntityQuestions`; each may be compressed (`.gz`, `.zst`).
///
/// ```
/// use unforget::facts::{self, ReadOptions};
///
/// let set = facts::read(&["pack:world".into()], ReadOptions::default())?;
/// assert!(set.facts.iter().any(|fact| fact.question.contains(&fact.subject)));
/// # Ok::<(), unforget::Error>(())
/// ```
///
/// # Errors
/// [`crate::Error::Input`] naming file, line and field of a broken row, or both lines of a contradiction.
pub fn read(files: &[PathBuf], options: ReadOptions) -> Result<FactSet> {
    let mut facts = Vec::new();
    let summary = read_each(files, options, |fact| {
        facts.push(fact);
        Ok(())
    })?;
    Ok(FactSet {
        facts,
        notes: summary.notes,
        checksum: summary.checksum,
    })
}

/// Reads fact files as [`read`] does, but calls `on_fact` for each fact and keeps none of them.
///
/// Memory: the largest file, and for each fact a hash of its question and its location. `on_fact` may have been called for some
/// facts when a later row is refused.
///
/// # Errors
/// Those of [`read`] and of `on_fact`.
pub fn read_each(
    files: &[PathBuf],
    options: ReadOptions,
    mut on_fact: impl FnMut(Fact) -> Result<()>,
) -> Result<ReadSummary> {
    let mut dedup = Deduplicator::default();
    let mut relations = RelationCounts::default();
    let mut notes = Vec::new();
    let mut digest = Sha256::new();
    for path in files {
        let source = Source::read(path)?;
        digest.update(&source.bytes);
        let raw = raw_facts(&source, options)?;
        let about_columns = raw.notes.join("; ");
        notes.extend(raw.notes);
        let mut bad: Vec<BadRow> = Vec::new();
        let mut has_good = false;
        let mut other_separators = 0;
        let (mut missing, mut splits) = (MissingMarks::default(), BTreeSet::new());
        for row in raw.rows {
            let row = row?.and_then(|row| {
                other_separators += usize::from(row.has_other_separator);
                row.into_fact(&source.name)
            });
            match row {
                Ok(fact) => {
                    has_good = true;
                    missing.count_fact(&fact);
                    relations.count(&fact);
                    if let Some(split) = &fact.split
                        && !splits.contains(split)
                    {
                        splits.insert(split.clone());
                    }
                    let is_new = dedup.is_new(&fact, raw.skip_contradictions);
                    if is_new.map_err(|e| with_separators(e, other_separators))? {
                        on_fact(fact)?;
                    }
                }
                Err(reason) => bad.push(reason),
            }
        }
        if !bad.is_empty() && !options.skip_bad_rows {
            let error = bad_rows_error(&source.name, &bad, has_good);
            return Err(if has_good || about_columns.is_empty() {
                error
            } else {
                with_advice(error, &about_columns)
            });
        }
        notes.extend(bad_rows_notes(&source.name, &bad));
        notes.extend(missing.note(&source.name));
        if splits.len() > 1 {
            notes.push(format!(
                "{}: the column `split` is not used: the rows of all splits are read ({}); a file for each says which are learned, kept and held out",
                source.name,
                name_list(splits.iter().map(String::as_str)),
            ));
        }
        if other_separators > 0 {
            notes.push(format!(
                "{}: `aliases` are separated by `|`, or are a list; {other_separators} with commas or semicolons {} taken for one alias",
                source.name,
                if other_separators == 1 { "is" } else { "are" },
            ));
        }
    }
    notes.extend(relations.notes());
    notes.extend(dedup.notes());
    if dedup.fact_count() == 0 && !files.is_empty() {
        let names: Vec<_> = files.iter().map(|f| f.display().to_string()).collect();
        let reason = if notes.is_empty() {
            String::new()
        } else {
            format!(" ({})", notes.join("; "))
        };
        let message = format!("no fact in {}{reason}", names.join(", "));
        return Err(Error::input(message));
    }
    Ok(ReadSummary {
        facts: dedup.fact_count(),
        notes,
        checksum: format!("{:x}", digest.finalize()),
    })
}

/// An error with the advice that lists of aliases may be the cause.
fn with_separators(error: Error, other_separators: usize) -> Error {
    if other_separators == 0 {
        return error;
    }
    let advice = "aliases are separated by `|`, not by commas or semicolons";
    with_advice(error, advice)
}

/// An error whose hint ends with `advice`.
fn with_advice(error: Error, advice: &str) -> Error {
    match error {
        Error::Input {
            message,
            hint: Some(hint),
        } => Error::input_hint(message, format!("{advice}; {hint}")),
        other => other,
    }
}

/// The rows of a file of facts.
fn raw_facts(source: &Source, options: ReadOptions) -> Result<RawFacts<'_>> {
    let name = &*source.name;
    let bytes = source.content();
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Error::input_hint(
            format!("{name} is empty"),
            match source.format() {
                Format::Table(_) => {
                    "a table begins with a line of column names: subject, relation, object"
                }
                _ => {
                    r#"a row is an object such as {"subject": "Rome", "relation": "P17", "object": "Italy"}"#
                }
            },
        ));
    }
    if let Format::Table(separator) = source.format() {
        return table::read_facts(name, bytes, separator);
    }
    let mut rows = read_rows(source)?.peekable();
    let first = match rows.peek() {
        Some(Ok((_, Ok(value)))) => Some(value),
        _ => None,
    };
    if let Some(kind) = first.and_then(texts::text_kind) {
        return Err(Error::input_hint(
            format!("{name} has {kind} rows; facts are needed here"),
            "a fact has the fields subject, relation and object",
        ));
    }
    if first.is_some_and(|row| row.get(columns::ANSWERS).is_some()) {
        return entity_questions::read(name, rows, options.multiple_answers);
    }
    let is_lines = source.format() == Format::JsonLines;
    Ok(RawFacts::new(rows.map(move |row| {
        let (line, value) = row?;
        Ok(value.and_then(|value| {
            let read = RawFact::from_json(line, &value);
            read.map_err(|mut bad| {
                if is_lines && value.is_array() {
                    bad.reason += "; a file with one JSON array of rows is named .json";
                }
                bad
            })
        }))
    })))
}

/// The texts in these fields of every row of a file, with the place of the row. The file is read as one of training texts is; it may
/// also be standard input (`-`) or a pipe, with JSON lines.
///
/// # Errors
/// [`Error::Input`] when the file cannot be read, or naming file, line and field of the first row that lacks one. The hint shows
/// `example`, a row.
pub fn read_fields<const N: usize>(
    file: &Path,
    fields: [&'static str; N],
    example: &str,
) -> Result<Vec<(Location, [String; N])>> {
    let source = Source::read_once(file)?;
    let hint = || format!("each row is an object such as {example}");
    let mut texts = Vec::new();
    for row in read_rows(&source)? {
        let (line, row) = row?;
        let read = row.and_then(|row| {
            if !row.is_object() {
                let reason = format!("the row is {}; an object is needed", json::type_name(&row));
                return Err(BadRow::row(line, reason));
            }
            let mut found = [const { String::new() }; N];
            for (text, field) in found.iter_mut().zip(fields) {
                let Some(value) = row.get(field) else {
                    let reason = format!("is missing{}", columns::foreign_columns(&row));
                    return Err(BadRow::field(line, field, reason));
                };
                *text = scalar(line, field, value)?;
            }
            Ok(found)
        });
        let location = Location {
            file: source.name.clone(),
            line,
        };
        match read {
            Ok(found) => texts.push((location, found)),
            Err(bad) => return Err(Error::input_hint(format!("{location}: {bad}"), hint())),
        }
    }
    if texts.is_empty() {
        return Err(Error::input_hint(
            format!("{} has no rows", source.name),
            hint(),
        ));
    }
    Ok(texts)
}

/// A row of a table: the column name and text of each cell, in the table's order.
pub(super) type Cells = Vec<(String, String)>;

/// The rows of a table with any columns; `None` for other documents.
///
/// # Errors
/// [`Error::Input`] when the file cannot be read, or doesn't match its extension.
pub(super) fn table_rows(path: &Path) -> Result<Option<Vec<Cells>>> {
    // The Parquet reader decodes the columns of facts and texts only.
    if matches!(Format::of(path), None | Some(Format::Parquet)) {
        return Ok(None);
    }
    let source = Source::read(path)?;
    let rows = read_rows(&source)?.map(|row| {
        let (_, row) = row?;
        let row = row.map_err(|bad| bad_rows_error(&source.name, &[bad], false))?;
        Ok(cells(&row))
    });
    rows.collect::<Result<_>>().map(Some)
}

/// The fields of an object that are texts or numbers.
fn cells(row: &Value) -> Cells {
    let fields = row.as_object().into_iter().flatten();
    let cells = fields.filter_map(|(name, value)| match value {
        Value::String(text) => Some((name.clone(), text.clone())),
        Value::Number(number) => Some((name.clone(), number.to_string())),
        _ => None,
    });
    cells.collect()
}

/// Whether a row has the columns that a fact needs.
pub(super) fn has_fact_columns(row: &[(String, String)]) -> bool {
    let has = |column: &&str| row.iter().any(|(name, _)| name == column);
    columns::REQUIRED_COLUMNS.iter().all(has) || columns::QUESTION_AND_ANSWER.iter().all(has)
}

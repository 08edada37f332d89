//! From files to facts: every format becomes [`to_row::RawFact`]s, and rows become facts in one place.

mod dedup;
mod entity_questions;
mod json;
mod row;
mod table;
mod texts;
mod values;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use sha2::{Digest, Sha256};

use self::{dedup::Deduplicator, row::BadRow, values::read_rows};
use super::fact::Fact;
use crate::{Error, Result, error::closest_match, hub};

pub use dedup::drop_contradicted;
pub use texts::{Message, Text, TextKind, TextSet, is_text_file, read_texts};

/// The name under which the built-in facts are read.
pub const PACK: &str = "pack:world";

/// The built-in facts; `data/README.md` names their sources and licences.
const PACK_TSV: &str = include_str!("../../../data/world.tsv");

/// The longest row that is read, in bytes: a longer line is no fact but a broken file.
const MAX_ROW_BYTES: usize = 1 << 20;

/// What a reader may do with bad rows.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadOptions {
    /// Count and list broken rows instead of refusing the file.
    pub skip_bad_rows: bool,
    /// Keep `EntityQuestions` rows with several answers (the first is the object, the others aliases).
    pub multiple_answers: bool,
}

/// Facts as read, and what the user should know about the reading.
#[derive(Clone, Debug, Default)]
pub struct FactSet {
    /// The facts, in the order of the files.
    pub facts: Vec<Fact>,
    /// Rows left out, counted, and why; one line each.
    pub notes: Vec<String>,
    /// SHA-256 (hex) of the files' bytes, in order.
    pub checksum: String,
}

/// What the user should know about facts that were handed on as they were read.
#[derive(Clone, Debug, Default)]
pub struct ReadSummary {
    /// How many they were.
    pub facts: usize,
    /// As in [`FactSet`].
    pub notes: Vec<String>,
    /// As in [`FactSet`].
    pub checksum: String,
}

/// What one file holds: its rows in order, made as they are asked for, broken ones among them; and notes about the whole.
struct Rows<'b> {
    /// An error outside is one of the file, after which there is no row.
    rows: Box<dyn Iterator<Item = Result<Result<row::RawFact, BadRow>>> + 'b>,
    notes: Vec<String>,
    /// Contradictions are left out and counted, not refused: the data set is known to hold some.
    skip_contradictions: bool,
}

impl<'b> Rows<'b> {
    /// Rows without notes, whose contradictions are refused.
    fn new(rows: impl Iterator<Item = Result<Result<row::RawFact, BadRow>>> + 'b) -> Self {
        Self {
            rows: Box::new(rows),
            notes: Vec::new(),
            skip_contradictions: false,
        }
    }

    /// All rows of a file that can be read.
    #[cfg(test)]
    fn collect_rows(self) -> Vec<Result<row::RawFact, BadRow>> {
        self.rows.collect::<Result<_>>().unwrap()
    }
}

/// Reads fact files (any format; `pack:world` is the built-in pack) into one set.
///
/// The format is told by the extension: `.tsv`, `.csv`, `.jsonl` (or `.ndjson`), `.parquet`, and `.json`, an array of rows as in
/// JSONL or `EntityQuestions` as it is.
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
    let read = read_each(files, options, |fact| {
        facts.push(fact);
        Ok(())
    })?;
    Ok(FactSet {
        facts,
        notes: read.notes,
        checksum: read.checksum,
    })
}

/// As [`is_read`], but hands every fact to `take` as soon as it is read and holds none: of each row 16 bytes that tell its question and
/// where it stands remain, and of each answer one copy. A `.json` file is an array, and in memory whole.
///
/// A row may be refused when those before it were handed on.
///
/// # Errors
/// As [`is_read`], and what `take` returns.
pub fn read_each(
    files: &[PathBuf],
    options: ReadOptions,
    mut on_fact: impl FnMut(Fact) -> Result<()>,
) -> Result<ReadSummary> {
    let mut dedup = Deduplicator::default();
    let mut notes = Vec::new();
    let mut digest = Sha256::new();
    for path in files {
        let (name, bytes) = read_bytes(path)?;
        digest.update(&bytes);
        let found = parse(path, &name, &bytes, options)?;
        notes.extend(found.notes);
        let mut bad: Vec<BadRow> = Vec::new();
        for row in found.rows {
            match row?.and_then(|row| row.into_fact(&name)) {
                Ok(fact) => {
                    if dedup.is_new(&fact, found.skip_contradictions)? {
                        on_fact(fact)?;
                    }
                }
                Err(reason) => bad.push(reason),
            }
        }
        if !bad.is_empty() && !options.skip_bad_rows {
            return Err(row::bad_rows_error(&name, &bad));
        }
        notes.extend(row::bad_rows_notes(&name, &bad));
    }
    notes.extend(dedup.notes());
    if dedup.fact_count() == 0 && !files.is_empty() {
        let names: Vec<_> = files.iter().map(|f| f.display().to_string()).collect();
        let why = if notes.is_empty() {
            String::new()
        } else {
            format!(" ({})", notes.join("; "))
        };
        return Err(Error::input(format!(
            "no fact in {}{why}",
            names.join(", ")
        )));
    }
    Ok(ReadSummary {
        facts: dedup.fact_count(),
        notes,
        checksum: format!("{:x}", digest.finalize()),
    })
}

/// The files that FACTS arguments stand for: an `organisation/name` that is no file here is a data set of the hub, whose files are
/// brought; anything else is itself.
///
/// # Errors
/// When the hub has no such data set, or it cannot be brought.
pub fn resolve_files(arguments: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in arguments {
        match path
            .to_str()
            .filter(|name| !path.exists() && is_hub_id(name))
        {
            Some(id) => files.extend(hub::dataset_files(id)?),
            None => files.push(path.clone()),
        }
    }
    Ok(files)
}

/// Whether a name that is no file can be meant as one of the hub's: two parts, and no extension that a file of rows has.
fn is_hub_id(name: &str) -> bool {
    let part = |part: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(known)
    };
    let parts: Vec<&str> = name.split('/').collect();
    let extension = extension_of(Path::new(name));
    let here = parts.len() == 2 && Path::new(parts[0]).is_dir();
    parts.len() == 2 && !here && parts.into_iter().all(part) && !EXTENSIONS.contains(&&*extension)
}

/// The name for messages and the bytes of one FACTS argument.
fn read_bytes(path: &Path) -> Result<(Arc<str>, Vec<u8>)> {
    let name: Arc<str> = path.display().to_string().into();
    if name.starts_with("pack:") {
        return if &*name == PACK {
            Ok((name, PACK_TSV.as_bytes().to_vec()))
        } else {
            Err(Error::input_hint(
                format!("there is no built-in pack `{name}`"),
                format!("the built-in pack is called `{PACK}`"),
            ))
        };
    }
    let bytes = fs::read(path).map_err(|e| {
        Error::input_hint(
            format!("cannot read the facts `{name}`: {e}"),
            format!(
                "give a .tsv, .csv, .jsonl, .json or .parquet file, or `{PACK}`, the built-in facts"
            ),
        )
    })?;
    Ok((name, bytes))
}

/// The bytes behind a byte order mark, if there is one.
fn strip_bom(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// Parses `bytes` by the extension of `path`.
fn parse<'b>(
    path: &Path,
    name: &'b str,
    bytes: &'b [u8],
    options: ReadOptions,
) -> Result<Rows<'b>> {
    let bytes = strip_bom(bytes);
    if name == PACK {
        return table::read(name, bytes, table::Format::Tsv);
    }
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Error::input_hint(
            format!("{name} is empty"),
            "a table begins with a line of column names: subject, relation, object",
        ));
    }
    let values = match &*extension_of(path) {
        "tsv" | "tab" => return table::read(name, bytes, table::Format::Tsv),
        "csv" => return table::read(name, bytes, table::Format::Csv),
        _ => read_rows(name, &extension_of(path), bytes)?,
    };
    let Some(values) = values else {
        let other = extension_of(path);
        let meant = closest_match(&other, EXTENSIONS)
            .map_or_else(String::new, |k| format!("; did you mean `.{k}`?"));
        return Err(Error::input_hint(
            format!(
                "{name}: the format of facts is told by the extension, and `.{other}` is none that is known"
            ),
            format!("known are .tsv, .csv, .jsonl, .json and .parquet{meant}"),
        ));
    };
    let mut values = values.peekable();
    let first = match values.peek() {
        Some(Ok((_, Ok(value)))) => Some(value),
        _ => None,
    };
    if let Some(kind) = first.and_then(texts::text_kind) {
        return Err(Error::input_hint(
            format!("{name}: these are {kind} rows, and facts are needed here"),
            "a fact has the fields subject, relation and object",
        ));
    }
    if first.is_some_and(|row| row.get("answers").is_some()) {
        return entity_questions::read(path, name, values, options);
    }
    Ok(json::read_facts(values))
}

/// The extensions of the formats, without the dot.
const EXTENSIONS: [&str; 7] = ["tsv", "tab", "csv", "jsonl", "ndjson", "json", "parquet"];

/// What stands behind the last dot of a file's name, in lower case.
fn extension_of(path: &Path) -> String {
    let extension = path.extension().unwrap_or_default();
    extension.to_string_lossy().to_ascii_lowercase()
}

/// A row of a table: each cell with its column's name, in the table's order.
pub(super) type Cells = Vec<(String, String)>;

/// The rows of a table whatever its columns. None where the file is no table.
///
/// # Errors
/// [`Error::Input`] when the file cannot be read, or is not what its extension says.
pub(super) fn table_rows(path: &Path) -> Result<Option<Vec<Cells>>> {
    let extension = extension_of(path);
    // Of a Parquet file the columns of facts and texts alone are read.
    if !EXTENSIONS.contains(&&*extension) || extension == "parquet" {
        return Ok(None);
    }
    let (name, bytes) = read_bytes(path)?;
    let rows = read_rows(&name, &extension, strip_bom(&bytes))?;
    let rows = rows.into_iter().flatten().map(|row| {
        let (_, row) = row?;
        let row = row.map_err(|bad| row::bad_rows_error(&name, &[bad]))?;
        Ok(json::scalar_fields(&row))
    });
    rows.collect::<Result<_>>().map(Some)
}

/// Whether a row has all that a fact needs.
pub(super) fn has_fact_columns(row: &[(String, String)]) -> bool {
    let has = |column: &&str| row.iter().any(|(name, _)| name == column);
    row::REQUIRED_COLUMNS.iter().all(has)
}

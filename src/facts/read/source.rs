//! Fact files: their names, bytes and formats.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{Error, Result, error::closest_match, hub};

/// The name of the built-in facts.
pub const PACK: &str = "pack:world";

/// The built-in facts; `data/README.md` lists their sources and licences.
const PACK_TSV: &str = include_str!("../../../data/world.tsv");

/// How a reader treats rows that are broken or ambiguous.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadOptions {
    /// Count and list broken rows instead of refusing the file.
    pub skip_bad_rows: bool,
    /// Keep `EntityQuestions` rows with several answers: the first is the object, the others are aliases.
    pub multiple_answers: bool,
}

/// The format of a file of rows, given by its extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// A table with tabs or commas.
    Table(Separator),
    /// One JSON object a line.
    JsonLines,
    /// A JSON array.
    Json,
    /// Apache Parquet.
    Parquet,
}

/// The separator of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Separator {
    /// TSV. A field is quoted only if quotes enclose all of it.
    Tab,
    /// CSV with quotes as in RFC 4180; a quoted field may span lines.
    Comma,
}

impl Format {
    const EXTENSIONS: [(&'static str, Self); 7] = [
        ("tsv", Self::Table(Separator::Tab)),
        ("tab", Self::Table(Separator::Tab)),
        ("csv", Self::Table(Separator::Comma)),
        ("jsonl", Self::JsonLines),
        ("ndjson", Self::JsonLines),
        ("json", Self::Json),
        ("parquet", Self::Parquet),
    ];

    /// The format of the file at `path`, if its extension is a known one.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let extension = extension(path);
        let mut known = Self::EXTENSIONS.into_iter();
        known
            .find(|(name, _)| *name == extension)
            .map(|(_, format)| format)
    }
}

/// The extension of a file in lower case, without the dot.
fn extension(path: &Path) -> String {
    let extension = path.extension().unwrap_or_default();
    extension.to_string_lossy().to_ascii_lowercase()
}

/// A file in memory.
pub(super) struct Source {
    /// The path as given, for messages.
    pub(super) name: Arc<str>,
    /// The whole file.
    pub(super) bytes: Vec<u8>,
    path: PathBuf,
}

impl Source {
    /// Reads the file at `path`, or the built-in facts.
    ///
    /// # Errors
    /// [`Error::Input`] when the file cannot be read.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let name: Arc<str> = path.display().to_string().into();
        let bytes = if &*name == PACK {
            PACK_TSV.as_bytes().to_vec()
        } else if name.starts_with("pack:") {
            return Err(Error::input_hint(
                format!("there is no built-in pack `{name}`"),
                format!("the built-in pack is `{PACK}`"),
            ));
        } else {
            fs::read(path).map_err(|e| {
                Error::input_hint(
                    format!("cannot read the facts `{name}`: {e}"),
                    format!(
                        "give a .tsv, .csv, .jsonl, .json or .parquet file, or `{PACK}`, the built-in facts"
                    ),
                )
            })?
        };
        Ok(Self {
            name,
            bytes,
            path: path.to_owned(),
        })
    }

    /// The file without a byte order mark.
    pub(super) fn content(&self) -> &[u8] {
        let bytes = &self.bytes[..];
        bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
    }

    /// The format of the file, if its extension is a known one.
    pub(super) fn format(&self) -> Option<Format> {
        if &*self.name == PACK {
            return Some(Format::Table(Separator::Tab));
        }
        Format::of(&self.path)
    }

    /// The error for a file whose extension is not a known one.
    pub(super) fn unknown_format(&self) -> Error {
        let extension = extension(&self.path);
        let known = Format::EXTENSIONS.map(|(name, _)| name);
        let suggestion = closest_match(&extension, known)
            .map_or_else(String::new, |k| format!("; did you mean `.{k}`?"));
        Error::input_hint(
            format!(
                "{}: the file extension gives the format, and `.{extension}` is not a known one",
                self.name
            ),
            format!("known extensions: .tsv, .csv, .jsonl, .json and .parquet{suggestion}"),
        )
    }
}

/// Resolves FACTS arguments to files: `organisation/name` that does not exist here is a data set of the hub, whose files are
/// downloaded; any other argument stays as it is.
///
/// # Errors
/// When the hub has no such data set, or the download fails.
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

/// Whether `name` can be a hub id: two parts, the first of which is not a directory here, and no extension of a file of rows.
fn is_hub_id(name: &str) -> bool {
    let is_part = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
    };
    let Some((organisation, repository)) = name.split_once('/') else {
        return false;
    };
    is_part(organisation)
        && is_part(repository)
        && !Path::new(organisation).is_dir()
        && Format::of(Path::new(name)).is_none()
}

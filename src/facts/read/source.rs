//! Fact files: their names, bytes and formats.

use std::{
    cell::Cell,
    fs,
    io::{self, Read},
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
    /// TSV, with quotes as in CSV.
    Tab,
    /// CSV with quotes as in RFC 4180; a quoted field may span lines.
    Comma,
}

impl Separator {
    /// The character.
    pub(super) const fn byte(self) -> u8 {
        match self {
            Self::Tab => b'\t',
            Self::Comma => b',',
        }
    }
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

    /// The format of the file at `path`, if its extension is a known one; `.gz` and `.zst` may follow it.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let extension = extension(&uncompressed_name(path));
        let mut known = Self::EXTENSIONS.into_iter();
        known
            .find(|(name, _)| *name == extension)
            .map(|(_, format)| format)
    }

    /// Its name in messages.
    const fn name(self) -> &'static str {
        match self {
            Self::Table(Separator::Tab) => "TSV",
            Self::Table(Separator::Comma) => "CSV",
            Self::JsonLines => "JSON lines",
            Self::Json => "JSON",
            Self::Parquet => "Parquet",
        }
    }
}

/// How a file is compressed, by its extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    Gzip,
    Zstd,
}

impl Compression {
    fn of(path: &Path) -> Option<Self> {
        match &*extension(path) {
            "gz" | "gzip" => Some(Self::Gzip),
            "zst" | "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    fn unpack(self, name: &str, bytes: &[u8]) -> Result<Vec<u8>> {
        let mut unpacked = Vec::new();
        let limit = MAX_UNPACKED_BYTES + 1;
        let read = match self {
            Self::Gzip => flate2::read::MultiGzDecoder::new(bytes)
                .take(limit)
                .read_to_end(&mut unpacked),
            Self::Zstd => zstd::stream::read::Decoder::new(bytes)
                .and_then(|decoder| decoder.take(limit).read_to_end(&mut unpacked)),
        };
        if unpacked.len() as u64 > MAX_UNPACKED_BYTES {
            return Err(Error::input(format!(
                "{name}: it unpacks to more than {MAX_UNPACKED_BYTES} bytes"
            )));
        }
        let kind = match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        };
        read.map_err(|e| {
            let found = content_kind(bytes).map_or_else(
                || format!("it is not {kind}, or not all of it is there ({e})"),
                |found| {
                    if found.starts_with(kind) {
                        format!("its {kind} data is broken or cut off ({e})")
                    } else {
                        format!("it is {found}, not {kind}")
                    }
                },
            );
            Error::input(format!("{name}: cannot unpack it: {found}"))
        })?;
        Ok(unpacked)
    }
}

/// More means a broken or hostile file.
const MAX_UNPACKED_BYTES: u64 = 1 << 33;

/// A path without `.gz` or `.zst`.
fn uncompressed_name(path: &Path) -> PathBuf {
    match Compression::of(path) {
        Some(_) => path.with_extension(""),
        None => path.to_owned(),
    }
}

/// The extension of a file in lower case, without the dot.
fn extension(path: &Path) -> String {
    let extension = path.extension().unwrap_or_default();
    extension.to_string_lossy().to_ascii_lowercase()
}

/// What a file is by its first bytes, with the advice for one that should be text.
fn content_kind(bytes: &[u8]) -> Option<&'static str> {
    const KINDS: [(&[u8], &str); 17] = [
        (b"\x1f\x8b", "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (
            b"PK\x03\x04",
            "a zip archive, such as an Excel file (.xlsx)",
        ),
        (b"\xd0\xcf\x11\xe0", "an old Excel or Word file"),
        (b"PAR1", "Parquet"),
        (b"ARROW1", "an Arrow file"),
        (b"BZh", "bzip2"),
        (b"\xfd7zXZ\x00", "xz"),
        (b"7z\xbc\xaf", "a 7z archive"),
        (b"%PDF", "a PDF"),
        (b"SQLite format 3", "an SQLite database"),
        (b"\x89HDF", "an HDF5 file"),
        (b"\x93NUMPY", "a NumPy array"),
        (b"version https://git-lfs", "a Git LFS pointer"),
        (b"<!DOCTYPE", "an HTML page"),
        (b"<!doctype", "an HTML page"),
        (b"<html", "an HTML page"),
    ];
    let magic = KINDS.iter().find(|(magic, _)| bytes.starts_with(magic));
    magic.map(|(_, kind)| *kind).or_else(|| {
        if bytes.starts_with(b"\xff\xfe\0\0") || bytes.starts_with(b"\0\0\xfe\xff") {
            Some("UTF-32")
        } else if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
            Some("UTF-16")
        } else {
            // Without a mark, every other byte of text in a Latin script is zero.
            let start = &bytes[..bytes.len().min(256)];
            let zeros = |odd: usize| {
                start
                    .iter()
                    .skip(odd)
                    .step_by(2)
                    .filter(|b| **b == 0)
                    .count()
            };
            let most = start.len() / 2 * 3 / 4;
            let is_wide = most > 2 && (zeros(0) >= most) != (zeros(1) >= most);
            is_wide.then_some("UTF-16")
        }
    })
}

/// A file in memory.
pub(super) struct Source {
    /// The path as given, for messages.
    pub(super) name: Arc<str>,
    /// The whole file, as it lies on the disk.
    pub(super) bytes: Vec<u8>,
    /// Its content, if it was compressed.
    unpacked: Option<Vec<u8>>,
    format: Format,
    /// Null fields that its rows were read without.
    pub(super) dropped_nulls: Cell<usize>,
}

impl Source {
    /// Reads the file at `path`, or the built-in facts.
    ///
    /// # Errors
    /// [`Error::Input`] when the file cannot be read, its extension is not a known one, or its content is something else.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let name: Arc<str> = path.display().to_string().into();
        if &*name == PACK {
            return Ok(Self {
                name,
                bytes: PACK_TSV.as_bytes().to_vec(),
                unpacked: None,
                format: Format::Table(Separator::Tab),
                dropped_nulls: Cell::default(),
            });
        }
        if name.starts_with("pack:") {
            return Err(Error::input_hint(
                format!("there is no built-in pack `{name}`"),
                format!("the built-in pack is `{PACK}`"),
            ));
        }
        if &*name == "-" {
            return Err(Error::input_hint(
                "rows are not read from standard input: the format is told by a file's extension",
                "save them in a file, such as facts.jsonl, and name it",
            ));
        }
        let format = match Format::of(path) {
            Some(format) => format,
            None if path.exists() && !path.is_dir() => return Err(unknown_format(path)),
            // That the file is missing is the better message.
            None => Format::JsonLines,
        };
        let is_pipe = fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir());
        if is_pipe {
            return Err(Error::input_hint(
                format!("{name} is a pipe or a device, which can be read only once"),
                "save the rows in a file, and name it",
            ));
        }
        let bytes = fs::read(path).map_err(|e| {
            Error::input_hint(
                format!("cannot read the facts `{name}`: {e}"),
                format!(
                    "give a .tsv, .csv, .jsonl, .json or .parquet file, or `{PACK}`, the built-in facts"
                ),
            )
        })?;
        Self::of_bytes(path, bytes, format)
    }

    /// As [`Self::read`], of a file that is read only once: it may be standard input (`-`) or a pipe. Without a known extension it
    /// holds JSON lines.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(super) fn read_once(path: &Path) -> Result<Self> {
        let bytes = if path == Path::new("-") {
            let mut bytes = Vec::new();
            io::stdin().read_to_end(&mut bytes).map(|_| bytes)
        } else {
            fs::read(path)
        };
        let bytes =
            bytes.map_err(|e| Error::input(format!("cannot read `{}`: {e}", path.display())))?;
        Self::of_bytes(path, bytes, Format::of(path).unwrap_or(Format::JsonLines))
    }

    /// The file at `path` with these bytes.
    fn of_bytes(path: &Path, bytes: Vec<u8>, format: Format) -> Result<Self> {
        let name: Arc<str> = path.display().to_string().into();
        let unpacked = Compression::of(path)
            .map(|compression| compression.unpack(&name, &bytes))
            .transpose()?;
        let source = Self {
            name,
            bytes,
            unpacked,
            format,
            dropped_nulls: Cell::default(),
        };
        source.check_content()?;
        Ok(source)
    }

    /// A note about null fields that its rows were read without.
    pub(super) fn nulls_note(&self) -> Option<String> {
        let nulls = self.dropped_nulls.get();
        (nulls > 0).then(|| {
            format!(
                "{}: {nulls} null {} within messages and tools {} left out: Arrow gives each struct the fields of all others",
                self.name,
                if nulls == 1 { "field" } else { "fields" },
                if nulls == 1 { "is" } else { "are" },
            )
        })
    }

    /// The content without a byte order mark.
    pub(super) fn content(&self) -> &[u8] {
        let bytes = self.unpacked.as_ref().unwrap_or(&self.bytes);
        bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes)
    }

    /// The format of the content.
    pub(super) const fn format(&self) -> Format {
        self.format
    }

    /// Refuses a content that is something else than the extension says.
    fn check_content(&self) -> Result<()> {
        let (name, format) = (&self.name, self.format.name());
        let content = self.content();
        let found = content_kind(content).or_else(|| {
            let is_parquet = self.format == Format::Parquet && !content.is_empty();
            (is_parquet && std::str::from_utf8(content).is_ok()).then_some("text")
        });
        let Some(found) = found else {
            return Ok(());
        };
        if self.format == Format::Parquet && found == "Parquet" {
            return Ok(());
        }
        let hint = match found {
            "gzip" => format!("call it `{name}.gz`"),
            "zstd" => format!("call it `{name}.zst`"),
            "Parquet" => "give it the extension .parquet".into(),
            "text" => "give it the extension of its format: .jsonl, .json, .csv or .tsv".into(),
            "UTF-16" | "UTF-32" => {
                "save it as UTF-8 (in Excel: \"CSV UTF-8\", not \"Unicode text\")".into()
            }
            "bzip2" | "xz" | "a 7z archive" => "unpack it first".into(),
            "a Git LFS pointer" => "get the file itself with `git lfs pull`".into(),
            "an HTML page" => "download the file itself, not the page that shows it".into(),
            _ if found.contains("Excel") => "save the table as CSV (UTF-8) or as Parquet".into(),
            _ => "give a .tsv, .csv, .jsonl, .json or .parquet file".to_owned(),
        };
        Err(Error::input_hint(
            format!("{name}: the content is {found}, not {format} as the extension says"),
            hint,
        ))
    }
}

/// U+FEFF in UTF-8.
pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The error for a file whose extension is not a known one.
fn unknown_format(path: &Path) -> Error {
    let plain = uncompressed_name(path);
    let extension = extension(&plain);
    let known = Format::EXTENSIONS.map(|(name, _)| name);
    let suggestion = closest_match(&extension, known)
        .map_or_else(String::new, |k| format!("; did you mean `.{k}`?"));
    let fault = match &*extension {
        "" => "the file has no extension, which would tell the format".to_owned(),
        "xlsx" | "xls" | "ods" => format!("`.{extension}` is a spreadsheet, which is not read"),
        "bz2" | "xz" | "zip" | "7z" => format!("`.{extension}` is not unpacked"),
        _ => format!("the file extension gives the format, and `.{extension}` is not a known one"),
    };
    Error::input_hint(
        format!("{}: {fault}", path.display()),
        format!(
            "known extensions: .tsv, .csv, .jsonl, .json and .parquet, each also with .gz or .zst{suggestion}"
        ),
    )
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

//! The header of a GGUF file: metadata and tensor table.
//!
//! Every length in the file is checked against the remaining bytes before anything is read or allocated. Arrays are decoded when
//! they are used.

use std::{collections::BTreeMap, ops::Range, path::Path};

use super::blocks::{self, GgmlType};
use crate::{Error, Result};

const MAGIC: &[u8] = b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
/// ggml's own limit.
const MOST_DIMENSIONS: u32 = 4;

/// A metadata value.
#[derive(Clone, Debug)]
enum Value<'a> {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(&'a str),
    Array(Array<'a>),
}

/// An array, not yet decoded.
#[derive(Clone, Debug)]
struct Array<'a> {
    kind: u32,
    count: usize,
    bytes: &'a [u8],
}

/// One entry of the tensor table.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    /// Outermost dimension first (GGUF has them the other way round).
    pub(super) shape: Vec<usize>,
    /// The type of its blocks.
    pub(super) kind: GgmlType,
    /// Their position in the file.
    pub(super) bytes: Range<usize>,
    /// Index of the file among the parts of a split model.
    pub(super) part: usize,
}

/// A parsed header.
pub(super) struct Header<'a> {
    path: &'a Path,
    metadata: BTreeMap<&'a str, Value<'a>>,
    /// The tensors by their GGUF names.
    pub(super) tensors: BTreeMap<&'a str, Tensor>,
}

impl<'a> Header<'a> {
    /// Parses the header in `bytes`, the content of `path`.
    pub(super) fn parse(path: &'a Path, bytes: &'a [u8]) -> Result<Self> {
        let mut cursor = Cursor { path, bytes, at: 0 };
        if cursor.take(MAGIC.len()).ok() != Some(MAGIC) {
            return Err(Error::broken(path, "it does not begin with `GGUF`"));
        }
        let version = cursor.u32()?;
        if !(2..=3).contains(&version) {
            return Err(Error::input_hint(
                format!(
                    "{}: GGUF version {version} is not supported",
                    path.display()
                ),
                "supported: versions 2 and 3, little-endian",
            ));
        }
        // The shortest entries: an empty name without dimensions; an empty key with a value of one byte.
        let tensor_count = cursor.count(8 + 4 + 4 + 8)?;
        let metadata_count = cursor.count(8 + 4 + 1)?;

        let mut metadata = BTreeMap::new();
        for _ in 0..metadata_count {
            let key = cursor.text()?;
            let kind = cursor.u32()?;
            let value = cursor.value(kind)?;
            if metadata.insert(key, value).is_some() {
                return Err(Error::broken(
                    path,
                    format!("duplicate metadata key `{key}`"),
                ));
            }
        }
        let mut header = Self {
            path,
            metadata,
            tensors: BTreeMap::new(),
        };
        let alignment = header
            .integer("general.alignment")?
            .unwrap_or(DEFAULT_ALIGNMENT);
        if !alignment.is_power_of_two() || !(8..=1 << 20).contains(&alignment) {
            return Err(Error::broken(
                path,
                format!("`general.alignment` is {alignment}"),
            ));
        }

        let mut table = Vec::new();
        for _ in 0..tensor_count {
            let name = cursor.text()?;
            let dimensions = cursor.u32()?;
            if dimensions > MOST_DIMENSIONS {
                return Err(Error::broken(
                    path,
                    format!("tensor `{name}` has {dimensions} dimensions"),
                ));
            }
            let mut shape = (0..dimensions)
                .map(|_| cursor.u64().and_then(|n| cursor.size(n)))
                .collect::<Result<Vec<_>>>()?;
            shape.reverse();
            table.push(Entry {
                name,
                shape,
                kind: cursor.u32()?,
                offset: cursor.u64()?,
            });
        }
        let data = Data {
            start: (cursor.at as u64).next_multiple_of(alignment),
            alignment,
            file_len: bytes.len(),
        };
        for entry in table {
            let name = entry.name;
            if header
                .tensors
                .insert(name, data.locate(path, entry)?)
                .is_some()
            {
                return Err(Error::broken(path, format!("duplicate tensor `{name}`")));
            }
        }
        Ok(header)
    }

    /// Adds the tensors of `other`, part number `part` of the same model.
    pub(super) fn add_part(&mut self, other: Self, part: usize) -> Result<()> {
        for (name, tensor) in other.tensors {
            let tensor = Tensor { part, ..tensor };
            if self.tensors.insert(name, tensor).is_some() {
                return Err(Error::broken(
                    other.path,
                    format!("tensor `{name}` is in an earlier part already"),
                ));
            }
        }
        Ok(())
    }

    /// The path of the file.
    pub(super) fn path(&self) -> &'a Path {
        self.path
    }

    fn wrong_type(&self, key: &str, wanted: &str) -> Error {
        Error::broken(self.path, format!("metadata `{key}` is not {wanted}"))
    }

    /// A non-negative integer.
    pub(super) fn integer(&self, key: &str) -> Result<Option<u64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(n)) => Ok(Some(*n)),
            Some(Value::Signed(n)) => u64::try_from(*n)
                .map(Some)
                .map_err(|_| self.wrong_type(key, "a non-negative integer")),
            Some(_) => Err(self.wrong_type(key, "an integer")),
        }
    }

    /// A number.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Float(n)) => Ok(Some(*n)),
            Some(Value::Unsigned(n)) => Ok(Some(*n as f64)),
            Some(Value::Signed(n)) => Ok(Some(*n as f64)),
            Some(_) => Err(self.wrong_type(key, "a number")),
        }
    }

    /// A switch.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(_) => Err(self.wrong_type(key, "true or false")),
        }
    }

    /// A string.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Text(s)) => Ok(Some(s)),
            Some(_) => Err(self.wrong_type(key, "a string")),
        }
    }

    /// An array of strings.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) if array.kind == STRING => {
                let mut cursor = self.cursor(array);
                (0..array.count)
                    .map(|_| cursor.text())
                    .collect::<Result<_>>()
                    .map(Some)
            }
            Some(_) => Err(self.wrong_type(key, "an array of strings")),
        }
    }

    /// An array of numbers.
    pub(super) fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let Some(value) = self.metadata.get(key) else {
            return Ok(None);
        };
        let Value::Array(array) = value else {
            return Err(self.wrong_type(key, "an array of numbers"));
        };
        let mut cursor = self.cursor(array);
        (0..array.count)
            .map(|_| match cursor.value(array.kind)? {
                Value::Float(n) => Ok(n),
                Value::Unsigned(n) => Ok(n as f64),
                Value::Signed(n) => Ok(n as f64),
                _ => Err(self.wrong_type(key, "an array of numbers")),
            })
            .collect::<Result<_>>()
            .map(Some)
    }

    /// An array of non-negative integers; a single one counts as an array of one.
    pub(super) fn integers(&self, key: &str) -> Result<Option<Vec<u64>>> {
        let Some(Value::Array(array)) = self.metadata.get(key) else {
            return Ok(self.integer(key)?.map(|n| vec![n]));
        };
        let mut cursor = self.cursor(array);
        (0..array.count)
            .map(|_| match cursor.value(array.kind)? {
                Value::Unsigned(n) => Ok(n),
                Value::Signed(n) if n >= 0 => Ok(n as u64),
                _ => Err(self.wrong_type(key, "an array of non-negative integers")),
            })
            .collect::<Result<_>>()
            .map(Some)
    }

    fn cursor(&self, array: &Array<'a>) -> Cursor<'a> {
        Cursor {
            path: self.path,
            bytes: array.bytes,
            at: 0,
        }
    }
}

/// One entry of the tensor table, as stored.
struct Entry<'a> {
    name: &'a str,
    shape: Vec<usize>,
    kind: u32,
    offset: u64,
}

/// The part of the file behind the header: where it begins, the alignment of tensors in it, and the length of the whole file.
struct Data {
    start: u64,
    alignment: u64,
    file_len: usize,
}

impl Data {
    /// Checks an entry of the tensor table against the file.
    fn locate(&self, path: &Path, entry: Entry) -> Result<Tensor> {
        let Entry {
            name,
            shape,
            kind,
            offset,
        } = entry;
        let broken = |what: String| Error::broken(path, format!("tensor `{name}` {what}"));
        let kind = GgmlType::from_id(kind).ok_or_else(|| {
            let supported = GgmlType::ALL.map(GgmlType::name).join(", ");
            Error::input_hint(
                format!(
                    "{}: tensor `{name}` has quantisation type {}, which is not supported",
                    path.display(),
                    blocks::type_name(kind)
                ),
                format!("supported: {supported}"),
            )
        })?;
        let row = shape.last().copied().unwrap_or(0);
        if row == 0 || !row.is_multiple_of(kind.block_len()) {
            return Err(broken(format!(
                "has rows of {row} elements, which {} cannot hold",
                kind.name()
            )));
        }
        let length = shape
            .iter()
            .try_fold(1usize, |n, d| n.checked_mul(*d))
            .and_then(|n| kind.bytes(n))
            .ok_or_else(|| broken(format!("has an impossible shape {shape:?}")))?;
        let range = offset
            .is_multiple_of(self.alignment)
            .then(|| self.start.checked_add(offset))
            .flatten()
            .and_then(|start| usize::try_from(start).ok())
            .and_then(|start| Some(start..start.checked_add(length)?))
            .filter(|range| range.end <= self.file_len);
        match range {
            Some(bytes) => Ok(Tensor {
                shape,
                kind,
                bytes,
                part: 0,
            }),
            None => Err(broken(format!(
                "lies outside the file ({length} bytes at offset {offset} of the data; the file has {} bytes)",
                self.file_len
            ))),
        }
    }
}

const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Bytes of a metadata value of fixed size.
fn fixed_size(kind: u32) -> Option<usize> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn truncated(&self) -> Error {
        Error::broken(
            self.path,
            format!("truncated header or wrong length at byte {}", self.at),
        )
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(len).ok_or_else(|| self.truncated())?;
        let taken = self
            .bytes
            .get(self.at..end)
            .ok_or_else(|| self.truncated())?;
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("as many bytes were taken"))
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn size(&self, n: u64) -> Result<usize> {
        usize::try_from(n).map_err(|_| self.truncated())
    }

    /// A count of entries that take at least `entry_bytes` each.
    fn count(&mut self, entry_bytes: usize) -> Result<usize> {
        let n = self.u64()?;
        let n = self.size(n)?;
        if n > (self.bytes.len() - self.at) / entry_bytes {
            return Err(self.truncated());
        }
        Ok(n)
    }

    fn text(&mut self) -> Result<&'a str> {
        let len = self.count(1)?;
        std::str::from_utf8(self.take(len)?).map_err(|_| {
            Error::broken(
                self.path,
                format!("a string before byte {} is not UTF-8", self.at),
            )
        })
    }

    fn value(&mut self, kind: u32) -> Result<Value<'a>> {
        Ok(match kind {
            0 => Value::Unsigned(self.array::<1>()?[0].into()),
            1 => Value::Signed(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Bool(self.array::<1>()?[0] != 0),
            STRING => Value::Text(self.text()?),
            ARRAY => Value::Array(self.metadata_array()?),
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            _ => {
                return Err(Error::broken(
                    self.path,
                    format!("unknown metadata type {kind} at byte {}", self.at),
                ));
            }
        })
    }

    fn metadata_array(&mut self) -> Result<Array<'a>> {
        let kind = self.u32()?;
        let (count, start) = if let Some(size) = fixed_size(kind) {
            let count = self.count(size)?;
            let start = self.at;
            self.take(count * size)?;
            (count, start)
        } else if kind == STRING {
            let count = self.count(size_of::<u64>())?;
            let start = self.at;
            for _ in 0..count {
                self.text()?;
            }
            (count, start)
        } else {
            return Err(Error::broken(
                self.path,
                format!("an array of metadata type {kind} at byte {}", self.at),
            ));
        };
        Ok(Array {
            kind,
            count,
            bytes: &self.bytes[start..self.at],
        })
    }
}

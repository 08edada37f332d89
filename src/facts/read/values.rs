//! The rows of a file as JSON, whatever its format.

use std::{iter, panic::AssertUnwindSafe};

use bytes::Bytes;
use parquet::{
    file::reader::{FileReader as _, SerializedFileReader},
    record::reader::RowIter,
    schema::types::Type,
};
use serde_json::{Map, Value};

use super::{
    json::{array, lines},
    row::{BadRow, COLUMNS},
    table,
    texts::FIELDS,
};
use crate::{Error, Result, quiet};

/// A row, and its number: its line, or its place in an array or a Parquet file. Both count from 1.
pub(super) type Numbered = (usize, Result<Value, BadRow>);

/// Rows, each made when it is asked for; an error outside is one of the file, after which there is no row.
pub(super) type Values<'b> = Box<dyn Iterator<Item = Result<Numbered>> + 'b>;

/// The rows of `bytes`, the content of the file `name`; none where `extension` is that of no format that is known.
///
/// # Errors
/// [`Error::Input`] when it is not what its extension says.
pub(super) fn values<'b>(
    name: &'b str,
    extension: &str,
    bytes: &'b [u8],
) -> Result<Option<Values<'b>>> {
    Ok(Some(match extension {
        "jsonl" | "ndjson" => Box::new(lines(bytes).map(Ok)),
        "json" => Box::new(numbered(array(name, bytes)?.into_iter().map(Ok))),
        "parquet" => Box::new(numbered(parquet(name, bytes)?)),
        "csv" => Box::new(table::objects(name, bytes, table::Format::Csv)?),
        "tsv" | "tab" => Box::new(table::objects(name, bytes, table::Format::Tsv)?),
        _ => return Ok(None),
    }))
}

fn numbered(values: impl Iterator<Item = Result<Value>>) -> impl Iterator<Item = Result<Numbered>> {
    values.enumerate().map(|(i, value)| Ok((i + 1, Ok(value?))))
}

/// The rows of a Parquet file.
fn parquet<'b>(
    name: &'b str,
    bytes: &[u8],
) -> Result<Box<dyn Iterator<Item = Result<Value>> + 'b>> {
    let bytes = Bytes::copy_from_slice(bytes);
    let rows = attempt(name, move || {
        let reader = SerializedFileReader::new(bytes)?;
        let schema = reader.metadata().file_metadata().schema();
        // Others, pictures say, are not even decoded.
        let read =
            |name: &str| COLUMNS.contains(&name) || FIELDS.contains(&name) || name == "answers";
        let wanted = schema.get_fields().iter();
        let wanted: Vec<_> = wanted.filter(|field| read(field.name())).cloned().collect();
        if wanted.is_empty() {
            return Ok(None);
        }
        let wanted = Type::group_type_builder(schema.name())
            .with_fields(wanted)
            .build()?;
        RowIter::from_file_into(Box::new(reader))
            .project(Some(wanted))
            .map(Some)
    })?;
    let Some(mut rows) = rows else {
        let nothing = Value::Object(Map::new());
        return Ok(Box::new(iter::once(Ok(nothing))));
    };
    let mut broken = false;
    Ok(Box::new(iter::from_fn(move || {
        if broken {
            return None;
        }
        let row = attempt(name, || {
            let row = rows.next().transpose()?;
            Ok(row.map(|row| row.to_json_value()))
        });
        broken = row.is_err();
        row.transpose()
    })))
}

/// What `work` returns, its errors as one of the file `name`. The library panics at types that it has no form for, and may at a
/// broken page.
fn attempt<T>(name: &str, work: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T> {
    let broken = |reason: String| {
        Error::input(format!(
            "{name}: not a Parquet file that can be read: {reason}"
        ))
    };
    quiet::attempt(AssertUnwindSafe(work))
        .ok_or_else(|| broken("a page or a type of it is not understood".into()))?
        .map_err(|e| broken(e.to_string()))
}

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
    json::{parse_array, parse_lines},
    row::{BadRow, COLUMNS},
    table,
    texts::TEXT_FIELDS,
};
use crate::{Error, Result, catch_panic};

/// A row, and its number: its line, or its place in an array or a Parquet file. Both count from 1.
pub(super) type NumberedRow = (usize, Result<Value, BadRow>);

/// Rows, each made when it is asked for; an error outside is one of the file, after which there is no row.
pub(super) type NumberedRows<'b> = Box<dyn Iterator<Item = Result<NumberedRow>> + 'b>;

/// The rows of `bytes`, the content of the file `name`; none where `extension` is that of no format that is known.
///
/// # Errors
/// [`Error::Input`] when it is not what its extension says.
pub(super) fn read_rows<'b>(
    name: &'b str,
    extension: &str,
    bytes: &'b [u8],
) -> Result<Option<NumberedRows<'b>>> {
    Ok(Some(match extension {
        "jsonl" | "ndjson" => Box::new(parse_lines(bytes).map(Ok)),
        "json" => Box::new(numbered(parse_array(name, bytes)?.into_iter().map(Ok))),
        "parquet" => Box::new(numbered(parquet(name, bytes)?)),
        "csv" => Box::new(table::read_objects(name, bytes, table::Format::Csv)?),
        "tsv" | "tab" => Box::new(table::read_objects(name, bytes, table::Format::Tsv)?),
        _ => return Ok(None),
    }))
}

fn numbered(
    values: impl Iterator<Item = Result<Value>>,
) -> impl Iterator<Item = Result<NumberedRow>> {
    values.enumerate().map(|(i, value)| Ok((i + 1, Ok(value?))))
}

/// The rows of a Parquet file.
fn parquet<'b>(
    name: &'b str,
    bytes: &[u8],
) -> Result<Box<dyn Iterator<Item = Result<Value>> + 'b>> {
    let bytes = Bytes::copy_from_slice(bytes);
    let rows = catch_parquet_panic(name, move || {
        let reader = SerializedFileReader::new(bytes)?;
        let schema = reader.metadata().file_metadata().schema();
        // Others, pictures say, are not even decoded.
        let is_read = |name: &str| {
            COLUMNS.contains(&name) || TEXT_FIELDS.contains(&name) || name == "answers"
        };
        let columns = schema.get_fields().iter();
        let columns: Vec<_> = columns
            .filter(|field| is_read(field.name()))
            .cloned()
            .collect();
        if columns.is_empty() {
            return Ok(None);
        }
        let projection = Type::group_type_builder(schema.name())
            .with_fields(columns)
            .build()?;
        RowIter::from_file_into(Box::new(reader))
            .project(Some(projection))
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
        let row = catch_parquet_panic(name, || {
            let row = rows.next().transpose()?;
            Ok(row.map(|row| row.to_json_value()))
        });
        broken = row.is_err();
        row.transpose()
    })))
}

/// What `work` returns, its errors as one of the file `name`. The library panics at types that it has no form for, and may at a
/// broken page.
fn catch_parquet_panic<T>(
    name: &str,
    work: impl FnOnce() -> parquet::errors::Result<T>,
) -> Result<T> {
    let broken = |reason: String| {
        Error::input(format!(
            "{name}: not a Parquet file that can be read: {reason}"
        ))
    };
    catch_panic::catch_panic(AssertUnwindSafe(work))
        .ok_or_else(|| broken("a page or a type of it is not understood".into()))?
        .map_err(|e| broken(e.to_string()))
}

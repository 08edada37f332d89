//! The rows of a file as JSON, whatever its format.

use serde_json::Value;

use super::{
    bad_row::BadRow,
    json::{parse_array, parse_lines},
    parquet,
    source::{Format, Source},
    table,
};
use crate::Result;

/// A row and its number, counted from 1: its line, or its index in a JSON array or a Parquet file.
pub(super) type NumberedRow = (usize, Result<Value, BadRow>);

/// Rows, each parsed when it is asked for. An outer error concerns the file and ends it.
pub(super) type NumberedRows<'b> = Box<dyn Iterator<Item = Result<NumberedRow>> + 'b>;

/// The rows of a file; `None` if its format is unknown.
///
/// # Errors
/// [`crate::Error::Input`] when the content doesn't match the extension.
pub(super) fn read_rows(source: &Source) -> Result<Option<NumberedRows<'_>>> {
    let (name, bytes) = (&*source.name, source.content());
    let Some(format) = source.format() else {
        return Ok(None);
    };
    Ok(Some(match format {
        Format::Table(separator) => Box::new(table::read_objects(name, bytes, separator)?),
        Format::JsonLines => Box::new(parse_lines(bytes).map(Ok)),
        Format::Json => Box::new(numbered(parse_array(name, bytes)?.into_iter().map(Ok))),
        Format::Parquet => Box::new(numbered(parquet::rows(name, bytes)?)),
    }))
}

fn numbered(
    values: impl Iterator<Item = Result<Value>>,
) -> impl Iterator<Item = Result<NumberedRow>> {
    values.enumerate().map(|(i, value)| Ok((i + 1, Ok(value?))))
}

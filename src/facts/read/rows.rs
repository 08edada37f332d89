//! The rows of a file as JSON, whatever its format.

use serde_json::Value;

use super::{
    bad_row::BadRow,
    columns::with_known_case,
    json::{parse_document, parse_lines},
    parquet,
    source::{Format, Source},
    table,
};
use crate::Result;

/// A row and its number, counted from 1: its line, or its index in a JSON array or a Parquet file.
pub(super) type NumberedRow = (usize, Result<Value, BadRow>);

/// Rows, each parsed when it is asked for. An outer error concerns the file and ends it.
pub(super) type NumberedRows<'b> = Box<dyn Iterator<Item = Result<NumberedRow>> + 'b>;

/// The rows of a file. The columns that are read have their names in lower case, however the file writes them.
///
/// # Errors
/// [`crate::Error::Input`] when the content doesn't match the extension.
pub(super) fn read_rows(source: &Source) -> Result<NumberedRows<'_>> {
    let (name, bytes) = (&*source.name, source.content());
    let rows: NumberedRows<'_> = match source.format() {
        Format::Table(separator) => Box::new(table::read_objects(name, bytes, separator)?),
        Format::JsonLines => Box::new(parse_lines(bytes).map(Ok)),
        Format::Json => Box::new(parse_document(name, bytes)?.map(Ok)),
        Format::Parquet => {
            let rows = parquet::rows(name, bytes, &source.dropped_nulls)?;
            Box::new(rows.enumerate().map(|(i, row)| {
                let row = row?;
                Ok((i + 1, row.map_err(|reason| BadRow::row(i + 1, reason))))
            }))
        }
    };
    Ok(Box::new(rows.map(|row| {
        let (line, row) = row?;
        Ok((line, row.map(with_known_case)))
    })))
}

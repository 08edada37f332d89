//! Apache Parquet files, row by row.

use std::{iter, panic::AssertUnwindSafe};

use bytes::Bytes;
use parquet::{
    file::reader::{FileReader as _, SerializedFileReader},
    record::reader::RowIter,
    schema::types::Type,
};
use serde_json::{Map, Value};

use super::columns::is_read;
use crate::{Error, Result, catch_panic};

/// The rows of a Parquet file as JSON objects. Only the columns of facts and texts are decoded.
///
/// # Errors
/// [`Error::Input`] when the file is not readable Parquet; an item is an error at the first broken page, and the last.
pub(super) fn rows<'b>(
    name: &'b str,
    bytes: &[u8],
) -> Result<Box<dyn Iterator<Item = Result<Value>> + 'b>> {
    let bytes = Bytes::copy_from_slice(bytes);
    let rows = catch_parquet_panic(name, move || {
        let reader = SerializedFileReader::new(bytes)?;
        let schema = reader.metadata().file_metadata().schema();
        let columns = schema.get_fields().iter();
        let columns: Vec<_> = columns.filter(|c| is_read(c.name())).cloned().collect();
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
        // One row without fields: its reader names the missing ones.
        let empty = Value::Object(Map::new());
        return Ok(Box::new(iter::once(Ok(empty))));
    };
    let mut failed = false;
    Ok(Box::new(iter::from_fn(move || {
        if failed {
            return None;
        }
        let row = catch_parquet_panic(name, || {
            let row = rows.next().transpose()?;
            Ok(row.map(|row| row.to_json_value()))
        });
        failed = row.is_err();
        row.transpose()
    })))
}

/// Runs `read`, and turns its errors and panics into an error of the file `name`: the library panics at types that it can't
/// convert, and may at a broken page.
fn catch_parquet_panic<T>(
    name: &str,
    read: impl FnOnce() -> parquet::errors::Result<T>,
) -> Result<T> {
    let broken =
        |reason: String| Error::input(format!("{name}: not a readable Parquet file: {reason}"));
    catch_panic::catch_panic(AssertUnwindSafe(read))
        .ok_or_else(|| broken("it has a broken page or an unsupported type".into()))?
        .map_err(|e| broken(e.to_string()))
}

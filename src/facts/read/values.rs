//! The rows of a file as JSON, whatever its format.

use std::path::Path;

use bytes::Bytes;
use parquet::{
    file::reader::{FileReader as _, SerializedFileReader},
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

/// The rows of `bytes`, the content of `path`, `most` of them at most; none where the extension is no format that is known.
///
/// # Errors
/// [`Error::Input`] when it is not what its extension says.
pub(super) fn values(path: &Path, bytes: &[u8], most: usize) -> Result<Option<Vec<Numbered>>> {
    let name = path.display().to_string();
    let rows = match &*super::extension_of(path) {
        "jsonl" | "ndjson" => lines(bytes).take(most).collect(),
        "json" => numbered(array(&name, bytes)?, most),
        "parquet" => numbered(parquet(&name, bytes, most)?, most),
        "csv" => table::objects(&name, bytes, table::Format::Csv, most)?,
        "tsv" | "tab" => table::objects(&name, bytes, table::Format::Tsv, most)?,
        _ => return Ok(None),
    };
    Ok(Some(rows))
}

fn numbered(values: Vec<Value>, most: usize) -> Vec<Numbered> {
    let values = values.into_iter().take(most).enumerate();
    values.map(|(i, value)| (i + 1, Ok(value))).collect()
}

/// The first `most` rows of a Parquet file.
fn parquet(name: &str, bytes: &[u8], most: usize) -> Result<Vec<Value>> {
    let broken = |reason: String| {
        Error::input(format!(
            "{name}: not a Parquet file that can be read: {reason}"
        ))
    };
    let bytes = Bytes::copy_from_slice(bytes);
    // The library panics at types that it has no form for, and may at a broken page.
    let rows = quiet::attempt(move || -> parquet::errors::Result<_> {
        let reader = SerializedFileReader::new(bytes)?;
        let schema = reader.metadata().file_metadata().schema();
        // Others, pictures say, are not even decoded.
        let read =
            |name: &str| COLUMNS.contains(&name) || FIELDS.contains(&name) || name == "answers";
        let wanted = schema.get_fields().iter();
        let wanted: Vec<_> = wanted.filter(|field| read(field.name())).cloned().collect();
        if wanted.is_empty() {
            return Ok(vec![Value::Object(Map::new())]);
        }
        let wanted = Type::group_type_builder(schema.name())
            .with_fields(wanted)
            .build()?;
        let rows = reader.get_row_iter(Some(wanted))?;
        rows.take(most)
            .map(|row| Ok(row?.to_json_value()))
            .collect()
    });
    rows.ok_or_else(|| broken("a page or a type of it is not understood".into()))?
        .map_err(|e| broken(e.to_string()))
}

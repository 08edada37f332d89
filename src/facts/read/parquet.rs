//! Apache Parquet files, row by row.

use std::{cell::Cell, iter, panic::AssertUnwindSafe};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use parquet::{
    basic::{Compression, ConvertedType, LogicalType, Repetition, TimeUnit, Type as PhysicalType},
    file::{
        metadata::{FileMetaData, ParquetMetaData, RowGroupMetaData},
        reader::{FileReader as _, SerializedFileReader},
    },
    record::{Field, reader::RowIter},
    schema::types::{ColumnDescriptor, Type},
};
use serde_json::{Map, Number, Value};

use super::{
    columns::{is_read, twice},
    json::parse_text,
};
use crate::{Error, Result, catch_panic};

/// A row, or why its values cannot be used.
type Row = Result<Value, String>;

/// The rows of a Parquet file as JSON objects. Only the columns of facts and texts are decoded.
///
/// Values are those that `datasets` gives: bytes that are UTF-8 are text, decimals and large numbers are as they are written, dates and
/// times are Python's text of them, and texts of the type JSON are the values that they hold.
///
/// A struct within a message or a tool has the fields of all others in the file. Those that are null there are left out, and counted in
/// `dropped_nulls`.
///
/// # Errors
/// [`Error::Input`] when the file is not readable Parquet, a column has a type that is not read, or two have one name; an outer error
/// of an item is a broken page, and the last item.
pub(super) fn rows<'b>(
    name: &'b str,
    bytes: &[u8],
    dropped_nulls: &'b Cell<usize>,
) -> Result<Box<dyn Iterator<Item = Result<Row>> + 'b>> {
    let bytes = Bytes::copy_from_slice(bytes);
    let (mut refused, mut unread, mut types) = (None, Vec::new(), Vec::new());
    let rows = catch_parquet_panic(name, || {
        let reader = SerializedFileReader::new(bytes)?;
        refused = refusal(name, reader.metadata());
        if refused.is_some() {
            return Ok(None);
        }
        let schema = reader.metadata().file_metadata().schema();
        let (columns, others): (Vec<_>, Vec<_>) = schema
            .get_fields()
            .iter()
            .cloned()
            .partition(|column| is_read(column.name()));
        unread = others
            .iter()
            .map(|column| column.name().to_owned())
            .collect();
        if columns.is_empty() {
            return Ok(None);
        }
        types.clone_from(&columns);
        let projection = Type::group_type_builder(schema.name())
            .with_fields(columns)
            .build()?;
        RowIter::from_file_into(Box::new(reader))
            .project(Some(projection))
            .map(Some)
    })?;
    if let Some(refusal) = refused {
        return Err(refusal);
    }
    // The first row has the names of all columns, so that its reader can say what a missing one may be called.
    let mut unread: Map<String, Value> = unread
        .into_iter()
        .map(|column| (column, Value::Null))
        .collect();
    let Some(mut rows) = rows else {
        return Ok(Box::new(iter::once(Ok(Ok(Value::Object(unread))))));
    };
    let mut failed = false;
    Ok(Box::new(iter::from_fn(move || {
        if failed {
            return None;
        }
        let row = catch_parquet_panic(name, || rows.next().transpose());
        failed = row.is_err();
        let row = row.transpose()?;
        Some(row.map(|row| {
            let fields = row.into_columns().into_iter().zip(&types);
            let fields = fields.map(|((column, field), schema)| {
                let reader = Reader { dropped_nulls };
                let level = usize::from(column.eq_ignore_ascii_case("tools"));
                let value = reader.json(&field, schema, level);
                let value = value.map_err(|reason| format!("field `{column}` {reason}"))?;
                Ok((column, value))
            });
            let mut row = fields.collect::<Result<Map<_, _>, String>>()?;
            row.append(&mut unread);
            Ok(Value::Object(row))
        }))
    })))
}

/// The error for a file with a column that would be misread.
fn refusal(name: &str, metadata: &ParquetMetaData) -> Option<Error> {
    let file = metadata.file_metadata();
    let columns = file.schema().get_fields();
    let names: Vec<String> = columns.iter().map(|c| c.name().to_lowercase()).collect();
    for (i, column) in columns.iter().enumerate() {
        if is_read(column.name()) && names[..i].contains(&names[i]) {
            return Some(twice(name, column.name()));
        }
    }
    let columns = file.schema_descr().columns().iter();
    let misread = columns.filter_map(|column| Some((column.path().string(), unread_type(column)?)));
    let durations = durations(file).into_iter().map(|name| (name, "durations"));
    let is_read_column = |column: &str| is_read(column.split('.').next().unwrap_or(column));
    let mut misread = misread.chain(durations);
    if let Some((column, kind)) = misread.find(|(column, _)| is_read_column(column)) {
        return Some(Error::input_hint(
            format!("{name}: the column `{column}` has {kind}, which is not read"),
            "cast it to text before the file is written",
        ));
    }
    let mut chunks = metadata
        .row_groups()
        .iter()
        .flat_map(RowGroupMetaData::columns);
    let compression = chunks.find_map(|chunk| match chunk.compression() {
        Compression::BROTLI(_) => Some("Brotli"),
        Compression::LZO => Some("LZO"),
        _ => None,
    })?;
    Some(Error::input_hint(
        format!("{name}: its pages are compressed with {compression}, which is not unpacked"),
        "write the file with another compression, such as `compression=\"zstd\"`",
    ))
}

/// The columns of durations, which Parquet has no type for: only the Arrow schema in the metadata tells them from integers.
fn durations(file: &FileMetaData) -> Vec<String> {
    fn has_durations(field: arrow_ipc::Field<'_>) -> bool {
        let children = field.children();
        field.type_type() == arrow_ipc::Type::Duration
            || children.is_some_and(|children| children.iter().any(has_durations))
    }

    let metadata = file.key_value_metadata().into_iter().flatten();
    let mut schemas = metadata.filter(|entry| entry.key == "ARROW:schema");
    let encoded = schemas.find_map(|entry| entry.value.as_ref());
    let decoded = encoded.and_then(|text| STANDARD.decode(text).ok());
    let bytes = decoded.unwrap_or_default();
    // A mark and the length stand in front.
    let message = bytes
        .strip_prefix(&[0xff; 4])
        .and_then(|rest| rest.get(4..));
    let message = arrow_ipc::root_as_message(message.unwrap_or(&bytes));
    let schema = message.ok().and_then(|message| message.header_as_schema());
    let fields = schema
        .and_then(|schema| schema.fields())
        .into_iter()
        .flatten();
    let fields = fields.filter(|field| has_durations(*field));
    fields
        .filter_map(|field| Some(field.name()?.to_owned()))
        .collect()
}

/// The type of a column in words, if its values would be misread.
fn unread_type(column: &ColumnDescriptor) -> Option<&'static str> {
    match (column.logical_type_ref(), column.converted_type()) {
        (Some(LogicalType::Timestamp(time)), _) if time.unit == TimeUnit::NANOS => {
            Some("timestamps in nanoseconds")
        }
        (Some(LogicalType::Timestamp(time)), _) if time.is_adjusted_to_u_t_c => {
            Some("timestamps with a time zone")
        }
        (Some(LogicalType::Time(_)), _)
        | (_, ConvertedType::TIME_MILLIS | ConvertedType::TIME_MICROS) => Some("times of day"),
        (Some(LogicalType::Uuid), _) => Some("UUIDs"),
        (Some(LogicalType::Bson), _) | (_, ConvertedType::BSON) => Some("BSON"),
        (_, ConvertedType::INTERVAL) => Some("intervals"),
        _ if column.physical_type() == PhysicalType::INT96 => Some("96-bit timestamps"),
        _ => None,
    }
}

/// Makes JSON of the values of a file.
#[derive(Clone, Copy)]
struct Reader<'b> {
    dropped_nulls: &'b Cell<usize>,
}

impl Reader<'_> {
    /// A value of this type as JSON, within so many structs; the error is a phrase that follows the name of the field.
    fn json(self, field: &Field, schema: &Type, level: usize) -> Result<Value, String> {
        Ok(match field {
            Field::Null => Value::Null,
            Field::Bool(b) => (*b).into(),
            Field::Byte(n) => (*n).into(),
            Field::Short(n) => (*n).into(),
            Field::Int(n) => (*n).into(),
            Field::Long(n) => (*n).into(),
            Field::UByte(n) => (*n).into(),
            Field::UShort(n) => (*n).into(),
            Field::UInt(n) => (*n).into(),
            Field::ULong(n) => (*n).into(),
            Field::Float16(x) => float(f64::from(*x)),
            Field::Float(x) => float(f64::from(*x)),
            Field::Double(x) => float(*x),
            // A decimal without a fraction is written with a point behind it.
            Field::Decimal(_) => field.to_string().trim_end_matches('.').into(),
            Field::Str(text) if is_json(schema) => parse_json(text)?,
            Field::Str(text) => text.as_str().into(),
            Field::Bytes(bytes) => {
                let text = std::str::from_utf8(bytes.data());
                let text = text.map_err(|_| "has bytes that are not UTF-8 text".to_owned())?;
                if is_json(schema) {
                    parse_json(text)?
                } else {
                    text.into()
                }
            }
            Field::Date(days) => date(i64::from(*days)).into(),
            Field::TimestampMillis(ms) => timestamp(i128::from(*ms) * 1000).into(),
            Field::TimestampMicros(us) => timestamp(i128::from(*us)).into(),
            Field::TimeMillis(_) | Field::TimeMicros(_) => return Err("is a time of day".into()),
            Field::Group(row) => {
                let mut fields = Map::new();
                for (i, (name, field)) in row.get_column_iter().enumerate() {
                    let schema = field_type(schema, i);
                    if level > 0 && matches!(field, Field::Null) {
                        self.dropped_nulls.update(|nulls| nulls + 1);
                    } else {
                        fields.insert(name.clone(), self.json(field, schema, level + 1)?);
                    }
                }
                Value::Object(fields)
            }
            Field::ListInternal(list) => {
                let schema = element_type(schema);
                let items = list.elements().iter();
                let items = items.map(|item| self.json(item, schema, level));
                Value::Array(items.collect::<Result<_, _>>()?)
            }
            Field::MapInternal(map) => {
                let entry = field_type(schema, 0);
                let [key_type, value_type] = [0, 1].map(|i| field_type(entry, i));
                let entries = map.entries().iter().map(|(key, value)| {
                    let key = match self.json(key, key_type, level)? {
                        Value::String(key) => key,
                        other => other.to_string(),
                    };
                    Ok((key, self.json(value, value_type, level + 1)?))
                });
                Value::Object(entries.collect::<Result<_, String>>()?)
            }
        })
    }
}

/// Whether the texts of a column hold JSON (`arrow.json`, the feature `Json` of `datasets`).
fn is_json(schema: &Type) -> bool {
    let info = schema.get_basic_info();
    info.converted_type() == ConvertedType::JSON
        || matches!(info.logical_type_ref(), Some(LogicalType::Json))
}

fn parse_json(text: &str) -> Result<Value, String> {
    // A number of its own is kept as it is written, as in a file of JSON.
    let parsed = if text.contains('{') {
        serde_json::from_str(text)
    } else {
        parse_text(text)
    };
    parsed.map_err(|e| format!("has the type JSON, and its text is not JSON: {e}"))
}

/// The type of field `i` of a group.
fn field_type(group: &Type, i: usize) -> &Type {
    let fields = if group.is_group() {
        group.get_fields()
    } else {
        &[]
    };
    fields.get(i).map_or(group, |field| field)
}

/// The type of the elements of a list: by the format's rules for lists with two levels or three, and for a repeated field without one.
fn element_type(list: &Type) -> &Type {
    let info = list.get_basic_info();
    if info.has_repetition() && info.repetition() == Repetition::REPEATED {
        return list;
    }
    let repeated = field_type(list, 0);
    let is_element = !repeated.is_group()
        || repeated.get_fields().len() != 1
        || repeated.name() == "array"
        || repeated.name().ends_with("_tuple");
    if is_element {
        repeated
    } else {
        field_type(repeated, 0)
    }
}

/// A float; one that is not finite, which JSON has no number for, is null, as a missing value is. Very large and very small ones are
/// texts, as Python writes them.
fn float(x: f64) -> Value {
    if x != 0.0 && x.is_finite() && !(1e-4..1e16).contains(&x.abs()) {
        let scientific = format!("{x:e}");
        let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}").into();
    }
    Number::from_f64(x).map_or(Value::Null, Value::Number)
}

/// A day counted from 1 January 1970, as `2024-07-26`.
fn date(days: i64) -> String {
    // The calendar repeats after 400 years; years begin in March, so that the leap day is the last one.
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    format!("{:04}-{month:02}-{day:02}", year + era * 400 + next)
}

/// Microseconds from 1 January 1970, as Python's text of a date and time.
fn timestamp(micros: i128) -> String {
    const DAY: i128 = 86_400_000_000;
    let (days, rest) = (micros.div_euclid(DAY), micros.rem_euclid(DAY));
    let (seconds, micros) = (rest / 1_000_000, rest % 1_000_000);
    let fraction = if micros == 0 {
        String::new()
    } else {
        format!(".{micros:06}")
    };
    let day = date(i64::try_from(days).unwrap_or(i64::MAX / 2));
    format!(
        "{day} {:02}:{:02}:{:02}{fraction}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
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

#[cfg(test)]
mod tests {
    use super::*;

    /// By Python: `str(datetime(1970, 1, 1) + timedelta(microseconds=n))`.
    #[test]
    fn dates_are_those_of_python() {
        for (micros, text) in [
            (0, "1970-01-01 00:00:00"),
            (1_721_995_200_000_000, "2024-07-26 12:00:00"),
            (-1, "1969-12-31 23:59:59.999999"),
            (951_782_400_000_000, "2000-02-29 00:00:00"),
            (-2_203_891_200_000_000, "1900-03-01 00:00:00"),
            (4_107_542_400_123_000, "2100-03-01 00:00:00.123000"),
        ] {
            assert_eq!(timestamp(micros), text);
        }
    }
}

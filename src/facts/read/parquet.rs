//! Apache Parquet files, row by row.

use std::{iter, panic::AssertUnwindSafe};

use bytes::Bytes;
use parquet::{
    basic::{ConvertedType, LogicalType, TimeUnit, Type as PhysicalType},
    file::reader::{FileReader as _, SerializedFileReader},
    record::{Field, reader::RowIter},
    schema::types::{ColumnDescriptor, Type},
};
use serde_json::{Map, Number, Value};

use super::columns::is_read;
use crate::{Error, Result, catch_panic};

/// A row, or why its values cannot be used.
type Row = Result<Value, String>;

/// The rows of a Parquet file as JSON objects. Only the columns of facts and texts are decoded.
///
/// Values are those that `pyarrow` gives: bytes that are UTF-8 are text, decimals and large numbers are as they are written, dates and
/// times are Python's text of them.
///
/// # Errors
/// [`Error::Input`] when the file is not readable Parquet, or a column has a type that is not read; an outer error of an item is a
/// broken page, and the last item.
pub(super) fn rows<'b>(
    name: &'b str,
    bytes: &[u8],
) -> Result<Box<dyn Iterator<Item = Result<Row>> + 'b>> {
    let bytes = Bytes::copy_from_slice(bytes);
    let (mut refused, mut unread) = (None, Vec::new());
    let rows = catch_parquet_panic(name, || {
        let reader = SerializedFileReader::new(bytes)?;
        let schema = reader.metadata().file_metadata().schema_descr();
        refused = schema.columns().iter().find_map(|column| {
            let root = column
                .path()
                .parts()
                .first()
                .is_some_and(|root| is_read(root));
            unread_type(column)
                .filter(|_| root)
                .map(|kind| (column.path().string(), kind))
        });
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
        let projection = Type::group_type_builder(schema.name())
            .with_fields(columns)
            .build()?;
        RowIter::from_file_into(Box::new(reader))
            .project(Some(projection))
            .map(Some)
    })?;
    if let Some((column, kind)) = refused {
        return Err(Error::input_hint(
            format!("{name}: the column `{column}` has {kind}, which is not read"),
            "cast it to text before the file is written",
        ));
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
            let fields = row.into_columns().into_iter();
            let fields = fields.map(|(column, field)| {
                let value = json(&field).map_err(|reason| format!("field `{column}` {reason}"))?;
                Ok((column, value))
            });
            let mut row = fields.collect::<Result<Map<_, _>, String>>()?;
            row.append(&mut unread);
            Ok(Value::Object(row))
        }))
    })))
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

/// A value as JSON; the error is a phrase that follows the name of the field.
fn json(field: &Field) -> Result<Value, String> {
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
        Field::Str(text) => text.as_str().into(),
        Field::Bytes(bytes) => std::str::from_utf8(bytes.data())
            .map_err(|_| "has bytes that are not UTF-8 text".to_owned())?
            .into(),
        Field::Date(days) => date(i64::from(*days)).into(),
        Field::TimestampMillis(ms) => timestamp(i128::from(*ms) * 1000).into(),
        Field::TimestampMicros(us) => timestamp(i128::from(*us)).into(),
        Field::TimeMillis(_) | Field::TimeMicros(_) => return Err("is a time of day".into()),
        Field::Group(row) => {
            let fields = row.get_column_iter();
            let fields = fields.map(|(name, field)| Ok((name.clone(), json(field)?)));
            Value::Object(fields.collect::<Result<_, String>>()?)
        }
        Field::ListInternal(list) => {
            let items = list.elements().iter().map(json);
            Value::Array(items.collect::<Result<_, _>>()?)
        }
        Field::MapInternal(map) => {
            let entries = map.entries().iter().map(|(key, value)| {
                let key = match json(key)? {
                    Value::String(key) => key,
                    other => other.to_string(),
                };
                Ok((key, json(value)?))
            });
            Value::Object(entries.collect::<Result<_, String>>()?)
        }
    })
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

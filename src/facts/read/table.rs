//! TSV and CSV: a header that names the columns, then a row a line.

use std::iter;

use serde_json::Value;

use super::{
    MAX_ROW_BYTES, Rows,
    row::{BadRow, COLUMNS, REQUIRED_COLUMNS, RawFact},
    values::NumberedRow,
};
use crate::{Error, Result, error::closest_match};

/// How fields are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Tabs; a field is quoted only where quotes stand around the whole of it.
    Tsv,
    /// Commas and quotes as in RFC 4180; a quoted field may span lines.
    Csv,
}

/// Reads a table.
pub(super) fn read<'b>(file: &'b str, bytes: &'b [u8], format: Format) -> Result<Rows<'b>> {
    let mut notes = Vec::new();
    let mut records = records(file, bytes, format).peekable();
    let columns = match records.next().transpose()? {
        Some((line, record)) => header(file, line, &record, &mut notes)?,
        None => Vec::new(),
    };
    if records.peek().is_none() {
        return Err(Error::input(format!(
            "{file} has a line of column names and no row"
        )));
    }
    let rows = records.map(move |record| {
        let (line, record) = record?;
        Ok(row(line, &columns, &record, format))
    });
    Ok(Rows {
        notes,
        ..Rows::new(rows)
    })
}

/// The rows of a table as objects of its columns, every field text.
pub(super) fn read_objects<'b>(
    file: &'b str,
    bytes: &'b [u8],
    format: Format,
) -> Result<impl Iterator<Item = Result<NumberedRow>> + 'b> {
    let fields = move |record: &csv::ByteRecord| -> Option<Vec<String>> {
        let fields = record.iter().map(|field| {
            let text = std::str::from_utf8(field).ok()?;
            Some(if format == Format::Tsv {
                unquote(text)
            } else {
                text.to_owned()
            })
        });
        fields.collect()
    };
    let mut records = records(file, bytes, format);
    let header = records.next().transpose()?;
    let names = header.and_then(|(_, record)| fields(&record));
    let names: Vec<String> = names.into_iter().flatten().collect();
    Ok(records.map(move |record| {
        let (line, record) = record?;
        let row = fields(&record).ok_or_else(|| BadRow::row(line, "the row is not UTF-8"));
        let row = row.map(|fields| {
            let named = names.iter().map(|name| name.trim().to_lowercase());
            named.zip(fields.into_iter().map(Value::String)).collect()
        });
        Ok((line, row))
    }))
}

/// Every record, the column names among them, with its line.
fn records<'b>(
    file: &'b str,
    bytes: &'b [u8],
    format: Format,
) -> impl Iterator<Item = Result<(usize, csv::ByteRecord)>> + 'b {
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(if format == Format::Tsv { b'\t' } else { b',' })
        .quoting(format == Format::Csv)
        .has_headers(false)
        .flexible(true)
        .from_reader(bytes);
    iter::from_fn(move || {
        let start = reader.position().clone();
        let mut record = csv::ByteRecord::new();
        match reader.read_byte_record(&mut record) {
            Ok(true) => Some(Ok((first_line(bytes, &start), record))),
            Ok(false) => None,
            Err(e) => Some(Err(Error::input(format!("{file}: {e}")))),
        }
    })
}

/// The line on which the record read from `start` begins: the reader skips blank lines before it.
fn first_line(bytes: &[u8], start: &csv::Position) -> usize {
    let rest = bytes.get(start.byte() as usize..).unwrap_or_default();
    let blank = rest.iter().take_while(|b| matches!(b, b'\r' | b'\n'));
    start.line() as usize + blank.filter(|b| **b == b'\n').count()
}

/// Which column is which field; columns with other names are not read.
fn header(
    file: &str,
    line: usize,
    record: &csv::ByteRecord,
    notes: &mut Vec<String>,
) -> Result<Vec<Option<&'static str>>> {
    let mut columns = Vec::with_capacity(record.len());
    let mut unknown = Vec::new();
    for bytes in record {
        let name = unquote(&String::from_utf8_lossy(bytes)).trim().to_owned();
        let column = COLUMNS.into_iter().find(|c| c.eq_ignore_ascii_case(&name));
        if column.is_some() && columns.contains(&column) {
            return Err(Error::input(format!(
                "{file}, line {line}: the column `{name}` is there twice"
            )));
        }
        if column.is_none() {
            unknown.push(name);
        }
        columns.push(column);
    }
    for required in REQUIRED_COLUMNS {
        if !columns.contains(&Some(required)) {
            let meant = closest_match(required, unknown.iter().map(String::as_str));
            return Err(Error::input_hint(
                format!("{file}, line {line}: there is no column `{required}`"),
                meant.map_or_else(
                    || "the first line names the columns: subject, relation, object, and if wanted aliases, question, split, paraphrases".into(),
                    |m| format!("did you mean `{required}` by `{m}`?"),
                ),
            ));
        }
    }
    for name in unknown {
        if let Some(meant) = closest_match(
            &name,
            COLUMNS.into_iter().filter(|c| !columns.contains(&Some(c))),
        ) {
            notes.push(format!(
                "{file}: the column `{name}` is not read; did you mean `{meant}`?"
            ));
        }
    }
    Ok(columns)
}

/// One row of a table.
fn row(
    line: usize,
    columns: &[Option<&'static str>],
    record: &csv::ByteRecord,
    format: Format,
) -> Result<RawFact, BadRow> {
    if record.as_slice().len() > MAX_ROW_BYTES {
        let reason = format!(
            "the row is {} bytes long, and {MAX_ROW_BYTES} is the most",
            record.as_slice().len()
        );
        return Err(BadRow::row(line, reason));
    }
    let mut row = RawFact {
        line,
        ..RawFact::default()
    };
    for (bytes, column) in record.iter().zip(columns) {
        let Some(column) = *column else { continue };
        let text = std::str::from_utf8(bytes).map_err(|e| {
            BadRow::field(
                line,
                column,
                format!("is not UTF-8 (its byte {} is wrong)", e.valid_up_to() + 1),
            )
        })?;
        if text.contains('\0') {
            return Err(BadRow::field(
                line,
                column,
                "holds a NUL character: is the file binary, or UTF-16?",
            ));
        }
        match format {
            Format::Tsv => row.set(column, &unquote(text)),
            Format::Csv => row.set(column, text),
        }
    }
    if record.len() != columns.len() {
        // Trailing optional fields may be left out; too many fields mean a separator inside one.
        let missing = REQUIRED_COLUMNS.into_iter().find(|r| {
            columns
                .iter()
                .position(|c| *c == Some(*r))
                .is_some_and(|i| i >= record.len())
        });
        let (have, want) = (record.len(), columns.len());
        if let Some(field) = missing {
            return Err(BadRow::field(
                line,
                field,
                format!("is missing: the row has {have} fields, the header {want}"),
            ));
        }
        if have > want {
            let reason = format!(
                "the row has {have} fields, the header {want}: quote a field that holds a separator"
            );
            return Err(BadRow::row(line, reason));
        }
    }
    Ok(row)
}

/// A field without the quotes around the whole of it; a quote inside such a field is doubled. `"Heroes" (album)` stays.
fn unquote(field: &str) -> String {
    let inner = field.strip_prefix('"').and_then(|f| f.strip_suffix('"'));
    match inner {
        Some(inner) if !inner.replace("\"\"", "").contains('"') => inner.replace("\"\"", "\""),
        _ => field.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tsv(text: &str) -> Rows<'_> {
        read("f.tsv", text.as_bytes(), Format::Tsv).unwrap()
    }

    #[test]
    fn lines_are_counted_over_blank_ones_and_any_line_ends() {
        let rows =
            tsv("subject\trelation\tobject\r\n\r\n\na\tP17\tb\n\n\nc\tP17\td").collect_rows();
        let lines: Vec<_> = rows.iter().map(|r| r.as_ref().unwrap().line).collect();
        assert_eq!(lines, [4, 7]);
        assert_eq!(rows[1].as_ref().unwrap().object.as_deref(), Some("d"));
    }

    #[test]
    fn a_csv_field_may_span_lines_and_the_next_row_is_still_counted_right() {
        let text = "subject,relation,object,question\n\"a, b\",P17,c,\"one\ntwo\"\nd,P17,e,\n";
        let rows = read("f.csv", text.as_bytes(), Format::Csv)
            .unwrap()
            .collect_rows();
        assert_eq!(rows[0].as_ref().unwrap().subject.as_deref(), Some("a, b"));
        assert_eq!(rows[1].as_ref().unwrap().line, 4);
    }

    #[test]
    fn quotes_in_a_tsv_are_kept_unless_they_enclose_the_field() {
        assert_eq!(unquote("\"Heroes\" (album)"), "\"Heroes\" (album)");
        assert_eq!(unquote("\"a \"\"b\"\"\""), "a \"b\"");
        assert_eq!(unquote("\""), "\"");
        let rows = tsv("subject\trelation\tobject\n\"open\tP50\tx\nnext\tP50\ty\n").collect_rows();
        assert_eq!(rows.len(), 2);
    }

    #[test]
    fn columns_may_stand_in_any_order_and_case_with_others_between() {
        let rows =
            tsv("id\tObject\tsubject\tRELATION\taliases\n7\tb\ta\tP17\tx| y |\n").collect_rows();
        let row = rows[0].as_ref().unwrap();
        assert_eq!(
            (row.subject.as_deref(), row.object.as_deref()),
            (Some("a"), Some("b"))
        );
        assert_eq!(row.aliases, ["x", "y"]);
    }

    #[test]
    fn a_misspelt_column_is_named() {
        let error = read(
            "f.tsv",
            b"subject\trelaton\tobject\na\tP17\tb\n",
            Format::Tsv,
        )
        .err()
        .unwrap();
        assert_eq!(
            error.to_string(),
            "f.tsv, line 1: there is no column `relation`"
        );
        assert_eq!(error.hint(), Some("did you mean `relation` by `relaton`?"));
        let notes = tsv("subject\trelation\tobject\talias\na\tP17\tb\tc\n").notes;
        assert_eq!(
            notes,
            ["f.tsv: the column `alias` is not read; did you mean `aliases`?"]
        );
    }

    #[test]
    fn broken_fields_name_their_line() {
        let rows = read(
            "f.tsv",
            b"subject\trelation\tobject\na\tP17\nb\tP17\t\xff\nc\tP17\tx\ty\nd\tP\0\tx\n",
            Format::Tsv,
        );
        let rows = rows.unwrap().collect_rows();
        let fields: Vec<_> = rows
            .iter()
            .map(|r| r.as_ref().map_err(|b| (b.line, b.field)))
            .collect();
        assert_eq!(
            fields,
            [
                Err((2, Some("object"))),
                Err((3, Some("object"))),
                Err((4, None)),
                Err((5, Some("relation"))),
            ]
        );
    }

    #[test]
    fn an_endless_line_is_refused() {
        let text = format!(
            "subject\trelation\tobject\na\tP17\t{}\n",
            "x".repeat(MAX_ROW_BYTES)
        );
        assert_eq!(tsv(&text).collect_rows()[0].as_ref().unwrap_err().line, 2);
    }
}

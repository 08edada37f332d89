//! TSV and CSV: a header that names the columns, then one record a row.

use std::iter;

use serde_json::Value;

use super::{
    bad_row::{BadRow, MAX_ROW_BYTES},
    columns::{FACT_COLUMNS, REQUIRED_COLUMNS},
    raw_fact::{RawFact, RawFacts},
    source::Separator,
};
use crate::{Error, Result, error::closest_match};

/// The facts of a table.
///
/// # Errors
/// [`Error::Input`] when a required column is missing, or there is no row.
pub(super) fn read_facts<'b>(
    file: &'b str,
    bytes: &'b [u8],
    separator: Separator,
) -> Result<RawFacts<'b>> {
    let mut notes = Vec::new();
    let mut records = records(file, bytes, separator).peekable();
    let columns = match records.next().transpose()? {
        Some((line, record)) => header(file, line, &record, &mut notes)?,
        None => Vec::new(),
    };
    if records.peek().is_none() {
        return Err(Error::input_hint(
            format!("{file} has column names but no rows"),
            "add one line for each fact",
        ));
    }
    let rows = records.map(move |record| {
        let (line, record) = record?;
        Ok(row(line, &columns, &record, separator))
    });
    Ok(RawFacts {
        notes,
        ..RawFacts::new(rows)
    })
}

/// The rows of a table as JSON objects of all its columns, every field text. Column names are in lower case.
pub(super) fn read_objects<'b>(
    file: &'b str,
    bytes: &'b [u8],
    separator: Separator,
) -> Result<impl Iterator<Item = Result<(usize, Result<Value, BadRow>)>> + 'b> {
    let fields = move |record: &csv::ByteRecord| -> Option<Vec<String>> {
        let fields = record.iter().map(|field| {
            let text = std::str::from_utf8(field).ok()?;
            Some(field_text(text, separator))
        });
        fields.collect()
    };
    let mut records = records(file, bytes, separator);
    let header = records.next().transpose()?;
    let columns = header.and_then(|(_, record)| fields(&record));
    let columns: Vec<String> = columns
        .into_iter()
        .flatten()
        .map(|name| name.trim().to_lowercase())
        .collect();
    Ok(records.map(move |record| {
        let (line, record) = record?;
        let row = fields(&record).ok_or_else(|| BadRow::row(line, "the row is not UTF-8"));
        let row = row.map(|fields| {
            let fields = fields.into_iter().map(Value::String);
            columns.iter().cloned().zip(fields).collect()
        });
        Ok((line, row))
    }))
}

/// Every record with the line it begins on; the first is the header.
fn records<'b>(
    file: &'b str,
    bytes: &'b [u8],
    separator: Separator,
) -> impl Iterator<Item = Result<(usize, csv::ByteRecord)>> + 'b {
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(match separator {
            Separator::Tab => b'\t',
            Separator::Comma => b',',
        })
        .quoting(separator == Separator::Comma)
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

/// The line on which the record at `start` begins, after the blank lines that the reader skips.
fn first_line(bytes: &[u8], start: &csv::Position) -> usize {
    let rest = bytes.get(start.byte() as usize..).unwrap_or_default();
    let blank = rest.iter().take_while(|b| matches!(b, b'\r' | b'\n'));
    start.line() as usize + blank.filter(|b| **b == b'\n').count()
}

/// The fact column that each column of the table is; `None` for a column that is not read.
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
        let mut known = FACT_COLUMNS.into_iter();
        let column = known.find(|c| c.eq_ignore_ascii_case(&name));
        if column.is_some() && columns.contains(&column) {
            return Err(Error::input_hint(
                format!("{file}, line {line}: there are two columns `{name}`"),
                "remove or rename one of them",
            ));
        }
        if column.is_none() {
            unknown.push(name);
        }
        columns.push(column);
    }
    for required in REQUIRED_COLUMNS {
        if !columns.contains(&Some(required)) {
            let misspelled = closest_match(required, unknown.iter().map(String::as_str));
            return Err(Error::input_hint(
                format!("{file}, line {line}: there is no column `{required}`"),
                misspelled.map_or_else(
                    || "the first line names the columns: subject, relation, object; optional are aliases, question, split, paraphrases".into(),
                    |name| format!("should the column `{name}` be called `{required}`?"),
                ),
            ));
        }
    }
    for name in unknown {
        let missing = FACT_COLUMNS
            .into_iter()
            .filter(|c| !columns.contains(&Some(c)));
        if let Some(suggestion) = closest_match(&name, missing) {
            notes.push(format!(
                "{file}: the column `{name}` is not read; did you mean `{suggestion}`?"
            ));
        }
    }
    Ok(columns)
}

/// One row.
fn row(
    line: usize,
    columns: &[Option<&'static str>],
    record: &csv::ByteRecord,
    separator: Separator,
) -> Result<RawFact, BadRow> {
    if record.as_slice().len() > MAX_ROW_BYTES {
        return Err(BadRow::too_long(line, record.as_slice().len()));
    }
    let mut row = RawFact {
        line,
        ..RawFact::default()
    };
    for (bytes, column) in record.iter().zip(columns) {
        let Some(column) = *column else { continue };
        let text = std::str::from_utf8(bytes).map_err(|e| {
            let reason = format!("is not UTF-8 at byte {}", e.valid_up_to() + 1);
            BadRow::field(line, column, reason)
        })?;
        if text.contains('\0') {
            let reason = "has a NUL character; is the file binary, or UTF-16?";
            return Err(BadRow::field(line, column, reason));
        }
        row.set(column, &field_text(text, separator));
    }
    // Trailing optional fields may be missing. Extra fields mean a separator inside a field.
    let (found, expected) = (record.len(), columns.len());
    let is_missing = |required: &&str| {
        let index = columns.iter().position(|c| *c == Some(*required));
        index.is_some_and(|i| i >= found)
    };
    if let Some(field) = REQUIRED_COLUMNS.into_iter().find(is_missing) {
        let reason = format!("is missing: the row has {found} fields, the header has {expected}");
        return Err(BadRow::field(line, field, reason));
    }
    if found > expected {
        let reason = format!(
            "the row has {found} fields, the header has {expected}: quote a field that contains the separator"
        );
        return Err(BadRow::row(line, reason));
    }
    Ok(row)
}

/// The text of a field. The CSV reader has removed its quotes; in TSV they are still there.
fn field_text(text: &str, separator: Separator) -> String {
    match separator {
        Separator::Tab => unquote(text),
        Separator::Comma => text.to_owned(),
    }
}

/// Removes quotes that enclose the whole field, and undoubles quotes inside it. `"Heroes" (album)` is unchanged.
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

    fn tsv(text: &str) -> RawFacts<'_> {
        read_facts("f.tsv", text.as_bytes(), Separator::Tab).unwrap()
    }

    #[test]
    fn blank_lines_count_and_any_line_ending_is_read() {
        let rows =
            tsv("subject\trelation\tobject\r\n\r\n\na\tP17\tb\n\n\nc\tP17\td").collect_rows();
        let lines: Vec<_> = rows.iter().map(|r| r.as_ref().unwrap().line).collect();
        assert_eq!(lines, [4, 7]);
        assert_eq!(rows[1].as_ref().unwrap().object.as_deref(), Some("d"));
    }

    #[test]
    fn lines_are_counted_after_a_csv_field_that_spans_lines() {
        let text = "subject,relation,object,question\n\"a, b\",P17,c,\"one\ntwo\"\nd,P17,e,\n";
        let rows = read_facts("f.csv", text.as_bytes(), Separator::Comma)
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
    fn columns_may_have_any_order_and_case_and_others_are_ignored() {
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
    fn a_misspelled_column_is_named() {
        let error = read_facts(
            "f.tsv",
            b"subject\trelaton\tobject\na\tP17\tb\n",
            Separator::Tab,
        )
        .err()
        .unwrap();
        assert_eq!(
            error.to_string(),
            "f.tsv, line 1: there is no column `relation`"
        );
        assert_eq!(
            error.hint(),
            Some("should the column `relaton` be called `relation`?")
        );
        let notes = tsv("subject\trelation\tobject\talias\na\tP17\tb\tc\n").notes;
        assert_eq!(
            notes,
            ["f.tsv: the column `alias` is not read; did you mean `aliases`?"]
        );
    }

    #[test]
    fn broken_fields_name_their_line() {
        let rows = read_facts(
            "f.tsv",
            b"subject\trelation\tobject\na\tP17\nb\tP17\t\xff\nc\tP17\tx\ty\nd\tP\0\tx\n",
            Separator::Tab,
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
    fn a_row_that_is_too_long_is_refused() {
        let text = format!(
            "subject\trelation\tobject\na\tP17\t{}\n",
            "x".repeat(MAX_ROW_BYTES)
        );
        assert_eq!(tsv(&text).collect_rows()[0].as_ref().unwrap_err().line, 2);
    }
}

//! TSV and CSV: a header that names the columns, then one record a row.

use serde_json::{Map, Value};

use super::{
    bad_row::{BadRow, MAX_ROW_BYTES},
    columns::{
        FACT_COLUMNS, FORMS, QUESTION_AND_ANSWER, REQUIRED_COLUMNS, foreign_names, is_read,
        name_list, required_columns, twice,
    },
    raw_fact::{RawFact, RawFacts},
    records::{Record, Records},
    source::{Separator, Source},
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
    let (header, records) = header_and_records(file, bytes, separator)?;
    let columns = fact_columns(file, &header, separator, &mut notes)?;
    let mut records = records.peekable();
    if records.peek().is_none() {
        return Err(Error::input_hint(
            format!("{file} has column names but no rows"),
            "add one line for each fact",
        ));
    }
    let rows = records.map(move |record| Ok(record.and_then(|record| row(&columns, &record))));
    Ok(RawFacts {
        notes,
        ..RawFacts::new(rows)
    })
}

/// The rows of a table as JSON objects of all its columns, every field text. Column names are in lower case. A field that the row
/// does not have is missing.
pub(super) fn read_objects<'b>(
    file: &'b str,
    bytes: &'b [u8],
    separator: Separator,
) -> Result<impl Iterator<Item = Result<(usize, Result<Value, BadRow>)>> + 'b> {
    let (header, records) = header_and_records(file, bytes, separator)?;
    let names: Vec<String> = header.names.iter().map(|n| n.to_lowercase()).collect();
    for (i, name) in names.iter().enumerate() {
        if names[..i].contains(name) && is_read(name) {
            return Err(twice(&format!("{file}, line {}", header.line), name));
        }
    }
    let object = move |record: Record| -> Result<Value, BadRow> {
        refuse_empty(&record)?;
        let fields = texts(&record, &names)?;
        refuse_surplus(&record, names.len())?;
        let fields = names
            .iter()
            .cloned()
            .zip(fields.into_iter().map(Value::String));
        Ok(Value::Object(fields.collect()))
    };
    Ok(records.map(move |record| {
        let (line, row) = match record {
            Ok(record) => (record.line, object(record)),
            Err(bad) => (bad.line, Err(bad)),
        };
        Ok((line, row))
    }))
}

/// A row of a table with its column names, each with an empty text.
pub(super) fn column_names(source: &Source, separator: Separator) -> Option<Value> {
    let (header, _) = header_and_records(&source.name, source.content(), separator).ok()?;
    let fields = header.names.into_iter();
    let fields: Map<String, Value> = fields
        .map(|name| (name.to_lowercase(), Value::String(String::new())))
        .collect();
    Some(Value::Object(fields))
}

/// The column names of a table.
struct Header {
    line: usize,
    names: Vec<String>,
}

/// The header and the records behind it.
fn header_and_records<'b>(
    file: &str,
    bytes: &'b [u8],
    separator: Separator,
) -> Result<(Header, Records<'b>)> {
    let mut records = Records::new(bytes, separator);
    let header = match records.next() {
        None => Header {
            line: 1,
            names: Vec::new(),
        },
        Some(Ok(record)) => Header {
            line: record.line,
            names: record
                .fields
                .iter()
                .map(|field| String::from_utf8_lossy(field).trim().to_owned())
                .collect(),
        },
        Some(Err(bad)) => {
            let line = bad.line;
            let first = bytes.split(|b| matches!(b, b'\r' | b'\n'));
            let first = first
                .map(String::from_utf8_lossy)
                .nth(line - 1)
                .unwrap_or_default();
            let whole = Header {
                line,
                names: vec![first.into_owned()],
            };
            return Err(match other_header(&whole, separator) {
                Some((fault, hint)) => Error::input_hint(
                    format!("{file}, line {line}: there are no column names: {fault}"),
                    hint,
                ),
                None => Error::input(format!("{file}, line {line}: {bad}")),
            });
        }
    };
    Ok((header, records))
}

/// The fact column that each column of the table is; `None` for a column that is not read. A table of questions and answers has no
/// subjects: its `answer` is the object.
fn fact_columns(
    file: &str,
    header: &Header,
    separator: Separator,
    notes: &mut Vec<String>,
) -> Result<Vec<Option<&'static str>>> {
    let line = header.line;
    let mut columns = Vec::with_capacity(header.names.len());
    let mut unknown = Vec::new();
    let has = |wanted: &str| header.names.iter().any(|n| n.eq_ignore_ascii_case(wanted));
    let without_subject =
        QUESTION_AND_ANSWER.into_iter().all(has) && !has("subject") && !has("object");
    for name in &header.names {
        let mut known = FACT_COLUMNS.into_iter();
        let mut column = known.find(|c| c.eq_ignore_ascii_case(name));
        if without_subject && name.eq_ignore_ascii_case("answer") {
            column = Some("answer");
        }
        if column.is_some() && columns.contains(&column) {
            return Err(twice(&format!("{file}, line {line}"), name));
        }
        if column.is_none() {
            unknown.push(name.as_str());
        }
        columns.push(column);
    }
    if without_subject {
        return Ok(columns);
    }
    for required in required_columns(has).iter().copied() {
        if columns.contains(&Some(required)) {
            continue;
        }
        if let Some((fault, hint)) = other_header(header, separator) {
            return Err(Error::input_hint(
                format!("{file}, line {line}: there are no column names: {fault}"),
                hint,
            ));
        }
        let misspelled = closest_match(required, unknown.iter().copied());
        let names = header.names.iter().map(String::as_str);
        let hint = foreign_names(names)
            .or_else(|| {
                misspelled.map(|name| format!("should the column `{name}` be called `{required}`?"))
            })
            .unwrap_or_else(|| {
                if columns.iter().any(Option::is_some) {
                    "the first line names the columns: subject, relation, object; optional are aliases, question, split, paraphrases".into()
                } else {
                    format!("rename the columns, or put a line of column names above the first row if this is one; {FORMS}")
                }
            });
        return Err(Error::input_hint(
            format!(
                "{file}, line {line}: there is no column `{required}`; the columns are {}",
                name_list(header.names.iter().map(String::as_str))
            ),
            hint,
        ));
    }
    for name in unknown {
        let missing = FACT_COLUMNS
            .into_iter()
            .filter(|c| !columns.contains(&Some(c)));
        if let Some(suggestion) = closest_match(name, missing) {
            notes.push(format!(
                "{file}: the column `{name}` is not read; did you mean `{suggestion}`?"
            ));
        }
    }
    Ok(columns)
}

/// What the first line is, if it is no line of column names, and what to do.
fn other_header(header: &Header, separator: Separator) -> Option<(String, &'static str)> {
    let names = &header.names;
    let first = names.first().map_or("", String::as_str);
    let is_known = |name: &str| is_read(name.trim().trim_matches('"'));
    if first.to_ascii_lowercase().starts_with("sep=") {
        return Some((
            format!("`{first}` is Excel's mark of a separator"),
            "remove the line",
        ));
    }
    if first.starts_with('#') || first.starts_with("//") {
        return Some((
            "the line is a comment".into(),
            "remove it: the first line names the columns",
        ));
    }
    if names.len() == 1 {
        let split_by = |c: char| first.split(c).filter(|part| is_known(part)).count();
        let found = match separator {
            Separator::Comma if split_by('\t') > 1 => Some((
                "tabs",
                "give the file the extension .tsv, or save it with commas",
            )),
            Separator::Tab if split_by(',') > 1 => Some((
                "commas",
                "give the file the extension .csv, or save it with tabs",
            )),
            _ if split_by(';') > 1 => Some(("semicolons", "save the table with commas, as .csv")),
            _ if split_by('|') > 1 => Some(("bars", "save the table with commas, as .csv")),
            _ if split_by(' ') > 1 => Some(("spaces", "save the table with tabs, as .tsv")),
            _ => None,
        };
        return found.map(|(separators, hint)| {
            (
                format!("the first line has {separators} between them"),
                hint,
            )
        });
    }
    None
}

/// The fields of a record as text.
fn texts(record: &Record, names: &[String]) -> Result<Vec<String>, BadRow> {
    let bytes: usize = record.fields.iter().map(Vec::len).sum();
    if bytes > MAX_ROW_BYTES {
        return Err(BadRow::too_long(record.line, bytes));
    }
    let text = |(i, field): (usize, &Vec<u8>)| {
        let name = names.get(i).map_or("", String::as_str);
        if name.is_empty() {
            // A column that is not read may hold anything.
            return Ok(String::from_utf8_lossy(field).into_owned());
        }
        let text = std::str::from_utf8(field).map_err(|e| {
            let at = e.valid_up_to() + 1;
            BadRow::row(
                record.line,
                format!("field `{name}` is not UTF-8 at byte {at}: save the file as UTF-8 (it may be Latin-1 or Windows-1252)"),
            )
        })?;
        if text.contains('\0') {
            let reason =
                format!("field `{name}` has a NUL character; is the file binary, or UTF-16?");
            return Err(BadRow::row(record.line, reason));
        }
        Ok(text.to_owned())
    };
    record.fields.iter().enumerate().map(text).collect()
}

/// A record without any content.
fn refuse_empty(record: &Record) -> Result<(), BadRow> {
    let is_empty = |field: &Vec<u8>| field.iter().all(u8::is_ascii_whitespace);
    if record.fields.len() < 2 || !record.fields.iter().all(is_empty) {
        return Ok(());
    }
    let reason = "the row has separators and no content, as spreadsheets write them below a table: remove the line";
    Err(BadRow::row(record.line, reason))
}

/// A record with more fields than the header: a field contains the separator.
fn refuse_surplus(record: &Record, expected: usize) -> Result<(), BadRow> {
    let found = record.fields.len();
    if found <= expected {
        return Ok(());
    }
    let reason = format!(
        "the row has {found} fields, the header has {expected}: quote a field that contains the separator"
    );
    Err(BadRow::row(record.line, reason))
}

/// One row.
fn row(columns: &[Option<&'static str>], record: &Record) -> Result<RawFact, BadRow> {
    let line = record.line;
    let names: Vec<String> = columns
        .iter()
        .map(|c| c.unwrap_or_default().into())
        .collect();
    let mut row = RawFact {
        line,
        without_subject: columns.contains(&Some("answer")),
        ..RawFact::default()
    };
    refuse_empty(record)?;
    let texts = texts(record, &names)?;
    for (text, column) in texts.iter().zip(columns) {
        if let Some(column) = column {
            row.set(column, text)?;
        }
    }
    // Trailing optional fields may be missing. Extra fields mean a separator inside a field.
    let found = record.fields.len();
    let is_missing = |required: &&str| {
        let index = columns.iter().position(|c| *c == Some(*required));
        index.is_some_and(|i| i >= found)
    };
    let mut required = REQUIRED_COLUMNS.into_iter().chain(QUESTION_AND_ANSWER);
    let required = if row.without_subject {
        required.rfind(is_missing)
    } else {
        REQUIRED_COLUMNS.into_iter().find(is_missing)
    };
    if let Some(field) = required {
        let expected = columns.len();
        let reason = format!("is missing: the row has {found} fields, the header has {expected}");
        return Err(BadRow::field(line, field, reason));
    }
    refuse_surplus(record, columns.len())?;
    Ok(row)
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
    fn a_table_of_questions_and_answers_has_no_subjects() {
        let rows = tsv("question\tAnswer\tid\nWho?\tHe\t7\nWhy\n").collect_rows();
        let row = rows[0].as_ref().unwrap();
        assert!(row.without_subject);
        assert_eq!(row.object.as_deref(), Some("He"));
        assert_eq!(rows[1].as_ref().unwrap_err().field, Some("answer"));
    }

    #[test]
    fn a_first_line_that_names_no_columns_is_told_as_what_it_is() {
        for (text, separator, words) in [
            (
                "subject;relation;object\na;P17;b\n",
                Separator::Comma,
                "semicolons",
            ),
            ("\"subject\";\"relation\"\n", Separator::Comma, "semicolons"),
            ("subject\trelation\tobject\n", Separator::Comma, "tabs"),
            ("subject,relation,object\n", Separator::Tab, "commas"),
            (
                "sep=,\nsubject,relation,object\n",
                Separator::Comma,
                "Excel",
            ),
            (
                "# facts\nsubject,relation,object\n",
                Separator::Comma,
                "comment",
            ),
            (
                "Rome,P17,Italy\nOslo,P17,Norway\n",
                Separator::Comma,
                "`Rome`, `P17`, `Italy`",
            ),
            (
                "id,subj,prop,obj\n1,a,b,c\n",
                Separator::Comma,
                "no column `subject`",
            ),
        ] {
            let error = read_facts("f", text.as_bytes(), separator).err().unwrap();
            assert!(error.to_string().contains(words), "{text:?}: {error}");
        }
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
            "f.tsv, line 1: there is no column `relation`; the columns are `subject`, `relaton`, `object`"
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
                Err((3, None)),
                Err((4, None)),
                Err((5, None)),
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

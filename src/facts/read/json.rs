//! JSON: one value a line, or an array of values.

use serde_json::{Map, Value};

use super::{
    bad_row::{BadRow, MAX_ROW_BYTES},
    columns::{QUESTION_AND_ANSWER, REQUIRED_COLUMNS, is_read},
    source::BYTE_ORDER_MARK,
};
use crate::{Error, Result};

/// A value and its number: its line, or its index from 1.
pub(super) type NumberedValue = (usize, Result<Value, BadRow>);

/// The value of each line that is not blank, with its line number.
pub(super) fn parse_lines(bytes: &[u8]) -> impl Iterator<Item = NumberedValue> {
    let lines = bytes.split(|b| *b == b'\n').enumerate();
    let lines = lines.map(|(i, line)| {
        // Where two files were joined, the mark of the second one stands at the beginning of a line.
        (i + 1, line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line))
    });
    lines
        .filter(|(_, line)| !line.iter().all(u8::is_ascii_whitespace))
        .map(|(number, line)| (number, parse_line(number, line)))
}

/// The rows of a file that is one JSON array. A file with one object a line is read as JSON lines.
///
/// # Errors
/// [`Error::Input`] when it is neither.
pub(super) fn parse_document(
    file: &str,
    bytes: &[u8],
) -> Result<Box<dyn Iterator<Item = NumberedValue>>> {
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let read = String::from_utf8_lossy(&bytes[..e.valid_up_to()]);
        let line = read.matches('\n').count() + 1;
        Error::input(format!("{file}, line {line}: not UTF-8"))
    })?;
    let value = match parse_text(text) {
        Ok(value) => value,
        Err(e) => {
            // More than one value: one on each line, if the first line is one.
            let first = text.lines().find(|line| !line.trim().is_empty());
            let is_lines = first.is_some_and(|line| {
                let line = line.trim_start_matches('\u{feff}');
                line.starts_with('{') && parse_text(line).is_ok()
            });
            if is_lines {
                let rows: Vec<_> = parse_lines(bytes).map(|(_, row)| row).collect();
                let rows = rows.into_iter().enumerate().map(|(i, row)| {
                    let row = row.map_err(|bad| BadRow { line: i + 1, ..bad });
                    (i + 1, row)
                });
                return Ok(Box::new(rows));
            }
            return Err(Error::input(format!(
                "{file}, line {}: {}",
                e.line(),
                fault(text, &e)
            )));
        }
    };
    let items = match value {
        Value::Array(items) => items,
        Value::Object(fields) => {
            if is_columns(&fields) {
                return Err(Error::input_hint(
                    format!("{file}: the file holds columns; an array of rows is needed"),
                    "save it row by row: in pandas `df.to_json(path, orient=\"records\")`",
                ));
            }
            match rows_path(&fields) {
                Some(key) if !is_read(&key) => {
                    return Err(Error::input_hint(
                        format!("{file}: the file holds an object; an array of rows is needed"),
                        format!(
                            "the array is under `{key}`: save that alone, as with `jq .{key}`, or as one row a line in a .jsonl file"
                        ),
                    ));
                }
                // One row, in a file of its own.
                _ if is_row(&fields) => vec![Value::Object(fields)],
                _ => return Err(no_array(file, "an object")),
            }
        }
        other => return Err(no_array(file, type_name(&other))),
    };
    let rows = items.into_iter().enumerate();
    Ok(Box::new(rows.map(|(i, value)| (i + 1, Ok(value)))))
}

/// Where in an object the rows stand, dotted: at a key, or a level below it.
fn rows_path(fields: &Map<String, Value>) -> Option<String> {
    let here = fields.iter().find(|(_, v)| is_rows(v));
    if let Some((key, _)) = here {
        return Some(key.clone());
    }
    fields.iter().find_map(|(key, value)| {
        let mut below = value.as_object()?.iter();
        let (inner, _) = below.find(|(_, v)| is_rows(v))?;
        Some(format!("{key}.{inner}"))
    })
}

fn no_array(file: &str, found: &str) -> Error {
    Error::input_hint(
        format!("{file}: the file holds {found}; an array of rows is needed"),
        "a file with one row a line needs the extension .jsonl",
    )
}

/// Whether the fields are those of a fact or a text.
fn is_row(fields: &Map<String, Value>) -> bool {
    let has = |names: &[&str]| names.iter().all(|name| fields.contains_key(*name));
    has(&REQUIRED_COLUMNS)
        || has(&QUESTION_AND_ANSWER)
        || [
            "messages",
            "conversations",
            "completion",
            "text",
            "instruction",
        ]
        .iter()
        .any(|name| has(&[name]))
}

/// Whether the fields of a row are columns of a table, as pandas writes them: lists of values, or objects with the index as names.
fn is_columns(fields: &Map<String, Value>) -> bool {
    let is_messages =
        |name: &str| matches!(name, "messages" | "conversations" | "prompt" | "completion");
    let is_column = |(name, value): (&String, &Value)| match value {
        Value::Object(items) => items.keys().all(|key| key.parse::<usize>().is_ok()),
        Value::Array(items) => {
            let first = items.first();
            // A chat of a single row has messages there.
            first.is_some_and(|item| !is_messages(name) || !item.is_object())
        }
        _ => false,
    };
    is_row(fields) && fields.iter().all(is_column)
}

fn is_rows(value: &Value) -> bool {
    value
        .as_array()
        .is_some_and(|items| !items.is_empty() && items.iter().all(Value::is_object))
}

fn parse_line(line: usize, bytes: &[u8]) -> Result<Value, BadRow> {
    if bytes.len() > MAX_ROW_BYTES {
        return Err(BadRow::too_long(line, bytes.len()));
    }
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let reason = format!("the line is not UTF-8 at byte {}", e.valid_up_to() + 1);
        BadRow::row(line, reason)
    })?;
    parse_text(text).map_err(|e| {
        let reason = format!("{} at column {}", fault(text, &e), e.column());
        let hint = if e.is_eof() {
            ": each row is one line; a file with one array over several lines is named .json"
        } else {
            ""
        };
        BadRow::row(line, reason + hint)
    })
}

/// Parses JSON. A number that does not look the same once it is read is kept as the text that stands there.
pub(super) fn parse_text(text: &str) -> serde_json::Result<Value> {
    match quote_inexact_numbers(text) {
        Some(quoted) => serde_json::from_str(&quoted).or_else(|_| serde_json::from_str(text)),
        None => serde_json::from_str(text),
    }
}

/// `text` with quotes around the numbers that a double or a 64-bit integer would change, where they are a row's own field or stand in
/// a list there; `None` if there are none.
fn quote_inexact_numbers(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut quoted: Option<String> = None;
    let (mut copied, mut at) = (0, 0);
    let mut open: Vec<u8> = Vec::new();
    let mut objects = 0_usize;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                at += 1;
                while at < bytes.len() && bytes[at] != b'"' {
                    at += 1 + usize::from(bytes[at] == b'\\');
                }
            }
            bracket @ (b'{' | b'[') => {
                objects += usize::from(bracket == b'{');
                open.push(bracket);
            }
            b'}' | b']' => {
                let closed = open.pop() == Some(b'{');
                objects = objects.saturating_sub(usize::from(closed));
            }
            b'-' | b'0'..=b'9' => {
                let is_part = |b: &u8| b.is_ascii_digit() || b"+-.eE".contains(b);
                let end = at + bytes[at..].iter().take_while(|b| is_part(b)).count();
                let number = &text[at..end];
                if objects <= 1 && open.len() <= 3 && !is_exact(number) {
                    let out = quoted.get_or_insert_default();
                    out.push_str(&text[copied..at]);
                    out.push('"');
                    out.push_str(number);
                    out.push('"');
                    copied = end;
                }
                at = end;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    let mut quoted = quoted?;
    quoted.push_str(&text[copied..]);
    Some(quoted)
}

/// Whether a number is written again as it stands, or is no number at all.
fn is_exact(number: &str) -> bool {
    match serde_json::from_str::<serde_json::Number>(number) {
        Ok(read) => read.to_string() == number,
        // An exponent beyond a double.
        Err(e) => !e.to_string().starts_with("number out of range"),
    }
}

/// What is wrong with a text that is not JSON.
fn fault(text: &str, error: &serde_json::Error) -> String {
    let line = text
        .lines()
        .nth(error.line().saturating_sub(1))
        .unwrap_or_default();
    let before = line.get(..error.column().saturating_sub(1)).unwrap_or(line);
    let rest = line.get(before.len()..).unwrap_or_default();
    // The parser stops within a word, or behind its first letter.
    let word_start = before
        .rfind(|c: char| !c.is_ascii_alphabetic() && c != '-')
        .map_or(0, |i| i + 1);
    let word = line[word_start..].trim_start_matches('-');
    let found = [
        "NaN",
        "Infinity",
        "None",
        "True",
        "False",
        "undefined",
        "nan",
        "inf",
    ]
    .into_iter()
    .find(|w| word.starts_with(w));
    match found {
        Some(word @ ("NaN" | "nan")) => {
            return format!(
                "not JSON: `{word}` stands there, which Python's json writes for a missing value: save it as null"
            );
        }
        Some(word @ ("None" | "True" | "False")) => {
            return format!(
                "not JSON: `{word}` is Python, not JSON: write the rows with `json.dumps`"
            );
        }
        Some(word) => return format!("not JSON: `{word}` stands there, which is no JSON value"),
        None => {}
    }
    if rest.starts_with('\'') || before.ends_with('\'') {
        return "not JSON: texts have double quotes; single ones are Python's: write the rows with `json.dumps`".into();
    }
    let comment = line.trim_start().starts_with(['/', '#']);
    if comment {
        return "not JSON: the line looks like a comment, which JSON has not".into();
    }
    let is_escape = error.to_string().contains("escape");
    if is_escape && is_lone_surrogate(line, error.column()) {
        return "not JSON: `\\u` names half of a surrogate pair, which is no character".into();
    }
    if rest.starts_with('\u{feff}') || before.ends_with('\u{feff}') {
        return "not JSON: a byte order mark (U+FEFF) stands there".into();
    }
    if error.to_string().starts_with("trailing characters") {
        let found = if before.trim_end_matches([' ', '\t']).ends_with('\r') {
            "another row stands behind a carriage return without a line feed"
        } else if rest.starts_with(',') {
            "a comma stands behind the row"
        } else if rest.starts_with(['{', '[']) {
            "a second row stands in the same line"
        } else {
            "text stands behind the row"
        };
        return format!("not JSON: {found}");
    }
    format!("not JSON: {}", message_without_position(error))
}

/// Whether an escape of half a surrogate pair (`\ud800`) ends shortly before the column where a parser stopped.
fn is_lone_surrogate(line: &str, column: usize) -> bool {
    let before = line
        .as_bytes()
        .get(..column.min(line.len()))
        .unwrap_or_default();
    let last = &before[before.len().saturating_sub(LONGEST_ESCAPES)..];
    let mut escapes = last.windows(4);
    escapes.any(|w| {
        w.starts_with(b"\\u")
            && matches!(w[2], b'd' | b'D')
            && matches!(w[3], b'8'..=b'9' | b'a'..=b'f' | b'A'..=b'F')
    })
}

/// Bytes of two escapes and the quote behind them.
const LONGEST_ESCAPES: usize = 14;

/// A field as text; a number is converted.
pub(super) fn scalar(line: usize, field: &'static str, value: &Value) -> Result<String, BadRow> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        other => {
            let reason = format!("is {}; text is needed", type_name(other));
            return Err(BadRow::field(line, field, reason));
        }
    };
    if text.contains('\0') {
        return Err(BadRow::field(line, field, "has a NUL character"));
    }
    Ok(text)
}

/// The JSON type of a value, for messages.
pub(super) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The parser's message without its own "at line 1 column 5".
fn message_without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ")
        .next()
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_kept_as_they_are_written() {
        let line = br#"{"a": 12345678901234567890123, "b": [1.50, 2, -7], "c": {"d": 1e400, "e": 1.5}, "f": "1.50 [", "g": 1E5}"#;
        let (_, row) = parse_lines(line).next().unwrap();
        // Within an object of its own a number stays one; this one no double can hold.
        assert!(row.is_err());
        let line = br#"{"a": 12345678901234567890123, "b": [1.50, 2, -7], "c": {"e": 1.5}, "f": "1.50 [", "g": 1E5, "h": 1e400}"#;
        let (_, row) = parse_lines(line).next().unwrap();
        assert_eq!(
            row.unwrap(),
            serde_json::json!({"a": "12345678901234567890123", "b": ["1.50", 2, -7], "c": {"e": 1.5}, "f": "1.50 [", "g": "1E5", "h": "1e400"})
        );
    }

    #[test]
    fn a_fault_is_named() {
        for (line, words) in [
            (r#"{"a": NaN}"#, "`NaN` stands there"),
            (r#"{"a": -Infinity}"#, "`Infinity`"),
            (r#"{"a": "x\ud800y"}"#, "half of a surrogate pair"),
            (r#"{"a": "\udc00"}"#, "half of a surrogate pair"),
            ("// {}", "looks like a comment"),
            (r#"{"a": None}"#, "`None` is Python"),
            (r#"{"a": [True]}"#, "`True` is Python"),
            ("{'a': 1}", "double quotes"),
            (r#"{"a": 'b'}"#, "double quotes"),
            ("{", "each row is one line"),
            ("{\"a\": \u{feff}1}", "byte order mark"),
            ("{\"a\": 1}\r{\"a\": 2}\r", "carriage return"),
            ("{\"a\": 1} {\"a\": 2}", "a second row"),
            ("{\"a\": 1},", "a comma stands behind"),
            ("{\"a\": 1} x", "text stands behind"),
        ] {
            let (_, row) = parse_lines(line.as_bytes()).next().unwrap();
            let reason = row.unwrap_err().reason;
            assert!(reason.contains(words), "{line}: {reason}");
        }
    }

    #[test]
    fn json_lines_may_be_named_json_and_a_mark_may_begin_a_line() {
        let text = "{\"a\": 1}\n\n\u{feff}{\"a\": 2}\n{\n";
        let rows: Vec<_> = parse_document("f.json", text.as_bytes()).unwrap().collect();
        assert_eq!(rows[1], (2, Ok(serde_json::json!({"a": 2}))));
        assert_eq!(rows[2].1.as_ref().unwrap_err().line, 3);
    }

    /// `pandas.DataFrame.to_json` writes the first form by default, and `orient="list"` of `to_dict` the second one.
    #[test]
    fn columns_are_told_from_rows() {
        for (text, is_column) in [
            (r#"{"question":{"0":"Who?"},"answer":{"0":"He"}}"#, true),
            (r#"{"question":["Who?"],"answer":["He"]}"#, true),
            (r#"{"messages":[[{"role":"user","content":"hi"}]]}"#, true),
            (r#"{"messages":[{"role":"user","content":"hi"}]}"#, false),
            (r#"{"question":"Who?","answer":["He"]}"#, false),
            (
                r#"{"prompt":[{"role":"user","content":"hi"}],"completion":[{"role":"assistant","content":"ho"}]}"#,
                false,
            ),
        ] {
            let error = parse_document("f.json", text.as_bytes()).err();
            let found = error.is_some_and(|e| e.to_string().contains("columns"));
            assert_eq!(found, is_column, "{text}");
        }
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_overflow() {
        let deep = "[".repeat(100_000);
        assert!(parse_document("f.json", deep.as_bytes()).is_err());
    }
}

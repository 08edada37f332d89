//! JSONL, and JSON arrays of the same rows.

use serde_json::{Map, Value};

use super::{
    Cells, MAX_ROW_BYTES, Rows,
    row::{BadRow, COLUMNS, REQUIRED_COLUMNS, RawFact},
    values::NumberedRow,
};
use crate::{Error, Result, error::closest_match};

/// Facts from rows of JSON.
pub(super) fn read_facts<'b>(values: impl Iterator<Item = Result<NumberedRow>> + 'b) -> Rows<'b> {
    Rows::new(values.map(|value| {
        let (line, value) = value?;
        Ok(value.and_then(|value| parse_value(line, &value)))
    }))
}

/// Every line that is not blank, with its number, as JSON.
pub(super) fn parse_lines(bytes: &[u8]) -> impl Iterator<Item = NumberedRow> {
    let lines = bytes.split(|b| *b == b'\n').enumerate();
    lines
        .filter(|(_, line)| !line.iter().all(u8::is_ascii_whitespace))
        .map(|(i, line)| (i + 1, parse_line(i + 1, line)))
}

/// The fields of an object that are texts or numbers.
pub(super) fn scalar_fields(value: &Value) -> Cells {
    let fields = value.as_object().into_iter().flatten();
    let cells = fields.filter_map(|(name, value)| match value {
        Value::String(text) => Some((name.clone(), text.clone())),
        Value::Number(number) => Some((name.clone(), number.to_string())),
        _ => None,
    });
    cells.collect()
}

/// The items of a JSON array.
pub(super) fn parse_array(file: &str, bytes: &[u8]) -> Result<Vec<Value>> {
    let value: Value = serde_json::from_slice(bytes).map_err(|e| {
        Error::input(format!(
            "{file}, line {}: not JSON: {}",
            e.line(),
            message_without_position(&e)
        ))
    })?;
    let Value::Array(items) = value else {
        return Err(Error::input_hint(
            format!(
                "{file}: the JSON is {}, and an array of rows is needed",
                type_name(&value)
            ),
            "rows that stand a line each belong in a .jsonl file",
        ));
    };
    Ok(items)
}

fn parse_line(line: usize, bytes: &[u8]) -> Result<Value, BadRow> {
    if bytes.len() > MAX_ROW_BYTES {
        let reason = format!(
            "the line is {} bytes long, and {MAX_ROW_BYTES} is the most",
            bytes.len()
        );
        return Err(BadRow::row(line, reason));
    }
    let text = std::str::from_utf8(bytes).map_err(|e| {
        BadRow::row(
            line,
            format!(
                "the line is not UTF-8 (its byte {} is wrong)",
                e.valid_up_to() + 1
            ),
        )
    })?;
    serde_json::from_str(text).map_err(|e| {
        let reason = format!(
            "not JSON: {} at column {}",
            message_without_position(&e),
            e.column()
        );
        BadRow::row(line, reason)
    })
}

/// One row from a JSON object.
fn parse_value(line: usize, value: &Value) -> Result<RawFact, BadRow> {
    let Value::Object(object) = value else {
        return Err(BadRow::row(
            line,
            format!("the row is {}, and an object is needed", type_name(value)),
        ));
    };
    let mut row = RawFact {
        line,
        ..RawFact::default()
    };
    for column in COLUMNS {
        match object.get(column) {
            None | Some(Value::Null) => {}
            Some(Value::Array(items)) if matches!(column, "aliases" | "paraphrases") => {
                let items: Vec<String> = items
                    .iter()
                    .map(|i| scalar(line, column, i))
                    .collect::<Result<_, _>>()?;
                row.set_list(column, items.iter().map(String::as_str));
            }
            Some(value) => row.set(column, &scalar(line, column, value)?),
        }
    }
    for required in REQUIRED_COLUMNS {
        if !object.contains_key(required) {
            return Err(BadRow::field(
                line,
                required,
                format!("is missing{}", column_suggestion(required, object)),
            ));
        }
    }
    Ok(row)
}

/// A text, or a number as text.
pub(super) fn scalar(line: usize, field: &'static str, value: &Value) -> Result<String, BadRow> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        other => {
            return Err(BadRow::field(
                line,
                field,
                format!("is {}, and text is needed", type_name(other)),
            ));
        }
    };
    if text.contains('\0') {
        return Err(BadRow::field(line, field, "holds a NUL character"));
    }
    Ok(text)
}

fn column_suggestion(required: &str, object: &Map<String, Value>) -> String {
    let others = object
        .keys()
        .map(String::as_str)
        .filter(|k| !COLUMNS.contains(k));
    closest_match(required, others)
        .map_or_else(String::new, |k| format!("; did you mean it by `{k}`?"))
}

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

/// The parser's reason without its own "at line 1 column 5".
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
    fn lists_may_be_lists_or_texts_and_numbers_are_read_as_text() {
        let text = br#"{"subject":"iron","relation":"P1086","object":26,"aliases":["twenty-six"],"paraphrases":"a?|b?","extra":{}}"#;
        let row = read_facts(parse_lines(text).map(Ok)).rows.next().unwrap();
        let row = row.unwrap().unwrap();
        assert_eq!(row.object.as_deref(), Some("26"));
        assert_eq!(
            (&row.aliases[..], &row.paraphrases[..]),
            (
                &["twenty-six".to_owned()][..],
                &["a?".to_owned(), "b?".to_owned()][..]
            )
        );
    }

    #[test]
    fn broken_lines_name_their_line_and_field() {
        let text = b"{\"subject\":\"a\",\"relation\":\"P17\",\"object\":\"b\"}\r\n\n{\n[]\n{\"subject\":\"a\",\"relation\":\"P17\",\"objet\":\"b\"}\n\
            {\"subject\":\"a\",\"relation\":\"P17\",\"object\":[]}\n\xff\n";
        let results: Vec<_> = read_facts(parse_lines(text).map(Ok))
            .rows
            .map(|r| {
                r.unwrap()
                    .map(|_| ())
                    .map_err(|b| (b.line, b.field, b.reason.contains("objet")))
            })
            .collect();
        assert_eq!(
            results,
            [
                Ok(()),
                Err((3, None, false)),
                Err((4, None, false)),
                Err((5, Some("object"), true)),
                Err((6, Some("object"), false)),
                Err((7, None, false)),
            ]
        );
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_overflow() {
        let deep = "[".repeat(100_000);
        assert!(parse_array("f.json", deep.as_bytes()).is_err());
    }
}

//! JSON: one value a line, or an array of values.

use serde_json::Value;

use super::bad_row::{BadRow, MAX_ROW_BYTES};
use crate::{Error, Result};

/// The value of each line that is not blank, with its line number.
pub(super) fn parse_lines(bytes: &[u8]) -> impl Iterator<Item = (usize, Result<Value, BadRow>)> {
    let lines = bytes.split(|b| *b == b'\n').enumerate();
    lines
        .filter(|(_, line)| !line.iter().all(u8::is_ascii_whitespace))
        .map(|(i, line)| (i + 1, parse_line(i + 1, line)))
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
                "{file}: the file holds {}; an array of rows is needed",
                type_name(&value)
            ),
            "a file with one row a line needs the extension .jsonl",
        ));
    };
    Ok(items)
}

fn parse_line(line: usize, bytes: &[u8]) -> Result<Value, BadRow> {
    if bytes.len() > MAX_ROW_BYTES {
        return Err(BadRow::too_long(line, bytes.len()));
    }
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let reason = format!("the line is not UTF-8 at byte {}", e.valid_up_to() + 1);
        BadRow::row(line, reason)
    })?;
    serde_json::from_str(text).map_err(|e| {
        let message = message_without_position(&e);
        BadRow::row(
            line,
            format!("not JSON: {message} at column {}", e.column()),
        )
    })
}

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
    fn deep_nesting_is_an_error_and_no_overflow() {
        let deep = "[".repeat(100_000);
        assert!(parse_array("f.json", deep.as_bytes()).is_err());
    }
}

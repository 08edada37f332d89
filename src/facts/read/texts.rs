//! Training data that is no fact: chats, instructions, completions and plain texts, as the field writes them in JSONL, JSON, CSV and
//! Parquet.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{
    super::fact::Location,
    ReadOptions, extension_of,
    json::{scalar, type_name},
    read_bytes,
    row::{self, BadRow},
    strip_bom,
    values::read_rows,
};
use crate::{Error, Result};

/// One turn of a chat.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// What a row of text is, and so which part of it is trained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextKind {
    /// `{"messages": [{"role", "content"}]}`, `ShareGPT`'s `{"conversations": [{"from", "value"}]}` or Alpaca's `{"instruction",
    /// "input", "output"}`: every message of the assistant is trained.
    Chat(Vec<Message>),
    /// `{"prompt", "completion"}`: the completion is trained.
    Completion {
        /// What comes before.
        prompt: String,
        /// What is learned.
        completion: String,
    },
    /// `{"text"}`: all of it is trained.
    Plain(String),
}

/// The fields that are read of a row of text.
pub(super) const TEXT_FIELDS: [&str; 10] = [
    "messages",
    "conversations",
    "instruction",
    "input",
    "output",
    "system",
    "history",
    "prompt",
    "completion",
    "text",
];

/// One row of training text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// The text.
    pub kind: TextKind,
    /// Where it was read.
    pub location: Location,
}

/// Training texts as read, and what the user should know about the reading.
#[derive(Clone, Debug, Default)]
pub struct TextSet {
    /// The texts, in the order of the files.
    pub texts: Vec<Text>,
    /// Rows left out, counted, and why; one line each.
    pub notes: Vec<String>,
    /// SHA-256 (hex) of the files' bytes, in order.
    pub checksum: String,
}

/// Whether a file holds training texts and no facts: its first row has none of a fact's fields and some of a text's.
///
/// # Errors
/// [`Error::Input`] when the file cannot be read.
pub fn is_text_file(file: &Path) -> Result<bool> {
    let (name, bytes) = read_bytes(file)?;
    // What is broken is told when it is read as what it is not found to be here.
    let rows = read_rows(&name, &extension_of(file), strip_bom(&bytes)).ok();
    let first = rows.flatten().and_then(|mut rows| rows.next()?.ok());
    Ok(first.is_some_and(|(_, row)| row.is_ok_and(|row| text_kind(&row).is_some())))
}

/// Reads files of training texts into one set.
///
/// # Errors
/// [`Error::Input`] naming file, line and field of a broken row.
pub fn read_texts(files: &[PathBuf], options: ReadOptions) -> Result<TextSet> {
    let mut set = TextSet::default();
    let mut digest = Sha256::new();
    for path in files {
        let (name, bytes) = read_bytes(path)?;
        digest.update(&bytes);
        let mut bad = Vec::new();
        let rows = read_rows(&name, &extension_of(path), strip_bom(&bytes))?;
        for row in rows.into_iter().flatten() {
            let (line, value) = row?;
            match value.and_then(|v| parse(line, &v)) {
                Ok(kind) => set.texts.push(Text {
                    kind,
                    location: Location {
                        file: name.clone(),
                        line,
                    },
                }),
                Err(reason) => bad.push(reason),
            }
        }
        if !bad.is_empty() && !options.skip_bad_rows {
            return Err(row::bad_rows_error(&name, &bad));
        }
        set.notes.extend(row::bad_rows_notes(&name, &bad));
    }
    if set.texts.is_empty() {
        let names: Vec<Arc<str>> = files
            .iter()
            .map(|f| f.display().to_string().into())
            .collect();
        return Err(Error::input(format!("no text in {}", names.join(", "))));
    }
    set.checksum = format!("{:x}", digest.finalize());
    Ok(set)
}

/// What kind of text a row is, if it is no fact.
pub(super) fn text_kind(row: &Value) -> Option<&'static str> {
    if non_null(row, "subject").is_some() {
        return None;
    }
    [
        ("messages", "chat"),
        ("conversations", "chat"),
        ("instruction", "instruction"),
        ("completion", "completion"),
        ("text", "text"),
    ]
    .into_iter()
    .find_map(|(key, kind)| non_null(row, key).map(|_| kind))
}

/// A field that is there and not null, as a column is in the rows that have none.
fn non_null<'r>(row: &'r Value, field: &str) -> Option<&'r Value> {
    row.get(field).filter(|value| !value.is_null())
}

fn parse(line: usize, value: &Value) -> Result<TextKind, BadRow> {
    let text = |field: &'static str| match value.get(field) {
        Some(value) => scalar(line, field, value),
        None => Err(BadRow::field(line, field, "is missing")),
    };
    let trained_text = |field: &'static str| match text(field) {
        Ok(text) if text.is_empty() => Err(BadRow::field(
            line,
            field,
            "is empty: there is nothing to train",
        )),
        other => other,
    };
    for field in ["messages", "conversations"] {
        if let Some(messages) = non_null(value, field) {
            return chat(line, field, messages).map(TextKind::Chat);
        }
    }
    let has = |field: &str| non_null(value, field).is_some();
    if has("instruction") {
        return instruction(line, value).map(TextKind::Chat);
    }
    if has("prompt") || has("completion") {
        return Ok(TextKind::Completion {
            prompt: text("prompt")?,
            completion: trained_text("completion")?,
        });
    }
    if has("text") {
        return trained_text("text").map(TextKind::Plain);
    }
    Err(BadRow::row(
        line,
        "the row has none of the fields `messages`, `conversations`, `instruction` and `output`, `prompt` and `completion`, `text`",
    ))
}

/// Messages of a role and its content, or of whom they are from and their value, as `ShareGPT` has them.
fn chat(line: usize, field: &'static str, messages: &Value) -> Result<Vec<Message>, BadRow> {
    let bad = |reason: String| BadRow::field(line, field, reason);
    let Value::Array(items) = messages else {
        return Err(bad(format!(
            "is {}, and a list of messages is needed",
            type_name(messages)
        )));
    };
    let mut chat = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        let part = |keys: [&str; 2]| {
            let found = keys.iter().find_map(|key| item.get(key)?.as_str());
            found.map(str::to_owned).ok_or_else(|| {
                bad(format!(
                    "has no text as `{}` in message {}",
                    keys[usize::from(field == "conversations")],
                    i + 1
                ))
            })
        };
        let (role, content) = (part(["role", "from"])?, part(["content", "value"])?);
        let known = match &*role {
            "system" | "user" | "assistant" | "tool" => &role,
            "human" => "user",
            "gpt" | "chatgpt" | "bing" | "bard" | "model" => "assistant",
            "function" | "observation" => "tool",
            _ => {
                return Err(bad(format!(
                    "has the role `{role}` in message {}; known are system, user, assistant, tool",
                    i + 1
                )));
            }
        };
        chat.push(Message {
            role: known.to_owned(),
            content,
        });
    }
    if chat.iter().any(|m| m.role == "assistant") {
        Ok(chat)
    } else {
        Err(bad(
            "has no message of the assistant: there is nothing to train".into(),
        ))
    }
}

/// Alpaca's fields as a chat of two messages, behind `system` and the turns of `history` where there are any.
fn instruction(line: usize, row: &Value) -> Result<Vec<Message>, BadRow> {
    let text = |field: &'static str| match non_null(row, field) {
        None => Ok(String::new()),
        Some(value) => scalar(line, field, value),
    };
    let (instruction, input, output) = (text("instruction")?, text("input")?, text("output")?);
    if output.is_empty() {
        return Err(BadRow::field(
            line,
            "output",
            "is missing: there is nothing to train",
        ));
    }
    let message = |role: &str, content: String| Message {
        role: role.into(),
        content,
    };
    let mut chat = Vec::new();
    let system = text("system")?;
    if !system.is_empty() {
        chat.push(message("system", system));
    }
    for turn in row
        .get("history")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let said = |i: usize| turn.get(i).and_then(Value::as_str).map(str::to_owned);
        let (Some(asked), Some(answered)) = (said(0), said(1)) else {
            return Err(BadRow::field(
                line,
                "history",
                "is not a list of pairs of texts",
            ));
        };
        chat.push(message("user", asked));
        chat.push(message("assistant", answered));
    }
    let asked = [instruction, input]
        .into_iter()
        .filter(|part| !part.is_empty());
    chat.push(message("user", asked.collect::<Vec<_>>().join("\n\n")));
    chat.push(message("assistant", output));
    Ok(chat)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kinds(text: &str) -> Vec<Result<TextKind, String>> {
        let rows = super::super::json::parse_lines(text.as_bytes());
        rows.map(|(line, v)| v.and_then(|v| parse(line, &v)).map_err(|b| b.to_string()))
            .collect()
    }

    #[test]
    fn the_three_kinds_of_text_are_recognised() {
        let read = kinds(
            "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":\"ho\"}]}\n\
             {\"prompt\":\"a\",\"completion\":\"b\"}\n{\"text\":\"c\"}\n",
        );
        assert!(matches!(&read[0], Ok(TextKind::Chat(m)) if m[1].content == "ho"));
        assert_eq!(
            read[1],
            Ok(TextKind::Completion {
                prompt: "a".into(),
                completion: "b".into()
            })
        );
        assert_eq!(read[2], Ok(TextKind::Plain("c".into())));
    }

    #[test]
    fn broken_texts_name_the_field_and_the_message() {
        let read = kinds(
            "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}\n{\"messages\":[{\"role\":\"bot\",\"content\":\"hi\"}]}\n\
             {\"messages\":[{\"role\":\"user\"}]}\n{\"prompt\":\"a\"}\n{\"text\":\"\"}\n{}\n",
        );
        let reasons = [
            "no message of the assistant",
            "role `bot` in message 1",
            "`content` in message 1",
            "`completion` is missing",
            "`text` is empty",
            "none of",
        ];
        for (row, reason) in read.into_iter().zip(reasons) {
            let message = row.unwrap_err();
            assert!(message.contains(reason), "{message}");
        }
    }

    #[test]
    fn alpaca_and_sharegpt_are_chats() {
        let read = kinds(
            "{\"instruction\":\"Add\",\"input\":\"1 and 2\",\"output\":\"3\",\"system\":\"Be short\",\"history\":[[\"hi\",\"ho\"]]}\n\
             {\"conversations\":[{\"from\":\"human\",\"value\":\"hi\"},{\"from\":\"gpt\",\"value\":\"ho\"}]}\n\
             {\"instruction\":\"Add\",\"input\":\"\",\"output\":\"3\"}\n{\"instruction\":\"Add\"}\n\
             {\"conversations\":[{\"from\":\"gpt\"}]}\n",
        );
        let formatted = |row: &Result<TextKind, String>| match row {
            Ok(TextKind::Chat(chat)) => chat
                .iter()
                .map(|m| format!("{}: {}", m.role, m.content))
                .collect::<Vec<_>>()
                .join(" | "),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            formatted(&read[0]),
            "system: Be short | user: hi | assistant: ho | user: Add\n\n1 and 2 | assistant: 3"
        );
        assert_eq!(formatted(&read[1]), "user: hi | assistant: ho");
        assert_eq!(formatted(&read[2]), "user: Add | assistant: 3");
        assert!(
            read[3]
                .as_ref()
                .unwrap_err()
                .contains("`output` is missing")
        );
        assert!(
            read[4]
                .as_ref()
                .unwrap_err()
                .contains("no text as `value` in message 1")
        );
    }

    #[test]
    fn a_fact_with_a_text_column_is_still_a_fact() {
        assert_eq!(text_kind(&json!({"text": "x"})), Some("text"));
        assert_eq!(text_kind(&json!({"subject": "a", "text": "x"})), None);
    }
}

//! Training data other than facts: chats, instructions, completions and plain texts, in the usual JSONL, JSON, CSV and Parquet
//! layouts.

use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{
    super::fact::Location,
    bad_row::{BadRow, bad_rows_error, bad_rows_notes},
    json::{scalar, type_name},
    rows::read_rows,
    source::{ReadOptions, Source},
};
use crate::{Error, Result};

/// One turn of a chat.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// Its text.
    pub content: String,
}

/// The content of a row, which says which part of it is trained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextKind {
    /// `{"messages": [{"role", "content"}]}`, `ShareGPT`'s `{"conversations": [{"from", "value"}]}` or Alpaca's `{"instruction",
    /// "input", "output"}`: every message of the assistant is trained.
    Chat(Vec<Message>),
    /// `{"prompt", "completion"}`: the completion is trained.
    Completion {
        /// The context; not trained.
        prompt: String,
        /// The trained text.
        completion: String,
    },
    /// `{"text"}`: all of it is trained.
    Plain(String),
}

/// One row of training text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// The text.
    pub kind: TextKind,
    /// Its file and line.
    pub location: Location,
}

/// Training texts and notes about reading them.
#[derive(Clone, Debug, Default)]
pub struct TextSet {
    /// The texts, in the order of the files.
    pub texts: Vec<Text>,
    /// Skipped rows, one line each.
    pub notes: Vec<String>,
    /// SHA-256 (hex) of the files' bytes, in order.
    pub checksum: String,
}

/// Whether a file holds training texts rather than facts, by the fields of its first row.
///
/// # Errors
/// [`Error::Input`] when the file cannot be read. A file that cannot be parsed is taken for facts, whose reader reports why.
pub fn is_text_file(file: &Path) -> Result<bool> {
    let source = Source::read(file)?;
    let rows = read_rows(&source).ok().flatten();
    let first = rows.and_then(|mut rows| rows.next()?.ok());
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
        let source = Source::read(path)?;
        digest.update(&source.bytes);
        let mut bad = Vec::new();
        for row in read_rows(&source)?.into_iter().flatten() {
            let (line, value) = row?;
            match value.and_then(|v| parse(line, &v)) {
                Ok(kind) => set.texts.push(Text {
                    kind,
                    location: Location {
                        file: source.name.clone(),
                        line,
                    },
                }),
                Err(reason) => bad.push(reason),
            }
        }
        if !bad.is_empty() && !options.skip_bad_rows {
            return Err(bad_rows_error(&source.name, &bad));
        }
        set.notes.extend(bad_rows_notes(&source.name, &bad));
    }
    if set.texts.is_empty() {
        let names: Vec<_> = files.iter().map(|f| f.display().to_string()).collect();
        return Err(Error::input(format!("no text in {}", names.join(", "))));
    }
    set.checksum = format!("{:x}", digest.finalize());
    Ok(set)
}

/// The kind of text in a row; `None` for a fact.
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

/// A field that is present and not null.
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
        "the row has none of the fields `messages`, `conversations`, `instruction` with `output`, `prompt` with `completion`, `text`",
    ))
}

/// Messages with `role` and `content`, or with `ShareGPT`'s `from` and `value`.
fn chat(line: usize, field: &'static str, messages: &Value) -> Result<Vec<Message>, BadRow> {
    let bad = |reason: String| BadRow::field(line, field, reason);
    let Value::Array(items) = messages else {
        return Err(bad(format!(
            "is {}; a list of messages is needed",
            type_name(messages)
        )));
    };
    let mut chat = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        let text = |keys: [&str; 2]| {
            let found = keys.iter().find_map(|key| item.get(key)?.as_str());
            found.map(str::to_owned).ok_or_else(|| {
                bad(format!(
                    "has no text as `{}` in message {}",
                    keys[usize::from(field == "conversations")],
                    i + 1
                ))
            })
        };
        let (name, content) = (text(["role", "from"])?, text(["content", "value"])?);
        let role = match &*name {
            "system" | "user" | "assistant" | "tool" => &name,
            "human" => "user",
            "gpt" | "chatgpt" | "bing" | "bard" | "model" => "assistant",
            "function" | "observation" => "tool",
            _ => {
                return Err(bad(format!(
                    "has the role `{name}` in message {}; known roles are system, user, assistant and tool",
                    i + 1
                )));
            }
        };
        chat.push(Message {
            role: role.to_owned(),
            content,
        });
    }
    if chat.iter().any(|m| m.role == "assistant") {
        Ok(chat)
    } else {
        Err(bad(
            "has no assistant message: there is nothing to train".into()
        ))
    }
}

/// Alpaca's fields as a chat: `system`, the turns of `history`, then instruction and output.
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
        let text = |i: usize| turn.get(i).and_then(Value::as_str).map(str::to_owned);
        let (Some(user), Some(assistant)) = (text(0), text(1)) else {
            let reason = "is not a list of pairs of texts";
            return Err(BadRow::field(line, "history", reason));
        };
        chat.push(message("user", user));
        chat.push(message("assistant", assistant));
    }
    let mut parts = vec![instruction, input];
    parts.retain(|part| !part.is_empty());
    chat.push(message("user", parts.join("\n\n")));
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
            "no assistant message",
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

//! Training data that is no fact: chats, completions and plain texts, as the field writes them in JSONL.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{
    super::fact::Location,
    ReadOptions, bytes_of,
    json::{kind_of, scalar, values},
    row::{self, BadRow},
    without_bom,
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
    /// `{"messages": [{"role", "content"}]}`: every message of the assistant is trained.
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

/// Whether a file holds training texts and no facts: JSONL whose first row has `messages`, `completion` or `text`, and no
/// `subject`.
///
/// # Errors
/// [`Error::Input`] when the file cannot be read.
pub fn holds_texts(file: &Path) -> Result<bool> {
    let (_, bytes) = bytes_of(file)?;
    let extension = file.extension().unwrap_or_default().to_ascii_lowercase();
    Ok((extension == "jsonl" || extension == "ndjson")
        && kind_of_file(without_bom(&bytes)).is_some())
}

/// Reads JSONL files of training texts into one set.
///
/// # Errors
/// [`Error::Input`] naming file, line and field of a broken row.
pub fn read_texts(files: &[PathBuf], options: ReadOptions) -> Result<TextSet> {
    let mut set = TextSet::default();
    let mut digest = Sha256::new();
    for path in files {
        let (name, bytes) = bytes_of(path)?;
        digest.update(&bytes);
        let mut bad = Vec::new();
        for (line, value) in values(without_bom(&bytes)) {
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
            return Err(row::refusal(&name, &bad));
        }
        set.notes.extend(row::listing(&name, &bad));
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

/// What kind of texts the first row shows, if it is no fact.
pub(super) fn kind_of_file(bytes: &[u8]) -> Option<&'static str> {
    let (_, value) = values(bytes).next()?;
    let value = value.ok()?;
    if value.get("subject").is_some() {
        return None;
    }
    [
        ("messages", "chat"),
        ("completion", "completion"),
        ("text", "text"),
    ]
    .into_iter()
    .find_map(|(key, kind)| value.get(key).map(|_| kind))
}

fn parse(line: usize, value: &Value) -> Result<TextKind, BadRow> {
    let text = |field: &'static str| match value.get(field) {
        Some(value) => scalar(line, field, value),
        None => Err(BadRow::field(line, field, "is missing")),
    };
    let trained = |field: &'static str| match text(field) {
        Ok(text) if text.is_empty() => Err(BadRow::field(
            line,
            field,
            "is empty: there is nothing to train",
        )),
        other => other,
    };
    if let Some(messages) = value.get("messages") {
        return chat(line, messages).map(TextKind::Chat);
    }
    if value.get("prompt").is_some() || value.get("completion").is_some() {
        return Ok(TextKind::Completion {
            prompt: text("prompt")?,
            completion: trained("completion")?,
        });
    }
    if value.get("text").is_some() {
        return trained("text").map(TextKind::Plain);
    }
    Err(BadRow::whole(
        line,
        "the row has none of the fields `messages`, `prompt` and `completion`, `text`",
    ))
}

fn chat(line: usize, messages: &Value) -> Result<Vec<Message>, BadRow> {
    let bad = |reason: String| BadRow::field(line, "messages", reason);
    let Value::Array(items) = messages else {
        return Err(bad(format!(
            "is {}, and a list of messages is needed",
            kind_of(messages)
        )));
    };
    let mut chat = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        let part = |key: &str| item.get(key).and_then(Value::as_str).map(str::to_owned);
        let role =
            part("role").ok_or_else(|| bad(format!("has no `role` in message {}", i + 1)))?;
        let content = part("content")
            .ok_or_else(|| bad(format!("has no text as `content` in message {}", i + 1)))?;
        if !["system", "user", "assistant", "tool"].contains(&&*role) {
            return Err(bad(format!(
                "has the role `{role}` in message {}; known are system, user, assistant, tool",
                i + 1
            )));
        }
        chat.push(Message { role, content });
    }
    if chat.iter().any(|m| m.role == "assistant") {
        Ok(chat)
    } else {
        Err(bad(
            "has no message of the assistant: there is nothing to train".into(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<Result<TextKind, String>> {
        let rows = values(text.as_bytes());
        rows.map(|(line, v)| v.and_then(|v| parse(line, &v)).map_err(|b| b.to_string()))
            .collect()
    }

    #[test]
    fn the_three_forms_are_told_apart() {
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
            let told = row.unwrap_err();
            assert!(told.contains(reason), "{told}");
        }
    }

    #[test]
    fn a_fact_with_a_text_column_is_still_a_fact() {
        assert_eq!(kind_of_file(b"{\"text\":\"x\"}"), Some("text"));
        assert_eq!(kind_of_file(b"{\"subject\":\"a\",\"text\":\"x\"}"), None);
    }
}

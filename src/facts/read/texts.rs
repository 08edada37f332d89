//! Training data other than facts: chats, instructions, completions and plain texts, in the usual JSONL, JSON, CSV and Parquet
//! layouts.

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{
    super::fact::Location,
    bad_row::{BadRow, bad_rows_error, bad_rows_notes},
    columns::{QUESTION_AND_ANSWER, foreign_columns},
    json::{scalar, type_name},
    missing::MissingMarks,
    rows::read_rows,
    source::{Format, ReadOptions, Source},
    table,
};
use crate::{Error, Result, config::RowWeight};

/// The fields that say whether a message is trained: those of `OpenAI`, axolotl (two) and ms-swift.
const TRAINED_FIELDS: [&str; 4] = ["weight", "train", "training", "loss"];

/// One turn of a chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or another role that chat templates know.
    pub role: String,
    /// Its text; the parts of a list joined; empty if there is none.
    pub content: String,
    /// The message as the chat template sees it: all fields of the row in their order, `role` and `content` among them.
    pub fields: Map<String, Value>,
    /// Whether it is trained if it is the assistant's. `weight: 0` says that it is not, and so do `train`, `training` and `loss` that
    /// are false.
    pub trained: bool,
}

impl Message {
    /// A message of text.
    pub fn new(role: &str, content: &str) -> Self {
        let mut fields = Map::new();
        fields.insert("role".into(), role.into());
        fields.insert("content".into(), content.into());
        Self {
            role: role.into(),
            content: content.into(),
            fields,
            trained: true,
        }
    }

    /// Replaces the text.
    pub fn set_content(&mut self, content: &str) {
        content.clone_into(&mut self.content);
        self.fields.insert("content".into(), content.into());
    }
}

/// A chat and what its template is given beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chat {
    /// The turns.
    pub messages: Vec<Message>,
    /// The tools that the assistant may call: a list of JSON schemas.
    pub tools: Option<Value>,
    /// Further variables of the template (`chat_template_kwargs`).
    pub variables: Map<String, Value>,
}

impl From<Vec<Message>> for Chat {
    fn from(messages: Vec<Message>) -> Self {
        Self {
            messages,
            ..Self::default()
        }
    }
}

/// The content of a row, which says which part of it is trained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextKind {
    /// `{"messages": [{"role", "content"}]}`, `ShareGPT`'s `{"conversations": [{"from", "value"}]}`, Alpaca's `{"instruction",
    /// "input", "output"}`, or `{"prompt", "completion"}` as lists of messages: every message of the assistant is trained, of the last
    /// form those of the completion.
    Chat(Chat),
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
    /// The weight that the config gives the file, if it is trained.
    pub weight: RowWeight,
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

/// Whether a file holds training texts rather than facts, by its columns or the fields of its first row that can be read.
///
/// # Errors
/// [`Error::Input`] when the file cannot be read. A file that cannot be parsed is taken for facts, whose reader reports why.
pub fn is_text_file(file: &Path) -> Result<bool> {
    let source = Source::read(file)?;
    Ok(first_fields(&source).is_some_and(|row| text_kind(&row).is_some()))
}

/// The first row of a file; of a table its column names, each with an empty text.
fn first_fields(source: &Source) -> Option<Value> {
    if let Format::Table(separator) = source.format() {
        return table::column_names(source, separator);
    }
    let rows = read_rows(source).ok()?;
    rows.map_while(Result::ok).find_map(|(_, row)| row.ok())
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
        let mut empty_answers = 0;
        let mut missing = MissingMarks::default();
        let texts_before = set.texts.len();
        for row in read_rows(&source)? {
            let (line, value) = row?;
            if let Ok(value) = &value {
                missing.count_row(line, value);
            }
            match value.and_then(|v| parse(line, &v)) {
                Ok(kind) => {
                    empty_answers += count_empty_answers(&kind);
                    set.texts.push(Text {
                        kind,
                        location: Location {
                            file: source.name.clone(),
                            line,
                        },
                        weight: RowWeight::default(),
                    });
                }
                Err(reason) => bad.push(reason),
            }
        }
        if !bad.is_empty() && !options.skip_bad_rows {
            let has_good = set.texts.len() > texts_before;
            return Err(bad_rows_error(&source.name, &bad, has_good));
        }
        set.notes.extend(bad_rows_notes(&source.name, &bad));
        set.notes.extend(missing.note(&source.name));
        set.notes.extend(source.nulls_note());
        if empty_answers > 0 {
            let answers = if empty_answers == 1 {
                "answer is"
            } else {
                "answers are"
            };
            set.notes.push(format!(
                "{}: {empty_answers} empty {answers} not trained",
                source.name
            ));
        }
    }
    if set.texts.is_empty() {
        let names: Vec<_> = files.iter().map(|f| f.display().to_string()).collect();
        let reason = if set.notes.is_empty() {
            String::new()
        } else {
            format!(" ({})", set.notes.join("; "))
        };
        let message = format!("no text in {}{reason}", names.join(", "));
        return Err(Error::input(message));
    }
    set.checksum = format!("{:x}", digest.finalize());
    Ok(set)
}

fn count_empty_answers(kind: &TextKind) -> usize {
    match kind {
        TextKind::Chat(chat) => {
            let empty = |m: &&Message| m.role == "assistant" && is_empty_answer(m);
            chat.messages.iter().filter(empty).count()
        }
        _ => 0,
    }
}

/// The kind of text in a row; `None` for a fact. Of several kinds the first that is not null counts, else the first that is there.
pub(super) fn text_kind(row: &Value) -> Option<&'static str> {
    if non_null(row, "subject").is_some() {
        return None;
    }
    let is_fact = ["subject", "question"]
        .iter()
        .any(|field| row.get(*field).is_some());
    let kinds = [
        ("messages", "chat"),
        ("conversations", "chat"),
        ("instruction", "instruction"),
        ("completion", "completion"),
        ("text", "text"),
    ];
    let given = kinds.iter().find(|(key, _)| non_null(row, key).is_some());
    let is_answered = QUESTION_AND_ANSWER
        .iter()
        .all(|field| non_null(row, field).is_some());
    // The text beside a question and its answer is where they are from.
    if is_answered && given.is_some_and(|(key, _)| *key == "text") {
        return None;
    }
    let named = kinds.iter().filter(|_| !is_fact);
    let named = || named.clone().find(|(key, _)| row.get(*key).is_some());
    given.or_else(named).map(|(_, kind)| *kind)
}

/// A field that is present and not null.
fn non_null<'r>(row: &'r Value, field: &str) -> Option<&'r Value> {
    row.get(field).filter(|value| !value.is_null())
}

/// A field that holds something: not null, and no empty text, which a table has for a cell without content.
fn given<'r>(row: &'r Value, field: &str) -> Option<&'r Value> {
    non_null(row, field).filter(|value| value.as_str() != Some(""))
}

/// A list or object in a field; a table and some data sets hold it as JSON in a text.
fn structure<'r>(
    line: usize,
    field: &'static str,
    value: &'r Value,
) -> Result<Cow<'r, Value>, BadRow> {
    let needed = match field {
        "tools" => "a list of tools",
        "history" => "a list of pairs of texts",
        "chat_template_kwargs" => "an object",
        _ => "a list of messages",
    };
    let parsed = |text: &str| {
        let parsed = serde_json::from_str::<Value>(text);
        parsed.ok().filter(|v| v.is_array() || v.is_object())
    };
    let text = match value {
        Value::String(text) => text,
        // Each item may be JSON in a text as well.
        Value::Array(items) if field != "history" && items.iter().any(Value::is_string) => {
            let item = |item: &Value| match item {
                Value::String(text) => parsed(text).filter(Value::is_object),
                other => Some(other.clone()),
            };
            let items: Option<Vec<Value>> = items.iter().map(item).collect();
            return items.map(|items| Cow::Owned(items.into())).ok_or_else(|| {
                let reason = format!("is a list with text that is not JSON; {needed} is needed");
                BadRow::field(line, field, reason)
            });
        }
        _ => return Ok(Cow::Borrowed(value)),
    };
    parsed(text).map(Cow::Owned).ok_or_else(|| {
        let python = text.trim_start().starts_with(['[', '{']) && text.contains('\'');
        let reason = if python {
            "is a text that is not JSON: it looks like Python's text of a list, which `json.dumps` would have written as JSON".into()
        } else {
            format!("is text; {needed} is needed (in a table: as JSON)")
        };
        BadRow::field(line, field, reason)
    })
}

fn parse(line: usize, value: &Value) -> Result<TextKind, BadRow> {
    if let Value::Array(items) = value
        && items
            .iter()
            .any(|item| item.get("role").is_some() || item.get("from").is_some())
    {
        return Err(BadRow::row(
            line,
            "the row is a bare list of messages; write it as {\"messages\": [...]}",
        ));
    }
    refuse_unread(line, value)?;
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
        if let Some(messages) = given(value, field) {
            let messages = structure(line, field, messages)?;
            let chat = with_system(line, value, messages_of(line, field, &messages)?)?;
            return chat_of(line, field, value, chat);
        }
    }
    let has = |field: &str| given(value, field).is_some();
    if has("instruction") {
        let chat = with_system(line, value, instruction(line, value)?)?;
        return chat_of(line, "instruction", value, chat);
    }
    let is_list = |field: &str| match non_null(value, field) {
        Some(Value::String(text)) if text.starts_with('[') => {
            let items = serde_json::from_str::<Vec<Value>>(text).unwrap_or_default();
            items.first().is_some_and(|item| item.get("role").is_some())
        }
        Some(value) => value.is_array(),
        None => false,
    };
    if is_list("prompt") || is_list("completion") {
        return prompt_and_completion(line, value);
    }
    if non_null(value, "prompt").is_some() || non_null(value, "completion").is_some() {
        if let Some(field) = ["system", "tools", "history"].into_iter().find(|f| has(f)) {
            let reason = "is not read beside a `prompt` of text: give the row as `messages`";
            return Err(BadRow::field(line, field, reason));
        }
        return Ok(TextKind::Completion {
            prompt: text("prompt")?,
            completion: trained_text("completion")?,
        });
    }
    if non_null(value, "text").is_some() {
        return trained_text("text").map(TextKind::Plain);
    }
    // The instruction may stand in `input` alone.
    if value.get("instruction").is_some() && has("output") {
        let chat = with_system(line, value, instruction(line, value)?)?;
        return chat_of(line, "instruction", value, chat);
    }
    let forms = ["messages", "conversations", "instruction", "prompt", "text"];
    let mut named = forms.into_iter().filter_map(|f| Some((f, value.get(f)?)));
    if let Some((field, empty)) = named.next() {
        let reason = if empty.is_null() {
            "is null"
        } else {
            "is empty"
        };
        return Err(BadRow::field(line, field, reason));
    }
    Err(BadRow::row(
        line,
        format!(
            "the row has none of the fields `messages`, `conversations`, `instruction` with `output`, `prompt` with `completion`, `text`{}",
            foreign_columns(value)
        ),
    ))
}

/// Refuses what a row says about its training and is not read here.
fn refuse_unread(line: usize, row: &Value) -> Result<(), BadRow> {
    for field in ["images", "image", "videos", "audio", "audios"] {
        let holds = given(row, field).is_some_and(|v| !v.as_array().is_some_and(Vec::is_empty));
        if holds {
            return Err(BadRow::field(
                line,
                field,
                "is not read: only texts are trained",
            ));
        }
    }
    let is_one = |v: &Value| v.as_f64() == Some(1.0) || v.as_str() == Some("1");
    if given(row, "weight").is_some_and(|weight| !is_one(weight)) {
        let reason = "of a row is not read: weights are given to messages (0 or 1), or to a file";
        return Err(BadRow::field(line, "weight", reason));
    }
    let is_false = |v: &Value| v.as_bool() == Some(false) || v.as_str() == Some("False");
    if non_null(row, "completion").is_some() && non_null(row, "label").is_some_and(is_false) {
        let reason = "is false: the completion is one that is not wanted, and would be trained";
        return Err(BadRow::field(line, "label", reason));
    }
    Ok(())
}

/// `messages` behind the text of the row's `system`.
fn with_system(
    line: usize,
    row: &Value,
    mut messages: Vec<Message>,
) -> Result<Vec<Message>, BadRow> {
    let Some(system) = given(row, "system") else {
        return Ok(messages);
    };
    let system = scalar(line, "system", system)?;
    match messages.first().filter(|m| m.role == "system") {
        None => messages.insert(0, Message::new("system", &system)),
        Some(first) if first.content == system => {}
        Some(_) => {
            let reason = "differs from the system message of the chat; leave one of them out";
            return Err(BadRow::field(line, "system", reason));
        }
    }
    Ok(messages)
}

/// The chat of a row: its messages with `tools` and `chat_template_kwargs`.
fn chat_of(
    line: usize,
    field: &'static str,
    row: &Value,
    messages: Vec<Message>,
) -> Result<TextKind, BadRow> {
    let mut messages = messages;
    for message in &mut messages {
        message.trained &= !is_empty_answer(message);
    }
    let is_trained = |m: &Message| m.role == "assistant" && m.trained;
    if !messages.iter().any(is_trained) {
        let reason = if messages.iter().any(|m| m.role == "assistant") {
            "has no answer that is trained: each is empty or marked as not trained (`weight`, `train`, `training`, `loss`)"
        } else {
            "has no assistant message: there is nothing to train"
        };
        return Err(BadRow::field(line, field, reason));
    }
    let tools = match given(row, "tools") {
        None => None,
        Some(tools) => {
            let tools = structure(line, "tools", tools)?.into_owned();
            if !tools.is_array() {
                return Err(BadRow::field(line, "tools", "is not a list of tools"));
            }
            Some(tools)
        }
    };
    let variables = match given(row, "chat_template_kwargs") {
        None => Map::new(),
        Some(variables) => match structure(line, "chat_template_kwargs", variables)?.into_owned() {
            Value::Object(variables) => variables,
            other => {
                let reason = format!("is {}; an object is needed", type_name(&other));
                return Err(BadRow::field(line, "chat_template_kwargs", reason));
            }
        },
    };
    Ok(TextKind::Chat(Chat {
        messages,
        tools,
        variables,
    }))
}

/// Whether an assistant message has neither text nor calls.
fn is_empty_answer(message: &Message) -> bool {
    let holds = |name: &&str| match message.fields.get(*name) {
        Some(Value::Array(calls)) => !calls.is_empty(),
        Some(Value::String(text)) => !text.is_empty(),
        Some(value) => !value.is_null(),
        None => false,
    };
    let other = [
        "tool_calls",
        "function_call",
        "reasoning_content",
        "thinking",
        "reasoning",
    ];
    message.content.is_empty() && !other.iter().any(holds)
}

/// `{"prompt", "completion"}` as lists of messages.
fn prompt_and_completion(line: usize, row: &Value) -> Result<TextKind, BadRow> {
    let messages = |field: &'static str| -> Result<Vec<Message>, BadRow> {
        let value = non_null(row, field).ok_or_else(|| BadRow::field(line, field, "is missing"))?;
        let value = structure(line, field, value).map_err(|_| {
            let reason = "is text, and the other field a list of messages; give both in one form";
            BadRow::field(line, field, reason)
        })?;
        messages_of(line, field, &value)
    };
    let mut chat = with_system(line, row, messages("prompt")?)?;
    for message in &mut chat {
        message.trained = false;
    }
    let completion = messages("completion")?;
    if !completion.iter().any(|m| m.role == "assistant") {
        let reason = "has no assistant message: there is nothing to train";
        return Err(BadRow::field(line, "completion", reason));
    }
    chat.extend(completion);
    chat_of(line, "completion", row, chat)
}

/// Messages with `role` and `content`, or with `ShareGPT`'s `from` and `value`.
fn messages_of(line: usize, field: &'static str, messages: &Value) -> Result<Vec<Message>, BadRow> {
    let Value::Array(items) = messages else {
        let reason = format!("is {}; a list of messages is needed", type_name(messages));
        return Err(BadRow::field(line, field, reason));
    };
    let message = |(i, item): (usize, &Value)| {
        message(item, field == "conversations")
            .map_err(|reason| BadRow::field(line, field, format!("{reason} in message {}", i + 1)))
    };
    items.iter().enumerate().map(message).collect()
}

/// One message; the error is a phrase that goes before "in message 3".
fn message(item: &Value, is_sharegpt: bool) -> Result<Message, String> {
    let Value::Object(given) = item else {
        return Err(format!("has {} in place of an object", type_name(item)));
    };
    let keys = |role: &'static str, other: &'static str| {
        let known = given.get(role).is_some_and(|v| !v.is_null());
        let name = if is_sharegpt && !known { other } else { role };
        let value = [role, other]
            .into_iter()
            .find_map(|k| given.get(k).filter(|v| !v.is_null()));
        (name, value)
    };
    let (role_key, name) = keys("role", "from");
    let name = name
        .and_then(Value::as_str)
        .ok_or_else(|| format!("has no text as `{role_key}`"))?;
    let role = match name {
        "system" | "user" | "assistant" | "tool" | "developer" | "ipython" | "function" => name,
        "human" => "user",
        "gpt" | "chatgpt" | "bing" | "bard" | "model" | "function_call" => "assistant",
        "observation" => "tool",
        _ => {
            let lower = name.to_lowercase();
            let meant = match &*lower {
                "system" | "user" | "assistant" | "tool" => Some(&*lower),
                "ai" | "bot" | "chatbot" => Some("assistant"),
                "function_response" | "tool_response" => Some("tool"),
                _ => None,
            };
            let meant = meant.map_or_else(String::new, |k| format!(" (did you mean `{k}`?)"));
            return Err(format!(
                "has the role `{name}`{meant}, which is none of system, user, assistant, tool, developer, ipython and function,"
            ));
        }
    };
    let (content_key, content) = keys("content", "value");
    let mut fields = Map::new();
    for (key, value) in given {
        match key.as_str() {
            "role" | "from" => _ = fields.entry("role").or_insert_with(|| role.into()),
            "value" if content_key == "value" => _ = fields.insert("content".into(), value.clone()),
            "value" => {}
            key if TRAINED_FIELDS.contains(&key) => {}
            _ => _ = fields.insert(key.clone(), value.clone()),
        }
    }
    let calls = |name: &str| fields.get(name).is_some_and(|v| !v.is_null());
    let has_calls = calls("tool_calls") || calls("function_call");
    let text = match content {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let texts = parts.iter().map(part_text).collect::<Result<Vec<_>, _>>()?;
            texts.concat()
        }
        None if role == "assistant" && has_calls => String::new(),
        Some(other) => {
            return Err(format!(
                "has {} as `{content_key}`, where text is needed,",
                type_name(other)
            ));
        }
        None => return Err(format!("has no text as `{content_key}`")),
    };
    if name == "function_call"
        && let Ok(Value::Object(call)) = serde_json::from_str(&text)
        && call.contains_key("name")
    {
        fields.insert("content".into(), "".into());
        let call = serde_json::json!([{"type": "function", "function": call}]);
        fields.insert("tool_calls".into(), call);
        return Ok(Message {
            role: role.into(),
            content: String::new(),
            fields,
            trained: true,
        });
    }
    let mut trained = true;
    for key in TRAINED_FIELDS {
        trained &= match given.get(key) {
            None | Some(Value::Null) => true,
            Some(Value::Bool(trained)) => *trained,
            Some(weight) if weight.as_f64() == Some(0.0) => false,
            Some(weight) if weight.as_f64() == Some(1.0) => true,
            Some(_) if key == "weight" => return Err("has a `weight` other than 0 and 1".into()),
            Some(_) => return Err(format!("has a `{key}` other than true and false")),
        };
    }
    Ok(Message {
        role: role.into(),
        content: text,
        fields,
        trained,
    })
}

/// The text of one part of a message.
fn part_text(part: &Value) -> Result<&str, String> {
    if let Value::String(text) = part {
        return Ok(text);
    }
    let kind = part.get("type").and_then(Value::as_str);
    let text = part.get("text").and_then(Value::as_str);
    match (kind, text) {
        (Some("text") | None, Some(text)) => Ok(text),
        (Some(kind), _) if kind != "text" => Err(format!(
            "has a part of the type `{kind}`, where only text is read,"
        )),
        _ => Err("has a part without `text`".into()),
    }
}

/// Alpaca's fields as a chat: the turns of `history`, then instruction and output.
fn instruction(line: usize, row: &Value) -> Result<Vec<Message>, BadRow> {
    let text = |field: &'static str| match non_null(row, field) {
        None => Ok(String::new()),
        Some(value) => scalar(line, field, value),
    };
    let (instruction, input, output) = (text("instruction")?, text("input")?, text("output")?);
    if output.is_empty() {
        let reason = format!(
            "is missing: there is nothing to train{}",
            foreign_columns(row)
        );
        return Err(BadRow::field(line, "output", reason));
    }
    let mut chat = Vec::new();
    let history = match given(row, "history") {
        None => Value::Null,
        Some(history) => structure(line, "history", history)?.into_owned(),
    };
    let not_pairs = || BadRow::field(line, "history", "is not a list of pairs of texts");
    if !history.is_null() && !history.is_array() {
        return Err(not_pairs());
    }
    for turn in history.as_array().into_iter().flatten() {
        let text = |i: usize| turn.get(i).and_then(Value::as_str);
        let (Some(user), Some(assistant)) = (text(0), text(1)) else {
            return Err(not_pairs());
        };
        chat.push(Message::new("user", user));
        chat.push(Message::new("assistant", assistant));
    }
    let mut parts = vec![instruction, input];
    parts.retain(|part| !part.is_empty());
    if parts.is_empty() {
        let reason = "is empty, and so is `input`: there is no question";
        return Err(BadRow::field(line, "instruction", reason));
    }
    chat.push(Message::new("user", &parts.join("\n\n")));
    chat.push(Message::new("assistant", &output));
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
        assert!(matches!(&read[0], Ok(TextKind::Chat(m)) if m.messages[1].content == "ho"));
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
            "role `bot`",
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
                .messages
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
        assert_eq!(
            text_kind(&json!({"question": "a?", "answer": "b", "text": "x"})),
            None
        );
        assert_eq!(
            text_kind(&json!({"question": "a?", "answer": null, "text": "x"})),
            Some("text")
        );
    }
}

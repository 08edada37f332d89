//! The names of the columns that are read.

use serde_json::Value;

use crate::Error;

/// The columns that every fact has.
pub(super) const REQUIRED_COLUMNS: [&str; 3] = ["subject", "relation", "object"];

/// All columns of a fact.
pub(super) const FACT_COLUMNS: [&str; 7] = [
    "subject",
    "relation",
    "object",
    "aliases",
    "question",
    "split",
    "paraphrases",
];

/// The column of an `EntityQuestions` row that no other row has.
pub(super) const ANSWERS: &str = "answers";

/// The columns of a fact without a subject.
pub(super) const QUESTION_AND_ANSWER: [&str; 2] = ["question", "answer"];

/// The fields of training text.
pub(super) const TEXT_FIELDS: [&str; 20] = [
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
    "tools",
    "chat_template_kwargs",
    "weight",
    "label",
    "image",
    "images",
    "video",
    "videos",
    "audio",
    "audios",
];

/// Columns of well-known data sets that are not read under their name: what each would be.
const FOREIGN: [(&str, &str); 33] = [
    ("subj", "subject"),
    ("s", "subject"),
    ("head", "subject"),
    ("entity", "subject"),
    ("prop", "relation"),
    ("p", "relation"),
    ("predicate", "relation"),
    ("property", "relation"),
    ("obj", "object"),
    ("o", "object"),
    ("tail", "object"),
    ("target", "object"),
    ("possible_answers", "aliases"),
    ("synonyms", "aliases"),
    ("alias", "aliases"),
    ("query", "question"),
    ("q", "question"),
    ("response", "completion"),
    ("responses", "completion"),
    ("chosen", "completion"),
    ("generation", "completion"),
    ("target_text", "completion"),
    ("input_text", "prompt"),
    ("context", "input"),
    ("conversation", "messages"),
    ("dialog", "messages"),
    ("dialogue", "messages"),
    ("dialogs", "messages"),
    ("chat", "messages"),
    ("turns", "messages"),
    ("content", "text"),
    ("document", "text"),
    ("body", "text"),
];

/// Whether a column of this name is read at all, in any case.
pub(super) fn is_read(column: &str) -> bool {
    known_name(&column.to_lowercase()).is_some() || FOREIGN.iter().any(|(name, _)| *name == column)
}

/// The error for two columns of one name.
pub(super) fn twice(place: &str, name: &str) -> Error {
    Error::input_hint(
        format!("{place}: there are two columns `{name}`"),
        "remove or rename one of them",
    )
}

/// The column that is read under this name in lower case.
fn known_name(column: &str) -> Option<&'static str> {
    let all = FACT_COLUMNS.iter().chain(&TEXT_FIELDS);
    let mut all = all.chain(&QUESTION_AND_ANSWER).chain([&ANSWERS]);
    all.find(|name| **name == column).copied()
}

/// A row whose columns `Subject` or `SUBJECT` are called `subject`, unless there is one of that name as well.
pub(super) fn with_known_case(row: Value) -> Value {
    let Value::Object(fields) = row else {
        return row;
    };
    let renamed = |name: &str| {
        let lower = name.trim().to_lowercase();
        let known = known_name(&lower)?;
        (known != name && !fields.contains_key(known)).then_some(known)
    };
    if !fields.keys().any(|name| renamed(name).is_some()) {
        return Value::Object(fields);
    }
    let names: Vec<String> = fields
        .keys()
        .map(|name| renamed(name).map_or_else(|| name.clone(), str::to_owned))
        .collect();
    Value::Object(
        names
            .into_iter()
            .zip(fields.into_iter().map(|(_, v)| v))
            .collect(),
    )
}

/// What the columns of a row would be if they had the names that are read: "; did you mean ...?"
pub(super) fn foreign_columns(row: &Value) -> String {
    let Some(fields) = row.as_object() else {
        return String::new();
    };
    let names = fields.keys().map(String::as_str);
    foreign_names(names).map_or_else(String::new, |meant| format!("; {meant}"))
}

/// As [`foreign_columns`], of column names: "did you mean `completion` by `response`?"
pub(super) fn foreign_names<'n>(names: impl Iterator<Item = &'n str>) -> Option<String> {
    let names: Vec<String> = names.map(|name| name.trim().to_lowercase()).collect();
    let has = |name: &str| names.iter().any(|n| n == name);
    let about_facts = [
        "subj",
        "subject",
        "obj",
        "object",
        "relation",
        "prop",
        "predicate",
    ];
    let is_facts = about_facts.into_iter().any(has);
    let mut meant: Vec<(String, &str)> = Vec::new();
    for name in &names {
        let found = match name.as_str() {
            "response" | "responses" | "answer" if has("instruction") => Some("output"),
            "response" if has("question") => Some("answer"),
            "input" if has("output") && !has("instruction") => Some("prompt"),
            "output" if has("input") && !has("instruction") => Some("completion"),
            "answer" if has("prompt") => Some("completion"),
            "question" if has("output") || has("completion") => Some("prompt"),
            "answer" if !has("question") => None,
            name => {
                let mut foreign = FOREIGN.iter();
                let found = foreign.find(|(n, _)| *n == name).map(|(_, known)| *known);
                found.filter(|known| is_facts || !REQUIRED_COLUMNS.contains(known))
            }
        };
        if let Some(known) = found.filter(|known| !has(known)) {
            meant.push((name.clone(), known));
        }
    }
    let by: Vec<String> = meant
        .iter()
        .map(|(name, known)| format!("`{known}` by `{name}`"))
        .collect();
    (!by.is_empty()).then(|| format!("did you mean {}?", by.join(", ")))
}

/// The form of rows that a text of [`foreign_names`] is about: its columns.
pub(super) fn closest_form(meant: &str) -> Option<&'static [&'static str]> {
    let forms: [&'static [&'static str]; 6] = [
        &REQUIRED_COLUMNS,
        &QUESTION_AND_ANSWER,
        &["messages"],
        &["instruction", "input", "output"],
        &["prompt", "completion"],
        &["text"],
    ];
    let is_about = |column: &&str| meant.contains(&format!("`{column}` by"));
    forms.into_iter().find(|form| form.iter().any(is_about))
}

/// The columns that rows with these ones must have: those of a question and its answer where there is a question and nothing of a fact
/// with a subject.
pub(super) fn required_columns(has: impl Fn(&str) -> bool) -> &'static [&'static str] {
    if has("question") && !REQUIRED_COLUMNS.into_iter().any(has) {
        &QUESTION_AND_ANSWER
    } else {
        &REQUIRED_COLUMNS
    }
}

/// Names for a message: "`a`, `b` and 3 more".
pub(super) fn name_list<'n>(names: impl Iterator<Item = &'n str>) -> String {
    const MAX_NAMES: usize = 12;

    let quoted: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    match quoted.len().saturating_sub(MAX_NAMES) {
        _ if quoted.is_empty() => "no fields".into(),
        0 => quoted.join(", "),
        more => format!("{} and {more} more", quoted[..MAX_NAMES].join(", ")),
    }
}

/// The forms of rows, for messages.
pub(super) const FORMS: &str = "rows are facts (`subject`, `relation`, `object`; or `question`, `answer`), chats (`messages`; `conversations`; `prompt` and `completion` as lists of messages), instructions (`instruction`, `input`, `output`), completions (`prompt`, `completion`) or texts (`text`)";

//! One row, whatever the format: its fields, what may be wrong with it, and the fact it becomes.

use std::{fmt, sync::Arc};

use super::super::{
    fact::{Fact, Location},
    relations::{self, relation},
};
use crate::{Error, error::closest_match};

/// The columns that every row has.
pub(super) const REQUIRED_COLUMNS: [&str; 3] = ["subject", "relation", "object"];

/// All columns that are read.
pub(super) const COLUMNS: [&str; 7] = [
    "subject",
    "relation",
    "object",
    "aliases",
    "question",
    "split",
    "paraphrases",
];

/// How many broken rows a note lists; the rest is counted.
const MAX_LISTED: usize = 20;

/// The fields of a row as its file has them, ends trimmed; `None` and empty are the same.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct RawFact {
    pub(super) line: usize,
    pub(super) subject: Option<String>,
    pub(super) relation: Option<String>,
    pub(super) object: Option<String>,
    pub(super) aliases: Vec<String>,
    pub(super) question: Option<String>,
    pub(super) split: Option<String>,
    pub(super) paraphrases: Vec<String>,
}

/// A row that cannot be read, and why.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadRow {
    pub(super) line: usize,
    pub(super) field: Option<&'static str>,
    pub(super) reason: String,
}

impl BadRow {
    /// A broken row as a whole.
    pub(super) fn row(line: usize, reason: impl Into<String>) -> Self {
        Self {
            line,
            field: None,
            reason: reason.into(),
        }
    }

    /// A row broken in one field.
    pub(super) fn field(line: usize, field: &'static str, reason: impl Into<String>) -> Self {
        Self {
            line,
            field: Some(field),
            reason: reason.into(),
        }
    }
}

impl fmt::Display for BadRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(field) = self.field {
            write!(f, "field `{field}` ")?;
        }
        f.write_str(&self.reason)
    }
}

impl RawFact {
    /// Puts one field of text in its place; lists are separated by `|`.
    pub(super) fn set(&mut self, column: &str, text: &str) {
        let text = text.trim();
        let value = (!text.is_empty()).then(|| text.to_owned());
        match column {
            "subject" => self.subject = value,
            "relation" => self.relation = value,
            "object" => self.object = value,
            "question" => self.question = value,
            "split" => self.split = value,
            list => self.set_list(list, text.split('|')),
        }
    }

    /// Puts a list in its place.
    pub(super) fn set_list<'t>(&mut self, column: &str, items: impl Iterator<Item = &'t str>) {
        let items = items
            .map(str::trim)
            .filter(|i| !i.is_empty())
            .map(str::to_owned)
            .collect();
        match column {
            "aliases" => self.aliases = items,
            "paraphrases" => self.paraphrases = items,
            _ => unreachable!("only aliases and paraphrases are lists"),
        }
    }

    /// The fact, its question and paraphrases made from the relation's templates where the row has none.
    pub(super) fn into_fact(self, file: &Arc<str>) -> Result<Fact, BadRow> {
        let line = self.line;
        let required = |value: Option<String>, field: &'static str| match value {
            None => Err(BadRow::field(line, field, "is empty")),
            Some(text) if text.contains(['\n', '\r']) => Err(BadRow::field(
                line,
                field,
                "holds a line break, which would end the answer",
            )),
            Some(text) => Ok(text),
        };
        let subject = required(self.subject, "subject")?;
        let name = required(self.relation, "relation")?;
        let object = required(self.object, "object")?;
        let templates = relation(&name);
        let question = match (self.question, templates) {
            (Some(question), _) => question,
            (None, Some(templates)) => templates.question(&subject),
            (None, None) => {
                let known = relations::all_relations()
                    .iter()
                    .flat_map(|r| [r.id, r.name]);
                let meant = closest_match(&name, known)
                    .map_or_else(String::new, |k| format!(" (did you mean `{k}`?)"));
                let reason =
                    format!("is missing: the relation `{name}` has no template of its own{meant}");
                return Err(BadRow::field(line, "question", reason));
            }
        };
        let mut paraphrases = self.paraphrases;
        if let (true, Some(templates)) = (paraphrases.is_empty(), templates) {
            paraphrases = templates.paraphrases(&subject);
        }
        paraphrases.retain(|p| *p != question);
        Ok(Fact {
            subject,
            relation: name,
            object,
            aliases: self.aliases,
            question,
            paraphrases,
            split: self.split,
            location: Location {
                file: file.clone(),
                line,
            },
        })
    }
}

/// The error that refuses a file for its broken rows: the first of them, and how many more there are.
pub(super) fn bad_rows_error(file: &Arc<str>, bad: &[BadRow]) -> Error {
    let more = match bad.len() - 1 {
        0 => String::new(),
        1 => " (and 1 more broken row)".into(),
        n => format!(" (and {n} more broken rows)"),
    };
    Error::input_hint(
        format!("{}: {}{more}", location(file, bad[0].line), bad[0]),
        "mend the file, or leave broken rows out with --skip-bad-rows",
    )
}

/// The notes that list broken rows which were left out.
pub(super) fn bad_rows_notes(file: &Arc<str>, bad: &[BadRow]) -> Vec<String> {
    if bad.is_empty() {
        return vec![];
    }
    let rows = if bad.len() == 1 { "row" } else { "rows" };
    let mut notes = vec![format!("{file}: {} broken {rows} left out", bad.len())];
    notes.extend(
        bad.iter()
            .take(MAX_LISTED)
            .map(|b| format!("{}: {b}", location(file, b.line))),
    );
    if bad.len() > MAX_LISTED {
        notes.push(format!(
            "{file}: {} further broken rows are not listed",
            bad.len() - MAX_LISTED
        ));
    }
    notes
}

fn location(file: &Arc<str>, line: usize) -> Location {
    Location {
        file: file.clone(),
        line,
    }
}

//! A row of a fact file before it is a fact: its fields, whatever the format.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{
    super::{
        fact::{Fact, Location},
        relations::{self, relation},
    },
    bad_row::BadRow,
    columns::{FACT_COLUMNS, REQUIRED_COLUMNS},
    json::{scalar, type_name},
};
use crate::{Result, error::closest_match};

/// The fields of a row, without surrounding white space; an empty field is `None`.
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

/// The rows of one file, read one at a time, and notes about the file.
pub(super) struct RawFacts<'b> {
    /// An outer error concerns the file and ends it; an inner one concerns the row.
    pub(super) rows: Box<dyn Iterator<Item = Result<Result<RawFact, BadRow>>> + 'b>,
    pub(super) notes: Vec<String>,
    /// Count contradicting rows and skip them instead of refusing the file.
    pub(super) skip_contradictions: bool,
}

impl<'b> RawFacts<'b> {
    /// Rows without notes, whose contradictions are refused.
    pub(super) fn new(rows: impl Iterator<Item = Result<Result<RawFact, BadRow>>> + 'b) -> Self {
        Self {
            rows: Box::new(rows),
            notes: Vec::new(),
            skip_contradictions: false,
        }
    }

    /// All rows of a file without an outer error.
    #[cfg(test)]
    pub(super) fn collect_rows(self) -> Vec<Result<RawFact, BadRow>> {
        self.rows.collect::<Result<_>>().unwrap()
    }
}

impl RawFact {
    /// Sets a field from its text; lists are separated by `|`.
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

    /// Sets `aliases` or `paraphrases`.
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

    /// Reads a JSON object.
    pub(super) fn from_json(line: usize, value: &Value) -> Result<Self, BadRow> {
        let Value::Object(object) = value else {
            let reason = format!("the row is {}; an object is needed", type_name(value));
            return Err(BadRow::row(line, reason));
        };
        let mut row = Self {
            line,
            ..Self::default()
        };
        for column in FACT_COLUMNS {
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
                let reason = format!("is missing{}", column_suggestion(required, object));
                return Err(BadRow::field(line, required, reason));
            }
        }
        Ok(row)
    }

    /// The fact. Question and paraphrases that the row doesn't have come from the relation's templates.
    pub(super) fn into_fact(self, file: &Arc<str>) -> Result<Fact, BadRow> {
        let line = self.line;
        let required = |value: Option<String>, field: &'static str| match value {
            None => Err(BadRow::field(line, field, "is empty")),
            Some(text) if text.contains(['\n', '\r']) => {
                let reason = "has a line break; answers and names are a single line";
                Err(BadRow::field(line, field, reason))
            }
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
                let suggestion = closest_match(&name, known)
                    .map_or_else(String::new, |k| format!(" (did you mean `{k}`?)"));
                let reason = format!(
                    "is missing: the relation `{name}` has no built-in question template{suggestion}"
                );
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

/// The name of a field that may be a misspelling of `required`.
fn column_suggestion(required: &str, object: &Map<String, Value>) -> String {
    let others = object
        .keys()
        .map(String::as_str)
        .filter(|k| !FACT_COLUMNS.contains(k));
    closest_match(required, others)
        .map_or_else(String::new, |k| format!("; is it the field `{k}`?"))
}

#[cfg(test)]
mod tests {
    use super::{super::json::parse_lines, *};

    fn parse(text: &[u8]) -> impl Iterator<Item = Result<RawFact, BadRow>> {
        parse_lines(text).map(|(line, value)| value.and_then(|v| RawFact::from_json(line, &v)))
    }

    #[test]
    fn lists_may_be_lists_or_texts_and_numbers_are_read_as_text() {
        let text = br#"{"subject":"iron","relation":"P1086","object":26,"aliases":["twenty-six"],"paraphrases":"a?|b?","extra":{}}"#;
        let row = parse(text).next().unwrap().unwrap();
        assert_eq!(row.object.as_deref(), Some("26"));
        assert_eq!(row.aliases, ["twenty-six"]);
        assert_eq!(row.paraphrases, ["a?", "b?"]);
    }

    #[test]
    fn broken_lines_name_their_line_and_field() {
        let text = b"{\"subject\":\"a\",\"relation\":\"P17\",\"object\":\"b\"}\r\n\n{\n[]\n{\"subject\":\"a\",\"relation\":\"P17\",\"objet\":\"b\"}\n\
            {\"subject\":\"a\",\"relation\":\"P17\",\"object\":[]}\n\xff\n";
        let results: Vec<_> = parse(text)
            .map(|row| {
                row.map(|_| ())
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
}

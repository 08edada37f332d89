//! A row of a fact file before it is a fact: its fields, whatever the format.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{
    super::{
        fact::{Fact, Location},
        relations::{self, relation},
    },
    bad_row::BadRow,
    columns::{FACT_COLUMNS, FORMS, closest_form, foreign_names, name_list, required_columns},
    json::{scalar, type_name},
};
use crate::{Result, config::RowWeight, error::closest_match};

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
    /// A row of `question` and `answer` alone.
    pub(super) without_subject: bool,
    /// Whether a list in a cell looks as if it were separated by something else than `|`.
    pub(super) has_other_separator: bool,
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
    /// Sets a field from its text. Lists are separated by `|`, or are JSON or Python's text of a list.
    ///
    /// # Errors
    /// When the text holds a list where one text is needed.
    pub(super) fn set(&mut self, column: &'static str, text: &str) -> Result<(), BadRow> {
        let text = text.trim();
        if matches!(column, "aliases" | "paraphrases") {
            if let Some(items) = list_in_text(text) {
                self.set_list(column, items.iter().map(String::as_str));
            } else {
                self.has_other_separator |= column == "aliases"
                    && !text.contains('|')
                    && (text.contains(';') || text.contains(", "));
                self.set_list(column, text.split('|'));
            }
            return Ok(());
        }
        let is_list = || text.starts_with('[') && list_in_text(text).is_some();
        if matches!(column, "object" | "answer") && is_list() {
            let reason = "holds a list; one text is needed: the others go into `aliases`";
            return Err(BadRow::field(self.line, column, reason));
        }
        let value = (!text.is_empty()).then(|| text.to_owned());
        match column {
            "subject" => self.subject = value,
            "relation" => self.relation = value,
            "object" | "answer" => self.object = value,
            "question" => self.question = value,
            "split" => self.split = value,
            _ => unreachable!("the column is one of a fact"),
        }
        Ok(())
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
            let is_message = |item: &Value| item.get("role").or_else(|| item.get("from")).is_some();
            let reason = match value {
                Value::Array(items) if items.iter().any(is_message) => {
                    "the row is a bare list of messages; write it as {\"messages\": [...]}".into()
                }
                Value::Array(_) => {
                    "the row is an array; an object is needed, with the names of its fields".into()
                }
                _ => format!("the row is {}; an object is needed", type_name(value)),
            };
            return Err(BadRow::row(line, reason));
        };
        let has = |name: &str| object.get(name).is_some_and(|v| !v.is_null());
        let named = |name: &str| object.contains_key(name);
        let is_answered = has("answer") || (named("answer") && !named("object"));
        let mut row = Self {
            line,
            without_subject: named("question") && is_answered && !has("subject") && !has("object"),
            ..Self::default()
        };
        for column in FACT_COLUMNS {
            match object.get(column) {
                None | Some(Value::Null) => {}
                Some(Value::Array(items)) if matches!(column, "aliases" | "paraphrases") => {
                    // Null is none, as in the text of a list.
                    let items = items.iter().filter(|item| !item.is_null());
                    let items: Vec<String> = items
                        .map(|item| scalar(line, column, item))
                        .collect::<Result<_, _>>()?;
                    row.set_list(column, items.iter().map(String::as_str));
                }
                Some(value) => row.set(column, &scalar(line, column, value)?)?,
            }
        }
        if row.without_subject {
            row.set_answer(object)?;
            return Ok(row);
        }
        for required in required_columns(|name| object.contains_key(name)) {
            if !object.contains_key(*required) {
                let reason = format!("is missing{}", column_suggestion(required, object));
                return Err(BadRow::field(line, required, reason));
            }
        }
        Ok(row)
    }

    /// Sets the object from `answer`: a text, or a list of one.
    fn set_answer(&mut self, object: &Map<String, Value>) -> Result<(), BadRow> {
        let answer = object.get("answer").unwrap_or(&Value::Null);
        let bad = |reason: &str| BadRow::field(self.line, "answer", reason);
        let text = match answer {
            Value::Null => return Ok(()),
            Value::Array(answers) => match &answers[..] {
                [one] => scalar(self.line, "answer", one)?,
                [] => return Err(bad("is an empty list")),
                _ => {
                    return Err(bad(
                        "is a list of several; one text is needed: the others go into `aliases`",
                    ));
                }
            },
            Value::Object(parts) if parts.contains_key("value") => {
                return Err(bad(
                    "is an object; one text is needed: its `value` would be `answer`, and its `aliases` would be `aliases`",
                ));
            }
            other => scalar(self.line, "answer", other)?,
        };
        self.set("answer", &text)
    }

    /// The fact. Question and paraphrases that the row doesn't have come from the relation's templates.
    pub(super) fn into_fact(mut self, file: &Arc<str>) -> Result<Fact, BadRow> {
        let line = self.line;
        let required = |value: Option<String>, field: &'static str| match value {
            None => Err(BadRow::field(line, field, "is empty")),
            Some(text) if text.contains(['\n', '\r']) => {
                let reason = "has a line break; answers and names are a single line";
                Err(BadRow::field(line, field, reason))
            }
            Some(text) if text.contains('\u{feff}') => {
                let reason = "has a byte order mark (U+FEFF): remove it";
                Err(BadRow::field(line, field, reason))
            }
            Some(text) => Ok(text),
        };
        let object_field = if self.without_subject {
            "answer"
        } else {
            "object"
        };
        let object = required(self.object, object_field)?;
        let (subject, name) = if self.without_subject {
            let question = required(self.question.clone(), "question")?;
            self.question = Some(question);
            (
                String::new(),
                self.relation.unwrap_or_else(|| NO_RELATION.into()),
            )
        } else {
            (
                required(self.subject, "subject")?,
                required(self.relation, "relation")?,
            )
        };
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
                    "is missing: the relation `{name}` has no built-in question template{suggestion}; give each row its question in a column `question`"
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
            weight: RowWeight::default(),
        })
    }
}

/// The relation of a fact that names none.
pub(super) const NO_RELATION: &str = "question";

/// What a missing field may be called, or which forms are read.
fn column_suggestion(required: &str, object: &Map<String, Value>) -> String {
    let names = object.keys().map(String::as_str);
    let found = format!(": the row has {}", name_list(names.clone()));
    if let Some(meant) = foreign_names(names.clone()) {
        let of_form = closest_form(&meant).map_or_else(String::new, |form| {
            format!(" Such rows have {}", name_list(form.iter().copied()))
        });
        return format!("{found}; {meant}{of_form}");
    }
    let others = names.filter(|k| !FACT_COLUMNS.contains(k));
    closest_match(required, others).map_or_else(
        || format!("{found}; {FORMS}"),
        |k| format!("{found}; is it the field `{k}`?"),
    )
}

/// The items of a list that a text holds as JSON (`["a", "b"]`) or as Python's text of a list, tuple or set (`['a', 'b']`, `('a',)`,
/// `{'a'}`); `None` for any other text.
fn list_in_text(text: &str) -> Option<Vec<String>> {
    let within = |open: char, close: char| text.strip_prefix(open)?.strip_suffix(close);
    let list = within('[', ']');
    // A tuple or set without quotes is text in parentheses.
    let others = within('(', ')').or_else(|| within('{', '}'));
    let quoted = |inner: &&str| inner.trim_start().starts_with(['\'', '"']);
    let inner = list.or_else(|| others.filter(quoted))?.trim();
    if inner.is_empty() {
        return Some(vec![]);
    }
    if let Ok(items) = serde_json::from_str::<Vec<Value>>(text) {
        let texts = items.into_iter().map(|item| match item {
            Value::String(text) => Some(text),
            Value::Number(number) => Some(number.to_string()),
            Value::Null => Some(String::new()),
            _ => None,
        });
        return texts.collect();
    }
    let mut items = Vec::new();
    let mut rest = inner;
    loop {
        let quote = rest.chars().next().filter(|c| matches!(c, '\'' | '"'));
        if let Some(quote) = quote {
            let (item, after) = python_text(&rest[1..], quote)?;
            items.push(item);
            rest = after.trim_start();
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            let item = rest[..end].trim();
            if item != "None" {
                // Only numbers stand in a list without quotes.
                item.parse::<f64>().ok()?;
                items.push(item.to_owned());
            }
            rest = &rest[end..];
        }
        if rest.is_empty() {
            return Some(items);
        }
        // NumPy writes no commas.
        rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
        if rest.is_empty() {
            return Some(items);
        }
    }
}

/// Python's text literal up to `quote`, and what follows.
fn python_text(text: &str, quote: char) -> Option<(String, &str)> {
    let mut item = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        if c == quote {
            return Some((item, &text[i + c.len_utf8()..]));
        }
        if c != '\\' {
            item.push(c);
            continue;
        }
        let (_, escaped) = chars.next()?;
        let digits = match escaped {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        item.push(match escaped {
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            'x' | 'u' | 'U' => {
                let code: String = chars.by_ref().take(digits).map(|(_, c)| c).collect();
                char::from_u32(u32::from_str_radix(&code, 16).ok()?)?
            }
            other => other,
        });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{super::json::parse_lines, *};

    fn parse(text: &[u8]) -> impl Iterator<Item = Result<RawFact, BadRow>> {
        parse_lines(text).map(|(line, value)| value.and_then(|v| RawFact::from_json(line, &v)))
    }

    #[test]
    fn lists_may_be_lists_or_texts_and_numbers_are_read_as_text() {
        let text = br#"{"subject":"iron","relation":"P1086","object":26,"aliases":["twenty-six",null],"paraphrases":"a?|b?","extra":{}}"#;
        let row = parse(text).next().unwrap().unwrap();
        assert_eq!(row.object.as_deref(), Some("26"));
        assert_eq!(row.aliases, ["twenty-six"]);
        assert_eq!(row.paraphrases, ["a?", "b?"]);
    }

    #[test]
    fn lists_in_cells_are_read_however_they_are_written() {
        for (text, items) in [
            (r#"["Alfa", "Bravo"]"#, vec!["Alfa", "Bravo"]),
            (
                "['Alfa', \"O'Hara\", 'a\\'b', 'caf\\xe9']",
                vec!["Alfa", "O'Hara", "a'b", "café"],
            ),
            ("['Alfa' 'Bravo']", vec!["Alfa", "Bravo"]),
            ("[1, 2.50, None]", vec!["1", "2.50"]),
            ("[]", vec![]),
            ("('Alfa', 'Bravo')", vec!["Alfa", "Bravo"]),
            ("('Alfa',)", vec!["Alfa"]),
            ("{'Alfa', \"O'Hara\"}", vec!["Alfa", "O'Hara"]),
        ] {
            assert_eq!(list_in_text(text).unwrap(), items, "{text}");
        }
        for text in [
            "[sic]", "Alfa", "[a|b]", "['open]", "a [b]", "(Alfa)", "{Alfa}", "('Alfa",
        ] {
            assert_eq!(list_in_text(text), None, "{text}");
        }
        let mut row = RawFact::default();
        row.set("aliases", "Alfa;Bravo").unwrap();
        assert!(row.has_other_separator);
        assert!(row.set("object", "['a']").is_err());
    }

    #[test]
    fn a_row_of_question_and_answer_is_a_fact_without_a_subject() {
        let rows: Vec<_> = parse(
            b"{\"question\":\"Who?\",\"answer\":\"He\",\"aliases\":[\"him\"]}\n{\"question\":\"Who?\",\"answer\":[\"He\"]}\n\
              {\"question\":\"Who?\",\"answer\":{\"value\":\"He\"}}\n{\"question\":\"Who?\",\"answer\":[\"He\",\"She\"]}\n",
        )
        .collect();
        let fact = |i: usize| {
            let row = rows[i].as_ref().unwrap();
            assert!(row.without_subject);
            row.object.as_deref()
        };
        assert_eq!((fact(0), fact(1)), (Some("He"), Some("He")));
        for i in [2, 3] {
            assert_eq!(rows[i].as_ref().unwrap_err().field, Some("answer"));
        }
        for text in [
            &b"{\"question\":\"Who?\",\"answer\":null}"[..],
            b"{\"question\":\"Who?\",\"answer\":\"\"}",
        ] {
            let row = parse(text).next().unwrap().unwrap();
            let bad = row.into_fact(&"f".into()).unwrap_err();
            assert_eq!(bad.field, Some("answer"));
        }
        let row = parse(b"{\"question\":\"Who?\",\"answer\":\"He\"}")
            .next()
            .unwrap()
            .unwrap();
        let fact = row.into_fact(&"f".into()).unwrap();
        assert_eq!(
            (&*fact.subject, &*fact.relation, &*fact.object),
            ("", NO_RELATION, "He")
        );
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

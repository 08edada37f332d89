//! Values that stand for a missing one.

use std::sync::Arc;

use serde_json::Value;

use super::super::fact::{Fact, Location};

/// What pandas reads as missing by default (`pandas._libs.parsers.STR_NA_VALUES`), without the empty text, and Excel's errors.
const MARKS: [&str; 26] = [
    "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>",
    "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null", "#DIV/0!", "#NAME?", "#NULL!",
    "#NUM!", "#REF!", "#SPILL!", "#CALC!", "#VALUE!",
];

/// The fields of a text that are trained or asked.
const FIELDS: [&str; 7] = [
    "instruction",
    "input",
    "output",
    "system",
    "prompt",
    "completion",
    "text",
];

/// The values of a file that are read as text, and stand for a missing value where a program wrote them.
#[derive(Default)]
pub(super) struct MissingMarks {
    count: usize,
    first: Option<(usize, &'static str, String)>,
}

impl MissingMarks {
    /// Counts the fields of a fact.
    pub(super) fn count_fact(&mut self, fact: &Fact) {
        let line = fact.location.line;
        self.count(line, "subject", &fact.subject);
        self.count(line, "object", &fact.object);
        self.count(line, "question", &fact.question);
        for alias in &fact.aliases {
            self.count(line, "aliases", alias);
        }
    }

    /// Counts the fields of a row of text.
    pub(super) fn count_row(&mut self, line: usize, row: &Value) {
        for field in FIELDS {
            if let Some(text) = row.get(field).and_then(Value::as_str) {
                self.count(line, field, text);
            }
        }
    }

    fn count(&mut self, line: usize, field: &'static str, text: &str) {
        if MARKS.contains(&text) {
            self.count += 1;
            self.first
                .get_or_insert_with(|| (line, field, text.to_owned()));
        }
    }

    /// The note for the file, if it has such values.
    pub(super) fn note(self, file: &Arc<str>) -> Option<String> {
        let (line, field, text) = self.first?;
        let location = Location {
            file: file.clone(),
            line,
        };
        let all = if self.count == 1 {
            String::new()
        } else {
            format!(" ({} such values in all)", self.count)
        };
        Some(format!(
            "{location}: field `{field}` is `{text}`, which often stands for a missing value, and is read as text{all}"
        ))
    }
}

//! `EntityQuestions` (Sciavolino et al. 2021): `[{"question", "answers"}]`, one file a relation.

use serde_json::Value;

use super::{
    super::relations::{self, Relation},
    bad_row::BadRow,
    columns::ANSWERS,
    json::scalar,
    raw_fact::{RawFact, RawFacts},
    rows::NumberedRow,
};
use crate::{Error, Result};

/// Reads the rows of a file.
///
/// The relation comes from the file's name (`P17.dev.json`) or else from the question's template, the subject from the template.
/// Rows with several answers are skipped and counted unless `multiple_answers` is set.
///
/// # Errors
/// [`Error::Input`] when the file is named after a relation that has no template.
pub(super) fn read(
    file: &str,
    values: impl Iterator<Item = Result<NumberedRow>>,
    multiple_answers: bool,
) -> Result<RawFacts<'static>> {
    let file_relation = relation_of_file(file)?;
    let mut skipped = 0;
    let mut rows = Vec::new();
    for value in values {
        let (line, value) = value?;
        match value.and_then(|value| parse(line, &value, file_relation)) {
            Ok((_, answers)) if answers > 1 && !multiple_answers => skipped += 1,
            Ok((row, _)) => rows.push(Ok(row)),
            Err(bad) => rows.push(Err(bad)),
        }
    }
    let mut facts = RawFacts {
        // The data set has a few.
        skip_contradictions: true,
        ..RawFacts::new(rows.into_iter().map(Ok))
    };
    if skipped > 0 {
        let rows = if skipped == 1 { "row" } else { "rows" };
        let note = format!("{file}: {skipped} {rows} with several answers skipped");
        facts.notes.push(note);
    }
    Ok(facts)
}

/// The relation in the name of a file: `P17` of `data/P17.dev.json`.
fn relation_of_file(file: &str) -> Result<Option<&'static Relation>> {
    let name = std::path::Path::new(file).file_name().unwrap_or_default();
    let name = name.to_string_lossy();
    let id = name.split(['.', '_', '-']).next().unwrap_or_default();
    let is_id = id
        .strip_prefix('P')
        .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    if !is_id {
        return Ok(None);
    }
    let known = relations::all_relations().iter().find(|r| r.id == id);
    known.map(Some).ok_or_else(|| {
        Error::input_hint(
            format!("{file}: the relation `{id}` in the file name has no question template, so the subjects are unknown"),
            "give the facts as a table with the columns subject, relation, object and question",
        )
    })
}

/// The row and its number of answers.
fn parse(
    line: usize,
    item: &Value,
    file_relation: Option<&'static Relation>,
) -> Result<(RawFact, usize), BadRow> {
    let question = item
        .get("question")
        .ok_or_else(|| BadRow::field(line, "question", "is missing"))?;
    let question = scalar(line, "question", question)?.trim().to_owned();
    let parsed;
    let answers = match item.get(ANSWERS) {
        Some(Value::Array(answers)) => answers,
        // In a table the list is JSON in a text.
        Some(Value::String(text)) if text.starts_with('[') => {
            parsed = serde_json::from_str::<Vec<Value>>(text).unwrap_or_default();
            &parsed
        }
        Some(Value::Object(parts)) if parts.contains_key("text") => {
            let reason = "is not a list of texts, but SQuAD's object: its first `text` would be `answer` of a row of `question` and `answer`";
            return Err(BadRow::field(line, ANSWERS, reason));
        }
        _ => return Err(BadRow::field(line, ANSWERS, "is not a list of texts")),
    };
    let answers: Vec<String> = answers
        .iter()
        .map(|a| scalar(line, ANSWERS, a))
        .collect::<Result<_, _>>()?;
    let Some(object) = answers.first().filter(|a| !a.trim().is_empty()) else {
        return Err(BadRow::field(line, ANSWERS, "is empty"));
    };
    let (relation, subject) = match_template(line, &question, file_relation)?;
    let mut row = RawFact {
        line,
        subject: Some(subject.to_owned()),
        relation: Some(relation.id.to_owned()),
        object: Some(object.trim().to_owned()),
        question: Some(question.clone()),
        ..RawFact::default()
    };
    row.set_list("aliases", answers[1..].iter().map(String::as_str));
    Ok((row, answers.len()))
}

/// Relation and subject of a question.
fn match_template<'q>(
    line: usize,
    question: &'q str,
    file_relation: Option<&'static Relation>,
) -> Result<(&'static Relation, &'q str), BadRow> {
    let bad = |reason: String| BadRow::field(line, "question", reason);
    if let Some(relation) = file_relation {
        let subject = relation.subject(question);
        return subject.map(|subject| (relation, subject)).ok_or_else(|| {
            let template = relation.template.replace("{}", "...");
            bad(format!(
                "does not follow the template of {} (`{template}`): `{question}`",
                relation.id
            ))
        });
    }
    let mut matching: Vec<_> = relations::all_relations()
        .iter()
        .filter(|r| r.entity_questions)
        .filter_map(|r| r.subject(question).map(|subject| (r, subject)))
        .collect();
    // The template with the most words wins: `Where is the headquarter of X?` is P159, not P276.
    let shortest = matching.iter().map(|(_, subject)| subject.len()).min();
    matching.retain(|(_, subject)| Some(subject.len()) == shortest);
    match matching[..] {
        [] => Err(bad(format!(
            "follows none of the 24 templates of EntityQuestions: `{question}`; rows of other questions have `question` and `answer`, with more answers under `aliases`"
        ))),
        [found] => Ok(found),
        _ => {
            let ids: Vec<_> = matching.iter().map(|(r, _)| r.id).collect();
            Err(bad(format!(
                "fits {}: name the file after its relation, as in P131.dev.json",
                ids.join(" and ")
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read_items(name: &str, items: &Value, multiple: bool) -> Result<RawFacts<'static>> {
        let items = items.as_array().unwrap().iter().cloned().enumerate();
        read(name, items.map(|(i, item)| Ok((i + 1, Ok(item)))), multiple)
    }

    fn rows(name: &str, items: &Value) -> Vec<Result<RawFact, BadRow>> {
        read_items(name, items, false).unwrap().collect_rows()
    }

    #[test]
    fn all_24_relations_follow_from_the_file_name_and_all_but_two_from_the_question() {
        for relation in relations::all_relations()
            .iter()
            .filter(|r| r.entity_questions)
        {
            let items = json!([{"question": relation.question("Saint-Louis"), "answers": ["x"]}]);
            for file in [
                format!("data/{}.test.json", relation.id),
                "mine.json".into(),
            ] {
                let found = rows(&file, &items);
                if file == "mine.json" && matches!(relation.id, "P131" | "P276") {
                    assert!(
                        found[0]
                            .as_ref()
                            .unwrap_err()
                            .reason
                            .contains("P131 and P276")
                    );
                    continue;
                }
                let row = found[0].as_ref().unwrap();
                assert_eq!(row.relation.as_deref(), Some(relation.id));
                assert_eq!(row.subject.as_deref(), Some("Saint-Louis"));
            }
        }
    }

    #[test]
    fn rows_with_several_answers_are_skipped_and_counted_unless_requested() {
        let items = json!([
            {"question": "What is the capital of Bolivia?", "answers": ["Sucre", "La Paz"]},
            {"question": "What is the capital of Peru?", "answers": ["Lima"]},
        ]);
        let one = read_items("P36.dev.json", &items, false).unwrap();
        assert_eq!(
            one.notes,
            ["P36.dev.json: 1 row with several answers skipped"]
        );
        assert_eq!(one.collect_rows().len(), 1);
        let both = read_items("P36.dev.json", &items, true).unwrap();
        let both = both.collect_rows();
        assert_eq!(both[0].as_ref().unwrap().aliases, ["La Paz"]);
    }

    #[test]
    fn broken_rows_name_the_field() {
        let items = json!([
            {"question": "Who is it?", "answers": ["x"]},
            {"question": "Which country is A located in?", "answers": []},
            {"question": "Which country is A located in?", "answers": "B"},
            {"answers": ["B"]},
        ]);
        let fields: Vec<_> = rows("P17.dev.json", &items)
            .into_iter()
            .map(|r| r.unwrap_err().field)
            .collect();
        assert_eq!(
            fields,
            [
                Some("question"),
                Some("answers"),
                Some("answers"),
                Some("question")
            ]
        );
    }

    #[test]
    fn a_file_of_an_unknown_relation_is_refused() {
        let items = json!([{"question": "q", "answers": ["a"]}]);
        assert!(read_items("P999.dev.json", &items, false).is_err());
    }
}

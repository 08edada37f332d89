//! `EntityQuestions` (Sciavolino et al. 2021) as it is: `[{"question", "answers"}]`, a file a relation.

use std::path::Path;

use serde_json::Value;

use super::{
    super::relations::{self, Relation},
    ReadOptions, Rows,
    json::scalar,
    row::{BadRow, RawFact},
    values::NumberedRow,
};
use crate::{Error, Result};

/// Reads the rows of a file; relation and subject are recovered from the file's name and the question's template.
pub(super) fn read(
    path: &Path,
    file: &str,
    values: impl Iterator<Item = Result<NumberedRow>>,
    options: ReadOptions,
) -> Result<Rows<'static>> {
    let file_relation = relation_from_file_name(path, file)?;
    let mut multiple = 0;
    let mut list = Vec::new();
    for value in values {
        let (row, value) = value?;
        match value.and_then(|value| parse(row, &value, file_relation)) {
            Ok((_, answers)) if answers > 1 && !options.multiple_answers => multiple += 1,
            Ok((row, _)) => list.push(Ok(row)),
            Err(bad) => list.push(Err(bad)),
        }
    }
    let mut found = Rows {
        skip_contradictions: true,
        ..Rows::new(list.into_iter().map(Ok))
    };
    if multiple > 0 {
        let rows = if multiple == 1 { "row" } else { "rows" };
        found.notes.push(format!(
            "{file}: {multiple} {rows} with several answers left out"
        ));
    }
    Ok(found)
}

/// The relation in the file's name: `P17` of `P17.dev.json`.
fn relation_from_file_name(path: &Path, file: &str) -> Result<Option<&'static Relation>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
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
            format!("{file}: the relation `{id}` of the file's name has no question template, so its subjects cannot be told"),
            "give the facts as a table with subject, relation, object and question",
        )
    })
}

/// The row, and how many answers it has.
fn parse(
    line: usize,
    item: &Value,
    file_relation: Option<&'static Relation>,
) -> Result<(RawFact, usize), BadRow> {
    let question = item
        .get("question")
        .ok_or_else(|| BadRow::field(line, "question", "is missing"))?;
    let question = scalar(line, "question", question)?.trim().to_owned();
    let Some(Value::Array(answers)) = item.get("answers") else {
        return Err(BadRow::field(line, "answers", "is not a list of texts"));
    };
    let answers: Vec<String> = answers
        .iter()
        .map(|a| scalar(line, "answers", a))
        .collect::<Result<_, _>>()?;
    let Some(object) = answers.first().filter(|a| !a.trim().is_empty()) else {
        return Err(BadRow::field(line, "answers", "is empty"));
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
    if let Some(relation) = file_relation {
        return relation
            .subject(question)
            .map(|subject| (relation, subject))
            .ok_or_else(|| {
                let template = relation.template.replace("{}", "...");
                BadRow::field(
                    line,
                    "question",
                    format!(
                        "is not asked as {} is (`{template}`): `{question}`",
                        relation.id
                    ),
                )
            });
    }
    let matching: Vec<_> = relations::all_relations()
        .iter()
        .filter(|r| r.entity_questions)
        .filter_map(|r| r.subject(question).map(|subject| (r, subject)))
        .collect();
    match matching[..] {
        [] => Err(BadRow::field(
            line,
            "question",
            format!("follows none of the 24 templates of EntityQuestions: `{question}`"),
        )),
        [(first, subject)] => Ok((first, subject)),
        // The most of the question is template, the least is subject: `Where is the headquarter of X?` is P159.
        _ => {
            let shortest = matching
                .iter()
                .map(|(_, s)| s.len())
                .min()
                .unwrap_or_default();
            let best: Vec<_> = matching
                .iter()
                .filter(|(_, s)| s.len() == shortest)
                .collect();
            match best[..] {
                [&(relation, subject)] => Ok((relation, subject)),
                _ => Err(BadRow::field(
                    line,
                    "question",
                    format!(
                        "is asked by {} alike: name the file by its relation, as in P131.dev.json",
                        ids(&best)
                    ),
                )),
            }
        }
    }
}

fn ids(matching: &[&(&'static Relation, &str)]) -> String {
    let ids: Vec<_> = matching.iter().map(|(r, _)| r.id).collect();
    ids.join(" and ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(name: &str, items: &Value, options: ReadOptions) -> Result<Rows<'static>> {
        let items = items.as_array().unwrap().iter().cloned().enumerate();
        let items = items.map(|(i, item)| Ok((i + 1, Ok(item))));
        read(Path::new(name), name, items, options)
    }

    fn rows(name: &str, items: &Value) -> Vec<Result<RawFact, BadRow>> {
        found(name, items, ReadOptions::default())
            .unwrap()
            .collect_rows()
    }

    #[test]
    fn all_24_relations_are_told_by_name_and_all_but_two_by_their_question() {
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
    fn several_answers_are_left_out_and_counted_unless_asked_for() {
        let items = json!([
            {"question": "What is the capital of Bolivia?", "answers": ["Sucre", "La Paz"]},
            {"question": "What is the capital of Peru?", "answers": ["Lima"]},
        ]);
        let one = found("P36.dev.json", &items, ReadOptions::default()).unwrap();
        assert_eq!(
            one.notes,
            ["P36.dev.json: 1 row with several answers left out"]
        );
        assert_eq!(one.collect_rows().len(), 1);
        let options = ReadOptions {
            multiple_answers: true,
            ..ReadOptions::default()
        };
        let both = found("P36.dev.json", &items, options)
            .unwrap()
            .collect_rows();
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
        assert!(found("P999.dev.json", &items, ReadOptions::default()).is_err());
    }
}

//! A fact, its accepted answers and the spelling that is trained.

use std::{fmt, sync::Arc};

use super::{aliases, scorer::AnswerScorer};
use crate::config::{MatchRule, RowWeight, is_default};

/// The place of a fact in its file, for messages.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Location {
    /// The file, or `pack:world`.
    pub file: Arc<str>,
    /// The line, counted from 1 (a table's header is line 1), or the index of a row in a JSON array or Parquet file, from 1.
    pub line: usize,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.file.to_ascii_lowercase();
        let name = name.trim_end_matches(".gz").trim_end_matches(".zst");
        let has_no_lines = [".json", ".parquet"].iter().any(|end| name.ends_with(end));
        let unit = if has_no_lines { "row" } else { "line" };
        write!(f, "{}, {unit} {}", self.file, self.line)
    }
}

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Fact {
    /// Subject.
    pub subject: String,
    /// Relation, such as `P17`.
    pub relation: String,
    /// Object as the file spells it.
    pub object: String,
    /// Other correct answers that the file gives.
    pub aliases: Vec<String>,
    /// The question.
    pub question: String,
    /// Paraphrased questions, from the file or from the relation's templates.
    pub paraphrases: Vec<String>,
    /// The `split` column, if there is one.
    pub split: Option<String>,
    /// File and line.
    pub location: Location,
    /// The weight that the config gives the file, if it is trained.
    #[serde(default, skip_serializing_if = "is_default")]
    pub weight: RowWeight,
}

impl Fact {
    /// Every accepted answer: object, aliases and built-in aliases. The first is [`target`](Self::target).
    ///
    /// No string comes twice, but two may be equal after normalisation (`The Gambia`, `Gambia`).
    pub fn accepted_answers(&self) -> Vec<String> {
        let mut answers = vec![self.target(), self.object.clone()];
        answers.extend(self.aliases.iter().cloned());
        answers.extend(aliases::spellings(&self.relation, &self.object));
        let mut seen = std::collections::HashSet::new();
        answers.retain(|form| seen.insert(form.clone()));
        answers
    }

    /// The spelling that is trained: the object as the file spells it, or in a relation whose objects are countries or languages by
    /// definition the most common spelling.
    pub fn target(&self) -> String {
        aliases::spellings(&self.relation, &self.object)
            .into_iter()
            .next()
            .unwrap_or_else(|| self.object.clone())
    }

    /// Whether the first line of `text` is a correct answer.
    ///
    /// For many texts, build one [`AnswerScorer`].
    pub fn is_correct(&self, text: &str, match_rule: MatchRule) -> bool {
        self.scorer(match_rule).is_correct(text)
    }

    /// The scorer of answers to this fact.
    pub fn scorer(&self, match_rule: MatchRule) -> AnswerScorer {
        AnswerScorer::new(&self.accepted_answers(), match_rule)
    }

    /// The country of a place, on line 2 of `facts.tsv`.
    #[cfg(test)]
    pub(crate) fn for_test(subject: &str, object: &str) -> Self {
        Self {
            subject: subject.into(),
            relation: "P17".into(),
            object: object.into(),
            aliases: vec![],
            question: format!("Which country is {subject} located in?"),
            paraphrases: vec![],
            split: None,
            location: Location {
                file: "facts.tsv".into(),
                line: 2,
            },
            weight: RowWeight::default(),
        }
    }

    /// Whether both have the same object, in any spelling: the object of one is an accepted answer of the other. An alias that both
    /// have is not enough.
    pub fn same_object(&self, other: &Self) -> bool {
        self.is_correct(&other.object, MatchRule::Exact)
            || other.is_correct(&self.object, MatchRule::Exact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(object: &str, aliases: &[&str]) -> Fact {
        Fact {
            aliases: aliases.iter().map(|&a| a.into()).collect(),
            ..Fact::for_test("Boston", object)
        }
    }

    #[test]
    fn the_trained_spelling_comes_first_and_no_answer_comes_twice() {
        let answers = fact("United States of America", &["USA", "the States"]).accepted_answers();
        assert_eq!(answers[0], "United States");
        assert!(answers.iter().any(|f| f == "the States"));
        let distinct: std::collections::HashSet<_> = answers.iter().collect();
        assert_eq!(distinct.len(), answers.len());
    }

    #[test]
    fn an_object_outside_the_table_is_trained_as_the_file_spells_it() {
        let fact = fact("Jane Austen", &["Austen"]);
        assert_eq!(fact.target(), "Jane Austen");
        assert_eq!(fact.accepted_answers(), ["Jane Austen", "Austen"]);
    }

    #[test]
    fn an_object_of_a_relation_without_countries_is_trained_as_the_file_spells_it() {
        for object in [
            "Burma",
            "Holland",
            "United States of America",
            "Congo",
            "Georgian",
        ] {
            let fact = Fact {
                relation: "title".into(),
                ..fact(object, &[])
            };
            assert_eq!(fact.accepted_answers(), [object]);
        }
    }

    #[test]
    fn every_accepted_answer_is_correct() {
        for (relation, object) in [
            ("P17", "United States of America"),
            ("P17", "People's Republic of China"),
            ("P407", "English language"),
            ("P495", "Ivory Coast"),
        ] {
            let fact = Fact {
                relation: relation.into(),
                ..fact(object, &[])
            };
            for form in fact.accepted_answers() {
                for match_rule in [MatchRule::Exact, MatchRule::Contains] {
                    assert!(
                        fact.is_correct(&format!(" {form}\n"), match_rule),
                        "{object}: {form}"
                    );
                }
            }
        }
    }

    #[test]
    fn two_spellings_of_one_country_are_the_same_object() {
        assert!(fact("USA", &[]).same_object(&fact("United States of America", &[])));
        assert!(!fact("Georgia", &[]).same_object(&fact("Germany", &[])));
        assert!(fact("A", &["B"]).same_object(&fact("B", &["C"])));
        assert!(!fact("A", &["B"]).same_object(&fact("C", &["B"])));
    }
}

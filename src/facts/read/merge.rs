//! One set from many rows: duplicates and contradictions.

use std::collections::HashMap;

use super::super::{fact::Fact, normalise};
use crate::{Error, Result};

/// Collects facts; a question is asked once.
#[derive(Default)]
pub(super) struct Merger {
    pub(super) facts: Vec<Fact>,
    by_question: HashMap<String, usize>,
    duplicates: usize,
    contradictions: usize,
}

impl Merger {
    /// Adds `fact`, unless its question is there already: with the same object it is a duplicate, left out and counted;
    /// with another it is refused, or where the source is `lenient` left out and counted.
    pub(super) fn push(&mut self, fact: Fact, lenient: bool) -> Result<()> {
        let Some(&index) = self.by_question.get(&fact.question) else {
            self.by_question
                .insert(fact.question.clone(), self.facts.len());
            self.facts.push(fact);
            return Ok(());
        };
        let first = &self.facts[index];
        if first.same_object(&fact) {
            self.duplicates += 1;
        } else if lenient {
            self.contradictions += 1;
        } else {
            return Err(Error::input_hint(
                format!(
                    "`{}` has two answers: `{}` ({}) and `{}` ({})",
                    fact.question, first.object, first.location, fact.object, fact.location
                ),
                "leave one of the rows out, or name the other answer under `aliases` if both are right",
            ));
        }
        Ok(())
    }

    /// What was left out.
    pub(super) fn notes(&self) -> Vec<String> {
        let rows = |n: usize| if n == 1 { "row" } else { "rows" };
        let mut notes = Vec::new();
        if self.duplicates > 0 {
            notes.push(format!(
                "{} {} left out: the same question and object came before",
                self.duplicates,
                rows(self.duplicates)
            ));
        }
        if self.contradictions > 0 {
            notes.push(format!(
                "{} {} left out: the same question came before with another object",
                self.contradictions,
                rows(self.contradictions)
            ));
        }
        notes
    }
}

/// Takes out of `facts` (called `name` in the note) what `learn` contradicts, and says so: a fact that is meant to change
/// is not forgotten.
///
/// A fact is contradicted when `learn` gives the same question, or the same subject and relation, another object.
pub fn drop_contradicted(learn: &[Fact], facts: &mut Vec<Fact>, name: &str) -> Option<String> {
    let about = |fact: &Fact| (normalise(&fact.subject), fact.relation.to_lowercase());
    let mut new_by_question: HashMap<&str, Vec<&Fact>> = HashMap::new();
    let mut new_by_subject: HashMap<_, Vec<&Fact>> = HashMap::new();
    for fact in learn {
        new_by_question
            .entry(&fact.question)
            .or_default()
            .push(fact);
        new_by_subject.entry(about(fact)).or_default().push(fact);
    }
    let mut dropped = Vec::new();
    facts.retain(|old| {
        let same_question = new_by_question
            .get(old.question.as_str())
            .into_iter()
            .flatten();
        let same_subject = new_by_subject.get(&about(old)).into_iter().flatten();
        let changed = same_question
            .chain(same_subject)
            .any(|new| !new.same_object(old));
        if changed {
            dropped.push(old.subject.clone());
        }
        !changed
    });
    let shown = match &dropped[..] {
        [] => return None,
        all @ ([_] | [_, _] | [_, _, _]) => all.join(", "),
        [a, b, c, ..] => format!("{a}, {b}, {c}, ..."),
    };
    let (facts, are) = if dropped.len() == 1 {
        ("fact", "is")
    } else {
        ("facts", "are")
    };
    Some(format!(
        "{} {facts} that training is meant to change {are} taken out of {name}: {shown}",
        dropped.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(subject: &str, object: &str, line: usize) -> Fact {
        let mut fact = Fact::in_test(subject, object);
        fact.location.line = line;
        fact
    }

    #[test]
    fn a_contradiction_is_refused_with_both_lines() {
        let mut merger = Merger::default();
        merger.push(fact("Paris", "France", 2), false).unwrap();
        let error = merger
            .push(fact("Paris", "United States", 9), false)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("facts.tsv, line 2") && error.contains("facts.tsv, line 9"),
            "{error}"
        );
    }

    #[test]
    fn a_duplicate_in_another_spelling_is_left_out_and_counted() {
        let mut merger = Merger::default();
        merger.push(fact("Boston", "USA", 2), false).unwrap();
        merger
            .push(fact("Boston", "United States of America", 3), false)
            .unwrap();
        assert_eq!(merger.facts.len(), 1);
        assert_eq!(
            merger.notes(),
            ["1 row left out: the same question and object came before"]
        );
    }

    #[test]
    fn a_lenient_source_has_its_later_contradictions_left_out() {
        let mut merger = Merger::default();
        merger.push(fact("Paris", "France", 1), true).unwrap();
        merger
            .push(fact("Paris", "United States", 2), true)
            .unwrap();
        assert_eq!(merger.facts[0].object, "France");
        assert_eq!(
            merger.notes(),
            ["1 row left out: the same question came before with another object"]
        );
    }

    #[test]
    fn what_learn_changes_is_not_held_against_it() {
        let learn = [fact("Paris", "Germany", 2), fact("Boston", "USA", 3)];
        let mut held = vec![
            fact("Paris", "France", 2),
            fact("Boston", "United States", 3),
            fact("Rome", "Italy", 4),
        ];
        let note = drop_contradicted(&learn, &mut held, "held").unwrap();
        assert_eq!(
            held.iter().map(|f| &f.subject[..]).collect::<Vec<_>>(),
            ["Boston", "Rome"]
        );
        assert_eq!(
            note,
            "1 fact that training is meant to change is taken out of held: Paris"
        );
        assert_eq!(drop_contradicted(&learn, &mut held, "held"), None);
    }
}

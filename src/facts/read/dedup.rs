//! Duplicates and contradictions among facts.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use sha2::{Digest, Sha256};

use super::super::{
    fact::{Fact, Location},
    normalise,
};
use crate::{Error, Result};

/// Finds facts whose question was already read. It keeps 16 bytes and the location of each question, and one copy of each
/// answer, so that millions of facts can be read.
#[derive(Default)]
pub(super) struct Deduplicator {
    /// By the first half of a question's SHA-256.
    by_question: BTreeMap<[u8; 16], Seen>,
    /// Object and aliases, interned.
    answers: BTreeSet<Arc<[String]>>,
    duplicates: usize,
    contradictions: usize,
}

/// The first fact with a question.
struct Seen {
    answers: Arc<[String]>,
    location: Location,
}

impl Deduplicator {
    /// Number of distinct questions so far.
    pub(super) fn fact_count(&self) -> usize {
        self.by_question.len()
    }

    /// Whether the question of `fact` is new. A repeated question with the same object is counted as a duplicate.
    ///
    /// # Errors
    /// [`Error::Input`] when the question came before with another object; with `skip_contradictions` it is counted instead.
    pub(super) fn is_new(&mut self, fact: &Fact, skip_contradictions: bool) -> Result<bool> {
        let question = Sha256::digest(&fact.question);
        let question = *question.first_chunk().expect("SHA-256 has 32 bytes");
        let Some(seen) = self.by_question.get(&question) else {
            let answers = self.interned_answers(fact);
            let location = fact.location.clone();
            self.by_question
                .insert(question, Seen { answers, location });
            return Ok(true);
        };
        let (object, aliases) = seen.answers.split_first().expect("the object is there");
        let first = Fact {
            object: object.clone(),
            aliases: aliases.to_vec(),
            location: seen.location.clone(),
            ..fact.clone()
        };
        if first.same_object(fact) {
            self.duplicates += 1;
        } else if skip_contradictions {
            self.contradictions += 1;
        } else {
            return Err(Error::input_hint(
                format!(
                    "`{}` has two answers: `{}` ({}) and `{}` ({})",
                    fact.question, first.object, first.location, fact.object, fact.location
                ),
                "remove one of the rows, or list the other answer under `aliases` if both are correct",
            ));
        }
        Ok(false)
    }

    /// Object and aliases of `fact`, shared with all facts that have the same.
    fn interned_answers(&mut self, fact: &Fact) -> Arc<[String]> {
        let mut answers = vec![fact.object.clone()];
        answers.extend(fact.aliases.iter().cloned());
        if let Some(known) = self.answers.get(&answers[..]) {
            return known.clone();
        }
        let answers: Arc<[String]> = answers.into();
        self.answers.insert(answers.clone());
        answers
    }

    /// Counts of the skipped rows.
    pub(super) fn notes(&self) -> Vec<String> {
        let rows = |n: usize| if n == 1 { "row" } else { "rows" };
        let mut notes = Vec::new();
        if self.duplicates > 0 {
            notes.push(format!(
                "{} {} skipped: the same question and object came before",
                self.duplicates,
                rows(self.duplicates)
            ));
        }
        if self.contradictions > 0 {
            notes.push(format!(
                "{} {} skipped: the same question came before with another object",
                self.contradictions,
                rows(self.contradictions)
            ));
        }
        notes
    }
}

/// Removes from `facts` those that `learn` contradicts, and returns a note that calls the set `set_name`: a fact that training
/// is meant to change must not count as forgotten.
///
/// `learn` contradicts a fact when it gives another object for the same question, or for the same subject and relation.
pub fn drop_contradicted(learn: &[Fact], facts: &mut Vec<Fact>, set_name: &str) -> Option<String> {
    let subject_and_relation =
        |fact: &Fact| (normalise(&fact.subject), fact.relation.to_lowercase());
    let mut new_by_question: HashMap<&str, Vec<&Fact>> = HashMap::new();
    let mut new_by_subject: HashMap<_, Vec<&Fact>> = HashMap::new();
    for fact in learn {
        new_by_question
            .entry(&fact.question)
            .or_default()
            .push(fact);
        if !fact.subject.is_empty() {
            new_by_subject
                .entry(subject_and_relation(fact))
                .or_default()
                .push(fact);
        }
    }
    let mut dropped = Vec::new();
    facts.retain(|old| {
        let same_question = new_by_question
            .get(old.question.as_str())
            .into_iter()
            .flatten();
        let same_subject = new_by_subject
            .get(&subject_and_relation(old))
            .into_iter()
            .flatten();
        let changed = same_question
            .chain(same_subject)
            .any(|new| !new.same_object(old));
        if changed {
            let name = if old.subject.is_empty() {
                &old.question
            } else {
                &old.subject
            };
            dropped.push(name.clone());
        }
        !changed
    });
    let shown = match &dropped[..] {
        [] => return None,
        all @ ([_] | [_, _] | [_, _, _]) => all.join(", "),
        [a, b, c, ..] => format!("{a}, {b}, {c}, ..."),
    };
    let noun = if dropped.len() == 1 { "fact" } else { "facts" };
    Some(format!(
        "{} {noun} removed from {set_name}: `learn` changes the answer ({shown})",
        dropped.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(subject: &str, object: &str, line: usize) -> Fact {
        let mut fact = Fact::for_test(subject, object);
        fact.location.line = line;
        fact
    }

    #[test]
    fn a_contradiction_is_refused_with_both_lines() {
        let mut merger = Deduplicator::default();
        merger.is_new(&fact("Paris", "France", 2), false).unwrap();
        let error = merger
            .is_new(&fact("Paris", "United States", 9), false)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("facts.tsv, line 2") && error.contains("facts.tsv, line 9"),
            "{error}"
        );
    }

    #[test]
    fn a_duplicate_in_another_spelling_is_skipped_and_counted() {
        let mut merger = Deduplicator::default();
        assert!(merger.is_new(&fact("Boston", "USA", 2), false).unwrap());
        let again = fact("Boston", "United States of America", 3);
        assert!(!merger.is_new(&again, false).unwrap());
        assert_eq!(merger.fact_count(), 1);
        assert_eq!(
            merger.notes(),
            ["1 row skipped: the same question and object came before"]
        );
    }

    #[test]
    fn later_contradictions_of_entity_questions_are_skipped() {
        let mut merger = Deduplicator::default();
        assert!(merger.is_new(&fact("Paris", "France", 1), true).unwrap());
        let other = fact("Paris", "United States", 2);
        assert!(!merger.is_new(&other, true).unwrap());
        assert_eq!(
            merger.notes(),
            ["1 row skipped: the same question came before with another object"]
        );
    }

    #[test]
    fn facts_that_learn_changes_leave_the_held_set() {
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
            "1 fact removed from held: `learn` changes the answer (Paris)"
        );
        assert_eq!(drop_contradicted(&learn, &mut held, "held"), None);
        let without_subject = |object| Fact {
            subject: String::new(),
            ..fact("Bern", object, 2)
        };
        let mut held = vec![without_subject("Germany")];
        let note = drop_contradicted(&[without_subject("France")], &mut held, "held").unwrap();
        assert!(
            note.contains("(Which country is Bern located in?)"),
            "{note}"
        );
    }
}

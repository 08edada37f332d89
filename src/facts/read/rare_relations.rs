//! Relations that are probably another one, misspelt.

use std::collections::HashMap;

use super::super::{
    fact::{Fact, Location},
    relations::relation,
};

/// A relation is taken for misspelt if another one has at least so many times its facts.
const TIMES_AS_OFTEN: usize = 5;

/// Edits between a misspelt name and the right one, at most.
const MAX_EDITS: usize = 2;

/// A name that is shorter than this, or has a digit, may be another one's neighbour by chance, such as `P17` and `P19`.
const MIN_NAME_LENGTH: usize = 5;

/// The facts of each relation: their number, and the first one's place.
#[derive(Default)]
pub(super) struct RelationCounts {
    relations: HashMap<String, (usize, Location)>,
}

impl RelationCounts {
    /// Counts a fact.
    pub(super) fn count(&mut self, fact: &Fact) {
        if let Some((count, _)) = self.relations.get_mut(&fact.relation) {
            *count += 1;
        } else {
            let first = (1, fact.location.clone());
            self.relations.insert(fact.relation.clone(), first);
        }
    }

    /// A note for each relation that is probably misspelt.
    pub(super) fn notes(&self) -> Vec<String> {
        let unusual = self.relations.iter().filter(|(name, _)| {
            name.chars().count() >= MIN_NAME_LENGTH
                && !name.contains(|c: char| c.is_ascii_digit())
                && relation(name).is_none()
        });
        let mut notes: Vec<String> = unusual
            .filter_map(|(name, (count, first))| {
                let usual = self.relations.iter().filter(|(other, (times, _))| {
                    *times >= TIMES_AS_OFTEN * count
                        && (1..=MAX_EDITS).contains(&strsim::damerau_levenshtein(name, other))
                });
                let (meant, (times, _)) = usual.max_by_key(|(other, (times, _))| (*times, *other))?;
                let facts = if *count == 1 { "1 fact" } else { &format!("{count} facts") };
                Some(format!(
                    "{first}: the relation `{name}` has {facts}, and `{meant}` has {times}: is one of them misspelt?"
                ))
            })
            .collect();
        notes.sort();
        notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notes(counted: &[(&str, usize)]) -> Vec<String> {
        let mut counts = RelationCounts::default();
        for (name, times) in counted {
            let fact = Fact {
                relation: (*name).into(),
                ..Fact::for_test("a", "b")
            };
            (0..*times).for_each(|_| counts.count(&fact));
        }
        counts.notes()
    }

    #[test]
    fn a_rare_relation_beside_a_usual_one_of_nearly_its_name_is_noted() {
        let found = notes(&[("materail", 1), ("material", 5), ("color", 5)]);
        assert_eq!(found.len(), 1);
        assert!(
            found[0].contains("the relation `materail` has 1 fact, and `material` has 5"),
            "{}",
            found[0]
        );
        // Both are usual, both are short, and one has a built-in question.
        assert!(notes(&[("father", 4), ("mother", 5)]).is_empty());
        assert!(notes(&[("size", 1), ("side", 5)]).is_empty());
        assert!(notes(&[("P1412", 1), ("P1413", 9)]).is_empty());
    }
}

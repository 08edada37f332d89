//! Two models, or a run's start and end, fact by fact.

use serde::Serialize;

use super::Answered;
use crate::{
    facts::Fact,
    run::{Counts, FactRow, Split, State},
};

/// What became of every fact.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Facts by state.
    #[serde(flatten)]
    pub counts: Counts,
    /// Every fact.
    pub facts: Vec<Compared>,
}

/// What became of one fact.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// Which part of a run; null between two models.
    pub split: Option<Split>,
    /// Relation.
    pub relation: String,
    /// Subject.
    pub subject: String,
    /// Question.
    pub question: String,
    /// Right answer, as taught.
    pub object: String,
    /// What the model said before.
    pub before: String,
    /// What it says now.
    pub after: String,
    /// Whether it was right before.
    pub right_before: bool,
    /// Whether it is right now.
    pub right_after: bool,
    /// What became of it.
    pub state: State,
}

impl State {
    /// What became of a fact of a run.
    ///
    /// | split | known at the audit | right at the end | wrong at the end |
    /// |---|---|---|---|
    /// | `unknown` | whatever its label | learned | not learned |
    /// | any other | yes | kept | forgotten |
    /// | any other | no | gained | never knew |
    ///
    /// [`known_at_audit`] is the third column's question.
    pub fn of(split: Split, known: bool, right_after: bool) -> Self {
        match (split, known, right_after) {
            (Split::Unknown, _, true) => Self::Learned,
            (Split::Unknown, _, false) => Self::NotLearned,
            (_, true, true) => Self::Kept,
            (_, true, false) => Self::Forgotten,
            (_, false, true) => Self::Gained,
            (_, false, false) => Self::NeverKnew,
        }
    }

    /// What became of a fact between two models of which no more is known: wrong before and right now is learned.
    pub fn between(right_before: bool, right_after: bool) -> Self {
        match (right_before, right_after) {
            (true, true) => Self::Kept,
            (true, false) => Self::Forgotten,
            (false, true) => Self::Learned,
            (false, false) => Self::NeverKnew,
        }
    }
}

/// Whether a fact counts as known before training.
///
/// With an audit: the greedy answer was right under at least half of the few-shot prompts (`few_shot` is that share), so
/// every `HighlyKnown` fact is known and of the `MaybeKnown` those that were mostly right. Without one: it was right at
/// the training prompt, before training or, since a model may have to learn the prompt's format first, at the best epoch.
pub fn known_at_audit(few_shot: Option<f64>, right_at_start: bool, right_at_best: bool) -> bool {
    few_shot.map_or(right_at_start || right_at_best, |share| share >= 0.5)
}

impl Counts {
    /// Facts by state.
    pub fn of(states: impl IntoIterator<Item = State>) -> Self {
        let mut counts = Self::default();
        for state in states {
            *match state {
                State::Learned => &mut counts.learned,
                State::NotLearned => &mut counts.not_learned,
                State::Kept => &mut counts.kept,
                State::Forgotten => &mut counts.forgotten,
                State::Gained => &mut counts.gained,
                State::NeverKnew => &mut counts.never_knew,
            } += 1;
        }
        counts
    }
}

impl Comparison {
    /// Of two models that were asked the same facts.
    pub fn between(facts: &[Fact], before: Vec<Answered>, after: Vec<Answered>) -> Self {
        let rows = facts.iter().zip(before.into_iter().zip(after));
        Self::new(rows.map(|(fact, (before, after))| Compared {
            split: None,
            relation: fact.relation.clone(),
            subject: fact.subject.clone(),
            question: fact.question.clone(),
            object: fact.target(),
            state: State::between(before.right, after.right),
            before: before.text,
            after: after.text,
            right_before: before.right,
            right_after: after.right,
        }))
    }

    /// Of a run's start and end, from its `facts.jsonl`.
    pub fn of_run(rows: impl IntoIterator<Item = FactRow>) -> Self {
        Self::new(rows.into_iter().map(|row| Compared {
            split: Some(row.split),
            relation: row.relation,
            subject: row.subject,
            question: row.question,
            object: row.object,
            before: row.answer_before,
            after: row.answer_after,
            right_before: row.right_before,
            right_after: row.right_after,
            state: row.state,
        }))
    }

    fn new(facts: impl Iterator<Item = Compared>) -> Self {
        let facts: Vec<Compared> = facts.collect();
        Self {
            counts: Counts::of(facts.iter().map(|f| f.state)),
            facts,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fact_is_forgotten_only_if_it_was_known() {
        use State::{Forgotten, Gained, Kept, Learned, NeverKnew, NotLearned};
        let held = |known, right| State::of(Split::Held, known, right);
        assert_eq!([held(true, true), held(true, false)], [Kept, Forgotten]);
        assert_eq!([held(false, true), held(false, false)], [Gained, NeverKnew]);
        let new = |known, right| State::of(Split::Unknown, known, right);
        assert_eq!([new(true, true), new(false, true)], [Learned; 2]);
        assert_eq!([new(true, false), new(false, false)], [NotLearned; 2]);
    }

    #[test]
    fn most_prompts_decide_what_was_known_and_the_best_epoch_without_an_audit() {
        let known_at_audit = |few_shot, best| known_at_audit(few_shot, false, best);
        assert!(known_at_audit(Some(1.0), false) && known_at_audit(Some(0.5), false));
        assert!(!known_at_audit(Some(0.4), true) && !known_at_audit(Some(0.0), true));
        assert!(known_at_audit(None, true) && !known_at_audit(None, false));
        // What it knew before any training and lost in the first epoch is lost.
        assert!(super::known_at_audit(None, true, false));
        assert!(!super::known_at_audit(Some(0.4), true, true));
    }

    #[test]
    fn states_are_counted() {
        let counts = Counts::of([State::Kept, State::Kept, State::Forgotten, State::Learned]);
        let expected = Counts {
            kept: 2,
            forgotten: 1,
            learned: 1,
            ..Counts::default()
        };
        assert_eq!(counts, expected);
    }
}

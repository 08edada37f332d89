//! Two models, or a run's start and end, fact by fact.

use serde::Serialize;

use super::EvalAnswer;
use crate::{
    facts::Fact,
    run::{Counts, FactOutcome, FactResult, Split},
};

/// What became of every fact.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Facts by state.
    #[serde(flatten)]
    pub counts: Counts,
    /// Every fact.
    pub facts: Vec<ComparedFact>,
}

/// What became of one fact.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ComparedFact {
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
    pub correct_before: bool,
    /// Whether it is right now.
    pub correct_after: bool,
    /// What became of it.
    pub outcome: FactOutcome,
}

impl FactOutcome {
    /// What became of a fact of a run.
    ///
    /// | split | known at the audit | right at the end | wrong at the end |
    /// |---|---|---|---|
    /// | `unknown` | whatever its label | learned | not learned |
    /// | any other | yes | kept | forgotten |
    /// | any other | no | gained | never knew |
    ///
    /// [`known_at_audit`] is the third column's question.
    pub fn in_run(split: Split, known: bool, correct_after: bool) -> Self {
        match (split, known, correct_after) {
            (Split::Unknown, _, true) => Self::Learned,
            (Split::Unknown, _, false) => Self::NotLearned,
            (_, true, true) => Self::Kept,
            (_, true, false) => Self::Forgotten,
            (_, false, true) => Self::Gained,
            (_, false, false) => Self::NeverKnew,
        }
    }

    /// What became of a fact between two models of which no more is known: wrong before and right now is learned.
    pub fn between_models(correct_before: bool, correct_after: bool) -> Self {
        match (correct_before, correct_after) {
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
pub fn known_at_audit(
    few_shot_accuracy: Option<f64>,
    correct_at_start: bool,
    correct_at_peak: bool,
) -> bool {
    few_shot_accuracy.map_or(correct_at_start || correct_at_peak, |share| share >= 0.5)
}

impl Counts {
    /// Facts by state.
    pub fn count(outcomes: impl IntoIterator<Item = FactOutcome>) -> Self {
        let mut counts = Self::default();
        for state in outcomes {
            *match state {
                FactOutcome::Learned => &mut counts.learned,
                FactOutcome::NotLearned => &mut counts.not_learned,
                FactOutcome::Kept => &mut counts.kept,
                FactOutcome::Forgotten => &mut counts.forgotten,
                FactOutcome::Gained => &mut counts.gained,
                FactOutcome::NeverKnew => &mut counts.never_knew,
            } += 1;
        }
        counts
    }
}

impl Comparison {
    /// Of two models that were asked the same facts.
    pub fn between(facts: &[Fact], before: Vec<EvalAnswer>, after: Vec<EvalAnswer>) -> Self {
        let rows = facts.iter().zip(before.into_iter().zip(after));
        Self::new(rows.map(|(fact, (before, after))| ComparedFact {
            split: None,
            relation: fact.relation.clone(),
            subject: fact.subject.clone(),
            question: fact.question.clone(),
            object: fact.target(),
            outcome: FactOutcome::between_models(before.correct, after.correct),
            before: before.text,
            after: after.text,
            correct_before: before.correct,
            correct_after: after.correct,
        }))
    }

    /// Of a run's start and end, from its `facts.jsonl`.
    pub fn from_run(rows: impl IntoIterator<Item = FactResult>) -> Self {
        Self::new(rows.into_iter().map(|row| ComparedFact {
            split: Some(row.split),
            relation: row.relation,
            subject: row.subject,
            question: row.question,
            object: row.object,
            before: row.answer_before,
            after: row.answer_after,
            correct_before: row.correct_before,
            correct_after: row.correct_after,
            outcome: row.outcome,
        }))
    }

    fn new(facts: impl Iterator<Item = ComparedFact>) -> Self {
        let facts: Vec<ComparedFact> = facts.collect();
        Self {
            counts: Counts::count(facts.iter().map(|f| f.outcome)),
            facts,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fact_is_forgotten_only_if_it_was_known() {
        use FactOutcome::{Forgotten, Gained, Kept, Learned, NeverKnew, NotLearned};
        let held = |known, right| FactOutcome::in_run(Split::Held, known, right);
        assert_eq!([held(true, true), held(true, false)], [Kept, Forgotten]);
        assert_eq!([held(false, true), held(false, false)], [Gained, NeverKnew]);
        let new = |known, right| FactOutcome::in_run(Split::Unknown, known, right);
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
    fn outcomes_are_counted() {
        let counts = Counts::count([
            FactOutcome::Kept,
            FactOutcome::Kept,
            FactOutcome::Forgotten,
            FactOutcome::Learned,
        ]);
        let expected = Counts {
            kept: 2,
            forgotten: 1,
            learned: 1,
            ..Counts::default()
        };
        assert_eq!(counts, expected);
    }
}

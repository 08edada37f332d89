//! Outcomes fact by fact, between two models or between the start and the end of a run.

use serde::{Deserialize, Serialize};

use super::EvalAnswer;
use crate::facts::{Fact, Split};

/// The outcomes of all facts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Number of facts per outcome.
    #[serde(flatten)]
    pub counts: Counts,
    /// Every fact.
    pub facts: Vec<ComparedFact>,
}

/// The outcome of one fact.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ComparedFact {
    /// Split of the run; null between two models.
    pub split: Option<Split>,
    /// Relation.
    pub relation: String,
    /// Subject.
    pub subject: String,
    /// Question.
    pub question: String,
    /// Correct answer, as trained.
    pub object: String,
    /// The answer before, under few-shot prompts: they show the answer format, so that only knowledge is measured.
    pub before: String,
    /// The answer after: of a second model under the same prompts, or of a run at its training prompt.
    pub after: String,
    /// Whether the fact was known before.
    pub correct_before: bool,
    /// Whether the answer after is correct.
    pub correct_after: bool,
    /// The outcome.
    pub outcome: FactOutcome,
}

/// The outcome of training for one fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FactOutcome {
    /// New, and correct at the end.
    Learned,
    /// New, and wrong at the end.
    NotLearned,
    /// Known at the audit, correct at the end.
    Kept,
    /// Known at the audit, wrong at the end.
    Forgotten,
    /// Neither known at the audit nor trained, correct at the end.
    Gained,
    /// Neither known at the audit nor trained, wrong at the end.
    NeverKnew,
}

impl FactOutcome {
    /// The outcome of a fact of a run.
    ///
    /// | split | known at the audit | correct at the end | wrong at the end |
    /// |---|---|---|---|
    /// | `unknown` | whatever its label | learned | not learned |
    /// | any other | yes | kept | forgotten |
    /// | any other | no | gained | never knew |
    ///
    /// [`known_before`] decides the second column.
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

    /// The outcome of a fact between two models without a run: wrong before and correct after counts as learned.
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
/// With an audit: the greedy answer was correct under at least half of the few-shot prompts (`few_shot_accuracy`), so every
/// `HighlyKnown` fact is known, and a `MaybeKnown` fact if it was mostly correct. Without an audit: the answer at the training
/// prompt was correct before training, or at the best epoch, since a model may have to learn the prompt's format first.
pub fn known_before(
    few_shot_accuracy: Option<f64>,
    correct_at_start: bool,
    correct_at_peak: bool,
) -> bool {
    few_shot_accuracy.map_or(correct_at_start || correct_at_peak, |accuracy| {
        accuracy >= 0.5
    })
}

/// Number of facts per outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// [`FactOutcome::Learned`].
    pub learned: usize,
    /// [`FactOutcome::NotLearned`].
    pub not_learned: usize,
    /// [`FactOutcome::Kept`].
    pub kept: usize,
    /// [`FactOutcome::Forgotten`].
    pub forgotten: usize,
    /// [`FactOutcome::Gained`].
    pub gained: usize,
    /// [`FactOutcome::NeverKnew`].
    pub never_knew: usize,
}

impl Counts {
    /// Counts the facts per outcome.
    pub fn count(outcomes: impl IntoIterator<Item = FactOutcome>) -> Self {
        let mut counts = Self::default();
        for outcome in outcomes {
            *match outcome {
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
    /// Compares two models by their answers to the same `facts`.
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

    /// Collects compared facts and counts their outcomes.
    pub fn new(facts: impl IntoIterator<Item = ComparedFact>) -> Self {
        let facts: Vec<ComparedFact> = facts.into_iter().collect();
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
        let known = |few_shot, best| known_before(few_shot, false, best);
        assert!(known(Some(1.0), false) && known(Some(0.5), false));
        assert!(!known(Some(0.4), true) && !known(Some(0.0), true));
        assert!(known(None, true) && !known(None, false));
        // What it knew before any training and lost in the first epoch is lost.
        assert!(known_before(None, true, false));
        assert!(!known_before(Some(0.4), true, true));
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

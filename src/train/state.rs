//! The training state: where a run is, apart from weights, optimizer and snapshot.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::{config, remedy::budget::BudgetController, splits::Splits};

/// Where a run is; a part of every checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    /// Epochs done, evaluation included.
    pub epoch: usize,
    /// Steps done in the current epoch.
    pub step_in_epoch: usize,
    /// Steps done in all epochs, skipped ones included.
    pub step: usize,
    /// Seconds of training and evaluation.
    pub seconds: f64,
    /// Of these, seconds of evaluation.
    pub eval_seconds: f64,
    /// Seconds of the audit before training.
    #[serde(default)]
    pub audit_seconds: f64,
    /// Whether each fact of the evaluator's sample was answered correctly at the last evaluation.
    pub correct: Vec<bool>,
    /// The same at the best evaluation of each fact's split, the one before training included.
    pub correct_at_peak: Vec<bool>,
    /// Whether each fact was answered correctly after an epoch and wrongly after a later one.
    #[serde(default)]
    pub forgotten_once: Vec<bool>,
    /// Steps that were skipped because their loss or gradient was not finite.
    #[serde(default, skip_serializing_if = "config::is_default")]
    pub skipped_steps: usize,
    /// The known facts that the current epoch replays.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replayed_rows: Vec<usize>,
    /// The budget controller, where a budget is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<BudgetController>,
    /// The validation loss so far, where there are validation rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<ValidationState>,
    /// Mean loss per token of the trained chats and texts before training, where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained_texts_loss: Option<f64>,
}

/// The validation loss so far: mean over target tokens, in nats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValidationState {
    /// Before training.
    pub start: f64,
    /// The smallest loss after an epoch, and that epoch.
    pub best: Option<(f64, usize)>,
    /// Evaluations in a row without a smaller loss.
    pub evaluations_without_improvement: usize,
}

impl ValidationState {
    /// The state before training.
    pub const fn new(start: f64) -> Self {
        Self {
            start,
            best: None,
            evaluations_without_improvement: 0,
        }
    }

    /// Takes the loss after `epoch`; returns whether it is the smallest so far. The untuned model is never the best one.
    pub fn update(&mut self, epoch: usize, loss: f64) -> bool {
        let is_best = self.best.is_none_or(|(best, _)| loss < best);
        if is_best {
            self.best = Some((loss, epoch));
            self.evaluations_without_improvement = 0;
        } else {
            self.evaluations_without_improvement += 1;
        }
        is_best
    }
}

impl TrainState {
    /// The factor on every remedy's weight.
    pub fn strength(&self) -> f64 {
        self.budget.as_ref().map_or(1.0, |budget| budget.strength)
    }

    /// Counts a step.
    pub fn end_step(&mut self) {
        self.step += 1;
        self.step_in_epoch += 1;
    }

    /// Counts an epoch.
    pub fn end_epoch(&mut self) {
        self.epoch += 1;
        self.step_in_epoch = 0;
    }

    /// Stores which facts of the sample `splits` are answered correctly now. A split with more correct answers than ever before, the untuned model
    /// included, has its peak here.
    pub fn update_peaks(&mut self, splits: &Splits, correct: Vec<bool>) {
        let count = |correct: &[bool]| correct.iter().filter(|c| **c).count();
        let peak = &mut self.correct_at_peak;
        for (_, range) in splits.ranges() {
            if count(&correct[range.clone()]) > count(&peak[range.clone()]) {
                peak[range.clone()].copy_from_slice(&correct[range]);
            }
        }
        self.forgotten_once.resize(correct.len(), false);
        let before = self.correct.iter().zip(&correct);
        for (forgotten, (was, is)) in self.forgotten_once.iter_mut().zip(before) {
            *forgotten |= *was && !is;
        }
        self.correct = correct;
    }
}

/// Measures the seconds of a run.
pub(super) struct Stopwatch(Instant);

impl Stopwatch {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Seconds since the start or the last call.
    pub fn lap(&mut self) -> f64 {
        let seconds = self.0.elapsed().as_secs_f64();
        self.0 = Instant::now();
        seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::records::tests::fact;

    #[test]
    fn the_smallest_validation_loss_after_an_epoch_is_the_best() {
        let mut state = ValidationState::new(1.0);
        // Also a loss above that of the untuned model.
        assert!(state.update(1, 1.2) && state.update(2, 0.9));
        assert!(!state.update(3, 0.9) && !state.update(4, 1.1));
        assert_eq!(state.best, Some((0.9, 2)));
        assert_eq!(state.evaluations_without_improvement, 2);
        assert!(state.update(5, 0.5));
        assert_eq!(state.evaluations_without_improvement, 0);
    }

    #[test]
    fn each_split_has_its_own_peak() {
        let facts = |count| vec![fact("Berlin"); count];
        let splits = Splits {
            known: facts(6),
            unknown: facts(5),
            held: facts(4),
            ..Splits::default()
        };
        let correct = |facts: &[usize]| (0..15).map(|i| facts.contains(&i)).collect::<Vec<bool>>();
        let mut state = TrainState {
            // The answers before training are the first peak.
            correct_at_peak: correct(&[13, 14]),
            ..TrainState::default()
        };
        state.update_peaks(&splits, correct(&[0, 1, 6, 11]));
        assert_eq!(state.correct_at_peak, correct(&[0, 1, 6, 13, 14]));
        state.correct_at_peak = correct(&[0, 1, 6, 11]);
        // Known facts get worse, new ones better, as many held ones but others are correct: those of the first epoch stay.
        state.update_peaks(&splits, correct(&[0, 6, 7, 12]));
        assert_eq!(state.correct_at_peak, correct(&[0, 1, 6, 7, 11]));
        assert_eq!(state.correct, correct(&[0, 6, 7, 12]));
        assert_eq!(state.forgotten_once, correct(&[1, 11]));
        // A fact that is correct again has been forgotten once.
        state.update_peaks(&splits, correct(&[0, 1, 7, 12]));
        assert_eq!(state.forgotten_once, correct(&[1, 6, 11]));
    }
}

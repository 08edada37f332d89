//! A forgetting budget: the strength of all remedies adapts to the forgetting on control facts. Not a remedy itself.
//!
//! The control facts are half of the held-out facts. A run reports the other half, so that the reported forgetting was not used for
//! selection.

use serde::{Deserialize, Serialize};

/// Consecutive evaluations over the budget after which training stops, if there is an earlier model within it to restore.
const PATIENCE: usize = 3;

/// Bounds of the strength factor.
const STRENGTH_RANGE: (f64, f64) = (0.5, 16.0);

/// Whether `forgotten` (pp) is within `budget` (pp), up to rounding: 0.90 - 0.88 is slightly more than 0.02.
pub fn is_within(forgotten: f64, budget: f64) -> bool {
    forgotten <= budget + 1e-9
}

/// Adapts the strength of the remedies to a forgetting budget.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BudgetController {
    /// Allowed forgetting, in pp.
    budget: f64,
    /// Factor of the strength of every remedy.
    pub strength: f64,
    /// Best accuracy on the control facts so far.
    peak: f64,
    /// The model within the budget that had learned most.
    pub best: Option<Best>,
    /// Consecutive evaluations over the budget.
    evaluations_over: usize,
}

/// A model within the budget.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Its epoch.
    pub epoch: usize,
    /// Its accuracy on the new facts.
    pub learned: f64,
}

impl BudgetController {
    /// A controller at the start of a run.
    pub const fn new(budget: f64) -> Self {
        Self {
            budget,
            strength: 1.0,
            peak: 0.0,
            best: None,
            evaluations_over: 0,
        }
    }

    /// Sets the accuracy on the control facts before training. It counts as a peak, but the untuned model is never restored.
    pub const fn set_baseline(&mut self, control: f64) {
        self.peak = control;
    }

    /// Takes the evaluation after `epoch`: the accuracies on the control facts and on the new facts (1 if there are none). Returns
    /// whether this is the best model so far.
    ///
    /// Forgetting is 100 x (best accuracy on the control facts - accuracy now). Over the budget the strength doubles; below half of it
    /// the strength falls by a fifth, since too much strength slows down learning.
    pub fn update(&mut self, epoch: usize, control: f64, learned: f64) -> bool {
        self.peak = self.peak.max(control);
        let forgotten = 100.0 * (self.peak - control);
        let within = is_within(forgotten, self.budget);
        let factor = if within {
            self.evaluations_over = 0;
            if forgotten < self.budget / 2.0 {
                0.8
            } else {
                1.0
            }
        } else {
            self.evaluations_over += 1;
            2.0
        };
        self.strength = (self.strength * factor).clamp(STRENGTH_RANGE.0, STRENGTH_RANGE.1);
        let better = within && self.best.is_none_or(|b| learned >= b.learned);
        if better {
            self.best = Some(Best { epoch, learned });
        }
        better
    }

    /// Whether training should stop: over the budget too often, and there is a model to restore.
    pub fn should_stop(&self) -> bool {
        self.evaluations_over >= PATIENCE && self.best.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_that_learned_most_within_the_budget_is_kept() {
        let mut controller = BudgetController::new(2.0);
        // The peak is 0.9; 1 pp and 2 pp below it are within the budget, 5 pp is not.
        assert!(controller.update(1, 0.90, 0.1));
        assert!(controller.update(2, 0.89, 0.5));
        assert!(!controller.update(3, 0.85, 0.9));
        assert!(controller.update(4, 0.88, 0.8));
        assert!(!controller.update(5, 0.90, 0.7));
        assert_eq!(
            controller.best,
            Some(Best {
                epoch: 4,
                learned: 0.8
            })
        );
    }

    #[test]
    fn strength_follows_forgetting_within_its_bounds() {
        let mut controller = BudgetController::new(1.0);
        controller.update(1, 0.9, 0.0);
        assert_eq!(controller.strength, 0.8);
        for epoch in 2..9 {
            controller.update(epoch, 0.9, 0.0);
        }
        assert_eq!(controller.strength, 0.5);
        for epoch in 9..20 {
            controller.update(epoch, 0.8, 0.0);
        }
        assert_eq!(controller.strength, 16.0);
    }

    #[test]
    fn three_evaluations_over_the_budget_end_the_run_if_a_model_can_be_restored() {
        let mut controller = BudgetController::new(1.0);
        controller.update(1, 0.9, 0.3);
        for epoch in 2..4 {
            controller.update(epoch, 0.5, 0.9);
            assert!(!controller.should_stop());
        }
        controller.update(4, 0.5, 0.9);
        assert!(controller.should_stop());
        assert!(BudgetController::new(0.0).best.is_none());
    }

    #[test]
    fn the_untuned_model_sets_the_peak_but_is_never_restored() {
        let mut controller = BudgetController::new(1.0);
        controller.set_baseline(0.9);
        for epoch in 1..6 {
            assert!(!controller.update(epoch, 0.5, 0.9));
        }
        assert!(!controller.should_stop(), "there is no model to restore");
        assert!(controller.update(6, 0.895, 0.9));
    }
}

//! A budget of forgetting: half of the held-out facts are watched, and the strength of what holds the model follows them.
//!
//! The watched facts are not among those that a run reports, so that the figure it ends with was not chosen by looking.

use serde::{Deserialize, Serialize};

/// Evaluations over the budget in a row after which training stops, if there is a model within it to go back to.
const PATIENCE: usize = 3;

/// Bounds of the strength, as a multiple of the config's.
const STRENGTH_RANGE: (f64, f64) = (0.5, 16.0);

/// Whether so much forgetting (pp) is within a budget, rounding forgiven: .90 - .88 is a little more than .02.
pub fn is_within(forgotten: f64, budget: f64) -> bool {
    forgotten <= budget + 1e-9
}

/// Where the budget stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BudgetController {
    /// Forgetting that is allowed, in pp.
    budget: f64,
    /// What the strength of every remedy is multiplied by.
    pub strength: f64,
    /// The best share of the watched facts so far.
    peak: f64,
    /// The model that had learned most within the budget.
    pub best: Option<Best>,
    /// Evaluations over the budget since the last one within it.
    evaluations_over: usize,
}

/// A model within the budget.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// After which epoch.
    pub epoch: usize,
    /// Share of the new facts that it had learned.
    pub learned: f64,
}

impl BudgetController {
    /// A run that has not begun.
    pub const fn new(budget: f64) -> Self {
        Self {
            budget,
            strength: 1.0,
            peak: 0.0,
            best: None,
            evaluations_over: 0,
        }
    }

    /// Takes the share of the watched facts that is right before training: no model to be kept, but one to fall short of.
    pub const fn set_baseline(&mut self, watched: f64) {
        self.peak = watched;
    }

    /// Takes the evaluation after `epoch`: the share of the watched facts that is right, and that of the new ones learned
    /// (1 where nothing is new). Whether this model is the one to keep so far.
    ///
    /// Forgetting is 100 x (best share of the watched facts so far - share now). Over the budget the strength doubles;
    /// at less than half of it the strength falls by a fifth, since what is held too hard learns late.
    pub fn update(&mut self, epoch: usize, watched: f64, learned: f64) -> bool {
        self.peak = self.peak.max(watched);
        let forgotten = 100.0 * (self.peak - watched);
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

    /// Whether going on is idle: over the budget again and again, with a model to go back to.
    pub fn should_stop(&self) -> bool {
        self.evaluations_over >= PATIENCE && self.best.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_that_learned_most_within_the_budget_is_kept() {
        let mut steering = BudgetController::new(2.0);
        // Watched .9 is the peak; 1 pp and 2 pp below are within, 5 pp is not.
        assert!(steering.update(1, 0.90, 0.1));
        assert!(steering.update(2, 0.89, 0.5));
        assert!(!steering.update(3, 0.85, 0.9));
        assert!(steering.update(4, 0.88, 0.8));
        assert!(!steering.update(5, 0.90, 0.7));
        assert_eq!(
            steering.best,
            Some(Best {
                epoch: 4,
                learned: 0.8
            })
        );
    }

    #[test]
    fn strength_follows_what_is_forgotten_within_its_bounds() {
        let mut steering = BudgetController::new(1.0);
        steering.update(1, 0.9, 0.0);
        assert_eq!(steering.strength, 0.8);
        for epoch in 2..9 {
            steering.update(epoch, 0.9, 0.0);
        }
        assert_eq!(steering.strength, 0.5);
        for epoch in 9..20 {
            steering.update(epoch, 0.8, 0.0);
        }
        assert_eq!(steering.strength, 16.0);
    }

    #[test]
    fn three_evaluations_over_the_budget_end_the_run_where_there_is_a_way_back() {
        let mut steering = BudgetController::new(1.0);
        steering.update(1, 0.9, 0.3);
        for epoch in 2..4 {
            steering.update(epoch, 0.5, 0.9);
            assert!(!steering.should_stop());
        }
        steering.update(4, 0.5, 0.9);
        assert!(steering.should_stop());
        assert!(BudgetController::new(0.0).best.is_none());
    }

    #[test]
    fn the_untuned_model_sets_the_peak_but_is_never_restored() {
        let mut steering = BudgetController::new(1.0);
        steering.set_baseline(0.9);
        for epoch in 1..6 {
            assert!(!steering.update(epoch, 0.5, 0.9));
        }
        assert!(!steering.should_stop(), "there is none to go back to");
        assert!(steering.update(6, 0.895, 0.9));
    }
}

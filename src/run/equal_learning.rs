//! Runs compared at equal learning: how many known facts each kept when it had learned as many new ones.

use std::fmt;

use serde::Serialize;

use super::{CurvePoint, EpochRecord};
use crate::format::percent;

/// The accuracy on held-out facts of several runs at one accuracy on new facts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EqualLearning {
    /// The accuracy on new facts (0 to 1): the highest that all runs reached.
    pub learned: f64,
    /// The accuracy on held-out facts there (0 to 1), in the order of the runs.
    pub kept: Vec<f64>,
}

impl EqualLearning {
    /// Compares runs by their evaluations after each epoch, linearly interpolated between two of them. A run counts where it first
    /// reaches the level; later epochs do not matter.
    ///
    /// `None` if a run has no new facts, or had learned more than another one ever did by the end of its first epoch: then there is
    /// no level at which both were measured. The evaluation before training is left out, since the model does not know the format.
    pub fn between(runs: &[&[EpochRecord]]) -> Option<Self> {
        let curves: Vec<Vec<CurvePoint>> = runs
            .iter()
            .map(|epochs| EpochRecord::curve(epochs))
            .collect();
        let highest = curves.iter().map(|curve| {
            let learned = curve.iter().map(|point| point.learned);
            learned.fold(f64::NEG_INFINITY, f64::max)
        });
        let learned = highest.min_by(f64::total_cmp).filter(|l| l.is_finite())?;
        let kept: Option<Vec<f64>> = curves.iter().map(|c| kept_at(c, learned)).collect();
        Some(Self {
            learned,
            kept: kept?,
        })
    }
}

impl fmt::Display for EqualLearning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {} learned:", percent(self.learned))?;
        for (i, kept) in self.kept.iter().enumerate() {
            let joint = if i == 0 { "" } else { " against" };
            let kept_as = if i == 0 { " kept" } else { "" };
            write!(f, "{joint} {}{kept_as}", percent(*kept))?;
        }
        Ok(())
    }
}

/// The accuracy on held-out facts where `curve` first reaches `learned`; `None` if it begins above.
fn kept_at(curve: &[CurvePoint], learned: f64) -> Option<f64> {
    let reached = curve.iter().position(|point| point.learned >= learned)?;
    let end = curve[reached];
    let Some(start) = reached.checked_sub(1).map(|i| curve[i]) else {
        return (end.learned <= learned).then_some(end.kept);
    };
    let share = (learned - start.learned) / (end.learned - start.learned);
    Some(start.kept + share * (end.kept - start.kept))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::PerSplit;

    fn run(points: &[(f64, f64)]) -> Vec<EpochRecord> {
        let points = points.iter().enumerate();
        points
            .map(|(epoch, (unknown, held))| EpochRecord {
                epoch,
                steps: epoch,
                seconds: 0.0,
                tokens: 0,
                accuracy: PerSplit {
                    unknown: Some(*unknown),
                    held: Some(*held),
                    ..PerSplit::default()
                },
                drift: None,
                behaviour: None,
                validation_loss: None,
                grad_norms: None,
            })
            .collect()
    }

    #[test]
    fn runs_are_compared_at_the_highest_level_that_all_reach() {
        // The evaluation before training, then the epochs; the first run passes 0.8 midway between two of them.
        let plain = run(&[(0.0, 0.1), (0.5, 0.8), (0.7, 0.7), (0.9, 0.6), (1.0, 0.5)]);
        let gentle = run(&[(0.0, 0.1), (0.1, 0.9), (0.8, 0.85), (0.75, 0.86)]);
        let compared = EqualLearning::between(&[&plain, &gentle]).expect("comparable");
        assert_eq!(compared.learned, 0.8);
        assert!((compared.kept[0] - 0.65).abs() < 1e-12 && compared.kept[1] == 0.85);
        assert_eq!(
            compared.to_string(),
            "at 80.0% learned: 65.0% kept against 85.0%"
        );
    }

    #[test]
    fn runs_that_were_never_equally_far_are_not_compared() {
        let fast = run(&[(0.0, 0.1), (0.9, 0.6), (1.0, 0.5)]);
        let slow = run(&[(0.0, 0.1), (0.2, 0.9), (0.4, 0.9)]);
        assert_eq!(EqualLearning::between(&[&fast, &slow]), None);
        let mut only_known = slow.clone();
        for epoch in &mut only_known {
            epoch.accuracy.unknown = None;
        }
        assert_eq!(EqualLearning::between(&[&fast, &only_known]), None);
        assert_eq!(EqualLearning::between(&[]), None);
    }
}

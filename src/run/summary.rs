//! The summary of a run in one sentence.

use std::fmt;

use super::{RunResult, ValidationResult};
use crate::config::Goal;

impl fmt::Display for ValidationResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            start,
            best,
            best_epoch,
            after,
            ..
        } = self;
        write!(
            f,
            "validation loss {start:.2} -> {after:.2} (perplexity {:.1} -> {:.1}; best {best:.2} after epoch {best_epoch})",
            start.exp(),
            after.exp()
        )
    }
}

impl fmt::Display for RunResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        write!(f, "{}: ", self.method)?;
        if let Some(learned) = self.learned {
            let (verb, note) = match self.goal {
                Goal::Facts => ("learned", ""),
                Goal::Task => ("absorbed", "; should be few"),
            };
            let new = counts.learned + counts.not_learned;
            write!(
                f,
                "{verb} {} of {new} new facts ({:.1}%",
                counts.learned,
                100.0 * learned
            )?;
            if let Some(accuracy) = self.learned_paraphrased {
                write!(f, ", {:.1}% paraphrased", 100.0 * accuracy)?;
            }
            write!(f, "{note}), ")?;
        }
        write!(
            f,
            "kept {} of {} known facts",
            counts.kept,
            counts.kept + counts.forgotten
        )?;
        if let Some(pp) = self.forgetting_pp {
            write!(
                f,
                "; forgot {pp:.1} pp of the held-out facts since the best epoch"
            )?;
            if let Some([low, high]) = self.forgetting_interval {
                write!(f, " (95%: {low:.1} to {high:.1})")?;
            }
        }
        if let Some(pp) = self.gap_to_only_known_pp {
            write!(f, "; gap to Only Known {pp:.1} pp")?;
        }
        if let Some(behaviour) = self.behaviour {
            write!(f, "; {behaviour}")?;
        }
        if let Some([start, after]) = self.texts_loss {
            write!(
                f,
                "; loss on the texts that were trained {start:.2} -> {after:.2}"
            )?;
        }
        if let Some(validation) = self.validation {
            write!(f, "; {validation}")?;
        }
        if let Some(budget) = self.budget {
            write!(f, "; budget {budget} pp")?;
        }
        write!(
            f,
            "; {} epochs, {} steps, {:.0} s",
            self.epochs, self.steps, self.seconds
        )
    }
}

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

impl RunResult {
    /// The note for a run without an Only Known run: which facts the number of forgotten facts also contains.
    pub fn control_note(&self) -> Option<&'static str> {
        let has_new_facts = self.learned.is_some();
        let has_forgotten = self.forgotten.is_some_and(|forgotten| forgotten.count > 0);
        let is_missing = has_forgotten && self.only_known_forgotten.is_none();
        (has_new_facts && is_missing).then_some(
            "the forgotten facts include those that training without the new facts (Only Known) would lose as well, such as \
             answers that change with the prompt: `--control` trains that run first, `--baseline RUN` names one",
        )
    }
}

impl fmt::Display for RunResult {
    /// What was learned, then what was forgotten: of the known held-out facts at the end, beside Only Known, and last since the best
    /// epoch.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        write!(f, "{}: ", self.preset.as_ref().unwrap_or(&self.method))?;
        if let Some(learned) = self.learned {
            let (verb, note) = match self.goal {
                Goal::Facts => ("learned", ""),
                Goal::Task => ("absorbed", "; should be few"),
            };
            let new = counts.learned + counts.not_learned;
            write!(
                f,
                "{verb} {} of {new} new {} ({:.1}%",
                counts.learned,
                if new == 1 { "fact" } else { "facts" },
                100.0 * learned
            )?;
            if let Some(accuracy) = self.learned_paraphrased {
                write!(f, ", {:.1}% paraphrased", 100.0 * accuracy)?;
            }
            write!(f, "{note}); ")?;
        }
        match &self.forgotten {
            Some(forgotten) => write!(f, "forgot {}", forgotten.of_facts("known held-out"))?,
            None if self.forgetting_pp.is_some() => {
                write!(f, "none of the held-out facts was known before")?;
            }
            None => write!(f, "no known fact was held out")?,
        }
        if let Some(control) = &self.only_known_forgotten {
            write!(f, "; Only Known forgot {control}")?;
        }
        if let Some(pp) = self.gap_to_only_known_pp {
            write!(f, "; gap to Only Known {pp:.1} pp")?;
            if let Some([low, high]) = self.gap_to_only_known_interval {
                write!(f, " (95%: {low:.1} to {high:.1})")?;
            }
        }
        if let Some(pp) = self.forgetting_pp.filter(|_| self.forgotten.is_some()) {
            write!(f, "; {pp:.1} pp lost since its best epoch")?;
            if let Some([low, high]) = self.forgetting_interval {
                write!(f, " (95%: {low:.1} to {high:.1})")?;
            }
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
        )?;
        if self.audit_seconds > 0.0 {
            write!(f, ", plus {:.0} s of audits", self.audit_seconds)?;
        }
        Ok(())
    }
}

//! The settings of an audit.

use serde::{Deserialize, Serialize};

use crate::{Error, Result, facts::MatchRule, prompt::PromptTemplate};

/// Settings of an audit; the defaults are the paper's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditSettings {
    /// Few-shot prompts per relation.
    pub num_prompts: usize,
    /// Exemplars per prompt.
    pub shots: usize,
    /// Samples per prompt. Without `sample` they enter the probability of `WeaklyKnown`.
    pub samples: usize,
    /// Sampling temperature.
    pub temperature: f32,
    /// Top-k of the samples; 0 is the whole vocabulary.
    pub top_k: usize,
    /// Draw samples, as the paper does, instead of computing the probability of a correct one.
    pub sample: bool,
    /// Decode wrong greedy answers to the end of their line instead of stopping once no continuation is correct.
    pub full_answers: bool,
    /// Seed of exemplars and samples.
    pub seed: u64,
    /// Prompt template.
    pub template: PromptTemplate,
    /// When an answer is correct.
    pub match_rule: MatchRule,
}

impl Default for AuditSettings {
    fn default() -> Self {
        Self {
            num_prompts: 20,
            shots: 3,
            samples: 16,
            temperature: 0.5,
            top_k: 40,
            sample: false,
            full_answers: false,
            seed: 0,
            template: PromptTemplate::default(),
            match_rule: MatchRule::Exact,
        }
    }
}

impl AuditSettings {
    /// Checks the values.
    ///
    /// # Errors
    /// [`Error::Input`] naming the invalid setting.
    pub fn validate(&self) -> Result<()> {
        if self.num_prompts == 0 || self.samples == 0 {
            return Err(Error::input_hint(
                "an audit needs at least one prompt and one sample",
                "set `num_prompts` and `samples` to 1 or more; the paper uses 20 and 16",
            ));
        }
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            return Err(Error::input_hint(
                format!(
                    "samples cannot be drawn at a temperature of {}",
                    self.temperature
                ),
                "set a temperature above 0, such as 0.5",
            ));
        }
        self.template.validate()
    }
}

//! A training example as token ids.

/// One training example. Prompt and target are tokenised separately and joined.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Example {
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// Token ids of the target, including the end marker.
    pub target: Vec<u32>,
}

impl Example {
    /// Index of the first token that is predicted: the first of the target, or its second if there is no prompt.
    pub fn target_start(&self) -> usize {
        self.prompt.len().max(1)
    }

    /// Number of tokens of prompt and target.
    #[allow(clippy::len_without_is_empty, reason = "an example has a target")]
    pub fn len(&self) -> usize {
        self.prompt.len() + self.target.len()
    }

    /// Number of tokens that are predicted.
    pub fn num_targets(&self) -> usize {
        self.len().saturating_sub(self.target_start())
    }

    /// The model's input: every token but the last, after which nothing is predicted.
    pub fn input_ids(&self) -> Vec<u32> {
        let mut tokens = [&self.prompt[..], &self.target].concat();
        tokens.pop();
        tokens
    }
}

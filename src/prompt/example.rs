//! A training example as token ids.

use super::{chat, template::PromptTemplate};
use crate::{
    Result,
    facts::{Fact, Text, TextKind},
    model::TextTokenizer,
};

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
    pub fn num_tokens(&self) -> usize {
        self.prompt.len() + self.target.len()
    }

    /// Number of tokens that are predicted.
    pub fn num_targets(&self) -> usize {
        self.num_tokens().saturating_sub(self.target_start())
    }

    /// The model's input: every token but the last, after which nothing is predicted.
    pub fn input_ids(&self) -> Vec<u32> {
        let mut tokens = [&self.prompt[..], &self.target].concat();
        tokens.pop();
        tokens
    }
}

impl PromptTemplate {
    /// The training example of `fact`.
    ///
    /// # Errors
    /// When the text cannot be tokenized.
    pub fn example(&self, tokenizer: &TextTokenizer, fact: &Fact) -> Result<Example> {
        Ok(Example {
            prompt: tokenizer.encode_prompt(&self.prompt_text(&fact.question))?,
            target: tokenizer.encode_continuation(&self.target_text(&fact.target()))?,
        })
    }
}

/// The training examples of a text: one, or in a chat one per assistant message, rendered by the model's own chat template. A target
/// ends with the end-of-turn marker of the chat, or with the EOS token.
///
/// # Errors
/// When the text cannot be tokenized, or the model has no working chat template.
pub fn text_examples(tokenizer: &TextTokenizer, text: &Text) -> Result<Vec<Example>> {
    let example = |prompt: &str, target: &str| -> Result<Example> {
        Ok(Example {
            prompt: tokenizer.encode_prompt(prompt)?,
            target: tokenizer.encode_continuation(target)?,
        })
    };
    let end = chat::special_token(&tokenizer.config_json, "eos_token");
    match &text.kind {
        TextKind::Plain(text) => Ok(vec![example("", &(text.clone() + &end))?]),
        TextKind::Completion { prompt, completion } => {
            Ok(vec![example(prompt, &(completion.clone() + &end))?])
        }
        TextKind::Chat(messages) => chat::assistant_turns(&tokenizer.config_json, messages)?
            .iter()
            .map(|(before, answer)| {
                example(
                    &before[chat::duplicate_bos_len(tokenizer, before)?..],
                    answer,
                )
            })
            .collect(),
    }
}

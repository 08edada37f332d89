//! From facts to token ids: the training prompt and target, and few-shot prefixes.

mod chat;
mod example;
mod packing;

pub use example::Example;
pub use packing::{MICRO_BATCH_TOKENS, PackedExamples, micro_batches, target_offsets};

use crate::{
    Error, Result,
    facts::{Fact, Message, Text, TextKind},
    model::TextTokenizer,
};

/// How a fact is asked. Default: `Q: {question}\nA:` and ` {object}\n`.
///
/// ```
/// use unforget::prompt::PromptTemplate;
///
/// let template = PromptTemplate::default();
/// assert_eq!(template.prompt_text("Who wrote Emma?"), "Q: Who wrote Emma?\nA:");
/// assert_eq!(template.target_text("Jane Austen"), " Jane Austen\n");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PromptTemplate {
    /// With `{question}` in it.
    pub prompt: String,
    /// With `{object}` in it.
    pub target: String,
    /// The prompt of a question that follows others in one text, where it differs: a chat's later turns have no system
    /// message before them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_prompt: Option<String>,
}

impl Default for PromptTemplate {
    fn default() -> Self {
        Self {
            prompt: "Q: {question}\nA:".into(),
            target: " {object}\n".into(),
            next_prompt: None,
        }
    }
}

impl PromptTemplate {
    /// The template for a model: as it is, or with `chat` in the words of the model's own chat template.
    ///
    /// In a chat the user's message is the bare question, or the prompt of a template that is not the default; the
    /// assistant's is the bare object, or such a template's target. The end-of-turn marker ends the target.
    ///
    /// # Errors
    /// [`Error::Input`] when a template lacks its placeholder, or the model has no chat template that works.
    pub fn for_model(self, chat: bool, tokenizer: &TextTokenizer) -> Result<Self> {
        self.validate()?;
        if !chat {
            return Ok(self);
        }
        let default = Self::default();
        let question = if self.prompt == default.prompt {
            "{question}"
        } else {
            &self.prompt
        };
        let object = if self.target == default.target {
            "{object}"
        } else {
            &self.target
        };
        let mut template = chat::prompt_template(&tokenizer.config_json, question, object)?;
        let begins = duplicate_bos_len(tokenizer, &template.prompt)?;
        template.prompt.drain(..begins);
        Ok(template)
    }

    /// Checks that the placeholders are there.
    ///
    /// # Errors
    /// [`Error::Input`] naming the one that is missing.
    pub fn validate(&self) -> Result<()> {
        let prompts = [Some(&self.prompt), self.next_prompt.as_ref()];
        for prompt in prompts.into_iter().flatten() {
            if !prompt.contains("{question}") {
                return Err(Error::input_hint(
                    format!(
                        "the prompt template `{}` has no `{{question}}` in it",
                        prompt.escape_debug()
                    ),
                    "the default is \"Q: {question}\\nA:\"",
                ));
            }
        }
        if !self.target.contains("{object}") {
            return Err(Error::input_hint(
                format!(
                    "the target template `{}` has no `{{object}}` in it",
                    self.target.escape_debug()
                ),
                "the default is \" {object}\\n\"",
            ));
        }
        Ok(())
    }

    /// Text of the prompt that asks `question`.
    pub fn prompt_text(&self, question: &str) -> String {
        self.prompt.replace("{question}", question)
    }

    /// Text of the prompt that asks `question` behind a few-shot text; the same as [`Self::prompt_text`] but in a chat.
    pub fn next_prompt_text(&self, question: &str) -> String {
        self.next_prompt
            .as_ref()
            .unwrap_or(&self.prompt)
            .replace("{question}", question)
    }

    /// Text of the target that answers with `object`.
    pub fn target_text(&self, object: &str) -> String {
        self.target.replace("{object}", object)
    }

    /// The few-shot text before a question: each exemplar's prompt and target.
    pub fn few_shot(&self, exemplars: &[&Fact]) -> String {
        let mut text = String::new();
        for exemplar in exemplars {
            text += &if text.is_empty() {
                self.prompt_text(&exemplar.question)
            } else {
                self.next_prompt_text(&exemplar.question)
            };
            text += &self.target_text(&exemplar.target());
        }
        text
    }

    /// The training row of `fact`.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub fn example(&self, tokenizer: &TextTokenizer, fact: &Fact) -> Result<Example> {
        Ok(Example {
            prompt: tokenizer.encode_prompt(&self.prompt_text(&fact.question))?,
            target: tokenizer.encode_continuation(&self.target_text(&fact.target()))?,
        })
    }
}

/// The training rows of a text that is no fact: one, or for a chat one for each message of the assistant, in the words of
/// the model's own chat template. What is trained ends with the end-of-turn marker of a chat, or the end-of-text token.
///
/// # Errors
/// When the tokenizer refuses the text, or the model has no chat template that works.
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
                example(&before[duplicate_bos_len(tokenizer, before)?..], answer)
            })
            .collect(),
    }
}

/// A question of a chat, and what the model's own chat template writes around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatQuestion {
    /// All that comes before it.
    pub prefix: String,
    /// What the user says.
    pub question: String,
    /// What comes between it and the answer.
    pub suffix: String,
}

/// Whether a chat has a question that is answered in it.
pub fn has_chat_questions(messages: &[Message]) -> bool {
    chat::answered_questions(messages).next().is_some()
}

/// The questions of a chat that are answered in it.
///
/// # Errors
/// When the model has no chat template that works.
pub fn chat_questions(
    tokenizer: &TextTokenizer,
    messages: &[Message],
) -> Result<Vec<ChatQuestion>> {
    let mut questions = chat::questions(&tokenizer.config_json, messages)?;
    for ChatQuestion { prefix: before, .. } in &mut questions {
        before.drain(..duplicate_bos_len(tokenizer, before)?);
    }
    Ok(questions)
}

/// The length of the begin-of-text token at the start of a rendered chat where the tokenizer adds that token too.
fn duplicate_bos_len(tokenizer: &TextTokenizer, rendered: &str) -> Result<usize> {
    let begin = chat::special_token(&tokenizer.config_json, "bos_token");
    let added = tokenizer.encode_prompt("x")?.first().copied();
    let doubled = !begin.is_empty()
        && rendered.starts_with(&begin)
        && added.is_some()
        && added == tokenizer.inner.token_to_id(&begin);
    Ok(if doubled { begin.len() } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exemplars_answer_in_the_spelling_that_is_trained() {
        let (boston, rome) = (
            Fact::for_test("Boston", "United States of America"),
            Fact::for_test("Rome", "Italy"),
        );
        assert_eq!(
            PromptTemplate::default().few_shot(&[&boston, &rome]),
            "Q: Which country is Boston located in?\nA: United States\nQ: Which country is Rome located in?\nA: Italy\n"
        );
    }

    #[test]
    fn a_template_without_its_placeholder_is_named() {
        let mut template = PromptTemplate {
            prompt: "Q:\nA:".into(),
            ..PromptTemplate::default()
        };
        assert!(
            template
                .validate()
                .unwrap_err()
                .to_string()
                .contains("`Q:\\nA:` has no `{question}`")
        );
        template = PromptTemplate {
            target: "x".into(),
            ..PromptTemplate::default()
        };
        assert!(
            template
                .validate()
                .unwrap_err()
                .to_string()
                .contains("{object}")
        );
        assert!(PromptTemplate::default().validate().is_ok());
    }

    #[test]
    fn braces_in_a_question_are_left_alone() {
        let template = PromptTemplate::default();
        assert_eq!(
            template.prompt_text("Who wrote {object}?"),
            "Q: Who wrote {object}?\nA:"
        );
    }
}

//! The prompt template of facts.

use crate::{Error, Result, config::DataConfig, facts::Fact, model::TextTokenizer};

/// Prompt and target of a fact. Default: `Q: {question}\nA:` and ` {object}\n`.
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
    /// The prompt, with `{question}` in it.
    pub prompt: String,
    /// The target, with `{object}` in it.
    pub target: String,
    /// The prompt of a question that follows others in one text, if it differs: later turns of a chat have no system message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_prompt: Option<String>,
    /// The texts are rendered by a chat template, which writes every special token itself: the tokenizer adds none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rendered: bool,
}

impl Default for PromptTemplate {
    fn default() -> Self {
        Self {
            prompt: "Q: {question}\nA:".into(),
            target: " {object}\n".into(),
            next_prompt: None,
            rendered: false,
        }
    }
}

impl PromptTemplate {
    /// The template of a config, with the default for a part that is absent.
    pub fn from_config(data: &DataConfig) -> Self {
        let default = Self::default();
        Self {
            prompt: data.prompt.clone().unwrap_or(default.prompt),
            target: data.target.clone().unwrap_or(default.target),
            ..default
        }
    }

    /// Checks that the placeholders are there.
    ///
    /// # Errors
    /// [`Error::Input`] naming the missing one.
    pub fn validate(&self) -> Result<()> {
        let prompts = [Some(&self.prompt), self.next_prompt.as_ref()];
        for prompt in prompts.into_iter().flatten() {
            if !prompt.contains("{question}") {
                return Err(Error::input_hint(
                    format!(
                        "the prompt template `{}` has no `{{question}}`",
                        prompt.escape_debug()
                    ),
                    "the default is \"Q: {question}\\nA:\"",
                ));
            }
        }
        if !self.target.contains("{object}") {
            return Err(Error::input_hint(
                format!(
                    "the target template `{}` has no `{{object}}`",
                    self.target.escape_debug()
                ),
                "the default is \" {object}\\n\"",
            ));
        }
        Ok(())
    }

    /// The prompt for `question`.
    pub fn prompt_text(&self, question: &str) -> String {
        self.prompt.replace("{question}", question)
    }

    /// As [`Self::prompt_text`]; a text that is already in the form of the template stays as it is.
    pub fn ensure_prompt_text(&self, text: &str) -> String {
        let (before, after) = self.prompt.split_once("{question}").unwrap_or_default();
        let is_prompt = text
            .strip_prefix(before)
            .is_some_and(|rest| rest.ends_with(after));
        if is_prompt && !before.is_empty() && !after.is_empty() {
            text.to_owned()
        } else {
            self.prompt_text(text)
        }
    }

    /// The prompt for `question` after a few-shot text. It differs from [`Self::prompt_text`] only in a chat.
    pub fn next_prompt_text(&self, question: &str) -> String {
        self.next_prompt
            .as_ref()
            .unwrap_or(&self.prompt)
            .replace("{question}", question)
    }

    /// The target for `object`.
    pub fn target_text(&self, object: &str) -> String {
        self.target.replace("{object}", object)
    }

    /// The text behind the object, which ends an answer; none where the target ends with the object. A line break that ends a turn of
    /// a chat template ends no answer.
    pub fn end_marker(&self) -> Option<String> {
        let (_, end) = self.target.rsplit_once("{object}")?;
        let end = if self.rendered { end.trim() } else { end };
        (!end.is_empty()).then(|| end.to_owned())
    }

    /// Token ids of a prompt, or of a few-shot text.
    ///
    /// # Errors
    /// [`Error::Input`] when the tokenizer cannot encode the text.
    pub fn encode(&self, tokenizer: &TextTokenizer, text: &str) -> Result<Vec<u32>> {
        if self.rendered {
            tokenizer.encode_rendered(text)
        } else {
            tokenizer.encode_prompt(text)
        }
    }

    /// Token ids of the target for `object` where it follows a prompt.
    ///
    /// # Errors
    /// [`Error::Input`] when the tokenizer cannot encode the text.
    pub fn encode_target(&self, tokenizer: &TextTokenizer, target: &str) -> Result<Vec<u32>> {
        tokenizer.encode_after(&self.prompt_text(""), target)
    }

    /// The few-shot text before a question: prompt and target of each exemplar.
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
    fn a_text_in_the_form_of_the_template_is_not_put_into_it_again() {
        let template = PromptTemplate::default();
        let prompt = template.prompt_text("Who wrote Emma?");
        assert_eq!(template.ensure_prompt_text("Who wrote Emma?"), prompt);
        assert_eq!(template.ensure_prompt_text(&prompt), prompt);
        assert_eq!(template.ensure_prompt_text("Q: A"), "Q: Q: A\nA:");
    }

    #[test]
    fn an_answer_ends_in_the_text_behind_the_object() {
        let with_target = |target: &str, rendered| PromptTemplate {
            target: target.into(),
            rendered,
            ..PromptTemplate::default()
        };
        let end = |target, rendered| with_target(target, rendered).end_marker();
        assert_eq!(end(" {object}\n", false).as_deref(), Some("\n"));
        assert_eq!(end("{object}<|end|>\n", true).as_deref(), Some("<|end|>"));
        assert_eq!(end("{object}\n", true), None);
        assert_eq!(end("{object}", false), None);
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

//! How the model of a run is asked: as it was trained.

use super::{RecordedRun, Split, TextKinds};
use crate::{Result, config::DataConfig, model::TextTokenizer, prompt::PromptTemplate};

/// How a model was trained to be asked, and what ends its answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainedPrompt {
    /// The form of a prompt.
    pub form: PromptForm,
    /// The texts that end an answer, each once.
    pub stops: Vec<String>,
}

/// The form of the prompts that a model was trained on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptForm {
    /// The user message of the model's chat template.
    Chat,
    /// Texts that the model continues as they stand.
    Text,
    /// The question of a fact in this template, which may be rendered by the model's chat template.
    Facts(PromptTemplate),
}

impl TrainedPrompt {
    /// How the model of `run` is asked, whose config has `data`.
    ///
    /// # Errors
    /// [`crate::Error::Input`] when the facts are asked in a chat, and the model has no working chat template.
    pub fn of_run(run: &RecordedRun, data: &DataConfig, tokenizer: &TextTokenizer) -> Result<Self> {
        let template = PromptTemplate::from_config(data).for_model(data.chat, tokenizer)?;
        let learns_facts = run
            .facts
            .iter()
            .any(|fact| matches!(fact.split, Split::Known | Split::Unknown));
        Ok(Self::new(
            template,
            run.environment.texts,
            learns_facts,
            tokenizer,
        ))
    }

    fn new(
        template: PromptTemplate,
        texts: TextKinds,
        learns_facts: bool,
        tokenizer: &TextTokenizer,
    ) -> Self {
        let form = if texts.chats && !template.rendered {
            PromptForm::Chat
        } else if texts.other && !learns_facts && !template.rendered {
            PromptForm::Text
        } else {
            PromptForm::Facts(template)
        };
        let mut stops = Vec::new();
        let is_chat = form.is_chat();
        match &form {
            PromptForm::Facts(template) => stops.extend(template.end_marker()),
            PromptForm::Chat => stops.extend(chat_end_marker(tokenizer)),
            PromptForm::Text => {}
        }
        if is_chat || texts.other {
            stops.push(tokenizer.eos_text());
        }
        let mut seen = Vec::new();
        stops.retain(|stop| {
            let is_new = !stop.is_empty() && !seen.contains(stop);
            seen.push(stop.clone());
            is_new
        });
        Self { form, stops }
    }

    /// As through the model's chat template, whatever it was trained on.
    pub fn chat(tokenizer: &TextTokenizer) -> Self {
        Self {
            form: PromptForm::Chat,
            stops: chat_end_marker(tokenizer).into_iter().collect(),
        }
    }
}

impl PromptForm {
    /// Whether a prompt is a message in the model's chat template.
    pub fn is_chat(&self) -> bool {
        match self {
            Self::Chat => true,
            Self::Text => false,
            Self::Facts(template) => template.rendered,
        }
    }
}

/// The text that ends a turn in the model's chat template, if it has one.
fn chat_end_marker(tokenizer: &TextTokenizer) -> Option<String> {
    let template = PromptTemplate::default().for_model(true, tokenizer);
    template.ok()?.end_marker()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_asked_as_it_was_trained() {
        let tokenizer = TextTokenizer::load("tests/golden/llama").unwrap();
        let facts = PromptTemplate::default();
        let prompt = |chats, other, learns_facts| {
            let texts = TextKinds { chats, other };
            let trained = TrainedPrompt::new(facts.clone(), texts, learns_facts, &tokenizer);
            (trained.form, trained.stops)
        };
        let eos = tokenizer.eos_text();
        let questions = PromptForm::Facts(facts.clone());
        assert_eq!(
            prompt(false, false, true),
            (questions.clone(), vec!["\n".into()])
        );
        // Texts beside facts end in EOS, and a fact's answer in the line break.
        assert_eq!(
            prompt(false, true, true),
            (questions, vec!["\n".into(), eos.clone()])
        );
        assert_eq!(
            prompt(false, true, false),
            (PromptForm::Text, vec![eos.clone()])
        );
        assert_eq!(prompt(true, false, true), (PromptForm::Chat, vec![eos]));
    }
}

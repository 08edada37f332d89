//! The fixed texts of a chat template around its messages, for programs that have a template language of their own.

use super::{chat::chat_prompt, template::PromptTemplate};
use crate::{
    facts::Message,
    model::{TextTokenizer, tokenizer::special_token},
};

/// Messages for trial renderings: a system message, a question, its answer and another question.
const PROBES: [(&str, &str); 4] = [
    ("system", "Qz1"),
    ("user", "Qz2"),
    ("assistant", "Qz3"),
    ("user", "Qz4"),
];

/// A chat template as fixed texts around its messages, without a beginning-of-text token that the tokenizer adds itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatParts {
    /// The texts before and after a system message.
    pub system: [String; 2],
    /// Whether the system message stands in the first question, behind the text before it.
    pub system_in_question: bool,
    /// The texts before and after a question; the answer follows.
    pub question: [String; 2],
    /// White space that an answer begins with, and that the model writes itself.
    pub answer_start: String,
    /// The text after an answer.
    pub answer_end: String,
    /// The system message of a chat that has none.
    pub default_system: Option<String>,
}

impl ChatParts {
    /// The parts of the model's chat template; `None` if it has none, or does more than write texts around messages.
    ///
    /// What is returned renders a system message and two turns as the template does.
    pub fn of(tokenizer: &TextTokenizer) -> Option<Self> {
        let messages = PROBES.map(|(role, content)| Message::new(role, content));
        let bos = added_bos(tokenizer);
        let render = |messages: &[Message]| {
            let text = chat_prompt(tokenizer, messages).ok()?;
            Some(text.strip_prefix(bos).unwrap_or(&text).to_owned())
        };
        let [full, bare, first] = [&messages[..], &messages[1..], &messages[1..2]].map(render);
        let (full, bare, first) = (full?, bare?, first?);

        let [(_, system), (_, question), (_, answer), (_, next)] = PROBES;
        let (before_system, rest) = full.split_once(system)?;
        let (before_question, rest) = rest.split_once(question)?;
        let (before_answer, rest) = rest.split_once(answer)?;
        let (before_next, opening) = rest.split_once(next)?;
        let (start, _) = first.split_once(question)?;
        let default_system = start
            .strip_prefix(before_system)
            .and_then(|rest| rest.strip_suffix(before_question))
            .filter(|text| !text.is_empty());
        let question_start = if default_system.is_none() {
            start
        } else {
            // The system message hides where the question starts; the turn before the next question shows it.
            let marker = PromptTemplate::default().for_model(true, tokenizer).ok()?;
            let (_, after) = before_next.split_once(&marker.end_marker()?)?;
            after.trim_start()
        };
        let (system, system_in_question) = match before_question.strip_suffix(question_start) {
            Some(after) if !question_start.is_empty() => ([before_system, after], false),
            _ => {
                let before = before_system.strip_prefix(question_start)?;
                ([before, before_question], true)
            }
        };
        let answer_start = before_answer.strip_prefix(opening)?;
        let parts = Self {
            system: system.map(str::to_owned),
            system_in_question,
            question: [question_start, opening].map(str::to_owned),
            answer_start: answer_start.to_owned(),
            answer_end: before_next.strip_suffix(question_start)?.to_owned(),
            default_system: default_system.map(str::to_owned),
        };
        let is_exact = answer_start.trim().is_empty()
            && parts.render(&messages) == full
            && parts.render(&messages[1..]) == bare;
        is_exact.then_some(parts)
    }

    /// The chat up to the beginning of the next answer.
    fn render(&self, messages: &[Message]) -> String {
        let given = messages.iter().find(|message| message.role == "system");
        let mut system = given
            .map(|message| message.content.clone())
            .or_else(|| self.default_system.clone())
            .map(|text| format!("{}{text}{}", self.system[0], self.system[1]))
            .unwrap_or_default();
        let mut text = String::new();
        if !self.system_in_question {
            text += &std::mem::take(&mut system);
        }
        for Message { role, content, .. } in messages {
            match role.as_str() {
                "user" => {
                    let [before, after] = &self.question;
                    text += &format!("{before}{}{content}{after}", std::mem::take(&mut system));
                }
                "assistant" => {
                    text += &format!("{}{content}{}", self.answer_start, self.answer_end);
                }
                _ => {}
            }
        }
        text
    }
}

/// The beginning-of-text token, if the tokenizer puts it in front of a text; else empty.
fn added_bos(tokenizer: &TextTokenizer) -> &str {
    let bos = special_token(&tokenizer.config_json, "bos_token").unwrap_or_default();
    let first = tokenizer.encode_prompt("a").ok();
    let first = first.and_then(|ids| ids.first().copied());
    if first.is_some() && first == tokenizer.inner.token_to_id(bos) {
        bos
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// The parts of the template `name` of `tests/golden/chat`.
    fn parts(name: &str) -> Option<ChatParts> {
        let mut tokenizer = TextTokenizer::load("tests/golden/llama").unwrap();
        let source = fs::read_to_string(format!("tests/golden/chat/{name}.jinja")).unwrap();
        tokenizer
            .config_json
            .insert("chat_template".into(), source.into());
        tokenizer.config_json.insert("bos_token".into(), "".into());
        tokenizer
            .config_json
            .insert("eos_token".into(), "</s>".into());
        ChatParts::of(&tokenizer)
    }

    #[test]
    fn chatml_is_texts_around_messages() {
        let parts = parts("chatml").unwrap();
        assert_eq!(parts.system, ["<|im_start|>system\n", "<|im_end|>\n"]);
        assert_eq!(
            parts.question,
            ["<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"]
        );
        assert_eq!(parts.answer_end, "<|im_end|>\n");
        assert!(!parts.system_in_question);
    }

    #[test]
    fn a_system_message_may_stand_in_the_first_question() {
        let parts = parts("gemma3").unwrap();
        assert!(parts.system_in_question);
        assert_eq!(parts.question[0], "<start_of_turn>user\n");
        assert_eq!(parts.system, ["", "\n\n"]);
    }

    #[test]
    fn a_default_system_message_is_found() {
        let mut tokenizer = TextTokenizer::load("tests/golden/llama").unwrap();
        let source = "{% if messages[0].role != 'system' %}<|system|>Be kind.<|end|>\n{% endif %}\
            {% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}\
            {% if add_generation_prompt %}<|assistant|>{% endif %}";
        tokenizer
            .config_json
            .insert("chat_template".into(), source.into());
        let parts = ChatParts::of(&tokenizer).unwrap();
        assert_eq!(parts.default_system.as_deref(), Some("Be kind."));
        assert_eq!(parts.question[0], "<|user|>");
        assert_eq!(parts.system, ["<|system|>", "<|end|>\n"]);
    }

    #[test]
    fn an_answer_may_begin_with_a_space() {
        let parts = parts("llama2").unwrap();
        assert_eq!(parts.system, ["<<SYS>>\n", "\n<</SYS>>\n\n"]);
        assert!(parts.system_in_question);
        assert_eq!(parts.question, ["[INST] ", " [/INST]"]);
        assert_eq!([&parts.answer_start[..], &parts.answer_end], [" ", " </s>"]);
    }

    /// Reasoning that is dropped from earlier turns is no fixed text.
    #[test]
    fn a_template_that_does_more_has_no_parts() {
        assert_eq!(parts("qwen3"), None);
    }
}

//! A model's own chat template: Jinja, from `tokenizer_config.json`.
//!
//! For facts the template is rendered with placeholders for messages and split at them, once. Asking a question is then a replacement
//! in a string, and an error in the template shows before any work.

use std::{borrow::Cow, sync::LazyLock};

use minijinja::{Environment, ErrorKind, Value, context};
use regex::{Captures, Regex};
use serde_json::{Map, Value as Json};

use super::template::PromptTemplate;
use crate::{Error, Result, facts::Message, model::TextTokenizer};

/// Maximum number of instructions of one rendering; real templates need a few thousand.
const FUEL: u64 = 1_000_000;

/// The placeholder for a question in a rendering.
const QUESTION_PLACEHOLDER: &str = "{question}";

impl PromptTemplate {
    /// The template for a model: unchanged, or with `chat` the model's own chat template.
    ///
    /// In a chat the user message is the question, or the prompt of a template other than the default. The assistant message is the
    /// object, or such a template's target, and ends with the end-of-turn marker.
    ///
    /// # Errors
    /// [`Error::Input`] when a template lacks its placeholder, or the model has no working chat template.
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
        let mut template = prompt_template(&tokenizer.config_json, question, object)?;
        let bos = duplicate_bos_len(tokenizer, &template.prompt)?;
        template.prompt.drain(..bos);
        Ok(template)
    }
}

/// A question of a chat with the rendered text around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatQuestion {
    /// The text before the question.
    pub prefix: String,
    /// The user message.
    pub question: String,
    /// The text between question and answer.
    pub suffix: String,
}

/// Whether a chat has an answered question.
pub fn has_chat_questions(messages: &[Message]) -> bool {
    answered_questions(messages).next().is_some()
}

/// The answered questions of a chat.
///
/// # Errors
/// When the model has no working chat template.
pub fn chat_questions(
    tokenizer: &TextTokenizer,
    messages: &[Message],
) -> Result<Vec<ChatQuestion>> {
    let mut questions = questions(&tokenizer.config_json, messages)?;
    for ChatQuestion { prefix, .. } in &mut questions {
        prefix.drain(..duplicate_bos_len(tokenizer, prefix)?);
    }
    Ok(questions)
}

/// The length of the BOS token at the start of a rendered chat, if the tokenizer adds one as well.
pub(super) fn duplicate_bos_len(tokenizer: &TextTokenizer, rendered: &str) -> Result<usize> {
    let bos = special_token(&tokenizer.config_json, "bos_token");
    let added = tokenizer.encode_prompt("x")?.first().copied();
    let duplicate = !bos.is_empty()
        && rendered.starts_with(&bos)
        && added.is_some()
        && added == tokenizer.inner.token_to_id(&bos);
    Ok(if duplicate { bos.len() } else { 0 })
}

/// The prompt template with the user message `user`, which contains `{question}`, and the assistant message `assistant`, which
/// contains `{object}`.
fn prompt_template(
    config: &Map<String, Json>,
    user: &str,
    assistant: &str,
) -> Result<PromptTemplate> {
    let source = source(config)?;
    let message = |role: &str, content: &str| Message {
        role: role.into(),
        content: content.into(),
    };
    let two_turns = [
        message("user", user),
        message("assistant", assistant),
        message("user", user),
    ];
    let prompt = render(source, config, &two_turns[..1], true)?;
    let (start, opening) = split_around(&prompt, user)?;
    let answered = render(source, config, &two_turns[..2], false)?;
    let (_, rest) = split_around(&answered, user)?;
    let (before_answer, after_answer) = split_around(rest, assistant)?;
    // Text between the generation prompt and the answer, mostly a space, belongs to the answer.
    let answer_prefix = before_answer.strip_prefix(opening).unwrap_or_default();
    let end = match after_answer.trim_end() {
        "" => "\n",
        marker => marker,
    };
    // A later turn: the text between an answer's end marker and the next question.
    let later = render(source, config, &two_turns, true)?;
    let (_, rest) = split_around(&later, user)?;
    let (_, rest) = split_around(rest, assistant)?;
    let (between, _) = split_around(rest, user)?;
    let next_start = between.strip_prefix(end).unwrap_or(start);

    Ok(PromptTemplate {
        prompt: format!("{start}{user}{opening}"),
        target: format!("{answer_prefix}{assistant}{end}"),
        next_prompt: Some(format!("{next_start}{user}{opening}")),
    })
}

/// The text of a special token, given as a string or an object with `content`; empty if there is none.
pub(super) fn special_token(config: &Map<String, Json>, name: &str) -> String {
    let token = config.get(name);
    let text = token.and_then(|t| t.as_str().or_else(|| t.get("content")?.as_str()));
    text.unwrap_or_default().to_owned()
}

/// The Jinja source. `chat_template` is a string or a list of named templates.
fn source(config: &Map<String, Json>) -> Result<&str> {
    let found = match config.get("chat_template") {
        Some(Json::String(source)) => Some(source.as_str()),
        Some(Json::Array(named)) => named
            .iter()
            .find(|t| t.get("name").and_then(Json::as_str) == Some("default"))
            .and_then(|t| t.get("template")?.as_str()),
        _ => None,
    };
    found.ok_or_else(|| {
        Error::input_hint(
            "the model has no chat template (`chat_template` in tokenizer_config.json)",
            "set `chat = false`, or use an instruction-tuned model",
        )
    })
}

/// For every assistant message, the text before it and the message with its end marker.
pub(super) fn assistant_turns(
    config: &Map<String, Json>,
    messages: &[Message],
) -> Result<Vec<(String, String)>> {
    let source = source(config)?;
    let answers = messages
        .iter()
        .enumerate()
        .filter(|(_, m)| m.role == "assistant");
    answers
        .map(|(i, _)| {
            let prefix = render(source, config, &messages[..i], true)?;
            let answered = render(source, config, &messages[..=i], false)?;
            let answer = answered.strip_prefix(&prefix).ok_or_else(|| {
                template_error("it renders a turn differently once it is answered")
            })?;
            Ok((prefix, answer.trim_end().to_owned()))
        })
        .collect()
}

/// Indices of the user messages that the assistant answers.
fn answered_questions(messages: &[Message]) -> impl Iterator<Item = usize> {
    let pairs = messages.windows(2).enumerate();
    pairs.filter_map(|(i, pair)| {
        (pair[0].role == "user" && pair[1].role == "assistant").then_some(i)
    })
}

/// The answered questions of a chat with the text around them.
fn questions(config: &Map<String, Json>, messages: &[Message]) -> Result<Vec<ChatQuestion>> {
    let source = source(config)?;
    answered_questions(messages)
        .map(|i| {
            let mut history = messages[..=i].to_vec();
            history[i].content = QUESTION_PLACEHOLDER.into();
            let rendered = render(source, config, &history, true)?;
            // Earlier messages may contain the placeholder; the last one is the question.
            let (before, after) = rendered
                .rsplit_once(QUESTION_PLACEHOLDER)
                .ok_or_else(missing_message_error)?;
            Ok(ChatQuestion {
                prefix: before.into(),
                question: messages[i].content.clone(),
                suffix: after.into(),
            })
        })
        .collect()
}

/// Renders `messages` as `transformers` does, in a sandbox: no files, no clock, limited work.
fn render(
    source: &str,
    config: &Map<String, Json>,
    messages: &[Message],
    add_generation_prompt: bool,
) -> Result<String> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function(
        "raise_exception",
        |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        },
    );
    environment.add_function("strftime_now", |format: &str| fixed_date(format));
    let values = context! {
        messages => messages,
        add_generation_prompt => add_generation_prompt,
        enable_thinking => false,
        // `transformers` passes None for both, which a template can tell from undefined.
        tools => (),
        documents => (),
        bos_token => special_token(config, "bos_token"),
        eos_token => special_token(config, "eos_token"),
        pad_token => special_token(config, "pad_token"),
        unk_token => special_token(config, "unk_token"),
    };
    environment
        .render_str(&without_generation_marks(source), values)
        .map_err(|e| template_error(&e.to_string()))
}

/// The template with `{% generation %}`, which marks answers in `transformers` and prints nothing, replaced by `{% if true %}`:
/// white space around it is handled as around any block.
fn without_generation_marks(source: &str) -> Cow<'_, str> {
    static MARK: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").expect("the pattern is valid")
    });
    MARK.replace_all(source, |mark: &Captures<'_>| {
        let condition = if mark.get(2).is_some() {
            "endif"
        } else {
            "if true"
        };
        format!("{{%{} {condition} {}%}}", &mark[1], &mark[3])
    })
}

/// `strftime` of a fixed day, so that prompts don't depend on the date: 26 July 2024, which templates use themselves without a
/// clock.
fn fixed_date(format: &str) -> String {
    let parts = [
        ("%d", "26"),
        ("%m", "07"),
        ("%Y", "2024"),
        ("%y", "24"),
        ("%B", "July"),
        ("%b", "Jul"),
        ("%A", "Friday"),
        ("%a", "Fri"),
        ("%H", "12"),
        ("%M", "00"),
        ("%S", "00"),
        ("%j", "208"),
    ];
    parts.iter().fold(format.to_owned(), |text, (code, value)| {
        text.replace(code, value)
    })
}

/// The text before and after `message`.
fn split_around<'t>(text: &'t str, message: &str) -> Result<(&'t str, &'t str)> {
    text.split_once(message).ok_or_else(missing_message_error)
}

fn missing_message_error() -> Error {
    template_error("it drops or changes a message")
}

fn template_error(reason: &str) -> Error {
    Error::input_hint(
        format!("the model's chat template does not work: {reason}"),
        "set `chat = false`, or fix `chat_template` in the model's tokenizer_config.json",
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(chat_template: &str) -> Map<String, Json> {
        let config = json!({"chat_template": chat_template, "bos_token": {"content": "<s>"}, "eos_token": "</s>"});
        config.as_object().expect("an object").clone()
    }

    fn chat(source: &str) -> Result<PromptTemplate> {
        prompt_template(&config(source), "{question}", "{object}")
    }

    fn message(role: &str, content: &str) -> Message {
        Message {
            role: role.into(),
            content: content.into(),
        }
    }

    const CHATML: &str = "{% for m in messages %}\n{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}\
        <|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    #[test]
    fn a_chat_has_its_system_message_once_and_ends_with_the_turn() {
        let template = chat(CHATML).unwrap();
        assert_eq!(
            template.prompt_text("Why?"),
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
        );
        assert_eq!(template.target_text("So."), "So.<|im_end|>");
        assert_eq!(
            template.next_prompt_text("Why?"),
            "\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
        );
    }

    #[test]
    fn a_space_before_the_answer_belongs_to_the_answer() {
        let source = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]\
            {% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}";
        let template = chat(source).unwrap();
        assert_eq!(template.prompt, "<s>[INST] {question} [/INST]");
        assert_eq!(template.target, " {object}</s>");
        assert_eq!(
            template.next_prompt.as_deref(),
            Some("[INST] {question} [/INST]")
        );
    }

    #[test]
    fn python_methods_dates_and_loop_controls_work_as_in_transformers() {
        let source = "{{ strftime_now('%d %b %Y') }}{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.content.startswith('no') %}\
            {% continue %}{% endif %}{{ m.role.upper() }}: {{ m.content.strip() }};{% endfor %}";
        assert_eq!(chat(source).unwrap().prompt, "26 Jul 2024USER: {question};");
    }

    #[test]
    fn a_template_that_refuses_loops_or_drops_the_question_is_an_error() {
        for source in [
            "{{ raise_exception('no') }}",
            "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
            "nothing",
            "{{ messages[0].content",
            "{% include '/etc/passwd' %}",
        ] {
            let error = chat(source).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{source}");
        }
        assert!(
            prompt_template(&Map::new(), "{question}", "{object}")
                .unwrap_err()
                .hint()
                .is_some()
        );
    }

    /// Renderings by `transformers` from `tests/golden/chat.py`; `UNFORGET_CHAT_RENDERINGS` adds another file that it made, of
    /// local models.
    #[test]
    fn templates_of_all_families_are_rendered_as_by_transformers() {
        let golden = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/golden/chat/renderings.json"
        );
        let mut files = vec![golden.to_owned()];
        files.extend(std::env::var("UNFORGET_CHAT_RENDERINGS"));
        let (mut compared, mut mismatches) = (0, Vec::new());
        for file in files {
            let text = std::fs::read_to_string(&file).expect("the renderings");
            let families: Vec<Json> = serde_json::from_str(&text).expect("JSON");
            for family in &families {
                let name = &family["name"];
                let source = family["template"].as_str().expect("a template");
                let tokens = family["tokens"].as_object().expect("tokens");
                for (i, chat) in family["chats"]
                    .as_array()
                    .expect("chats")
                    .iter()
                    .enumerate()
                {
                    let messages: Vec<Message> = chat["messages"]
                        .as_array()
                        .expect("messages")
                        .iter()
                        .map(|message| Message {
                            role: message["role"].as_str().expect("a role").into(),
                            content: message["content"].as_str().expect("a text").into(),
                        })
                        .collect();
                    let generate = chat["generate"].as_bool().expect("whether to answer");
                    let ours = render(source, tokens, &messages, generate);
                    let theirs = chat["rendered"].as_str();
                    if ours.as_deref().ok() != theirs {
                        mismatches.push(format!("{name}, chat {i}: {ours:?}, not {theirs:?}"));
                    }
                    compared += 1;
                }
            }
        }
        assert!(mismatches.is_empty(), "{}", mismatches.join("\n"));
        // 14 templates, 7 chats each.
        assert!(compared >= 98, "{compared}");
    }

    #[test]
    fn every_answer_of_a_chat_is_trained_after_all_earlier_messages() {
        let messages = [
            message("user", "a"),
            message("assistant", "b"),
            message("user", "c"),
            message("assistant", "d"),
        ];
        let turns = assistant_turns(&config(CHATML), &messages).unwrap();
        assert_eq!(turns.len(), 2);
        assert!(
            turns[0]
                .0
                .ends_with("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n")
        );
        assert_eq!(turns[0].1, "b<|im_end|>");
        assert!(
            turns[1].0.starts_with(&turns[0].0)
                && turns[1].0.contains("b<|im_end|>\n<|im_start|>user\nc")
        );
        assert_eq!(turns[1].1, "d<|im_end|>");
    }

    #[test]
    fn a_question_is_split_from_its_chat() {
        // The question also occurs in the template's own text, and an earlier message contains the placeholder.
        let messages = [
            message("user", "what is {question}?"),
            message("assistant", "a mark"),
            message("user", "a"),
            message("assistant", "d"),
            message("assistant", "e"),
        ];
        let questions = questions(&config(CHATML), &messages).unwrap();
        assert_eq!(questions.len(), 2);
        let ChatQuestion {
            prefix,
            question,
            suffix,
        } = &questions[1];
        assert!(prefix.ends_with("a mark<|im_end|>\n<|im_start|>user\n"));
        assert_eq!(
            (question.as_str(), suffix.as_str()),
            ("a", "<|im_end|>\n<|im_start|>assistant\n")
        );
        let turns = assistant_turns(&config(CHATML), &messages[..4]).unwrap();
        assert_eq!(format!("{prefix}{question}{suffix}"), turns[1].0);
    }

    #[test]
    fn the_default_of_named_templates_is_taken() {
        let mut config = config("");
        let named =
            json!([{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]);
        config.insert("chat_template".into(), named);
        assert!(
            prompt_template(&config, "{question}", "{object}")
                .unwrap()
                .prompt
                .contains("Be kind.")
        );
    }
}

//! A model's own chat template.
//!
//! For facts the template is rendered with placeholders for messages and split at them, once. Asking a question is then a replacement
//! in a string, and an error in the template shows before any work. Chats are rendered as they are, as `apply_chat_template` of
//! `transformers` does.

use std::ops::Range;

use serde_json::{Map, Value as Json};

use super::{
    jinja::{Fault, FaultKind, Rendered, Template, Value},
    template::PromptTemplate,
};
use crate::{
    Error, Result,
    facts::{Chat, Location, Message},
    model::{
        TextTokenizer,
        tokenizer::{SPECIAL_TOKENS, special_token},
    },
};

/// The placeholder for a question in a rendering.
const QUESTION_PLACEHOLDER: &str = "{question}";

/// Two answers that have nothing in common, which show where a template puts an answer.
const PROBES: [&str; 2] = ["\u{5341}", "Qz"];

/// The names of an answer's reasoning; the first is the one that templates read.
const REASONING_FIELDS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// The fields of an answer that calls tools.
const CALL_FIELDS: [&str; 2] = ["tool_calls", "function_call"];

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
        prompt_template(&tokenizer.config_json, question, object)
    }
}

/// Whether the model has a chat template.
pub fn has_chat_template(tokenizer: &TextTokenizer) -> bool {
    source(&tokenizer.config_json, false).is_ok()
}

/// The text that the model continues with the answer to the last of `messages`: `apply_chat_template` of `transformers` with
/// `add_generation_prompt`, and without reasoning where the template can leave it out.
///
/// # Errors
/// [`Error::Input`] when the model has no working chat template, or it refuses the messages.
pub fn chat_prompt(tokenizer: &TextTokenizer, messages: &[Message]) -> Result<String> {
    let template = ChatTemplate::new(&tokenizer.config_json, false)?;
    template
        .render(
            &Chat::default(),
            messages,
            End::PlainPrompt,
            Shape::default(),
        )
        .map(|rendered| rendered.text)
        .map_err(|fault| broken(&fault))
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
/// When the model has no working chat template, or it refuses the chat.
pub fn chat_questions(tokenizer: &TextTokenizer, chat: &Chat) -> Result<Vec<ChatQuestion>> {
    questions(&tokenizer.config_json, chat)
}

/// A chat template and what it is given beside the chat.
struct ChatTemplate<'c> {
    source: &'c str,
    template: Template,
    config: &'c Map<String, Json>,
}

/// How the messages of a chat are handed to the template.
#[derive(Clone, Copy, Default)]
struct Shape {
    /// Parts of a content are joined to one text: the template does not know lists.
    joins_parts: bool,
    /// A message without content has an empty one: the template needs it.
    fills_content: bool,
}

/// What a rendering is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// The chat as it stands.
    Chat,
    /// The chat and the beginning of an answer.
    Prompt,
    /// As `Prompt`, for an answer without reasoning.
    PlainPrompt,
}

impl<'c> ChatTemplate<'c> {
    /// The template for a chat, with tools or without.
    fn new(config: &'c Map<String, Json>, has_tools: bool) -> Result<Self> {
        let source = source(config, has_tools)?;
        let template = Template::parse(source).map_err(|fault| broken(&fault))?;
        Ok(Self {
            source,
            template,
            config,
        })
    }

    fn render(
        &self,
        chat: &Chat,
        messages: &[Message],
        end: End,
        shape: Shape,
    ) -> Result<Rendered, Fault> {
        let messages = messages
            .iter()
            .map(|message| message_value(message, shape))
            .collect();
        let or_none = |json: Option<&Json>| json.map_or(Value::None, Value::from);
        let mut variables: Vec<(&str, Value)> = SPECIAL_TOKENS
            .into_iter()
            .filter_map(|name| Some((name, special_token(self.config, name)?.into())))
            .collect();
        if end == End::PlainPrompt {
            variables.push(("enable_thinking", false.into()));
        }
        variables.push(("messages", Value::list(messages)));
        // `transformers` passes None for both, which a template can tell from undefined.
        variables.push(("tools", or_none(chat.tools.as_ref())));
        variables.push(("documents", Value::None));
        for (name, value) in &chat.variables {
            variables.push((name, value.into()));
        }
        variables.push(("add_generation_prompt", (end != End::Chat).into()));
        self.template.render(variables)
    }

    /// The shape in which the template takes the messages of a chat.
    ///
    /// # Errors
    /// The fault of the template where it takes none.
    fn shape(&self, chat: &Chat) -> Result<Shape, Fault> {
        let has_parts = |m: &Message| m.fields.get("content").is_some_and(Json::is_array);
        let lacks_content = |m: &Message| m.fields.get("content").is_none_or(Json::is_null);
        let parts = chat.messages.iter().any(has_parts);
        let none = chat.messages.iter().any(lacks_content);
        let mut shapes = vec![Shape::default()];
        if parts {
            shapes.push(Shape {
                joins_parts: true,
                ..Shape::default()
            });
        }
        if none {
            shapes.extend(shapes.clone().into_iter().map(|shape| Shape {
                fills_content: true,
                ..shape
            }));
        }
        let mut first = None;
        for shape in shapes {
            match self.render(chat, &chat.messages, End::Chat, shape) {
                // A template that prints a list writes Python's text of it.
                Ok(rendered)
                    if parts && !shape.joins_parts && rendered.text.contains("{'type': ") => {}
                Ok(_) => return Ok(shape),
                Err(fault) => _ = first.get_or_insert(fault),
            }
        }
        first.map_or(Ok(Shape::default()), Err)
    }
}

/// A message as the template sees it: its fields in their order, without those that are null, and its reasoning under the names that
/// templates read.
fn message_value(message: &Message, shape: Shape) -> Value {
    let fields = message.fields.iter().filter(|(_, value)| !value.is_null());
    let mut entries: Vec<(Value, Value)> = Vec::new();
    let reasoning = REASONING_FIELDS
        .into_iter()
        .find_map(|name| message.fields.get(name).filter(|value| !value.is_null()));
    if let Some(reasoning) = reasoning {
        let given = message.fields.get("thinking").filter(|v| !v.is_null());
        entries.push(("thinking".into(), given.unwrap_or(reasoning).into()));
    }
    for (name, value) in fields {
        let value = match name.as_str() {
            "thinking" => continue,
            "reasoning_content" => reasoning.unwrap_or(value).into(),
            "content" if shape.joins_parts && value.is_array() => message.content.as_str().into(),
            _ => value.into(),
        };
        entries.push((name.as_str().into(), value));
    }
    if let Some(reasoning) = reasoning
        && message
            .fields
            .get("reasoning_content")
            .is_none_or(Json::is_null)
    {
        entries.push(("reasoning_content".into(), reasoning.into()));
    }
    if shape.fills_content && message.fields.get("content").is_none_or(Json::is_null) {
        entries.push(("content".into(), "".into()));
    }
    Value::dict(entries)
}

/// The prompt template with the user message `user`, which contains `{question}`, and the assistant message `assistant`, which
/// contains `{object}`.
fn prompt_template(
    config: &Map<String, Json>,
    user: &str,
    assistant: &str,
) -> Result<PromptTemplate> {
    let template = ChatTemplate::new(config, false)?;
    let two_turns = [
        Message::new("user", user),
        Message::new("assistant", assistant),
        Message::new("user", user),
    ];
    let chat = Chat::default();
    let render = |messages: &[Message], end: End| -> Result<String> {
        template
            .render(&chat, messages, end, Shape::default())
            .map(|rendered| rendered.text)
            .map_err(|fault| broken(&fault))
    };
    let prompt = render(&two_turns[..1], End::PlainPrompt)?;
    let (start, opening) = split_around(&prompt, user)?;
    let answered = render(&two_turns[..2], End::Chat)?;
    let (_, rest) = split_around(&answered, user)?;
    let (before_answer, after_answer) = split_around(rest, assistant)?;
    // Text between the generation prompt and the answer, mostly a space, belongs to the answer. What an answered turn does not
    // have, such as the opening of its reasoning, is not part of the prompt.
    let opening = if before_answer.starts_with(opening) {
        opening
    } else {
        &opening[..common_prefix(&[opening, before_answer])]
    };
    let answer_prefix = &before_answer[opening.len()..];
    let end = match after_answer.trim_end() {
        "" => "\n",
        marker => marker,
    };
    // A later turn: the text between an answer's end marker and the next question.
    let later = render(&two_turns, End::PlainPrompt)?;
    let (_, rest) = split_around(&later, user)?;
    let (_, rest) = split_around(rest, assistant)?;
    let (between, _) = split_around(rest, user)?;
    let next_start = between.strip_prefix(end).unwrap_or(start);

    Ok(PromptTemplate {
        prompt: format!("{start}{user}{opening}"),
        target: format!("{answer_prefix}{assistant}{end}"),
        next_prompt: Some(format!("{next_start}{user}{opening}")),
        rendered: true,
    })
}

/// The Jinja source. `chat_template` is a text, or a list or object of named templates: `tool_use` for a chat with tools, else `default`.
fn source(config: &Map<String, Json>, has_tools: bool) -> Result<&str> {
    let found = match config.get("chat_template") {
        Some(Json::String(source)) => Some(source.as_str()),
        Some(Json::Object(templates)) => {
            let named = |name: &str| templates.get(name)?.as_str();
            let tool_use = has_tools.then(|| named("tool_use")).flatten();
            tool_use.or_else(|| named("default"))
        }
        Some(Json::Array(templates)) => {
            let named = |name: &str| {
                let mut templates = templates.iter();
                let found = templates.find(|t| t.get("name").and_then(Json::as_str) == Some(name));
                found?.get("template")?.as_str()
            };
            let tool_use = has_tools.then(|| named("tool_use")).flatten();
            let found = tool_use.or_else(|| named("default"));
            if found.is_none() && !templates.is_empty() {
                let names = templates.iter().filter_map(|t| t.get("name")?.as_str());
                let names: Vec<&str> = names.collect();
                return Err(Error::input_hint(
                    format!(
                        "none of the model's chat templates is called `default`: {}",
                        names.join(", ")
                    ),
                    "save the one that you want as chat_template.jinja in the model's directory",
                ));
            }
            found
        }
        _ => None,
    };
    found.ok_or_else(|| {
        Error::input_hint(
            "the model has no chat template (chat_template.jinja, `chat_template` in tokenizer_config.json, or `tokenizer.chat_template` in a GGUF)",
            "use an instruction-tuned model; or set `chat = false` for facts, and give chats as rows of `prompt` and `completion`",
        )
    })
}

/// One trained answer of a chat: the text before it, and its own, up to the end marker.
pub(super) struct Turn {
    pub(super) before: String,
    pub(super) answer: String,
    /// Whether it is all of a message, or the last part that is trained.
    pub(super) ends_message: bool,
}

/// What a chat is trained on, and what of it is not, in words.
#[derive(Default)]
pub(super) struct Turns {
    pub(super) turns: Vec<Turn>,
    pub(super) notes: Vec<&'static str>,
}

/// The answers of a chat, each behind the rendering of the messages before it.
///
/// The text of an answer is that of the chat up to it, as the template renders it: a template may write a turn differently once it
/// is answered, or once others follow. What is trained of it is what the template marks with `{% generation %}`; without a mark, all
/// that follows the generation prompt, or else what follows the beginning that the answer shares with any other answer.
///
/// # Errors
/// [`Error::Input`] naming file and line of a chat that the template refuses; when the model has no working chat template.
pub(super) fn assistant_turns(
    config: &Map<String, Json>,
    chat: &Chat,
    location: &Location,
) -> Result<Turns> {
    let template = ChatTemplate::new(config, chat.tools.is_some())?;
    let refused = |fault: &Fault| refused(fault, location);
    let shape = template.shape(chat).map_err(|fault| refused(&fault))?;
    let marked = has_generation_mark(template.source);
    let mut turns = Turns::default();
    let has_tools = |tools: &Json| tools.as_array().is_none_or(|tools| !tools.is_empty());
    if chat.tools.as_ref().is_some_and(has_tools) {
        let without = Chat {
            tools: None,
            ..chat.clone()
        };
        let rendered = |chat: &Chat| {
            let rendered = template.render(chat, &chat.messages, End::Chat, shape);
            rendered.map(|r| r.text).ok()
        };
        if rendered(chat) == rendered(&without) {
            turns
                .notes
                .push("the model's chat template does not write `tools`");
        }
    }
    for (i, message) in chat.messages.iter().enumerate() {
        if message.role != "assistant" || !message.trained {
            continue;
        }
        let answered = template
            .render(chat, &chat.messages[..=i], End::Chat, shape)
            .map_err(|fault| refused(&fault))?;
        if !template.writes_calls(chat, i, &answered.text, shape) {
            let has_calls = message
                .fields
                .get("tool_calls")
                .is_some_and(|v| !v.is_null());
            turns.notes.push(if has_calls {
                "the model's chat template does not write `tool_calls`: an answer with them is not trained"
            } else {
                "the model's chat template does not write `function_call`: an answer with it is not trained"
            });
            continue;
        }
        let spans = if marked {
            template.marked_spans(chat, i, &answered, shape)
        } else {
            let start = template.answer_start(chat, i, &answered.text, shape);
            let end = start + answered.text[start..].trim_end().len();
            std::iter::once(start..end).collect()
        };
        let found = turns.turns.len();
        for span in spans.into_iter().filter(|span| !span.is_empty()) {
            turns.turns.push(Turn {
                before: answered.text[..span.start].to_owned(),
                answer: answered.text[span].to_owned(),
                ends_message: false,
            });
        }
        if let Some(last) = turns.turns[found..].last_mut() {
            last.ends_message = true;
        }
        if turns.turns.len() == found {
            turns.notes.push(
                "the model's chat template writes nothing to train for an answer, which is not trained",
            );
        }
    }
    Ok(turns)
}

fn has_generation_mark(source: &str) -> bool {
    source.split("{%").skip(1).any(|tag| {
        let tag = tag.trim_start_matches(['-', '+']).trim_start();
        tag.strip_prefix("generation").is_some_and(|rest| {
            rest.trim_start()
                .trim_start_matches(['-', '+'])
                .starts_with("%}")
        })
    })
}

impl ChatTemplate<'_> {
    /// Whether `answered`, the chat up to message `i`, shows the calls of that message, if it has any.
    fn writes_calls(&self, chat: &Chat, i: usize, answered: &str, shape: Shape) -> bool {
        let is_call = |name: &str| match chat.messages[i].fields.get(name) {
            Some(Json::Array(calls)) => !calls.is_empty(),
            Some(value) => !value.is_null(),
            None => false,
        };
        if !CALL_FIELDS.into_iter().any(is_call) {
            return true;
        }
        let mut messages = chat.messages[..=i].to_vec();
        for name in CALL_FIELDS {
            messages[i].fields.shift_remove(name);
        }
        let without = self.render(chat, &messages, End::Chat, shape);
        without.map_or(true, |without| without.text != answered)
    }

    /// What the template marks as said by message `i`, the last of the chat `answered`.
    fn marked_spans(
        &self,
        chat: &Chat,
        i: usize,
        answered: &Rendered,
        shape: Shape,
    ) -> Vec<Range<usize>> {
        let earlier = self.render(chat, &chat.messages[..i], End::Chat, shape);
        let earlier = earlier.map_or(0, |rendered| rendered.generations.len());
        let marked = answered.generations.iter().skip(earlier);
        marked.cloned().collect()
    }

    /// Where the answer of message `i` begins in `answered`, the chat up to it.
    fn answer_start(&self, chat: &Chat, i: usize, answered: &str, shape: Shape) -> usize {
        let before = &chat.messages[..i];
        let render = |messages: &[Message], end: End| {
            let rendered = self.render(chat, messages, end, shape);
            rendered.map(|rendered| rendered.text).ok()
        };
        let prompt = render(before, End::Prompt);
        if let Some(prompt) = &prompt
            && answered.starts_with(prompt.as_str())
        {
            return prompt.len();
        }
        let earlier = render(before, End::Chat).filter(|earlier| answered.starts_with(&**earlier));
        let least = earlier.map_or(0, |earlier| earlier.len());
        let shared_with_prompt = prompt
            .map(|prompt| common_prefix(&[answered, &prompt]))
            .filter(|shared| least > 0 && *shared >= least);
        if chat.messages[i].content.is_empty() {
            return shared_with_prompt.unwrap_or(least);
        }
        let probed = |probe: &str| {
            let mut messages = chat.messages[..=i].to_vec();
            messages[i].set_content(probe);
            render(&messages, End::Chat)
        };
        let start = match PROBES.map(probed) {
            [Some(a), Some(b)] => common_prefix(&[answered, &a, &b]),
            _ => answered.len(),
        };
        start.min(shared_with_prompt.unwrap_or(start)).max(least)
    }
}

/// The length of the prefix that the texts have in common.
fn common_prefix(texts: &[&str]) -> usize {
    let first = texts[0];
    let shared = |(i, c): &(usize, char)| {
        let end = i + c.len_utf8();
        texts
            .iter()
            .all(|text| text.get(*i..end) == Some(&first[*i..end]))
    };
    let chars = first.char_indices().take_while(shared);
    chars.last().map_or(0, |(i, c)| i + c.len_utf8())
}

/// Indices of the user messages that the assistant answers.
fn answered_questions(messages: &[Message]) -> impl Iterator<Item = usize> {
    let pairs = messages.windows(2).enumerate();
    pairs.filter_map(|(i, pair)| {
        (pair[0].role == "user" && pair[1].role == "assistant").then_some(i)
    })
}

/// The answered questions of a chat with the text around them.
fn questions(config: &Map<String, Json>, chat: &Chat) -> Result<Vec<ChatQuestion>> {
    let template = ChatTemplate::new(config, chat.tools.is_some())?;
    let shape = template.shape(chat).map_err(|fault| broken(&fault))?;
    answered_questions(&chat.messages)
        .map(|i| {
            let mut history = chat.messages[..=i].to_vec();
            history[i].set_content(QUESTION_PLACEHOLDER);
            let rendered = template
                .render(chat, &history, End::PlainPrompt, shape)
                .map_err(|fault| broken(&fault))?
                .text;
            // Earlier messages may contain the placeholder; the last one is the question.
            let (before, after) = rendered
                .rsplit_once(QUESTION_PLACEHOLDER)
                .ok_or_else(missing_message_error)?;
            Ok(ChatQuestion {
                prefix: before.into(),
                question: chat.messages[i].content.clone(),
                suffix: after.into(),
            })
        })
        .collect()
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
        "set `chat = false`, or fix the template (chat_template.jinja, or `chat_template` in tokenizer_config.json)",
    )
}

/// The error for a template that cannot be used at all.
fn broken(fault: &Fault) -> Error {
    let line = fault.line;
    match fault.kind {
        FaultKind::NotOffered => Error::input_hint(
            format!(
                "the model's chat template is not supported: {}, which line {line} uses",
                fault.message
            ),
            "the template may well work in `transformers`; write it without this, or give chats as rows of `prompt` and `completion`",
        ),
        _ => template_error(&format!("{} (line {line})", fault.message)),
    }
}

/// The error for a chat that the template refuses.
fn refused(fault: &Fault, location: &Location) -> Error {
    match fault.kind {
        FaultKind::Raised => Error::input_hint(
            format!(
                "{location}: the model's chat template refuses this chat: {}",
                fault.message
            ),
            "change the chat, or skip it with --skip-bad-rows",
        ),
        FaultKind::Value => Error::input_hint(
            format!(
                "{location}: the model's chat template cannot render this chat: {} (line {} of the template)",
                fault.message, fault.line
            ),
            "change the chat, or skip it with --skip-bad-rows",
        ),
        _ => broken(fault),
    }
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
        Message::new(role, content)
    }

    fn chat_of(messages: &[(&str, &str)]) -> Chat {
        let messages = messages
            .iter()
            .map(|(role, content)| message(role, content));
        messages.collect::<Vec<_>>().into()
    }

    fn location() -> Location {
        Location {
            file: "chats.jsonl".into(),
            line: 7,
        }
    }

    /// Each answer and the text before it.
    fn turns(source: &str, chat: &Chat) -> Vec<(String, String)> {
        let turns = assistant_turns(&config(source), chat, &location()).unwrap();
        let turns = turns.turns.into_iter();
        turns.map(|turn| (turn.before, turn.answer)).collect()
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
                        .map(|m| {
                            let text = |key: &str| m[key].as_str().expect("a text");
                            message(text("role"), text("content"))
                        })
                        .collect();
                    let mut config = tokens.clone();
                    config.insert("chat_template".into(), source.into());
                    let generate = chat["generate"].as_bool().expect("whether to answer");
                    let mut chat_variables = Chat::default();
                    chat_variables
                        .variables
                        .insert("enable_thinking".into(), false.into());
                    let end = if generate { End::Prompt } else { End::Chat };
                    let ours = ChatTemplate::new(&config, false)
                        .unwrap()
                        .render(&chat_variables, &messages, end, Shape::default())
                        .map(|rendered| rendered.text);
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
        let chat = chat_of(&[
            ("user", "a"),
            ("assistant", "b"),
            ("user", "c"),
            ("assistant", "d"),
        ]);
        let turns = turns(CHATML, &chat);
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
    fn a_turn_that_is_rendered_differently_once_it_is_answered_is_trained_as_it_is_rendered() {
        // As R1-Distill: the generation prompt alone opens the reasoning, and an answered turn has none.
        let distill = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<U>{{ m.content }}{% else %}\
            <A>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}<A><think>\n{% endif %}";
        let chat = chat_of(&[
            ("user", "hi"),
            ("assistant", "<think>hm</think><t>ho"),
            ("user", "and"),
            ("assistant", "so"),
        ]);
        assert_eq!(
            turns(distill, &chat),
            [
                ("<s><U>hi<A>".into(), "<t>ho</s>".into()),
                ("<s><U>hi<A><t>ho</s><U>and<A>".into(), "so</s>".into()),
            ]
        );
        let facts = super::prompt_template(&config(distill), "{question}", "{object}").unwrap();
        assert_eq!(
            (&*facts.prompt, &*facts.target),
            ("<s><U>{question}<A>", "{object}</s>")
        );
        // As Qwen3: the last answer has a block of reasoning, which earlier ones lose.
        let thinking = "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}\
            {{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
        assert_eq!(
            turns(
                thinking,
                &chat_of(&[
                    ("user", "a"),
                    ("assistant", "b"),
                    ("user", "c"),
                    ("assistant", "d")
                ])
            ),
            [
                (
                    "<user>a</s><assistant>".into(),
                    "<think>\n\n</think>\n\nb</s>".into()
                ),
                (
                    "<user>a</s><assistant>b</s><user>c</s><assistant>".into(),
                    "<think>\n\n</think>\n\nd</s>".into()
                ),
            ]
        );
    }

    #[test]
    fn a_chat_may_begin_with_the_assistant() {
        let qwen = "{% if messages[0]['role'] == 'system' %}{{ messages[0].content }}{% else %}<S>{% endif %}{% for m in messages %}\
            <{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
        let chat = chat_of(&[("assistant", "x"), ("user", "hi"), ("assistant", "ho")]);
        assert_eq!(
            turns(qwen, &chat),
            [
                ("<S><assistant>".into(), "x</s>".into()),
                (
                    "<S><assistant>x</s><user>hi</s><assistant>".into(),
                    "ho</s>".into()
                ),
            ]
        );
        let turns = turns(CHATML, &chat);
        assert_eq!(turns[0].1, "x<|im_end|>");
        assert!(
            turns[0]
                .0
                .ends_with("Be kind.<|im_end|>\n<|im_start|>assistant\n"),
            "{turns:?}"
        );
    }

    #[test]
    fn what_the_template_marks_is_trained() {
        let marked = "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}</s>\n{% endgeneration %}\
            {% else %}{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
        let mut chat = chat_of(&[
            ("user", "a"),
            ("assistant", "b"),
            ("user", "c"),
            ("assistant", "d"),
        ]);
        assert_eq!(
            turns(marked, &chat),
            [
                ("<user>a<assistant>".into(), "b</s>\n".into()),
                (
                    "<user>a<assistant>b</s>\n<user>c<assistant>".into(),
                    "d</s>\n".into()
                ),
            ]
        );
        chat.messages[1].trained = false;
        assert_eq!(turns(marked, &chat).len(), 1);
    }

    #[test]
    fn calls_are_trained_as_the_template_writes_them_or_not_at_all() {
        let mut chat = chat_of(&[
            ("user", "2+3?"),
            ("assistant", ""),
            ("tool", "5"),
            ("assistant", "It is 5."),
        ]);
        let calls = json!([{"type": "function", "function": {"name": "add", "arguments": "{}"}}]);
        chat.messages[1].fields.insert("tool_calls".into(), calls);
        let writes = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for t in m.tool_calls or [] %}<call>{{ t.function.name }}{% endfor %}</s>\
            {% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
        for content in [Json::Null, json!("")] {
            chat.messages[1].fields.insert("content".into(), content);
            assert_eq!(turns(writes, &chat)[0].1, "<call>add</s>");
        }
        // This template needs a content, and knows no calls.
        chat.messages[1].fields.shift_remove("content");
        let found = assistant_turns(&config(CHATML), &chat, &location()).unwrap();
        assert_eq!(found.turns.len(), 1);
        assert_eq!(found.turns[0].answer, "It is 5.<|im_end|>");
        assert!(found.notes[0].contains("tool_calls"));
    }

    #[test]
    fn parts_of_a_content_are_joined_unless_the_template_knows_lists() {
        let mut chat = chat_of(&[("user", "hithere"), ("assistant", "ho")]);
        let parts = json!([{"type": "text", "text": "hi"}, {"type": "text", "text": "there"}]);
        chat.messages[0].fields.insert("content".into(), parts);
        assert!(turns(CHATML, &chat)[0].0.contains("hithere"));
        let printing = "{% for m in messages %}{{ m.content }}{% endfor %}";
        assert_eq!(turns(printing, &chat)[0].0, "hithere");
        let lists = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endif %}{% endfor %}";
        assert_eq!(turns(lists, &chat)[0].0, "[hi][there]");
    }

    #[test]
    fn a_refused_chat_is_named_with_file_and_line() {
        let source = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ m.content }}{% endfor %}";
        let chat = chat_of(&[("system", "S"), ("user", "a"), ("assistant", "b")]);
        let error = assistant_turns(&config(source), &chat, &location())
            .err()
            .unwrap();
        let text = error.to_string();
        assert!(
            text.starts_with("chats.jsonl, line 7: ") && text.ends_with("no system"),
            "{text}"
        );
    }

    #[test]
    fn a_question_is_split_from_its_chat() {
        // The question also occurs in the template's own text, and an earlier message contains the placeholder.
        let chat = chat_of(&[
            ("user", "what is {question}?"),
            ("assistant", "a mark"),
            ("user", "a"),
            ("assistant", "d"),
            ("assistant", "e"),
        ]);
        let questions = questions(&config(CHATML), &chat).unwrap();
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
        let turns = turns(CHATML, &chat);
        assert_eq!(format!("{prefix}{question}{suffix}"), turns[1].0);
    }

    /// Renderings by `transformers` from `tests/golden/chat_forms.py`: for each answer, the chat up to it.
    #[test]
    fn chats_of_all_forms_are_trained_as_transformers_renders_them() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/chat/forms.json");
        let golden = std::fs::read_to_string(path).expect("the renderings");
        let golden: Json = serde_json::from_str(&golden).expect("JSON");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("chat.jsonl");
        let (mut compared, mut wrong) = (0, Vec::new());
        for case in golden["cases"].as_array().unwrap() {
            let row = json!({"messages": case["messages"], "tools": case["tools"]});
            std::fs::write(&file, row.to_string()).unwrap();
            let read = crate::facts::read_texts(
                std::slice::from_ref(&file),
                crate::facts::ReadOptions::default(),
            );
            let read = read.unwrap();
            let crate::facts::TextKind::Chat(chat) = &read.texts[0].kind else {
                panic!("{case}");
            };
            let mut config = golden["tokens"].as_object().unwrap().clone();
            let template = &golden["templates"][case["template"].as_str().unwrap()];
            config.insert("chat_template".into(), template.clone());
            let ours = assistant_turns(&config, chat, &location());
            let theirs: Option<Vec<&str>> = case["rendered"]
                .as_array()
                .unwrap()
                .iter()
                .map(Json::as_str)
                .collect();
            let Some(theirs) = theirs else { continue };
            compared += 1;
            let ours = match ours {
                Ok(ours) => ours,
                Err(error) => {
                    wrong.push(format!("{}: {error}", case["name"]));
                    continue;
                }
            };
            // An answer that the template writes nothing of has no turn.
            let mut turns = ours.turns.iter();
            let same = turns.all(|turn| {
                let whole = format!("{}{}", turn.before, turn.answer);
                let fits =
                    |t: &&&str| t.trim_end() == whole.trim_end() && !turn.answer.trim().is_empty();
                theirs.iter().any(|t| fits(&t))
            });
            let all = ours.turns.len() == theirs.len() || !ours.notes.is_empty();
            if !same || !all {
                let ours: Vec<_> = ours.turns.iter().map(|t| (&t.before, &t.answer)).collect();
                wrong.push(format!("{}: {ours:?}, not {theirs:?}", case["name"]));
            }
        }
        assert!(
            wrong.is_empty(),
            "{} of {compared}:\n{}",
            wrong.len(),
            wrong.join("\n")
        );
        assert!(compared > 150, "{compared}");
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

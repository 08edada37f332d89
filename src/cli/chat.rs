//! `unforget chat`.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    sync::{Mutex, PoisonError},
};

use clap::Args;
use console::measure_text_width;
use serde::Serialize;
use unforget::{
    Error, Result,
    engine::Engine,
    facts::Message,
    generate::{Generator, Request},
    interrupt::{self, InterruptGuard},
    model::{Model, TextTokenizer},
    prompt::{PromptTemplate, chat_prompt, has_chat_template},
    run::{PromptForm, TrainedPrompt},
};

use super::{
    answering::{AnswerArgs, length_note, settled, trained_prompt, truncate_at_stop},
    context::{Context, load_model},
    output,
};

/// The commands of a conversation.
const COMMANDS: &str = "\
/reset          forget the conversation
/system TEXT    set the system message and start over; without TEXT: none
/help           this list
/quit           end (also Ctrl-D)
Ctrl-C stops an answer, and at the prompt it ends the conversation.";

/// Have a conversation with a model in the terminal
///
/// The messages go through the model's chat template. A model without one is asked with the prompt template of its run.
#[derive(Debug, Args)]
#[command(
    after_help = "In the conversation, /reset forgets it, /system TEXT sets the system message, /help lists the commands, Ctrl-C stops an answer \
    and Ctrl-D ends. When stdin is not a terminal, each line is a turn. With --json the output is a line \
    {\"prompt\", \"answer\"} per turn.\n\n\
    Examples:\n  \
    unforget chat smollm2-135m --system \"You answer in one sentence.\"\n  \
    unforget chat runs/new --temperature 0.7\n  \
    printf 'Who wrote Emma?\\nWhen?\\n' | unforget chat smollm2-135m"
)]
pub struct ChatArgs {
    /// The model or run
    #[arg(value_name = "MODEL|RUN")]
    model: String,
    /// System message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    answer: AnswerArgs,
    /// Tokens of an answer, at most
    #[arg(long, value_name = "N", default_value_t = 512)]
    max_new_tokens: usize,
}

#[derive(Serialize)]
struct Turn<'a> {
    prompt: &'a str,
    answer: &'a str,
}

impl ChatArgs {
    pub fn run(self, context: &Context) -> Result<()> {
        self.answer.check()?;
        if self.max_new_tokens == 0 {
            return Err(Error::input("`--max-new-tokens` must be at least 1"));
        }
        let model = load_model(&self.model)?;
        let mut conversation = Conversation::new(&self.model, &model, self.system.clone())?;
        if let Some(prompt) = other_prompt(&self.model, &conversation, &model.tokenizer)? {
            context.progress.note(format!(
                "the conversation uses the model's chat template; the facts of this run were trained with the prompt {prompt}: `unforget ask {} \"...\"` asks with it",
                self.model
            ));
        }
        conversation.trained.stops.extend(self.answer.stops());
        let is_terminal = io::stdin().is_terminal();
        if is_terminal {
            context
                .progress
                .note("/help lists the commands, Ctrl-D ends.");
        }
        let mut engine = context.engine(&model.config)?;
        let mut lines = io::stdin().lock();
        loop {
            if is_terminal {
                // Without stderr there is no prompt sign, and the conversation works.
                let _ = write!(io::stderr(), "> ");
            }
            let mut line = String::new();
            let read = lines
                .read_line(&mut line)
                .map_err(|reason| Error::input(format!("cannot read stdin: {reason}")))?;
            let prompt = line.trim();
            if read == 0 || matches!(prompt, "/quit" | "/exit" | "/bye") {
                if is_terminal && read == 0 {
                    let _ = writeln!(io::stderr());
                }
                return Ok(());
            }
            if prompt.is_empty() {
                continue;
            }
            if let Some(command) = prompt.strip_prefix('/') {
                conversation.obey(command, context);
                continue;
            }
            match self.answer(prompt, &mut conversation, &mut engine, &model, context) {
                // A message that is too long, or that the template refuses, ends no conversation.
                Err(error @ Error::Input { .. }) if is_terminal => {
                    context.progress.note(format!("error: {error}"));
                }
                answered => answered?,
            }
        }
    }

    /// Generates the answer to `prompt`, shows it while it grows, and adds both to the conversation.
    fn answer(
        &self,
        prompt: &str,
        conversation: &mut Conversation,
        engine: &mut Engine,
        model: &Model,
        context: &Context,
    ) -> Result<()> {
        let room = model
            .config
            .max_position_embeddings
            .saturating_sub(self.max_new_tokens);
        let tokens = conversation.encode(prompt, &model.tokenizer, room, context)?;
        let stops = conversation.trained.stops.clone();
        let stream = AnswerStream::new(context.json);
        let guard = InterruptGuard::begin();
        let answers = Generator::new(engine, model).generate(
            &Request {
                sampling: self.answer.sampling(context),
                ..Request::greedy(&[], &[tokens], self.max_new_tokens)
            },
            |_, text| {
                let is_open = stream.show(settled(text, &stops));
                let has_ended = stops.iter().any(|stop| text.contains(stop));
                has_ended || !is_open || interrupt::is_requested()
            },
            &|_| {},
        );
        drop(guard);
        let was_stopped = interrupt::take_request();
        let answers = match answers {
            // Stopped before the first token.
            Err(Error::Interrupted { .. }) if was_stopped => return output::line(""),
            answers => answers?,
        };
        let answer = truncate_at_stop(&answers[0][0].text, &stops)
            .trim()
            .to_owned();
        if context.json {
            output::json(&Turn {
                prompt,
                answer: &answer,
            })?;
        } else {
            stream.finish(&answer)?;
            if let Some(note) = length_note(&answers[0][0], &answer, self.max_new_tokens) {
                context.progress.note(note);
            }
        }
        conversation.turns.push((prompt.to_owned(), answer));
        Ok(())
    }
}

/// The prompt that the facts of the run `spec` were trained with, if the conversation uses another: quoted, on one line.
fn other_prompt(
    spec: &str,
    conversation: &Conversation,
    tokenizer: &TextTokenizer,
) -> Result<Option<String>> {
    let trained = trained_prompt(spec, tokenizer)?.map(|trained| trained.form);
    Ok(match trained {
        Some(PromptForm::Facts(template))
            if !template.rendered && conversation.trained.form.is_chat() =>
        {
            Some(format!("{:?}", template.prompt))
        }
        _ => None,
    })
}

/// What was said, and how it is put to the model.
struct Conversation {
    trained: TrainedPrompt,
    system: Option<String>,
    /// Messages and their answers.
    turns: Vec<(String, String)>,
}

impl Conversation {
    /// A conversation with the model `spec`.
    fn new(spec: &str, model: &Model, system: Option<String>) -> Result<Self> {
        let tokenizer = &model.tokenizer;
        let trained = if has_chat_template(tokenizer) {
            TrainedPrompt::chat(tokenizer)
        } else {
            match trained_prompt(spec, tokenizer)? {
                Some(trained) if trained.form != PromptForm::Text => trained,
                _ => {
                    return Err(Error::input_hint(
                        format!("`{spec}` has no chat template, so it knows no conversation"),
                        format!("`unforget ask {spec} \"...\"` continues a text"),
                    ));
                }
            }
        };
        if system.is_some() && !trained.form.is_chat() {
            return Err(Error::input_hint(
                format!("`{spec}` has no chat template, and so no place for `--system`"),
                "leave `--system` out",
            ));
        }
        Ok(Self {
            trained,
            system,
            turns: Vec::new(),
        })
    }

    /// Follows a command, given without its slash.
    fn obey(&mut self, command: &str, context: &Context) {
        let (name, text) = command
            .split_once(char::is_whitespace)
            .unwrap_or((command, ""));
        match name {
            "reset" => {
                self.turns.clear();
                context.progress.note("the conversation starts over");
            }
            "system" if self.trained.form.is_chat() => {
                self.turns.clear();
                self.system = Some(text.trim().to_owned()).filter(|text| !text.is_empty());
                context.progress.note(match self.system {
                    Some(_) => "the system message is set; the conversation starts over",
                    None => "there is no system message; the conversation starts over",
                });
            }
            "system" => context
                .progress
                .note("the model has no chat template, and so no place for a system message"),
            "help" => context.progress.note(COMMANDS),
            _ => context
                .progress
                .note(format!("no command `/{name}`; /help lists them")),
        }
    }

    /// Token ids up to the beginning of the answer to `prompt`, at most `room`: the oldest turns are left out where they don't fit.
    fn encode(
        &mut self,
        prompt: &str,
        tokenizer: &TextTokenizer,
        room: usize,
        context: &Context,
    ) -> Result<Vec<u32>> {
        let before = self.turns.len();
        loop {
            let tokens = match &self.trained.form {
                PromptForm::Facts(template) if !template.rendered => {
                    template.encode(tokenizer, &self.questions(template, prompt))?
                }
                _ => tokenizer.encode_rendered(&chat_prompt(tokenizer, &self.messages(prompt))?)?,
            };
            if tokens.len() <= room || self.turns.is_empty() {
                let left_out = before - self.turns.len();
                if left_out > 0 {
                    context.progress.note(format!(
                        "the conversation is longer than the model's context: the oldest turns ({left_out}) are left out"
                    ));
                }
                return Ok(tokens);
            }
            self.turns.remove(0);
        }
    }

    /// The conversation as messages of a chat.
    fn messages(&self, prompt: &str) -> Vec<Message> {
        let system = self.system.iter().map(|text| Message::new("system", text));
        let turns = self.turns.iter().flat_map(|(prompt, answer)| {
            [
                Message::new("user", prompt),
                Message::new("assistant", answer),
            ]
        });
        let messages = system.chain(turns).chain([Message::new("user", prompt)]);
        messages.collect()
    }

    /// The conversation as questions and answers in one text.
    fn questions(&self, template: &PromptTemplate, prompt: &str) -> String {
        let turns = self
            .turns
            .iter()
            .map(|(prompt, answer)| template.prompt_text(prompt) + &template.target_text(answer));
        turns.collect::<String>() + &template.prompt_text(prompt)
    }
}

/// Shows an answer while it grows.
struct AnswerStream {
    hidden: bool,
    state: Mutex<StreamState>,
}

struct StreamState {
    /// Bytes that are shown.
    shown: usize,
    /// In a terminal: breaks lines between words.
    wrapper: Option<WordWrapper>,
    /// How writing went.
    written: Result<()>,
}

impl AnswerStream {
    fn new(hidden: bool) -> Self {
        Self {
            hidden,
            state: Mutex::new(StreamState {
                shown: 0,
                wrapper: output::terminal_width().map(WordWrapper::new),
                written: Ok(()),
            }),
        }
    }

    /// Shows the rest of `text`, which begins with what is shown. In a terminal, a word is shown once it is complete. Returns whether
    /// it could be written.
    fn show(&self, text: &str) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        let end = match state.wrapper {
            Some(_) => {
                let last = text.char_indices().rfind(|(_, c)| c.is_whitespace());
                last.map_or(0, |(start, c)| start + c.len_utf8())
            }
            None => text.len(),
        };
        if end > state.shown {
            state.write(&text[..end], self.hidden);
        }
        state.written.is_ok()
    }

    /// Shows the rest of the complete answer.
    fn finish(self, answer: &str) -> Result<()> {
        let state = self.state.into_inner();
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        state.write(answer, self.hidden);
        state.written?;
        output::line("")
    }
}

impl StreamState {
    fn write(&mut self, text: &str, hidden: bool) {
        if hidden || self.written.is_err() || text.len() <= self.shown {
            return;
        }
        let rest = output::sanitize(&text[self.shown..]);
        self.shown = text.len();
        self.written = output::part(&match &mut self.wrapper {
            Some(wrapper) => wrapper.wrap(&rest),
            None => rest,
        });
    }
}

/// Breaks lines between words in a text that arrives in parts of whole words.
struct WordWrapper {
    columns: usize,
    /// Columns of the last line that are in use.
    column: usize,
    /// The space behind the last word, which a line break replaces.
    space: String,
}

impl WordWrapper {
    fn new(columns: usize) -> Self {
        Self {
            columns,
            column: 0,
            space: String::new(),
        }
    }

    fn wrap(&mut self, text: &str) -> String {
        let mut wrapped = String::new();
        for part in text.split_inclusive(char::is_whitespace) {
            let word = part.trim_end();
            if !word.is_empty() {
                let space = std::mem::take(&mut self.space);
                let width = measure_text_width(word);
                if self.column > 0 && self.column + space.len() + width > self.columns {
                    wrapped.push('\n');
                    self.column = 0;
                } else {
                    self.column += space.len();
                    wrapped += &space;
                }
                wrapped += word;
                self.column += width;
            }
            match &part[word.len()..] {
                "\n" => {
                    wrapped.push('\n');
                    self.space.clear();
                    self.column = 0;
                }
                space => self.space += space,
            }
        }
        wrapped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_broken_between_words() {
        let mut wrapper = WordWrapper::new(12);
        let parts = [
            "Felix ",
            "was a ",
            "creative  ",
            "cat.\n\n  1. ",
            "A",
            " verylongword.",
        ];
        let wrapped = parts.map(|part| wrapper.wrap(part)).concat();
        assert_eq!(
            wrapped,
            "Felix was a\ncreative\ncat.\n\n  1. A\nverylongword."
        );
    }
}

//! `unforget ask`.

use std::{
    io::{self, Read},
    path::PathBuf,
};

use clap::Args;
use serde::Serialize;
use unforget::{
    Error, Result,
    facts::{self, Message},
    generate::{Generator, Request, TokenLogprob},
    model::TextTokenizer,
    prompt::{PromptTemplate, chat_prompt, has_chat_template},
    run::{PromptForm, TrainedPrompt},
};

use super::{
    answering::{AnswerArgs, length_note, trained_prompt, truncate_at_stop},
    context::{Context, load_model},
    output,
};

/// Answer a prompt, or each of many
///
/// The model of a run is asked with the prompt template that it was trained with, and its answer ends where a trained one does. Any
/// other model continues the prompt as it stands.
#[derive(Debug, Args)]
#[command(
    after_help = "With --prompts (rows {\"prompt\"}), --logprobs or --json, the output is one line of JSON per prompt, in order: \
    {\"prompt\", \"answer\"}, with --samples also \"answers\", with --logprobs also \
    \"tokens\": [{\"id\", \"logprob\", \"top\": [[id, logprob]]}] of \"answer\" (nats, at temperature 1).\n\n\
    Examples:\n  \
    unforget ask smollm2-135m \"The capital of France is\" --max-new-tokens 8\n  \
    unforget ask smollm2-135m \"Who are you?\" --chat --system \"You are a pirate.\"\n  \
    unforget ask runs/new \"What color is the Velora K3?\"\n  \
    unforget ask smollm2-135m --prompts prompts.jsonl --stop '\\n' --logprobs 5"
)]
pub struct AskArgs {
    /// The model or run
    #[arg(value_name = "MODEL|RUN")]
    model: String,
    /// The prompt; `-` reads it from stdin
    #[arg(required_unless_present = "prompts", conflicts_with = "prompts")]
    prompt: Option<String>,
    /// Rows with `prompt`: JSONL, JSON, CSV, TSV or Parquet; `-` is stdin, with JSON lines
    #[arg(long, value_name = "FILE.jsonl")]
    prompts: Option<PathBuf>,
    /// Use the model's own chat template
    #[arg(long)]
    chat: bool,
    /// System message of the chat; implies --chat
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Continue the prompt as it stands, also with the model of a run
    #[arg(long, conflicts_with_all = ["chat", "system"])]
    raw: bool,
    #[command(flatten)]
    answer: AnswerArgs,
    /// Answers per prompt
    #[arg(long, value_name = "N", default_value_t = 1)]
    samples: usize,
    /// Tokens of an answer, at most
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_new_tokens: usize,
    /// Also print each token's log-probability, and the N most likely tokens at its position
    #[arg(long, value_name = "N")]
    logprobs: Option<usize>,
}

#[derive(Serialize)]
struct Answer<'a> {
    prompt: &'a str,
    answer: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    answers: Option<Vec<&'a str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<&'a [TokenLogprob]>,
}

impl AskArgs {
    pub fn run(self, context: &Context) -> Result<()> {
        self.check()?;
        let prompts = self.read_prompts()?;
        let model = load_model(&self.model)?;
        let trained = self.trained_prompt(&model.tokenizer)?;
        let encoded = prompts
            .iter()
            .map(|prompt| self.encode(prompt, trained.as_ref(), &model.tokenizer))
            .collect::<Result<Vec<_>>>()?;
        let mut stops: Vec<String> = self.answer.stops().collect();
        stops.extend(trained.iter().flat_map(|trained| trained.stops.clone()));

        // Where a text is continued, spaces count.
        let is_question = trained
            .as_ref()
            .is_some_and(|trained| matches!(trained.form, PromptForm::Facts(_)));
        let as_json = context.json || self.prompts.is_some() || self.logprobs.is_some();
        let mut engine = context.engine(&model.config)?;
        let bar = context.progress.bar(encoded.len() as u64, "ask");
        let answers = Generator::new(&mut engine, &model).generate(
            &Request {
                prefix: &[],
                prompts: &encoded,
                max_new_tokens: self.max_new_tokens,
                sampling: self.answer.sampling(context),
                samples: self.samples,
                logprobs: self.logprobs,
            },
            |_, text| stops.iter().any(|stop| text.contains(stop)),
            &|finished| bar.inc(finished as u64),
        )?;
        drop(bar);
        for (prompt, answers) in prompts.iter().zip(&answers) {
            let texts: Vec<&str> = answers
                .iter()
                .map(|a| truncate_at_stop(&a.text, &stops))
                .map(|text| if is_question { text.trim() } else { text })
                .collect();
            if as_json {
                output::json(&Answer {
                    prompt,
                    answer: texts[0],
                    tokens: self.logprobs.map(|_| &answers[0].logprobs[..]),
                    answers: (self.samples > 1).then_some(texts),
                })?;
            } else {
                texts.iter().try_for_each(|text| output::line(text))?;
                let is_chat = trained.as_ref().is_some_and(|t| t.form.is_chat());
                let cut = length_note(&answers[0], texts[0], self.max_new_tokens);
                if let Some(note) = cut.filter(|_| is_chat) {
                    context.progress.note(note);
                }
                if texts[0].trim().is_empty()
                    && trained.is_none()
                    && has_chat_template(&model.tokenizer)
                {
                    context.progress.note(
                        "the answer is empty: the model continues the prompt as a text; `--chat` asks through its chat template",
                    );
                }
            }
        }
        Ok(())
    }

    /// How the model is asked; `None`: it continues the prompt as it stands.
    fn trained_prompt(&self, tokenizer: &TextTokenizer) -> Result<Option<TrainedPrompt>> {
        if self.raw {
            return Ok(None);
        }
        if self.chat || self.system.is_some() {
            return Ok(Some(TrainedPrompt::chat(tokenizer)));
        }
        trained_prompt(&self.model, tokenizer)
    }

    /// Token ids of a prompt in its form.
    fn encode(
        &self,
        prompt: &str,
        trained: Option<&TrainedPrompt>,
        tokenizer: &TextTokenizer,
    ) -> Result<Vec<u32>> {
        match trained.map(|trained| &trained.form) {
            None | Some(PromptForm::Text) => tokenizer.encode_prompt(prompt),
            Some(PromptForm::Facts(template)) => {
                template.encode(tokenizer, &template.ensure_prompt_text(prompt))
            }
            Some(PromptForm::Chat) if self.system.is_none() => {
                let template = PromptTemplate::default().for_model(true, tokenizer)?;
                template.encode(tokenizer, &template.prompt_text(prompt))
            }
            Some(PromptForm::Chat) => {
                let system = self.system.iter().map(|text| Message::new("system", text));
                let messages: Vec<Message> = system.chain([Message::new("user", prompt)]).collect();
                tokenizer.encode_rendered(&chat_prompt(tokenizer, &messages)?)
            }
        }
    }

    fn check(&self) -> Result<()> {
        self.answer.check()?;
        if self.samples == 0 || self.max_new_tokens == 0 {
            return Err(Error::input(
                "`--samples` and `--max-new-tokens` must be at least 1",
            ));
        }
        if self.samples > 1 && self.answer.temperature == 0.0 {
            return Err(Error::input_hint(
                format!("{} greedy answers would all be the same", self.samples),
                "give a `--temperature` above 0, such as 0.5",
            ));
        }
        Ok(())
    }

    fn read_prompts(&self) -> Result<Vec<String>> {
        if let Some(file) = &self.prompts {
            let rows = facts::read_fields(file, ["prompt"], r#"{"prompt": "..."}"#)?;
            return Ok(rows.into_iter().map(|(_, [prompt])| prompt).collect());
        }
        let prompt = self
            .prompt
            .clone()
            .expect("clap asks for it without --prompts");
        if prompt != "-" {
            return Ok(vec![prompt]);
        }
        let mut text = String::new();
        io::stdin()
            .read_to_string(&mut text)
            .map_err(|reason| Error::input(format!("cannot read stdin: {reason}")))?;
        Ok(vec![text])
    }
}

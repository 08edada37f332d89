//! `unforget ask`.

use std::{
    io::{self, Read},
    path::PathBuf,
};

use clap::Args;
use serde::{Deserialize, Serialize};
use unforget::{
    Error, Result,
    engine::Engine,
    generate::{Generator, Request, SamplingParams, TokenLogprob},
    prompt::PromptTemplate,
};

use super::{
    context::{Context, load_model},
    output, rows,
};

/// Continue a prompt, or each of many
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    unforget ask smollm2-135m \"The capital of France is\" --max-new-tokens 8\n  \
    unforget ask smollm2-135m --prompts prompts.jsonl --stop '\\n' --logprobs 5\n\n\
    The prompt is continued as it is. With --prompts (rows {\"prompt\"}), --logprobs or --json, the output is one line of \
    JSON per prompt, in order: {\"prompt\", \"answer\"}, with --samples also \"answers\", with --logprobs also\n\
    \"tokens\": [{\"id\", \"logprob\", \"top\": [[id, logprob]]}] of \"answer\" (nats, at temperature 1).")]
pub struct AskArgs {
    /// The model
    model: String,
    /// The prompt; `-` reads it from stdin
    #[arg(required_unless_present = "prompts", conflicts_with = "prompts")]
    prompt: Option<String>,
    /// JSON lines with `prompt`; `-` is stdin
    #[arg(long, value_name = "FILE.jsonl")]
    prompts: Option<PathBuf>,
    /// Use the model's own chat template
    #[arg(long)]
    chat: bool,
    /// Softmax temperature; 0 is greedy
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Sample from the K most likely tokens; 0 is all of them
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Answers per prompt
    #[arg(long, value_name = "N", default_value_t = 1)]
    samples: usize,
    /// Tokens of an answer, at most
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_new_tokens: usize,
    /// End an answer before this text (\n and \t are understood); may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Also print each token's log-probability, and the N most likely tokens at its position
    #[arg(long, value_name = "N")]
    logprobs: Option<usize>,
}

#[derive(Deserialize)]
struct PromptRow {
    prompt: String,
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
        let chat = self
            .chat
            .then(|| PromptTemplate::default().for_model(true, &model.tokenizer))
            .transpose()?;
        let encoded = prompts
            .iter()
            .map(|prompt| match &chat {
                Some(chat) => chat.encode(&model.tokenizer, &chat.prompt_text(prompt)),
                None => model.tokenizer.encode_prompt(prompt),
            })
            .collect::<Result<Vec<_>>>()?;
        let stops: Vec<String> = self
            .stop
            .iter()
            .map(|stop| stop.replace("\\n", "\n").replace("\\t", "\t"))
            .collect();

        let as_json = context.json || self.prompts.is_some() || self.logprobs.is_some();
        let mut engine = Engine::new(&model.config);
        let bar = context.progress.bar(encoded.len() as u64, "ask");
        let answers = Generator::new(&mut engine, &model).generate(
            &Request {
                prefix: &[],
                prompts: &encoded,
                max_new_tokens: self.max_new_tokens,
                sampling: SamplingParams {
                    temperature: self.temperature,
                    top_k: self.top_k,
                    seed: context.seed.unwrap_or(0),
                },
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
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::input("`--temperature` must be 0 or more"));
        }
        if self.samples == 0 || self.max_new_tokens == 0 {
            return Err(Error::input(
                "`--samples` and `--max-new-tokens` must be at least 1",
            ));
        }
        if self.samples > 1 && self.temperature == 0.0 {
            return Err(Error::input_hint(
                format!("{} greedy answers would all be the same", self.samples),
                "give a `--temperature` above 0, such as 0.5",
            ));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::input("`--stop` is empty"));
        }
        Ok(())
    }

    fn read_prompts(&self) -> Result<Vec<String>> {
        if let Some(file) = &self.prompts {
            let rows: Vec<(usize, PromptRow)> = rows::read(file, r#"{"prompt": "..."}"#)?;
            return Ok(rows.into_iter().map(|(_, row)| row.prompt).collect());
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

/// The text before the first stop string in it.
fn truncate_at_stop<'a>(text: &'a str, stops: &[String]) -> &'a str {
    let end = stops.iter().filter_map(|stop| text.find(stop)).min();
    &text[..end.unwrap_or(text.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_cut_before_the_first_stop() {
        let stops = ["\n".to_owned(), "Q:".to_owned()];
        assert_eq!(truncate_at_stop(" Italy Q:\n", &stops), " Italy ");
        assert_eq!(truncate_at_stop(" Italy", &stops), " Italy");
    }
}

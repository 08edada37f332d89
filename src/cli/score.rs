//! `unforget score`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use unforget::{Result, facts, generate::Generator};

use super::{
    context::{Context, load_model},
    output,
};

/// Log-probability (nats) of every completion token, a line of JSON per row
#[derive(Debug, Args)]
#[command(
    after_help = "Prompt and completion are tokenized as one text. The scored tokens begin where its tokens differ from those of the \
    prompt alone. Output, in the order of the rows:\n  \
    {\"tokens\": [{\"id\", \"text\", \"logprob\"}], \"logprob\": sum}\n\n\
    Examples:\n  unforget score smollm2-135m rows.jsonl\n  \
    echo '{\"prompt\": \"The capital of France is\", \"completion\": \" Paris\"}' | unforget score smollm2-135m -"
)]
pub struct ScoreArgs {
    /// The model
    model: String,
    /// Rows with `prompt` and `completion`: JSONL, JSON, CSV, TSV or Parquet; `-` is stdin, with JSON lines
    file: PathBuf,
}

#[derive(Serialize)]
struct ScoredRow {
    tokens: Vec<ScoredToken>,
    logprob: f64,
}

#[derive(Serialize)]
struct ScoredToken {
    id: u32,
    text: String,
    logprob: f32,
}

impl ScoreArgs {
    pub fn run(self, context: &Context) -> Result<()> {
        let example = r#"{"prompt": "...", "completion": "..."}"#;
        let rows = facts::read_fields(&self.file, ["prompt", "completion"], example)?;
        let model = load_model(&self.model)?;
        let encoded = rows
            .iter()
            .map(|(_, [prompt, text])| model.tokenizer.encode_joint(prompt, text, true))
            .collect::<Result<Vec<_>>>()?;
        let mut engine = context.engine(&model.config)?;
        let bar = context.progress.bar(encoded.len() as u64, "score");
        let scored = Generator::new(&mut engine, &model)
            .score(&encoded, &|finished| bar.inc(finished as u64))?;
        drop(bar);
        for ((_, completion), logprobs) in encoded.iter().zip(scored) {
            let tokens = completion
                .iter()
                .zip(&logprobs)
                .map(|(&id, &logprob)| ScoredToken {
                    id,
                    text: model.tokenizer.token_text(id),
                    logprob,
                })
                .collect();
            output::json(&ScoredRow {
                tokens,
                logprob: logprobs.iter().fold(0.0, |sum, &l| sum + f64::from(l)),
            })?;
        }
        Ok(())
    }
}

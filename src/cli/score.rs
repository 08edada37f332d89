//! `unforget score`.

use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};
use unforget::{Result, engine::Engine, generate::Generator};

use super::{
    context::{Context, load_model},
    output, rows,
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
    /// JSON lines with `prompt` and `completion`; `-` is stdin
    file: PathBuf,
}

#[derive(Deserialize)]
struct ScoreRow {
    prompt: String,
    completion: String,
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
        let rows: Vec<(usize, ScoreRow)> =
            rows::read(&self.file, r#"{"prompt": "...", "completion": "..."}"#)?;
        let model = load_model(&self.model)?;
        let encoded = rows
            .iter()
            .map(|(_, row)| {
                let tokenizer = &model.tokenizer;
                tokenizer.encode_joint(&row.prompt, &row.completion, true)
            })
            .collect::<Result<Vec<_>>>()?;
        let mut engine = Engine::new(&model.config);
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
                logprob: logprobs.iter().map(|&l| f64::from(l)).sum(),
            })?;
        }
        Ok(())
    }
}

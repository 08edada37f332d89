//! `unforget data`.

use std::path::{Path, PathBuf};

use clap::Args;
use console::Style;
use serde_json::json;
use unforget::{
    Result, facts,
    facts::ReadOptions,
    model::{Model, TextTokenizer},
    prompt::{Row, text_rows},
};

use super::{Context, asking::Asking, load_model, output};

/// Show what would be trained of a file: its rows as the model reads them, with what is trained marked
#[derive(Debug, Args)]
#[command(
    mut_arg("rule", |arg| arg.hide(true)),
    after_help = "Examples:\n  unforget data chats.jsonl --model Qwen/Qwen2.5-0.5B-Instruct\n  \
    unforget data new.tsv train-00000.parquet --rows 1\n\n\
    JSONL, JSON, CSV, TSV and Parquet, a row of: subject, relation, object (facts); messages (chats), conversations\n\
    (ShareGPT), instruction, input, output (Alpaca), each in the words of the model's own chat template; prompt,\n\
    completion; text. What stands between \u{27e6} and \u{27e7} is trained, the rest is read. A chat has a row for every answer.\n\
    With --json a line a file: {\"file\", \"kind\", \"items\", \"rows\", \"tokens\", \"trained\", \"longest\", \"too_long\", \"shown\":\n\
    [{\"prompt\", \"target\"}]}."
)]
pub struct Data {
    /// The files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The model whose tokens and chat template are taken
    #[arg(long, default_value = "smollm2-135m")]
    model: String,
    /// Rows that are shown of each file
    #[arg(long, value_name = "N", default_value_t = 3)]
    rows: usize,
    /// Tokens of the longest row that is trained whole
    #[arg(long, value_name = "N", default_value_t = 2048)]
    max_tokens: usize,
    #[command(flatten)]
    asking: Asking,
}

/// The rows of a file, and of how many items of which kind.
struct Rows {
    kind: &'static str,
    items: usize,
    rows: Vec<Row>,
}

/// `1 row`, `2 rows`.
fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

impl Data {
    pub fn run(self, context: &Context) -> Result<()> {
        let model = load_model(&self.model)?;
        for file in &facts::files_of(&self.files)? {
            let rows = self.read(file, &model, context)?;
            if context.json {
                output::json(&self.told(file, &rows, &model.tokenizer))?;
            } else {
                output::line(&self.shown(file, &rows, &model.tokenizer))?;
            }
        }
        Ok(())
    }

    fn read(&self, file: &Path, model: &Model, context: &Context) -> Result<Rows> {
        let files = [file.to_owned()];
        if !facts::holds_texts(file)? {
            let template = self.asking.template(model)?;
            let facts = self.asking.facts(&files, context)?;
            let rows = facts
                .iter()
                .map(|fact| template.row(&model.tokenizer, fact));
            return Ok(Rows {
                kind: "facts",
                items: facts.len(),
                rows: rows.collect::<Result<_>>()?,
            });
        }
        let options = ReadOptions {
            skip_bad_rows: self.asking.skip_bad_rows,
            ..ReadOptions::default()
        };
        let set = facts::read_texts(&files, options)?;
        for note in &set.notes {
            context.progress.note(note);
        }
        let mut rows = Vec::with_capacity(set.texts.len());
        for text in &set.texts {
            rows.extend(text_rows(&model.tokenizer, text)?);
        }
        Ok(Rows {
            kind: "texts",
            items: set.texts.len(),
            rows,
        })
    }

    fn told(&self, file: &Path, rows: &Rows, tokenizer: &TextTokenizer) -> serde_json::Value {
        let shown = rows.rows.iter().take(self.rows).map(|row| {
            json!({"prompt": tokenizer.decode_whole(&row.prompt), "target": tokenizer.decode_whole(&row.target)})
        });
        let lengths = rows.rows.iter().map(Row::len);
        json!({
            "file": file, "kind": rows.kind, "items": rows.items, "rows": rows.rows.len(),
            "tokens": lengths.clone().sum::<usize>(),
            "trained": rows.rows.iter().map(Row::targets).sum::<usize>(),
            "longest": lengths.clone().max(),
            "too_long": lengths.filter(|len| *len > self.max_tokens).count(),
            "shown": shown.collect::<Vec<_>>(),
        })
    }

    fn shown(&self, file: &Path, rows: &Rows, tokenizer: &TextTokenizer) -> String {
        let lengths = rows.rows.iter().map(Row::len);
        let mut told = format!(
            "{}: {} in {}, {} tokens, {} of them trained; the longest row has {}",
            file.display(),
            counted(rows.items, rows.kind.trim_end_matches('s')),
            counted(rows.rows.len(), "row"),
            lengths.clone().sum::<usize>(),
            rows.rows.iter().map(Row::targets).sum::<usize>(),
            lengths.clone().max().unwrap_or(0),
        );
        let too_long = lengths.filter(|len| *len > self.max_tokens).count();
        if too_long > 0 {
            told += &format!(
                "\n{too_long} of them are longer than {}: `tune` refuses them unless `train.truncate = true`",
                self.max_tokens
            );
        }
        let trained = Style::new().bold();
        for (i, row) in rows.rows.iter().take(self.rows).enumerate() {
            let text = |ids: &[u32]| output::harmless(&tokenizer.decode_whole(ids));
            let (prompt, target) = (text(&row.prompt), trained.apply_to(text(&row.target)));
            told += &format!("\n\n── row {} ──\n{prompt}\u{27e6}{target}\u{27e7}", i + 1);
        }
        told
    }
}

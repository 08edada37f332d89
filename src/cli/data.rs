//! `unforget data`.

use std::path::{Path, PathBuf};

use clap::Args;
use console::Style;
use serde_json::json;
use unforget::{
    Result, facts,
    model::{ModelConfig, TextTokenizer},
    prompt::{Example, NO_END_NOTE, TextNotes, examples_of_texts, lacks_end},
};

use super::{
    context::{Context, load_tokenizer, model_spec},
    fact_args::FactArgs,
    output,
};

/// Show the training rows of a file as token text, with the trained part marked
#[derive(Debug, Args)]
#[command(
    mut_arg("match_rule", |arg| arg.hide(true)),
    after_help = "Reads JSONL, JSON, CSV, TSV and Parquet, also .gz and .zst. Columns: subject, relation, object, or question, answer \
    (facts); messages, conversations (ShareGPT), or instruction, input, output (Alpaca), rendered by the \
    model's chat template; prompt, completion, as texts or as lists of messages; \
    text. The text between \u{27e6} and \u{27e7} is trained, the rest is context. A chat has one row per answer.\n\
    With --json one line per file: {\"file\", \"kind\", \"items\", \"rows\", \"tokens\", \"trained\", \"longest\", \"too_long\", \"shown\": \
    [{\"prompt\", \"target\"}]}.\n\n\
    Examples:\n  unforget data chats.jsonl --model Qwen/Qwen2.5-0.5B-Instruct\n  \
    unforget data new.tsv train-00000.parquet --rows 1"
)]
pub struct DataArgs {
    /// The files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The model whose tokenizer and chat template are used
    #[arg(long, default_value = "smollm2-135m")]
    model: String,
    /// Rows to show of each file
    #[arg(long, value_name = "N", default_value_t = 3)]
    rows: usize,
    /// Longest row, in tokens, that `tune` accepts: `train.max_length`, at most the model's context
    #[arg(long, value_name = "N", default_value_t = 2048)]
    max_length: usize,
    #[command(flatten)]
    fact_args: FactArgs,
}

/// Counts of a file's rows, and the rows to show.
#[derive(Default)]
struct FileSummary {
    kind: &'static str,
    items: usize,
    rows: usize,
    tokens: usize,
    trained: usize,
    longest: usize,
    too_long: usize,
    shown: Vec<Example>,
}

/// `1 row`, `2 rows`.
fn pluralize(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

impl DataArgs {
    pub fn run(mut self, context: &Context) -> Result<()> {
        let tokenizer = load_tokenizer(&self.model)?;
        let config = ModelConfig::load(&model_spec(&self.model)?)?;
        self.max_length = self.max_length.min(config.max_position_embeddings);
        for file in &facts::resolve_files(&self.files)? {
            let summary = self.read(file, &tokenizer, context)?;
            if context.json {
                output::json(&summary.json(file, &tokenizer))?;
            } else {
                output::line(&self.text(&summary, file, &tokenizer))?;
            }
        }
        Ok(())
    }

    fn read(
        &self,
        file: &Path,
        tokenizer: &TextTokenizer,
        context: &Context,
    ) -> Result<FileSummary> {
        let files = [file.to_owned()];
        let mut summary = FileSummary {
            kind: "facts",
            ..FileSummary::default()
        };
        let mut notes;
        if facts::is_text_file(file)? {
            summary.kind = "texts";
            let set = facts::read_texts(&files, self.fact_args.read_options())?;
            summary.items = set.texts.len();
            if lacks_end(tokenizer, &set.texts) {
                context.progress.note(NO_END_NOTE);
            }
            let mut text_notes = TextNotes::default();
            let skips = self.fact_args.read_options().skip_bad_rows;
            for (_, row) in examples_of_texts(tokenizer, &set.texts, skips, &mut text_notes)? {
                self.count(&mut summary, row);
            }
            notes = set.notes;
            notes.extend(text_notes.lines());
        } else {
            let template = self.fact_args.template(tokenizer)?;
            let read = facts::read_each(&files, self.fact_args.read_options(), |fact| {
                self.count(&mut summary, template.example(tokenizer, &fact)?);
                Ok(())
            })?;
            summary.items = read.facts;
            notes = read.notes;
        }
        for note in &notes {
            context.progress.note(note);
        }
        Ok(summary)
    }

    /// Adds a row to the counts.
    fn count(&self, summary: &mut FileSummary, row: Example) {
        summary.rows += 1;
        summary.tokens += row.num_tokens();
        summary.trained += row.num_targets();
        summary.longest = summary.longest.max(row.num_tokens());
        summary.too_long += usize::from(row.num_tokens() > self.max_length);
        if summary.shown.len() < self.rows {
            summary.shown.push(row);
        }
    }

    fn text(&self, summary: &FileSummary, file: &Path, tokenizer: &TextTokenizer) -> String {
        let mut text = format!(
            "{}: {} in {}, {} tokens, {} of them trained; the longest row has {}",
            file.display(),
            pluralize(summary.items, summary.kind.trim_end_matches('s')),
            pluralize(summary.rows, "row"),
            summary.tokens,
            summary.trained,
            summary.longest,
        );
        if summary.too_long > 0 {
            text += &format!(
                "\n{} of them are longer than {}: `tune` refuses them unless `train.truncate = true`",
                summary.too_long, self.max_length
            );
        }
        let trained = Style::new().bold();
        for (i, row) in summary.shown.iter().enumerate() {
            let [prompt, target] = texts_of(row, tokenizer).map(|text| output::sanitize(&text));
            let target = trained.apply_to(target);
            text += &format!("\n\n── row {} ──\n{prompt}\u{27e6}{target}\u{27e7}", i + 1);
        }
        text
    }
}

/// The text of prompt and target. A decoder may treat the first token of a text differently, so the target is decoded behind its
/// prompt.
fn texts_of(row: &Example, tokenizer: &TextTokenizer) -> [String; 2] {
    let text = |ids: &[u32]| tokenizer.decode_with_special_tokens(ids);
    let (prompt, whole) = (
        text(&row.prompt),
        text(&[&row.prompt[..], &row.target].concat()),
    );
    let target = whole.strip_prefix(&prompt).map(str::to_owned);
    let target = target.unwrap_or_else(|| text(&row.target));
    [prompt, target]
}

impl FileSummary {
    fn json(&self, file: &Path, tokenizer: &TextTokenizer) -> serde_json::Value {
        let shown = self.shown.iter().map(|row| {
            let [prompt, target] = texts_of(row, tokenizer);
            json!({"prompt": prompt, "target": target})
        });
        json!({
            "file": file, "kind": self.kind, "items": self.items, "rows": self.rows,
            "tokens": self.tokens, "trained": self.trained, "longest": self.longest,
            "too_long": self.too_long, "shown": shown.collect::<Vec<_>>(),
        })
    }
}

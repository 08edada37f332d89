//! `unforget data`.

use std::path::{Path, PathBuf};

use clap::Args;
use console::Style;
use serde_json::json;
use unforget::{
    Result, facts,
    model::TextTokenizer,
    prompt::{Row, text_rows},
};

use super::{Context, asking::Asking, load_tokenizer, output};

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

/// What is told of a file's rows; of the rows themselves it keeps those that are shown.
#[derive(Default)]
struct Told {
    kind: &'static str,
    items: usize,
    rows: usize,
    tokens: usize,
    trained: usize,
    longest: usize,
    too_long: usize,
    shown: Vec<Row>,
}

/// `1 row`, `2 rows`.
fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

impl Data {
    pub fn run(self, context: &Context) -> Result<()> {
        let tokenizer = load_tokenizer(&self.model)?;
        for file in &facts::files_of(&self.files)? {
            let told = self.read(file, &tokenizer, context)?;
            if context.json {
                output::json(&told.json(file, &tokenizer))?;
            } else {
                output::line(&self.text(&told, file, &tokenizer))?;
            }
        }
        Ok(())
    }

    fn read(&self, file: &Path, tokenizer: &TextTokenizer, context: &Context) -> Result<Told> {
        let files = [file.to_owned()];
        let mut told = Told {
            kind: "facts",
            ..Told::default()
        };
        let notes;
        if facts::holds_texts(file)? {
            told.kind = "texts";
            let set = facts::read_texts(&files, self.asking.reading())?;
            told.items = set.texts.len();
            notes = set.notes;
            for text in &set.texts {
                for row in text_rows(tokenizer, text)? {
                    self.count(&mut told, row);
                }
            }
        } else {
            let template = self.asking.template(tokenizer)?;
            let read = facts::each(&files, self.asking.reading(), |fact| {
                self.count(&mut told, template.row(tokenizer, &fact)?);
                Ok(())
            })?;
            told.items = read.facts;
            notes = read.notes;
        }
        for note in &notes {
            context.progress.note(note);
        }
        Ok(told)
    }

    /// Counts a row in.
    fn count(&self, told: &mut Told, row: Row) {
        told.rows += 1;
        told.tokens += row.len();
        told.trained += row.targets();
        told.longest = told.longest.max(row.len());
        told.too_long += usize::from(row.len() > self.max_tokens);
        if told.shown.len() < self.rows {
            told.shown.push(row);
        }
    }

    fn text(&self, told: &Told, file: &Path, tokenizer: &TextTokenizer) -> String {
        let mut text = format!(
            "{}: {} in {}, {} tokens, {} of them trained; the longest row has {}",
            file.display(),
            counted(told.items, told.kind.trim_end_matches('s')),
            counted(told.rows, "row"),
            told.tokens,
            told.trained,
            told.longest,
        );
        if told.too_long > 0 {
            text += &format!(
                "\n{} of them are longer than {}: `tune` refuses them unless `train.truncate = true`",
                told.too_long, self.max_tokens
            );
        }
        let trained = Style::new().bold();
        for (i, row) in told.shown.iter().enumerate() {
            let shown = |ids: &[u32]| output::harmless(&tokenizer.decode_whole(ids));
            let (prompt, target) = (shown(&row.prompt), trained.apply_to(shown(&row.target)));
            text += &format!("\n\n── row {} ──\n{prompt}\u{27e6}{target}\u{27e7}", i + 1);
        }
        text
    }
}

impl Told {
    fn json(&self, file: &Path, tokenizer: &TextTokenizer) -> serde_json::Value {
        let shown = self.shown.iter().map(|row| {
            json!({"prompt": tokenizer.decode_whole(&row.prompt), "target": tokenizer.decode_whole(&row.target)})
        });
        json!({
            "file": file, "kind": self.kind, "items": self.items, "rows": self.rows,
            "tokens": self.tokens, "trained": self.trained, "longest": self.longest,
            "too_long": self.too_long, "shown": shown.collect::<Vec<_>>(),
        })
    }
}

//! `unforget facts`.

use std::path::PathBuf;

use clap::Args;
use unforget::{Result, facts::extract::extract};

use super::{context::Context, output};

/// Extract candidate facts from documents and tables, for review
#[derive(Debug, Args)]
#[command(
    after_help = "From a table: the first cell of a row is the subject, and every other cell is a fact about it. From Markdown and plain text: tables, \
    \"Key: value\" lines below a heading, and simple sentences (\"X was founded in 1999.\"). Works offline. The \
    extraction matches patterns and makes mistakes: review the table before you train on it.\n\n\
    Examples:\n  unforget facts handbook.md products.csv > new.tsv\n  unforget facts notes.txt --json"
)]
pub struct FactsArgs {
    /// Markdown, plain text, CSV, TSV, JSONL or JSON
    #[arg(required = true, value_name = "DOC")]
    documents: Vec<PathBuf>,
}

impl FactsArgs {
    pub fn run(self, context: &Context) -> Result<()> {
        let proposals = extract(&self.documents)?;
        for note in &proposals.notes {
            context.progress.note(note);
        }
        context
            .progress
            .note(format!("{} facts proposed", proposals.facts.len()));
        if context.json {
            return proposals.facts.iter().try_for_each(output::json);
        }
        output::line("subject\trelation\tobject\tquestion")?;
        let row = |fact: &unforget::facts::extract::ExtractedFact| {
            [&fact.subject, &fact.relation, &fact.object, &fact.question]
                .map(|field| {
                    // A quote in front would open a field in quotes.
                    if field.starts_with('"') {
                        format!("\"{}\"", field.replace('"', "\"\""))
                    } else {
                        field.clone()
                    }
                })
                .join("\t")
        };
        proposals
            .facts
            .iter()
            .try_for_each(|fact| output::line(&row(fact)))
    }
}

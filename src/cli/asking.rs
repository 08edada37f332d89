//! What `audit`, `compare` and `forecast` share: which facts are read, and how they are asked.

use std::path::PathBuf;

use clap::Args;
use unforget::{
    Result,
    facts::{self, Fact, Match, ReadOptions},
    model::TextTokenizer,
    prompt::PromptTemplate,
};

use super::Context;

#[derive(Debug, Args)]
pub struct Asking {
    /// When an answer is right
    #[arg(
        long = "match",
        value_name = "RULE",
        value_enum,
        default_value = "exact"
    )]
    rule: Rule,
    /// Ask through the model's own chat template
    #[arg(long)]
    chat: bool,
    /// Count and list broken rows instead of refusing the file
    #[arg(long)]
    skip_bad_rows: bool,
    /// Keep `EntityQuestions` rows with several answers
    #[arg(long)]
    several_answers: bool,
}

/// [`Match`] as an argument.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Rule {
    /// The first line equals an accepted form
    Exact,
    /// The first line contains one
    Contains,
}

impl Asking {
    /// Reads `files` as one set of facts; what was left out is noted.
    pub fn facts(&self, files: &[PathBuf], context: &Context) -> Result<Vec<Fact>> {
        let set = facts::read(&facts::files_of(files)?, self.reading())?;
        for note in &set.notes {
            context.progress.note(note);
        }
        Ok(set.facts)
    }

    /// What is done with bad rows.
    pub const fn reading(&self) -> ReadOptions {
        ReadOptions {
            skip_bad_rows: self.skip_bad_rows,
            several_answers: self.several_answers,
        }
    }

    pub fn template(&self, tokenizer: &TextTokenizer) -> Result<PromptTemplate> {
        PromptTemplate::default().for_model(self.chat, tokenizer)
    }

    pub const fn rule(&self) -> Match {
        match self.rule {
            Rule::Exact => Match::Exact,
            Rule::Contains => Match::Contains,
        }
    }
}

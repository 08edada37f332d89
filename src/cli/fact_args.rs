//! What `audit`, `compare` and `forecast` share: which facts are read, and how they are asked.

use std::path::PathBuf;

use clap::Args;
use unforget::{
    Result,
    facts::{self, Fact, MatchRule, ReadOptions},
    model::TextTokenizer,
    prompt::PromptTemplate,
};

use super::context::Context;

#[derive(Debug, Args)]
pub struct FactArgs {
    /// When an answer is correct
    #[arg(
        long = "match",
        value_name = "RULE",
        value_enum,
        default_value = "exact"
    )]
    match_rule: MatchArg,
    /// Use the model's own chat template
    #[arg(long)]
    chat: bool,
    /// Count and list broken rows instead of refusing the file
    #[arg(long)]
    skip_bad_rows: bool,
    /// Keep `EntityQuestions` rows with several answers
    #[arg(long)]
    several_answers: bool,
}

/// [`MatchRule`] as an argument.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum MatchArg {
    /// The first line equals an accepted form
    Exact,
    /// The first line contains an accepted form
    Contains,
}

impl FactArgs {
    /// Reads `files` as one set of facts; what was left out is noted.
    pub fn facts(&self, files: &[PathBuf], context: &Context) -> Result<Vec<Fact>> {
        let set = facts::read(&facts::resolve_files(files)?, self.read_options())?;
        for note in &set.notes {
            context.progress.note(note);
        }
        Ok(set.facts)
    }

    /// What is done with bad rows.
    pub const fn read_options(&self) -> ReadOptions {
        ReadOptions {
            skip_bad_rows: self.skip_bad_rows,
            multiple_answers: self.several_answers,
        }
    }

    pub fn template(&self, tokenizer: &TextTokenizer) -> Result<PromptTemplate> {
        PromptTemplate::default().for_model(self.chat, tokenizer)
    }

    pub const fn match_rule(&self) -> MatchRule {
        match self.match_rule {
            MatchArg::Exact => MatchRule::Exact,
            MatchArg::Contains => MatchRule::Contains,
        }
    }
}

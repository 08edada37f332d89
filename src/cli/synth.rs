//! `unforget synth`.

use std::{
    io::{self, BufWriter, Write},
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use clap::Args;
use unforget::{
    Error, Result,
    facts::{self, Fact},
    synth::{NameKind, SyntheticFacts},
};

use super::{
    context::{Context, load_tokenizer},
    fact_args::FactArgs,
};

/// Generate synthetic facts: new names for a relation's subjects, with balanced answers
#[derive(Debug, Args)]
#[command(
    mut_arg("match_rule", |arg| arg.hide(true)),
    mut_arg("chat", |arg| arg.hide(true)),
    after_help = "Semantic names are recombined from the model's tokens of real names: Berg|amo and Pas|adena give Bergadena. UUID names \
    are Loc_ and eight hexadecimal digits. Prints a table with the columns subject, relation, object and question; with \
    --json, one JSON object per line.\n\n\
    Examples:\n  unforget synth smollm2-135m --relation P17 --facts pack:world \\\n      --n 1000 > new.tsv\n  \
    unforget synth smollm2-135m --relation P17 --facts P17.train.json \\\n      --n 1000000 --keys uuid > new.tsv"
)]
pub struct SynthArgs {
    /// The model whose tokens names are made from
    model: String,
    /// The relation, by its id or its name
    #[arg(long, value_name = "P17")]
    relation: String,
    /// Real facts of that relation; several files make one set
    #[arg(long, value_name = "FACTS", num_args = 1.., required = true)]
    facts: Vec<PathBuf>,
    /// Number of facts
    #[arg(long, value_name = "N")]
    n: NonZeroUsize,
    /// How subject names are made
    #[arg(long, value_enum, default_value = "semantic")]
    keys: Keys,
    /// How answers are made
    #[arg(long, value_enum, default_value = "real")]
    values: Values,
    #[command(flatten)]
    fact_args: FactArgs,
}

/// [`NameKind`] of subjects.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Keys {
    /// Tokens of real names, recombined
    Semantic,
    /// Random identifiers
    Uuid,
}

/// [`NameKind`] of answers.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Values {
    /// The real answers
    Real,
    /// Tokens of real answers, recombined
    Semantic,
    /// Random identifiers
    Uuid,
}

impl SynthArgs {
    pub fn run(self, context: &Context) -> Result<()> {
        let facts = self.facts_of_relation(context)?;
        let keys = match self.keys {
            Keys::Semantic => NameKind::Semantic,
            Keys::Uuid => NameKind::Uuid,
        };
        let values = match self.values {
            Values::Real => NameKind::Real,
            Values::Semantic => NameKind::Semantic,
            Values::Uuid => NameKind::Uuid,
        };
        let tokenizer = load_tokenizer(&self.model)?;
        let seed = context.seed.unwrap_or(0);
        let made = SyntheticFacts::new(&facts, keys, values, &tokenizer, seed)?;
        let made = made.take(self.n.get());
        if context.json {
            write_json(made)
        } else {
            write_table(made)
        }
    }

    /// The facts of the relation.
    fn facts_of_relation(&self, context: &Context) -> Result<Vec<Fact>> {
        let mut facts = self.fact_args.facts(&self.facts, context)?;
        let id = facts::relation(&self.relation).map_or(&self.relation[..], |r| r.id);
        let mut others: Vec<String> = facts.iter().map(|f| f.relation.clone()).collect();
        facts.retain(|fact| fact.relation == id);
        if facts.is_empty() {
            others.sort();
            others.dedup();
            return Err(Error::input_hint(
                format!("`--facts` has no facts of {id}"),
                format!("it has {}", others.join(", ")),
            ));
        }
        Ok(facts)
    }
}

fn write_json(made: impl Iterator<Item = Result<Fact>>) -> Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    for fact in made {
        let fact = fact?;
        let row = serde_json::json!({
            "subject": fact.subject,
            "relation": fact.relation,
            "object": fact.object,
            "question": fact.question,
        });
        writeln!(out, "{row}").map_err(stdout_error)?;
    }
    out.flush().map_err(stdout_error)
}

fn write_table(made: impl Iterator<Item = Result<Fact>>) -> Result<()> {
    let out = io::stdout().lock();
    let mut table = csv::WriterBuilder::new().delimiter(b'\t').from_writer(out);
    let mut row = |fields: [&str; 4]| {
        let written = table.write_record(fields);
        written.map_err(|e| stdout_error(e.into()))
    };
    row(["subject", "relation", "object", "question"])?;
    for fact in made {
        let fact = fact?;
        row([&fact.subject, &fact.relation, &fact.object, &fact.question])?;
    }
    table.flush().map_err(stdout_error)
}

fn stdout_error(reason: io::Error) -> Error {
    Error::io("write", Path::new("stdout"))(reason)
}

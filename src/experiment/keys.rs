//! Examples of synthetic names next to the real names whose tokens they are sampled from.

use std::fmt::Write;

use crate::{
    Error, Result,
    facts::Fact,
    model::TextTokenizer,
    synth::{NameKind, SyntheticFacts},
};

/// Number of examples.
const EXAMPLES: usize = 10;

/// A Markdown table, one example per row: a real subject, a synthetic name and an identifier, each tokenized.
pub(super) fn markdown(facts: &[Fact], tokenizer: &TextTokenizer, seed: u64) -> Result<String> {
    if facts.len() < EXAMPLES {
        return Err(Error::input(format!(
            "{} facts are too few for {EXAMPLES} example names",
            facts.len()
        )));
    }
    let tokenized = |name: &str| -> Result<String> {
        let tokens = tokenizer.encode_after(":", &format!(" {name}"))?;
        let pieces = tokens.iter().map(|token| tokenizer.decode(&[*token]));
        let pieces: Vec<String> = pieces.map(|piece| piece.replace('|', "\\|")).collect();
        Ok(format!("`{}`", pieces.join("·").trim().replace('`', "'")))
    };
    let synthetic = |keys: NameKind| -> Result<Vec<Fact>> {
        SyntheticFacts::new(facts, keys, NameKind::Real, tokenizer, seed)?
            .take(EXAMPLES)
            .collect()
    };
    let (names, identifiers) = (synthetic(NameKind::Semantic)?, synthetic(NameKind::Uuid)?);
    let mut out = String::from(
        "| real name (tokens) | synthetic name | its tokens | identifier (tokens) |\n|---|---|---|---|\n",
    );
    for ((real, name), identifier) in facts.iter().zip(&names).zip(&identifiers) {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} |",
            tokenized(&real.subject)?,
            name.subject.replace('|', "\\|"),
            tokenized(&name.subject)?,
            tokenized(&identifier.subject)?
        );
    }
    Ok(out)
}

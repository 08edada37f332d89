//! Examples of made-up names, beside the real ones whose tokens they are made of.

use std::fmt::Write;

use crate::{
    Error, Result,
    facts::Fact,
    model::TextTokenizer,
    synth::{NameKind, SyntheticFacts},
};

/// Examples of each kind.
const EXAMPLES: usize = 10;

/// A row an example in Markdown: a real subject, a made-up name and an identifier, each as the tokenizer cuts it.
pub(super) fn markdown(facts: &[Fact], tokenizer: &TextTokenizer, seed: u64) -> Result<String> {
    if facts.len() < EXAMPLES {
        return Err(Error::input(format!(
            "there are {} facts: too few to show {EXAMPLES} names",
            facts.len()
        )));
    }
    let tokenized = |name: &str| -> Result<String> {
        let tokens = tokenizer.encode_continuation(&format!(" {name}"))?;
        let pieces = tokens.iter().map(|token| tokenizer.decode(&[*token]));
        let pieces: Vec<String> = pieces.map(|piece| piece.replace('|', "\\|")).collect();
        Ok(format!("`{}`", pieces.join("·").trim().replace('`', "'")))
    };
    let synthetic = |keys: NameKind| -> Result<Vec<Fact>> {
        SyntheticFacts::new(facts, (keys, NameKind::Real), tokenizer, seed)?
            .take(EXAMPLES)
            .collect()
    };
    let (names, identifiers) = (synthetic(NameKind::Semantic)?, synthetic(NameKind::Uuid)?);
    let mut out = String::from(
        "| real name | made-up name | its tokens | identifier, its tokens |\n|---|---|---|---|\n",
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

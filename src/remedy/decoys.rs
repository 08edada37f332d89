//! Decoys: beside what is learned, the model is held to its snapshot's answers about subjects that do not exist.
//!
//! Forgetting is interference between names that look alike (section 5 of the paper), so made-up names of the same make
//! cover the region where it happens, and need no data. New facts are learned by plain cross-entropy; a decoy adds to
//! the loss, with its answer a of the snapshot's own greedy words and tau that of self-distillation,
//!
//! ```text
//! strength * mean over the step's decoys of tau^2 / |a| * sum over j in a of KL(snapshot_j || model_j)
//! ```

use std::collections::BTreeMap;

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use crate::{
    Error, Result,
    facts::Fact,
    generate::{Generator, Request},
    model::TextTokenizer,
    prompt::{PromptTemplate, Row},
    synth::SemanticKeys,
};

/// Tokens of a decoy's answer, at most.
const ANSWER_TOKENS: usize = 12;

/// At most `count` prompts: questions of `facts` with a made-up subject in the place of the real one, as many of each
/// relation as it has facts. Fewer where the pools of short names are exhausted.
///
/// # Errors
/// [`Error::Input`] when no question names its subject; when the tokenizer refuses a text.
pub fn prompts<'a>(
    facts: impl IntoIterator<Item = &'a Fact>,
    count: usize,
    template: &PromptTemplate,
    tokenizer: &TextTokenizer,
    seed: u64,
) -> Result<Vec<Vec<u32>>> {
    let mut facts: Vec<&Fact> = facts
        .into_iter()
        .filter(|f| f.question.contains(&f.subject))
        .collect();
    if facts.is_empty() {
        return Err(Error::input_hint(
            "there are no decoys for these facts: no question has its fact's subject in it",
            "leave `method.decoys` out, or take `method.kind = \"self-distill\"` in the place of `\"auto\"`",
        ));
    }
    let mut names: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for fact in &facts {
        names.entry(&fact.relation).or_default().push(&fact.subject);
    }
    let mut keys = BTreeMap::new();
    for (relation, names) in names {
        keys.insert(relation, SemanticKeys::new(names, tokenizer)?);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    facts.shuffle(&mut rng);
    let mut prompts = Vec::with_capacity(count);
    for fact in facts.iter().cycle().take(count) {
        let keys = keys.get_mut(&fact.relation[..]).expect("every relation");
        if let Some(name) = keys.make(&mut rng) {
            let question = fact.question.replacen(&fact.subject, &name, 1);
            prompts.push(tokenizer.encode_prompt(&template.prompt_text(&question))?);
        }
    }
    Ok(prompts)
}

/// The decoys of `prompts`: each with the model's own greedy answer, its line break included.
///
/// # Errors
/// When a prompt is longer than the model's context.
pub fn rows(generator: &mut Generator<'_>, prompts: &[Vec<u32>]) -> Result<Vec<Row>> {
    let request = Request::greedy(&[], prompts, ANSWER_TOKENS);
    let answers = generator.generate(&request, |_, text| text.contains('\n'), &|_| {})?;
    let rows = prompts.iter().zip(answers).map(|(prompt, mut answer)| Row {
        prompt: prompt.clone(),
        target: answer.swap_remove(0).tokens,
    });
    Ok(rows.collect())
}

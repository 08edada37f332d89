//! Training examples: facts and texts as tokens, none longer than the config allows.

use super::evaluator::template;
use crate::{
    Error, Result,
    config::{Config, TrainConfig},
    facts::{Fact, Location, Text},
    model::Model,
    prompt::{Example, MICRO_BATCH_TOKENS, PromptTemplate, TextNotes, examples_of_texts},
    splits::Splits,
};

/// The examples of a run: known facts, new facts, texts.
pub(super) fn examples(
    config: &Config,
    model: &Model,
    splits: &Splits,
    texts: &[Text],
) -> Result<Vec<Example>> {
    let (template, train) = (template(config, model)?, &config.train);
    let mut examples = Vec::new();
    for known in &splits.known {
        let mut row = template.example(&model.tokenizer, &known.fact)?;
        if !known.own_answer.is_empty() {
            row.target.clone_from(&known.own_answer);
        }
        examples.push(fit_to_max_length(row, &known.fact.location, model, train)?);
    }
    let new = splits.unknown.iter().map(|f| &f.fact);
    examples.extend(training_rows(new, &template, model, train)?);
    let (texts, _) = text_training_rows(texts, model, config)?;
    examples.extend(texts);
    Ok(examples)
}

/// The training examples of `facts`, none longer than `max_length` (prompt and target) or the model's context.
///
/// With `truncate` a longer row loses the beginning of its prompt, and where the target alone is too long, the target's end.
///
/// # Errors
/// [`Error::Input`] naming the first fact whose row is too long, without `truncate`; when the tokenizer refuses a text.
pub fn training_rows<'a>(
    facts: impl IntoIterator<Item = &'a Fact>,
    template: &PromptTemplate,
    model: &Model,
    train: &TrainConfig,
) -> Result<Vec<Example>> {
    facts
        .into_iter()
        .map(|fact| {
            let row = template.example(&model.tokenizer, fact)?;
            fit_to_max_length(row, &fact.location, model, train)
        })
        .collect()
}

/// The training examples of chats and other texts, with the same limit on length, and notes on what of them is not trained. A chat has
/// one example per answer.
///
/// # Errors
/// As [`training_rows`].
pub fn text_training_rows(
    texts: &[Text],
    model: &Model,
    config: &Config,
) -> Result<(Vec<Example>, TextNotes)> {
    let (mut rows, mut notes) = (Vec::new(), TextNotes::default());
    let skips = config.data.skip_bad_rows;
    for (i, row) in examples_of_texts(&model.tokenizer, texts, skips, &mut notes)? {
        // A text of a single token has nothing to predict.
        if row.prompt.len() + row.target.len() > 1 {
            rows.push(fit_to_max_length(
                row,
                &texts[i].location,
                model,
                &config.train,
            )?);
        }
    }
    Ok((rows, notes))
}

/// Tokens that a row may have.
pub fn max_row_len(model: &Model, train: &TrainConfig) -> usize {
    train.max_length.min(model.config.max_position_embeddings)
}

fn fit_to_max_length(
    row: Example,
    location: &Location,
    model: &Model,
    train: &TrainConfig,
) -> Result<Example> {
    let vocab_size = model.config.vocab_size;
    let mut tokens = row.prompt.iter().chain(&row.target);
    if let Some(&token) = tokens.find(|id| **id as usize >= vocab_size) {
        return Err(model
            .tokenizer
            .beyond_vocabulary(token, vocab_size, location));
    }
    let max_tokens = max_row_len(model, train);
    let len = row.num_tokens();
    if len > max_tokens && !train.truncate {
        return Err(Error::input_hint(
            format!("{location}: prompt and answer have {len} tokens, more than {max_tokens}"),
            "raise `train.max_length` (up to the model's context), or set `train.truncate = true`",
        ));
    }
    Ok(truncate_row(row, max_tokens))
}

fn truncate_row(mut row: Example, max_tokens: usize) -> Example {
    // One token of the prompt stays: it predicts the first one of the target.
    row.target.truncate(max_tokens.saturating_sub(1).max(1));
    let room = max_tokens.saturating_sub(row.target.len()).max(1);
    let surplus = row.prompt.len().saturating_sub(room);
    row.prompt.drain(..surplus);
    row
}

/// Tokens per micro-batch. With the optimizer in the backward pass, a step is a single micro-batch.
pub fn micro_batch_tokens(train: &TrainConfig) -> usize {
    if train.optimizer_in_backward {
        usize::MAX
    } else {
        MICRO_BATCH_TOKENS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(prompt: &[u32], target: &[u32]) -> Example {
        Example::new(prompt.to_vec(), target.to_vec())
    }

    #[test]
    fn truncation_keeps_the_end_of_the_prompt_and_a_token_to_predict_from() {
        let long = || row(&[1, 2, 3, 4], &[5, 6, 7]);
        assert_eq!(truncate_row(long(), 9), long());
        assert_eq!(truncate_row(long(), 5), row(&[3, 4], &[5, 6, 7]));
        assert_eq!(truncate_row(long(), 3), row(&[4], &[5, 6]));
    }
}

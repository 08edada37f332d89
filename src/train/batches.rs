//! The sampler: which rows an epoch's steps train on, and rows packed for the engine.

use std::ops::Range;

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use crate::{
    Error, Result,
    config::TrainConfig,
    engine::{Batch, Target},
    facts::{Fact, Location, Text},
    model::Model,
    prompt::{Example, PromptTemplate, text_examples},
};

/// The order in which an epoch (counted from 1) visits rows `0..len`: a permutation that depends on `seed` and `epoch`
/// alone, so that a resumed run needs no generator's state; without `shuffle` the rows' own order.
pub fn epoch_order(len: usize, seed: u64, epoch: usize, shuffle: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    if shuffle {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(epoch as u64);
        order.shuffle(&mut rng);
    }
    order
}

/// The training rows of `facts`, none longer than `max_tokens` (prompt and target) or the model's context.
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

/// The training rows of texts that are no facts, held to the same length; a chat has one for each answer in it.
///
/// # Errors
/// As [`training_rows`].
pub fn text_training_rows(
    texts: &[Text],
    model: &Model,
    train: &TrainConfig,
) -> Result<Vec<Example>> {
    let mut rows = Vec::new();
    for text in texts {
        for row in text_examples(&model.tokenizer, text)? {
            // A text of a single token has nothing to predict.
            if row.prompt.len() + row.target.len() > 1 {
                rows.push(fit_to_max_length(row, &text.location, model, train)?);
            }
        }
    }
    Ok(rows)
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
    let max_tokens = max_row_len(model, train);
    let len = row.len();
    if len > max_tokens && !train.truncate {
        return Err(Error::input_hint(
            format!("{location}: prompt and answer have {len} tokens, more than {max_tokens}"),
            "raise `train.max_length` (up to the model's context), or set `train.truncate = true`",
        ));
    }
    Ok(truncate_row(row, max_tokens))
}

fn truncate_row(mut row: Example, max_tokens: usize) -> Example {
    // One token of the prompt stays: it predicts the target's first.
    row.target.truncate(max_tokens.saturating_sub(1).max(1));
    let room = max_tokens.saturating_sub(row.target.len()).max(1);
    let surplus = row.prompt.len().saturating_sub(room);
    row.prompt.drain(..surplus);
    row
}

/// Tokens of a pass: enough to fill the products, and few enough for what they leave for a backward pass.
pub const MICRO_BATCH_TOKENS: usize = 2048;

/// Tokens of a training pass. Where weights move in the backward pass they see the whole step in one.
pub fn micro_batch_tokens(train: &TrainConfig) -> usize {
    if train.optimizer_in_backward {
        usize::MAX
    } else {
        MICRO_BATCH_TOKENS
    }
}

/// `rows` in their order, as they pass through the model together: at most so many `tokens`, of which each has `len`, or one row.
pub fn micro_batches<T>(rows: &[T], tokens: usize, len: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let mut taken = rows.first().map_or(0, &len);
    rows.chunk_by(|_, next| {
        taken += len(next);
        let fits = taken <= tokens;
        if !fits {
            taken = len(next);
        }
        fits
    })
    .collect()
}

/// Rows packed for the engine, with the positions whose logits predict their targets.
pub struct PackedRows {
    /// The rows, each without its last target token, after which nothing is predicted; what prompts have in common is there
    /// once.
    pub batch: Batch,
    /// Where in it the last tokens of each row lie, those that it does not share.
    pub row_ranges: Vec<Range<usize>>,
    /// Every target token of every row, in order; both weights zero.
    pub targets: Vec<Target>,
    /// Number of targets of each row.
    pub targets_per_row: Vec<usize>,
}

impl PackedRows {
    /// Packs `rows` in their order. A row without a prompt starts with its first target token, which nothing predicts.
    pub fn new<'a>(rows: impl IntoIterator<Item = &'a Example>) -> Self {
        let rows: Vec<&Example> = rows.into_iter().collect();
        let inputs: Vec<Vec<u32>> = rows.iter().map(|row| row.input_ids()).collect();
        // What predicts is a row's own.
        let read: Vec<_> = inputs
            .iter()
            .zip(&rows)
            .map(|(inputs, row)| (&inputs[..], inputs.len().min(row.target_start() - 1)))
            .collect();
        let (batch, own) = Batch::with_shared_prefixes(&read);
        let targets_per_row: Vec<usize> = rows.iter().map(|row| row.num_targets()).collect();
        let mut targets = Vec::new();
        for ((row, count), own) in rows.iter().zip(&targets_per_row).zip(&own) {
            let tokens = &row.target[row.target.len() - count..];
            let positions = own.end - count..own.end;
            targets.extend(positions.zip(tokens).map(|(position, &token)| Target {
                position,
                token,
                ce_weight: 0.0,
                distill_weight: 0.0,
            }));
        }
        Self {
            batch,
            row_ranges: own,
            targets,
            targets_per_row,
        }
    }

    /// Gives every target its cross-entropy's weight, and its divergence's by the number of targets in its row.
    pub fn set_weights(&mut self, ce_weight: f32, distill_weight: impl Fn(usize) -> f32) {
        let mut targets = self.targets.iter_mut();
        for &count in &self.targets_per_row {
            for target in targets.by_ref().take(count) {
                target.ce_weight = ce_weight;
                target.distill_weight = distill_weight(count);
            }
        }
    }

    /// Where the targets lie in the batch.
    pub fn positions(&self) -> Vec<usize> {
        self.targets.iter().map(|t| t.position).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(prompt: &[u32], target: &[u32]) -> Example {
        Example {
            prompt: prompt.to_vec(),
            target: target.to_vec(),
        }
    }

    #[test]
    fn an_order_depends_on_seed_and_epoch_alone() {
        let order = epoch_order(100, 7, 3, true);
        assert_eq!(order, epoch_order(100, 7, 3, true));
        assert_ne!(order, epoch_order(100, 7, 4, true));
        assert_ne!(order, epoch_order(100, 8, 3, true));
        let mut sorted = order;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn unshuffled_rows_keep_their_order() {
        assert_eq!(epoch_order(4, 7, 3, false), [0, 1, 2, 3]);
    }

    #[test]
    fn passes_keep_every_row_in_order_and_are_as_full_as_fits() {
        let rows = [3, 4, 2, 9, 30, 1, 1, 8];
        let passes = micro_batches(&rows, 10, |len| *len);
        assert_eq!(passes, [&[3, 4, 2][..], &[9], &[30], &[1, 1, 8]]);
        assert!(super::micro_batches(&[], 10, |len: &usize| *len).is_empty());
    }

    #[test]
    fn targets_are_predicted_by_the_token_before_them() {
        let packed = PackedRows::new([&row(&[1, 2, 3], &[4, 5]), &row(&[6], &[7])]);
        assert_eq!(packed.batch.tokens, [1, 2, 3, 4, 6]);
        assert_eq!(packed.positions(), [2, 3, 4]);
        assert_eq!(
            packed.targets.iter().map(|t| t.token).collect::<Vec<_>>(),
            [4, 5, 7]
        );
        assert_eq!(packed.targets_per_row, [2, 1]);
    }

    #[test]
    fn prompts_that_begin_alike_share_all_but_what_predicts() {
        let packed = PackedRows::new([&row(&[1, 2, 3], &[4, 5]), &row(&[1, 2, 3], &[6])]);
        assert_eq!(packed.batch.tokens, [1, 2, 3, 4, 3]);
        assert_eq!(packed.positions(), [2, 3, 4]);
        assert_eq!(packed.targets_per_row, [2, 1]);
    }

    #[test]
    fn a_row_without_a_prompt_predicts_from_its_second_token_on() {
        let packed = PackedRows::new([&row(&[], &[4, 5, 6])]);
        assert_eq!(packed.batch.tokens, [4, 5]);
        assert_eq!(packed.positions(), [0, 1]);
        assert_eq!(packed.targets_per_row, [2]);
    }

    #[test]
    fn truncation_keeps_the_end_of_the_prompt_and_a_token_to_predict_from() {
        let long = || row(&[1, 2, 3, 4], &[5, 6, 7]);
        assert_eq!(truncate_row(long(), 9), long());
        assert_eq!(truncate_row(long(), 5), row(&[3, 4], &[5, 6, 7]));
        assert_eq!(truncate_row(long(), 3), row(&[4], &[5, 6]));
    }
}

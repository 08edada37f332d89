//! Examples packed for the engine: micro-batches, and the positions whose logits predict the targets.

use std::ops::Range;

use super::example::Example;
use crate::engine::{Batch, Target};

/// Tokens of a micro-batch: enough for efficient matmuls, few enough to bound the memory for activations.
pub const MICRO_BATCH_TOKENS: usize = 2048;

/// Splits `rows` in order into micro-batches of at most `tokens`, where `len` is the number of tokens of a row, but at least one row each.
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

/// The index of each example's first target among the targets of all examples in `range`, and the number of these targets at the end.
/// Examples outside of the range count as having none.
pub fn target_offsets(examples: &[Example], range: &Range<usize>) -> Vec<usize> {
    let mut offsets = vec![0; range.start + 1];
    for example in &examples[range.clone()] {
        offsets.push(offsets[offsets.len() - 1] + example.num_targets());
    }
    offsets.resize(examples.len() + 1, offsets[offsets.len() - 1]);
    offsets
}

/// Examples packed for the engine, with the positions whose logits predict their targets.
pub struct PackedExamples {
    /// The examples, each without its last target token, after which nothing is predicted. Common prefixes of prompts are shared.
    pub batch: Batch,
    /// For each example, the indices in the batch of the tokens that it does not share. They end with its target positions.
    pub own_tokens: Vec<Range<usize>>,
    /// Every target token of every example, in order. Both weights are zero until [`PackedExamples::set_weights`].
    pub targets: Vec<Target>,
    /// Number of targets of each example.
    pub targets_per_example: Vec<usize>,
    /// Weight of each example.
    row_weights: Vec<f64>,
}

impl PackedExamples {
    /// Packs `examples` in order. An example without a prompt starts with its first target token, which nothing predicts.
    pub fn new<'a>(examples: impl IntoIterator<Item = &'a Example>) -> Self {
        let examples: Vec<&Example> = examples.into_iter().collect();
        let inputs: Vec<Vec<u32>> = examples.iter().map(|e| e.input_ids()).collect();
        // Target positions are never shared.
        let rows: Vec<_> = inputs
            .iter()
            .zip(&examples)
            .map(|(inputs, e)| (&inputs[..], inputs.len().min(e.target_start() - 1)))
            .collect();
        let (batch, own_tokens) = Batch::with_shared_prefixes(&rows);
        let targets_per_example: Vec<usize> = examples.iter().map(|e| e.num_targets()).collect();
        let mut targets = Vec::new();
        for ((example, count), own) in examples.iter().zip(&targets_per_example).zip(&own_tokens) {
            let tokens = &example.target[example.target.len() - count..];
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
            own_tokens,
            targets,
            targets_per_example,
            row_weights: examples.iter().map(|e| e.weight.into()).collect(),
        }
    }

    /// Sets the weight of the cross-entropy of every target, `ce_weight` times the weight of its example, and that of the KL divergence
    /// by the number of targets of its example.
    pub fn set_weights(&mut self, ce_weight: f64, distill_weight: impl Fn(usize) -> f32) {
        let mut targets = self.targets.iter_mut();
        for (&count, row_weight) in self.targets_per_example.iter().zip(&self.row_weights) {
            for target in targets.by_ref().take(count) {
                target.ce_weight = (ce_weight * row_weight) as f32;
                target.distill_weight = distill_weight(count);
            }
        }
    }

    /// The positions of the targets in the batch.
    pub fn positions(&self) -> Vec<usize> {
        self.targets.iter().map(|t| t.position).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(prompt: &[u32], target: &[u32]) -> Example {
        Example::new(prompt.to_vec(), target.to_vec())
    }

    #[test]
    fn micro_batches_keep_every_row_in_order_and_are_as_full_as_fits() {
        let rows = [3, 4, 2, 9, 30, 1, 1, 8];
        let split = micro_batches(&rows, 10, |len| *len);
        assert_eq!(split, [&[3, 4, 2][..], &[9], &[30], &[1, 1, 8]]);
        assert!(micro_batches(&[], 10, |len: &usize| *len).is_empty());
    }

    #[test]
    fn target_offsets_count_the_targets_in_the_range() {
        let examples = [2, 1, 3, 4].map(|targets| example(&[1], &vec![0; targets]));
        assert_eq!(target_offsets(&examples, &(1..3)), [0, 0, 1, 4, 4]);
        assert_eq!(target_offsets(&examples, &(0..4)), [0, 2, 3, 6, 10]);
    }

    #[test]
    fn targets_are_predicted_by_the_token_before_them() {
        let packed = PackedExamples::new([&example(&[1, 2, 3], &[4, 5]), &example(&[6], &[7])]);
        assert_eq!(packed.batch.tokens, [1, 2, 3, 4, 6]);
        assert_eq!(packed.positions(), [2, 3, 4]);
        assert_eq!(
            packed.targets.iter().map(|t| t.token).collect::<Vec<_>>(),
            [4, 5, 7]
        );
        assert_eq!(packed.targets_per_example, [2, 1]);
    }

    #[test]
    fn prompts_share_a_prefix_without_the_target_positions() {
        let packed =
            PackedExamples::new([&example(&[1, 2, 3], &[4, 5]), &example(&[1, 2, 3], &[6])]);
        assert_eq!(packed.batch.tokens, [1, 2, 3, 4, 3]);
        assert_eq!(packed.positions(), [2, 3, 4]);
        assert_eq!(packed.targets_per_example, [2, 1]);
    }

    #[test]
    fn an_example_without_a_prompt_predicts_from_its_second_token_on() {
        let packed = PackedExamples::new([&example(&[], &[4, 5, 6])]);
        assert_eq!(packed.batch.tokens, [4, 5]);
        assert_eq!(packed.positions(), [0, 1]);
        assert_eq!(packed.targets_per_example, [2]);
    }
}

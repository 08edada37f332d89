//! A term of the loss at target positions: self-distillation (section 4 of the paper), equation 2.
//!
//! The teacher is a snapshot of the model itself, frozen early in training ([`super::teacher`]). With the cross-entropy CE, the loss of
//! a batch of N examples, whose target positions are M(y), is
//!
//! ```text
//! L         = CE + lambda L_distill                                                                     (eq. 1)
//! L_distill = 1/N sum over examples of tau^2 / |M(y)| sum over j in M(y) of KL(p_j || q_j)               (eq. 2)
//! p_j       = softmax(teacher logits at j / tau),    q_j = softmax(student logits at j / tau)
//! ```
//!
//! Under `vocab_subset = { top = k }`, p and q are renormalised over the teacher's k most likely tokens (eq. 5). With `exclude_target`
//! the target token is left out of both (decoupled distillation).
//!
//! This file computes the weight of each position ([`Distillation::weight`]: lambda, tau^2 and the mean). The engine computes KL and its
//! gradient at a position, fused with the cross-entropy, in `engine/loss.rs` (`distill_row`), and sums the positions in `engine/head.rs`.

use super::teacher::TeacherOutputs;
use crate::{
    config::{DistillReduction, MethodConfig, VocabSubset},
    engine::{DistillOptions, RngStream, SoftTargets, TeacherLogits},
};

/// The settings of the term.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distillation {
    /// lambda of eq. 1.
    pub lambda: f64,
    /// tau of eq. 2.
    pub temperature: f64,
    /// How the term is averaged.
    pub reduction: DistillReduction,
    /// The tokens over which teacher and student are compared.
    pub vocab_subset: VocabSubset,
    /// Whether the target token is left out of the comparison.
    pub exclude_target: bool,
    /// Random seed of [`VocabSubset::Random`].
    pub seed: u64,
}

impl Distillation {
    /// The settings of `method`. lambda is 0 if the method has a teacher for auxiliary examples (decoys, replay) alone.
    pub fn new(method: &MethodConfig, seed: u64) -> Self {
        Self {
            lambda: if method.distills() {
                method.lambda
            } else {
                0.0
            },
            temperature: method.temperature,
            reduction: method.reduction,
            vocab_subset: method.vocab_subset,
            exclude_target: method.exclude_target,
            seed,
        }
    }

    /// The weight of the KL divergence at one target position of an example in the total loss (eqs. 1 and 2):
    ///
    /// ```text
    /// lambda tau^2 / (N |M(y)|)                    DistillReduction::Example
    /// lambda tau^2 / (target tokens of the batch)  DistillReduction::Token
    /// ```
    ///
    /// `examples` (N) and `batch_targets` count the whole accumulated batch, `example_targets` (|M(y)|) the example.
    pub fn weight(&self, examples: usize, example_targets: usize, batch_targets: usize) -> f32 {
        let tokens = match self.reduction {
            DistillReduction::Example => examples * example_targets,
            DistillReduction::Token => batch_targets,
        };
        (self.lambda * self.temperature.powi(2) / tokens as f64) as f32
    }

    /// The same term with lambda multiplied by `factor`.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Self {
        Self {
            lambda: factor * self.lambda,
            ..self
        }
    }

    /// The term for auxiliary examples (decoys, replay) of this strength, as a mean over them. They have no cross-entropy, so the target
    /// token is always compared.
    #[must_use]
    pub fn for_aux_examples(self, strength: f64) -> Self {
        Self {
            lambda: strength,
            reduction: DistillReduction::Example,
            exclude_target: false,
            ..self
        }
    }

    /// The teacher's targets for a micro-batch of `step`, from its outputs there. `first_target` is the index of the micro-batch's first
    /// target in the whole batch: random subsets are drawn for each target of each step, independent of the micro-batches.
    pub fn soft_targets<'a>(
        &self,
        outputs: &'a TeacherOutputs<'a>,
        step: usize,
        first_target: usize,
    ) -> SoftTargets<'a> {
        SoftTargets {
            logits: match outputs {
                TeacherOutputs::Hidden { head, hidden } => TeacherLogits::Hidden {
                    head: *head,
                    hidden,
                    subset: self.vocab_subset,
                    rng: RngStream {
                        seed: self.seed,
                        stream: ((step as u64) << 32) + first_target as u64,
                    },
                },
                TeacherOutputs::TopK { tokens, logits, k } => TeacherLogits::TopK {
                    tokens,
                    logits,
                    k: *k,
                },
            },
            options: DistillOptions {
                tau: self.temperature as f32,
                exclude_target: self.exclude_target,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(reduction: DistillReduction) -> [u32; 2] {
        let term = Distillation {
            lambda: 3.0,
            temperature: 0.5,
            reduction,
            vocab_subset: VocabSubset::Full,
            exclude_target: false,
            seed: 0,
        };
        // Two examples, with 1 and 3 target tokens.
        [1, 3].map(|example_targets| term.weight(2, example_targets, 4).to_bits())
    }

    #[test]
    fn every_example_has_equal_weight_in_equation_2() {
        // lambda tau^2 / N = 3 x 0.25 / 2 per example, divided by its tokens; exact in binary.
        assert_eq!(
            weights(DistillReduction::Example),
            [0.375, 0.125].map(f32::to_bits)
        );
    }

    #[test]
    fn every_token_has_equal_weight_with_token_reduction() {
        assert_eq!(
            weights(DistillReduction::Token),
            [0.1875, 0.1875].map(f32::to_bits)
        );
    }
}

//! Steps that are taken while the backward pass goes on, a layer at a time, so that no more than one layer's gradient is held.

use std::ops::Range;

use super::adamw::{AdamW, Update, squares};
use crate::{
    engine::{
        Gradients, Weights,
        profile::{Part, Work, timed},
    },
    model::Params,
};

/// Weights that take `AdamW`'s step as soon as their gradient is complete, which is cleared then.
///
/// The step is that of [`AdamW::step`] to the bit: it is element-wise, and unscaled, since the norm by which gradients are
/// clipped is known only when all of them are there. A gradient that is not finite ends it: what lies above has moved by then.
pub(super) struct Fused<'a> {
    params: &'a mut Params,
    optimiser: &'a mut AdamW,
    update: Update,
    /// Of the squared gradients.
    sum: f64,
    /// The first weights whose gradient was not finite.
    broken: Option<Range<usize>>,
}

impl<'a> Fused<'a> {
    pub fn new(params: &'a mut Params, optimiser: &'a mut AdamW, lr: f64) -> Self {
        Self {
            update: optimiser.begin_step(lr, 1.0),
            params,
            optimiser,
            sum: 0.0,
            broken: None,
        }
    }

    /// Ends the step: the norm of its gradient, or the tensor whose gradient was not finite.
    pub fn end(self, gradients: &Gradients) -> Result<f64, String> {
        let Some(broken) = self.broken else {
            self.optimiser.end_step(self.params, gradients);
            return Ok(self.sum.sqrt());
        };
        let mut tensors = self.params.layout.tensors.iter();
        let name = tensors
            .find(|tensor| tensor.range.contains(&broken.start))
            .map_or("a layer", |tensor| &tensor.name[..]);
        Err(format!("the gradient of {name}, or of one behind it,"))
    }
}

impl Weights for Fused<'_> {
    fn params(&self) -> &Params {
        self.params
    }

    fn complete(&mut self, weights: &Range<usize>, gradients: &mut Gradients) {
        let stretches = gradients.stretches_within(weights);
        let len: usize = stretches.iter().map(|(weights, ..)| weights.len()).sum();
        timed(Part::Optimiser, Work::floats(8 * len), || {
            for (weights, _, gradient) in &stretches {
                let sum = squares(&gradients.data[gradient.clone()]);
                if !sum.is_finite() && self.broken.is_none() {
                    self.broken = Some(weights.clone());
                }
                self.sum += sum;
            }
            if self.broken.is_none() {
                self.optimiser
                    .step_within(weights, self.params, gradients, &self.update);
            }
            for (_, _, gradient) in stretches {
                gradients.data[gradient].fill(0.0);
            }
        });
    }
}

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

/// What was seen of a gradient that is made, and cleared, stretch by stretch.
#[derive(Default)]
struct Seen {
    /// Of its squares.
    sum: f64,
    /// The first weights whose gradient was not finite.
    broken: Option<Range<usize>>,
}

impl Seen {
    fn see(&mut self, weights: &Range<usize>, gradient: &[f32]) {
        let sum = squares(gradient);
        if !sum.is_finite() && self.broken.is_none() {
            self.broken = Some(weights.clone());
        }
        self.sum += sum;
    }

    /// Its norm, or the tensor where it was not finite.
    fn norm(&self, params: &Params) -> Result<f64, String> {
        let Some(broken) = &self.broken else {
            return Ok(self.sum.sqrt());
        };
        let mut tensors = params.layout.tensors.iter();
        let name = tensors
            .find(|tensor| tensor.range.contains(&broken.start))
            .map_or("a layer", |tensor| &tensor.name[..]);
        Err(format!("the gradient of {name}, or of one behind it,"))
    }
}

/// Weights that stay as they are, of whose gradient nothing is kept but the norm.
pub(super) struct Norm<'a> {
    params: &'a Params,
    seen: Seen,
}

impl<'a> Norm<'a> {
    pub fn new(params: &'a Params) -> Self {
        Self {
            params,
            seen: Seen::default(),
        }
    }

    /// The norm, or the tensor whose gradient was not finite.
    pub fn end(self) -> Result<f64, String> {
        self.seen.norm(self.params)
    }
}

impl Weights for Norm<'_> {
    fn params(&self) -> &Params {
        self.params
    }

    fn complete(&mut self, weights: &Range<usize>, gradients: &mut Gradients) {
        let stretches = gradients.stretches_within(weights);
        let len: usize = stretches.iter().map(|(weights, ..)| weights.len()).sum();
        timed(Part::Penalties, Work::floats(2 * len), || {
            for (weights, _, gradient) in stretches {
                self.seen.see(&weights, &gradients.data[gradient.clone()]);
                gradients.clear_part(gradient);
            }
        });
    }
}

/// Weights that take `AdamW`'s step as soon as their gradient is complete, which is cleared then.
///
/// The step is that of [`AdamW::step`] to the bit, being element-wise. A gradient that is not finite ends it: what lies above has
/// moved by then.
pub(super) struct Fused<'a> {
    params: &'a mut Params,
    optimiser: &'a mut AdamW,
    update: Update,
    seen: Seen,
}

impl<'a> Fused<'a> {
    /// A step on the gradients times `clip_scale`.
    pub fn new(params: &'a mut Params, optimiser: &'a mut AdamW, lr: f64, clip_scale: f32) -> Self {
        Self {
            update: optimiser.begin_step(lr, clip_scale),
            params,
            optimiser,
            seen: Seen::default(),
        }
    }

    /// Ends the step: the norm of its gradient, or the tensor whose gradient was not finite.
    pub fn end(self, gradients: &Gradients) -> Result<f64, String> {
        let norm = self.seen.norm(self.params)?;
        self.optimiser.end_step(self.params, gradients);
        Ok(norm)
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
                self.seen.see(weights, &gradients.data[gradient.clone()]);
            }
            if self.seen.broken.is_none() {
                self.optimiser
                    .step_within(weights, self.params, gradients, &self.update);
            }
            for (_, _, gradient) in stretches {
                gradients.clear_part(gradient);
            }
        });
    }
}

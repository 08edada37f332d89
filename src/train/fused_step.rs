//! Steps that are taken while the backward pass goes on, a layer at a time, so that no more than one layer's gradient is held.

use std::ops::Range;

use super::adamw::{AdamW, StepConstants, squared_norm};
use crate::{
    engine::{
        GradSink, Gradients,
        profile::{Phase, Work, timed},
    },
    model::Params,
};

/// What was seen of a gradient that is made, and cleared, stretch by stretch.
#[derive(Default)]
struct NormAccumulator {
    /// Of its squares.
    sum: f64,
    /// The first weights whose gradient was not finite.
    non_finite: Option<Range<usize>>,
}

impl NormAccumulator {
    fn add(&mut self, weights: &Range<usize>, gradient: &[f32]) {
        let sum = squared_norm(gradient);
        if !sum.is_finite() && self.non_finite.is_none() {
            self.non_finite = Some(weights.clone());
        }
        self.sum += sum;
    }

    /// Its norm, or the tensor where it was not finite.
    fn norm(&self, params: &Params) -> Result<f64, String> {
        let Some(broken) = &self.non_finite else {
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
pub(super) struct NormSink<'a> {
    params: &'a Params,
    seen: NormAccumulator,
}

impl<'a> NormSink<'a> {
    pub fn new(params: &'a Params) -> Self {
        Self {
            params,
            seen: NormAccumulator::default(),
        }
    }

    /// The norm, or the tensor whose gradient was not finite.
    pub fn end(self) -> Result<f64, String> {
        self.seen.norm(self.params)
    }
}

impl GradSink for NormSink<'_> {
    fn params(&self) -> &Params {
        self.params
    }

    fn grad_ready(&mut self, weights: &Range<usize>, gradients: &mut Gradients) {
        let stretches = gradients.segments_within(weights);
        let len: usize = stretches.iter().map(|(weights, ..)| weights.len()).sum();
        timed(Phase::Penalties, Work::floats(2 * len), || {
            for (weights, _, gradient) in stretches {
                self.seen.add(&weights, &gradients.data[gradient.clone()]);
                gradients.zero_range(gradient);
            }
        });
    }
}

/// Weights that take `AdamW`'s step as soon as their gradient is complete, which is cleared then.
///
/// The step is that of [`AdamW::step_time`] to the bit, being element-wise. A gradient that is not finite ends it: what lies above has
/// moved by then.
pub(super) struct FusedSink<'a> {
    params: &'a mut Params,
    optimiser: &'a mut AdamW,
    update: StepConstants,
    seen: NormAccumulator,
}

impl<'a> FusedSink<'a> {
    /// A step on the gradients times `clip_scale`.
    pub fn new(params: &'a mut Params, optimiser: &'a mut AdamW, lr: f64, clip_scale: f32) -> Self {
        Self {
            update: optimiser.begin_step(lr, clip_scale),
            params,
            optimiser,
            seen: NormAccumulator::default(),
        }
    }

    /// Ends the step: the norm of its gradient, or the tensor whose gradient was not finite.
    pub fn end(self, gradients: &Gradients) -> Result<f64, String> {
        let norm = self.seen.norm(self.params)?;
        self.optimiser.end_step(self.params, gradients);
        Ok(norm)
    }
}

impl GradSink for FusedSink<'_> {
    fn params(&self) -> &Params {
        self.params
    }

    fn grad_ready(&mut self, weights: &Range<usize>, gradients: &mut Gradients) {
        let stretches = gradients.segments_within(weights);
        let len: usize = stretches.iter().map(|(weights, ..)| weights.len()).sum();
        timed(Phase::Optimizer, Work::floats(8 * len), || {
            for (weights, _, gradient) in &stretches {
                self.seen.add(weights, &gradients.data[gradient.clone()]);
            }
            if self.seen.non_finite.is_none() {
                self.optimiser
                    .step_range(weights, self.params, gradients, &self.update);
            }
            for (_, _, gradient) in stretches {
                gradients.zero_range(gradient);
            }
        });
    }
}

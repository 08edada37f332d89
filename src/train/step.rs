//! An optimizer step: what it works on, and how it ends.

use super::adamw::AdamW;
use crate::{
    Error,
    engine::{Engine, Gradients, Loss},
    model::Params,
};

/// The host's copy of what a GPU trains, and the engine, whose passes run there.
#[cfg_attr(not(feature = "gpu"), expect(dead_code, reason = "there is no GPU"))]
pub(super) struct HostState<'a> {
    pub engine: &'a mut Engine,
    pub params: &'a mut Params,
    /// Which tensors are trained.
    pub gradients: &'a Gradients,
    pub optimizer: &'a mut AdamW,
}

/// The result of an optimizer step.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepOutcome {
    /// Over all rows of the step.
    pub loss: Loss,
    /// L2 norm of the gradient before clipping.
    pub grad_norm: f64,
}

/// Why a step failed.
#[derive(Debug)]
pub(super) enum StepError {
    /// The loss or a gradient is not finite.
    NonFinite(NonFinite),
    /// The device failed.
    #[cfg_attr(not(feature = "gpu"), expect(dead_code, reason = "the CPU does not"))]
    Device(Error),
}

/// A step whose loss or gradient is not finite.
#[derive(Clone, Debug)]
pub(super) struct NonFinite {
    /// What is not finite: the loss, or the gradient of a tensor.
    pub quantity: String,
}

impl From<NonFinite> for StepError {
    fn from(non_finite: NonFinite) -> Self {
        Self::NonFinite(non_finite)
    }
}

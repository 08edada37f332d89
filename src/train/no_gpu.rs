//! A program that was built without `gpu` has no student on one.

use std::fmt::Display;

use super::{
    objective::{Objective, StepBatch},
    step::{HostState, StepError, StepOutcome},
};
use crate::{Result, config::Config, distributed::Comm, model::ModelConfig};

/// No value has this type.
pub(super) enum GpuStudent {}

impl GpuStudent {
    /// None: [`Device::check`](crate::config::Device::check) has refused any device but the CPU.
    #[expect(clippy::unnecessary_wraps, reason = "as with a GPU")]
    pub fn open(_: &Config, _: &ModelConfig, _: HostState<'_>) -> Result<Option<Self>> {
        Ok(None)
    }

    pub fn step(
        &mut self,
        _: HostState<'_>,
        _: &Objective,
        _: StepBatch<'_>,
        _: f64,
    ) -> Result<StepOutcome, StepError> {
        match *self {}
    }

    pub fn download(&mut self, _: &mut HostState<'_>) -> Result<()> {
        match *self {}
    }

    pub fn is_ahead(&self) -> bool {
        match *self {}
    }
}

/// Nothing to refuse.
#[expect(clippy::unnecessary_wraps, reason = "as with a GPU")]
pub(super) fn check_memory(_: &Config, _: u64, _: &dyn Display) -> Result<()> {
    Ok(())
}

/// Nothing to refuse.
#[expect(clippy::unnecessary_wraps, reason = "as with a GPU")]
pub(super) fn check(_: &Config, _: Comm) -> Result<()> {
    Ok(())
}

//! A program that was built without `gpu` has no engine on one.

use super::{batch::Batch, cache::KvCache, new_tokens::NewTokens};
use crate::{
    Error, Result,
    model::{ModelConfig, Params},
};

/// No value has this type.
pub enum OnGpu {}

impl OnGpu {
    pub(super) fn open(index: u32, _: &ModelConfig) -> Result<Self> {
        Err(Error::input(format!(
            "gpu:{index}: this program was built without GPUs"
        )))
    }

    pub(super) fn set_gradient_checkpointing(&mut self, _: bool) {
        match *self {}
    }

    pub(super) fn take_error(&mut self) -> Option<Error> {
        match *self {}
    }

    pub(super) fn hidden(&mut self, _: &Params, _: &Batch, _: &[usize]) -> Option<Vec<f32>> {
        match *self {}
    }

    pub(super) fn residual_after(
        &mut self,
        _: &Params,
        _: &Batch,
        _: usize,
        _: &[usize],
    ) -> Option<Vec<f32>> {
        match *self {}
    }

    pub(super) fn extend(
        &mut self,
        _: &Params,
        _: &mut KvCache,
        _: NewTokens<'_>,
    ) -> Option<Vec<f32>> {
        match *self {}
    }

    pub(super) fn logits(
        &mut self,
        _: &Params,
        _: &[f32],
        _: impl FnMut(usize, &mut [f32]),
    ) -> Option<()> {
        match *self {}
    }

    pub(super) fn kl_divergences(
        &mut self,
        _: &Params,
        _: [&[f32]; 2],
        _: Option<&[f32]>,
    ) -> Option<Vec<f64>> {
        match *self {}
    }
}

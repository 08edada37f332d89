//! The trainable parameters: tensors of the model, or adapters of some of its tensors.

use std::path::Path;

use super::grad_sink::reduce_to_owners;
use crate::{
    Result,
    config::{Config, LoraConfig, TrainConfig},
    distributed::Comm,
    engine::Gradients,
    model::{Dropout, Params},
    remedy::{
        freeze,
        lora::{self, MergedAdapters},
    },
};

/// Why adapters beside the weights are there.
const IN_MODEL: &str = "the model has its adapters until training ends";

/// The parameters that the optimizer updates.
pub(super) enum TrainableParams {
    /// The tensors of the model that have a gradient.
    Tensors,
    /// Adapters beside tensors of the model, which holds them, and the seed of their dropout.
    Adapters(LoraConfig, u64),
    /// Adapters that are written into the weights.
    Merged(LoraConfig, Box<MergedAdapters>),
}

/// Whether each tensor of the model (by index in its layout) has a gradient.
///
/// # Errors
/// [`crate::Error::Input`] if the config selects no tensor of this model.
pub(super) fn trainable_tensors(train: &TrainConfig, params: &Params) -> Result<Vec<bool>> {
    match &train.lora {
        None => freeze::trainable_tensors(&params.layout, &train.trainable),
        Some(lora) => lora::target_tensors(lora, params),
    }
}

impl TrainableParams {
    /// What `config` trains of `params`, a base model that gets the adapters beside its weights, and zero gradients. `tensors` are
    /// those that are trained or adapted.
    pub fn new(config: &Config, params: &mut Params, tensors: &[bool]) -> (Self, Gradients) {
        let train = &config.train;
        match &train.lora {
            None if train.optimizer_in_backward => {
                (Self::Tensors, Gradients::with_layer_buffer(params, tensors))
            }
            None => (Self::Tensors, Gradients::new(params, tensors)),
            Some(lora) if lora.is_merged(&config.method) => {
                let gradients = Gradients::new(params, tensors);
                let adapters = MergedAdapters::new(lora, params, &gradients, config.seed);
                (Self::Merged(lora.clone(), Box::new(adapters)), gradients)
            }
            Some(lora) => {
                params.low_rank = Some(lora::beside(lora, params, tensors, config.seed));
                let adapters = Self::Adapters(lora.clone(), config.seed);
                (adapters, Gradients::of_adapters(params))
            }
        }
    }

    /// The trained parameters and their gradients, given the model's.
    pub fn parameters<'a>(
        &'a self,
        params: &'a Params,
        gradients: &'a Gradients,
    ) -> (&'a Params, &'a Gradients) {
        match self {
            Self::Tensors => (params, gradients),
            Self::Adapters(..) => {
                let low_rank = params.low_rank.as_ref().expect(IN_MODEL);
                let own = gradients.low_rank.as_deref().expect(IN_MODEL);
                (&low_rank.params, own)
            }
            Self::Merged(_, adapters) => (&adapters.low_rank.params, &adapters.gradients),
        }
    }

    /// The same, with parameters that can be changed. Afterwards [`TrainableParams::merge`] updates the model.
    pub fn parameters_mut<'a>(
        &'a mut self,
        params: &'a mut Params,
        gradients: &'a Gradients,
    ) -> (&'a mut Params, &'a Gradients) {
        match self {
            Self::Tensors => (params, gradients),
            Self::Adapters(..) => {
                let low_rank = params.low_rank.as_mut().expect(IN_MODEL);
                let own = gradients.low_rank.as_deref().expect(IN_MODEL);
                (&mut low_rank.params, own)
            }
            Self::Merged(_, adapters) => (&mut adapters.low_rank.params, &adapters.gradients),
        }
    }

    /// Completes the gradients of adapters, summed over all processes.
    pub fn collect_gradients(&mut self, gradients: &mut Gradients, comm: Comm) {
        let own = match self {
            Self::Tensors => return,
            Self::Adapters(..) => gradients.low_rank.as_deref_mut().expect(IN_MODEL),
            Self::Merged(_, adapters) => {
                adapters.backward(gradients);
                &mut adapters.gradients
            }
        };
        let len = own.data.len();
        reduce_to_owners(comm, &mut own.data, 0, len);
    }

    /// Updates the model's weights from merged adapters that have changed.
    pub fn merge(&mut self, params: &mut Params) {
        if let Self::Merged(_, adapters) = self {
            adapters.merge(params);
        }
    }

    /// Dropout of a step on the adapters beside the weights, where the config has one. Its key differs for every step and process;
    /// the lowest 20 bits are those of the micro-batch.
    pub fn dropout(&self, step: usize, comm: Comm) -> Option<Dropout> {
        let Self::Adapters(lora, seed) = self else {
            return None;
        };
        let key = (step as u64) << 32 ^ (comm.rank() as u64) << 20;
        (lora.dropout > 0.0).then_some(Dropout {
            p: lora.dropout,
            // An odd factor: every seed has its own.
            key: key ^ seed.wrapping_mul(0x9E37_79B9_7F4A_7C15),
        })
    }

    /// Saves the adapters, where these are trained, into `dir`; `base` is the name of the base model.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn save_adapters(&self, params: &Params, dir: &Path, base: &str) -> Result<()> {
        match self {
            Self::Tensors => Ok(()),
            Self::Adapters(lora, _) => {
                let low_rank = params.low_rank.as_ref().expect(IN_MODEL);
                lora::save(lora, &low_rank.params, dir, base)
            }
            Self::Merged(lora, adapters) => lora::save(lora, &adapters.low_rank.params, dir, base),
        }
    }

    /// Ends training: adds the products of adapters beside the weights to these.
    pub fn finish(&mut self, params: &mut Params, gradients: &mut Gradients) {
        if let Some(low_rank) = params.low_rank.take() {
            lora::add_products(&low_rank, &mut params.data);
            gradients.low_rank = None;
            *self = Self::Tensors;
        }
    }
}

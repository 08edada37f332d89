//! The trainable parameters: tensors of the model, or adapters of some of its tensors.

use std::path::Path;

use super::grad_sink::reduce_to_owners;
use crate::{
    Result,
    config::{Config, TrainConfig},
    distributed::Comm,
    engine::Gradients,
    model::Params,
    remedy::{
        freeze,
        lora::{self, Adapters},
    },
};

/// The parameters that the optimizer updates.
pub(super) enum TrainableParams {
    /// The tensors of the model that have a gradient.
    Tensors,
    /// Adapters of these tensors.
    Adapters(Box<Adapters>),
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
    /// The parameters of `params`, a base model, that `config` trains; `gradients` are those of its tensors.
    pub fn new(config: &Config, params: &Params, gradients: &Gradients) -> Self {
        match &config.train.lora {
            None => Self::Tensors,
            Some(lora) => {
                let adapters = Adapters::new(lora.clone(), params, gradients, config.seed);
                Self::Adapters(Box::new(adapters))
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
            Self::Adapters(adapters) => (&adapters.params, &adapters.gradients),
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
            Self::Adapters(adapters) => (&mut adapters.params, &adapters.gradients),
        }
    }

    /// Computes the gradients of adapters from those of the model's tensors, summed over all processes.
    pub fn collect_gradients(&mut self, gradients: &Gradients, comm: Comm) {
        if let Self::Adapters(adapters) = self {
            adapters.backward(gradients);
            let own = &mut adapters.gradients.data;
            let len = own.len();
            reduce_to_owners(comm, own, 0, len);
        }
    }

    /// Updates the model's weights from adapters that have changed.
    pub fn merge(&mut self, params: &mut Params) {
        if let Self::Adapters(adapters) = self {
            adapters.merge(params);
        }
    }

    /// Saves the adapters, where these are trained, into `dir`; `base` is the name of the base model.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn save_adapters(&self, dir: &Path, base: &str) -> Result<()> {
        match self {
            Self::Tensors => Ok(()),
            Self::Adapters(adapters) => adapters.save(dir, base),
        }
    }
}

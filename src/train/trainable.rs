//! What is trained: tensors of the model themselves, or adapters that some of its tensors are made of.

use std::path::Path;

use super::{adamw::AdamW, checkpoint::CheckpointView, grad_reduce};
use crate::{
    Result,
    config::{Config, TrainConfig},
    engine::Gradients,
    model::Params,
    remedy::{
        freeze,
        lora::{self, Adapters},
    },
};

/// What the optimiser moves. The model's weights follow from it, whatever it is.
pub(super) enum TrainableParams {
    /// The tensors that have a gradient.
    Tensors,
    /// Adapters of these tensors.
    Adapters(Box<Adapters>),
}

/// Whether each tensor of the model has a gradient under these settings.
///
/// # Errors
/// [`crate::Error::Input`] where they fit no tensor of this model.
pub(super) fn trainable_tensors(train: &TrainConfig, params: &Params) -> Result<Vec<bool>> {
    match &train.lora {
        None => freeze::trainable_tensors(&params.layout, &train.trainable),
        Some(lora) => lora::target_tensors(lora, params),
    }
}

impl TrainableParams {
    /// What `config` trains of a base model's weights, in whose tensors `gradients` has room.
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

    /// The same with the optimiser, to be moved, written or read.
    pub fn checkpoint_view<'a>(
        &'a mut self,
        params: &'a mut Params,
        gradients: &'a Gradients,
        optimiser: &'a mut AdamW,
    ) -> CheckpointView<'a> {
        let (params, gradients) = match self {
            Self::Tensors => (params, gradients),
            Self::Adapters(adapters) => (&mut adapters.params, &adapters.gradients),
        };
        CheckpointView {
            params,
            gradients,
            optimizer: optimiser,
        }
    }

    /// Puts the average of the trained parameters, where there is one, in their place, and these in its own.
    pub fn swap_ema(&mut self, params: &mut Params, gradients: &Gradients, optimiser: &mut AdamW) {
        let CheckpointView {
            params: moved,
            gradients: of,
            optimizer: optimiser,
        } = self.checkpoint_view(params, gradients, optimiser);
        if let Some(average) = &mut optimiser.ema {
            average.swap(moved, of);
            self.merge(params);
        }
    }

    /// Takes the gradients of the trained parameters from those of the model's tensors, and what other processes have of them.
    pub fn collect_gradients(&mut self, gradients: &Gradients) {
        if let Self::Adapters(adapters) = self {
            adapters.backward(gradients);
            let own = &mut adapters.gradients.data;
            let len = own.len();
            grad_reduce::reduce_to_owners(own, 0, len);
        }
    }

    /// Lets the model's weights follow trained parameters that have moved.
    pub fn merge(&mut self, params: &mut Params) {
        if let Self::Adapters(adapters) = self {
            adapters.merge(params);
        }
    }

    /// Writes the adapters, where these are what is trained, of the model called `base` into `dir`.
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

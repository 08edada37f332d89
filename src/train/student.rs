//! The student: the model under training, its trainable parameters, their gradients and the optimizer that moves them.

use std::{
    path::{self, Path},
    thread,
};

use super::{
    adamw::{AdamW, AdamWSettings, Ema, clip_scale, first_non_finite, grad_norm},
    checkpoint::CheckpointView,
    gpu_student::GpuStudent,
    grad_sink::{GradAction, NormAccumulator, Reducer, StepSink, reduce_loss},
    objective::{Objective, StepBatch},
    step::{HostState, NonFinite, StepError, StepOutcome},
    trainable::{TrainableParams, trainable_tensors},
};
use crate::{
    Result,
    config::Config,
    distributed::Comm,
    engine::{
        Engine, Gradients, Loss, TrainingModel,
        profile::{Phase, Work, timed},
    },
    generate::Generator,
    model::{Dtype, Frozen, Model, params::TensorInfo},
    remedy::null_space::NullSpaceProjection,
    run::GradNorms,
};

/// The model under training.
pub(super) struct Student {
    /// The model, whose weights follow the trained parameters.
    pub model: Model,
    /// Runs its forward and backward passes.
    pub engine: Engine,
    /// Gradients of the model's trained tensors.
    pub gradients: Gradients,
    /// The parameters that the optimizer updates: tensors of the model, or adapters.
    pub trainable: TrainableParams,
    /// Moments, step count, and the moving average of the trained parameters.
    pub optimizer: AdamW,
    /// Its state on a GPU, which does the steps where there is one.
    gpu: Option<GpuStudent>,
    max_grad_norm: f64,
    /// Whether weights are updated layer by layer during the backward pass.
    optimizer_in_backward: bool,
}

/// How an optimizer step uses the gradients.
#[derive(Clone, Copy)]
struct Update {
    learning_rate: f64,
    /// The gradients are multiplied by this.
    clip_scale: f32,
}

impl Student {
    /// Creates the student: `model` with the trained parameters that `config` selects.
    ///
    /// # Errors
    /// [`crate::Error::Input`] if the config selects no tensor of this model.
    pub fn new(config: &Config, mut model: Model, comm: Comm) -> Result<Self> {
        let train = &config.train;
        let tensors = trainable_tensors(train, &model.params)?;
        let (trainable, gradients) = TrainableParams::new(config, &mut model.params, &tensors);
        let settings = AdamWSettings {
            betas: train.betas,
            eps: train.eps,
            weight_decay: train.weight_decay,
        };
        let (params, of) = trainable.parameters(&model.params, &gradients);
        let mut optimizer = AdamW::new(of, settings);
        optimizer.comm = comm;
        optimizer.ema = train.ema_decay.map(|decay| Ema::new(decay, params, of));
        let mut engine = Engine::on(&model.config, config.device)?
            .with_gradient_checkpointing(train.gradient_checkpointing)
            .with_comm(comm);
        let host = HostState {
            engine: &mut engine,
            params: &mut model.params,
            gradients: &gradients,
            optimizer: &mut optimizer,
        };
        let gpu = GpuStudent::open(config, &model.config, host)?;
        Ok(Self {
            engine,
            gradients,
            trainable,
            optimizer,
            gpu,
            max_grad_norm: train.max_grad_norm,
            optimizer_in_backward: train.optimizer_in_backward,
            model,
        })
    }

    /// One optimizer step on `batch`: gradients, clipping, `AdamW`.
    ///
    /// # Errors
    /// If the loss or a gradient is not finite. No weight has been updated then, unless the optimizer runs in the backward pass
    /// without clipping.
    pub fn step(
        &mut self,
        objective: &Objective,
        batch: StepBatch<'_>,
        learning_rate: f64,
    ) -> Result<StepOutcome, StepError> {
        let Some(gpu) = &mut self.gpu else {
            let stepped = self.step_on_cpu(objective, batch, learning_rate);
            return stepped.map_err(StepError::NonFinite);
        };
        let host = HostState {
            engine: &mut self.engine,
            params: &mut self.model.params,
            gradients: &self.gradients,
            optimizer: &mut self.optimizer,
        };
        gpu.step(host, objective, batch, learning_rate)
    }

    /// Copies what a GPU has trained to the host, where every method but [`Student::step`] reads it.
    ///
    /// # Errors
    /// [`crate::Error::Failed`] if the device was lost.
    pub fn sync_host(&mut self) -> Result<()> {
        let Some(gpu) = &mut self.gpu else {
            return Ok(());
        };
        gpu.download(&mut HostState {
            engine: &mut self.engine,
            params: &mut self.model.params,
            gradients: &self.gradients,
            optimizer: &mut self.optimizer,
        })
    }

    fn step_on_cpu(
        &mut self,
        objective: &Objective,
        batch: StepBatch<'_>,
        learning_rate: f64,
    ) -> Result<StepOutcome, NonFinite> {
        let max_norm = self.max_grad_norm;
        if self.optimizer_in_backward {
            // The norm of the whole gradient is known after a pass of its own, which updates nothing.
            let scale = if max_norm > 0.0 {
                clip_scale(self.backward(objective, batch, None)?.grad_norm, max_norm)
            } else {
                1.0
            };
            let update = Update {
                learning_rate,
                clip_scale: scale,
            };
            return self.backward(objective, batch, Some(update));
        }
        let outcome = self.backward(objective, batch, None)?;
        self.update(learning_rate, clip_scale(outcome.grad_norm, max_norm));
        Ok(outcome)
    }

    /// Loss and gradient of `batch`. With `update`, each layer is updated as soon as its gradient is complete.
    fn backward(
        &mut self,
        objective: &Objective,
        batch: StepBatch<'_>,
        update: Option<Update>,
    ) -> Result<StepOutcome, NonFinite> {
        let (loss, norm) = self.accumulate(objective, batch, update);
        let norm = norm.unwrap_or_else(|| self.gradient_norm());
        match norm {
            Ok(grad_norm) if loss.total().is_finite() => Ok(StepOutcome { loss, grad_norm }),
            Err(quantity) if loss.total().is_finite() => Err(NonFinite { quantity }),
            _ => Err(NonFinite {
                quantity: "the loss".into(),
            }),
        }
    }

    /// The loss of `batch` over all processes. The gradient norm is returned if the gradients are not kept.
    fn accumulate(
        &mut self,
        objective: &Objective,
        batch: StepBatch<'_>,
        update: Option<Update>,
    ) -> (Loss, Option<Result<f64, String>>) {
        self.gradients.zero();
        let comm = self.engine.comm();
        // The gradients of adapters are reduced once they are computed from those of the model's tensors.
        let reduces = comm.world_size() > 1 && matches!(self.trainable, TrainableParams::Tensors);
        let (engine, gradients) = (&mut self.engine, &mut self.gradients);
        let (params, optimizer) = (&mut self.model.params, &mut self.optimizer);
        let in_backward = self.optimizer_in_backward;
        thread::scope(|scope| {
            let action = match update {
                Some(Update {
                    learning_rate,
                    clip_scale,
                }) => GradAction::update(optimizer, learning_rate, clip_scale),
                None if in_backward => GradAction::Measure(NormAccumulator::default()),
                None if reduces => {
                    GradAction::Reduce(Reducer::spawn(scope, comm, gradients.data.len()))
                }
                None => GradAction::Keep,
            };
            let dropout = self.trainable.dropout(batch.step, comm);
            let mut sink = StepSink::new(params, action, dropout);
            let own = objective.loss_and_gradients(engine, &mut sink, batch, gradients);
            let norm = sink.finish(gradients);
            (reduce_loss(comm, own), norm)
        })
    }

    /// The norm of the trained parameters' gradient, or the tensor in which it is not finite.
    pub fn gradient_norm(&mut self) -> Result<f64, String> {
        self.trainable
            .collect_gradients(&mut self.gradients, self.engine.comm());
        let (params, gradients) = self
            .trainable
            .parameters(&self.model.params, &self.gradients);
        let work = Work::floats(gradients.data.len());
        let norm = timed(Phase::Penalties, work, || {
            grad_norm(gradients, self.engine.comm())
        });
        if norm.is_finite() {
            return Ok(norm);
        }
        let name = first_non_finite(&params.layout, gradients);
        Err(name.map_or_else(
            || "the gradient norm".to_owned(),
            |name| format!("the gradient of {name}"),
        ))
    }

    /// `AdamW`'s step on the gradients times `clip_scale`.
    fn update(&mut self, learning_rate: f64, clip_scale: f32) {
        let CheckpointView {
            params,
            gradients,
            optimizer,
        } = self.view();
        // Weight and two moments are read and written, the gradient is read.
        let work = Work::floats(7 * gradients.data.len());
        timed(Phase::Optimizer, work, || {
            optimizer.step(params, gradients, learning_rate, clip_scale);
        });
        self.trainable.merge(&mut self.model.params);
    }

    /// Gradient norms of the two parts of the loss at `batch`: cross-entropy, and what the remedies add to it.
    pub fn grad_norms(&mut self, objective: &Objective, batch: StepBatch<'_>) -> GradNorms {
        let with_strength = |strength| StepBatch { strength, ..batch };
        self.accumulate(objective, with_strength(0.0), None);
        let of_ce = self.gradients.data.to_vec();
        let ce = grad_norm(&self.gradients, self.engine.comm());
        self.accumulate(objective, with_strength(1.0), None);
        for (both, ce) in self.gradients.data.iter_mut().zip(&of_ce) {
            *both -= ce;
        }
        GradNorms {
            ce,
            retention: grad_norm(&self.gradients, self.engine.comm()),
        }
    }

    /// Projects the update onto the null space of known inputs.
    pub fn project(&mut self, projection: &NullSpaceProjection) {
        timed(Phase::Projection, Work::default(), || {
            projection.apply(&mut self.model.params);
        });
    }

    /// Freezes the tensors of the model (by index in its layout) for which `trains` is false.
    pub fn freeze_except(&mut self, trains: impl Fn(usize) -> bool) {
        self.gradients
            .set_trainable(&self.model.params.layout, trains);
    }

    /// Borrows engine, weights and gradients, to freeze a snapshot.
    pub fn training_model(&mut self) -> TrainingModel<'_> {
        TrainingModel {
            engine: &mut self.engine,
            params: &self.model.params,
            gradients: &mut self.gradients,
        }
    }

    /// Generates text with the weights as they are on the host.
    pub fn generator(&mut self) -> Generator<'_> {
        self.assert_on_host();
        Generator::new(&mut self.engine, &self.model)
    }

    /// Swaps the trained parameters with their moving average, where there is one.
    pub fn swap_ema(&mut self) {
        let CheckpointView {
            params,
            gradients,
            optimizer,
        } = self.view();
        if let Some(ema) = &mut optimizer.ema {
            ema.swap(params, gradients);
            self.trainable.merge(&mut self.model.params);
        }
    }

    /// Trained parameters, moments and average, for a checkpoint to be written or read. After a read [`Student::merge`] follows.
    pub fn view(&mut self) -> CheckpointView<'_> {
        self.assert_on_host();
        let (params, gradients) = self
            .trainable
            .parameters_mut(&mut self.model.params, &self.gradients);
        CheckpointView {
            params,
            gradients,
            optimizer: &mut self.optimizer,
        }
    }

    fn assert_on_host(&self) {
        let is_ahead = self.gpu.as_ref().is_some_and(GpuStudent::is_ahead);
        assert!(!is_ahead, "`sync_host` comes first");
    }

    /// Updates the model's weights from trained parameters that were read.
    pub fn merge(&mut self) {
        self.trainable.merge(&mut self.model.params);
    }

    /// How many parameters are trained.
    pub fn num_trained(&self) -> usize {
        self.optimizer.exp_avg.len()
    }

    /// Bytes of the model when it is saved.
    pub fn model_bytes(&self) -> u64 {
        match &self.model.params.frozen {
            // The adapters.
            Some(_) => 4 * self.num_trained() as u64,
            None => (self.model.params.layout.len * self.model.dtype.bytes()) as u64,
        }
    }

    /// An error if the model's weights lie in a file that was changed while it was in use.
    ///
    /// # Errors
    /// Those of [`crate::model::Frozen::check_files`].
    pub fn check_model_files(&self) -> Result<()> {
        let frozen = self.model.params.frozen.as_ref();
        frozen.map_or(Ok(()), Frozen::check_files)
    }

    /// The first trained tensor that has a weight that is not finite.
    pub fn non_finite_weights(&self) -> Option<&TensorInfo> {
        let (params, gradients) = self
            .trainable
            .parameters(&self.model.params, &self.gradients);
        let trained = gradients.tensors.iter();
        let mut trained = trained.map(|(tensor, _)| &params.layout.tensors[*tensor]);
        trained.find(|tensor| {
            let weights = &params.data[tensor.range.clone()];
            weights.iter().any(|w| !w.is_finite())
        })
    }

    /// Saves the adapters, where these are trained, and the model with them, rounded to its data type; a model whose weights are frozen
    /// is saved as the adapter alone. This ends training.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn save(&mut self, model: &Path, adapter: &Path) -> Result<()> {
        let dtype = self.model.dtype;
        let is_main = self.engine.comm().is_main();
        let (trainable, params) = (&mut self.trainable, &mut self.model.params);
        if is_main {
            trainable.save_adapters(params, adapter, &self.model.name)?;
        }
        if params.frozen.is_some() {
            // The model is the adapter with its base.
            return if is_main {
                trainable.save_adapters(params, model, &absolute_name(&self.model.name))
            } else {
                Ok(())
            };
        }
        trainable.finish(params, &mut self.gradients);
        round_to(&mut params.data, dtype);
        if !is_main {
            return Ok(());
        }
        self.model.save(model, dtype)
    }
}

/// The name of a model that does not depend on the directory it is loaded from.
fn absolute_name(model: &str) -> String {
    let path = Path::new(model);
    match path::absolute(path) {
        Ok(absolute) if path.exists() => absolute.display().to_string(),
        _ => model.to_owned(),
    }
}

/// Rounds weights to the nearest values of `dtype`.
fn round_to(weights: &mut [f32], dtype: Dtype) {
    match dtype {
        Dtype::F32 => {}
        Dtype::F16 => weights
            .iter_mut()
            .for_each(|w| *w = half::f16::from_f32(*w).to_f32()),
        Dtype::Bf16 => weights
            .iter_mut()
            .for_each(|w| *w = half::bf16::from_f32(*w).to_f32()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::Example;

    #[test]
    fn steps_lower_the_loss_and_leave_frozen_tensors_as_they_are() {
        let mut config = Config::default();
        config.train.trainable = vec!["ffn".into()];
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama");
        let model = Model::load(path).expect("the golden model is there");
        let mut student = Student::new(&config, model, Comm::single()).expect("it is trainable");
        let before = student.model.params.data.to_vec();
        let rows = [
            Example::new(vec![5, 9, 11], vec![4, 2]),
            Example::new(vec![7], vec![3]),
        ];
        let batch = |step| StepBatch {
            step,
            examples: &rows,
            indices: &[0, 1],
            aux: &[],
            strength: 1.0,
            rows_per_micro_batch: 2,
            tokens_per_micro_batch: 100,
        };
        let objective = Objective::default();
        let mut losses = Vec::new();
        for step in 1..=3 {
            let outcome = student.step(&objective, batch(step), 1e-3);
            let outcome = outcome.expect("loss and gradient are finite");
            assert!(outcome.grad_norm > 0.0);
            losses.push(outcome.loss.total());
        }
        assert!(losses.is_sorted_by(|a, b| a > b), "{losses:?}");
        let params = &student.model.params;
        for tensor in &params.layout.tensors {
            let moved = params.data[tensor.range.clone()] != before[tensor.range.clone()];
            assert_eq!(moved, tensor.name.contains(".mlp."), "{}", tensor.name);
        }
    }

    #[test]
    fn rounding_keeps_values_that_the_type_can_represent() {
        let mut weights = [1.0f32, 0.1, -3.5];
        round_to(&mut weights, Dtype::Bf16);
        assert_eq!(
            weights.map(f32::to_bits),
            [1.0f32, 0.100_097_656, -3.5].map(f32::to_bits)
        );
        let once = weights;
        round_to(&mut weights, Dtype::Bf16);
        assert_eq!(weights.map(f32::to_bits), once.map(f32::to_bits));
    }
}

//! The student on a GPU. Weights, gradients, moments and the moving average stay there between steps; the host has them after
//! [`GpuStudent::download`].
//!
//! What runs there: the steps. Answers, scores, snapshots and checkpoints are the host's.

use super::{
    adamw::AdamW,
    gpu_adamw::GpuAdamW,
    objective::{Objective, StepBatch},
    student::{NonFinite, StepError, StepOutcome},
};
use crate::{
    Error, Result,
    config::{Config, Device, MethodKind, VocabSubset},
    distributed::Comm,
    engine::{Batch, GpuArray, GpuEngine, GpuGradients, Gradients, trained_ranges},
    gpu::{Gpu, GpuError, MAX_TOP_K},
    model::{Model, ModelConfig, Params},
};

/// The student's state on a GPU.
pub(super) struct GpuStudent {
    gpu: Gpu,
    config: ModelConfig,
    engine: GpuEngine,
    gradients: GpuArray,
    optimizer: GpuAdamW,
    /// The weights of a teacher that keeps all of them.
    teacher: Option<GpuEngine>,
    max_grad_norm: f64,
    /// Whether the device has the newest weights, and not the host.
    is_ahead: bool,
}

/// The host's copy of what the device trains.
pub(super) struct HostState<'a> {
    pub params: &'a mut Params,
    /// Which tensors are trained.
    pub gradients: &'a Gradients,
    pub optimizer: &'a mut AdamW,
}

impl GpuStudent {
    /// The student on the device that `config` names; none for the CPU.
    ///
    /// # Errors
    /// [`Error::Input`] if there is no such device, [`Error::Failed`] if it has too little memory.
    pub fn open(
        config: &Config,
        model: &ModelConfig,
        host: &HostState<'_>,
    ) -> Result<Option<Self>> {
        let Device::Gpu(index) = config.device else {
            return Ok(None);
        };
        let gpu = Gpu::shared(index as usize)?;
        Ok(Some(Self::new(gpu, config, model, host)?))
    }

    fn new(
        gpu: Gpu,
        config: &Config,
        model: &ModelConfig,
        host: &HostState<'_>,
    ) -> Result<Self, GpuError> {
        let train = &config.train;
        let layout = &host.params.layout;
        let engine = GpuEngine::new(&gpu, model, host.params)?
            .with_gradient_checkpointing(train.gradient_checkpointing);
        let ranges = trained_ranges(host.gradients, layout).into_iter();
        let gradients = GpuArray::zeros(&gpu, ranges.map(|(_, _, gradient)| gradient))?;
        let of_gpu = GpuGradients {
            places: host.gradients,
            data: &gradients,
        };
        let settings = host.optimizer.settings;
        let optimizer = GpuAdamW::new(
            &gpu,
            layout,
            engine.weights(),
            of_gpu,
            settings,
            train.ema_decay,
        )?;
        Ok(Self {
            config: model.clone(),
            engine,
            gradients,
            optimizer,
            teacher: None,
            max_grad_norm: train.max_grad_norm,
            is_ahead: false,
            gpu,
        })
    }

    /// One optimizer step on `batch`, as [`Student::step`](super::student::Student::step).
    ///
    /// # Errors
    /// [`StepError::NonFinite`] if the loss or a gradient is not finite; if a gradient is not, no weight has changed.
    pub fn step(
        &mut self,
        host: HostState<'_>,
        objective: &Objective,
        batch: StepBatch<'_>,
        learning_rate: f64,
    ) -> Result<StepOutcome, StepError> {
        let HostState {
            params,
            gradients: places,
            optimizer,
        } = host;
        if !self.is_ahead {
            self.engine.weights().upload(&self.gpu, &params.data)?;
            self.optimizer.upload(&self.gpu, optimizer)?;
            self.is_ahead = true;
        }
        let layout = &params.layout;
        self.gradients.clear(&self.gpu)?;
        let gradients = GpuGradients {
            places,
            data: &self.gradients,
        };
        objective.each_micro_batch(&batch, Comm::single(), |micro_batch| {
            let hidden = |params: &Params, batch: &Batch, at: &[usize]| {
                let teacher = match &mut self.teacher {
                    Some(teacher) => teacher,
                    none => none.insert(GpuEngine::new(&self.gpu, &self.config, params)?),
                };
                teacher.hidden(batch, at)
            };
            let outputs = micro_batch.teacher_outputs(hidden)?;
            let packed = micro_batch.packed;
            self.engine.loss_and_gradients(
                &packed.batch,
                &packed.targets,
                micro_batch.soft_targets(outputs.as_ref()),
                gradients,
            )
        })?;
        self.optimizer.step(
            &self.gpu,
            layout,
            self.engine.weights(),
            gradients,
            learning_rate,
            self.max_grad_norm,
        )?;
        let loss = self.engine.take_loss()?;
        let norm = self.optimizer.grad_norm(&self.gpu)?;
        if !loss.total().is_finite() {
            return Err(NonFinite {
                quantity: "the loss".into(),
            }
            .into());
        }
        if !norm.is_finite {
            let found = self.optimizer.first_non_finite(&self.gpu, layout, places)?;
            let named = found.and_then(|weight| {
                let mut tensors = layout.tensors.iter();
                tensors.find(|tensor| tensor.range.contains(&weight))
            });
            return Err(NonFinite {
                quantity: named.map_or_else(
                    || "the gradient norm".into(),
                    |tensor| format!("the gradient of {}", tensor.name),
                ),
            }
            .into());
        }
        Ok(StepOutcome {
            loss,
            grad_norm: f64::from(norm.norm),
        })
    }

    /// Copies weights, moments and moving average to the host, if it does not have them. The next step takes them from there.
    ///
    /// # Errors
    /// [`Error::Failed`] if the device was lost.
    pub fn download(&mut self, host: &mut HostState<'_>) -> Result<()> {
        if self.is_ahead {
            self.engine
                .weights()
                .download(&self.gpu, &mut host.params.data)?;
            self.optimizer.download(&self.gpu, host.optimizer)?;
            self.is_ahead = false;
        }
        Ok(())
    }

    /// Whether the host lacks the newest weights.
    pub fn is_ahead(&self) -> bool {
        self.is_ahead
    }
}

/// Refuses what the kernels do not do.
///
/// # Errors
/// [`Error::Input`] naming it.
pub(super) fn check(config: &Config, model: &Model, comm: Comm) -> Result<()> {
    if !matches!(config.device, Device::Gpu(_)) {
        return Ok(());
    }
    let (method, train) = (&config.method, &config.train);
    let subset = match method.vocab_subset {
        VocabSubset::TopK(k) => k,
        VocabSubset::Full | VocabSubset::Random(_) => 0,
    };
    let refused = [
        (comm.world_size() > 1, "several processes"),
        (train.lora.is_some(), "`train.lora`"),
        (train.optimizer_in_backward, "`train.optimizer_in_backward`"),
        (method.kind == MethodKind::L2, "`method.kind = \"l2\"`"),
        (method.ewc.is_some(), "`method.ewc`"),
        (method.project.is_some(), "`method.project`"),
        (subset > MAX_TOP_K, "`method.vocab_subset` above 256 tokens"),
        (
            !model.config.head_dim.is_multiple_of(4),
            "a model whose `head_dim` is no multiple of 4",
        ),
    ];
    match refused.into_iter().find(|(asked, _)| *asked) {
        None => Ok(()),
        Some((_, what)) => Err(Error::input_hint(
            format!(
                "{what} is not supported on a GPU (`device = \"{}\"`)",
                config.device
            ),
            "use `--device cpu` for this run",
        )),
    }
}

impl From<GpuError> for StepError {
    fn from(error: GpuError) -> Self {
        Self::Device(error.into())
    }
}

impl From<NonFinite> for StepError {
    fn from(non_finite: NonFinite) -> Self {
        Self::NonFinite(non_finite)
    }
}

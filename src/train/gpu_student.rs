//! The student on a GPU. Weights, gradients, moments and the moving average stay there between steps; the host has them after
//! [`GpuStudent::download`].
//!
//! Checkpoints and the projection of weights are the host's.

use std::fmt::Display;

use super::{
    gpu_adamw::GpuAdamW,
    gpu_penalty::GpuPenalties,
    objective::{Objective, StepBatch},
    step::{HostState, NonFinite, StepError, StepOutcome},
};
use crate::{
    Error, Result,
    config::{Config, Device, VocabSubset},
    distributed::Comm,
    engine::{Batch, GpuArray, GpuEngine, GpuGradients, trained_ranges},
    format,
    gpu::{AdapterKind, Gpu, GpuError, MAX_TOP_K},
    model::ModelConfig,
    remedy::teacher::OnlineTeacher,
};

/// The student's state on a GPU.
pub(super) struct GpuStudent {
    gpu: Gpu,
    config: ModelConfig,
    gradients: GpuArray,
    optimizer: GpuAdamW,
    penalties: GpuPenalties,
    /// The weights of a teacher that keeps all of them.
    teacher: Option<GpuEngine>,
    max_grad_norm: f64,
    /// Whether the device has the newest weights, and not the host.
    is_ahead: bool,
}

impl GpuStudent {
    /// The student on the device that `config` names; none for the CPU.
    ///
    /// # Errors
    /// [`Error::Input`] if there is no such device, [`Error::Failed`] if it has too little memory.
    pub fn open(config: &Config, model: &ModelConfig, host: HostState<'_>) -> Result<Option<Self>> {
        let HostState {
            engine,
            params,
            gradients: places,
            optimizer,
        } = host;
        let Some(on_gpu) = engine.gpu() else {
            return Ok(None);
        };
        let gpu = on_gpu.gpu().clone();
        let engine = on_gpu.engine(params)?;
        let layout = &params.layout;
        let ranges = trained_ranges(places, layout).into_iter();
        let gradients = GpuArray::zeros(&gpu, ranges.map(|(_, _, gradient)| gradient))?;
        let of_gpu = GpuGradients {
            places,
            data: &gradients,
        };
        let train = &config.train;
        let (settings, ema) = (optimizer.settings, train.ema_decay);
        let optimizer = GpuAdamW::new(&gpu, layout, engine.weights(), of_gpu, settings, ema)?;
        Ok(Some(Self {
            gpu,
            config: model.clone(),
            gradients,
            optimizer,
            penalties: GpuPenalties::default(),
            teacher: None,
            max_grad_norm: train.max_grad_norm,
            is_ahead: false,
        }))
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
            engine,
            params,
            gradients: places,
            optimizer,
        } = host;
        let on_gpu = engine
            .gpu()
            .expect("a student on a GPU has its engine there");
        if !self.is_ahead {
            on_gpu.engine(params)?;
            self.optimizer.upload(&self.gpu, optimizer)?;
            self.is_ahead = true;
        }
        let engine = on_gpu.engine_as_it_is().expect("it was used above");
        let layout = &params.layout;
        self.gradients.clear(&self.gpu)?;
        let gradients = GpuGradients {
            places,
            data: &self.gradients,
        };
        self.penalties.add_gradients(
            &self.gpu,
            layout,
            engine.weights(),
            gradients,
            objective.weight_penalties(),
            batch.strength,
        )?;
        objective.each_micro_batch(&batch, Comm::single(), |micro_batch| {
            let hidden = |weights: &OnlineTeacher, batch: &Batch, at: &[usize]| {
                let OnlineTeacher::Weights(params) = weights else {
                    unreachable!("adapters are refused on a GPU");
                };
                let teacher = match &mut self.teacher {
                    Some(teacher) => teacher,
                    none => none.insert(GpuEngine::new(&self.gpu, &self.config, params)?),
                };
                teacher.hidden(batch, at)
            };
            let outputs = micro_batch.teacher_outputs(hidden)?;
            let packed = micro_batch.packed;
            engine.loss_and_gradients(
                &packed.batch,
                &packed.targets,
                micro_batch.soft_targets(outputs.as_ref()),
                gradients,
            )
        })?;
        self.optimizer.step(
            &self.gpu,
            layout,
            engine.weights(),
            gradients,
            learning_rate,
            self.max_grad_norm,
        )?;
        let mut loss = engine.take_loss()?;
        loss.penalty = self.penalties.take_value(&self.gpu)?;
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
        let on_gpu = host.engine.gpu().filter(|_| self.is_ahead);
        if let Some(on_gpu) = on_gpu {
            if let Some(engine) = on_gpu.engine_as_it_is() {
                engine
                    .weights()
                    .download(&self.gpu, &mut host.params.data)?;
            }
            on_gpu.set_current(host.params);
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
pub(super) fn check(config: &Config, comm: Comm) -> Result<()> {
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
        (subset > MAX_TOP_K, "`method.vocab_subset` above 256 tokens"),
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

/// Refuses a run that needs more memory than the device has, where its driver tells how much that is: `needed` bytes, which `parts`
/// tells apart. A software device has the machine's.
///
/// # Errors
/// [`Error::Input`] with the sizes.
pub(super) fn check_memory(config: &Config, needed: u64, parts: &dyn Display) -> Result<()> {
    let Device::Gpu(index) = config.device else {
        return Ok(());
    };
    let gpu = Gpu::shared(index as usize)?;
    let adapter = gpu.report();
    let memory = adapter.memory.unwrap_or(u64::MAX);
    if needed <= memory || adapter.kind == AdapterKind::Software {
        return Ok(());
    }
    Err(Error::input_hint(
        format!(
            "the run needs about {} on the device, and `{}` has {} ({parts})",
            format::memory(needed),
            adapter.name,
            format::memory(memory)
        ),
        "take `train.gradient_checkpointing = true`, a smaller `train.batch_size`, fewer tensors (`train.trainable = \"ffn@0-9\"`) or `--device cpu`",
    ))
}

impl From<GpuError> for StepError {
    fn from(error: GpuError) -> Self {
        Self::Device(error.into())
    }
}

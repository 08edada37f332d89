//! One step: the gradients of its rows, and what moves by them.

use std::time::Instant;

use super::{
    Trainer,
    adamw::{clip_scale, grad_norm},
    batches::micro_batch_tokens,
    checkpoint::CheckpointView,
    fused_step::{FusedSink, NormSink},
    grad_reduce,
    objective::{AuxBatch, StepBatch},
    trainable::TrainableParams,
};
use crate::{
    Result,
    config::Config,
    distributed,
    engine::{
        Loss,
        profile::{Phase, Work, timed},
    },
    prompt::Example,
    run::Metrics,
};

/// What a step is taken on.
#[derive(Clone, Copy)]
pub(super) struct StepInput<'s> {
    /// The step, counted from 1.
    pub step: usize,
    /// The numbers of its rows.
    pub batch: &'s [usize],
    /// The rows beside them.
    pub aux: &'s [AuxBatch<'s>],
    /// So many times as strong as the config says is what holds the model.
    pub strength: f64,
}

impl<'s> StepInput<'s> {
    /// The same with the rows themselves, all of a run.
    fn step_rows(self, rows: &'s [Example], config: &Config) -> StepBatch<'s> {
        StepBatch {
            step: self.step,
            rows,
            batch: self.batch,
            aux: self.aux,
            strength: self.strength,
            rows_per_micro_batch: config.train.batch_size,
            tokens_per_micro_batch: micro_batch_tokens(&config.train),
        }
    }
}

/// The loss of a step and the norm of its gradient; or the loss, and what was not finite.
type StepOutcome = Result<(Loss, f64), (Loss, String)>;

/// What was not finite: the loss, or else the gradient that is named.
fn non_finite_cause(loss: Loss, gradient: String) -> (Loss, String) {
    if loss.total().is_finite() {
        (loss, gradient)
    } else {
        (loss, "the loss".into())
    }
}

impl Trainer<'_> {
    /// One step on the rows numbered `batch` and those `beside`: gradients, clipping, `AdamW`.
    pub(super) fn step(
        &mut self,
        epoch: usize,
        batch: &[usize],
        beside: &[AuxBatch<'_>],
    ) -> Result<Loss> {
        timed(Phase::Step, Work::default(), || {
            self.take_step(epoch, batch, beside)
        })
    }

    fn take_step(
        &mut self,
        epoch: usize,
        batch: &[usize],
        beside: &[AuxBatch<'_>],
    ) -> Result<Loss> {
        let started = Instant::now();
        let step = self.state.step + 1;
        let train = &self.config.train;
        let lr = train.learning_rate
            * train
                .lr_scheduler
                .factor(step - 1, train.warmup_steps, self.total_steps());
        let sees = StepInput {
            step,
            batch,
            aux: beside,
            strength: self.state.budget.as_ref().map_or(1.0, |s| s.strength),
        };
        let moved = if train.optimizer_in_backward {
            self.step_in_backward(sees, lr)
        } else {
            self.step_after_backward(sees, lr)
        };
        let (loss, grad_norm) = match moved {
            Ok(moved) => moved,
            Err((loss, what)) => {
                self.skip_step(epoch, step, what)?;
                return Ok(loss);
            }
        };
        self.warn_on_loss_spike(step, loss);
        if self
            .config
            .method
            .project
            .is_some_and(|project| step.is_multiple_of(project.every))
        {
            self.project();
        }
        self.state.step = step;
        self.state.step_in_epoch += 1;
        let tokens: usize = batch
            .iter()
            .chain(beside.iter().flat_map(|beside| beside.rows))
            .map(|&row| self.rows[row].prompt.len() + self.rows[row].target.len())
            .sum();
        let seconds = started.elapsed().as_secs_f64();
        self.run.append_metrics(&Metrics::Step {
            epoch,
            step,
            loss: loss.total(),
            ce: loss.ce,
            distill: loss.distill,
            penalty: loss.penalty,
            grad_norm,
            learning_rate: lr,
            tokens,
            seconds,
            tokens_per_second: tokens as f64 / seconds,
        })?;
        Ok(loss)
    }

    /// Gradients of the whole step, clipped, and then the step. Where something is not finite, nothing has moved.
    fn step_after_backward(&mut self, sees: StepInput<'_>, lr: f64) -> StepOutcome {
        let loss = self.loss_and_gradients(sees);
        self.trainable.collect_gradients(&self.gradients);
        let (_, gradients) = self
            .trainable
            .parameters(&self.model.params, &self.gradients);
        let work = Work::floats(gradients.data.len());
        let grad_norm = timed(Phase::Penalties, work, || grad_norm(gradients));
        if let Some(what) = self.find_non_finite(loss, grad_norm) {
            return Err((loss, what));
        }
        let CheckpointView {
            params,
            gradients,
            optimizer: optimiser,
        } = self.trainable.checkpoint_view(
            &mut self.model.params,
            &self.gradients,
            &mut self.optimizer,
        );
        // Weight and two moments are read and written, the gradient is read.
        let work = Work::floats(7 * gradients.data.len());
        let scale = clip_scale(grad_norm, self.config.train.max_grad_norm);
        timed(Phase::Optimizer, work, || {
            optimiser.step(params, gradients, lr, scale);
        });
        self.trainable.merge(&mut self.model.params);
        Ok((loss, grad_norm))
    }

    /// The same in one, layer by layer. The norm by which gradients are clipped is found in a pass before, which moves nothing;
    /// without it what is not finite below a layer is found when that has moved.
    fn step_in_backward(&mut self, sees: StepInput<'_>, lr: f64) -> StepOutcome {
        self.gradients.zero();
        let (objective, engine) = (&self.objective, &mut self.engine);
        let (params, gradients) = (&mut self.model.params, &mut self.gradients);
        let rows = sees.step_rows(&self.rows, &self.config);
        let mut scale = 1.0;
        if self.config.train.max_grad_norm > 0.0 {
            let mut norm = NormSink::new(params);
            let loss = objective.loss_and_gradients(engine, &mut norm, rows, gradients);
            let norm = norm.end().map_err(|what| non_finite_cause(loss, what))?;
            scale = clip_scale(norm, self.config.train.max_grad_norm);
        }
        let mut weights = FusedSink::new(params, &mut self.optimizer, lr, scale);
        let loss = objective.loss_and_gradients(engine, &mut weights, rows, gradients);
        let norm = weights.end(gradients);
        Ok((loss, norm.map_err(|what| non_finite_cause(loss, what))?))
    }

    /// The loss of a step and its gradients.
    pub(super) fn loss_and_gradients(&mut self, sees: StepInput<'_>) -> Loss {
        self.gradients.zero();
        let (objective, engine) = (&self.objective, &mut self.engine);
        let (params, gradients) = (&self.model.params, &mut self.gradients);
        let rows = sees.step_rows(&self.rows, &self.config);
        let own = match self.trainable {
            TrainableParams::Tensors if distributed::world_size() > 1 => {
                grad_reduce::with_reduced_gradients(params, gradients, |weights, gradients| {
                    objective.loss_and_gradients(engine, weights, rows, gradients)
                })
            }
            // Of adapters it is their own gradients that are summed.
            _ => objective.loss_and_gradients(engine, params, rows, gradients),
        };
        grad_reduce::reduce_loss(own)
    }

    /// Takes back what was changed within the space of the known facts' inputs, where there is one.
    pub(super) fn project(&mut self) {
        let snapshot = self.objective.snapshot.as_ref();
        if let Some(projection) = snapshot.and_then(|s| s.projection.as_ref()) {
            timed(Phase::Projection, Work::default(), || {
                projection.apply(&mut self.model.params);
            });
        }
    }
}

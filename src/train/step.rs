//! One step: the gradients of its rows, and what moves by them.

use std::time::Instant;

use super::{
    Trainer,
    adamw::{clip_scale, global_norm},
    batches::training_pass_tokens,
    checkpoint::Memory,
    fused::{Fused, Norm},
    objective::{Beside, StepRows},
    together,
    trained::Trained,
};
use crate::{
    Result,
    config::Config,
    engine::{
        Loss,
        profile::{Part, Work, timed},
    },
    prompt::Row,
    ranks,
    run::Metrics,
};

/// What a step is taken on.
#[derive(Clone, Copy)]
pub(super) struct Sees<'s> {
    /// The step, counted from 1.
    pub step: usize,
    /// The numbers of its rows.
    pub batch: &'s [usize],
    /// The rows beside them.
    pub beside: &'s [Beside<'s>],
    /// So many times as strong as the config says is what holds the model.
    pub strength: f64,
}

impl<'s> Sees<'s> {
    /// The same with the rows themselves, all of a run.
    fn of(self, rows: &'s [Row], config: &Config) -> StepRows<'s> {
        StepRows {
            step: self.step,
            rows,
            batch: self.batch,
            beside: self.beside,
            strength: self.strength,
            rows_a_pass: config.train.batch_size,
            tokens_a_pass: training_pass_tokens(&config.train),
        }
    }
}

/// The loss of a step and the norm of its gradient; or the loss, and what was not finite.
type Moved = Result<(Loss, f64), (Loss, String)>;

/// What was not finite: the loss, or else the gradient that is named.
fn not_finite(loss: Loss, gradient: String) -> (Loss, String) {
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
        beside: &[Beside<'_>],
    ) -> Result<Loss> {
        timed(Part::Step, Work::default(), || {
            self.take_step(epoch, batch, beside)
        })
    }

    fn take_step(&mut self, epoch: usize, batch: &[usize], beside: &[Beside<'_>]) -> Result<Loss> {
        let started = Instant::now();
        let step = self.standing.step + 1;
        let train = &self.config.train;
        let lr = train.lr
            * train
                .schedule
                .factor(step - 1, train.warmup_steps, self.steps_in_all());
        let sees = Sees {
            step,
            batch,
            beside,
            strength: self.standing.steering.as_ref().map_or(1.0, |s| s.strength),
        };
        let moved = if train.fused {
            self.move_in_backward(sees, lr)
        } else {
            self.move_after_backward(sees, lr)
        };
        let (loss, grad_norm) = match moved {
            Ok(moved) => moved,
            Err((loss, what)) => {
                self.skip(epoch, step, what)?;
                return Ok(loss);
            }
        };
        self.warn_of_a_spike(step, loss);
        if self
            .config
            .method
            .project
            .is_some_and(|project| step.is_multiple_of(project.every))
        {
            self.project();
        }
        self.standing.step = step;
        self.standing.step_in_epoch += 1;
        let tokens: usize = batch
            .iter()
            .chain(beside.iter().flat_map(|beside| beside.rows))
            .map(|&row| self.rows[row].prompt.len() + self.rows[row].target.len())
            .sum();
        let seconds = started.elapsed().as_secs_f64();
        self.run.append(&Metrics::Step {
            epoch,
            step,
            loss: loss.total(),
            ce: loss.ce,
            distill: loss.distill,
            penalty: loss.penalty,
            grad_norm,
            lr,
            tokens,
            seconds,
            tokens_per_second: tokens as f64 / seconds,
        })?;
        Ok(loss)
    }

    /// Gradients of the whole step, clipped, and then the step. Where something is not finite, nothing has moved.
    fn move_after_backward(&mut self, sees: Sees<'_>, lr: f64) -> Moved {
        let loss = self.loss_and_gradients(sees);
        self.trained.pull_back(&self.gradients);
        let (_, gradients) = self.trained.parameters(&self.model.params, &self.gradients);
        let work = Work::floats(gradients.data.len());
        let grad_norm = timed(Part::Penalties, work, || global_norm(gradients));
        if let Some(what) = self.what_is_not_finite(loss, grad_norm) {
            return Err((loss, what));
        }
        let Memory {
            params,
            gradients,
            optimiser,
        } = self
            .trained
            .memory(&mut self.model.params, &self.gradients, &mut self.optimiser);
        // Weight and two moments are read and written, the gradient is read.
        let work = Work::floats(7 * gradients.data.len());
        let scale = clip_scale(grad_norm, self.config.train.clip);
        timed(Part::Optimiser, work, || {
            optimiser.step(params, gradients, lr, scale);
        });
        self.trained.merge(&mut self.model.params);
        Ok((loss, grad_norm))
    }

    /// The same in one, layer by layer. The norm by which gradients are clipped is found in a pass before, which moves nothing;
    /// without it what is not finite below a layer is found when that has moved.
    fn move_in_backward(&mut self, sees: Sees<'_>, lr: f64) -> Moved {
        self.gradients.clear();
        let (objective, engine) = (&self.objective, &mut self.engine);
        let (params, gradients) = (&mut self.model.params, &mut self.gradients);
        let rows = sees.of(&self.rows, &self.config);
        let mut scale = 1.0;
        if self.config.train.clip > 0.0 {
            let mut norm = Norm::new(params);
            let loss = objective.loss_and_gradients(engine, &mut norm, rows, gradients);
            let norm = norm.end().map_err(|what| not_finite(loss, what))?;
            scale = clip_scale(norm, self.config.train.clip);
        }
        let mut weights = Fused::new(params, &mut self.optimiser, lr, scale);
        let loss = objective.loss_and_gradients(engine, &mut weights, rows, gradients);
        let norm = weights.end(gradients);
        Ok((loss, norm.map_err(|what| not_finite(loss, what))?))
    }

    /// The loss of a step and its gradients.
    pub(super) fn loss_and_gradients(&mut self, sees: Sees<'_>) -> Loss {
        self.gradients.clear();
        let (objective, engine) = (&self.objective, &mut self.engine);
        let (params, gradients) = (&self.model.params, &mut self.gradients);
        let rows = sees.of(&self.rows, &self.config);
        let own = match self.trained {
            Trained::Tensors if ranks::size() > 1 => {
                together::summed(params, gradients, |weights, gradients| {
                    objective.loss_and_gradients(engine, weights, rows, gradients)
                })
            }
            // Of adapters it is their own gradients that are summed.
            _ => objective.loss_and_gradients(engine, params, rows, gradients),
        };
        together::loss(own)
    }

    /// Takes back what was changed within the space of the known facts' inputs, where there is one.
    pub(super) fn project(&mut self) {
        let snapshot = self.objective.snapshot.as_ref();
        if let Some(projection) = snapshot.and_then(|s| s.projection.as_ref()) {
            timed(Part::Projection, Work::default(), || {
                projection.apply(&mut self.model.params);
            });
        }
    }
}

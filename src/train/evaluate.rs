//! What is measured after every epoch.

use std::time::Instant;

use super::{
    TrainState, Trainer, adamw::grad_norm, batches::epoch_order, sampler, step::StepInput,
};
use crate::{
    Result,
    generate::Generator,
    measure::{EvalSet, accuracy},
    run::{Drift, GradNorms, Metrics, PerSplit},
};

impl Trainer<'_> {
    /// What pulls at the weights as they stand, at the rows of the last epoch's first step, where that is measured.
    fn grad_norms(&mut self) -> Option<GradNorms> {
        let (epoch, step) = (self.state.epoch, self.state.step);
        if !self.config.measure.grad_norms || epoch == 0 {
            return None;
        }
        let started = Instant::now();
        let rows = self.rows_in_epoch(epoch);
        let order = epoch_order(rows, self.config.seed, epoch, self.config.train.shuffle);
        let steps = rows.div_ceil(self.rows_per_step());
        let batch = &order[..self.rows_per_step().min(rows)];
        let beside = self.aux_rows(epoch);
        let sees = StepInput {
            step,
            batch,
            aux: &sampler::aux_for_step(&beside, 0, steps),
            strength: 0.0,
        };
        self.loss_and_gradients(sees);
        let learned = self.gradients.data.to_vec();
        let of_learned = grad_norm(&self.gradients);
        self.loss_and_gradients(StepInput {
            strength: 1.0,
            ..sees
        });
        for (both, learned) in self.gradients.data.iter_mut().zip(&learned) {
            *both -= learned;
        }
        let pulls = GradNorms {
            ce: of_learned,
            retention: grad_norm(&self.gradients),
        };
        self.state.eval_seconds += started.elapsed().as_secs_f64();
        Some(pulls)
    }

    /// Asks every fact and those that are watched; records what is right, remembers the best epoch of each split, and steers.
    /// When it is interrupted nothing of it is done.
    pub(super) fn evaluate(&mut self) -> Result<()> {
        let (right, seconds) = self.timed_evaluation(EvalSet::correct)?;
        let watched = self.control_accuracy()?;
        self.update_peaks(right);
        self.record_evaluation(self.splits.accuracy(&self.state.correct), seconds)?;
        watched.map_or(Ok(()), |watched| self.adjust_strength(watched))
    }

    /// The share of the watched facts that is right, where a budget is named.
    pub(super) fn control_accuracy(&mut self) -> Result<Option<f64>> {
        if self.state.budget.is_none() {
            return Ok(None);
        }
        let started = Instant::now();
        let right = self
            .control_set
            .correct(&mut Generator::new(&mut self.engine, &self.model))?;
        self.state.eval_seconds += started.elapsed().as_secs_f64();
        Ok(Some(accuracy(&right).unwrap_or_default()))
    }

    /// Adapts the strength to what of the watched facts is right, and keeps the model if it is the best within the budget so far.
    fn adjust_strength(&mut self, watched: f64) -> Result<()> {
        let learned = self.splits.accuracy(&self.state.correct).unknown;
        let epoch = self.state.epoch;
        let Some(steering) = &mut self.state.budget else {
            return Ok(());
        };
        let best = steering.update(epoch, watched, learned.unwrap_or(1.0));
        self.progress.note(format_args!(
            "    watched {:.1}%{}; strength x {:.2}",
            100.0 * watched,
            if best {
                ", the best within the budget so far"
            } else {
                ""
            },
            steering.strength
        ));
        if best {
            let memory = self.trainable.checkpoint_view(
                &mut self.model.params,
                &self.gradients,
                &mut self.optimizer,
            );
            self.checkpoints.save_best(&memory)?;
        }
        Ok(())
    }

    /// What `ask` finds out about the facts as the model stands, and the seconds that it took.
    pub(super) fn timed_evaluation<T>(
        &mut self,
        ask: impl FnOnce(&EvalSet, &mut Generator<'_>) -> Result<T>,
    ) -> Result<(T, f64)> {
        self.update_clock();
        let started = Instant::now();
        let found = ask(
            &self.eval_set,
            &mut Generator::new(&mut self.engine, &self.model),
        )?;
        let seconds = started.elapsed().as_secs_f64();
        self.state.eval_seconds += seconds;
        self.update_clock();
        Ok((found, seconds))
    }

    /// Keeps what is right now, and in splits of which more is right than ever before, the untuned model's answers among
    /// that, keeps it as the peak.
    pub(super) fn update_peaks(&mut self, right: Vec<bool>) {
        let count = |right: &[bool]| right.iter().filter(|r| **r).count();
        let peak = &mut self.state.correct_at_peak;
        for (_, range) in self.splits.ranges() {
            if count(&right[range.clone()]) > count(&peak[range.clone()]) {
                peak[range.clone()].copy_from_slice(&right[range]);
            }
        }
        let lost_once = &mut self.state.lost_once;
        lost_once.resize(right.len(), false);
        for (lost, (was, is)) in lost_once
            .iter_mut()
            .zip(self.state.correct.iter().zip(&right))
        {
            *lost |= *was && !is;
        }
        self.state.correct = right;
    }

    pub(super) fn record_evaluation(
        &mut self,
        accuracy: PerSplit<f64>,
        seconds: f64,
    ) -> Result<()> {
        let (drift, pulls) = (self.measure_drift(), self.grad_norms());
        let TrainState { epoch, step, .. } = self.state;
        self.curves.log(epoch, accuracy.named());
        self.run.append_metrics(&Metrics::Eval {
            epoch,
            step,
            accuracy,
            learned_paraphrased: None,
            drift,
            grad_norms: pulls,
            seconds,
        })
    }

    /// How far the model has drifted from the base model, where that is measured.
    fn measure_drift(&mut self) -> Option<Drift> {
        let (probe, base) = self.drift.as_ref()?;
        let started = Instant::now();
        let drift = probe.drift(&mut self.engine, &self.model, base, self.progress);
        self.state.eval_seconds += started.elapsed().as_secs_f64();
        self.progress.note(format_args!("    drift: {drift}"));
        Some(drift)
    }

    /// The same at each held fact; none where it is not measured.
    pub(super) fn held_drift(&mut self) -> Vec<Drift> {
        let Some((probe, base)) = &self.drift else {
            return Vec::new();
        };
        probe.drift_per_fact(&mut self.engine, &self.model, base, self.progress)
    }
}

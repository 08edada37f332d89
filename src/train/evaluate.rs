//! What is measured after every epoch.

use std::time::Instant;

use super::{Standing, Trainer, adamw::global_norm, batches::epoch_order, step::Sees, visits};
use crate::{
    Result,
    generate::Generator,
    measure::{Exam, share},
    run::{Drift, Metrics, PerSplit, Pulls},
};

impl Trainer<'_> {
    /// What pulls at the weights as they stand, at the rows of the last epoch's first step, where that is measured.
    fn pulls(&mut self) -> Option<Pulls> {
        let (epoch, step) = (self.standing.epoch, self.standing.step);
        if !self.config.measure.pulls || epoch == 0 {
            return None;
        }
        let started = Instant::now();
        let rows = self.rows_of(epoch);
        let order = epoch_order(rows, self.config.seed, epoch, self.config.train.shuffle);
        let steps = rows.div_ceil(self.rows_a_step());
        let batch = &order[..self.rows_a_step().min(rows)];
        let beside = self.beside(epoch);
        let sees = Sees {
            step,
            batch,
            beside: &visits::dealt(&beside, 0, steps),
            strength: 0.0,
        };
        self.loss_and_gradients(sees);
        let learned = self.gradients.data.to_vec();
        let of_learned = global_norm(&self.gradients);
        self.loss_and_gradients(Sees {
            strength: 1.0,
            ..sees
        });
        for (both, learned) in self.gradients.data.iter_mut().zip(&learned) {
            *both -= learned;
        }
        let pulls = Pulls {
            learned: of_learned,
            held: global_norm(&self.gradients),
        };
        self.standing.eval_seconds += started.elapsed().as_secs_f64();
        Some(pulls)
    }

    /// Asks every fact and those that are watched; records what is right, remembers the best epoch of each split, and steers.
    /// When it is interrupted nothing of it is done.
    pub(super) fn evaluate(&mut self) -> Result<()> {
        let (right, seconds) = self.timed_evaluation(Exam::right)?;
        let watched = self.watched_right()?;
        self.remember(right);
        self.record_evaluation(self.splits.shares(&self.standing.right), seconds)?;
        watched.map_or(Ok(()), |watched| self.steer(watched))
    }

    /// The share of the watched facts that is right, where a budget is named.
    pub(super) fn watched_right(&mut self) -> Result<Option<f64>> {
        if self.standing.steering.is_none() {
            return Ok(None);
        }
        let started = Instant::now();
        let right = self
            .watch
            .right(&mut Generator::new(&mut self.engine, &self.model))?;
        self.standing.eval_seconds += started.elapsed().as_secs_f64();
        Ok(Some(share(&right).unwrap_or_default()))
    }

    /// Adapts the strength to what of the watched facts is right, and keeps the model if it is the best within the budget so far.
    fn steer(&mut self, watched: f64) -> Result<()> {
        let learned = self.splits.shares(&self.standing.right).unknown;
        let epoch = self.standing.epoch;
        let Some(steering) = &mut self.standing.steering else {
            return Ok(());
        };
        let best = steering.see(epoch, watched, learned.unwrap_or(1.0));
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
            let memory =
                self.trained
                    .memory(&mut self.model.params, &self.gradients, &mut self.optimiser);
            self.checkpoints.keep_best(&memory)?;
        }
        Ok(())
    }

    /// What `ask` finds out about the facts as the model stands, and the seconds that it took.
    pub(super) fn timed_evaluation<T>(
        &mut self,
        ask: impl FnOnce(&Exam, &mut Generator<'_>) -> Result<T>,
    ) -> Result<(T, f64)> {
        self.read_clock();
        let started = Instant::now();
        let found = ask(
            &self.exam,
            &mut Generator::new(&mut self.engine, &self.model),
        )?;
        let seconds = started.elapsed().as_secs_f64();
        self.standing.eval_seconds += seconds;
        self.read_clock();
        Ok((found, seconds))
    }

    /// Keeps what is right now, and in splits of which more is right than ever before, the untuned model's answers among
    /// that, keeps it as the peak.
    pub(super) fn remember(&mut self, right: Vec<bool>) {
        let count = |right: &[bool]| right.iter().filter(|r| **r).count();
        let peak = &mut self.standing.right_at_peak;
        for (_, range) in self.splits.ranges() {
            if count(&right[range.clone()]) > count(&peak[range.clone()]) {
                peak[range.clone()].copy_from_slice(&right[range]);
            }
        }
        let lost_once = &mut self.standing.lost_once;
        lost_once.resize(right.len(), false);
        for (lost, (was, is)) in lost_once
            .iter_mut()
            .zip(self.standing.right.iter().zip(&right))
        {
            *lost |= *was && !is;
        }
        self.standing.right = right;
    }

    pub(super) fn record_evaluation(
        &mut self,
        accuracy: PerSplit<f64>,
        seconds: f64,
    ) -> Result<()> {
        let (drift, pulls) = (self.drift_now(), self.pulls());
        let Standing { epoch, step, .. } = self.standing;
        self.curves.tell(epoch, accuracy);
        self.run.append(&Metrics::Eval {
            epoch,
            step,
            accuracy,
            learned_paraphrased: None,
            drift,
            pulls,
            seconds,
        })
    }

    /// How far the model has drifted from the base model, where that is measured.
    fn drift_now(&mut self) -> Option<Drift> {
        let (probe, base) = self.drift.as_ref()?;
        let started = Instant::now();
        let drift = probe.drift(&mut self.engine, &self.model, base, self.progress);
        self.standing.eval_seconds += started.elapsed().as_secs_f64();
        self.progress.note(format_args!("    drift: {drift}"));
        Some(drift)
    }

    /// The same at each held fact; none where it is not measured.
    pub(super) fn drift_of_held(&mut self) -> Vec<Drift> {
        let Some((probe, base)) = &self.drift else {
            return Vec::new();
        };
        probe.of_held(&mut self.engine, &self.model, base, self.progress)
    }
}

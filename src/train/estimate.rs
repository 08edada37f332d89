//! The memory, disk and time of a run, estimated before it starts; the time from a few of its steps.

use std::{fmt, time::Instant};

use serde::Serialize;

use super::{
    checkpoint::Checkpoints, memory::MemoryEstimate, sampler::StepRows, step::StepError,
    trainer::Trainer, workload::AUDIT_COST,
};
use crate::{Result, format};

/// Steps that are timed.
const TIMED_STEPS: usize = 4;

/// Questions that are timed: fewer in a batch take longer each.
const TIMED_QUESTIONS: usize = 256;

/// What a run needs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunEstimate {
    /// The name of the model.
    pub model: String,
    /// Its parameters.
    pub parameters: usize,
    /// Trained parameters.
    pub trainable: usize,
    /// Rows of known facts.
    pub known_rows: usize,
    /// Rows of new facts and texts.
    pub new_rows: usize,
    /// Maximum number of epochs.
    pub epochs: usize,
    /// Maximum number of steps.
    pub steps: usize,
    /// Tokens of an epoch of all rows, prompts and targets.
    pub tokens_per_epoch: usize,
    /// Facts of an evaluation.
    pub evaluated_facts: usize,
    /// Questions of the audit, times its prompts; 0 without an audit.
    pub audit_prompts: usize,
    /// Peak memory by part.
    pub memory: MemoryEstimate,
    /// Their sum.
    pub memory_bytes: u64,
    /// Disk space during the run.
    pub disk_bytes: u64,
    /// Median seconds of a step, measured.
    pub step_seconds: f64,
    /// Seconds of an evaluation.
    pub evaluation_seconds: f64,
    /// Seconds of the audits before and after training; 0 without an audit. Cached audits take no time.
    pub audit_seconds: f64,
    /// Seconds of the run with all its epochs, audits included.
    pub seconds: f64,
    /// Whether training may end before its last epoch.
    pub may_end_early: bool,
}

impl Trainer {
    /// Estimates the cost of the run, with an audit of `audit_prompts` queries. Times a few steps; consumes the run.
    pub(super) fn estimate(mut self, audit_prompts: usize) -> Result<RunEstimate> {
        let step_seconds = self.time_steps()?;
        let question_seconds = self.time_questions()?;
        let evaluated_facts = self.evaluator.num_questions();
        let evaluation_seconds = question_seconds * evaluated_facts as f64;
        let (memory, epochs) = (self.memory, self.sampler.num_epochs);
        let audit_seconds =
            question_seconds * AUDIT_COST * self.audit_queries(audit_prompts) as f64;
        let steps = self.sampler.total_steps();
        let examples = self.sampler.examples().iter();
        let tokens = examples.map(|example| example.prompt.len() + example.target.len());
        let checkpoints = Checkpoints::disk_bytes(&self.student.view());
        Ok(RunEstimate {
            model: self.student.model.name.clone(),
            parameters: self.student.model.params.layout.len,
            trainable: self.student.num_trained(),
            known_rows: self.sampler.known().len(),
            new_rows: self.sampler.num_new(),
            epochs,
            steps,
            tokens_per_epoch: tokens.sum(),
            evaluated_facts,
            audit_prompts,
            memory,
            memory_bytes: memory.total(),
            disk_bytes: checkpoints + self.student.model_bytes() + memory.remedies,
            step_seconds,
            evaluation_seconds,
            audit_seconds,
            // An evaluation before the first epoch, after each that is evaluated, and at the end.
            seconds: step_seconds * steps as f64
                + evaluation_seconds * (self.config.measure.num_evaluations(epochs) + 2) as f64
                + audit_seconds,
            may_end_early: self.config.train.early_stopping.is_some(),
        })
    }

    /// Queries of the audit before training, of `audit_prompts`, and of the one after it, of the run's facts.
    fn audit_queries(&self, audit_prompts: usize) -> usize {
        let audit = self.config.data.audit.as_ref();
        let again = audit.map_or(0, |audit| {
            audit.num_prompts * self.evaluator.splits.iter().count()
        });
        audit_prompts + again
    }

    /// Median seconds of a step.
    fn time_steps(&mut self) -> Result<f64> {
        let epoch = self.config.method.effective_snapshot_epochs() + 1;
        let rows = self.sampler.epoch(epoch, &[]);
        let rows: Vec<StepRows<'_>> = rows.steps().collect();
        let mut seconds = Vec::new();
        for (i, rows) in rows.iter().cycle().take(TIMED_STEPS).enumerate() {
            let batch = self.sampler.batch(i + 1, rows, 1.0);
            let learning_rate = self.learning_rate(i + 1);
            let started = Instant::now();
            let stepped = self.student.step(&self.objective, batch, learning_rate);
            seconds.push(started.elapsed().as_secs_f64());
            stepped.map_err(|error| match error {
                StepError::NonFinite(non_finite) => {
                    self.non_finite_error(i + 1, non_finite.quantity)
                }
                StepError::Device(error) => error,
            })?;
        }
        self.student.sync_host()?;
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[TIMED_STEPS / 2])
    }

    /// Mean seconds of a question in an evaluation.
    fn time_questions(&mut self) -> Result<f64> {
        let facts = self.evaluator.splits.iter().map(|(_, f)| &f.fact);
        let eval_set = self
            .evaluator
            .eval_set(facts.take(TIMED_QUESTIONS), &self.student)?;
        let started = Instant::now();
        eval_set.correct(&mut self.student.generator(), &|_| {})?;
        Ok(started.elapsed().as_secs_f64() / eval_set.len().max(1) as f64)
    }
}

impl fmt::Display for RunEstimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = |count: usize| format::thousands(count);
        writeln!(
            f,
            "{}: {} of {} parameters trained",
            self.model,
            n(self.trainable),
            n(self.parameters)
        )?;
        writeln!(
            f,
            "rows: {} known and {} new; {} tokens an epoch; at most {} steps in {} epochs",
            n(self.known_rows),
            n(self.new_rows),
            n(self.tokens_per_epoch),
            n(self.steps),
            self.epochs
        )?;
        writeln!(
            f,
            "memory: {} ({})",
            format::memory(self.memory_bytes),
            self.memory
        )?;
        writeln!(f, "disk: {} while it runs", format::memory(self.disk_bytes))?;
        write!(
            f,
            "time: {} {} ({:.2} s a step, {:.1} s for each evaluation of {} facts)",
            if self.may_end_early {
                "at most"
            } else {
                "about"
            },
            format::duration(self.seconds),
            self.step_seconds,
            self.evaluation_seconds,
            n(self.evaluated_facts)
        )?;
        if self.audit_prompts > 0 {
            write!(
                f,
                ", of which {} for the audit of {} questions before it and of the run's facts after it, unless they are in the cache",
                format::duration(self.audit_seconds),
                n(self.audit_prompts)
            )?;
        }
        Ok(())
    }
}

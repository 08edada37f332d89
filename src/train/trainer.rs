//! The trainer: the training loop, which joins the parts of a run.

use std::{sync::Arc, time::Instant};

use super::{
    activation_cache::ActivationCache,
    batches::{self, max_row_len},
    evaluator::{Evaluation, Evaluator, EvaluatorOptions, template},
    gpu_student,
    job::{Job, Options, Start},
    loss_spikes::{LossSpikeDetector, MAX_SKIPPED_STEPS},
    memory::{self, MemoryEstimate},
    objective::Objective,
    plan::Plan,
    previous_runs::previous_runs,
    records::splits_and_baseline,
    sampler::{Sampler, StepRows},
    state::{Stopwatch, TrainState, ValidationState},
    step::{NonFinite, StepError, StepOutcome},
    student::Student,
    trainable::trainable_tensors,
    workload::Workload,
    writer::RunWriter,
};
use crate::{
    Error, Result,
    config::{Config, Device, OnNonFinite},
    engine::profile::{self, Phase, Work, timed},
    facts::Text,
    format::{percent, thousands},
    interrupt::{self, InterruptGuard},
    measure,
    progress::{Progress, WorkKind},
    remedy::{
        budget::BudgetController, continual_ewc, pseudo_replay, snapshot::Snapshot,
        teacher::TeacherSpec,
    },
    run::{GradNorms, Metrics, RunResult, TEACHER_DIR},
};

/// Rows of chats and texts whose loss is measured before and after training; of more, a seeded sample.
const MAX_TEXT_ROWS: usize = 128;

/// Steps of an epoch below which a warning is printed.
const FEW_STEPS: usize = 5;

/// A step in one line of at most 78 columns: the loss with its terms, learning rate, gradient norm and speed.
fn step_summary(outcome: &StepOutcome, learning_rate: f64, tokens_per_second: f64) -> String {
    let StepOutcome { loss, grad_norm } = outcome;
    let mut terms: Vec<String> = [("distill", loss.distill), ("penalty", loss.penalty)]
        .into_iter()
        .filter(|(_, value)| *value != 0.0)
        .map(|(name, value)| format!("{name} {value:.3}"))
        .collect();
    if !terms.is_empty() {
        terms.insert(0, format!("ce {:.3}", loss.ce));
        terms = vec![format!(" ({})", terms.join(", "))];
    }
    format!(
        "loss {:.3}{}, lr {learning_rate:.1e}, grad {grad_norm:.2}, {} tok/s",
        loss.total(),
        terms.concat(),
        thousands(tokens_per_second.round() as usize)
    )
}

/// A run in progress.
pub(super) struct Trainer {
    pub config: Config,
    pub student: Student,
    pub sampler: Sampler,
    pub objective: Objective,
    pub evaluator: Evaluator,
    pub writer: RunWriter,
    pub state: TrainState,
    pub loss_spikes: LossSpikeDetector,
    pub stopwatch: Stopwatch,
    /// The texts that decoys are made from.
    pub texts: Arc<[Text]>,
    pub start: Start,
    pub options: Options,
    /// The estimate of the run's memory.
    pub memory: MemoryEstimate,
    pub progress: Progress,
}

impl Trainer {
    pub fn new(job: Job, progress: &Progress) -> Result<Self> {
        let Job {
            config,
            model,
            splits,
            texts,
            run_dir,
            audit_after,
            validation,
            options,
            start,
        } = job;
        let examples = batches::examples(&config, &model, &splits, &texts)?;
        let tensors = trainable_tensors(&config.train, &model.params)?;
        let memory = MemoryEstimate::of(&config, &model, &tensors, &examples);
        memory.require(&config)?;
        gpu_student::check_memory(&config, memory.on_device(), &memory)?;
        if config.method.decoys.is_some() {
            pseudo_replay::check(&texts)?;
        }
        let texts_start = splits.known.len() + splits.unknown.len();
        let sampled = measure::sample(examples.len() - texts_start, MAX_TEXT_ROWS, config.seed);
        let trained_texts = sampled.into_iter();
        let trained_texts = trained_texts.map(|i| examples[texts_start + i].clone());
        let trained_texts = trained_texts.collect();
        let on_cpu = config.device == Device::Cpu;
        let cached_layers = memory::frozen_layers(&model, &tensors, &examples).filter(|_| on_cpu);
        let sampler = Sampler::new(&config, examples, splits.known.len())?;
        let mut student = Student::new(&config, model, options.comm)?;
        let previous_penalties = match &config.method.ewc {
            Some(ewc) => {
                let layout = &student.model.params.layout;
                continual_ewc::weight_penalties(
                    ewc,
                    &previous_runs(ewc),
                    layout,
                    &student.gradients,
                )?
            }
            None => Vec::new(),
        };
        let objective = Objective {
            snapshot: None,
            previous_penalties,
            activation_cache: cached_layers
                .map(|layers| ActivationCache::new(layers, student.model.config.hidden_size)),
        };
        let evaluator_options = EvaluatorOptions {
            audit_after,
            metrics_only: options.metrics_only,
            trained_texts,
            validation: batches::text_training_rows(&validation, &student.model, &config)?.0,
            progress: progress.clone(),
        };
        let evaluator = Evaluator::new(&config, splits, &mut student, evaluator_options)?;
        let trainer = Self {
            writer: RunWriter::new(run_dir, &config.train, progress.clone()),
            state: TrainState {
                audit_seconds: evaluator.splits.audit_seconds,
                budget: config.method.budget.map(BudgetController::new),
                ..TrainState::default()
            },
            loss_spikes: LossSpikeDetector::default(),
            stopwatch: Stopwatch::start(),
            progress: progress.clone(),
            config,
            student,
            sampler,
            objective,
            evaluator,
            texts,
            start,
            options,
            memory,
        };
        trainer.log_header()?;
        Ok(trainer)
    }

    /// Logs method, model, rows and steps, and warns if an epoch has few steps.
    fn log_header(&self) -> Result<()> {
        let steps = self.sampler.steps_in_epoch(self.sampler.num_epochs);
        if steps < FEW_STEPS {
            let rows = self.sampler.epoch_len(self.sampler.num_epochs);
            let train = &self.config.train;
            self.progress.note(format_args!(
                "an epoch of {rows} rows has only {steps} step{}: with fewer than {FEW_STEPS} a model learns little in an epoch. A smaller batch takes more steps, such as `--batch-size {}` (`train.batch_size` is {}{})",
                if steps == 1 { "" } else { "s" },
                (rows / FEW_STEPS).max(1),
                train.batch_size,
                match train.gradient_accumulation_steps {
                    1 => String::new(),
                    n => format!(", times {n} accumulation steps"),
                }
            ));
        }
        self.progress.note(format_args!(
            "{} on {}: {} of {} parameters trained, {} known and {} new rows, at most {} steps in {} epochs, into {}",
            match self.preset()? {
                Some(preset) => format!("{preset} ({})", self.method_name()),
                None => self.method_name(),
            },
            self.student.model.name,
            thousands(self.student.num_trained()),
            thousands(self.student.model.params.layout.len),
            self.sampler.known().len(),
            self.sampler.num_new(),
            self.sampler.total_steps(),
            self.sampler.num_epochs,
            self.writer.run_dir().path().display()
        ));
        Ok(())
    }

    /// Trains, and returns the result.
    pub fn run(mut self) -> Result<RunResult> {
        let model_bytes = self.student.model_bytes();
        self.writer
            .check_disk_space(&self.student.view(), model_bytes)?;
        if !self.restore()? {
            self.evaluate_base_model()?;
        }
        if self.options.profile {
            profile::start();
        }
        self.announce_plan(self.state.epoch);
        let trained = self.train();
        if let Some(profile) = profile::finish() {
            self.progress.note(profile);
            self.progress
                .note(format_args!("memory, as estimated: {}", self.memory));
        }
        trained?;
        self.finish()
    }

    /// Trains to the end. When the user interrupts it, a checkpoint is written, from which the run can be resumed.
    pub fn train(&mut self) -> Result<()> {
        let _guard = InterruptGuard::begin();
        match self.train_epochs() {
            Err(Error::Interrupted { .. }) => {
                self.checkpoint()?;
                Err(self.writer.run_dir().interrupted())
            }
            ended => ended,
        }
    }

    /// Tells the progress how much work is left after so many epochs.
    fn announce_plan(&self, epochs_done: usize) {
        let weights = self.student.model.params.layout.len;
        Plan::after_audit(&self.config, &self.sampler, &self.evaluator, epochs_done)
            .announce(weights, &self.progress);
    }

    /// The training loop: epochs of optimizer steps, each followed by an evaluation.
    ///
    /// # Errors
    /// [`Error::Interrupted`] after Ctrl-C, with `state` at a point where the run can be resumed; [`Error::NonFinite`] when it
    /// diverges.
    pub fn train_epochs(&mut self) -> Result<()> {
        let num_epochs = self.sampler.num_epochs;
        self.fill_activation_cache();
        while self.state.epoch < num_epochs && !self.should_stop() {
            if self.snapshot_is_due() {
                self.student.sync_host()?;
                self.save_shared_prefix()?;
                self.take_snapshot()?;
                self.fill_activation_cache();
            }

            let epoch = self.state.epoch + 1;
            self.select_replayed(epoch)?;
            let rows = self.sampler.epoch(epoch, &self.state.replayed_rows);
            let work = Workload::training(rows.num_tokens(self.sampler.examples()));
            let bar = self.writer.epoch_bar(rows.len(), work, epoch);
            for (i, rows) in rows.steps().enumerate() {
                if i >= self.state.step_in_epoch {
                    self.set_interrupt_notice("this step");
                    let started = Instant::now();
                    let step = self.state.step + 1;
                    let learning_rate = self.learning_rate(step);
                    let strength = self.state.strength();
                    let batch = self.sampler.batch(step, &rows, strength);
                    let (student, objective) = (&mut self.student, &self.objective);
                    match timed(Phase::Step, Work::default(), || {
                        student.step(objective, batch, learning_rate)
                    }) {
                        Ok(outcome) => {
                            self.project_after(step)?;
                            let tokens_per_second =
                                self.log_step(epoch, &rows, outcome, started)?;
                            bar.message(step_summary(&outcome, learning_rate, tokens_per_second));
                        }
                        Err(StepError::NonFinite(non_finite)) => {
                            self.skip_step(epoch, non_finite)?;
                        }
                        Err(StepError::Device(error)) => return Err(error),
                    }
                    self.state.end_step();
                }
                bar.inc(rows.indices.len() as u64);
                interrupt::check_all_processes(self.student.engine.comm())?;
            }
            drop(bar);
            self.project()?;

            if self.evaluation_is_due(epoch) {
                self.set_interrupt_notice("the evaluation");
                // The weights that are evaluated, and kept as the best, are those that would be saved.
                self.student.sync_host()?;
                self.student.swap_ema();
                let evaluation = self.evaluator.evaluate(&mut self.student);
                let logged = evaluation.and_then(|evaluation| self.end_epoch(evaluation));
                self.student.swap_ema();
                logged?;
            } else {
                self.state.end_epoch();
            }
            if self.writer.checkpoint_is_due(self.state.epoch) {
                self.checkpoint()?;
            }
        }
        // Epochs that an early end saved.
        self.announce_plan(num_epochs);
        if let Some((learned, goal)) = self.learned_and_goal() {
            let (learned_percent, goal_percent) = (percent(learned), percent(goal));
            if !self.should_stop() {
                self.progress.note(format_args!(
                    "the epochs ended at {learned_percent} of the new facts, before {goal_percent} of them were learned: allow more with `--epochs`"
                ));
            } else if learned >= goal && self.state.epoch < num_epochs {
                self.progress.note(format_args!(
                    "{learned_percent} of the new facts are learned, {goal_percent} were asked for: training ends after {} of {num_epochs} epochs",
                    self.state.epoch
                ));
            }
        }
        Ok(())
    }

    /// Whether the model is evaluated after `epoch`.
    fn evaluation_is_due(&self, epoch: usize) -> bool {
        epoch.is_multiple_of(self.config.measure.every) || epoch == self.sampler.num_epochs
    }

    /// Computes the activations of the frozen lower layers for rows that are not cached yet.
    fn fill_activation_cache(&mut self) {
        if let Some(cache) = &mut self.objective.activation_cache {
            let (engine, params) = (&mut self.student.engine, &self.student.model.params);
            // Micro-batches don't depend on when the decoys are made.
            for examples in [self.sampler.learned(), self.sampler.examples()] {
                cache.extend(engine, params, examples);
            }
        }
    }

    /// At the start of an epoch, chooses the known facts that it replays. A resumed epoch keeps its choice, because the
    /// weights it was computed with are no longer available.
    pub fn select_replayed(&mut self, epoch: usize) -> Result<()> {
        if self.state.step_in_epoch == 0 && self.config.method.replay.is_some() {
            self.student.sync_host()?;
            let mut generator = self.student.generator();
            if let Some(rows) = self.sampler.select_replayed(epoch, &mut generator)? {
                self.state.replayed_rows = rows;
            }
        }
        Ok(())
    }

    /// The learning rate of `step` (counted from 1).
    pub fn learning_rate(&self, step: usize) -> f64 {
        let total_steps = self.sampler.total_steps();
        self.config.train.learning_rate_at(step, total_steps)
    }

    /// Projects the weights, where that is due after `step`.
    fn project_after(&mut self, step: usize) -> Result<()> {
        match self.config.method.project {
            Some(project) if step.is_multiple_of(project.every) => self.project(),
            _ => Ok(()),
        }
    }

    /// Projects the update onto the null space of known inputs, if the method does so.
    fn project(&mut self) -> Result<()> {
        let snapshot = self.objective.snapshot.as_ref();
        if let Some(projection) = snapshot.and_then(|s| s.projection.as_ref()) {
            self.student.sync_host()?;
            self.student.project(projection);
        }
        Ok(())
    }

    /// What Ctrl-C does during `task`, and what another one costs.
    fn set_interrupt_notice(&self, task: &str) {
        let unsaved = self.writer.unsaved_steps(self.state.step);
        let cost = match unsaved {
            0 => String::new(),
            1 => " and loses 1 step".into(),
            n => format!(" and loses {} steps", thousands(n)),
        };
        interrupt::set_notice(format!(
            "interrupted: ending {task}, then writing a checkpoint; Ctrl-C again stops now{cost}"
        ));
    }

    /// Adds the current step to the metrics, and returns its tokens per second.
    pub fn log_step(
        &mut self,
        epoch: usize,
        rows: &StepRows<'_>,
        outcome: StepOutcome,
        started: Instant,
    ) -> Result<f64> {
        let step = self.state.step + 1;
        let StepOutcome { loss, grad_norm } = outcome;
        if let Some(mean) = self.loss_spikes.observe(loss.total()) {
            self.progress.note(format_args!(
                "step {step}: the loss jumped to {:.2} from {mean:.2} in the steps before: the learning rate may be too high (`train.learning_rate`, now {:e}), or a row broken",
                loss.total(),
                self.config.train.learning_rate
            ));
        }
        let tokens = rows.num_tokens(self.sampler.examples());
        let seconds = started.elapsed().as_secs_f64();
        let tokens_per_second = tokens as f64 / seconds;
        self.writer.log(&Metrics::Step {
            epoch,
            step,
            loss: loss.total(),
            ce: loss.ce,
            distill: loss.distill,
            penalty: loss.penalty,
            grad_norm,
            learning_rate: self.learning_rate(step),
            tokens,
            seconds,
            tokens_per_second,
        })?;
        Ok(tokens_per_second)
    }

    /// Skips the current step, whose loss or gradient is not finite, if the config says so and not too many were skipped. Neither
    /// weights nor moments have changed.
    pub fn skip_step(&mut self, epoch: usize, non_finite: NonFinite) -> Result<()> {
        let step = self.state.step + 1;
        let quantity = non_finite.quantity;
        let skips = self.config.train.on_nonfinite == OnNonFinite::Skip;
        if !skips || self.state.skipped_steps == MAX_SKIPPED_STEPS {
            return Err(self.non_finite_error(step, quantity));
        }
        self.progress.note(format_args!(
            "step {step}: {quantity} is not finite: skipped"
        ));
        self.writer.log(&Metrics::Skipped {
            epoch,
            step,
            quantity,
        })?;
        self.state.skipped_steps += 1;
        Ok(())
    }

    pub fn non_finite_error(&self, step: usize, quantity: String) -> Error {
        let before = match self.state.skipped_steps {
            0 => String::new(),
            n => format!(" ({n} steps were skipped before)"),
        };
        Error::NonFinite {
            step,
            quantity,
            hint: format!(
                "lower `train.learning_rate` (now {:e}) or check the rows{before}; {} keeps the earlier checkpoints",
                self.config.train.learning_rate,
                self.writer.run_dir().path().display()
            ),
        }
    }

    /// Evaluates the base model and writes the facts: from here on the run can be resumed.
    pub fn evaluate_base_model(&mut self) -> Result<()> {
        self.writer.start(self.config.measure.tensorboard)?;
        let evaluation = self.evaluator.evaluate_baseline(&mut self.student)?;
        let (splits, baseline) = (&self.evaluator.splits, &self.evaluator.baseline);
        self.writer.write_splits(splits, baseline)?;
        if let (Some(budget), Some(control)) = (&mut self.state.budget, evaluation.control) {
            budget.set_baseline(control);
        }
        self.state.trained_texts_loss = evaluation.trained_texts_loss;
        self.state.validation = evaluation.validation_loss.map(ValidationState::new);
        self.log_evaluation(&evaluation)?;
        self.state.correct_at_peak = evaluation.correct;
        Ok(())
    }

    /// Ends an epoch with its evaluation: logs it, and adapts the strength of the remedies to the budget.
    fn end_epoch(&mut self, evaluation: Evaluation) -> Result<()> {
        self.state.end_epoch();
        self.log_evaluation(&evaluation)?;
        let Evaluation {
            correct,
            accuracy,
            control,
            validation_loss,
            ..
        } = evaluation;
        self.state
            .update_peaks(&self.evaluator.sample.splits, correct);
        if let (Some(validation), Some(loss)) = (&mut self.state.validation, validation_loss) {
            let is_best = validation.update(self.state.epoch, loss);
            if is_best && self.patience().is_some() {
                self.writer.save_best(&self.student.view())?;
            }
        }
        let (Some(budget), Some(control)) = (&mut self.state.budget, control) else {
            return Ok(());
        };
        let learned = accuracy.unknown.unwrap_or(1.0);
        let is_best = budget.update(self.state.epoch, control, learned);
        self.progress.note(format_args!(
            "    control accuracy {:.1}%{}; strength x {:.2}",
            100.0 * control,
            if is_best {
                ", the best within the budget so far"
            } else {
                ""
            },
            budget.strength
        ));
        if is_best {
            self.writer.save_best(&self.student.view())?;
        }
        Ok(())
    }

    fn log_evaluation(&mut self, evaluation: &Evaluation) -> Result<()> {
        self.state.eval_seconds += evaluation.total_seconds;
        let grad_norms = self.grad_norms();
        let TrainState { epoch, step, .. } = self.state;
        self.writer.log_evaluation(&Metrics::Eval {
            epoch,
            step,
            accuracy: evaluation.accuracy,
            learned_paraphrased: None,
            drift: evaluation.drift,
            grad_norms,
            behaviour: evaluation.behaviour,
            validation_loss: evaluation.validation_loss,
            seconds: evaluation.seconds,
        })
    }

    /// Gradient norms of the parts of the loss at the weights as they are, on the rows of the last epoch's first step, where they
    /// are measured.
    fn grad_norms(&mut self) -> Option<GradNorms> {
        let epoch = self.state.epoch;
        if !self.config.measure.grad_norms || epoch == 0 {
            return None;
        }
        let started = Instant::now();
        let rows = self.sampler.epoch(epoch, &self.state.replayed_rows);
        let first = rows.steps().next()?;
        let batch = self.sampler.batch(self.state.step, &first, 1.0);
        let norms = self.student.grad_norms(&self.objective, batch);
        self.state.eval_seconds += started.elapsed().as_secs_f64();
        Some(norms)
    }

    /// Evaluations without a smaller validation loss after which training stops, where the config says so. The weights with the
    /// smallest loss are kept then.
    pub fn patience(&self) -> Option<usize> {
        self.config.train.early_stopping.and_then(|s| s.patience)
    }

    /// Whether enough new facts are learned to stop early, the validation loss no longer improves, or the budget cannot be kept.
    fn should_stop(&self) -> bool {
        let budget = self.state.budget.as_ref();
        if budget.is_some_and(BudgetController::should_stop) {
            return true;
        }
        let validation = self.state.validation.zip(self.patience());
        if validation.is_some_and(|(v, patience)| v.evaluations_without_improvement >= patience) {
            return true;
        }
        self.learned_and_goal()
            .is_some_and(|(learned, goal)| learned >= goal)
    }

    /// The share of new facts that the last evaluation found learned, and the one that ends the training, if one does.
    fn learned_and_goal(&self) -> Option<(f64, f64)> {
        let goal = self.config.train.early_stopping.and_then(|s| s.accuracy)?;
        let correct = &self.state.correct;
        if correct.is_empty() {
            return None;
        }
        let learned = self.evaluator.sample.splits.accuracy(correct).unknown?;
        Some((learned, goal))
    }

    /// Whether the snapshot epochs are over and no snapshot was taken yet.
    fn snapshot_is_due(&self) -> bool {
        self.config.method.takes_snapshot()
            && self.objective.snapshot.is_none()
            && self.state.epoch >= self.config.method.effective_snapshot_epochs()
    }

    pub fn take_snapshot(&mut self) -> Result<()> {
        let started = Instant::now();
        let method = &self.config.method;
        if method.has_teacher() && TeacherSpec::of(method).topk_on_disk().is_some() {
            // A run that is interrupted from here on continues with the teacher files that it has written.
            self.checkpoint()?;
        }
        self.generate_decoys()?;
        let run_dir = self.writer.run_dir();
        let mut snapshot = Snapshot::freeze(
            &self.config.method,
            self.config.seed,
            &mut self.student.training_model(),
            self.sampler.run_examples(),
            &run_dir.file(TEACHER_DIR),
            &self.progress,
        )
        .map_err(|error| match error {
            Error::Interrupted { .. } => run_dir.interrupted(),
            other => other,
        })?;
        if self.merges_ewc_penalties() {
            snapshot.merge_penalties(&std::mem::take(&mut self.objective.previous_penalties));
        }
        self.set_snapshot(snapshot);
        // The work of the snapshot is not planned: its time is not that of a step.
        self.progress.skip(WorkKind::Training, 0.0);
        // New facts start here, and with them another loss.
        self.loss_spikes = LossSpikeDetector::default();
        self.writer.log(&Metrics::Snapshot {
            epoch: self.state.epoch,
            step: self.state.step,
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    /// Generates the decoys of the method with the model as it is, and writes them.
    pub fn generate_decoys(&mut self) -> Result<()> {
        let Some(method) = self.config.method.decoys else {
            return Ok(());
        };
        let pool_ratio = method.pool_ratio.unwrap_or(method.ratio);
        let count = |rows: usize| (pool_ratio * rows as f64).round() as usize;
        let seed = self.config.seed;
        let splits = &self.evaluator.splits;
        let num_facts = splits.known.len() + splits.unknown.len();
        let num_texts = self.sampler.learned().len() - num_facts;
        let facts = splits.known.iter().chain(&splits.unknown).map(|f| &f.fact);
        let template = template(&self.config, &self.student.model)?;
        let max_len = max_row_len(&self.student.model, &self.config.train);
        let mut generator = self.student.generator();
        let prompts = pseudo_replay::prompts(
            &mut generator,
            facts,
            method.subjects,
            count(num_facts),
            &template,
            seed,
            &self.progress,
        )?;
        let mut decoys = pseudo_replay::rows(&mut generator, prompts, &self.progress)?;
        decoys.extend(pseudo_replay::from_texts(
            &mut generator,
            &self.texts,
            count(num_texts),
            max_len,
            seed,
            &self.progress,
        )?);
        self.writer.write_decoys(&decoys)?;
        self.sampler.set_decoys(decoys);
        Ok(())
    }

    /// Trains under `snapshot` from now on. Where it projects, tensors without a projection are frozen.
    fn set_snapshot(&mut self, snapshot: Snapshot) {
        if let Some(projection) = &snapshot.projection {
            self.student
                .freeze_except(|tensor| projection.covers(tensor));
        }
        self.objective.snapshot = Some(snapshot);
    }

    /// Whether the EWC penalties of earlier runs become part of the snapshot's.
    fn merges_ewc_penalties(&self) -> bool {
        let ewc = self.config.method.ewc.as_ref();
        ewc.is_some_and(|ewc| ewc.gamma.is_some())
    }

    pub fn checkpoint(&mut self) -> Result<()> {
        self.state.seconds += self.stopwatch.lap();
        self.student.sync_host()?;
        self.check_finite_weights()?;
        self.student.check_model_files()?;
        let snapshot = self.objective.snapshot.as_ref();
        self.writer
            .checkpoint(&self.state, &self.student.view(), snapshot)
    }

    /// Weights that are not finite are never written.
    pub fn check_finite_weights(&self) -> Result<()> {
        match self.student.non_finite_weights() {
            None => Ok(()),
            Some(tensor) => Err(self.non_finite_error(self.state.step, tensor.name.clone())),
        }
    }

    /// Saves the run so far for runs with an identical prefix, if they share a directory and it does not exist yet.
    fn save_shared_prefix(&mut self) -> Result<()> {
        match &self.start {
            Start::SharedPrefix(dir) if self.state.epoch > 0 && !dir.exists() => {
                let dir = dir.clone();
                self.checkpoint()?;
                self.writer.save_shared_prefix(&dir)
            }
            _ => Ok(()),
        }
    }

    /// Restores the newest checkpoint of this run, or of the prefix that it shares; whether there is one.
    fn restore(&mut self) -> Result<bool> {
        let baseline = match std::mem::replace(&mut self.start, Start::BaseModel) {
            Start::BaseModel => return Ok(false),
            Start::Checkpoint(baseline) => baseline,
            Start::SharedPrefix(dir) => {
                let records = self.writer.load_shared_prefix(&dir)?;
                self.start = Start::SharedPrefix(dir);
                match records {
                    Some(records) => splits_and_baseline(records).1,
                    None => return Ok(false),
                }
            }
        };
        // Decoys are written before the snapshot is taken, so they are there wherever a checkpoint has one.
        self.sampler.set_decoys(self.writer.read_decoys()?);
        let (method, seed, examples) = (&self.config.method, self.config.seed, &self.sampler);
        let restored = self.writer.restore(&mut self.student, |student, length| {
            Snapshot::empty(
                method,
                seed,
                &student.model.params,
                examples.run_examples(),
                &student.gradients,
                length,
            )
        })?;
        let Some((state, snapshot)) = restored else {
            self.sampler.set_decoys(Vec::new());
            self.progress
                .note("there is no complete checkpoint: the run starts over");
            return Ok(false);
        };
        if let Some(snapshot) = snapshot {
            self.set_snapshot(snapshot);
            if self.merges_ewc_penalties() {
                // The snapshot includes them.
                self.objective.previous_penalties.clear();
            }
        } else {
            self.sampler.set_decoys(Vec::new());
        }
        self.progress.note(format_args!(
            "resuming after step {} (epoch {})",
            state.step,
            state.epoch + 1
        ));
        self.state = state;
        self.evaluator.baseline = baseline;
        self.stopwatch = Stopwatch::start();
        Ok(true)
    }
}

//! Training: one loop for every method. Methods differ in the objective, the rows and the trainable set only.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

mod activation_cache;
pub mod adamw;
pub mod batches;
pub mod checkpoint;
mod estimate;
mod evaluate;
mod finish;
mod fused_step;
mod grad_reduce;
mod non_finite;
pub mod objective;
mod prepare;
mod previous_runs;
mod sampler;
mod schedule;
mod shared_prefix;
mod step;
mod trainable;

pub use estimate::{MemoryEstimate as MemoryForetold, RunEstimate};
pub use finish::recorded_facts;
pub use prepare::{Options, estimate, resume, tune, tune_on};

use self::{
    activation_cache::ActivationCache,
    adamw::{AdamW, AdamWSettings, Ema},
    batches::{epoch_order, text_training_rows, training_rows},
    checkpoint::{Checkpoints, TrainState},
    finish::{Baseline, baseline_from_records},
    non_finite::LossSpikeDetector,
    objective::Objective,
    previous_runs::previous_runs,
    trainable::TrainableParams,
};
use crate::{
    Error, Result, atomic_file,
    audit::AuditSettings,
    config::Config,
    distributed,
    engine::{Engine, Gradients, TrainingModel, profile},
    facts::{Fact, Text},
    interrupt::{self, InterruptGuard},
    measure::{DriftProbe, DriftReference, DriftSettings, EvalSet},
    model::Model,
    progress::{LivePlot, Progress},
    prompt::{Example, PromptTemplate},
    remedy::{
        budget::BudgetController,
        continual_ewc,
        snapshot::{RunExamples, Snapshot},
        teacher::TeacherSpec,
        weight_penalty::WeightPenalty,
    },
    run::{Metrics, RunDir, RunResult, TEACHER_DIR},
    splits::{LabelledFact, Splits},
};

/// Without `checkpoint_every` checkpoints are no closer than this.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(60);

/// The facts of a run and what the base model says of them: all that a resumed run needs beside config and base model.
pub(crate) const SPLITS: &str = "splits.jsonl";

/// The decoys of a run, as tokens.
const DECOYS: &str = "decoys.jsonl";

/// Everything that one run needs.
struct TuneJob {
    /// What to do, resolved and validated.
    config: Config,
    /// The base model; it becomes the tuned one.
    model: Model,
    /// What to train on and what to measure.
    splits: Splits,
    /// What is learned beside facts: chats and other texts.
    texts: Arc<[Text]>,
    /// Where the run is written.
    out: RunDir,
    /// How the facts are audited again after training; none: labels after are null.
    audit_after: Option<AuditAfter>,
    options: Options,
    /// Where runs that begin alike leave what they stood at when their snapshot was due.
    warm: Option<PathBuf>,
}

/// The audit before training, to be repeated.
struct AuditAfter {
    settings: AuditSettings,
    /// The facts that it asked: drawn from the same facts, the few-shot prompts are the same.
    exemplars: Vec<Fact>,
}

/// A run under way.
struct Trainer<'a> {
    config: Config,
    template: PromptTemplate,
    model: Model,
    splits: Splits,
    texts: Arc<[Text]>,
    run: RunDir,
    audit_after: Option<AuditAfter>,
    options: Options,
    warm: Option<PathBuf>,
    /// What the run was foretold to hold in memory.
    memory: estimate::MemoryEstimate,
    progress: &'a Progress,
    curves: LivePlot,

    engine: Engine,
    /// `D_Known`, then `D_Unk` and the texts; from the snapshot on, decoys behind these.
    rows: Vec<Example>,
    /// How many of `rows` are learned: all but the decoys.
    learned_rows: usize,
    /// Every fact of the splits.
    eval_set: EvalSet,
    /// The watched facts, where a budget is named.
    control_set: EvalSet,
    /// What the base model showed of each.
    baseline: Vec<Baseline>,
    /// Where drift is measured, and what the base model showed there.
    drift: Option<(DriftProbe, DriftReference)>,
    objective: Objective,
    /// Of the model's tensors.
    gradients: Gradients,
    trainable: TrainableParams,
    optimizer: AdamW,
    checkpoints: Checkpoints,
    last_checkpoint: Instant,
    state: TrainState,
    loss_spikes: LossSpikeDetector,
    /// When the clock of `standing.seconds` was last read.
    clock: Instant,
}

impl<'a> Trainer<'a> {
    fn new(job: TuneJob, progress: &'a Progress) -> Result<Self> {
        let TuneJob {
            config,
            model,
            splits,
            texts,
            out: run,
            audit_after,
            options,
            warm,
        } = job;
        let template = prepare::template(&config, &model)?;
        let trained = splits.known.iter().chain(&splits.unknown);
        let mut rows = training_rows(trained.map(|f| &f.fact), &template, &model, &config.train)?;
        rows.extend(text_training_rows(&texts, &model, &config.train)?);
        let tensors = trainable::trainable_tensors(&config.train, &model.params)?;
        let memory = estimate::MemoryEstimate::of(&config, &model, &tensors, &rows);
        memory.require(&config)?;
        let exam_of = |facts: Vec<&Fact>| {
            EvalSet::new(facts, &template, &model.tokenizer, config.data.match_rule)
        };
        let exam = exam_of(splits.iter().map(|(_, f)| &f.fact).collect())?;
        let watch = exam_of(splits.control.iter().map(|f| &f.fact).collect())?;
        let gradients = if config.train.optimizer_in_backward {
            Gradients::with_layer_buffer(&model.params, &tensors)
        } else {
            Gradients::new(&model.params, &tensors)
        };
        let trained = TrainableParams::new(&config, &model.params, &gradients);
        let settings = AdamWSettings {
            betas: config.train.betas,
            eps: config.train.eps,
            weight_decay: config.train.weight_decay,
        };
        let (parameters, of) = trained.parameters(&model.params, &gradients);
        let mut optimiser = AdamW::new(of, settings);
        optimiser.ema = config
            .train
            .ema_decay
            .map(|decay| Ema::new(decay, parameters, of));
        let mut engine = Engine::new(&model.config)
            .with_gradient_checkpointing(config.train.gradient_checkpointing);
        let drift = if config.measure.drift {
            Some(drift_probe(
                &model,
                &mut engine,
                &splits,
                &config,
                &template,
                progress,
            )?)
        } else {
            None
        };
        let trainer = Self {
            engine,
            eval_set: exam,
            control_set: watch,
            baseline: Vec::new(),
            drift,
            objective: Objective {
                snapshot: None,
                previous_penalties: previous_run_penalties(&config, &model, &gradients)?,
                activation_cache: estimate::frozen_layers(&model, &tensors, &rows)
                    .map(|layers| ActivationCache::new(layers, model.config.hidden_size)),
            },
            optimizer: optimiser,
            trainable: trained,
            gradients,
            checkpoints: Checkpoints::new(&run),
            last_checkpoint: Instant::now(),
            state: TrainState {
                budget: config.method.budget.map(BudgetController::new),
                ..TrainState::default()
            },
            loss_spikes: LossSpikeDetector::default(),
            clock: Instant::now(),
            curves: LivePlot::new(progress, config.train.num_epochs),
            config,
            template,
            model,
            splits,
            texts,
            run,
            audit_after,
            options,
            warm,
            memory,
            progress,
            learned_rows: rows.len(),
            rows,
        };
        trainer.require_known_facts()?;
        trainer.require_decoys()?;
        trainer.require_rows_in_every_epoch()?;
        trainer.log_header();
        Ok(trainer)
    }

    /// What is about to happen, for people.
    fn log_header(&self) {
        let Config { train, .. } = &self.config;
        self.progress.note(format_args!(
            "{} on {}: {} of {} parameters trained, {} known and {} new rows, at most {} steps in {} epochs, into {}",
            self.method_name(),
            self.model.name,
            self.optimizer.exp_avg.len(),
            self.model.params.layout.len,
            self.splits.known.len(),
            self.learned_rows - self.splits.known.len(),
            self.total_steps(),
            train.num_epochs,
            self.run.path().display()
        ));
    }

    fn run(mut self) -> Result<RunResult> {
        self.check_disk_space()?;
        if !self.start_from_shared_prefix()? {
            self.begin()?;
        }
        if self.options.profile {
            profile::start();
        }
        let trained = self.train();
        if let Some(profile) = profile::finish() {
            self.progress.note(profile);
            self.progress
                .note(format_args!("memory, as foretold: {}", self.memory));
        }
        trained?;
        self.finish()
    }

    /// Trains until the end, or until the user asks to stop: then what is done so far is in a checkpoint.
    fn train(&mut self) -> Result<()> {
        let _resumable = InterruptGuard::begin();
        match self.train_epochs() {
            Err(Error::Interrupted { .. }) => {
                self.checkpoint()?;
                Err(self.run.interrupted())
            }
            ended => ended,
        }
    }

    /// THE loop. When it is interrupted the run stands where it can be gone on with.
    fn train_epochs(&mut self) -> Result<()> {
        self.fill_activation_cache();
        while self.state.epoch < self.config.train.num_epochs && !self.should_stop() {
            if self.snapshot_is_due() {
                self.save_shared_prefix()?;
                self.take_snapshot()?;
                self.fill_activation_cache();
            }
            self.train_epoch()?;
            // What is asked, watched and kept as the best is what would be saved.
            self.swap_ema();
            let evaluated = self.evaluate();
            self.swap_ema();
            if let Err(Error::Interrupted { .. }) = evaluated {
                self.rewind_to_evaluation();
            }
            evaluated?;
            if self.checkpoint_is_due() {
                self.checkpoint()?;
            }
        }
        Ok(())
    }

    /// Lets new rows pass below all that is trained; what is learned apart from decoys, whenever these are made.
    fn fill_activation_cache(&mut self) {
        if let Some(frozen) = &mut self.objective.activation_cache {
            for rows in [&self.rows[..self.learned_rows], &self.rows] {
                frozen.extend(&mut self.engine, &self.model.params, rows);
            }
        }
    }

    /// To the end of the epoch's steps, which are to be followed by its evaluation.
    fn rewind_to_evaluation(&mut self) {
        let rows = self.rows_in_epoch(self.state.epoch);
        self.state.epoch -= 1;
        self.state.step_in_epoch = rows.div_ceil(self.rows_per_step());
    }

    /// Goes on from where another run stood that began alike; whether there is one.
    fn start_from_shared_prefix(&mut self) -> Result<bool> {
        match &self.warm {
            Some(place) if shared_prefix::load(place, &self.run)? => {
                let before = baseline_from_records(self.run.read_rows(SPLITS)?);
                self.restore(before)
            }
            _ => Ok(false),
        }
    }

    /// Leaves where this run stands to those that begin alike, where there is a place for it and none did so before.
    fn save_shared_prefix(&mut self) -> Result<()> {
        match self.warm.clone() {
            Some(place) if self.state.epoch > 0 && !place.exists() => {
                self.checkpoint()?;
                shared_prefix::save(&self.run, &place)
            }
            _ => Ok(()),
        }
    }

    fn swap_ema(&mut self) {
        let (params, gradients) = (&mut self.model.params, &self.gradients);
        self.trainable
            .swap_ema(params, gradients, &mut self.optimizer);
    }

    /// Takes back the model that had learned most within the budget, where there is a later one.
    fn restore_best(&mut self) -> Result<()> {
        let best = self.state.budget.as_ref().and_then(|s| s.best);
        let Some(best) = best.filter(|best| best.epoch < self.state.epoch) else {
            return Ok(());
        };
        self.progress.note(format_args!(
            "back to the model after epoch {}, which had learned most within the budget",
            best.epoch
        ));
        let mut memory = self.trainable.checkpoint_view(
            &mut self.model.params,
            &self.gradients,
            &mut self.optimizer,
        );
        // The first process has written them.
        distributed::barrier();
        self.checkpoints.restore_best(&mut memory)?;
        self.trainable.merge(&mut self.model.params);
        Ok(())
    }

    /// The rest of the epoch after those that are done.
    fn train_epoch(&mut self) -> Result<()> {
        let train = &self.config.train;
        let (epoch, epochs) = (self.state.epoch + 1, train.num_epochs);
        let order = epoch_order(
            self.rows_in_epoch(epoch),
            self.config.seed,
            epoch,
            train.shuffle,
        );
        let steps = order.len().div_ceil(self.rows_per_step());
        self.select_replayed(epoch)?;
        let beside = self.aux_rows(epoch);
        let bar = self
            .progress
            .bar(order.len() as u64, format!("epoch {epoch}/{epochs}"));
        for (i, batch) in order.chunks(self.rows_per_step()).enumerate() {
            if i >= self.state.step_in_epoch {
                let loss = self.step(epoch, batch, &sampler::aux_for_step(&beside, i, steps))?;
                bar.message(format_args!("loss {:.4}", loss.total()));
            }
            bar.inc(batch.len() as u64);
            interrupt::check_all_processes()?;
        }
        self.project();
        self.state.epoch += 1;
        self.state.step_in_epoch = 0;
        Ok(())
    }

    /// Whether the snapshot epochs are over and nothing was frozen yet.
    fn snapshot_is_due(&self) -> bool {
        self.config.method.takes_snapshot()
            && self.objective.snapshot.is_none()
            && self.state.epoch >= self.config.method.effective_snapshot_epochs()
    }

    fn take_snapshot(&mut self) -> Result<()> {
        let started = Instant::now();
        let method = &self.config.method;
        if method.has_teacher() && TeacherSpec::of(method).topk_on_disk().is_some() {
            // From here on a run that is stopped goes on with the files that it has made.
            self.checkpoint()?;
        }
        self.generate_decoys()?;
        let mut model = TrainingModel {
            engine: &mut self.engine,
            params: &self.model.params,
            gradients: &mut self.gradients,
        };
        let examples = RunExamples {
            all: &self.rows,
            known: self.splits.known.len(),
            learned: self.learned_rows,
        };
        let mut snapshot = Snapshot::freeze(
            &self.config.method,
            self.config.seed,
            &mut model,
            examples,
            &self.run.file(TEACHER_DIR),
            self.progress,
        )
        .map_err(|error| match error {
            Error::Interrupted { .. } => self.run.interrupted(),
            other => other,
        })?;
        if self.merges_ewc_penalties() {
            snapshot.merge_penalties(&std::mem::take(&mut self.objective.previous_penalties));
        }
        self.set_snapshot(snapshot);
        // New rows begin here, and with them another loss.
        self.loss_spikes = LossSpikeDetector::default();
        self.run.append_metrics(&Metrics::Snapshot {
            epoch: self.state.epoch,
            step: self.state.step,
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    /// Trains under `snapshot` from now on; where it projects, what has no space is frozen.
    fn set_snapshot(&mut self, snapshot: Snapshot) {
        if let Some(projection) = &snapshot.projection {
            let layout = &self.model.params.layout;
            self.gradients
                .set_trainable(layout, |tensor| projection.covers(tensor));
        }
        self.objective.snapshot = Some(snapshot);
    }

    /// Whether earlier runs' EWC becomes part of the snapshot's.
    fn merges_ewc_penalties(&self) -> bool {
        let ewc = self.config.method.ewc.as_ref();
        ewc.is_some_and(|ewc| ewc.gamma.is_some())
    }

    /// Whether the share of new facts is reached at which training may stop early, or the budget is out of reach.
    fn should_stop(&self) -> bool {
        if self
            .state
            .budget
            .as_ref()
            .is_some_and(BudgetController::should_stop)
        {
            return true;
        }
        let Some(stop) = self.config.train.early_stopping else {
            return false;
        };
        let asked = !self.state.correct.is_empty();
        asked
            && self
                .splits
                .accuracy(&self.state.correct)
                .unknown
                .is_some_and(|learned| learned >= stop.accuracy)
    }

    /// Refuses a run whose checkpoints and model do not fit on the disk.
    fn check_disk_space(&mut self) -> Result<()> {
        let model = self.model.params.layout.len * self.model.dtype.bytes();
        let memory = self.trainable.checkpoint_view(
            &mut self.model.params,
            &self.gradients,
            &mut self.optimizer,
        );
        let bytes = Checkpoints::disk_bytes(&memory) + model as u64;
        atomic_file::require_space(self.run.path(), bytes, "the run, its checkpoints included,")
    }

    fn checkpoint_is_due(&self) -> bool {
        match self.config.train.save_every {
            Some(every) => self.state.epoch.is_multiple_of(every),
            None => {
                distributed::broadcast_flag(self.last_checkpoint.elapsed() >= CHECKPOINT_INTERVAL)
            }
        }
    }

    fn checkpoint(&mut self) -> Result<()> {
        self.update_clock();
        self.check_finite_weights()?;
        let memory = self.trainable.checkpoint_view(
            &mut self.model.params,
            &self.gradients,
            &mut self.optimizer,
        );
        self.checkpoints.write(
            &self.state,
            &memory,
            self.objective.snapshot.as_ref(),
            &self.run,
        )?;
        self.last_checkpoint = Instant::now();
        Ok(())
    }

    /// Goes back to the newest whole checkpoint; whether there is one. `before`: what the base model showed.
    fn restore(&mut self, before: Vec<Baseline>) -> Result<bool> {
        let layout = self.model.params.layout.clone();
        let mut memory = self.trainable.checkpoint_view(
            &mut self.model.params,
            &self.gradients,
            &mut self.optimizer,
        );
        // Written before the snapshot is taken, so that they are there wherever a checkpoint has one.
        let mut rows = self.rows.clone();
        if self.run.file(DECOYS).is_file() {
            rows.extend(self.run.read_rows::<Example>(DECOYS)?);
        }
        let run_rows = RunExamples {
            all: &rows,
            known: self.splits.known.len(),
            learned: self.learned_rows,
        };
        let (method, seed) = (&self.config.method, self.config.seed);
        let restored = self.checkpoints.restore(
            &mut memory,
            |length| Snapshot::empty(method, seed, &layout, run_rows, &self.gradients, length),
            &self.run,
        )?;
        let Some((standing, snapshot)) = restored else {
            return Ok(false);
        };
        self.trainable.merge(&mut self.model.params);
        if let Some(snapshot) = snapshot {
            self.rows = rows;
            self.set_snapshot(snapshot);
            if self.merges_ewc_penalties() {
                // The snapshot has taken it over.
                self.objective.previous_penalties.clear();
            }
        }
        let evaluation = |row| match row {
            Metrics::Eval {
                epoch, accuracy, ..
            } => Some((epoch, accuracy.named())),
            _ => None,
        };
        self.curves
            .extend(self.run.metrics()?.into_iter().filter_map(evaluation));
        self.state = standing;
        self.baseline = before;
        self.clock = Instant::now();
        Ok(true)
    }

    /// Adds the time since the last call to the run's.
    fn update_clock(&mut self) {
        self.state.seconds += self.clock.elapsed().as_secs_f64();
        self.clock = Instant::now();
    }
}

/// What `base` shows at the new and the held facts, and how to look at them again.
fn drift_probe(
    base: &Model,
    engine: &mut Engine,
    splits: &Splits,
    config: &Config,
    template: &PromptTemplate,
    progress: &Progress,
) -> Result<(DriftProbe, DriftReference)> {
    let facts = |of: &[LabelledFact]| of.iter().map(|f| f.fact.clone()).collect::<Vec<Fact>>();
    let (new, held) = (facts(&splits.unknown), facts(&splits.held));
    let settings = DriftSettings {
        seed: config.seed,
        template: template.clone(),
        ..DriftSettings::default()
    };
    let probe = DriftProbe::new(base, engine, [&new, &held], &settings)?;
    let reference = probe.reference(engine, base, progress);
    Ok((probe, reference))
}

/// What holds the weights to those of the runs that `method.ewc.previous_runs` names.
fn previous_run_penalties(
    config: &Config,
    model: &Model,
    gradients: &Gradients,
) -> Result<Vec<WeightPenalty>> {
    let ewc = config.method.ewc.as_ref();
    ewc.map_or(Ok(Vec::new()), |ewc| {
        continual_ewc::weight_penalties(ewc, &previous_runs(ewc), &model.params.layout, gradients)
    })
}

#[cfg(test)]
mod tests;

//! Training: one loop for every method. Methods differ in the objective, the rows and the trainable set only.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

pub mod adamw;
mod arrays;
pub mod batches;
pub mod checkpoint;
mod evaluate;
mod finish;
mod foretell;
mod frozen;
mod fused;
mod numbers;
pub mod objective;
mod prepare;
mod schedule;
mod step;
mod together;
mod trained;
mod visits;
mod warm;

pub use finish::recorded_facts;
pub use foretell::{Foretold, Memory as MemoryForetold};
pub use prepare::{Options, foretell, resume, tune, tune_on};

use self::{
    adamw::{AdamW, AdamWSettings, Average},
    batches::{epoch_order, text_training_rows, training_rows},
    checkpoint::{Checkpoints, Standing},
    finish::{Before, before_of},
    frozen::Frozen,
    numbers::Spikes,
    objective::Objective,
    trained::Trained,
};
use crate::{
    Error, Result,
    audit::AuditSettings,
    config::Config,
    engine::{Engine, Gradients, profile},
    facts::{Fact, Text},
    interrupt::{self, Resumable},
    measure::{DriftProbe, DriftSettings, Exam, Reference},
    model::Model,
    progress::{Curves, Progress},
    prompt::{PromptTemplate, Row},
    ranks,
    remedy::{
        anchor::Anchor,
        budget::Steering,
        distill::Teacher,
        snapshot::{RunRows, Snapshot},
        tasks,
    },
    run::{Metrics, RunDir, RunResult},
    splits::{SplitFact, Splits},
    whole,
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
    memory: foretell::Memory,
    progress: &'a Progress,
    curves: Curves,

    engine: Engine,
    /// `D_Known`, then `D_Unk` and the texts; from the snapshot on, decoys behind these.
    rows: Vec<Row>,
    /// How many of `rows` are learned: all but the decoys.
    learned_rows: usize,
    /// Every fact of the splits.
    exam: Exam,
    /// The watched facts, where a budget is named.
    watch: Exam,
    /// What the base model showed of each.
    before: Vec<Before>,
    /// Where drift is measured, and what the base model showed there.
    drift: Option<(DriftProbe, Reference)>,
    objective: Objective,
    /// Of the model's tensors.
    gradients: Gradients,
    trained: Trained,
    optimiser: AdamW,
    checkpoints: Checkpoints,
    last_checkpoint: Instant,
    standing: Standing,
    spikes: Spikes,
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
        let tensors = trained::tensors(&config.train, &model.params)?;
        let memory = foretell::Memory::of(&config, &model, &tensors, &rows);
        memory.require(&config)?;
        let exam_of =
            |facts: Vec<&Fact>| Exam::new(facts, &template, &model.tokenizer, config.data.rule);
        let exam = exam_of(splits.iter().map(|(_, f)| &f.fact).collect())?;
        let watch = exam_of(splits.watched.iter().map(|f| &f.fact).collect())?;
        let gradients = if config.train.fused {
            Gradients::one_layer_at_a_time(&model.params, &tensors)
        } else {
            Gradients::new(&model.params, &tensors)
        };
        let trained = Trained::new(&config, &model.params, &gradients);
        let settings = AdamWSettings {
            betas: config.train.betas,
            eps: config.train.eps,
            weight_decay: config.train.weight_decay,
        };
        let (parameters, of) = trained.parameters(&model.params, &gradients);
        let mut optimiser = AdamW::new(of, settings);
        optimiser.average = config
            .train
            .average
            .map(|decay| Average::new(decay, parameters, of));
        let mut engine = Engine::new(&model.config).recomputing(config.train.recompute);
        let drift = if config.measure.drift {
            Some(drift_from(
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
            exam,
            watch,
            before: Vec::new(),
            drift,
            objective: Objective {
                snapshot: None,
                earlier: earlier_tasks(&config, &model, &gradients)?,
                frozen: foretell::frozen_layers(&model, &tensors, &rows)
                    .map(|layers| Frozen::below(layers, model.config.hidden_size)),
            },
            optimiser,
            trained,
            gradients,
            checkpoints: Checkpoints::new(&run),
            last_checkpoint: Instant::now(),
            standing: Standing {
                steering: config.method.budget.map(Steering::new),
                ..Standing::default()
            },
            spikes: Spikes::default(),
            clock: Instant::now(),
            curves: progress.curves(config.train.epochs),
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
        trainer.introduce();
        Ok(trainer)
    }

    /// What is about to happen, for people.
    fn introduce(&self) {
        let Config { train, .. } = &self.config;
        self.progress.note(format_args!(
            "{} on {}: {} of {} parameters trained, {} known and {} new rows, at most {} steps in {} epochs, into {}",
            self.method_name(),
            self.model.name,
            self.optimiser.first.len(),
            self.model.params.layout.len,
            self.splits.known.len(),
            self.learned_rows - self.splits.known.len(),
            self.steps_in_all(),
            train.epochs,
            self.run.path().display()
        ));
    }

    fn run(mut self) -> Result<RunResult> {
        self.require_space()?;
        if !self.begin_warm()? {
            self.begin()?;
        }
        if self.options.profile {
            profile::begin();
        }
        let trained = self.train();
        if let Some(profile) = profile::take() {
            self.progress.note(profile);
            self.progress
                .note(format_args!("memory, as foretold: {}", self.memory));
        }
        trained?;
        self.finish()
    }

    /// Trains until the end, or until the user asks to stop: then what is done so far is in a checkpoint.
    fn train(&mut self) -> Result<()> {
        let _resumable = Resumable::begin();
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
        self.reach_frozen();
        while self.standing.epoch < self.config.train.epochs && !self.may_stop() {
            if self.snapshot_is_due() {
                self.leave_warm()?;
                self.take_snapshot()?;
                self.reach_frozen();
            }
            self.train_epoch()?;
            // What is asked, watched and kept as the best is what would be saved.
            self.exchange_average();
            let evaluated = self.evaluate();
            self.exchange_average();
            if let Err(Error::Interrupted { .. }) = evaluated {
                self.step_back_before_evaluation();
            }
            evaluated?;
            if self.checkpoint_is_due() {
                self.checkpoint()?;
            }
        }
        Ok(())
    }

    /// Lets new rows pass below all that is trained; what is learned apart from decoys, whenever these are made.
    fn reach_frozen(&mut self) {
        if let Some(frozen) = &mut self.objective.frozen {
            for rows in [&self.rows[..self.learned_rows], &self.rows] {
                frozen.reach(&mut self.engine, &self.model.params, rows);
            }
        }
    }

    /// To the end of the epoch's steps, which are to be followed by its evaluation.
    fn step_back_before_evaluation(&mut self) {
        let rows = self.rows_of(self.standing.epoch);
        self.standing.epoch -= 1;
        self.standing.step_in_epoch = rows.div_ceil(self.rows_a_step());
    }

    /// Goes on from where another run stood that began alike; whether there is one.
    fn begin_warm(&mut self) -> Result<bool> {
        match &self.warm {
            Some(place) if warm::take_over(place, &self.run)? => {
                let before = before_of(self.run.read_rows(SPLITS)?);
                self.restore(before)
            }
            _ => Ok(false),
        }
    }

    /// Leaves where this run stands to those that begin alike, where there is a place for it and none did so before.
    fn leave_warm(&mut self) -> Result<()> {
        match self.warm.clone() {
            Some(place) if self.standing.epoch > 0 && !place.exists() => {
                self.checkpoint()?;
                warm::leave(&self.run, &place)
            }
            _ => Ok(()),
        }
    }

    fn exchange_average(&mut self) {
        let (params, gradients) = (&mut self.model.params, &self.gradients);
        self.trained
            .exchange_average(params, gradients, &mut self.optimiser);
    }

    /// Takes back the model that had learned most within the budget, where there is a later one.
    fn go_back_to_the_best(&mut self) -> Result<()> {
        let best = self.standing.steering.as_ref().and_then(|s| s.best);
        let Some(best) = best.filter(|best| best.epoch < self.standing.epoch) else {
            return Ok(());
        };
        self.progress.note(format_args!(
            "back to the model after epoch {}, which had learned most within the budget",
            best.epoch
        ));
        let mut memory =
            self.trained
                .memory(&mut self.model.params, &self.gradients, &mut self.optimiser);
        // The first process has written them.
        ranks::wait();
        self.checkpoints.take_best(&mut memory)?;
        self.trained.merge(&mut self.model.params);
        Ok(())
    }

    /// The rest of the epoch after those that are done.
    fn train_epoch(&mut self) -> Result<()> {
        let train = &self.config.train;
        let (epoch, epochs) = (self.standing.epoch + 1, train.epochs);
        let order = epoch_order(self.rows_of(epoch), self.config.seed, epoch, train.shuffle);
        let steps = order.len().div_ceil(self.rows_a_step());
        self.choose_replayed(epoch)?;
        let beside = self.beside(epoch);
        let bar = self
            .progress
            .bar(order.len() as u64, format!("epoch {epoch}/{epochs}"));
        for (i, batch) in order.chunks(self.rows_a_step()).enumerate() {
            if i >= self.standing.step_in_epoch {
                let loss = self.step(epoch, batch, &visits::dealt(&beside, i, steps))?;
                bar.message(format_args!("loss {:.4}", loss.total()));
            }
            bar.inc(batch.len() as u64);
            interrupt::stop_together()?;
        }
        self.project();
        self.standing.epoch += 1;
        self.standing.step_in_epoch = 0;
        Ok(())
    }

    /// Whether the snapshot epochs are over and nothing was frozen yet.
    fn snapshot_is_due(&self) -> bool {
        self.config.method.takes_snapshot()
            && self.objective.snapshot.is_none()
            && self.standing.epoch >= self.config.method.snapshot_epochs()
    }

    fn take_snapshot(&mut self) -> Result<()> {
        let started = Instant::now();
        let method = &self.config.method;
        if method.has_teacher() && Teacher::logits_in_files(method.teacher, method.tokens).is_some()
        {
            // From here on a run that is stopped goes on with the files that it has made.
            self.checkpoint()?;
        }
        self.make_decoys()?;
        let mut snapshot = Snapshot::freeze(
            (&self.config.method, self.config.seed),
            &mut self.engine,
            &self.model.params,
            RunRows {
                all: &self.rows,
                known: self.splits.known.len(),
                learned: self.learned_rows,
            },
            &mut self.gradients,
            &self.run,
            self.progress,
        )?;
        if self.one_penalty() {
            snapshot.take_over(&std::mem::take(&mut self.objective.earlier));
        }
        self.adopt(snapshot);
        // New rows begin here, and with them another loss.
        self.spikes = Spikes::default();
        self.run.append(&Metrics::Snapshot {
            epoch: self.standing.epoch,
            step: self.standing.step,
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    /// Trains under `snapshot` from now on; where it projects, what has no space is frozen.
    fn adopt(&mut self, snapshot: Snapshot) {
        if let Some(projection) = &snapshot.projection {
            let layout = &self.model.params.layout;
            self.gradients
                .narrow(layout, |tensor| projection.covers(tensor));
        }
        self.objective.snapshot = Some(snapshot);
    }

    /// Whether earlier runs' EWC becomes part of the snapshot's.
    fn one_penalty(&self) -> bool {
        let ewc = self.config.method.ewc.as_ref();
        ewc.is_some_and(|ewc| ewc.decay.is_some())
    }

    /// Whether the share of new facts is reached at which training may stop early, or the budget is out of reach.
    fn may_stop(&self) -> bool {
        if self
            .standing
            .steering
            .as_ref()
            .is_some_and(Steering::is_lost)
        {
            return true;
        }
        let Some(stop) = self.config.train.stop else {
            return false;
        };
        let asked = !self.standing.right.is_empty();
        asked
            && self
                .splits
                .shares(&self.standing.right)
                .unknown
                .is_some_and(|learned| learned >= stop.learned)
    }

    /// Refuses a run whose checkpoints and model do not fit on the disk.
    fn require_space(&mut self) -> Result<()> {
        let model = self.model.params.layout.len * self.model.dtype.bytes();
        let memory =
            self.trained
                .memory(&mut self.model.params, &self.gradients, &mut self.optimiser);
        let bytes = Checkpoints::bytes(&memory) + model as u64;
        whole::require_space(self.run.path(), bytes, "the run, its checkpoints included,")
    }

    fn checkpoint_is_due(&self) -> bool {
        match self.config.train.checkpoint_every {
            Some(every) => self.standing.epoch.is_multiple_of(every),
            None => ranks::as_the_first(self.last_checkpoint.elapsed() >= CHECKPOINT_INTERVAL),
        }
    }

    fn checkpoint(&mut self) -> Result<()> {
        self.read_clock();
        self.require_finite_weights()?;
        let memory =
            self.trained
                .memory(&mut self.model.params, &self.gradients, &mut self.optimiser);
        self.checkpoints.write(
            &self.standing,
            &memory,
            self.objective.snapshot.as_ref(),
            &self.run,
        )?;
        self.last_checkpoint = Instant::now();
        Ok(())
    }

    /// Goes back to the newest whole checkpoint; whether there is one. `before`: what the base model showed.
    fn restore(&mut self, before: Vec<Before>) -> Result<bool> {
        let layout = self.model.params.layout.clone();
        let mut memory =
            self.trained
                .memory(&mut self.model.params, &self.gradients, &mut self.optimiser);
        // Written before the snapshot is taken, so that they are there wherever a checkpoint has one.
        let mut rows = self.rows.clone();
        if self.run.file(DECOYS).is_file() {
            rows.extend(self.run.read_rows::<Row>(DECOYS)?);
        }
        let run_rows = RunRows {
            all: &rows,
            known: self.splits.known.len(),
            learned: self.learned_rows,
        };
        let method = (&self.config.method, self.config.seed);
        let restored = self.checkpoints.restore(
            &mut memory,
            |length| Snapshot::empty(method, &layout, run_rows, &self.gradients, length),
            &self.run,
        )?;
        let Some((standing, snapshot)) = restored else {
            return Ok(false);
        };
        self.trained.merge(&mut self.model.params);
        if let Some(snapshot) = snapshot {
            self.rows = rows;
            self.adopt(snapshot);
            if self.one_penalty() {
                // The snapshot has taken it over.
                self.objective.earlier.clear();
            }
        }
        let evaluation = |row| match row {
            Metrics::Eval {
                epoch, accuracy, ..
            } => Some((epoch, accuracy)),
            _ => None,
        };
        self.curves
            .go_on(self.run.metrics()?.into_iter().filter_map(evaluation));
        self.standing = standing;
        self.before = before;
        self.clock = Instant::now();
        Ok(true)
    }

    /// Adds the time since the last call to the run's.
    fn read_clock(&mut self) {
        self.standing.seconds += self.clock.elapsed().as_secs_f64();
        self.clock = Instant::now();
    }
}

/// What `base` shows at the new and the held facts, and how to look at them again.
fn drift_from(
    base: &Model,
    engine: &mut Engine,
    splits: &Splits,
    config: &Config,
    template: &PromptTemplate,
    progress: &Progress,
) -> Result<(DriftProbe, Reference)> {
    let facts = |of: &[SplitFact]| of.iter().map(|f| f.fact.clone()).collect::<Vec<Fact>>();
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

/// What holds the weights to those of the runs that `method.ewc.after` names.
fn earlier_tasks(config: &Config, model: &Model, gradients: &Gradients) -> Result<Vec<Anchor>> {
    let ewc = config.method.ewc.as_ref();
    ewc.map_or(Ok(Vec::new()), |ewc| {
        tasks::anchors(ewc, &model.params.layout, gradients)
    })
}

#[cfg(test)]
mod tests;

//! What a run takes, told before it is begun: memory, disk, tokens, and from a few of its steps its time.

use std::{fmt, time::Instant};

use serde::Serialize;

use super::{
    Checkpoints, Trainer, activation_cache::ActivationCache, batches::micro_batch_tokens,
    epoch_order,
};
use crate::{
    Error, Result,
    config::{Config, MethodKind, TeacherMode as Source},
    engine::{Engine, Gradients},
    format,
    generate::{self, Generator, MAX_BATCH_TOKENS},
    measure::EvalSet,
    model::{Model, params::TensorInfo},
    prompt::{Example, PackedExamples, micro_batches},
    remedy::teacher::TeacherSpec,
    system::total_memory_bytes,
};

/// Bytes of a number.
const FLOAT: u64 = 4;

/// What the process takes beside its numbers: the program, tokenizer, facts, and what the allocator keeps.
const OVERHEAD: u64 = 150_000_000;

/// Epochs whose batches are looked at for the largest.
const EPOCHS: usize = 3;

/// Steps that are timed, and facts that are asked.
const TIMED: (usize, usize) = (4, 64);

/// What a run takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunEstimate {
    /// The model.
    pub model: String,
    /// Its weights.
    pub parameters: usize,
    /// Numbers that the optimiser moves.
    pub trainable: usize,
    /// Rows of known facts.
    pub known_rows: usize,
    /// Rows of new facts and texts.
    pub new_rows: usize,
    /// Epochs, at most.
    pub epochs: usize,
    /// Steps, at most.
    pub steps: usize,
    /// Tokens of an epoch of all rows, prompts and targets.
    pub tokens_per_epoch: usize,
    /// Facts that are asked after every epoch.
    pub evaluated_facts: usize,
    /// Questions of the audit, each behind each of its prompts; 0 without one.
    pub audit_prompts: usize,
    /// Peak memory, and what it is made of.
    pub memory: MemoryEstimate,
    /// The sum of these.
    pub memory_bytes: u64,
    /// Disk while the run goes on.
    pub disk_bytes: u64,
    /// Median seconds of a step, as timed.
    pub step_seconds: f64,
    /// Seconds of an evaluation.
    pub evaluation_seconds: f64,
    /// Seconds of all epochs, without audits.
    pub seconds: f64,
}

/// What a run holds in memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryEstimate {
    /// The model's weights.
    pub weights: u64,
    /// Gradients.
    pub gradients: u64,
    /// The optimiser's moments, adapters, and the average of the weights.
    pub optimizer: u64,
    /// What holds the model: a teacher, and what it was.
    pub remedies: u64,
    /// What the largest batch leaves for its backward pass.
    pub activations: u64,
    /// What asking facts takes.
    pub evaluation: u64,
    /// All else.
    pub other: u64,
}

impl MemoryEstimate {
    /// Of a run of `config` on `model` that trains these of its tensors on `rows`.
    pub(super) fn of(config: &Config, model: &Model, trained: &[bool], rows: &[Example]) -> Self {
        let layout = &model.params.layout;
        let (all, d) = (layout.len as u64, layout.norm.len() as u64);
        let tensors = layout.tensors.iter().zip(trained);
        let tensors = tensors.filter(|(_, trained)| **trained).map(|(t, _)| t);
        let with_gradient: u64 = tensors.clone().map(|t| t.range.len() as u64).sum();
        let gradients = if config.train.optimizer_in_backward {
            Gradients::layer_buffer_floats(layout, trained) as u64
        } else {
            with_gradient
        };
        // A, B, and under DoRA a length a row.
        let adapters = |rank: usize| -> u64 {
            let of = |t: &TensorInfo| rank * (t.shape[0] + t.shape[1]) + t.shape[0];
            tensors.clone().map(|t| of(t) as u64).sum()
        };
        let lora = config.train.lora.as_ref();
        let moved = lora.map_or(with_gradient, |lora| adapters(lora.r));
        let mut optimiser = 2 * moved;
        if lora.is_some() {
            // The weights as they were, and the adapters with their gradients.
            optimiser += with_gradient + 2 * moved;
        }
        if config.train.ema_decay.is_some() {
            optimiser += moved;
        }

        let method = &config.method;
        let decoys = method
            .decoys
            .map_or(0.0, |d| d.pool_ratio.unwrap_or(d.ratio));
        let targets: usize = rows.iter().map(Example::num_targets).sum();
        let targets = (targets as f64 * (1.0 + decoys)).ceil() as u64;
        let in_files = TeacherSpec::of(method).topk_on_disk().is_some();
        let teacher = match method.teacher {
            _ if !method.has_teacher() || in_files => 0,
            Source::Online => all,
            _ => layout.head.len() as u64 + targets * d,
        };
        let anchors = u64::from(method.kind == MethodKind::L2)
            + method
                .ewc
                .as_ref()
                .map_or(0, |ewc| 2 * (1 + ewc.previous_runs.len() as u64));

        let frozen = frozen_layers(model, trained, rows).map_or(0, |_| {
            ActivationCache::floats(rows, layout.norm.len()) as u64
        });

        let c = &model.config;
        let tokens = largest_micro_batch(config, rows);
        let asked = Engine::inference_floats(c, MAX_BATCH_TOKENS) as u64;
        let activations = Engine::training_floats(c, tokens, config.train.gradient_checkpointing);
        Self {
            weights: FLOAT * all,
            gradients: FLOAT * gradients,
            optimizer: FLOAT * optimiser,
            remedies: FLOAT * (teacher + anchors * with_gradient + frozen),
            activations: FLOAT * activations as u64,
            evaluation: FLOAT * asked + generate::KV_CACHE_BYTES as u64,
            other: OVERHEAD,
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        let Self {
            weights,
            gradients,
            optimizer: optimiser,
            remedies: held,
            activations,
            evaluation: asking,
            other: rest,
        } = self;
        // What asking takes is taken beside the activations of the batch before.
        weights + gradients + optimiser + held + activations + asking + rest
    }

    /// Refuses what this machine has no memory for, and says what would take less.
    pub(super) fn require(&self, config: &Config) -> Result<()> {
        let total = self.total();
        match total_memory_bytes() {
            Some(machine) if total > machine => Err(Error::input_hint(
                format!(
                    "the run needs about {} of memory, and this machine has {}: {self}",
                    format::memory(total),
                    format::memory(machine)
                ),
                self.suggestions(config),
            )),
            _ => Ok(()),
        }
    }

    /// What would make it fit, the largest saving first.
    fn suggestions(&self, config: &Config) -> String {
        let mut ways = Vec::new();
        if config.train.lora.is_none() {
            ways.push((
                self.gradients / 3 + self.optimizer,
                "adapters (`train.lora = {}`) or fewer tensors (`train.trainable = \"ffn@0-9\"`)",
            ));
        }
        if !config.train.optimizer_in_backward && config.train.lora.is_none() {
            let way = "`train.optimizer_in_backward = true`, with `train.max_grad_norm = 0` or in twice the time";
            ways.push((self.gradients, way));
        }
        if self.remedies >= self.weights {
            ways.push((
                self.remedies,
                "`method.teacher = \"hidden\"`, or `\"topk\"` with `method.vocab_subset = { top = 76 }`",
            ));
        }
        if !config.train.gradient_checkpointing {
            // A layer's input of all that is kept of it.
            ways.push((
                self.activations / 10 * 9,
                "`train.gradient_checkpointing = true`",
            ));
        }
        if config.train.batch_size > 1 {
            ways.push((
                self.activations / 2,
                "a smaller `train.batch_size`, with `train.gradient_accumulation_steps` for the same step",
            ));
        }
        ways.sort_by_key(|(saved, _)| std::cmp::Reverse(*saved));
        let ways: Vec<&str> = ways.into_iter().map(|(_, way)| way).collect();
        match &ways[..] {
            [] => "take a smaller model".into(),
            ways => format!("take {}; or a smaller model", ways.join("; or ")),
        }
    }
}

impl fmt::Display for MemoryEstimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("optimiser", self.optimizer),
            ("what holds the model", self.remedies),
            ("activations", self.activations),
            ("asking", self.evaluation),
        ];
        let parts = parts.into_iter().filter(|(_, bytes)| *bytes > 0);
        let parts = parts.map(|(name, bytes)| format!("{name} {}", format::memory(bytes)));
        f.write_str(&parts.collect::<Vec<_>>().join(", "))
    }
}

/// Layers below all that is trained (by index of the tensors in the layout) whose stream is kept for `rows`: where there are any, and it
/// takes no more than the model's weights.
pub(super) fn frozen_layers(model: &Model, trained: &[bool], rows: &[Example]) -> Option<usize> {
    let layout = &model.params.layout;
    let layers = ActivationCache::layers(layout, trained);
    (layers > 0 && ActivationCache::floats(rows, layout.norm.len()) <= layout.len).then_some(layers)
}

/// Tokens of the largest pass of the first epochs on all rows; what its rows begin with alike counts once.
fn largest_micro_batch(config: &Config, rows: &[Example]) -> usize {
    let first = config.method.effective_snapshot_epochs() + 1;
    let train = &config.train;
    let most = micro_batch_tokens(train);
    let tokens = |of: &[usize]| {
        let packed = PackedExamples::new(of.iter().map(|row| &rows[*row]));
        packed.batch.tokens.len()
    };
    let largest_of = |epoch| {
        let order = epoch_order(rows.len(), config.seed, epoch, train.shuffle);
        let batches = order.chunks(train.batch_size);
        let passes =
            batches.flat_map(|batch| micro_batches(batch, most, |&row| rows[row].num_tokens()));
        passes.map(tokens).max()
    };
    let largest = (first..first + EPOCHS).filter_map(largest_of).max();
    largest.unwrap_or_default()
}

impl Trainer<'_> {
    /// What the run takes, `audited` questions being asked before it. A few steps are taken to time them: there is no going on
    /// from here.
    pub(super) fn estimate(mut self, audited: usize) -> Result<RunEstimate> {
        let memory = self.memory;
        let train = &self.config.train;
        let epoch = self.config.method.effective_snapshot_epochs() + 1;
        let (seed, epochs, shuffle) = (self.config.seed, train.num_epochs, train.shuffle);
        let order = epoch_order(self.rows_in_epoch(epoch), seed, epoch, shuffle);
        let mut step_seconds = Vec::new();
        for batch in order.chunks(self.rows_per_step()).cycle().take(TIMED.0) {
            let started = Instant::now();
            self.step(epoch, batch, &[])?;
            step_seconds.push(started.elapsed().as_secs_f64());
        }
        step_seconds.sort_by(f64::total_cmp);
        let step_seconds = step_seconds[TIMED.0 / 2];

        let facts = self.splits.iter().map(|(_, f)| &f.fact).take(TIMED.1);
        let some = EvalSet::new(
            facts,
            &self.template,
            &self.model.tokenizer,
            self.config.data.match_rule,
        )?;
        let started = Instant::now();
        some.correct(&mut Generator::new(&mut self.engine, &self.model))?;
        let asking = started.elapsed().as_secs_f64() / some.len().max(1) as f64;
        let asked = self.eval_set.len() + self.control_set.len();
        let evaluation_seconds = asking * asked as f64;

        let tokens = self
            .rows
            .iter()
            .map(|row| row.prompt.len() + row.target.len());
        let (steps, known_rows) = (self.total_steps(), self.splits.known.len());
        let (tokens_per_epoch, new_rows) = (tokens.sum(), self.learned_rows - known_rows);
        let model = self.model.params.layout.len * self.model.dtype.bytes();
        let trained = self.optimizer.exp_avg.len();
        let disk = Checkpoints::disk_bytes(&self.trainable.checkpoint_view(
            &mut self.model.params,
            &self.gradients,
            &mut self.optimizer,
        ));
        Ok(RunEstimate {
            model: self.model.name.clone(),
            parameters: self.model.params.layout.len,
            trainable: trained,
            known_rows,
            new_rows,
            epochs,
            steps,
            tokens_per_epoch,
            evaluated_facts: asked,
            audit_prompts: audited,
            memory,
            memory_bytes: memory.total(),
            disk_bytes: disk + model as u64 + memory.remedies,
            step_seconds,
            evaluation_seconds,
            // Before the first epoch, after each, and at the end.
            seconds: step_seconds * steps as f64 + evaluation_seconds * (epochs + 2) as f64,
        })
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
            "time: about {} ({:.2} s a step, {:.1} s for each evaluation of {} facts)",
            format::duration(self.seconds),
            self.step_seconds,
            self.evaluation_seconds,
            n(self.evaluated_facts)
        )?;
        if self.audit_prompts > 0 {
            write!(
                f,
                ", and an audit of {} questions before it, and of the run's facts after it, unless they are in the cache",
                n(self.audit_prompts)
            )?;
        }
        Ok(())
    }
}

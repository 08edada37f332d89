//! The memory of a run, estimated before it starts.

use std::fmt;

use serde::Serialize;

use super::{activation_cache::ActivationCache, batches::micro_batch_tokens, sampler::epoch_order};
use crate::{
    Error, Result,
    config::{Config, MethodKind, TeacherMode},
    engine::{Engine, Gradients},
    format,
    generate::{self, MAX_BATCH_TOKENS},
    model::{Model, params::TensorInfo},
    prompt::{Example, PackedExamples, micro_batches},
    remedy::teacher::TeacherSpec,
    system::total_memory_bytes,
};

/// Bytes of an f32.
const FLOAT: u64 = 4;

/// Bytes of the process apart from arrays: the program, the tokenizer, facts, and the allocator's reserve.
const OVERHEAD: u64 = 150_000_000;

/// Epochs that are searched for the largest micro-batch.
const EPOCHS: usize = 3;

/// The memory of a run, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryEstimate {
    /// The model's weights.
    pub weights: u64,
    /// Gradients.
    pub gradients: u64,
    /// The optimizer's moments, adapters, and the moving average of the weights.
    pub optimizer: u64,
    /// Teacher, penalties, projections, and copies of the weights.
    pub remedies: u64,
    /// Activations of the largest micro-batch, and its backward pass.
    pub activations: u64,
    /// Evaluation: activations and KV cache.
    pub evaluation: u64,
    /// Everything else.
    pub other: u64,
}

impl MemoryEstimate {
    /// The memory of a run of `config` that trains these tensors of `model` (by index in its layout) on `rows`.
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
        // A, B, and for DoRA a magnitude per row.
        let adapters = |rank: usize| -> u64 {
            let of = |t: &TensorInfo| rank * (t.shape[0] + t.shape[1]) + t.shape[0];
            tensors.clone().map(|t| of(t) as u64).sum()
        };
        let lora = config.train.lora.as_ref();
        let moved = lora.map_or(with_gradient, |lora| adapters(lora.r));
        let mut optimiser = 2 * moved;
        if lora.is_some() {
            // The base weights, and the adapters with their gradients.
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
            TeacherMode::Online => all,
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

    /// The sum.
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
        // The activations of the last micro-batch stay allocated during an evaluation.
        weights + gradients + optimiser + held + activations + asking + rest
    }

    /// Refuses a run that does not fit in the memory of this machine, with suggestions.
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

    /// Settings that save memory, the largest saving first.
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
            // Of each layer only its input is kept.
            ways.push((
                self.activations / 10 * 9,
                "`train.gradient_checkpointing = true`",
            ));
        }
        if config.train.batch_size > 1 {
            ways.push((
                self.activations / 2,
                "a smaller `train.batch_size`, with `train.gradient_accumulation_steps` for the same batch per step",
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
            ("optimizer", self.optimizer),
            ("teacher and remedies", self.remedies),
            ("activations", self.activations),
            ("evaluation", self.evaluation),
        ];
        let parts = parts.into_iter().filter(|(_, bytes)| *bytes > 0);
        let parts = parts.map(|(name, bytes)| format!("{name} {}", format::memory(bytes)));
        f.write_str(&parts.collect::<Vec<_>>().join(", "))
    }
}

/// The number of layers below all trained tensors whose activations are cached for `rows`: if there are any, and the cache is no
/// larger than the model's weights.
pub(super) fn frozen_layers(model: &Model, trained: &[bool], rows: &[Example]) -> Option<usize> {
    let layout = &model.params.layout;
    let layers = ActivationCache::layers(layout, trained);
    (layers > 0 && ActivationCache::floats(rows, layout.norm.len()) <= layout.len).then_some(layers)
}

/// Tokens of the largest micro-batch in the first epochs on all rows; a shared prefix counts once.
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

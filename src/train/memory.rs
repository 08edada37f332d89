//! The memory of a run, estimated before it starts.

use std::fmt;

use serde::Serialize;

use super::{activation_cache::ActivationCache, batches::micro_batch_tokens, sampler::epoch_order};
use crate::{
    Error, Result,
    config::{BehaviourSchedule, Config, LoraConfig, MethodKind, TeacherMode},
    engine::{Engine, Gradients},
    format,
    generate::{self, MAX_BATCH_TOKENS},
    measure::BehaviourReference,
    model::{Model, params::TensorInfo},
    prompt::{Example, PackedExamples, micro_batches},
    remedy::{null_space::NullSpaceProjection, teacher::TeacherSpec},
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
    /// Teacher, penalties, projection, and cached activations.
    pub remedies: u64,
    /// Copies of the weights that interpolation needs at the end.
    pub interpolation: u64,
    /// Activations of the largest micro-batch, and its backward pass.
    pub activations: u64,
    /// Evaluation: activations and KV cache.
    pub evaluation: u64,
    /// Everything else.
    pub other: u64,
}

/// Numbers of parameters of a run.
#[derive(Clone, Copy)]
struct ParameterCounts {
    /// Of the model.
    all: u64,
    /// With a gradient.
    trained: u64,
    /// Updated by the optimizer: the trained ones, or those of adapters.
    updated: u64,
}

impl MemoryEstimate {
    /// The memory of a run of `config` that trains these tensors of `model` (by index in its layout) on `rows`.
    pub(super) fn of(config: &Config, model: &Model, trained: &[bool], rows: &[Example]) -> Self {
        let layout = &model.params.layout;
        let method = &config.method;
        let tensors = layout.tensors.iter().zip(trained);
        let tensors = tensors.filter(|(_, trained)| **trained).map(|(t, _)| t);
        // A, B, and for DoRA a magnitude per row.
        let adapters = |lora: &LoraConfig| -> u64 {
            let of = |t: &TensorInfo| {
                let module = t.name.strip_suffix(".weight").unwrap_or(&t.name);
                lora.rank_of(module) * (t.shape[0] + t.shape[1]) + t.shape[0]
            };
            tensors.clone().map(|t| of(t) as u64).sum()
        };
        let chosen: u64 = tensors.clone().map(|t| t.range.len() as u64).sum();
        let lora = config.train.lora.as_ref();
        let are_beside = lora.is_some_and(|lora| !lora.is_merged(method));
        let counts = ParameterCounts {
            all: layout.len as u64,
            trained: if are_beside { 0 } else { chosen },
            updated: lora.map_or(chosen, adapters),
        };
        let mut estimate = Self::of_parameters(config, counts);
        if config.train.optimizer_in_backward {
            estimate.gradients = FLOAT * Gradients::layer_buffer_floats(layout, trained) as u64;
        }

        if let Some(frozen) = &model.params.frozen {
            estimate.weights = FLOAT * layout.dense as u64 + frozen.bytes();
        }
        let d = layout.norm.len();
        let is_on_disk = TeacherSpec::of(method).topk_on_disk().is_some();
        let is_online = matches!(method.teacher, TeacherMode::Online | TeacherMode::Base);
        if method.has_teacher() && !is_on_disk && !is_online {
            let decoys = method.decoys;
            let decoys = decoys.map_or(0.0, |d| d.pool_ratio.unwrap_or(d.ratio));
            let targets: usize = rows.iter().map(Example::num_targets).sum();
            let targets = (targets as f64 * (1.0 + decoys)).ceil() as usize;
            let head = if are_beside { 0 } else { layout.head.len() };
            estimate.remedies += FLOAT * (head + targets * d) as u64;
        }
        if method.project.is_some() {
            let floats = NullSpaceProjection::max_floats(layout, trained, rows);
            estimate.remedies += FLOAT * floats as u64;
        }
        if frozen_layers(model, trained, rows).is_some() {
            estimate.remedies += FLOAT * ActivationCache::floats(rows, d) as u64;
        }

        if config.measure.behaviour != BehaviourSchedule::Never {
            let mut tensors = tensors.clone();
            let trains_head = tensors.any(|tensor| tensor.range == layout.head);
            let floats = BehaviourReference::max_floats(layout, trains_head);
            estimate.evaluation += FLOAT * floats as u64;
        }
        let inference_floats = Engine::inference_floats(&model.config, MAX_BATCH_TOKENS) as u64;
        estimate.evaluation += FLOAT * inference_floats + generate::KV_CACHE_BYTES as u64;
        estimate.activations = FLOAT * largest_micro_batch(config, model, rows) as u64;
        estimate
    }

    /// The memory of a run of `config` on a model of which only the number of weights is known; all are trained, and activations are
    /// not counted.
    pub fn of_weights(config: &Config, weights: u64) -> Self {
        let counts = ParameterCounts {
            all: weights,
            trained: weights,
            updated: weights,
        };
        Self::of_parameters(config, counts)
    }

    /// The memory of weights, gradients, optimizer, and copies of the weights.
    fn of_parameters(config: &Config, counts: ParameterCounts) -> Self {
        let ParameterCounts {
            all,
            trained,
            updated,
        } = counts;
        let (train, method) = (&config.train, &config.method);
        let mut optimizer = 2 * updated;
        if train.lora.is_some() {
            // The adapters with their gradients, and the base weights of those that are merged.
            optimizer += trained + 2 * updated;
        }
        if train.ema_decay.is_some() {
            optimizer += updated;
        }
        let penalties = u64::from(method.kind == MethodKind::L2)
            + method
                .ewc
                .as_ref()
                .map_or(0, |ewc| 2 * (1 + ewc.previous_runs.len() as u64));
        let mut remedies = penalties * trained;
        if method.has_teacher() && method.teacher == TeacherMode::Online {
            let are_beside = train.lora.as_ref().is_some_and(|l| !l.is_merged(method));
            remedies += if are_beside { updated } else { all };
        }
        // The base weights, read again at the end, and a copy of the trained ones.
        let interpolation = method.interpolate.map_or(0, |_| 2 * all);
        Self {
            weights: FLOAT * all,
            gradients: FLOAT * trained,
            optimizer: FLOAT * optimizer,
            remedies: FLOAT * remedies,
            interpolation: FLOAT * interpolation,
            activations: 0,
            evaluation: 0,
            other: OVERHEAD,
        }
    }

    /// The sum.
    pub fn total(&self) -> u64 {
        let Self {
            weights,
            gradients,
            optimizer,
            remedies,
            interpolation,
            activations,
            evaluation,
            other,
        } = self;
        // The activations of the last micro-batch stay allocated during an evaluation.
        weights
            + gradients
            + optimizer
            + remedies
            + interpolation
            + activations
            + evaluation
            + other
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

    /// What a GPU holds of it: everything but the copies for interpolation and what is not in arrays.
    pub(super) fn on_device(&self) -> u64 {
        self.total() - self.interpolation - self.other
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
            ("interpolation", self.interpolation),
            ("activations", self.activations),
            ("evaluation", self.evaluation),
            ("the program", self.other),
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

/// Floats that the largest micro-batch of the first epochs on all rows allocates; a shared prefix counts once.
fn largest_micro_batch(config: &Config, model: &Model, rows: &[Example]) -> usize {
    let first = config.method.effective_snapshot_epochs() + 1;
    let train = &config.train;
    let max_tokens = micro_batch_tokens(train);
    let floats = |of: &[usize]| {
        let packed = PackedExamples::new(of.iter().map(|row| &rows[*row]));
        let tokens = packed.batch.tokens.len();
        Engine::training_floats(&model.config, tokens, train.gradient_checkpointing)
            + Engine::long_attention_floats(&model.config, &packed.batch)
    };
    let largest_of = |epoch| {
        let order = epoch_order(rows.len(), config.seed, epoch, train.shuffle);
        let batches = order.chunks(train.batch_size);
        let micro_batches = batches
            .flat_map(|batch| micro_batches(batch, max_tokens, |&row| rows[row].num_tokens()));
        micro_batches.map(floats).max()
    };
    let largest = (first..first + EPOCHS).filter_map(largest_of).max();
    largest.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{InterpolateConfig, ProjectConfig};

    fn model() -> Model {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama");
        Model::load(path).expect("the golden model")
    }

    fn estimate(change: impl FnOnce(&mut Config), rows: &[Example]) -> MemoryEstimate {
        let mut config = Config::default();
        config.method.kind = MethodKind::Sft;
        change(&mut config);
        let model = model();
        let trained = vec![true; model.params.layout.tensors.len()];
        MemoryEstimate::of(&config, &model, &trained, rows)
    }

    fn rows(count: usize, tokens: usize) -> Vec<Example> {
        let row = Example::new(vec![1; tokens - 1], vec![2]);
        vec![row; count]
    }

    #[test]
    fn interpolation_takes_two_copies_of_the_weights() {
        let plain = estimate(|_| (), &rows(4, 8));
        let interpolated = estimate(
            |c| c.method.interpolate = Some(InterpolateConfig::default()),
            &rows(4, 8),
        );
        assert_eq!(interpolated.interpolation, 2 * plain.weights);
        assert_eq!(interpolated.total(), plain.total() + 2 * plain.weights);
    }

    #[test]
    fn a_projection_takes_bases_and_moments_and_more_with_more_known_tokens() {
        let project = |c: &mut Config| c.method.project = Some(ProjectConfig::default());
        let [few, many] = [2, 8].map(|count| estimate(project, &rows(count, 3)).remedies);
        assert!(few > estimate(|_| (), &rows(2, 3)).remedies);
        assert!(many > few);
    }

    #[test]
    fn the_backward_pass_of_long_rows_takes_more_per_token() {
        let per_token = |tokens: usize| {
            let estimate = estimate(|c| c.train.batch_size = 1, &rows(1, tokens));
            estimate.activations as f64 / (tokens - 1) as f64
        };
        assert!((per_token(81) - per_token(41)).abs() < 1e-9);
        assert!(per_token(2001) > 1.1 * per_token(41));
    }
}

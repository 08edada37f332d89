//! `[train]`: which parameters are trained, for how long and by which steps.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    check::Checks,
    method::{MethodConfig, MethodKind},
    serde_helpers::one_or_many,
    tensor_groups::{TENSOR_GROUPS, parse_selector},
};
use crate::error::closest_match;

/// `[train]`: which parameters are trained, for how long and by which steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// `k`, `q`, `v`, `o`, `attn`, `gate+up`, `down`, `ffn`, `all` (weight, bias and q/k norm of each), or patterns of
    /// tensor names (`model.layers.*.mlp.*`), each in all layers or in some (`ffn@0-9`); one, or a list. Default `all`;
    /// `method.kind = "auto"` and `method.goal = "task"` have their own.
    #[serde(with = "one_or_many")]
    pub trainable: Vec<String>,
    /// Number of epochs, those before the snapshot included. Default 20.
    pub num_epochs: usize,
    /// Rows of a batch. Long rows are split into micro-batches. Default 64.
    pub batch_size: usize,
    /// Learning rate after the warm-up. Default 5e-5.
    pub learning_rate: f64,
    /// Learning-rate schedule after the warm-up. Default `constant`.
    pub lr_scheduler: LrScheduler,
    /// Steps over which the learning rate rises from 0. Default 0.
    pub warmup_steps: usize,
    /// The same as a fraction of all steps, rounded up; in place of `warmup_steps`. Absent by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_ratio: Option<f64>,
    /// `AdamW`'s decay rates of the first and second moment. Default `[0.9, 0.999]`.
    pub betas: [f64; 2],
    /// The epsilon in `AdamW`'s denominator. Default 1e-8.
    pub eps: f64,
    /// Decoupled weight decay. Default 0.
    pub weight_decay: f64,
    /// Gradients are scaled so that their global norm is at most this; 0 is off. Default 1.
    pub max_grad_norm: f64,
    /// Update each layer as soon as its gradient is computed, so that only one layer's gradient is in memory. Clipping needs the norm of
    /// the whole gradient, which takes a second backward pass: set `max_grad_norm = 0` to save it. Default false.
    pub optimizer_in_backward: bool,
    /// Recompute a layer's activations in the backward pass instead of keeping those of all layers: the same result with less memory
    /// for long rows, in about a fifth more time. Default false.
    pub gradient_checkpointing: bool,
    /// Batches whose gradients are averaged into one step: a step sees `batch_size * gradient_accumulation_steps` rows. Default 1.
    pub gradient_accumulation_steps: usize,
    /// Shuffle the rows in each epoch. False: keep, then learn, in the files' order. Default true.
    pub shuffle: bool,
    /// Maximum number of tokens of a row. A longer row is an error, unless `truncate`. Default 2048.
    pub max_length: usize,
    /// Cut rows that are longer than `max_length`. Default false.
    pub truncate: bool,
    /// Epochs between checkpoints. Absent: every epoch, but at most one a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub save_every: Option<usize>,
    /// Low-rank adapters instead of whole tensors, `{ r = 16, alpha = 32, target_modules = ["q_proj", "v_proj"] }`; `trainable`
    /// is left at `all` then. Absent by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// When to stop before the last epoch, `{ accuracy = 0.99 }` or `{ patience = 2 }`. Absent by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_stopping: Option<EarlyStoppingConfig>,
    /// Decay of an exponential moving average of the weights, from 0 to below 1. The average is evaluated and saved instead of
    /// the weights. Absent by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema_decay: Option<f64>,
    /// What to do when a loss or gradient is not finite. Default `stop`.
    pub on_nonfinite: OnNonFinite,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            trainable: vec!["all".into()],
            num_epochs: 20,
            batch_size: 64,
            learning_rate: 5e-5,
            lr_scheduler: LrScheduler::default(),
            warmup_steps: 0,
            warmup_ratio: None,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            optimizer_in_backward: false,
            gradient_checkpointing: false,
            gradient_accumulation_steps: 1,
            shuffle: true,
            max_length: 2048,
            truncate: false,
            save_every: None,
            lora: None,
            early_stopping: None,
            ema_decay: None,
            on_nonfinite: OnNonFinite::default(),
        }
    }
}

impl TrainConfig {
    pub(super) fn check(&self, checks: &mut Checks) {
        self.check_trainable(checks);
        self.check_optimizer(checks);
        for (key, count) in [
            ("train.num_epochs", self.num_epochs),
            ("train.batch_size", self.batch_size),
            (
                "train.gradient_accumulation_steps",
                self.gradient_accumulation_steps,
            ),
            ("train.save_every", self.save_every.unwrap_or(1)),
        ] {
            checks.at_least_one(key, count);
        }
        let rows = self
            .batch_size
            .checked_mul(self.gradient_accumulation_steps);
        checks.require(
            rows.is_some_and(|rows| rows <= MAX_ROWS),
            "train.batch_size",
            format!(
                "times `train.gradient_accumulation_steps` must be at most {MAX_ROWS} rows per step, not {} x {}",
                self.batch_size, self.gradient_accumulation_steps
            ),
        );
        checks.require(
            self.max_length >= 2,
            "train.max_length",
            "must be at least 2: one token of the prompt and one of the target",
        );
        if let Some(lora) = &self.lora {
            checks.require(
                self.trainable == ["all"],
                "train.lora",
                "trains adapters and no tensor of the model itself: leave `train.trainable` out",
            );
            lora.check(checks);
        }
        if let Some(early_stopping) = self.early_stopping {
            checks.require(
                early_stopping.accuracy.is_some() || early_stopping.patience.is_some(),
                "train.early_stopping",
                "needs the key `accuracy` or `patience`",
            );
            if let Some(accuracy) = early_stopping.accuracy {
                checks.fraction("train.early_stopping.accuracy", accuracy);
            }
            checks.at_least_one(
                "train.early_stopping.patience",
                early_stopping.patience.unwrap_or(1),
            );
        }
    }

    /// The learning rate of `step` (counted from 1) of `total_steps`.
    pub fn learning_rate_at(&self, step: usize, total_steps: usize) -> f64 {
        let warmup_steps = self.warmup_ratio.map_or(self.warmup_steps, |ratio| {
            (ratio * total_steps as f64).ceil() as usize
        });
        let factor = self
            .lr_scheduler
            .factor(step - 1, warmup_steps, total_steps);
        self.learning_rate * factor
    }

    fn check_optimizer(&self, checks: &mut Checks) {
        checks.require(
            self.learning_rate > 0.0 && self.learning_rate <= 1.0,
            "train.learning_rate",
            format!("must be above 0 and at most 1, not {}", self.learning_rate),
        );
        checks.require(
            self.betas.iter().all(|b| (0.0..1.0).contains(b)),
            "train.betas",
            format!("must each be 0 or more and below 1, not {:?}", self.betas),
        );
        if let Some(ratio) = self.warmup_ratio {
            checks.fraction("train.warmup_ratio", ratio);
            checks.require(
                self.warmup_steps == 0,
                "train.warmup_ratio",
                "and `train.warmup_steps` name the same thing: leave one out",
            );
        }
        checks.positive("train.eps", self.eps);
        checks.not_negative("train.weight_decay", self.weight_decay);
        checks.not_negative("train.max_grad_norm", self.max_grad_norm);
        let ema_decay = self.ema_decay.unwrap_or_default();
        checks.require(
            (0.0..1.0).contains(&ema_decay),
            "train.ema_decay",
            format!("must be 0 or more and below 1, not {ema_decay}"),
        );
    }

    fn check_trainable(&self, checks: &mut Checks) {
        checks.require(
            !self.trainable.is_empty(),
            "train.trainable",
            "is an empty list: nothing would be trained",
        );
        let groups = TENSOR_GROUPS.map(|(group, _)| group);
        for selector in &self.trainable {
            let Some((name, _)) = parse_selector(selector) else {
                checks.require(
                    false,
                    "train.trainable",
                    format!("`{selector}`: `@` is followed by a layer or a range of layers, counted from 0, such as `ffn@0-9`"),
                );
                continue;
            };
            let is_pattern = name.contains(['.', '*']);
            let did_you_mean = closest_match(name, groups)
                .map(|near| format!(" (did you mean `{near}`?)"))
                .unwrap_or_default();
            checks.require(
                is_pattern || groups.contains(&name),
                "train.trainable",
                format!(
                    "`{name}` is neither a group ({}) nor a pattern of tensor names{did_you_mean}",
                    groups.join(", ")
                ),
            );
        }
    }
}

/// Maximum number of rows of a step: far more than fits on any machine, and far below overflow.
const MAX_ROWS: usize = 1 << 32;

/// `train.on_nonfinite`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnNonFinite {
    /// The run ends; the last checkpoint stays.
    #[default]
    Stop,
    /// The step is skipped and the run continues; after ten skipped steps it ends.
    Skip,
}

/// `train.lr_scheduler`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LrScheduler {
    /// `learning_rate` in every step.
    #[default]
    Constant,
    /// From `learning_rate` to 0 along half a cosine.
    Cosine,
    /// From `learning_rate` to 0 along a line.
    Linear,
}

/// `train.lora`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank of the update. Default 16.
    pub r: usize,
    /// The update is scaled by `alpha / r` (by `alpha / sqrt(r)` under `rslora`). Default 32.
    pub alpha: usize,
    /// The linear layers that are adapted, as PEFT names modules: `q_proj` is one in every layer,
    /// `layers.0.self_attn.q_proj` a single one, `all-linear` all of them. Default `["q_proj", "v_proj"]`.
    #[serde(with = "one_or_many")]
    pub target_modules: Vec<String>,
    /// Default `lora`.
    pub variant: LoraVariant,
    /// Probability with which an element of the adapters' input is zeroed in a training step (at least 0, below 1). Default 0.
    pub dropout: f64,
    /// Other ranks of some of these layers, `{ "layers.0.self_attn.q_proj" = 8 }`; of several names that match, the longest counts.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rank_pattern: BTreeMap<String, usize>,
    /// The same for `alpha`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub alpha_pattern: BTreeMap<String, usize>,
}

/// The name in `target_modules` that means every linear layer.
pub const ALL_LINEAR: &str = "all-linear";

/// Whether a module, such as `model.layers.0.self_attn.q_proj`, is called `name`: it is equal to it or ends with a dot and it.
pub fn matches_module(module: &str, name: &str) -> bool {
    let ends_so = |rest: &str| rest.is_empty() || rest.ends_with('.');
    name == ALL_LINEAR || module.strip_suffix(name).is_some_and(ends_so)
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            r: 16,
            alpha: 32,
            target_modules: ["q_proj", "v_proj"].map(String::from).to_vec(),
            variant: LoraVariant::default(),
            dropout: 0.0,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
        }
    }
}

impl LoraConfig {
    fn check(&self, checks: &mut Checks) {
        checks.require(
            !self.target_modules.is_empty(),
            "train.lora.target_modules",
            "is an empty list: nothing would be trained",
        );
        checks.at_least_one("train.lora.r", self.r);
        checks.at_least_one("train.lora.alpha", self.alpha);
        checks.require(
            (0.0..1.0).contains(&self.dropout),
            "train.lora.dropout",
            format!("must be at least 0 and below 1, not {}", self.dropout),
        );
        for (key, pattern) in [
            ("train.lora.rank_pattern", &self.rank_pattern),
            ("train.lora.alpha_pattern", &self.alpha_pattern),
        ] {
            for value in pattern.values() {
                checks.at_least_one(key, *value);
            }
        }
    }

    /// Whether adapters are written into the weights, or lie beside them: the norms of `dora` and penalties on weights need whole
    /// weights.
    pub fn is_merged(&self, method: &MethodConfig) -> bool {
        self.variant == LoraVariant::Dora || method.kind == MethodKind::L2 || method.ewc.is_some()
    }

    /// The rank of a module.
    pub fn rank_of(&self, module: &str) -> usize {
        pattern_value(&self.rank_pattern, module).unwrap_or(self.r)
    }

    /// alpha of a module.
    pub fn alpha_of(&self, module: &str) -> usize {
        pattern_value(&self.alpha_pattern, module).unwrap_or(self.alpha)
    }
}

/// The value of the longest name in `pattern` that matches `module`.
fn pattern_value(pattern: &BTreeMap<String, usize>, module: &str) -> Option<usize> {
    let matching = pattern
        .iter()
        .filter(|(name, _)| matches_module(module, name));
    matching
        .max_by_key(|(name, _)| name.len())
        .map(|(_, value)| *value)
}

/// `train.lora.variant`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LoraVariant {
    /// The update is scaled by `alpha / r`.
    #[default]
    Lora,
    /// By `alpha / sqrt(r)`.
    RsLora,
    /// As `lora`, with the norm of every row trained apart from its direction.
    Dora,
}

/// `train.early_stopping`: training stops at the first rule that holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EarlyStoppingConfig {
    /// Accuracy on the new facts at an evaluation at which training stops. Absent by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Evaluations in a row without a smaller validation loss after which training stops. The weights with the smallest loss are
    /// kept. Absent by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<usize>,
}

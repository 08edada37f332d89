//! The experiment file: one TOML, typed, closed and checked whole.
//!
//! The doc comments here are its reference. Values come from the defaults, then the file, then `--set key=value`.
//! Paths in it are relative to the directory that `unforget` is called from.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Result, facts::MatchRule, prompt::PromptTemplate};

mod method;
mod read;
mod serde_helpers;
mod tensor_groups;
mod validate;

pub use method::{
    DecoysConfig, DistillReduction, EwcConfig, Goal, InterpolateConfig, MethodConfig, MethodKind,
    ProjectConfig, ReplayConfig, ReplaySchedule, ReplaySelection, ReplayTarget, TargetToken,
    TeacherMode, VocabSubset,
};
pub use tensor_groups::{TENSOR_GROUPS, parse_selector};

use serde_helpers::{false_or_table, one_or_many};

/// An experiment: everything that decides what a run computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// A Hugging Face directory, a `.gguf` file, a hub id or a name in the registry. Default `smollm2-135m`.
    pub model: String,
    /// The run directory to be written. Default `runs/p17`.
    pub out: PathBuf,
    /// Seed of every draw: splits, few-shot exemplars, order of the rows. Default 0.
    pub seed: u64,
    /// An Only Known run to compare with (`below_only_known_pp`). Absent by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<PathBuf>,
    /// `[data]`.
    pub data: DataConfig,
    /// `[method]`.
    pub method: MethodConfig,
    /// `[train]`.
    pub train: TrainConfig,
    /// `[measure]`.
    pub measure: MeasureConfig,
}

/// `[data]`: the facts, and how they are labelled and asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// New facts (`D_Unk`). Absent: nothing new is taught, the control that the paper calls Only Known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub learn: Vec<PathBuf>,
    /// Known facts to train on (`D_Known`). Absent: `HighlyKnown` facts of the same relations, else of `pack:world`, as
    /// many as `learn` has, at most 8,000.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keep: Vec<PathBuf>,
    /// Known facts that are only measured (`D_Held`). Absent: a seeded sample of the known facts that are left,
    /// disjoint by subject.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<PathBuf>,
    /// How the base model is asked for its labels: `{ runs = 20, shots = 3, samples = 16 }`. `false`: the files are taken
    /// as they are, nothing is filtered or labelled.
    #[serde(with = "false_or_table")]
    pub audit: Option<AuditConfig>,
    /// A relation with a smaller share of `HighlyKnown` facts is left out. Default 0; 0.3 in the paper.
    pub min_highly_known: f64,
    /// When an answer is right: `exact` (default) or `contains`.
    #[serde(rename = "match")]
    pub match_rule: MatchRule,
    /// Text of the prompt, with `{question}` in it. Absent: `Q: {question}\nA:`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Text of the target, with `{object}` in it. Absent: a space, `{object}` and a line break.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Ask through the model's own chat template. Default false.
    pub chat: bool,
    /// Count and list broken rows instead of refusing the file. Default false.
    pub skip_bad_rows: bool,
}

/// `data.audit`: `SLiCK` settings of the labels before and after a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuditConfig {
    /// Few-shot prompts each fact is asked under. Default 20.
    pub num_prompts: usize,
    /// Exemplars in a prompt. Default 3.
    pub shots: usize,
    /// Samples that a fact gets under each prompt, drawn or computed. Default 16.
    pub samples: usize,
    /// Draw the samples instead of summing the probability of the right answers. Default false.
    pub sample: bool,
}

/// `[train]`: what is trained, how long and by which steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// `k`, `q`, `v`, `o`, `attn`, `gate+up`, `down`, `ffn`, `all` (weight, bias and q/k norm of each), or patterns of
    /// tensor names (`model.layers.*.mlp.*`), each in all layers or in some (`ffn@0-9`); one, or a list. Default `all`;
    /// `method.goal = "task"` has its own.
    #[serde(with = "one_or_many")]
    pub trainable: Vec<String>,
    /// All of them, the snapshot epochs included. Default 20.
    pub num_epochs: usize,
    /// Rows of one batch. They pass through the model together, or where they are long in several passes. Default 64.
    pub batch_size: usize,
    /// Learning rate at its highest. Default 5e-5.
    pub learning_rate: f64,
    /// Course of the learning rate after the warm-up. Default `constant`.
    pub lr_scheduler: LrScheduler,
    /// Steps over which the learning rate rises from 0. Default 0.
    pub warmup_steps: usize,
    /// `AdamW`'s decay rates of the first and second moment. Default `[0.9, 0.999]`.
    pub betas: [f64; 2],
    /// `AdamW`'s term against division by zero. Default 1e-8.
    pub eps: f64,
    /// Decoupled weight decay. Default 0.
    pub weight_decay: f64,
    /// Global gradient norm to which a larger one is scaled down; 0 is off. Default 1.
    pub max_grad_norm: f64,
    /// Take each layer's step as soon as its gradient is there, so that no more than one layer's is held; for one pass a step. The
    /// norm that `clip` asks for is found in a pass before, for twice the time: with `clip = 0` there is none. Default false.
    #[serde(skip_serializing_if = "is_default")]
    pub optimizer_in_backward: bool,
    /// Compute a layer's activations again in the backward pass instead of keeping those of all layers: the same result with less
    /// memory for long rows, in about a fifth more time. Default false.
    #[serde(skip_serializing_if = "is_default")]
    pub gradient_checkpointing: bool,
    /// Batches whose gradients make one step; a step sees `batch_size * accumulate` rows. Default 1.
    pub gradient_accumulation_steps: usize,
    /// Shuffle the rows anew each epoch. False: keep, then learn, in the files' order. Default true.
    pub shuffle: bool,
    /// A longer row is an error, unless `truncate`. Default 2048.
    pub max_length: usize,
    /// Cut rows that are longer than `max_tokens`. Default false.
    pub truncate: bool,
    /// Epochs between checkpoints. Absent: every epoch, but at most one a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub save_every: Option<usize>,
    /// Low-rank adapters in the place of whole tensors, `{ rank = 16, alpha = 32, targets = ["q_proj", "v_proj"] }`;
    /// `trainable` is left at `all` then. Absent by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// When to stop before the last epoch, `{ learned = 0.99 }`. Absent by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_stopping: Option<EarlyStoppingConfig>,
    /// What is asked, watched and saved is the moving average of the weights in which every step keeps so much of the one
    /// before. Absent by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema_decay: Option<f64>,
    /// What becomes of a step whose loss or gradient is not finite. Default `stop`.
    #[serde(skip_serializing_if = "is_default")]
    pub on_nonfinite: OnNonFinite,
}

/// Whether a value is the one that stands where none is given. Keys that came later are written only where they are not.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// `train.on_nonfinite`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnNonFinite {
    /// The run ends; the last checkpoint stays.
    #[default]
    Stop,
    /// The step changes no weight, and the run goes on; after ten such steps it ends as well.
    Skip,
}

/// `train.lr_scheduler`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LrScheduler {
    /// `lr` throughout.
    #[default]
    Constant,
    /// From `lr` to 0 along half a cosine.
    Cosine,
    /// From `lr` to 0 along a line.
    Linear,
}

/// `train.lora`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank of a target's change. Default 16.
    pub r: usize,
    /// What is divided by the rank (by its root under `rslora`) to scale the change. Default 32.
    pub alpha: usize,
    /// The linear layers that are adapted, as PEFT names modules: `q_proj` is one in every layer,
    /// `layers.0.self_attn.q_proj` a single one, `all-linear` all of them. Default `["q_proj", "v_proj"]`.
    #[serde(with = "one_or_many")]
    pub target_modules: Vec<String>,
    /// Default `lora`.
    pub variant: LoraVariant,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            r: 16,
            alpha: 32,
            target_modules: ["q_proj", "v_proj"].map(String::from).to_vec(),
            variant: LoraVariant::default(),
        }
    }
}

/// `train.lora.variant`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LoraVariant {
    /// The change is scaled by `alpha / rank`.
    #[default]
    Lora,
    /// By `alpha / sqrt(rank)`.
    RsLora,
    /// As `lora`, and every row's length is trained apart from its direction.
    Dora,
}

/// `train.early_stopping`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlyStoppingConfig {
    /// Share of the new facts that is right at the end of an epoch.
    pub accuracy: f64,
}

/// `[measure]`: what is measured beside the accuracies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MeasureConfig {
    /// How far hidden states and answers have drifted ([`crate::prompt::DriftArgs`]), after every epoch. Default false.
    pub drift: bool,
    /// How strongly the model is pulled by what it learns and by what holds it ([`crate::prompt::GradNorms`]), after every epoch.
    /// Default false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub grad_norms: bool,
    /// Ask new facts in other words too, where there are any. Default true.
    pub paraphrase: bool,
    /// Also write what `metrics.jsonl` holds as `TensorBoard` reads it: `tensorboard --logdir RUN/tensorboard`. Default false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub tensorboard: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            model: "smollm2-135m".into(),
            out: "runs/p17".into(),
            seed: 0,
            baseline: None,
            data: DataConfig::default(),
            method: MethodConfig::default(),
            train: TrainConfig::default(),
            measure: MeasureConfig::default(),
        }
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            learn: Vec::new(),
            keep: Vec::new(),
            held: Vec::new(),
            audit: Some(AuditConfig::default()),
            min_highly_known: 0.0,
            match_rule: MatchRule::Exact,
            prompt: None,
            target: None,
            chat: false,
            skip_bad_rows: false,
        }
    }
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self {
            num_prompts: 20,
            shots: 3,
            samples: 16,
            sample: false,
        }
    }
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

impl Default for MeasureConfig {
    fn default() -> Self {
        Self {
            drift: false,
            grad_norms: false,
            paraphrase: true,
            tensorboard: false,
        }
    }
}

impl Config {
    /// Reads an experiment file, lays `sets` (`train.learning_rate=5e-5`) over it and validates the whole.
    ///
    /// # Errors
    /// [`crate::Error::Input`] naming file, line and key of what is wrong; every invalid value at once.
    pub fn read(path: &Path, sets: &[String]) -> Result<Self> {
        read::file(path, sets)
    }

    /// This config with `sets` (`train.learning_rate=5e-5`, the value in TOML's syntax or a bare string) laid over it.
    /// Nothing is validated.
    ///
    /// # Errors
    /// [`crate::Error::Input`] for a set without `=`, an unknown key or a value of another type.
    pub fn with_sets(&self, sets: &[String]) -> Result<Self> {
        read::overlay(self, sets)
    }

    /// Checks every value and every combination.
    ///
    /// # Errors
    /// One [`crate::Error::Input`] that lists all faults.
    pub fn validate(&self) -> Result<()> {
        validate::report(&validate::errors(self), "the config", |_| None)
    }

    /// The whole config, defaults included, as TOML: what a run directory keeps.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every field has a form in TOML")
    }

    /// Whether nothing new is taught: the control run.
    pub fn only_known(&self) -> bool {
        self.data.learn.is_empty()
    }
}

impl DataConfig {
    /// How facts are asked.
    pub fn template(&self) -> PromptTemplate {
        let default = PromptTemplate::default();
        PromptTemplate {
            prompt: self.prompt.clone().unwrap_or(default.prompt),
            target: self.target.clone().unwrap_or(default.target),
            next_prompt: None,
        }
    }
}

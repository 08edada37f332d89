//! The experiment file: one TOML document, typed and closed (an unknown key is an error).
//!
//! The doc comments here are its reference. Values come from the defaults, then a preset (`method.kind = "auto"`,
//! `method.goal = "task"`), then the file, then flags and `--set key=value`. Paths are relative to the directory that `unforget` is
//! called from.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

mod check;
mod data;
mod deserialize;
mod key_names;
mod method;
mod read;
mod resolve;
mod serde_helpers;
mod tensor_groups;
mod train;

pub use data::{AuditConfig, DataConfig, MatchRule};
pub use method::{
    DecoysConfig, DistillReduction, EwcConfig, Goal, InterpolateConfig, MethodConfig, MethodKind,
    ProjectConfig, ReplayConfig, ReplaySchedule, ReplaySelection, ReplayTarget, TeacherMode,
    VocabSubset,
};
pub use read::Override;
pub use resolve::{ModelSize, Resolved, SetKeys};
pub(crate) use serde_helpers::is_default;
pub use tensor_groups::{TENSOR_GROUPS, parse_selector};
pub use train::{
    EarlyStoppingConfig, LoraConfig, LoraVariant, LrScheduler, OnNonFinite, TrainConfig,
};

use check::{Checks, ConfigError};
use data::is_text;

/// An experiment: everything that decides what a run computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// A Hugging Face directory, a `.gguf` file, a hub id or a name in the registry. Default `smollm2-135m`.
    pub model: String,
    /// The run directory to be written. Default `runs/p17`.
    pub out: PathBuf,
    /// Seed of every random draw: splits, few-shot exemplars, order of the rows. Default 0.
    pub seed: u64,
    /// `cpu`, `gpu`, `gpu:N` or `auto`. Default `auto`.
    pub device: Device,
    /// An Only Known run to compare with (`gap_to_only_known_pp`). Absent by default.
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
    /// The keys that were set, also to a default's value. Not part of the file.
    #[serde(skip)]
    pub set_keys: SetKeys,
}

/// `[measure]`: additional measurements.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MeasureConfig {
    /// How far hidden states and answers have drifted, after every epoch. Default false.
    pub drift: bool,
    /// Gradient norms of each term of the loss and of each remedy, after every epoch. Default false.
    pub grad_norms: bool,
    /// Also ask the new facts in paraphrase, where there are any. Default true.
    pub paraphrase: bool,
    /// Also write the metrics for `TensorBoard`: `tensorboard --logdir RUN/tensorboard`. Default false.
    pub tensorboard: bool,
}

/// Where to compute. `auto` is the CPU, the only device of this build.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    /// The best one of this machine.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// A graphics card: the N-th, counted from 0.
    Gpu(u32),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let number = |n: &str| n.parse().ok().map(Self::Gpu);
        match name {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "gpu" => Some(Self::Gpu(0)),
            _ => name.strip_prefix("gpu:").and_then(number),
        }
        .ok_or_else(|| format!("expected cpu, gpu, gpu:N or auto, found {name:?}"))
    }
}

impl TryFrom<String> for Device {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        name.parse()
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Gpu(0) => f.write_str("gpu"),
            Self::Gpu(n) => write!(f, "gpu:{n}"),
        }
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

impl Device {
    /// Whether this build can compute there.
    ///
    /// # Errors
    /// [`Error::Input`] where it cannot.
    pub fn check(self) -> Result<()> {
        match self {
            Self::Auto | Self::Cpu => Ok(()),
            Self::Gpu(_) => Err(Error::input_hint(
                format!("`--device {self}`: {CPU_ONLY}"),
                "leave `--device` out, or write `--device cpu`",
            )),
        }
    }
}

const CPU_ONLY: &str = "this build computes on the CPU only";

impl Default for Config {
    fn default() -> Self {
        Self {
            model: "smollm2-135m".into(),
            out: "runs/p17".into(),
            seed: 0,
            device: Device::default(),
            baseline: None,
            data: DataConfig::default(),
            method: MethodConfig::default(),
            train: TrainConfig::default(),
            measure: MeasureConfig::default(),
            set_keys: SetKeys::default(),
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
    /// Reads an experiment file, lays `sets` (`train.learning_rate=5e-5`) over it and validates the result.
    ///
    /// # Errors
    /// [`crate::Error::Input`] that lists every error with file, line and key.
    pub fn read(path: &Path, sets: &[String]) -> Result<Self> {
        let overrides: Vec<Override> = sets
            .iter()
            .map(|set| Override::parse(set))
            .collect::<Result<_>>()?;
        Self::build(Some(path), &overrides)
    }

    /// The defaults, under the experiment file at `path` where one is given, under `overrides`; validated.
    ///
    /// # Errors
    /// [`crate::Error::Input`] that lists every error with its key, and the line or the override that gave it.
    pub fn build(path: Option<&Path>, overrides: &[Override]) -> Result<Self> {
        read::build(path, overrides)
    }

    /// This config with `sets` (`train.learning_rate=5e-5`, the value in TOML's syntax or a bare string) laid over it.
    /// Nothing is validated.
    ///
    /// # Errors
    /// [`crate::Error::Input`] for a set without `=`, an unknown key or a value of another type.
    pub fn with_sets(&self, sets: &[String]) -> Result<Self> {
        let overrides: Vec<Override> = sets
            .iter()
            .map(|set| Override::parse(set))
            .collect::<Result<_>>()?;
        read::overlay(self, &overrides)
    }

    /// Checks every value and every combination, as they are once the config is resolved.
    ///
    /// # Errors
    /// One [`crate::Error::Input`] that lists all errors.
    pub fn validate(&self) -> Result<()> {
        read::validate(self)
    }

    /// The whole config, defaults included, as TOML: the `config.toml` of a run directory.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every value of a validated config has a form in TOML")
    }

    /// Whether nothing new is taught: the control run.
    pub fn only_known(&self) -> bool {
        self.data.learn.is_empty()
    }

    /// As TOML.
    fn to_table(&self) -> Result<toml::Table> {
        toml::Table::try_from(self)
            .map_err(|reason| Error::input(format!("the config has no form in TOML: {reason}")))
    }

    /// All that is wrong, in the order of the file's sections.
    fn errors(&self) -> Vec<ConfigError> {
        // The checks are the same for models of every size.
        let resolved = self.resolve(ModelSize {
            num_hidden_layers: 1,
            parameters: 1,
        });
        let mut checks = Checks::default();
        resolved.config.check(&mut checks);
        checks.errors
    }

    /// Checks a resolved config.
    fn check(&self, checks: &mut Checks) {
        checks.require(!self.model.is_empty(), "model", "is empty");
        checks.require(!self.out.as_os_str().is_empty(), "out", "is empty");
        for (key, path) in [("out", Some(&self.out)), ("baseline", self.baseline.as_ref())] {
            let holds = path.is_none_or(|path| is_text(path));
            checks.require(holds, key, "is not UTF-8 text");
        }
        checks.require(
            i64::try_from(self.seed).is_ok(),
            "seed",
            "is above the largest integer that TOML can hold",
        );
        checks.require(self.device.check().is_ok(), "device", format!("is `{}`: {CPU_ONLY}", self.device));
        self.data.check(checks);
        self.method.check(checks);
        self.train.check(checks);
        self.check_combinations(checks);
    }

    /// Checks what depends on several sections.
    fn check_combinations(&self, checks: &mut Checks) {
        let Self { method, train, .. } = self;
        checks.require(
            method.goal == Goal::Facts || train.early_stopping.is_none(),
            "train.early_stopping",
            "ends the run once the new facts are learned, and under `method.goal = \"task\"` they should not be learned: leave it out",
        );
        if train.lora.is_some() {
            checks.require(
                method.interpolate.is_none(),
                "method.interpolate",
                "scales the change of whole weights, which is then no longer a product of adapters: leave `method.interpolate` or `train.lora` out",
            );
            checks.require(
                method.project.is_none(),
                "method.project",
                "projects updates of whole weights; the product of updated adapters does not stay in the space: leave `method.project` or `train.lora` out",
            );
        }
        let conflicts: Vec<&str> = [
            (
                "`train.gradient_accumulation_steps` must be 1",
                train.gradient_accumulation_steps != 1,
            ),
            (
                "`train.lora` must be absent",
                train.lora.is_some(),
            ),
            (
                "`train.on_nonfinite` must be `stop`",
                train.on_nonfinite != OnNonFinite::Stop,
            ),
            (
                "`method.kind` must be `sft` or `self-distill`",
                !matches!(method.kind, MethodKind::Sft | MethodKind::SelfDistill),
            ),
            (
                "`method.decoys` needs a second backward pass",
                method.trains_decoys(),
            ),
            (
                "`method.replay` needs a second backward pass",
                method.replay.is_some(),
            ),
            ("`method.ewc` needs the whole gradient", method.ewc.is_some()),
            (
                "`measure.grad_norms` needs the whole gradient",
                self.measure.grad_norms,
            ),
        ]
        .into_iter()
        .filter_map(|(reason, conflicts)| conflicts.then_some(reason))
        .collect();
        checks.require(
            !train.optimizer_in_backward || conflicts.is_empty(),
            "train.optimizer_in_backward",
            format!(
                "updates each layer before the next gradient is computed: {}",
                conflicts.join("; ")
            ),
        );
    }
}

#[cfg(test)]
mod tests;

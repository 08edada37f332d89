//! The root of a config, and its small sections.

use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{data::DataConfig, method::MethodConfig, set_keys::SetKeys, train::TrainConfig};
use crate::{Error, Result};

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

pub(super) const CPU_ONLY: &str = "this build computes on the CPU only";

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
    /// The whole config, defaults included, as TOML: the `config.toml` of a run directory.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every value of a validated config has a form in TOML")
    }

    /// Whether nothing new is taught: the control run.
    pub fn only_known(&self) -> bool {
        self.data.learn.is_empty()
    }
}

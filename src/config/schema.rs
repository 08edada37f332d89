//! The root of a config, and its small sections.

use std::{fmt, path::PathBuf, str::FromStr};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, Visitor},
};

use super::{
    check::Checks, data::DataConfig, method::MethodConfig, serde_helpers::is_default,
    set_keys::SetKeys, train::TrainConfig,
};
use crate::{Error, Result};

/// An experiment: everything that decides what a run computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// A Hugging Face directory, a `.gguf` file, a PEFT adapter directory, a hub id or a name in the registry. Default `smollm2-135m`.
    pub model: String,
    /// How weights that are not trained are held: `f32`; `stored`, as they lie in the model's files; `q8_0` or `q4_0`, quantised when the
    /// model is loaded. Others than `f32` are for adapters (`train.lora`). Default `f32`.
    #[serde(skip_serializing_if = "is_default")]
    pub model_dtype: ModelDtype,
    /// The run directory. Default `runs/p17`.
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
    /// The keys that the user set, even to a default. Not part of the file.
    #[serde(skip)]
    pub set_keys: SetKeys,
}

/// `model_dtype`: how weights that are not trained are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelDtype {
    /// In f32.
    #[default]
    F32,
    /// As they lie in the model's files, which are mapped into memory: bf16, f16, or blocks of a few bits.
    Stored,
    /// Quantised when the model is loaded: blocks of 32 weights of 8 bits with a scale.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// The same with 4 bits; embedding and head have 8.
    #[serde(rename = "q4_0")]
    Q4_0,
}

/// `[measure]`: additional measurements.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MeasureConfig {
    /// How far hidden states and answers have drifted, after every epoch. Default false.
    pub drift: bool,
    /// Gradient norms of the cross-entropy and of all regularisers together, after every epoch. Default false.
    pub grad_norms: bool,
    /// Also evaluate new facts on paraphrased questions, if they have any. Default true.
    pub paraphrase: bool,
    /// How far the answers to 200 general prompts are from the base model's: `true` (at the end), `"every"` (also at every
    /// evaluation) or `false`. Default true.
    pub behaviour: BehaviourSchedule,
    /// Epochs between evaluations; the last epoch is always evaluated. Default 1.
    pub every: usize,
    /// Maximum facts per split and evaluation; a larger split is sampled. Before and after training all facts are evaluated.
    /// Default 1000.
    pub max_facts: usize,
    /// Also write the metrics for `TensorBoard`: `tensorboard --logdir RUN/tensorboard`. Default false.
    pub tensorboard: bool,
}

/// `measure.behaviour`: when the behaviour on general prompts is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BehaviourSchedule {
    /// Never.
    Never,
    /// At the end.
    #[default]
    End,
    /// At every evaluation, and at the end.
    Every,
}

impl Serialize for BehaviourSchedule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Never => serializer.serialize_bool(false),
            Self::End => serializer.serialize_bool(true),
            Self::Every => serializer.serialize_str("every"),
        }
    }
}

impl<'de> Deserialize<'de> for BehaviourSchedule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Schedule;
        impl Visitor<'_> for Schedule {
            type Value = BehaviourSchedule;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`true`, `false` or `every`")
            }
            fn visit_bool<E: de::Error>(self, on: bool) -> Result<Self::Value, E> {
                Ok(if on {
                    BehaviourSchedule::End
                } else {
                    BehaviourSchedule::Never
                })
            }
            fn visit_str<E: de::Error>(self, word: &str) -> Result<Self::Value, E> {
                match word {
                    "every" => Ok(BehaviourSchedule::Every),
                    _ => Err(E::unknown_variant(word, &["every", "true", "false"])),
                }
            }
        }
        deserializer.deserialize_any(Schedule)
    }
}

/// Where to compute. `auto` is the CPU: no card has been measured yet.
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
            Self::Gpu(_) if cfg!(feature = "gpu") => Ok(()),
            Self::Gpu(_) => Err(Error::input_hint(
                format!("`--device {self}`: {CPU_ONLY}"),
                "leave `--device` out, or install a program that can use one: `cargo install --path . --features gpu`",
            )),
        }
    }
}

pub(super) const CPU_ONLY: &str = "this program was built without GPUs";

impl Default for Config {
    fn default() -> Self {
        Self {
            model: "smollm2-135m".into(),
            model_dtype: ModelDtype::default(),
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
            behaviour: BehaviourSchedule::default(),
            every: 1,
            max_facts: 1000,
            tensorboard: false,
        }
    }
}

impl MeasureConfig {
    /// The number of evaluations after epochs in a run of `epochs` epochs.
    pub fn num_evaluations(&self, epochs: usize) -> usize {
        epochs.div_ceil(self.every.max(1))
    }

    /// Measurements of the behaviour in a run of so many epochs.
    pub fn num_behaviours(&self, epochs: usize) -> usize {
        match self.behaviour {
            BehaviourSchedule::Never => 0,
            BehaviourSchedule::End => 1,
            BehaviourSchedule::Every => 1 + self.num_evaluations(epochs),
        }
    }

    pub(super) fn check(&self, checks: &mut Checks) {
        checks.at_least_one("measure.every", self.every);
        checks.at_least_one("measure.max_facts", self.max_facts);
        checks.require(
            i64::try_from(self.max_facts).is_ok() && i64::try_from(self.every).is_ok(),
            "measure",
            "has a number above the largest integer that TOML can hold",
        );
    }
}

impl Config {
    /// The whole config, defaults included, as TOML: the `config.toml` of a run directory.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every value of a validated config has a form in TOML")
    }

    /// Whether this is an Only Known run (no new facts).
    pub fn only_known(&self) -> bool {
        self.data.learn.is_empty()
    }
}

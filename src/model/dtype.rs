//! The types of weights in files.

use half::{bf16, f16};

use super::tensor::TensorInfo;
use crate::{Error, Result};

/// The dtype of weights in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// 16-bit brain float.
    Bf16,
}

impl Dtype {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Whether a value of this magnitude is finite in it.
    pub(super) fn holds(self, magnitude: f32) -> bool {
        match self {
            Self::F32 => magnitude.is_finite(),
            Self::F16 => f16::from_f32(magnitude).is_finite(),
            Self::Bf16 => bf16::from_f32(magnitude).is_finite(),
        }
    }

    /// Its short name, such as `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// Its name in `torch` and `config.json`.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }
}

/// How the matrices of a model are held in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightStorage {
    /// In f32: they can be trained.
    #[default]
    F32,
    /// As they lie in the model's files, which are mapped.
    Stored,
    /// Quantised when the model is loaded.
    Quantized(GgufType),
}

/// The type of matrices in a GGUF file; vectors are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufType {
    /// 32-bit float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// 16-bit brain float.
    Bf16,
    /// Blocks of 32 weights of 8 bits with a scale.
    Q8_0,
    /// Blocks of 32 weights of 4 bits with a scale; embedding and head are [`GgufType::Q8_0`].
    Q4_0,
}

impl GgufType {
    /// Whether a tensor whose largest magnitude this is has finite values in it: a block's scale is f16.
    pub(super) fn holds(self, magnitude: f32) -> bool {
        match self {
            Self::F32 => Dtype::F32.holds(magnitude),
            Self::F16 => Dtype::F16.holds(magnitude),
            Self::Bf16 => Dtype::Bf16.holds(magnitude),
            Self::Q8_0 => Dtype::F16.holds(magnitude / 127.0),
            Self::Q4_0 => Dtype::F16.holds(magnitude / 8.0),
        }
    }
}

/// An error if a tensor with these values would not be finite in a file of type `name`, which `holds` values of a magnitude.
pub(super) fn check_range(
    tensor: &TensorInfo,
    values: &[f32],
    name: &str,
    holds: impl Fn(f32) -> bool,
) -> Result<()> {
    // The maximum ignores NaN.
    let largest = values.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    if values.iter().any(|x| x.is_nan()) || largest.is_infinite() {
        return Err(Error::Failed {
            message: format!(
                "the weights of `{}` are not finite: nothing is written",
                tensor.name
            ),
            hint: None,
        });
    }
    if holds(largest) {
        return Ok(());
    }
    Err(Error::input_hint(
        format!(
            "`{}` has a weight of magnitude {largest:e}, which is infinite in {name}",
            tensor.name
        ),
        "write the model with `--dtype bf16` or `--dtype f32`",
    ))
}

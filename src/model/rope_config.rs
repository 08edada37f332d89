//! Rotary frequencies: their base and scaling, as `config.json` states them (`transformers`' `modeling_rope_utils`).

use std::f64::consts::{PI, TAU};

use serde_json::Value;

use super::config_reader::Reader;
use crate::{Error, Result};

/// `transformers`' default for the base.
const DEFAULT_THETA: f64 = 10_000.0;

/// Llama 3.x rope scaling (`rope_scaling.rope_type = "llama3"`).
#[derive(Clone, Debug, PartialEq)]
pub struct Llama3Scaling {
    /// `factor`.
    pub factor: f64,
    /// `low_freq_factor`.
    pub low_freq_factor: f64,
    /// `high_freq_factor`.
    pub high_freq_factor: f64,
    /// `original_max_position_embeddings`.
    pub original_max_position_embeddings: f64,
}

impl Llama3Scaling {
    /// The divisor of the frequency with this wavelength w (tokens). With original context c: 1 for w < c / high, `factor` for
    /// w > c / low, and between them 1 / ((1 - s) / factor + s) with s = (c / w - low) / (high - low).
    pub fn divisor(&self, wavelength: f64) -> f64 {
        let cycles = self.original_max_position_embeddings / wavelength;
        let (low, high) = (self.low_freq_factor, self.high_freq_factor);
        let smooth = ((cycles - low) / (high - low)).clamp(0.0, 1.0);
        1.0 / ((1.0 - smooth) / self.factor + smooth)
    }
}

/// `YaRN` (Peng et al. 2023, arXiv 2309.00071; `rope_scaling.rope_type = "yarn"`).
#[derive(Clone, Debug, PartialEq)]
pub struct YarnScaling {
    /// `factor`.
    pub factor: f64,
    /// `original_max_position_embeddings`.
    pub original_max_position_embeddings: f64,
    /// Factor of cosines and sines: `attention_factor`, or as derived from `factor`, `mscale` and `mscale_all_dim`.
    pub attention_factor: f64,
    /// `beta_fast`: frequencies of more rotations within the original context are kept.
    pub beta_fast: f64,
    /// `beta_slow`: frequencies of fewer rotations are divided by `factor`.
    pub beta_slow: f64,
    /// `truncate`: the ends of the ramp between the two are rounded to whole channels.
    pub truncate: bool,
}

impl YarnScaling {
    /// The scaling with this factor and original context, and defaults for all else.
    pub fn plain(factor: f64, original_max_position_embeddings: f64) -> Self {
        Self {
            factor,
            original_max_position_embeddings,
            attention_factor: yarn_growth(factor, 1.0),
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
        }
    }

    /// The divisor-weighted frequency of pair `i` of a rotation of `dim` channels with base `theta`.
    fn frequency(&self, i: usize, dim: usize, theta: f64) -> f64 {
        let d = dim as f64;
        // The channel of so many rotations within the original context.
        let channel = |rotations: f64| {
            d * (self.original_max_position_embeddings / (rotations * TAU)).ln()
                / (2.0 * theta.ln())
        };
        let (mut low, mut high) = (channel(self.beta_fast), channel(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(d - 1.0));
        if low == high {
            high += 0.001;
        }
        let kept = 1.0 - ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        let frequency = theta.powf(-2.0 * i as f64 / d);
        frequency / self.factor * (1.0 - kept) + frequency * kept
    }
}

/// `LongRoPE` (Ding et al. 2024, arXiv 2402.13753; `rope_scaling.rope_type = "longrope"`), within the original context, where the
/// short factors count.
#[derive(Clone, Debug, PartialEq)]
pub struct LongRopeScaling {
    /// `short_factor`: the divisor of each pair's frequency.
    pub short_factor: Vec<f64>,
    /// Factor of cosines and sines.
    pub attention_factor: f64,
    /// `original_max_position_embeddings`.
    pub original_max_position_embeddings: usize,
}

/// Scaling of rotary frequencies for long contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// No scaling; also `dynamic`, which scales nothing within `max_position_embeddings`.
    None,
    /// Positions are divided by this factor (`linear`).
    Linear(f64),
    /// Llama 3.x (`llama3`).
    Llama3(Llama3Scaling),
    /// `yarn`.
    Yarn(YarnScaling),
    /// `longrope`.
    LongRope(LongRopeScaling),
}

impl RopeScaling {
    /// The frequency (radians per position) of pair `i` of a rotation of `dim` channels with base `theta`: `theta^(-2i / dim)`, scaled.
    pub fn frequency(&self, i: usize, dim: usize, theta: f64) -> f64 {
        let frequency = theta.powf(-2.0 * i as f64 / dim as f64);
        match self {
            Self::None => frequency,
            Self::Linear(factor) => frequency / factor,
            Self::Llama3(s) => frequency / s.divisor(2.0 * PI / frequency),
            Self::Yarn(s) => s.frequency(i, dim, theta),
            Self::LongRope(s) => frequency / s.short_factor[i],
        }
    }

    /// Factor of cosines and sines.
    pub fn attention_factor(&self) -> f64 {
        match self {
            Self::Yarn(s) => s.attention_factor,
            Self::LongRope(s) => s.attention_factor,
            _ => 1.0,
        }
    }
}

/// Base and scaling of the rotary frequencies of some layers.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rope {
    pub(super) theta: f64,
    pub(super) scaling: RopeScaling,
    /// The rotated share of each head.
    pub(super) partial: f64,
}

/// What rope depends on beside its own section.
#[derive(Clone, Copy)]
pub(super) struct RopeDefaults {
    /// The family's default base.
    pub(super) theta: Option<f64>,
    /// `max_position_embeddings`.
    pub(super) positions: usize,
    /// K.
    pub(super) head_dim: usize,
}

/// The section that counts: `rope_scaling`, else `rope_parameters`, as in `transformers` 4 and 5.
fn section(config: Reader<'_>) -> Result<Option<Reader<'_>>> {
    let old = config.section("rope_scaling", "rope_scaling.")?;
    match old.filter(|section| !section.config.is_empty()) {
        Some(section) => Ok(Some(section)),
        None => config.section("rope_parameters", "rope_parameters."),
    }
}

/// Reads the rope of a `config.json`. Sections nested by layer type (`rope_parameters.full_attention`) must agree for all of
/// `layer_types` in use.
pub(super) fn read(config: Reader, layer_types: &[&str], defaults: RopeDefaults) -> Result<Rope> {
    let Some(found) = section(config)? else {
        return read_section(config, None, defaults);
    };
    let nested: Vec<(&String, &Value)> = found
        .config
        .iter()
        .filter(|(_, value)| value.is_object())
        .collect();
    if nested.is_empty() {
        return read_section(config, Some(found), defaults);
    }
    let mut ropes: Vec<(&str, Rope)> = Vec::new();
    for layer_type in layer_types {
        let Some(section) = found.section(layer_type, found.prefix)? else {
            let keys: Vec<&str> = nested.iter().map(|(key, _)| key.as_str()).collect();
            return Err(config.broken(format!(
                "`{}{layer_type}` is missing: the layers are of that type, and the section has {}",
                found.prefix,
                keys.join(", ")
            )));
        };
        ropes.push((layer_type, read_section(config, Some(section), defaults)?));
    }
    let (first, rope) = ropes.swap_remove(0);
    if let Some((other, _)) = ropes.iter().find(|(_, other)| *other != rope) {
        let key = found.prefix.trim_end_matches('.');
        return Err(config.unsupported(&format!(
            "`{key}` that differs between `{first}` and `{other}` layers"
        )));
    }
    Ok(rope)
}

/// The ropes of a gemma3.
pub(super) struct Gemma3Ropes {
    pub(super) global: Rope,
    pub(super) local_theta: f64,
}

/// Reads the ropes of a gemma3: `rope_parameters` nested by layer type (`transformers` 5), or `rope_theta`, `rope_local_base_freq` and
/// `rope_scaling` (of full layers).
pub(super) fn read_gemma3(config: Reader, defaults: RopeDefaults) -> Result<Gemma3Ropes> {
    let parameters = config.section("rope_parameters", "rope_parameters.")?;
    let nested = |key: &str, prefix| match parameters {
        Some(section) => section.section(key, prefix),
        None => Ok(None),
    };
    let full = nested("full_attention", "rope_parameters.full_attention.")?;
    let sliding = nested("sliding_attention", "rope_parameters.sliding_attention.")?;
    let scaling = config.section("rope_scaling", "rope_scaling.")?;
    let defaults = RopeDefaults {
        theta: Some(1_000_000.0),
        ..defaults
    };
    let mut global = read_section(config, scaling.or(full), defaults)?;
    if let (Some(full), Some(_)) = (full, scaling) {
        // `transformers` updates the section with `rope_scaling`.
        global.theta = scaling.unwrap_or(full).number(
            "rope_theta",
            Some(full.number("rope_theta", Some(global.theta))?),
        )?;
    }
    let local_theta = config.positive("rope_local_base_freq", Some(DEFAULT_THETA))?;
    let local = match sliding {
        Some(section) => {
            let kind = section.get("rope_type").and_then(Value::as_str);
            if kind.is_some_and(|kind| kind != "default") {
                return Err(config.unsupported("scaled rope in sliding layers"));
            }
            section.positive("rope_theta", Some(local_theta))?
        }
        None => local_theta,
    };
    Ok(Gemma3Ropes {
        global,
        local_theta: local,
    })
}

/// Reads one section; without one, what stands beside it.
pub(super) fn read_section(
    config: Reader,
    section: Option<Reader>,
    defaults: RopeDefaults,
) -> Result<Rope> {
    let theta = config.number("rope_theta", Some(defaults.theta.unwrap_or(DEFAULT_THETA)))?;
    let theta = match &section {
        Some(section) => section.number("rope_theta", Some(theta))?,
        None => theta,
    };
    if !(theta.is_finite() && theta > 0.0) {
        return Err(config.broken(format!("`rope_theta` is {theta}")));
    }
    let partial = config.number("partial_rotary_factor", Some(1.0))?;
    let partial = match &section {
        Some(section) => section.number("partial_rotary_factor", Some(partial))?,
        None => partial,
    };
    if !(partial > 0.0 && partial <= 1.0) {
        return Err(config.broken(format!("`partial_rotary_factor` is {partial}")));
    }
    let scaling = match section {
        Some(section) => scaling(config, section, partial, defaults)?,
        None => RopeScaling::None,
    };
    Ok(Rope {
        theta,
        scaling,
        partial,
    })
}

fn scaling(
    config: Reader,
    section: Reader,
    partial: f64,
    defaults: RopeDefaults,
) -> Result<RopeScaling> {
    let kind = section.get("rope_type").or_else(|| section.get("type"));
    let required = |name: &str| section.positive(name, None);
    let positions = defaults.positions as f64;
    // Beside the section it counts first; without it the model was trained on its whole context.
    let original = || match config.get("original_max_position_embeddings") {
        Some(_) => config.positive("original_max_position_embeddings", None),
        None => section.positive("original_max_position_embeddings", Some(positions)),
    };
    Ok(match kind.map_or(Some("default"), Value::as_str) {
        Some("default" | "dynamic") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear(required("factor")?),
        Some("llama3") => RopeScaling::Llama3(Llama3Scaling {
            factor: required("factor")?,
            low_freq_factor: required("low_freq_factor")?,
            high_freq_factor: required("high_freq_factor")?,
            original_max_position_embeddings: original()?,
        }),
        Some("yarn") => RopeScaling::Yarn(yarn(section, original()?, positions)?),
        Some("longrope" | "su") => {
            RopeScaling::LongRope(long_rope(section, original()?, partial, defaults)?)
        }
        _ => {
            return Err(Error::input_hint(
                format!(
                    "{}: rope scaling {} is not supported",
                    config.path.display(),
                    kind.unwrap_or(&Value::Null)
                ),
                "supported: default, linear, dynamic, llama3, yarn, longrope",
            ));
        }
    })
}

/// The growth of the attention logits with `factor`: 0.1 m ln(factor) + 1.
fn yarn_growth(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 {
        1.0
    } else {
        0.1 * mscale * factor.ln() + 1.0
    }
}

fn yarn(section: Reader, original: f64, positions: f64) -> Result<YarnScaling> {
    let factor = section.positive("factor", Some(positions / original))?;
    let mscale = |key: &str| section.number(key, Some(0.0));
    let growth = |mscale: f64| yarn_growth(factor, mscale);
    let (numerator, denominator) = (mscale("mscale")?, mscale("mscale_all_dim")?);
    let derived = if numerator != 0.0 && denominator != 0.0 {
        growth(numerator) / growth(denominator)
    } else {
        growth(1.0)
    };
    Ok(YarnScaling {
        factor,
        original_max_position_embeddings: original,
        attention_factor: section.positive("attention_factor", Some(derived))?,
        beta_fast: section.positive("beta_fast", Some(32.0))?,
        beta_slow: section.positive("beta_slow", Some(1.0))?,
        truncate: section.flag_or("truncate", true)?,
    })
}

fn long_rope(
    section: Reader,
    original: f64,
    partial: f64,
    defaults: RopeDefaults,
) -> Result<LongRopeScaling> {
    let pairs = (defaults.head_dim as f64 * partial) as usize / 2;
    let short_factor = section.numbers("short_factor")?;
    if short_factor.len() != pairs || short_factor.iter().any(|f| !(f.is_finite() && *f > 0.0)) {
        return Err(section.broken(format!(
            "`{}short_factor` has {} numbers; {pairs} above 0 are needed, one for each pair of channels",
            section.prefix,
            short_factor.len()
        )));
    }
    let factor = section.positive("factor", Some(defaults.positions as f64 / original))?;
    let derived = if factor <= 1.0 {
        1.0
    } else {
        (1.0 + factor.ln() / original.ln()).sqrt()
    };
    Ok(LongRopeScaling {
        short_factor,
        attention_factor: section.positive("attention_factor", Some(derived))?,
        original_max_position_embeddings: original as usize,
    })
}

//! The configuration of a decoder, with the names of Hugging Face's `config.json`.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Result};

/// Supported model families. They differ only in the switches of [`ModelConfig`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `llama` (`SmolLM2`, Llama 3.x).
    Llama,
    /// `mistral`: as llama.
    Mistral,
    /// `qwen2`: q, k and v have a bias.
    Qwen2,
    /// `qwen3`: RMS norm of q and k in each head.
    Qwen3,
}

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

/// Scaling of rotary frequencies for long contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// No scaling.
    None,
    /// Positions are divided by this factor (`linear`).
    Linear(f64),
    /// Llama 3.x (`llama3`).
    Llama3(Llama3Scaling),
}

/// A decoder's shape. Field names are those of `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Model family.
    pub family: Family,
    /// D.
    pub hidden_size: usize,
    /// F.
    pub intermediate_size: usize,
    /// L.
    pub num_hidden_layers: usize,
    /// H.
    pub num_attention_heads: usize,
    /// G: key and value heads.
    pub num_key_value_heads: usize,
    /// K; not D / H in some models.
    pub head_dim: usize,
    /// V.
    pub vocab_size: usize,
    /// Epsilon of every RMS norm.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Scaling of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// The longest supported row in tokens: `max_position_embeddings`, or the sliding window if that is shorter. Within one window,
    /// sliding-window attention is full attention, the only kind that the engine computes.
    pub max_position_embeddings: usize,
    /// The LM head is the embedding.
    pub tie_word_embeddings: bool,
    /// q, k and v have a bias.
    pub qkv_bias: bool,
    /// q and k are RMS-normalised per head before rope.
    pub qk_norm: bool,
}

/// The families, as `model_type` names them.
const FAMILIES: [(&str, Family); 4] = [
    ("llama", Family::Llama),
    ("mistral", Family::Mistral),
    ("qwen2", Family::Qwen2),
    ("qwen3", Family::Qwen3),
];

/// Upper limits, far above those of any model, so that no product of two dimensions overflows.
const MAX_DIMENSION: usize = 1 << 22;
const MAX_LAYERS: usize = 1 << 12;

impl Family {
    /// `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        FAMILIES
            .iter()
            .find(|(_, family)| *family == self)
            .expect("every family is in the table")
            .0
    }

    /// The family of a `config.json`: `model_type`, or else the first of `architectures`.
    fn of(config: &Map<String, Value>, path: &Path) -> Result<Self> {
        let architecture = config
            .get("architectures")
            .and_then(|a| a.get(0))
            .and_then(Value::as_str);
        let name = match config.get("model_type").and_then(Value::as_str) {
            Some(model_type) => model_type.to_owned(),
            None => architecture
                .map(|a| {
                    a.trim_end_matches("ForCausalLM")
                        .trim_end_matches("Model")
                        .to_lowercase()
                })
                .ok_or_else(|| {
                    Error::broken(path, "neither `model_type` nor `architectures` is set")
                })?,
        };
        let family = FAMILIES.iter().find(|(known, _)| *known == name);
        let decoder = architecture.is_none_or(|a| {
            let a = a.to_lowercase();
            a == format!("{name}forcausallm") || a == format!("{name}model")
        });
        match family {
            Some((_, family)) if decoder => Ok(*family),
            _ => Err(unsupported_architecture(architecture.unwrap_or(&name))),
        }
    }
}

/// The error for an unsupported architecture.
pub(super) fn unsupported_architecture(name: &str) -> Error {
    let known = FAMILIES.map(|(name, _)| name).join(", ");
    Error::input_hint(
        format!("the model's architecture `{name}` is not supported"),
        format!("supported: {known} (decoders with a language-model head)"),
    )
}

impl ModelConfig {
    /// Reads a `config.json` (the content of `path`). Missing keys get the defaults of `transformers`.
    ///
    /// # Errors
    /// [`Error::Input`] for an unsupported architecture or switch, [`Error::BrokenModel`] for a missing or invalid value; both name
    /// the key.
    pub fn from_json(config: &Map<String, Value>, path: &Path) -> Result<Self> {
        let family = Family::of(config, path)?;
        let reader = Reader { config, path };
        reader.refuse_unsupported(family)?;

        let num_attention_heads = reader.dimension("num_attention_heads", None)?;
        let hidden_size = reader.dimension("hidden_size", None)?;
        let default_kv_heads = match family {
            Family::Llama => num_attention_heads,
            Family::Mistral => 8,
            Family::Qwen2 | Family::Qwen3 => 32,
        };
        let num_key_value_heads = if config.get("num_key_value_heads") == Some(&Value::Null) {
            num_attention_heads
        } else {
            reader.dimension("num_key_value_heads", Some(default_kv_heads))?
        };
        let default_head_dim = match family {
            Family::Qwen3 => 128,
            _ => hidden_size / num_attention_heads,
        };
        let head_dim = reader.dimension("head_dim", Some(default_head_dim))?;
        if head_dim % 2 != 0 {
            return Err(reader.broken(format!(
                "`head_dim` is {head_dim}; rotary position embeddings need an even one"
            )));
        }
        if num_attention_heads % num_key_value_heads != 0 {
            return Err(reader.broken(format!(
                "`num_attention_heads` ({num_attention_heads}) is not a multiple of `num_key_value_heads` ({num_key_value_heads})"
            )));
        }
        let default_positions = match family {
            Family::Llama => 2048,
            Family::Mistral => 4096 * 32,
            Family::Qwen2 | Family::Qwen3 => 32768,
        };
        let positions = reader.integer("max_position_embeddings", Some(default_positions))?;
        let rms_norm_eps = reader.number("rms_norm_eps", Some(1e-6))?;
        if !(0.0..1.0).contains(&rms_norm_eps) {
            return Err(reader.broken(format!("`rms_norm_eps` is {rms_norm_eps}")));
        }
        let num_hidden_layers = reader.dimension("num_hidden_layers", None)?;
        if num_hidden_layers > MAX_LAYERS {
            return Err(reader.broken(format!("`num_hidden_layers` is {num_hidden_layers}")));
        }
        let (rope_theta, rope_scaling) = reader.rope()?;
        Ok(Self {
            family,
            hidden_size,
            intermediate_size: reader.dimension("intermediate_size", None)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size: reader.dimension("vocab_size", None)?,
            rms_norm_eps: rms_norm_eps as f32,
            rope_theta,
            rope_scaling,
            max_position_embeddings: reader
                .sliding_window(family)?
                .map_or(positions, |window| window.min(positions)),
            tie_word_embeddings: reader.flag("tie_word_embeddings")?,
            qkv_bias: family == Family::Qwen2,
            qk_norm: family == Family::Qwen3,
        })
    }
}

/// Typed access to a `config.json`, with errors that name the key.
struct Reader<'a> {
    config: &'a Map<String, Value>,
    path: &'a Path,
}

impl<'a> Reader<'a> {
    fn broken(&self, message: String) -> Error {
        Error::broken(self.path, message)
    }

    /// A present, non-null value.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.config.get(key).filter(|v| !v.is_null())
    }

    fn integer(&self, key: &str, default: Option<usize>) -> Result<usize> {
        let value = match (self.get(key), default) {
            (None, Some(default)) => return Ok(default),
            (None, None) => return Err(self.broken(format!("`{key}` is missing"))),
            (Some(value), _) => value,
        };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if n > 0 => Ok(n),
            _ => Err(self.broken(format!("`{key}` is {value}, not a positive integer"))),
        }
    }

    fn dimension(&self, key: &str, default: Option<usize>) -> Result<usize> {
        match self.integer(key, default)? {
            n @ 1..=MAX_DIMENSION => Ok(n),
            n => Err(self.broken(format!("`{key}` is {n}; the limit is {MAX_DIMENSION}"))),
        }
    }

    fn number(&self, key: &str, default: Option<f64>) -> Result<f64> {
        match (self.get(key), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.broken(format!("`{key}` is missing"))),
            (Some(value), _) => value
                .as_f64()
                .ok_or_else(|| self.broken(format!("`{key}` is {value}, not a number"))),
        }
    }

    /// A switch; missing means false.
    fn flag(&self, key: &str) -> Result<bool> {
        self.get(key).map_or(Ok(false), |value| {
            value
                .as_bool()
                .ok_or_else(|| self.broken(format!("`{key}` is {value}, not true or false")))
        })
    }

    fn refuse_unsupported(&self, family: Family) -> Result<()> {
        let refuse = |what: String| Err(Error::input(format!("{}: {what}", self.path.display())));
        if let Some(act) = self.get("hidden_act")
            && act.as_str() != Some("silu")
        {
            return refuse(format!("`hidden_act` {act} is not supported (\"silu\" is)"));
        }
        // Qwen2 always has biases on q, k and v, and none on o, independent of this key.
        for key in ["attention_bias", "mlp_bias"] {
            if family != Family::Qwen2 && self.flag(key)? {
                return refuse(format!(
                    "`{key}` = true is not supported for {}",
                    family.model_type()
                ));
            }
        }
        if self.number("partial_rotary_factor", Some(1.0))? != 1.0 {
            return refuse("`partial_rotary_factor` other than 1 is not supported".into());
        }
        if self.get("quantization_config").is_some() {
            return Err(Error::input_hint(
                format!(
                    "{}: the weights are quantised (`quantization_config`)",
                    self.path.display()
                ),
                "use the unquantised model, or its GGUF file",
            ));
        }
        Ok(())
    }

    /// The sliding window, if one is in use.
    fn sliding_window(&self, family: Family) -> Result<Option<usize>> {
        let in_use = match family {
            Family::Llama => false,
            // On by default; an explicit null turns it off.
            Family::Mistral => self.config.get("sliding_window") != Some(&Value::Null),
            Family::Qwen2 | Family::Qwen3 => self.flag("use_sliding_window")?,
        };
        if !in_use {
            return Ok(None);
        }
        self.integer("sliding_window", Some(4096)).map(Some)
    }

    /// Base and scaling of the rotary frequencies: `rope_parameters` (`transformers` 5), or `rope_theta` and `rope_scaling`.
    fn rope(&self) -> Result<(f64, RopeScaling)> {
        const DEFAULT_THETA: f64 = 10_000.0;
        let key = if self.get("rope_parameters").is_some() {
            "rope_parameters"
        } else {
            "rope_scaling"
        };
        let section = match self.get(key) {
            None => None,
            Some(Value::Object(section)) => Some(Reader {
                config: section,
                path: self.path,
            }),
            Some(other) => {
                return Err(self.broken(format!("`{key}` is {other}, not an object")));
            }
        };
        let theta = self.number("rope_theta", Some(DEFAULT_THETA))?;
        let theta = match &section {
            Some(section) => section.number("rope_theta", Some(theta))?,
            None => theta,
        };
        if !(theta.is_finite() && theta > 0.0) {
            return Err(self.broken(format!("`rope_theta` is {theta}")));
        }
        let Some(section) = section else {
            return Ok((theta, RopeScaling::None));
        };
        let kind = section.get("rope_type").or_else(|| section.get("type"));
        let positive = |name: &str| match section.number(name, None)? {
            n if n.is_finite() && n > 0.0 => Ok(n),
            n => Err(self.broken(format!("`{key}.{name}` is {n}"))),
        };
        let scaling = match kind.map_or(Some("default"), Value::as_str) {
            Some("default") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear(positive("factor")?),
            Some("llama3") => RopeScaling::Llama3(Llama3Scaling {
                factor: positive("factor")?,
                low_freq_factor: positive("low_freq_factor")?,
                high_freq_factor: positive("high_freq_factor")?,
                original_max_position_embeddings: positive("original_max_position_embeddings")?,
            }),
            _ => {
                return Err(Error::input_hint(
                    format!(
                        "{}: rope scaling {} is not supported",
                        self.path.display(),
                        kind.unwrap_or(&Value::Null)
                    ),
                    "supported: default, linear, llama3",
                ));
            }
        };
        Ok((theta, scaling))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(change: &Value) -> Result<ModelConfig> {
        let mut config = json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 8, "vocab_size": 100,
        });
        for (key, value) in change.as_object().unwrap() {
            config[key] = value.clone();
        }
        ModelConfig::from_json(config.as_object().unwrap(), Path::new("config.json"))
    }

    #[test]
    fn missing_keys_have_the_defaults_of_the_family() {
        let llama = read(&json!({})).unwrap();
        assert_eq!((llama.num_key_value_heads, llama.head_dim), (8, 8));
        assert_eq!(
            (llama.max_position_embeddings, llama.rope_theta),
            (2048, 10_000.0)
        );
        assert!(!llama.tie_word_embeddings && !llama.qkv_bias && !llama.qk_norm);

        let qwen2 = read(&json!({"model_type": "qwen2", "num_attention_heads": 32})).unwrap();
        assert_eq!((qwen2.num_key_value_heads, qwen2.head_dim), (32, 2));
        assert!(qwen2.qkv_bias && !qwen2.qk_norm);

        let qwen3 = read(&json!({"model_type": "qwen3", "num_key_value_heads": null})).unwrap();
        assert_eq!((qwen3.num_key_value_heads, qwen3.head_dim), (8, 128));
        assert!(!qwen3.qkv_bias && qwen3.qk_norm);

        let mistral = read(&json!({"model_type": "mistral"})).unwrap();
        assert_eq!((mistral.num_key_value_heads, mistral.head_dim), (8, 8));
    }

    #[test]
    fn the_class_name_is_enough_to_find_the_family() {
        let config = read(
            &json!({"model_type": null, "architectures": ["Qwen3ForCausalLM"], "num_key_value_heads": 8}),
        );
        assert_eq!(config.unwrap().family, Family::Qwen3);
    }

    #[test]
    fn the_longest_row_is_the_sliding_window_if_it_is_in_use() {
        let positions = |change: Value| read(&change).unwrap().max_position_embeddings;
        assert_eq!(positions(json!({"model_type": "mistral"})), 4096);
        assert_eq!(
            positions(json!({"model_type": "mistral", "sliding_window": 512})),
            512
        );
        assert_eq!(
            positions(json!({"model_type": "mistral", "sliding_window": null})),
            131_072
        );
        let qwen = json!({"model_type": "qwen3", "num_key_value_heads": 8, "sliding_window": 16});
        assert_eq!(positions(qwen.clone()), 32_768);
        let mut sliding = qwen;
        sliding["use_sliding_window"] = true.into();
        assert_eq!(positions(sliding), 16);
    }

    #[test]
    fn rope_is_read_in_the_old_and_the_new_format() {
        let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192});
        let mut with_theta = llama3.clone();
        with_theta["rope_theta"] = json!(500_000.0);
        let old = read(&json!({"rope_theta": 500_000.0, "rope_scaling": llama3})).unwrap();
        let new = read(&json!({"rope_parameters": with_theta})).unwrap();
        assert_eq!(old, new);
        assert_eq!(new.rope_theta, 500_000.0);
        assert!(matches!(&new.rope_scaling, RopeScaling::Llama3(s) if s.factor == 8.0));

        let linear = read(&json!({"rope_scaling": {"type": "linear", "factor": 2}})).unwrap();
        assert_eq!(linear.rope_scaling, RopeScaling::Linear(2.0));
        let plain =
            read(&json!({"rope_parameters": {"rope_type": "default", "rope_theta": 7}})).unwrap();
        assert_eq!(
            (plain.rope_theta, plain.rope_scaling),
            (7.0, RopeScaling::None)
        );
    }

    #[test]
    fn unsupported_values_are_input_errors_and_invalid_ones_broken_files() {
        let cases = [
            (json!({"model_type": "gemma2"}), 2, "gemma2"),
            (
                json!({"architectures": ["LlamaForSequenceClassification"]}),
                2,
                "LlamaForSequenceClassification",
            ),
            (json!({"hidden_act": "gelu"}), 2, "hidden_act"),
            (json!({"attention_bias": true}), 2, "attention_bias"),
            (json!({"mlp_bias": true}), 2, "mlp_bias"),
            (
                json!({"partial_rotary_factor": 0.5}),
                2,
                "partial_rotary_factor",
            ),
            (
                json!({"quantization_config": {"quant_method": "gptq"}}),
                2,
                "quantization_config",
            ),
            (
                json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
                2,
                "dynamic",
            ),
            (
                json!({"rope_scaling": {"rope_type": "linear"}}),
                1,
                "factor",
            ),
            (json!({"rope_scaling": 3}), 1, "rope_scaling"),
            (json!({"rope_theta": 0}), 1, "rope_theta"),
            (json!({"hidden_size": null}), 1, "hidden_size"),
            (json!({"hidden_size": -1}), 1, "hidden_size"),
            (json!({"hidden_size": 1e300}), 1, "hidden_size"),
            (json!({"vocab_size": u64::MAX}), 1, "vocab_size"),
            (
                json!({"num_hidden_layers": 1_000_000}),
                1,
                "num_hidden_layers",
            ),
            (json!({"num_attention_heads": 0}), 1, "num_attention_heads"),
            (json!({"num_key_value_heads": 3}), 1, "num_key_value_heads"),
            (json!({"head_dim": 7}), 1, "head_dim"),
            (json!({"rms_norm_eps": "small"}), 1, "rms_norm_eps"),
            (
                json!({"tie_word_embeddings": "yes"}),
                1,
                "tie_word_embeddings",
            ),
        ];
        for (change, exit_code, word) in cases {
            let error = read(&change).expect_err(word);
            assert_eq!(error.exit_code(), exit_code, "{change}: {error}");
            assert!(error.to_string().contains(word), "{change}: {error}");
        }
    }
}

//! The configuration of a decoder, with the names of Hugging Face's `config.json`.

use std::path::Path;

use serde_json::{Map, Value};

pub use super::rope_config::{Llama3Scaling, LongRopeScaling, RopeScaling, YarnScaling};
use super::{
    config_reader::Reader,
    rope_config::{self, Rope, RopeDefaults},
};
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
    /// `gemma3_text`: norms before and after, `GeGLU`, scaled embeddings, sliding layers with a rope of their own.
    Gemma3,
    /// `phi3`: fused projections, a rotated part of each head.
    Phi3,
    /// `olmo2`: norms after attention and feed-forward network, RMS norm of all of q and all of k.
    Olmo2,
    /// `granite`: multipliers.
    Granite,
    /// `smollm3`: layers without rope.
    SmolLm3,
}

/// Layers whose attention differs from that of the others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerPattern {
    /// Tokens that a sliding layer's attention sees, the own one included; `None` if no layer slides.
    pub sliding_window: Option<usize>,
    /// Whether each layer slides; empty: none does.
    pub sliding: Vec<bool>,
    /// Base of the rotary frequencies of sliding layers, which are not scaled; `None`: that of all layers.
    pub local_rope_theta: Option<f64>,
    /// Whether each layer is without rope; empty: none is.
    pub no_rope: Vec<bool>,
}

/// Where a layer's RMS norms stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NormPlacement {
    /// Before attention and before the feed-forward network.
    #[default]
    Before,
    /// After each of them, on what is added to the residual stream.
    After,
    /// Before and after.
    Both,
}

/// Switches in which a family differs from `llama`.
#[derive(Clone, Debug, PartialEq)]
pub struct Switches {
    /// Where the norms of a layer stand.
    pub norms: NormPlacement,
    /// What is added to the stored weight of a norm: 1 in gemma3.
    pub norm_offset: f32,
    /// The per-head norms of q and k are over all of q, and all of k.
    pub whole_qk_norm: bool,
    /// The feed-forward network is gated by the tanh form of GELU, not by `SiLU`.
    pub gelu: bool,
    /// Factor of the embeddings.
    pub embedding_multiplier: f32,
    /// Factor of what attention and the feed-forward network add to the residual stream.
    pub residual_multiplier: f32,
    /// Factor of the attention scores; `None`: 1 / sqrt(K).
    pub attention_scale: Option<f32>,
    /// Divisor of the logits.
    pub logits_scaling: f32,
    /// Channels of each head that are rotated; `None`: all.
    pub rotary_dim: Option<usize>,
    /// q, k and v are stored as one matrix, and so are gate and up.
    pub fused_projections: bool,
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            norms: NormPlacement::Before,
            norm_offset: 0.0,
            whole_qk_norm: false,
            gelu: false,
            embedding_multiplier: 1.0,
            residual_multiplier: 1.0,
            attention_scale: None,
            logits_scaling: 1.0,
            rotary_dim: None,
            fused_projections: false,
        }
    }
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
    /// The longest supported row in tokens: `max_position_embeddings`, or the original context if rope is scaled by `longrope`.
    pub max_position_embeddings: usize,
    /// Layers with a sliding window, or a rope of their own.
    pub layers: LayerPattern,
    /// What differs from `llama`.
    pub switches: Switches,
    /// The LM head is the embedding.
    pub tie_word_embeddings: bool,
    /// q, k and v have a bias.
    pub qkv_bias: bool,
    /// q and k are RMS-normalised per head before rope.
    pub qk_norm: bool,
}

/// The families, as `model_type` names them.
const FAMILIES: [(&str, Family); 9] = [
    ("llama", Family::Llama),
    ("mistral", Family::Mistral),
    ("qwen2", Family::Qwen2),
    ("qwen3", Family::Qwen3),
    ("gemma3_text", Family::Gemma3),
    ("phi3", Family::Phi3),
    ("olmo2", Family::Olmo2),
    ("granite", Family::Granite),
    ("smollm3", Family::SmolLm3),
];

/// Upper limit of the number of layers.
const MAX_LAYERS: usize = 1 << 12;

/// Parts of the names of architectures without a language-model head, or with more than a decoder.
const NOT_DECODERS: [&str; 6] = [
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForConditionalGeneration",
    "RewardModel",
    "ForMaskedLM",
];

impl Family {
    /// `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        FAMILIES
            .iter()
            .find(|(_, family)| *family == self)
            .expect("every family is in the table")
            .0
    }

    /// The family of a `config.json`: by `model_type`, as in `transformers`, or else by the first of `architectures`.
    fn of(config: &Map<String, Value>, path: &Path) -> Result<Self> {
        let architecture = config
            .get("architectures")
            .and_then(|a| a.get(0))
            .and_then(Value::as_str);
        if let Some(architecture) = architecture
            && NOT_DECODERS.iter().any(|kind| architecture.contains(kind))
        {
            return Err(unsupported_architecture(architecture));
        }
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
        let family = family.map(|(_, family)| *family);
        family.ok_or_else(|| unsupported_architecture(&name))
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
        let reader = Reader {
            config,
            path,
            prefix: "",
        };
        refuse_unsupported(&reader, family)?;

        let num_attention_heads = reader.dimension("num_attention_heads", None)?;
        let hidden_size = reader.dimension("hidden_size", None)?;
        let default_kv_heads = match family {
            Family::Mistral => 8,
            Family::Qwen2 | Family::Qwen3 => 32,
            Family::Gemma3 | Family::SmolLm3 => 4,
            _ => num_attention_heads,
        };
        let num_key_value_heads = if config.get("num_key_value_heads") == Some(&Value::Null) {
            num_attention_heads
        } else {
            reader.dimension("num_key_value_heads", Some(default_kv_heads))?
        };
        let default_head_dim = match family {
            Family::Qwen3 => 128,
            Family::Gemma3 => 256,
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
            Family::Llama | Family::Olmo2 | Family::Granite => 2048,
            Family::Phi3 => 4096,
            Family::Qwen2 | Family::Qwen3 | Family::SmolLm3 => 32768,
            Family::Mistral | Family::Gemma3 => 4096 * 32,
        };
        let positions = reader.integer("max_position_embeddings", Some(default_positions))?;
        let default_eps = match family {
            Family::Phi3 | Family::Olmo2 => 1e-5,
            _ => 1e-6,
        };
        let rms_norm_eps = reader.number("rms_norm_eps", Some(default_eps))?;
        if !(0.0..1.0).contains(&rms_norm_eps) {
            return Err(reader.broken(format!("`rms_norm_eps` is {rms_norm_eps}")));
        }
        let num_hidden_layers = reader.dimension("num_hidden_layers", None)?;
        if num_hidden_layers > MAX_LAYERS {
            return Err(reader.broken(format!("`num_hidden_layers` is {num_hidden_layers}")));
        }
        let mut layers = layer_pattern(&reader, family, num_hidden_layers)?;
        let mut switches = switches(&reader, family)?;
        let defaults = RopeDefaults {
            theta: (family == Family::SmolLm3).then_some(2_000_000.0),
            positions,
            head_dim,
        };
        let rope = if family == Family::Gemma3 {
            let ropes = rope_config::read_gemma3(reader, defaults)?;
            if layers.sliding_window.is_some() {
                layers.local_rope_theta = Some(ropes.local_theta);
            }
            ropes.global
        } else {
            rope_config::read(reader, &layers.types(num_hidden_layers), defaults)?
        };
        let Rope {
            theta: rope_theta,
            scaling: rope_scaling,
            partial,
        } = rope;
        if partial != 1.0 {
            if family != Family::Phi3 {
                return Err(reader.unsupported("`partial_rotary_factor` other than 1"));
            }
            let dim = (head_dim as f64 * partial) as usize;
            if dim < 2 || !dim.is_multiple_of(2) {
                return Err(reader.broken(format!(
                    "`partial_rotary_factor` is {partial}: {dim} of {head_dim} channels would be rotated, and pairs are needed"
                )));
            }
            switches.rotary_dim = Some(dim);
        }
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
            max_position_embeddings: match &rope_scaling {
                RopeScaling::LongRope(s) => positions.min(s.original_max_position_embeddings),
                _ => positions,
            },
            rope_scaling,
            layers,
            switches,
            tie_word_embeddings: reader.flag_or(
                "tie_word_embeddings",
                matches!(family, Family::Gemma3 | Family::SmolLm3),
            )?,
            qkv_bias: family == Family::Qwen2,
            qk_norm: matches!(family, Family::Qwen3 | Family::Gemma3 | Family::Olmo2),
        })
    }
}

impl ModelConfig {
    /// Tokens that the attention of `layer` sees, the own one included; `None`: all earlier ones.
    pub fn sliding_window(&self, layer: usize) -> Option<usize> {
        self.layers
            .sliding_window
            .filter(|_| self.is_sliding(layer))
    }

    fn is_sliding(&self, layer: usize) -> bool {
        self.layers.sliding.get(layer) == Some(&true)
    }

    /// Whether q and k of `layer` are rotated.
    pub fn has_rope(&self, layer: usize) -> bool {
        self.layers.no_rope.get(layer) != Some(&true)
    }

    /// Whether the rope of `layer` is that of sliding layers.
    pub fn has_local_rope(&self, layer: usize) -> bool {
        self.layers.local_rope_theta.is_some() && self.is_sliding(layer)
    }

    /// Channels of each head that are rotated.
    pub fn rotary_dim(&self) -> usize {
        self.switches.rotary_dim.unwrap_or(self.head_dim)
    }

    /// The widths of the norms of q and k.
    pub fn qk_norm_widths(&self) -> [usize; 2] {
        if self.switches.whole_qk_norm {
            [self.num_attention_heads, self.num_key_value_heads].map(|heads| heads * self.head_dim)
        } else {
            [self.head_dim; 2]
        }
    }
}

impl LayerPattern {
    /// The values of `layer_types` that occur.
    fn types(&self, num_layers: usize) -> Vec<&'static str> {
        let sliding = self.sliding.iter().filter(|sliding| **sliding).count();
        [(FULL, num_layers - sliding), (SLIDING, sliding)]
            .into_iter()
            .filter(|(_, layers)| *layers > 0)
            .map(|(name, _)| name)
            .collect()
    }
}

/// The switches of a family, and their values.
fn switches(reader: &Reader, family: Family) -> Result<Switches> {
    let number = |key: &str, default: f64| {
        let value = reader.positive(key, Some(default))?;
        Ok::<_, Error>(value as f32)
    };
    let llama = Switches::default();
    Ok(match family {
        Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 | Family::SmolLm3 => llama,
        Family::Gemma3 => Switches {
            norms: NormPlacement::Both,
            norm_offset: 1.0,
            gelu: true,
            embedding_multiplier: (reader.dimension("hidden_size", None)? as f64).sqrt() as f32,
            attention_scale: Some(1.0 / number("query_pre_attn_scalar", 256.0)?.sqrt()),
            ..llama
        },
        Family::Phi3 => Switches {
            fused_projections: true,
            ..llama
        },
        Family::Olmo2 => Switches {
            norms: NormPlacement::After,
            whole_qk_norm: true,
            ..llama
        },
        Family::Granite => Switches {
            embedding_multiplier: number("embedding_multiplier", 1.0)?,
            residual_multiplier: number("residual_multiplier", 1.0)?,
            attention_scale: Some(number("attention_multiplier", 1.0)?),
            logits_scaling: number("logits_scaling", 1.0)?,
            ..llama
        },
    })
}

/// The values of `layer_types` that are supported.
const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

/// Which layers have a sliding window. `layer_types` counts before `max_window_layers`, as in `transformers`.
fn layer_pattern(reader: &Reader, family: Family, num_layers: usize) -> Result<LayerPattern> {
    let no_rope = match family {
        Family::SmolLm3 => no_rope_layers(reader, num_layers)?,
        _ => Vec::new(),
    };
    let full = LayerPattern {
        no_rope,
        ..LayerPattern::default()
    };
    let given = |default: Option<usize>| match (reader.config.get("sliding_window"), default) {
        (Some(Value::Null), _) | (None, None) => Ok(None),
        (_, default) => reader.integer("sliding_window", default).map(Some),
    };
    let window = match family {
        Family::Llama | Family::Olmo2 | Family::Granite => return Ok(full),
        // On by default; an explicit null turns it off.
        Family::Mistral | Family::Gemma3 => given(Some(4096))?,
        Family::Phi3 => given(None)?,
        Family::Qwen2 | Family::Qwen3 | Family::SmolLm3 => {
            let default = (family != Family::SmolLm3).then_some(4096);
            if reader.flag("use_sliding_window")? {
                given(default)?
            } else {
                None
            }
        }
    };
    // Phi3 has one kind of layer, whatever the file says.
    let types = match family {
        Family::Phi3 => None,
        _ => layer_types(reader, num_layers)?,
    };
    let Some(window) = window else {
        return match types {
            // Qwen's layers of that type are full without a window.
            Some(types) if family == Family::Gemma3 && types.contains(&true) => Err(reader.broken(
                format!("`layer_types` has `{SLIDING}`, but no `sliding_window` is in use"),
            )),
            _ => Ok(full),
        };
    };
    let sliding = match (types, family) {
        (Some(types), _) => types,
        (None, Family::Qwen2 | Family::Qwen3) => {
            let full = match reader.get("max_window_layers") {
                Some(value) if value.as_u64() == Some(0) => 0,
                _ => reader.integer("max_window_layers", Some(28))?,
            };
            (0..num_layers).map(|layer| layer >= full).collect()
        }
        (None, Family::Gemma3) => {
            let pattern = reader.integer("sliding_window_pattern", Some(6))?;
            (1..=num_layers).map(|layer| layer % pattern != 0).collect()
        }
        (None, Family::SmolLm3) => full.no_rope.clone(),
        (None, _) => vec![true; num_layers],
    };
    if !sliding.contains(&true) {
        return Ok(full);
    }
    Ok(LayerPattern {
        sliding_window: Some(window),
        sliding,
        ..full
    })
}

/// Which layers of a smollm3 are without rope: those that are 0 in `no_rope_layers`, or else every fourth.
fn no_rope_layers(reader: &Reader, num_layers: usize) -> Result<Vec<bool>> {
    if reader.get("no_rope_layers").is_none() {
        let interval = reader.integer("no_rope_layer_interval", Some(4))?;
        return Ok((1..=num_layers)
            .map(|layer| layer % interval == 0)
            .collect());
    }
    let layers = reader.numbers("no_rope_layers")?;
    if layers.len() < num_layers {
        return Err(reader.broken(format!(
            "`no_rope_layers` has {} numbers, fewer than the {num_layers} layers",
            layers.len()
        )));
    }
    Ok(layers[..num_layers]
        .iter()
        .map(|has_rope| *has_rope == 0.0)
        .collect())
}

/// `layer_types`, if it is set: whether each layer slides.
fn layer_types(reader: &Reader, num_layers: usize) -> Result<Option<Vec<bool>>> {
    let Some(value) = reader.get("layer_types") else {
        return Ok(None);
    };
    let list = value.as_array().filter(|list| list.len() == num_layers);
    let list = list.ok_or_else(|| {
        reader.broken(format!(
            "`layer_types` is {value}, not a list of {num_layers} names, one a layer"
        ))
    })?;
    let types = list.iter().map(|name| match name.as_str() {
        Some(FULL) => Ok(false),
        Some(SLIDING) => Ok(true),
        _ => Err(reader.unsupported(&format!("{name} in `layer_types`"))),
    });
    types.collect::<Result<_>>().map(Some)
}

fn refuse_unsupported(reader: &Reader, family: Family) -> Result<()> {
    let (key, known): (&str, &[&str]) = match family {
        Family::Gemma3 => ("hidden_activation", &["gelu_pytorch_tanh"]),
        _ => ("hidden_act", &["silu", "swish"]),
    };
    if let Some(act) = reader.get(key)
        && !act.as_str().is_some_and(|act| known.contains(&act))
    {
        return Err(Error::input_hint(
            format!("{}: `{key}` {act} is not supported", reader.path.display()),
            format!("supported: \"{}\"", known[0]),
        ));
    }
    for key in ["final_logit_softcapping", "attn_logit_softcapping"] {
        if family == Family::Gemma3 && reader.get(key).is_some() {
            return Err(reader.unsupported(&format!("`{key}`")));
        }
    }
    if family == Family::Gemma3 && reader.flag("use_bidirectional_attention")? {
        return Err(reader.unsupported("`use_bidirectional_attention`"));
    }
    // Qwen2 always has biases on q, k and v, and none on o, independent of this key.
    for key in ["attention_bias", "mlp_bias"] {
        if family != Family::Qwen2 && reader.flag(key)? {
            return Err(reader.unsupported(&format!("`{key}` = true for {}", family.model_type())));
        }
    }
    match reader.get("quantization_config") {
        Some(quantization) => Err(quantized(reader.path, quantization)),
        None => Ok(()),
    }
}

/// The error for a quantised model, which names the method.
fn quantized(path: &Path, config: &Value) -> Error {
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    let flag = |key: &str| config.get(key).and_then(Value::as_bool) == Some(true);
    let method = match text("quant_method") {
        Some("gptq") => "GPTQ".to_owned(),
        Some("awq") => "AWQ".to_owned(),
        Some("fp8" | "fbgemm_fp8" | "finegrained_fp8") => "FP8".to_owned(),
        Some("bitsandbytes") => "bitsandbytes".to_owned(),
        Some(other) => other.to_owned(),
        None if flag("load_in_4bit") || flag("load_in_8bit") => "bitsandbytes".to_owned(),
        None => "a method that is not named".to_owned(),
    };
    let bits = config.get("bits").and_then(Value::as_u64);
    let bits = match (bits, flag("load_in_4bit"), flag("load_in_8bit")) {
        (Some(bits), ..) => format!(", {bits} bits"),
        (None, true, _) => ", 4 bits".into(),
        (None, _, true) => ", 8 bits".into(),
        _ => String::new(),
    };
    Error::input_hint(
        format!(
            "{}: the weights are quantised by {method}{bits} (`quantization_config`), which is not supported",
            path.display()
        ),
        "use the model from which it was quantised, or a GGUF file of it",
    )
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
    fn a_sliding_window_is_that_of_the_layers_that_use_it() {
        let windows = |change: &Value| {
            let config = read(change).unwrap();
            [0, 1].map(|layer| config.sliding_window(layer))
        };
        let mistral = json!({"model_type": "mistral"});
        assert_eq!(windows(&mistral), [Some(4096); 2]);
        assert_eq!(read(&mistral).unwrap().max_position_embeddings, 131_072);
        let mut change = mistral;
        change["sliding_window"] = 512.into();
        assert_eq!(windows(&change), [Some(512); 2]);
        change["layer_types"] = json!([FULL, SLIDING]);
        assert_eq!(windows(&change), [None, Some(512)]);
        change["layer_types"] = json!([FULL, FULL]);
        assert_eq!(windows(&change), [None; 2]);
        change["sliding_window"] = Value::Null;
        change["layer_types"] = json!([SLIDING, SLIDING]);
        assert_eq!(windows(&change), [None; 2]);

        let mut qwen =
            json!({"model_type": "qwen3", "num_key_value_heads": 8, "sliding_window": 16});
        assert_eq!(windows(&qwen), [None; 2]);
        qwen["use_sliding_window"] = true.into();
        assert_eq!(windows(&qwen), [None; 2], "28 layers are full by default");
        for (full, expected) in [(0, [Some(16); 2]), (1, [None, Some(16)]), (2, [None; 2])] {
            qwen["max_window_layers"] = full.into();
            assert_eq!(windows(&qwen), expected);
        }
        qwen["layer_types"] = json!([SLIDING, FULL]);
        assert_eq!(windows(&qwen), [Some(16), None]);
        // The layers of a llama are full, whatever the file says.
        assert_eq!(windows(&json!({"sliding_window": 4})), [None; 2]);
    }

    #[test]
    fn rope_scaling_counts_before_rope_parameters() {
        let parameters = json!({"rope_type": "default", "rope_theta": 1e6});
        let both = |scaling: Value| {
            read(&json!({"rope_parameters": parameters, "rope_scaling": scaling})).unwrap()
        };
        // As in `transformers`: the base of the other section does not count.
        let linear = both(json!({"type": "linear", "factor": 4.0}));
        assert_eq!(
            (linear.rope_theta, linear.rope_scaling),
            (1e4, RopeScaling::Linear(4.0))
        );
        let linear = both(json!({"type": "linear", "factor": 4.0, "rope_theta": 1e6}));
        assert_eq!(linear.rope_theta, 1e6);
        for nothing in [json!({}), Value::Null] {
            assert_eq!(both(nothing).rope_theta, 1e6);
        }
    }

    #[test]
    fn rope_nested_by_layer_type_is_read_where_the_layers_agree() {
        let full = json!({"rope_type": "default", "rope_theta": 1e6});
        let nested = |section: Value, types: Value| {
            read(
                &json!({"model_type": "mistral", "sliding_window": 4, "rope_parameters": section,
                "layer_types": types}),
            )
        };
        let one = nested(json!({"full_attention": full}), json!([FULL, FULL])).unwrap();
        assert_eq!(one.rope_theta, 1e6);
        let llama = read(&json!({"rope_parameters": {"full_attention": full}})).unwrap();
        assert_eq!(llama.rope_theta, 1e6);
        let same = json!({"full_attention": full, "sliding_attention": full});
        assert_eq!(
            nested(same, json!([FULL, SLIDING])).unwrap().rope_theta,
            1e6
        );
        let other = json!({"full_attention": full, "sliding_attention": {"rope_theta": 1e4}});
        let error = nested(other, json!([FULL, SLIDING])).unwrap_err();
        assert!(error.to_string().contains("rope_parameters"), "{error}");
        assert_eq!(error.exit_code(), 2);
        let error = nested(json!({"full_attention": full}), json!([FULL, SLIDING])).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("rope_parameters.sliding_attention"),
            "{error}"
        );
    }

    #[test]
    fn the_model_type_counts_before_the_class_name() {
        let config = read(&json!({"architectures": ["MistralForCausalLM"]})).unwrap();
        assert_eq!(config.family, Family::Llama);
    }

    #[test]
    fn the_method_of_a_quantised_model_is_named() {
        for (config, words) in [
            (json!({"quant_method": "gptq", "bits": 4}), "GPTQ, 4 bits"),
            (json!({"quant_method": "awq", "bits": 4}), "AWQ, 4 bits"),
            (json!({"quant_method": "fp8"}), "FP8"),
            (
                json!({"quant_method": "bitsandbytes", "load_in_4bit": true}),
                "bitsandbytes, 4 bits",
            ),
            (json!({"load_in_8bit": true}), "bitsandbytes, 8 bits"),
            (
                json!({"quant_method": "compressed-tensors"}),
                "compressed-tensors",
            ),
        ] {
            let error = read(&json!({"quantization_config": config})).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
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
                json!({"rope_scaling": {"rope_type": "su2", "factor": 2.0}}),
                2,
                "su2",
            ),
            (
                json!({"layer_types": [FULL, "chunked_attention"], "model_type": "mistral"}),
                2,
                "chunked_attention",
            ),
            (
                json!({"layer_types": [FULL], "model_type": "mistral"}),
                1,
                "layer_types",
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

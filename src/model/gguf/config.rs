//! Makes a `config.json` from GGUF metadata.

use std::f64::consts::TAU;

use serde_json::{Map, Value, json};

use super::header::Header;
use crate::{
    Error, Result,
    model::config::{Llama3Scaling, unsupported_architecture},
};

/// llama.cpp's default for the rotary base.
const DEFAULT_ROPE_THETA: f64 = 10_000.0;

/// Layers of the Gemma 3 model with another scale of its attention scores.
const GEMMA3_27B_LAYERS: u64 = 62;

/// Parameters of Llama 3's rotary scaling, of which GGUF stores only the resulting factors.
const LLAMA3_LOW_FREQ_FACTOR: f64 = 1.0;
const LLAMA3_HIGH_FREQ_FACTOR: f64 = 4.0;
const LLAMA3_ORIGINAL_POSITIONS: f64 = 8192.0;

/// Makes a `config.json` that `transformers` loads. `rope_factors` is the content of `rope_freqs.weight`, if there is one.
pub(super) fn config_json(
    header: &Header,
    rope_factors: Option<&[f32]>,
) -> Result<Map<String, Value>> {
    let path = header.path();
    let architecture = header
        .text("general.architecture")?
        .ok_or_else(|| Error::broken(path, "metadata `general.architecture` is missing"))?;
    let key = |name: &str| format!("{architecture}.{name}");
    let sliding_window = header.integer(&key("attention.sliding_window"))?;
    let (model_type, class) = match architecture {
        // Mistral models are stored as `llama`; only the sliding window distinguishes them.
        "llama" | "mistral" if sliding_window.is_some() => ("mistral", "MistralForCausalLM"),
        "llama" | "mistral" => ("llama", "LlamaForCausalLM"),
        "qwen2" => ("qwen2", "Qwen2ForCausalLM"),
        "qwen3" => ("qwen3", "Qwen3ForCausalLM"),
        "gemma3" => ("gemma3_text", "Gemma3ForCausalLM"),
        "phi3" => ("phi3", "Phi3ForCausalLM"),
        "olmo2" => ("olmo2", "Olmo2ForCausalLM"),
        "granite" => ("granite", "GraniteForCausalLM"),
        "smollm3" => ("smollm3", "SmolLM3ForCausalLM"),
        other => return Err(unsupported_architecture(other)),
    };
    let missing = |name: &str| Error::broken(path, format!("metadata `{}` is missing", key(name)));
    let integer = |name: &str| header.integer(&key(name));
    let required = |name: &str| integer(name)?.ok_or_else(|| missing(name));
    let refuse = |what: &str| {
        Err(Error::input(format!(
            "{}: {what} is not supported",
            path.display()
        )))
    };

    if integer("expert_count")?.unwrap_or(0) > 0 {
        return refuse("a mixture of experts");
    }
    let hidden_size = required("embedding_length")?;
    let heads = required("attention.head_count")?;
    let kv_heads = match header.integers(&key("attention.head_count_kv"))?.as_deref() {
        None => heads,
        Some([first, rest @ ..]) if rest.iter().all(|n| n == first) => *first,
        Some(_) => return refuse("a different number of key and value heads per layer"),
    };
    let head_dim = match integer("attention.key_length")? {
        Some(n) => n,
        None => hidden_size
            .checked_div(heads)
            .ok_or_else(|| missing("attention.head_count"))?,
    };
    if integer("attention.value_length")?.is_some_and(|n| n != head_dim) {
        return refuse("a value length that is not the key length");
    }
    let rotary_dim = integer("rope.dimension_count")?.unwrap_or(head_dim);
    if rotary_dim != head_dim && model_type != "phi3" {
        return refuse("rotary position embedding of a part of each head");
    }
    for factors in ["rope_factors_long.weight", "rope_factors_short.weight"] {
        if header.tensors.contains_key(factors) {
            return refuse("rope scaling `longrope`");
        }
    }
    let embedding = header
        .tensors
        .get("token_embd.weight")
        .ok_or_else(|| Error::broken(path, "tensor `token_embd.weight` is missing"))?;
    let rms_norm_eps = header
        .number(&key("attention.layer_norm_rms_epsilon"))?
        .ok_or_else(|| missing("attention.layer_norm_rms_epsilon"))?;
    let rope_theta = header
        .number(&key("rope.freq_base"))?
        .unwrap_or(DEFAULT_ROPE_THETA);
    let rope_scaling = rope_scaling(header, architecture, rope_theta, rope_factors)?;

    let mut config = json!({
        "architectures": [class],
        "model_type": model_type,
        "hidden_act": "silu",
        "hidden_size": hidden_size,
        "intermediate_size": required("feed_forward_length")?,
        "num_hidden_layers": required("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": embedding.shape[0],
        "max_position_embeddings": required("context_length")?,
        "rms_norm_eps": shortest(rms_norm_eps),
        "rope_theta": shortest(rope_theta),
        "rope_scaling": rope_scaling,
        "tie_word_embeddings": !header.tensors.contains_key("output.weight"),
        "attention_bias": architecture == "qwen2",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": true,
        "dtype": "float32",
        "torch_dtype": "float32",
    });
    let config = config.as_object_mut().expect("an object was made");
    match model_type {
        "mistral" => {
            config.insert("sliding_window".into(), sliding_window.into());
        }
        "llama" => {
            config.insert("mlp_bias".into(), false.into());
        }
        "olmo2" => {}
        "gemma3_text" => {
            config.remove("hidden_act");
            config.insert("hidden_activation".into(), "gelu_pytorch_tanh".into());
            // The largest model alone scales by the width of its stream.
            let scalar = if config["num_hidden_layers"] == GEMMA3_27B_LAYERS {
                hidden_size.checked_div(heads).unwrap_or(head_dim)
            } else {
                head_dim
            };
            config.insert("query_pre_attn_scalar".into(), scalar.into());
            config.insert("sliding_window".into(), sliding_window.into());
            let local = header.number(&key("rope.freq_base_swa"))?;
            let local = local.map_or(DEFAULT_ROPE_THETA, shortest);
            config.insert("rope_local_base_freq".into(), local.into());
        }
        "phi3" => {
            config.insert(
                "sliding_window".into(),
                sliding_window.filter(|n| *n > 0).into(),
            );
            let partial = rotary_dim as f64 / head_dim.max(1) as f64;
            config.insert("partial_rotary_factor".into(), partial.into());
        }
        "granite" => {
            for (name, stored, default) in [
                ("embedding_multiplier", "embedding_scale", 1.0),
                ("residual_multiplier", "residual_scale", 1.0),
                ("logits_scaling", "logit_scale", 1.0),
                (
                    "attention_multiplier",
                    "attention.scale",
                    1.0 / (head_dim as f64).sqrt(),
                ),
            ] {
                let number = header.number(&key(stored))?.map_or(default, shortest);
                config.insert(name.into(), number.into());
            }
        }
        _ => {
            config.insert("use_sliding_window".into(), false.into());
        }
    }
    for (name, key) in [
        ("bos_token_id", "tokenizer.ggml.bos_token_id"),
        ("eos_token_id", "tokenizer.ggml.eos_token_id"),
        ("pad_token_id", "tokenizer.ggml.padding_token_id"),
    ] {
        config.insert(name.into(), header.integer(key)?.into());
    }
    Ok(std::mem::take(config))
}

/// Makes a `generation_config.json`. A text ends at EOS, and a turn at its own token if there is one.
pub(super) fn generation_config_json(
    header: &Header,
    config: &Map<String, Value>,
) -> Result<Map<String, Value>> {
    let mut generation: Map<String, Value> = ["bos_token_id", "eos_token_id", "pad_token_id"]
        .iter()
        .filter_map(|key| Some(((*key).to_owned(), config.get(*key)?.clone())))
        .filter(|(_, value)| !value.is_null())
        .collect();
    let eos = generation.get("eos_token_id").and_then(Value::as_u64);
    let eot = header.integer("tokenizer.ggml.eot_token_id")?;
    if let (Some(eos), Some(eot)) = (eos, eot)
        && eos != eot
    {
        generation.insert("eos_token_id".into(), json!([eos, eot]));
    }
    Ok(generation)
}

fn rope_scaling(
    header: &Header,
    architecture: &str,
    theta: f64,
    factors: Option<&[f32]>,
) -> Result<Value> {
    let path = header.path();
    if let Some(factors) = factors {
        return llama3_scaling(theta, factors).ok_or_else(|| {
            Error::input(format!(
                "{}: the factors in `rope_freqs.weight` are not those of Llama 3's scaling; no other is supported",
                path.display()
            ))
        });
    }
    let factor = header.number(&format!("{architecture}.rope.scaling.factor"))?;
    match header.text(&format!("{architecture}.rope.scaling.type"))? {
        None | Some("none") => Ok(Value::Null),
        Some("linear") => {
            let factor = factor.ok_or_else(|| {
                Error::broken(
                    path,
                    format!("metadata `{architecture}.rope.scaling.factor` is missing"),
                )
            })?;
            Ok(json!({"rope_type": "linear", "factor": shortest(factor)}))
        }
        Some("yarn") => {
            let number = |name: &str| -> Result<f64> {
                let key = format!("{architecture}.rope.scaling.{name}");
                let missing = || Error::broken(path, format!("metadata `{key}` is missing"));
                header.number(&key)?.ok_or_else(missing)
            };
            Ok(json!({
                "rope_type": "yarn",
                "factor": shortest(number("factor")?),
                "original_max_position_embeddings": number("original_context_length")? as u64,
            }))
        }
        Some(other) => Err(Error::input_hint(
            format!(
                "{}: rope scaling `{other}` is not supported",
                path.display()
            ),
            "supported: none, linear, yarn, and Llama 3's",
        )),
    }
}

/// Llama 3's scaling, if it gives these factors. The last one, of the longest wavelength, is `factor` itself. The low and high
/// frequency factors and the original context are the same in all Llama 3 models.
fn llama3_scaling(theta: f64, factors: &[f32]) -> Option<Value> {
    let scaling = Llama3Scaling {
        factor: f64::from(*factors.last()?),
        low_freq_factor: LLAMA3_LOW_FREQ_FACTOR,
        high_freq_factor: LLAMA3_HIGH_FREQ_FACTOR,
        original_max_position_embeddings: LLAMA3_ORIGINAL_POSITIONS,
    };
    // The stored factors were computed in f32.
    let expected = llama3_factors(&scaling, theta, factors.len());
    let close =
        |(stored, expected): (&f32, f64)| (f64::from(*stored) - expected).abs() <= 1e-4 * expected;
    (scaling.factor >= 1.0 && factors.iter().zip(expected).all(close)).then(|| {
        json!({
            "rope_type": "llama3",
            "factor": shortest(scaling.factor),
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position_embeddings as u64,
        })
    })
}

/// The content of `rope_freqs.weight` for `scaling`: a divisor for each of the `pairs` of a head (K / 2), whose wavelengths are
/// 2 pi theta^(2i / K).
pub(super) fn llama3_factors(scaling: &Llama3Scaling, theta: f64, pairs: usize) -> Vec<f64> {
    let wavelength = |i: usize| TAU * theta.powf(i as f64 / pairs as f64);
    (0..pairs).map(|i| scaling.divisor(wavelength(i))).collect()
}

/// The shortest decimal of the same f32: metadata is stored in f32, and 1e-5 should not become 9.999999747e-6.
fn shortest(n: f64) -> f64 {
    let single = n as f32;
    if f64::from(single) == n {
        single.to_string().parse().unwrap_or(n)
    } else {
        n
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_llama_3_scaling_is_recognised_by_its_factors() {
        // Llama 3.2 1B, as `Llama3` in llama.cpp's converter computes them: K = 64, theta = 500,000, factor 32.
        let theta = 500_000.0_f64;
        let factors: Vec<f32> = (0..32)
            .map(|i| {
                let wavelength = TAU * theta.powf(f64::from(i) / 32.0);
                if wavelength < 8192.0 / 4.0 {
                    1.0
                } else if wavelength > 8192.0 {
                    32.0
                } else {
                    let smooth = (8192.0 / wavelength - 1.0) / 3.0;
                    1.0 / ((1.0 - smooth) / 32.0 + smooth)
                }
            })
            .map(|f: f64| f as f32)
            .collect();
        let scaling = llama3_scaling(theta, &factors).unwrap();
        assert_eq!(scaling["factor"], 32.0);
        assert_eq!(scaling["original_max_position_embeddings"], 8192);
        let mut other = factors;
        other[20] *= 1.01;
        assert_eq!(llama3_scaling(theta, &other), None);
        assert_eq!(llama3_scaling(theta, &[]), None);
    }

    #[test]
    fn a_single_precision_number_becomes_its_shortest_decimal() {
        assert_eq!(shortest(f64::from(1e-5_f32)).to_string(), "0.00001");
        assert_eq!(shortest(0.1), 0.1);
    }
}

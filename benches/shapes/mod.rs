//! Models of real shapes with random weights.

use std::sync::Arc;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use unforget::model::{
    Family, Layout, ModelConfig, Params,
    config::{LayerPattern, RopeScaling, Switches},
};

/// Hidden size, width of the feed-forward network, layers, heads, key-value heads, channels of a head, vocabulary.
pub type Shape = [usize; 7];

/// `SmolLM2-135M`.
pub const SMOLLM2: Shape = [576, 1536, 30, 9, 3, 64, 49_152];

/// A llama of this shape, with a tied head.
pub fn llama([d, f, layers, heads, groups, k, v]: Shape) -> ModelConfig {
    ModelConfig {
        family: Family::Llama,
        hidden_size: d,
        intermediate_size: f,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: groups,
        head_dim: k,
        vocab_size: v,
        rms_norm_eps: 1e-5,
        rope_theta: 1e5,
        rope_scaling: RopeScaling::None,
        max_position_embeddings: 8192,
        layers: LayerPattern::default(),
        switches: Switches::default(),
        tie_word_embeddings: true,
        qkv_bias: false,
        qk_norm: false,
    }
}

/// Random weights.
pub fn params(config: &ModelConfig) -> Params {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut params = Params::zeros(Arc::new(Layout::new(config)));
    for w in params.data.iter_mut() {
        *w = rng.random_range(-0.03..0.03);
    }
    params
}

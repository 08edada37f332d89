//! A restriction of the trained parameters: freezing. Only some tensors are trained (section 3 of the paper, table 3), chosen by selectors: groups
//! ([`TENSOR_GROUPS`]) or patterns of tensor names in which `*` matches any text, each in all layers or in some (`ffn@0-9`, counted from
//! 0).

use crate::{
    Error, Result,
    config::{TENSOR_GROUPS, parse_selector},
    error::closest_match,
    model::Layout,
};

/// Whether each tensor of `layout` is trained, given selectors. Embedding, norms and LM head belong to `all` only.
///
/// # Errors
/// [`Error::Input`] for a selector that matches no tensor, naming the nearest name, and for an empty list.
pub fn trainable_tensors(layout: &Layout, selectors: &[String]) -> Result<Vec<bool>> {
    let mut trained = vec![false; layout.tensors.len()];
    for selector in selectors {
        let mut matched = false;
        for (tensor, trained) in layout.tensors.iter().zip(&mut trained) {
            if selector_matches(selector, &tensor.name) {
                *trained = true;
                matched = true;
            }
        }
        if !matched {
            return Err(no_match(layout, selector));
        }
    }
    if !trained.contains(&true) {
        return Err(Error::input_hint(
            "`train.trainable` selects no tensor: nothing would be trained",
            "give a group such as \"all\", or patterns of tensor names",
        ));
    }
    Ok(trained)
}

/// The layer that a tensor belongs to.
fn layer_of(tensor: &str) -> Option<usize> {
    let rest = tensor.strip_prefix("model.layers.")?;
    rest.split_once('.')?.0.parse().ok()
}

fn selector_matches(selector: &str, name: &str) -> bool {
    let Some((selector, layers)) = parse_selector(selector) else {
        return false;
    };
    let is_within =
        |(first, last)| layer_of(name).is_some_and(|layer| (first..=last).contains(&layer));
    if !layers.is_none_or(is_within) {
        return false;
    }
    match TENSOR_GROUPS.iter().find(|(group, _)| *group == selector) {
        Some((_, parts)) => parts.iter().any(|part| name.contains(part)),
        None => glob(selector.as_bytes(), name.as_bytes()),
    }
}

/// Whether `pattern`, in which `*` matches any text, matches all of `text`.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|i| glob(rest, &text[i..])),
        Some((c, rest)) => text.first() == Some(c) && glob(rest, &text[1..]),
    }
}

fn no_match(layout: &Layout, selector: &str) -> Error {
    let groups = TENSOR_GROUPS.map(|(name, _)| name);
    let tensors = layout.tensors.iter().map(|t| t.name.as_str());
    let near = closest_match(selector, groups.into_iter().chain(tensors))
        .unwrap_or(&layout.tensors[0].name);
    Error::input_hint(
        format!("`train.trainable`: no tensor matches \"{selector}\""),
        format!(
            "did you mean \"{near}\"? Groups: {}; in a pattern `*` matches any text, and `@0-9` after it restricts it to layers 0 to 9",
            groups.join(" ")
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Family, ModelConfig,
        config::{LayerPattern, RopeScaling, Switches},
    };

    /// Two layers with biases on q, k, v and norms on q and k.
    fn layout() -> Layout {
        Layout::new(&ModelConfig {
            family: Family::Qwen3,
            hidden_size: 4,
            intermediate_size: 6,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim: 2,
            vocab_size: 8,
            rms_norm_eps: 1e-6,
            rope_theta: 1e4,
            rope_scaling: RopeScaling::None,
            max_position_embeddings: 16,
            layers: LayerPattern::default(),
            switches: Switches::default(),
            tie_word_embeddings: false,
            qkv_bias: true,
            qk_norm: true,
        })
    }

    fn trained(selectors: &[&str]) -> Vec<String> {
        let layout = layout();
        let selectors: Vec<String> = selectors.iter().map(ToString::to_string).collect();
        let trained = trainable_tensors(&layout, &selectors).expect("every selector matches");
        layout
            .tensors
            .iter()
            .zip(trained)
            .filter(|(_, t)| *t)
            .map(|(t, _)| t.name.replace("model.layers.", ""))
            .collect()
    }

    #[test]
    fn a_projection_includes_its_bias_and_norm() {
        let k = [
            "0.self_attn.k_proj.weight",
            "0.self_attn.k_proj.bias",
            "0.self_attn.k_norm.weight",
            "1.self_attn.k_proj.weight",
            "1.self_attn.k_proj.bias",
            "1.self_attn.k_norm.weight",
        ];
        assert_eq!(trained(&["k"]), k);
        assert_eq!(
            trained(&["o"]),
            ["0.self_attn.o_proj.weight", "1.self_attn.o_proj.weight"]
        );
    }

    #[test]
    fn groups_are_the_union_of_their_projections() {
        assert_eq!(trained(&["attn"]), trained(&["q", "k", "v", "o"]));
        assert_eq!(trained(&["ffn"]), trained(&["gate+up", "down"]));
        assert_eq!(trained(&["ffn"]).len(), 6);
    }

    #[test]
    fn embedding_norms_and_head_belong_to_all_alone() {
        assert_eq!(trained(&["all"]).len(), layout().tensors.len());
        let rest: Vec<String> = trained(&["all"])
            .into_iter()
            .filter(|name| !trained(&["attn", "ffn"]).contains(name))
            .collect();
        assert_eq!(
            rest,
            [
                "model.embed_tokens.weight",
                "0.input_layernorm.weight",
                "0.post_attention_layernorm.weight",
                "1.input_layernorm.weight",
                "1.post_attention_layernorm.weight",
                "model.norm.weight",
                "lm_head.weight",
            ]
        );
    }

    #[test]
    fn patterns_match_whole_names() {
        assert_eq!(
            trained(&["model.layers.1.*.up_proj.weight", "lm_head.weight"]),
            ["1.mlp.up_proj.weight", "lm_head.weight"]
        );
    }

    #[test]
    fn layers_confine_presets_and_patterns() {
        let down = ["1.mlp.down_proj.weight"];
        assert_eq!(trained(&["down@1"]), down);
        assert_eq!(trained(&["down@1-7"]), down);
        assert_eq!(trained(&["*.down_proj.weight@1"]), down);
        assert_eq!(trained(&["all@0-1"]).len(), layout().tensors.len() - 3);
        for wrong in ["ffn@", "ffn@x", "ffn@3-1", "ffn@2", "ffn@1-"] {
            assert!(
                trainable_tensors(&layout(), &[wrong.into()]).is_err(),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_pattern_that_matches_nothing_names_the_nearest_tensor() {
        let error = trainable_tensors(&layout(), &["lm_haed.weight".into()]).expect_err("a typo");
        assert!(error.to_string().contains("lm_haed.weight"));
        assert!(
            error
                .hint()
                .is_some_and(|h| h.contains("\"lm_head.weight\""))
        );
    }
}

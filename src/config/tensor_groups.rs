//! The parameter groups of the paper (section 3, table 3), and the selectors of `train.trainable`.

/// The groups, and the parts of tensor names that belong to each: weight, bias and q/k norm.
pub const TENSOR_GROUPS: [(&str, &[&str]); 9] = [
    ("k", &["self_attn.k_"]),
    ("q", &["self_attn.q_"]),
    ("v", &["self_attn.v_"]),
    ("o", &["self_attn.o_"]),
    ("attn", &["self_attn."]),
    ("gate+up", &["mlp.gate_", "mlp.up_"]),
    ("down", &["mlp.down_"]),
    ("ffn", &["mlp."]),
    ("all", &[""]),
];

/// Splits a selector (`ffn@0-9`) into a group or pattern, and the first and last layer that it is restricted to, where it is.
/// None where `@` is followed by neither a layer nor a range of layers.
pub fn parse_selector(selector: &str) -> Option<(&str, Option<(usize, usize)>)> {
    let Some((name, layers)) = selector.split_once('@') else {
        return Some((selector, None));
    };
    let (first, last) = layers.split_once('-').unwrap_or((layers, layers));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((name, Some((first, last))))
}

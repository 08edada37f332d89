// The loss at each output position (a row of logits), and its gradient, which overwrites the student's logits. Equations: `head.rs`.

struct Params {
    rows: u32,
    vocab: u32,          // V
    stride: u32,         // vectors per row of logits
    first: u32,          // number of row 0 among all targets
    inverse_tau: f32,
    exclude_target: u32,
}
var<immediate> params: Params;

struct Target {
    token: u32,
    ce_weight: f32,
    distill_weight: f32,
    padding: u32,
}

// Where the logits are numbers of the vocabulary; the last vector of a row may have some more.
fn in_vocab(vector: u32) -> vec4<bool> {
    return vec4u(vector * 4u) + vec4u(0u, 1u, 2u, 3u) < vec4u(params.vocab);
}

fn is_token(vector: u32, token: u32) -> vec4<bool> {
    return vec4u(vector * 4u) + vec4u(0u, 1u, 2u, 3u) == vec4u(token);
}

// The part of all that `others` is, where `y` (a logit minus the maximum of the others) adds exp(y) to it: others / (others + exp(y)).
fn share(others: f32, y: f32) -> f32 {
    if y <= 0.0 {
        return others / (others + exp(y));
    }
    let scaled = others * exp(-y);
    return scaled / (scaled + 1.0);
}

// ln(others + exp(y)).
fn log_sum(others: f32, y: f32) -> f32 {
    if y <= 0.0 {
        return log(others + exp(y));
    }
    return y + log(1.0 + others * exp(-y));
}

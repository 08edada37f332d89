// AdamW in one pass, with the moving average of the weights where it is kept.

@group(0) @binding(0) var<storage, read_write> weights: array<f32>;
@group(0) @binding(1) var<storage, read> gradient: array<f32>;
@group(0) @binding(2) var<storage, read_write> exp_avg: array<f32>;
@group(0) @binding(3) var<storage, read_write> exp_avg_sq: array<f32>;
@group(0) @binding(4) var<storage, read> state: array<f32>; // squared norm, norm, scale, 1 if all gradients are finite
@group(0) @binding(5) var<storage, read_write> average: array<f32>;

struct Params {
    len: u32,
    weights_start: u32,
    gradient_start: u32,
    exp_avg_start: u32,
    exp_avg_sq_start: u32,
    average_start: u32,
    decay: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    step_size: f32,
    root_correction2: f32,
    eps: f32,
    one_minus_ema_decay: f32,
}
var<immediate> p: Params;

const THREADS = 256u;
const EACH = 4u;

// The new weight.
fn update(i: u32, scale: f32) -> f32 {
    let g = gradient[p.gradient_start + i] * scale;
    var m = exp_avg[p.exp_avg_start + i];
    m += p.one_minus_beta1 * (g - m);
    exp_avg[p.exp_avg_start + i] = m;
    let v = exp_avg_sq[p.exp_avg_sq_start + i] * p.beta2 + p.one_minus_beta2 * (g * g);
    exp_avg_sq[p.exp_avg_sq_start + i] = v;
    let denominator = sqrt(v) / p.root_correction2 + p.eps;
    let w = weights[p.weights_start + i] * p.decay - p.step_size * (m / denominator);
    weights[p.weights_start + i] = w;
    return w;
}

@compute @workgroup_size(THREADS)
fn adamw(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    if state[3] != 1.0 { return; }
    let scale = state[2];
    for (var j = 0u; j < EACH; j++) {
        let i = (group.y * groups.x + group.x) * (THREADS * EACH) + j * THREADS + local;
        if i < p.len { update(i, scale); }
    }
}

@compute @workgroup_size(THREADS)
fn adamw_ema(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    if state[3] != 1.0 { return; }
    let scale = state[2];
    for (var j = 0u; j < EACH; j++) {
        let i = (group.y * groups.x + group.x) * (THREADS * EACH) + j * THREADS + local;
        if i < p.len {
            let w = update(i, scale);
            let a = average[p.average_start + i];
            average[p.average_start + i] = a + p.one_minus_ema_decay * (w - a);
        }
    }
}

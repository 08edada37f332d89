// Gated units. T tokens, F intermediate; a row of gate_up (T, 2F) is gate, then up.

override GELU: bool = false; // GeGLU, else SwiGLU

@group(0) @binding(0) var<storage, read_write> h: array<f32>;       // (T, F)
@group(0) @binding(1) var<storage, read> gate_up: array<f32>;       // (T, 2F)
@group(0) @binding(1) var<storage, read_write> d_gate_up: array<f32>; // gate_up before, its gradient after
@group(0) @binding(2) var<storage, read> dh: array<f32>;            // (T, F)

struct Params {
    len: u32, // T F
    f: u32,
    h_start: u32,
    gate_start: u32,
    dh_start: u32,
}
var<immediate> p: Params;

const THREADS = 256u;

// sqrt(2 / pi), and the factor of the cube.
const GELU_SCALE = 0.7978846;
const GELU_CUBIC = 0.044715;

// 1 / (1 + exp(-x)); exp never overflows.
fn sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exp(min(-x, 80.0)));
}

// gelu(g) = g sigmoid(2z), since (1 + tanh z) / 2 = sigmoid(2z).
fn gate_sigmoid(g: f32) -> f32 {
    if GELU { return sigmoid(2.0 * GELU_SCALE * (g + GELU_CUBIC * g * g * g)); }
    return sigmoid(g);
}

@compute @workgroup_size(THREADS)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = (group.y * groups.x + group.x) * THREADS + local;
    if i >= p.len { return; }
    let at = p.gate_start + i / p.f * (2u * p.f) + i % p.f;
    let g = gate_up[at];
    h[p.h_start + i] = g * gate_sigmoid(g) * gate_up[at + p.f];
}

@compute @workgroup_size(THREADS)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = (group.y * groups.x + group.x) * THREADS + local;
    if i >= p.len { return; }
    let at = p.gate_start + i / p.f * (2u * p.f) + i % p.f;
    let g = d_gate_up[at];
    let u = d_gate_up[at + p.f];
    let d = dh[p.dh_start + i];
    let s = gate_sigmoid(g);
    let gated = g * s;
    var slope = 1.0;
    if GELU { slope = 2.0 * GELU_SCALE * (1.0 + 3.0 * GELU_CUBIC * g * g); }
    h[p.h_start + i] = gated * u;
    d_gate_up[at] = d * u * s * (1.0 + g * (1.0 - s) * slope);
    d_gate_up[at + p.f] = d * gated;
}

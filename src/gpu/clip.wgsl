// The scale of clipped gradients, from their squared norm. One invocation.

@group(0) @binding(0) var<storage, read_write> state: array<f32>; // squared norm, norm, scale, 1 if all gradients are finite
@group(0) @binding(1) var<storage, read> flags: array<u32>;

struct Params {
    state_start: u32,
    flags_start: u32,
    flags: u32,
    max_norm: f32,
}
var<immediate> p: Params;

@compute @workgroup_size(1)
fn clip() {
    let norm = sqrt(state[p.state_start]);
    var finite = 1.0;
    for (var i = 0u; i < p.flags; i++) {
        if flags[p.flags_start + i] != 0xffffffffu { finite = 0.0; }
    }
    var scale = 1.0;
    if p.max_norm > 0.0 { scale = min(p.max_norm / (norm + 1e-6), 1.0); }
    state[p.state_start + 1u] = norm;
    state[p.state_start + 2u] = scale;
    state[p.state_start + 3u] = finite;
}

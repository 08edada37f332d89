struct Params {
    count: u32, // (rows, k)
    k: u32,
    dim: u32,   // D
    first_token: u32, // tokens that `head` has
    end_token: u32,
    hidden_start: u32, // floats before row 0 in `hidden`
    head_start: u32,   // floats before `first_token` in `head`
}
var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> hidden: array<f32>; // (rows, D)
@group(0) @binding(1) var<storage, read> head: array<f32>;   // (tokens, D)
@group(0) @binding(2) var<storage, read> tokens: array<u32>; // (rows, k)
@group(0) @binding(3) var<storage, read_write> out: array<f32>; // (rows, k)

var<workgroup> sums: array<f32, 264>; // (8, 32), rows of 33

// The logits of given tokens, where those of all others are not needed: 8 per workgroup.
@compute @workgroup_size(256)
fn dot_products(
    @builtin(workgroup_id) workgroup: vec3u,
    @builtin(num_workgroups) grid: vec3u,
    @builtin(local_invocation_index) index: u32,
) {
    let lane = index & 31u;
    let n = (workgroup.y * grid.x + workgroup.x) * 8u + (index >> 5u);
    var in_head = false;
    var sum = 0.0;
    if n < params.count {
        let token = tokens[n];
        in_head = token >= params.first_token && token < params.end_token;
        if in_head {
            let at = params.hidden_start + (n / params.k) * params.dim;
            for (var c = lane; c < params.dim; c += 32u) {
                sum += hidden[at + c] * head[params.head_start + (token - params.first_token) * params.dim + c];
            }
        }
    }
    sums[(index >> 5u) * 33u + lane] = sum;
    workgroupBarrier();
    if lane == 0u && in_head {
        var total = 0.0;
        for (var i = 0u; i < 32u; i++) {
            total += sums[(index >> 5u) * 33u + i];
        }
        out[n] = total;
    }
}

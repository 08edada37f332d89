struct Params {
    rows: u32,
    stride: u32,       // floats per row of logits
    k: u32,
    first_tokens: u32, // number of row 0 among the rows of `tokens`
}
var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> tokens: array<u32>;
@group(0) @binding(1) var<storage, read> gradient: array<f32>; // (rows, k)
@group(0) @binding(2) var<storage, read_write> logits: array<f32>;

// Adds the gradients of k logits per row, which are of different tokens.
@compute @workgroup_size(256)
fn add_subset(
    @builtin(workgroup_id) workgroup: vec3u,
    @builtin(num_workgroups) grid: vec3u,
    @builtin(local_invocation_index) index: u32,
) {
    let n = (workgroup.y * grid.x + workgroup.x) * 256u + index;
    if n >= params.rows * params.k {
        return;
    }
    let row = n / params.k;
    let token = tokens[(params.first_tokens + row) * params.k + n % params.k];
    logits[row * params.stride + token] += gradient[n];
}

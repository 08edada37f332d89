struct Params {
    rows: u32,
    stride: u32, // floats per row of logits
    first: u32,  // number of row 0 among all rows
    k: u32,
}
var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read> tokens: array<u32>; // (all rows, k)
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // (all rows, k)

// The logits of given tokens.
@compute @workgroup_size(256)
fn gather(
    @builtin(workgroup_id) workgroup: vec3u,
    @builtin(num_workgroups) grid: vec3u,
    @builtin(local_invocation_index) index: u32,
) {
    let n = (workgroup.y * grid.x + workgroup.x) * 256u + index;
    if n >= params.rows * params.k {
        return;
    }
    let at = params.first * params.k + n;
    out[at] = logits[(n / params.k) * params.stride + tokens[at]];
}

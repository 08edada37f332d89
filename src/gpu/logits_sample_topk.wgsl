struct Params {
    rows: u32,
    k: u32,
    inverse_temperature: f32,
    first: u32, // number of row 0 in `quantiles` and `out`
}
var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> tokens: array<u32>; // (rows, k), most likely first
@group(0) @binding(1) var<storage, read> values: array<f32>; // (rows, k)
@group(0) @binding(2) var<storage, read> quantiles: array<f32>; // (all rows)
@group(0) @binding(3) var<storage, read_write> out: array<u32>; // (all rows)

// The token at a quantile of softmax(logits / temperature) over the k most likely tokens, in their order.
@compute @workgroup_size(64)
fn sample_topk(
    @builtin(workgroup_id) workgroup: vec3u,
    @builtin(num_workgroups) grid: vec3u,
    @builtin(local_invocation_index) index: u32,
) {
    let row = (workgroup.y * grid.x + workgroup.x) * 64u + index;
    if row >= params.rows {
        return;
    }
    let start = row * params.k;
    var total = 0.0;
    for (var j = 0u; j < params.k; j++) {
        total += exp((values[start + j] - values[start]) * params.inverse_temperature);
    }
    let wanted = quantiles[params.first + row] * total;
    var below = 0.0;
    var j = 0u;
    for (; j + 1u < params.k; j++) {
        below += exp((values[start + j] - values[start]) * params.inverse_temperature);
        if wanted < below {
            break;
        }
    }
    out[params.first + row] = tokens[start + j];
}

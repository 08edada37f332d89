struct Params {
    rows: u32, // T H
    dim: u32,  // K / 4
}
var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> o: array<vec4f>;
@group(0) @binding(1) var<storage, read> d_o: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> delta: array<f32>;

var<workgroup> sums: array<f32, 272>; // (16, 16), rows of 17

// delta = sum(dO * O) of each token and head: 16 rows of K channels per workgroup.
@compute @workgroup_size(256)
fn delta_rows(
    @builtin(workgroup_id) workgroup: vec3u,
    @builtin(num_workgroups) grid: vec3u,
    @builtin(local_invocation_index) index: u32,
) {
    let lane = index & 15u;
    let row = (workgroup.y * grid.x + workgroup.x) * 16u + (index >> 4u);
    var sum = 0.0;
    if row < params.rows {
        for (var c = lane; c < params.dim; c += 16u) {
            sum += dot(o[row * params.dim + c], d_o[row * params.dim + c]);
        }
    }
    sums[(index >> 4u) * 17u + lane] = sum;
    workgroupBarrier();
    if lane == 0u && row < params.rows {
        var total = 0.0;
        for (var i = 0u; i < 16u; i++) {
            total += sums[(index >> 4u) * 17u + i];
        }
        delta[row] = total;
    }
}

struct Params {
    rows: u32,
    slot: u32,
}
var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> terms: array<f32>; // (rows, 2)
@group(0) @binding(1) var<storage, read_write> loss: array<f32>;

// loss[2 slot] and loss[2 slot + 1]: the sums of both terms over all rows.
@compute @workgroup_size(256)
fn sum_terms(@builtin(local_invocation_index) index: u32) {
    var sums = vec4f();
    for (var row = index; row < params.rows; row += 256u) {
        sums += vec4f(terms[2u * row], terms[2u * row + 1u], 0.0, 0.0);
    }
    sums = sum_all(sums, index);
    if index == 0u {
        loss[2u * params.slot] = sums.x;
        loss[2u * params.slot + 1u] = sums.y;
    }
}

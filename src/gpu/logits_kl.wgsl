struct Params {
    rows: u32,
    vocab: u32,
    stride: u32, // vectors per row of logits
    first: u32,  // number of row 0 among all rows
}
var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> model: array<vec4f>;
@group(0) @binding(1) var<storage, read> reference: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

// KL(reference || model) in nats, over the whole vocabulary. Equal rows give 0 exactly.
@compute @workgroup_size(256)
fn kl(
    @builtin(workgroup_id) workgroup: vec3u,
    @builtin(num_workgroups) grid: vec3u,
    @builtin(local_invocation_index) index: u32,
) {
    let row = workgroup.y * grid.x + workgroup.x;
    if row >= params.rows {
        return;
    }
    let start = row * params.stride;
    var most_s = vec4f(LOWEST);
    var most_t = vec4f(LOWEST);
    for (var n = index; n < params.stride; n += 256u) {
        let counts = vec4u(n * 4u) + vec4u(0u, 1u, 2u, 3u) < vec4u(params.vocab);
        most_s = max(most_s, select(vec4f(LOWEST), model[start + n], counts));
        most_t = max(most_t, select(vec4f(LOWEST), reference[start + n], counts));
    }
    let maxima = max_all(vec4f(max_lanes(most_s), max_lanes(most_t), 0.0, 0.0), index);
    var sum_s = vec4f();
    var sum_t = vec4f();
    var sum_cross = vec4f();
    for (var n = index; n < params.stride; n += 256u) {
        let counts = vec4u(n * 4u) + vec4u(0u, 1u, 2u, 3u) < vec4u(params.vocab);
        let a = select(vec4f(), model[start + n] - maxima.x, counts);
        let b = select(vec4f(), reference[start + n] - maxima.y, counts);
        let e = exp(b);
        sum_s += select(vec4f(), exp(a), counts);
        sum_t += select(vec4f(), e, counts);
        sum_cross += e * (b - a);
    }
    let sums = sum_all(vec4f(sum_lanes(sum_s), sum_lanes(sum_t), sum_lanes(sum_cross), 0.0), index);
    if index == 0u {
        out[params.first + row] = max(0.0, sums.z / sums.y + log_ratio(sums.x, sums.y));
    }
}

struct Params {
    heads: u32,  // H
    dim: u32,    // K / 4
    count: u32,  // tokens
    tokens: u32, // where they begin in the plan
}
var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> plan: array<u32>;
@group(0) @binding(1) var<storage, read> parts: array<vec4f>;
@group(0) @binding(2) var<storage, read> part_lse: array<f32>;
@group(0) @binding(3) var<storage, read_write> o: array<vec4f>;

// Output of tokens whose keys were split among several tasks: the parts' outputs, weighted by exp(lse).
@compute @workgroup_size(256)
fn combine(
    @builtin(workgroup_id) workgroup: vec3u,
    @builtin(num_workgroups) grid: vec3u,
    @builtin(local_invocation_index) index: u32,
) {
    let number = workgroup.y * grid.x + workgroup.x;
    if number >= params.count {
        return;
    }
    let token = plan[params.tokens + number * 3u];
    let first = plan[params.tokens + number * 3u + 1u];
    let end = first + plan[params.tokens + number * 3u + 2u];
    for (var n = index; n < params.heads * params.dim; n += 256u) {
        let head = n / params.dim;
        var maximum = part_lse[first * params.heads + head];
        for (var part = first + 1u; part < end; part++) {
            maximum = max(maximum, part_lse[part * params.heads + head]);
        }
        var sum = vec4f();
        var total = 0.0;
        for (var part = first; part < end; part++) {
            let weight = exp(part_lse[part * params.heads + head] - maximum);
            total += weight;
            sum += weight * parts[part * params.heads * params.dim + n];
        }
        o[token * params.heads * params.dim + n] = sum / total;
    }
}

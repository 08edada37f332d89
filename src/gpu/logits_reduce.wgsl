struct Params {
    rows: u32,
    vocab: u32,
    stride: u32, // vectors per row of logits
    first: u32,  // number of row 0 among all rows
}
var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> logits: array<vec4f>;
@group(0) @binding(1) var<storage, read_write> out: array<vec2u>; // (rows): the most likely token; bits of the log-sum-exp

var<workgroup> first_tokens: array<u32, 256>;

// The most likely token (the lowest id among equals), and ln sum exp of all logits.
@compute @workgroup_size(256)
fn reduce(
    @builtin(workgroup_id) workgroup: vec3u,
    @builtin(num_workgroups) grid: vec3u,
    @builtin(local_invocation_index) index: u32,
) {
    let row = workgroup.y * grid.x + workgroup.x;
    if row >= params.rows {
        return;
    }
    let start = row * params.stride;
    var most = LOWEST;
    var token = 0xffffffffu;
    for (var n = index; n < params.stride; n += 256u) {
        let x = logits[start + n];
        for (var i = 0u; i < 4u; i++) {
            if n * 4u + i < params.vocab && x[i] > most {
                most = x[i];
                token = n * 4u + i;
            }
        }
    }
    let maximum = max_all(vec4f(most), index).x;
    first_tokens[index] = select(0xffffffffu, token, most == maximum);
    for (var half = 128u; half > 0u; half >>= 1u) {
        workgroupBarrier();
        if index < half {
            first_tokens[index] = min(first_tokens[index], first_tokens[index + half]);
        }
    }
    var sum = vec4f();
    for (var n = index; n < params.stride; n += 256u) {
        let number = vec4u(n * 4u) + vec4u(0u, 1u, 2u, 3u);
        sum += select(vec4f(), exp(logits[start + n] - maximum), number < vec4u(params.vocab));
    }
    let z = sum_lanes(sum_all(sum, index));
    if index == 0u {
        // No logit is above `LOWEST` only if none is a number.
        let found = select(0u, first_tokens[0], first_tokens[0] < params.vocab);
        out[params.first + row] = vec2u(found, bitcast<u32>(maximum + log(z)));
    }
}

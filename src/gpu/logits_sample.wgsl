struct Params {
    rows: u32,
    vocab: u32,
    stride: u32, // floats per row of logits
    first: u32,  // number of row 0 among all rows
    inverse_temperature: f32,
}
var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read> quantiles: array<f32>;    // (all rows)
@group(0) @binding(2) var<storage, read_write> out: array<u32>;    // (all rows)

var<workgroup> before: array<f32, 256>;

// The token at a quantile of softmax(logits / temperature), in the order of the ids.
@compute @workgroup_size(256)
fn sample(
    @builtin(workgroup_id) workgroup: vec3u,
    @builtin(num_workgroups) grid: vec3u,
    @builtin(local_invocation_index) index: u32,
) {
    let row = workgroup.y * grid.x + workgroup.x;
    if row >= params.rows {
        return;
    }
    let start = row * params.stride;
    // Each invocation has consecutive tokens.
    let each = (params.vocab + 255u) / 256u;
    let begin = min(index * each, params.vocab);
    let end = min(begin + each, params.vocab);
    var most = LOWEST;
    for (var id = begin; id < end; id++) {
        most = max(most, logits[start + id]);
    }
    let maximum = max_all(vec4f(most), index).x;
    var sum = 0.0;
    for (var id = begin; id < end; id++) {
        sum += exp((logits[start + id] - maximum) * params.inverse_temperature);
    }
    before[index] = sum;
    workgroupBarrier();
    if index == 0u {
        var total = 0.0;
        for (var i = 0u; i < 256u; i++) {
            let own = before[i];
            before[i] = total;
            total += own;
        }
        let wanted = quantiles[params.first + row] * total;
        // The last invocation with tokens whose sum begins at or below the quantile.
        var owner = 0u;
        for (var i = 1u; i * each < params.vocab; i++) {
            if before[i] <= wanted {
                owner = i;
            }
        }
        var below = before[owner];
        let last = min(owner * each + each, params.vocab) - 1u;
        var id = owner * each;
        for (; id < last; id++) {
            below += exp((logits[start + id] - maximum) * params.inverse_temperature);
            if wanted < below {
                break;
            }
        }
        out[params.first + row] = id;
    }
}

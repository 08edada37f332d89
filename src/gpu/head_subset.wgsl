// The divergence over k tokens of the vocabulary, and its gradient.

struct Params {
    rows: u32,
    stride: u32,         // floats per row of logits
    first: u32,          // number of row 0 among all targets
    k: u32,
    inverse_tau: f32,
    exclude_target: u32,
    first_tokens: u32,   // number of row 0 among the rows of `tokens` and `teacher`
}
var<immediate> params: Params;

struct Target {
    token: u32,
    ce_weight: f32,
    distill_weight: f32,
    padding: u32,
}

@group(0) @binding(0) var<storage, read> student: array<f32>;
@group(0) @binding(1) var<storage, read> tokens: array<u32>;
@group(0) @binding(2) var<storage, read> teacher: array<f32>;
@group(0) @binding(3) var<storage, read> targets: array<Target>;
@group(0) @binding(4) var<storage, read_write> gradient: array<f32>; // (rows, k)
@group(0) @binding(5) var<storage, read_write> terms: array<f32>;

// The part of all that `others` is, where `y` adds exp(y) to it.
fn share(others: f32, y: f32) -> f32 {
    if y <= 0.0 {
        return others / (others + exp(y));
    }
    let scaled = others * exp(-y);
    return scaled / (scaled + 1.0);
}

@compute @workgroup_size(256)
fn subset(
    @builtin(workgroup_id) workgroup: vec3u,
    @builtin(num_workgroups) grid: vec3u,
    @builtin(local_invocation_index) index: u32,
) {
    let row = workgroup.y * grid.x + workgroup.x;
    if row >= params.rows {
        return;
    }
    let row_target = targets[params.first + row];
    let excluded = params.exclude_target != 0u;
    let inverse = params.inverse_tau;
    let at = (params.first_tokens + row) * params.k;
    let logits = row * params.stride;

    // x, y: maxima of student and teacher. z: the teacher's logit of the target, where it is left out.
    var most = vec4f(LOWEST);
    for (var j = index; j < params.k; j += 256u) {
        let token = tokens[at + j];
        if excluded && token == row_target.token {
            most.z = teacher[at + j];
        } else {
            most.x = max(most.x, student[logits + token]);
            most.y = max(most.y, teacher[at + j]);
        }
    }
    most = max_all(most, index);
    var sums = vec4f();
    for (var j = index; j < params.k; j += 256u) {
        let token = tokens[at + j];
        if !(excluded && token == row_target.token) {
            let a = student[logits + token] - most.x;
            let b = teacher[at + j] - most.y;
            let e = exp(b * inverse);
            sums += vec4f(exp(a * inverse), e, e * (b - a), 0.0);
        }
    }
    sums = sum_all(sums, index);
    var mass = 1.0;
    if most.z > 0.5 * LOWEST {
        mass = 0.0;
        if most.y > 0.5 * LOWEST {
            mass = share(sums.y, (most.z - most.y) * inverse);
        }
    }
    let weight = row_target.distill_weight * inverse * mass;
    for (var j = index; j < params.k; j += 256u) {
        let token = tokens[at + j];
        var g = 0.0;
        if !(excluded && token == row_target.token) && weight != 0.0 {
            let p_s = exp((student[logits + token] - most.x) * inverse) / sums.x;
            let p_t = exp((teacher[at + j] - most.y) * inverse) / sums.y;
            g = weight * (p_s - p_t);
        }
        gradient[row * params.k + j] = g;
    }
    if index == 0u {
        var kl = 0.0;
        if mass > 0.0 {
            kl = mass * (sums.z / sums.y * inverse + log_ratio(sums.x, sums.y));
        }
        terms[2u * (params.first + row) + 1u] = row_target.distill_weight * kl;
    }
}

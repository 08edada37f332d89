// Sums over long arrays. A workgroup sums PER_GROUP elements: each invocation a few, in order, then all of them as a tree. The results
// of all workgroups are summed in the same way, until one is left. So the error grows with the logarithm of the length.

const THREADS = 256u;
const EACH = 16u;
const PER_GROUP = 4096u;

var<workgroup> sums: array<f32, THREADS>;

fn sum_of_group(local: u32, value: f32) -> f32 {
    sums[local] = value;
    workgroupBarrier();
    for (var step = THREADS / 2u; step > 0u; step >>= 1u) {
        if local < step { sums[local] += sums[local + step]; }
        workgroupBarrier();
    }
    return sums[0];
}

struct Params {
    len: u32,
    partial_start: u32,
    x_start: u32,
    flag: u32,     // index of the flag of this range
    first: u32,    // of this part in its range
    w_start: u32,
    center_start: u32,
    f_start: u32,
    factor: f32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read_write> part_sums: array<f32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> flags: array<atomic<u32>>;

// Infinite or not a number, by the exponent: the compiler may assume that no comparison sees such a number.
fn is_finite(v: f32) -> bool {
    return (bitcast<u32>(v) & 0x7f800000u) != 0x7f800000u;
}

// Sum of squares; the flag is the index of the first element that is not finite.
@compute @workgroup_size(THREADS)
fn squares(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let number = group.y * groups.x + group.x;
    var sum = 0.0;
    var bad = 0xffffffffu;
    for (var j = 0u; j < EACH; j++) {
        let i = number * PER_GROUP + j * THREADS + local;
        if i < p.len {
            let v = x[p.x_start + i];
            sum += v * v;
            if !is_finite(v) { bad = min(bad, p.first + i); }
        }
    }
    if bad != 0xffffffffu { atomicMin(&flags[p.flag], bad); }
    let total = sum_of_group(local, sum);
    if local == 0u && number * PER_GROUP < p.len { part_sums[p.partial_start + number] = total; }
}

@compute @workgroup_size(THREADS)
fn add(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let number = group.y * groups.x + group.x;
    var sum = 0.0;
    for (var j = 0u; j < EACH; j++) {
        let i = number * PER_GROUP + j * THREADS + local;
        if i < p.len { sum += x[p.x_start + i]; }
    }
    let total = sum_of_group(local, sum);
    if local == 0u && number * PER_GROUP < p.len { part_sums[p.partial_start + number] = p.factor * total; }
}

@group(0) @binding(0) var<storage, read_write> words: array<u32>;

@compute @workgroup_size(THREADS)
fn reset(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = (group.y * groups.x + group.x) * THREADS + local;
    if i < p.len { words[p.x_start + i] = 0xffffffffu; }
}

// Weighted squared distance: sum of f (w - center)^2; adds 2 factor f (w - center) to g.
@group(0) @binding(1) var<storage, read_write> g: array<f32>;
@group(0) @binding(2) var<storage, read> w: array<f32>;
@group(0) @binding(3) var<storage, read> center: array<f32>;
@group(0) @binding(4) var<storage, read> importance: array<f32>;

@compute @workgroup_size(THREADS)
fn squared_distance(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let number = group.y * groups.x + group.x;
    var sum = 0.0;
    for (var j = 0u; j < EACH; j++) {
        let i = number * PER_GROUP + j * THREADS + local;
        if i < p.len {
            let d = w[p.w_start + i] - center[p.center_start + i];
            g[p.x_start + i] += 2.0 * p.factor * d;
            sum += d * d;
        }
    }
    let total = sum_of_group(local, sum);
    if local == 0u && number * PER_GROUP < p.len { part_sums[p.partial_start + number] = total; }
}

@compute @workgroup_size(THREADS)
fn weighted_squared_distance(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let number = group.y * groups.x + group.x;
    var sum = 0.0;
    for (var j = 0u; j < EACH; j++) {
        let i = number * PER_GROUP + j * THREADS + local;
        if i < p.len {
            let d = w[p.w_start + i] - center[p.center_start + i];
            let f = importance[p.f_start + i];
            g[p.x_start + i] += 2.0 * p.factor * f * d;
            sum += f * d * d;
        }
    }
    let total = sum_of_group(local, sum);
    if local == 0u && number * PER_GROUP < p.len { part_sums[p.partial_start + number] = total; }
}

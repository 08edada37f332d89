// RMS norms of parts of the rows of qkv, in place. T tokens, (H + 2G) K columns.
//
// q of a token has `q_norms` norms of `q_dim` columns: H of K, or one of H K. k likewise. LANES invocations share a norm.

override LANES: u32 = 64u;
const THREADS = 256u;

var<workgroup> sums: array<f32, THREADS>;

fn sum_of_lanes(local: u32, value: f32) -> f32 {
    sums[local] = value;
    workgroupBarrier();
    for (var step = LANES / 2u; step > 0u; step >>= 1u) {
        if local % LANES < step { sums[local] += sums[local + step]; }
        workgroupBarrier();
    }
    return sums[local / LANES * LANES];
}

struct Params {
    tokens: u32,
    qkv_width: u32,
    q_norms: u32,
    k_norms: u32,
    q_dim: u32,
    k_dim: u32,
    qkv_start: u32,
    raw_start: u32,
    r_start: u32,
    q_weight: u32, // first element of the weight of q
    k_weight: u32,
    eps: f32,
    offset: f32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read_write> qkv: array<f32>;     // or its gradient
@group(0) @binding(1) var<storage, read_write> raw_out: array<f32>; // (T, (H + G) K): the input
@group(0) @binding(1) var<storage, read> raw: array<f32>;
@group(0) @binding(2) var<storage, read_write> r_out: array<f32>;   // (T, norms)
@group(0) @binding(2) var<storage, read> r_in: array<f32>;
@group(0) @binding(3) var<storage, read> wq: array<f32>;
@group(0) @binding(4) var<storage, read> wk: array<f32>;

struct Norm {
    here: bool,
    number: u32, // among all norms of all tokens
    of_q: bool,
    dim: u32,
    at: u32,     // first column in qkv
    raw_at: u32, // first element in raw
}

fn norm_of(number: u32) -> Norm {
    let norms = p.q_norms + p.k_norms;
    let token = number / norms;
    let j = number % norms;
    let of_q = j < p.q_norms;
    let dim = select(p.k_dim, p.q_dim, of_q);
    let q_width = p.q_norms * p.q_dim;
    let column = select(q_width + (j - p.q_norms) * p.k_dim, j * p.q_dim, of_q);
    return Norm(
        token < p.tokens,
        number,
        of_q,
        dim,
        p.qkv_start + token * p.qkv_width + column,
        p.raw_start + token * (q_width + p.k_norms * p.k_dim) + column,
    );
}

fn weight(of_q: bool, i: u32) -> f32 {
    if of_q { return wq[p.q_weight + i] + p.offset; }
    return wk[p.k_weight + i] + p.offset;
}

@compute @workgroup_size(THREADS)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let norm = norm_of((group.y * groups.x + group.x) * (THREADS / LANES) + local / LANES);
    let lane = local % LANES;
    var squares = 0.0;
    if norm.here {
        for (var i = lane; i < norm.dim; i += LANES) {
            let v = qkv[norm.at + i];
            squares += v * v;
            raw_out[norm.raw_at + i] = v;
        }
    }
    let sum = sum_of_lanes(local, squares);
    if norm.here {
        let r = 1.0 / sqrt(sum / f32(norm.dim) + p.eps);
        if lane == 0u { r_out[p.r_start + norm.number] = r; }
        for (var i = lane; i < norm.dim; i += LANES) {
            qkv[norm.at + i] = qkv[norm.at + i] * r * weight(norm.of_q, i);
        }
    }
}

@compute @workgroup_size(THREADS)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let norm = norm_of((group.y * groups.x + group.x) * (THREADS / LANES) + local / LANES);
    let lane = local % LANES;
    var products = 0.0;
    if norm.here {
        for (var i = lane; i < norm.dim; i += LANES) {
            products += qkv[norm.at + i] * weight(norm.of_q, i) * raw[norm.raw_at + i];
        }
    }
    let sum = sum_of_lanes(local, products);
    if norm.here {
        let r = r_in[p.r_start + norm.number];
        let c = sum * r * r * r / f32(norm.dim);
        for (var i = lane; i < norm.dim; i += LANES) {
            qkv[norm.at + i] = qkv[norm.at + i] * weight(norm.of_q, i) * r - raw[norm.raw_at + i] * c;
        }
    }
}

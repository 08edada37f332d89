// RMS norms. T rows, D columns.
//
// LANES invocations share a row. A workgroup has THREADS / LANES rows.

override LANES: u32 = 64u;
const THREADS = 256u;

var<workgroup> sums: array<f32, THREADS>;

// The sum of `value` over the lanes of a row, in a fixed order.
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
    rows: u32,
    width: u32,
    y_start: u32,
    r_start: u32,
    x_start: u32,
    w_start: u32,
    dy_start: u32,
    add: u32,      // backward: 1 adds to dx, 0 overwrites it
    eps: f32,
    offset: f32,   // added to each weight
    factor: f32,   // of dy
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read_write> y: array<f32>; // y, or dx
@group(0) @binding(1) var<storage, read_write> r_out: array<f32>;
@group(0) @binding(1) var<storage, read> r_in: array<f32>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read> w: array<f32>;
@group(0) @binding(4) var<storage, read> dy: array<f32>;

@compute @workgroup_size(THREADS)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let row = (group.y * groups.x + group.x) * (THREADS / LANES) + local / LANES;
    let lane = local % LANES;
    let here = row < p.rows;
    let at = p.x_start + row * p.width;
    var squares = 0.0;
    if here {
        for (var i = lane; i < p.width; i += LANES) {
            let v = x[at + i];
            squares += v * v;
        }
    }
    let sum = sum_of_lanes(local, squares);
    if here {
        let r = 1.0 / sqrt(sum / f32(p.width) + p.eps);
        if lane == 0u { r_out[p.r_start + row] = r; }
        let to = p.y_start + row * p.width;
        for (var i = lane; i < p.width; i += LANES) {
            y[to + i] = x[at + i] * r * (w[p.w_start + i] + p.offset);
        }
    }
}

@compute @workgroup_size(THREADS)
fn recompute(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let row = (group.y * groups.x + group.x) * (THREADS / LANES) + local / LANES;
    if row >= p.rows { return; }
    let r = r_in[p.r_start + row];
    for (var i = local % LANES; i < p.width; i += LANES) {
        y[p.y_start + row * p.width + i] = x[p.x_start + row * p.width + i] * r * (w[p.w_start + i] + p.offset);
    }
}

// dx (+)= r dy w - x r^3 / D * sum(dy w x)
@compute @workgroup_size(THREADS)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let row = (group.y * groups.x + group.x) * (THREADS / LANES) + local / LANES;
    let lane = local % LANES;
    let here = row < p.rows;
    let at = row * p.width;
    var products = 0.0;
    if here {
        for (var i = lane; i < p.width; i += LANES) {
            products += p.factor * dy[p.dy_start + at + i] * (w[p.w_start + i] + p.offset) * x[p.x_start + at + i];
        }
    }
    let sum = sum_of_lanes(local, products);
    if here {
        let r = r_in[p.r_start + row];
        let c = sum * r * r * r / f32(p.width);
        for (var i = lane; i < p.width; i += LANES) {
            var dx = p.factor * dy[p.dy_start + at + i] * (w[p.w_start + i] + p.offset) * r - x[p.x_start + at + i] * c;
            if p.add == 1u { dx += y[p.y_start + at + i]; }
            y[p.y_start + at + i] = dx;
        }
    }
}

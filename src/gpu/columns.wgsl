// Sums over rows, in two passes: each workgroup sums COLUMNS columns over one slice of the rows, then the slices are added in order.

const COLUMNS = 64u;

struct Params {
    rows: u32,
    heads: u32,      // parts of a row that are summed together
    width: u32,      // columns of a part
    slices: u32,
    rows_per_slice: u32,
    dy_start: u32,
    dy_stride: u32,
    x_start: u32,
    x_stride: u32,
    r_start: u32,
    r_stride: u32,
    out_start: u32,
    factor: f32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read_write> out: array<f32>; // (slices, width), or (width)
@group(0) @binding(1) var<storage, read> dy: array<f32>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read> r: array<f32>;

// dy
@compute @workgroup_size(COLUMNS)
fn sum_rows(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let column = group.x * COLUMNS + local;
    if column >= p.width { return; }
    let first = group.y * p.rows_per_slice;
    var sum = 0.0;
    for (var row = first; row < min(p.rows, first + p.rows_per_slice); row++) {
        sum += dy[p.dy_start + row * p.dy_stride + column];
    }
    out[group.y * p.width + column] = sum;
}

// dy x r: the gradient of the weight of a norm
@compute @workgroup_size(COLUMNS)
fn sum_products(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let column = group.x * COLUMNS + local;
    if column >= p.width { return; }
    let first = group.y * p.rows_per_slice;
    var sum = 0.0;
    for (var row = first; row < min(p.rows, first + p.rows_per_slice); row++) {
        for (var head = 0u; head < p.heads; head++) {
            let i = head * p.width + column;
            sum += dy[p.dy_start + row * p.dy_stride + i] * x[p.x_start + row * p.x_stride + i]
                * r[p.r_start + row * p.r_stride + head];
        }
    }
    out[group.y * p.width + column] = sum;
}

@compute @workgroup_size(COLUMNS)
fn add_slices(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let column = group.x * COLUMNS + local;
    if column >= p.width { return; }
    var sum = 0.0;
    for (var slice = 0u; slice < p.slices; slice++) {
        sum += dy[slice * p.width + column];
    }
    out[p.out_start + column] += p.factor * sum;
}

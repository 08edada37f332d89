// C (M, N) = alpha * sum over slices of the partial results + beta C, in the order of the slices.

@group(0) @binding(0) var<storage, read_write> c: array<f32>;
@group(0) @binding(1) var<storage, read> part_sums: array<f32>; // (slices, M, stride)

struct Params {
    m: u32,
    n: u32,
    c_start: u32,
    c_stride: u32,
    stride: u32,
    slice: u32, // elements
    slices: u32,
    alpha: f32,
    beta: f32,
}
var<immediate> p: Params;

@compute @workgroup_size(256)
fn add_slices(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * 256u + local;
    if i >= p.m * p.n { return; }
    let row = i / p.n;
    let column = i % p.n;
    var sum = 0.0;
    for (var s = 0u; s < p.slices; s++) {
        sum += part_sums[s * p.slice + row * p.stride + column];
    }
    let to = p.c_start + row * p.c_stride + column;
    var out = p.alpha * sum;
    if p.beta != 0.0 { out += p.beta * c[to]; }
    c[to] = out;
}

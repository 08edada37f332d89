// x (T, N) += bias (N), for every row.

@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read> bias: array<f32>;

struct Params {
    len: u32,
    n: u32,
    x_start: u32,
    bias_start: u32,
}
var<immediate> p: Params;

@compute @workgroup_size(256)
fn add_bias(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = (group.y * groups.x + group.x) * 256u + local;
    if i < p.len { x[p.x_start + i] += bias[p.bias_start + i % p.n]; }
}

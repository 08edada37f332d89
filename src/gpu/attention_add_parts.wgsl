struct Params {
    count: u32,    // key blocks
    blocks: u32,   // where they begin in the plan
    block: u32,    // keys of a block
    groups: u32,   // G
    dim: u32,      // K / 4
    stride: u32,   // vectors per token
    k_offset: u32, // vectors before the first group's keys in a token
    v_offset: u32,
}
var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> plan: array<u32>;
@group(0) @binding(1) var<storage, read> parts: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> d_qkv: array<vec4f>;

// Adds up the parts of key blocks whose queries were shared among several tasks, in their order.
@compute @workgroup_size(256)
fn add_parts(
    @builtin(workgroup_id) workgroup: vec3u,
    @builtin(num_workgroups) grid: vec3u,
    @builtin(local_invocation_index) index: u32,
) {
    let block = workgroup.y * grid.x + workgroup.x;
    if block >= params.count {
        return;
    }
    let group = workgroup.z;
    let at_plan = params.blocks + block * 4u;
    let token = plan[at_plan];
    let keys = plan[at_plan + 1u];
    let first_part = plan[at_plan + 2u];
    let num_parts = plan[at_plan + 3u];
    for (var n = index; n < keys * 2u * params.dim; n += 256u) {
        let key = n / (2u * params.dim);
        let column = n % (2u * params.dim);
        var sum = vec4f();
        for (var part = first_part; part < first_part + num_parts; part++) {
            sum += parts[((part * params.groups + group) * params.block * 2u) * params.dim + n];
        }
        var at = (token + key) * params.stride + group * params.dim;
        if column < params.dim {
            at += params.k_offset + column;
        } else {
            at += params.v_offset + column - params.dim;
        }
        d_qkv[at] = sum;
    }
}

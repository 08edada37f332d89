struct Params {
    tokens: u32,
    qkv_stride: u32, // vectors per token: (H + 2G) K / 4
    k_offset: u32,   // vectors before the keys in a token: H K / 4
    stride: u32,     // vectors per slot: G K / 4
}
var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> qkv: array<vec4f>;
@group(0) @binding(1) var<storage, read> slots: array<u32>;
@group(0) @binding(2) var<storage, read_write> keys: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> values: array<vec4f>;

// Copies keys and values of new tokens to their slots.
@compute @workgroup_size(256)
fn write(
    @builtin(workgroup_id) workgroup: vec3u,
    @builtin(num_workgroups) grid: vec3u,
    @builtin(local_invocation_index) index: u32,
) {
    let n = (workgroup.y * grid.x + workgroup.x) * 256u + index;
    if n >= params.tokens * params.stride {
        return;
    }
    let token = n / params.stride;
    let column = n % params.stride;
    let source = token * params.qkv_stride + params.k_offset + column;
    let to = slots[token] * params.stride + column;
    keys[to] = qkv[source];
    values[to] = qkv[source + params.stride];
}

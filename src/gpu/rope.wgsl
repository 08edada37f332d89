// Rotary position embedding, in place: heads of `dim` columns, whose first 2 `half` are rotated.

@group(0) @binding(0) var<storage, read_write> qkv: array<f32>; // (T, width)
@group(0) @binding(1) var<storage, read> positions: array<u32>; // (T)
@group(0) @binding(2) var<storage, read> table: array<f32>;     // (positions, 2 half): cosines, then sines

struct Params {
    tokens: u32,
    heads: u32,
    dim: u32,
    half: u32,
    width: u32,
    qkv_start: u32,
    positions_start: u32,
    table_start: u32,
    last: u32, // row of the table
    sign: f32, // of the sines: -1 rotates back
}
var<immediate> p: Params;

@compute @workgroup_size(256)
fn rotate(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let number = (group.y * groups.x + group.x) * 256u + local;
    let i = number % p.half;
    let head = number / p.half % p.heads;
    let token = number / p.half / p.heads;
    if token >= p.tokens { return; }
    let angle = p.table_start + min(positions[p.positions_start + token], p.last) * (2u * p.half) + i;
    let cosine = table[angle];
    let sine = p.sign * table[angle + p.half];
    let at = p.qkv_start + token * p.width + head * p.dim + i;
    let a = qkv[at];
    let b = qkv[at + p.half];
    qkv[at] = a * cosine - b * sine;
    qkv[at + p.half] = b * cosine + a * sine;
}

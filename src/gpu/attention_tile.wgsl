// Tiles of attention. A workgroup of 16 x 16 invocations multiplies 64 query rows with 64 keys: each invocation has 4 x 4 scores.
// A query row is one token and one head of a group. K channels are K / 4 vectors; COLUMNS = ceil(K / 64) of them belong to one
// invocation, and STAGED rows of K channels are in workgroup memory at once (STAGED * COLUMNS * 16 <= 512 vectors).

struct Params {
    q_stride: u32,   // vectors per token
    k_stride: u32,
    v_stride: u32,
    o_stride: u32,
    k_offset: u32,   // vectors before the first group's keys in a token
    v_offset: u32,
    heads: u32,      // H
    groups: u32,     // G
    group_size: u32, // R
    dim: u32,        // K / 4
    count: u32,      // blocks, or tasks
    ranges: u32,     // where the ranges of keys or of queries begin in the plan
    window: u32,
    scale: f32,
}
var<immediate> params: Params;

// Software devices: loops are not unrolled, which takes their compilers long.
override ROLLED = false;

// Vectors of a row in `stage` from `channel` on. The rest of four is zero.
fn staged_vectors(channel: u32) -> u32 {
    return select(4u, min(4u, params.dim - channel), ROLLED);
}

// A score that takes no part; below every score. Infinities and NaN are not used: fast arithmetic may assume that there are none.
const HIDDEN = -3e38;
// Vectors of a row in `stage` and in `probabilities`: odd, so that invocations read different banks.
const STAGE_ROW = 5u;
const PROBABILITY_ROW = 17u;
const RIGHT = 320u;

var<workgroup> stage: array<vec4f, 640>;          // 2 x (64 rows, 16 channels); or rows of values
var<workgroup> probabilities: array<vec4f, 1088>; // (64, 64)

// Where row `row` of the right operand is in `stage`, so that neighbouring invocations, which own four rows each, read neighbours.
fn right_slot(row: u32) -> u32 {
    return RIGHT + ((row & 3u) * 16u + (row >> 2u)) * STAGE_ROW;
}

// The dot products of left row `row` and of the four right rows of `x` over the staged channels.
fn products(row: u32, x: u32, c: u32) -> vec4f {
    let a = stage[row * STAGE_ROW + c];
    return vec4f(
        dot(a, stage[RIGHT + x * STAGE_ROW + c]),
        dot(a, stage[RIGHT + (16u + x) * STAGE_ROW + c]),
        dot(a, stage[RIGHT + (32u + x) * STAGE_ROW + c]),
        dot(a, stage[RIGHT + (48u + x) * STAGE_ROW + c]),
    );
}

// Whether a query at `position` attends to keys at `keys`.
fn visible(position: u32, keys: vec4u) -> vec4<bool> {
    // A later key is 2^31 or more behind.
    return vec4u(position) - keys < vec4u(params.window);
}

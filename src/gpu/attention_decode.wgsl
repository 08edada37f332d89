// Attention of single new tokens to keys and values of a cache. A task is one token and up to 256 of its keys; a workgroup does one
// task for ROWS heads of one group.

struct Params {
    q_stride: u32,  // vectors per token
    kv_stride: u32, // vectors per slot
    heads: u32,     // H
    groups: u32,    // G
    group_size: u32, // R
    dim: u32,       // K / 4
    count: u32,     // tasks
    ranges: u32,    // where the ranges of keys begin in the plan
    window: u32,
    scale: f32,
}
var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> q: array<vec4f>;
@group(0) @binding(1) var<storage, read> keys: array<vec4f>;
@group(0) @binding(2) var<storage, read> values: array<vec4f>;
@group(0) @binding(3) var<storage, read> plan: array<u32>;
@group(0) @binding(4) var<storage, read_write> o: array<vec4f>;
@group(0) @binding(5) var<storage, read_write> parts: array<vec4f>;
@group(0) @binding(6) var<storage, read_write> part_lse: array<f32>;

const HIDDEN = -3e38;
// The slot of a key behind the window.
const NO_SLOT = 0xffffffffu;
// A task that has all keys of its token.
const DIRECT = 0xffffffffu;
const TILE_ROW = 17u;

var<workgroup> queries: array<vec4f, ROWS * 64u>; // (ROWS, K), scaled
var<workgroup> tile: array<vec4f, 544>;           // (32 keys, 64 channels), then sums of the output
var<workgroup> slots: array<u32, 256>;
var<workgroup> weights: array<f32, ROWS * 256u>;  // scores, then probabilities
var<workgroup> lane_values: array<f32, 256>;

@compute @workgroup_size(256)
fn decode(
    @builtin(workgroup_id) workgroup: vec3u,
    @builtin(num_workgroups) grid: vec3u,
    @builtin(local_invocation_index) index: u32,
) {
    let task = workgroup.y * grid.x + workgroup.x;
    if task >= params.count {
        return;
    }
    let chunks = (params.group_size + ROWS - 1u) / ROWS;
    let group = workgroup.z / chunks;
    let first_row = (workgroup.z % chunks) * ROWS;
    let rows = min(ROWS, params.group_size - first_row);
    let head = group * params.group_size + first_row;
    let dim = params.dim;

    let token = plan[task * 6u];
    let position = plan[task * 6u + 1u];
    let ranges = params.ranges + plan[task * 6u + 2u] * 3u;
    let num_ranges = plan[task * 6u + 3u];
    let count = plan[task * 6u + 4u];
    let part = plan[task * 6u + 5u];

    for (var n = index; n < ROWS * dim; n += 256u) {
        var query = vec4f();
        if n / dim < rows {
            query = q[token * params.q_stride + head * dim + n] * params.scale;
        }
        queries[(n / dim) * 64u + n % dim] = query;
    }
    var slot = NO_SLOT;
    var before = 0u;
    for (var r = 0u; r < num_ranges; r++) {
        let range_len = plan[ranges + r * 3u + 1u];
        let offset = index - before;
        // Invocations of an earlier range wrap around.
        if offset < range_len && position - (plan[ranges + r * 3u + 2u] + offset) < params.window {
            slot = plan[ranges + r * 3u] + offset;
        }
        before += range_len;
    }
    slots[index] = slot;

    // Scores: 32 keys at a time, one key and one head per invocation.
    let tile_key = index & 31u;
    let row = index >> 5u;
    for (var start = 0u; start < count; start += 32u) {
        var score = 0.0;
        for (var channel = 0u; channel < dim; channel += 16u) {
            workgroupBarrier();
            for (var n = index; n < 512u; n += 256u) {
                let c = channel + (n & 15u);
                let key_slot = slots[start + (n >> 4u)];
                var key = vec4f();
                if key_slot != NO_SLOT && c < dim {
                    key = keys[key_slot * params.kv_stride + group * dim + c];
                }
                tile[(n >> 4u) * TILE_ROW + (n & 15u)] = key;
            }
            workgroupBarrier();
            if row < ROWS {
                for (var c = 0u; c < min(16u, dim - channel); c++) {
                    score += dot(queries[row * 64u + channel + c], tile[tile_key * TILE_ROW + c]);
                }
            }
        }
        if row < ROWS {
            weights[row * 256u + start + tile_key] = select(score, HIDDEN, slots[start + tile_key] == NO_SLOT);
        }
    }

    // Softmax: 32 invocations per head.
    let padded = (count + 31u) & ~31u;
    workgroupBarrier();
    if row < ROWS {
        var most = HIDDEN;
        for (var n = tile_key; n < padded; n += 32u) {
            most = max(most, weights[row * 256u + n]);
        }
        lane_values[index] = most;
    }
    workgroupBarrier();
    var maximum = HIDDEN;
    if row < ROWS {
        for (var i = 0u; i < 32u; i++) {
            maximum = max(maximum, lane_values[row * 32u + i]);
        }
    }
    workgroupBarrier();
    if row < ROWS {
        var sum = 0.0;
        for (var n = tile_key; n < padded; n += 32u) {
            let score = weights[row * 256u + n];
            let p = select(0.0, exp(score - maximum), score > 0.5 * HIDDEN);
            weights[row * 256u + n] = p;
            sum += p;
        }
        lane_values[index] = sum;
    }
    workgroupBarrier();
    var total = 0.0;
    if row < ROWS {
        for (var i = 0u; i < 32u; i++) {
            total += lane_values[row * 32u + i];
        }
    }
    if part != DIRECT && tile_key == 0u && row < rows {
        part_lse[part * params.heads + head + row] = select(HIDDEN, maximum + log(total), total > 0.0);
    }
    // A part without a key in the window is zero. Elsewhere the largest term of the sum is 1.
    let inverse = select(0.0, 1.0 / max(total, 1.0), total > 0.0);
    workgroupBarrier();
    if row < ROWS && tile_key == 0u {
        lane_values[row] = inverse;
    }
    workgroupBarrier();

    // Output: every `lanes`-th key, then the sum over the lanes.
    let lanes = 256u / dim;
    let lane = index / dim;
    let column = index % dim;
    var out: array<vec4f, ROWS>;
    for (var i = 0u; i < ROWS; i++) {
        out[i] = vec4f();
    }
    if lane < lanes {
        for (var n = lane; n < count; n += lanes) {
            if slots[n] != NO_SLOT {
                let value = values[slots[n] * params.kv_stride + group * dim + column];
                for (var i = 0u; i < ROWS; i++) {
                    out[i] += weights[i * 256u + n] * value;
                }
            }
        }
    }
    for (var i = 0u; i < ROWS; i++) {
        workgroupBarrier();
        tile[index] = out[i];
        workgroupBarrier();
        if lane == 0u && i < rows {
            var sum = vec4f();
            for (var l = 0u; l < lanes; l++) {
                sum += tile[l * dim + column];
            }
            sum *= lane_values[i];
            if part == DIRECT {
                o[(token * params.heads + head + i) * dim + column] = sum;
            } else {
                parts[(part * params.heads + head + i) * dim + column] = sum;
            }
        }
    }
}

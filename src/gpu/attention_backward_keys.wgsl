@group(0) @binding(0) var<storage, read> qkv: array<vec4f>;
@group(0) @binding(1) var<storage, read> plan: array<u32>;
@group(0) @binding(2) var<storage, read> d_o: array<vec4f>;
@group(0) @binding(3) var<storage, read> lse: array<f32>;
@group(0) @binding(4) var<storage, read> delta: array<f32>;
@group(0) @binding(5) var<storage, read_write> d_qkv: array<vec4f>;
@group(0) @binding(6) var<storage, read_write> parts: array<vec4f>;

// Keys of a block: OWN for each of 16 invocations.
const KEYS = 16u * OWN;
// A task that writes to `d_qkv` itself.
const DIRECT = 0xffffffffu;

// dK and dV of one block of keys in one group, over some of the query rows that attend to it: S^T = K Q^T in tiles of KEYS x 64,
// dV = P^T dO, dK = dS^T (scale * Q). Left rows are keys, right rows queries.
@compute @workgroup_size(256)
fn backward_keys(
    @builtin(workgroup_id) workgroup: vec3u,
    @builtin(num_workgroups) grid: vec3u,
    @builtin(local_invocation_index) index: u32,
) {
    let task = workgroup.y * grid.x + workgroup.x;
    if task >= params.count {
        return;
    }
    let group = workgroup.z;
    let x = index & 15u;
    let y = index >> 4u;
    let token = plan[task * 5u];
    let keys = plan[task * 5u + 1u];
    let ranges = params.ranges + plan[task * 5u + 2u] * 7u;
    let num_ranges = plan[task * 5u + 3u];
    let part = plan[task * 5u + 4u];

    let load_row = index >> 2u;
    let load_vector = index & 3u;
    let key_at = (token + load_row) * params.k_stride + group * params.dim;
    let slot = right_slot(load_row);

    var dk: array<array<vec4f, COLUMNS>, OWN>;
    var dv: array<array<vec4f, COLUMNS>, OWN>;
    for (var i = 0u; i < OWN; i++) {
        for (var c = 0u; c < COLUMNS; c++) {
            dk[i][c] = vec4f();
            dv[i][c] = vec4f();
        }
    }

    for (var r = 0u; r < num_ranges; r++) {
        // Keys `first_key..end_key` of the block are at `key_position` (of the block's key 0) in the row of these queries.
        let first_key = plan[ranges + r * 7u];
        let end_key = plan[ranges + r * 7u + 1u];
        let key_position = plan[ranges + r * 7u + 2u];
        let query_token = plan[ranges + r * 7u + 3u];
        let query_position = plan[ranges + r * 7u + 4u];
        var row = plan[ranges + r * 7u + 5u];
        var end_row = plan[ranges + r * 7u + 6u];
        // Queries behind the window of the last key attend to none.
        let tokens = u32(max(0, i32(key_position + end_key - 1u) - i32(query_position) + i32(params.window)));
        if tokens <= end_row / params.group_size {
            end_row = min(end_row, tokens * params.group_size);
        }
        for (; row < end_row; row += 64u) {
            let rows = min(64u, end_row - row);
            let load_query = row + load_row;
            let load_head = group * params.group_size + load_query % params.group_size;
            let load_token = query_token + load_query / params.group_size;
            let query_at = load_token * params.q_stride + load_head * params.dim;
            let d_o_at = load_token * params.o_stride + load_head * params.dim;
            var s: array<vec4f, OWN>;
            var dp: array<vec4f, OWN>;
            for (var i = 0u; i < OWN; i++) {
                s[i] = vec4f();
                dp[i] = vec4f();
            }
            for (var channel = 0u; channel < params.dim; channel += 4u) {
                workgroupBarrier();
                let c = channel + load_vector;
                var a = vec4f();
                var b = vec4f();
                if c < params.dim {
                    if load_row < keys {
                        a = qkv[key_at + params.k_offset + c];
                    }
                    if load_row < rows {
                        b = qkv[query_at + c] * params.scale;
                    }
                }
                stage[load_row * STAGE_ROW + load_vector] = a;
                stage[slot + load_vector] = b;
                workgroupBarrier();
                for (var c = 0u; c < staged_vectors(channel); c++) {
                    for (var i = 0u; i < OWN; i++) {
                        s[i] += products(y * OWN + i, x, c);
                    }
                }
            }
            for (var channel = 0u; channel < params.dim; channel += 4u) {
                workgroupBarrier();
                let c = channel + load_vector;
                var a = vec4f();
                var b = vec4f();
                if c < params.dim {
                    if load_row < keys {
                        a = qkv[key_at + params.v_offset + c];
                    }
                    if load_row < rows {
                        b = d_o[d_o_at + c];
                    }
                }
                stage[load_row * STAGE_ROW + load_vector] = a;
                stage[slot + load_vector] = b;
                workgroupBarrier();
                for (var c = 0u; c < staged_vectors(channel); c++) {
                    for (var i = 0u; i < OWN; i++) {
                        dp[i] += products(y * OWN + i, x, c);
                    }
                }
            }

            // lse, delta and position of the four query rows.
            let queries = vec4u(row + x * 4u) + vec4u(0u, 1u, 2u, 3u);
            let in_range = queries < vec4u(end_row);
            var query_lse = vec4f();
            var query_delta = vec4f();
            for (var j = 0u; j < 4u; j++) {
                if row + x * 4u + j < end_row {
                    let query = row + x * 4u + j;
                    let at = (query_token + query / params.group_size) * params.heads + group * params.group_size + query % params.group_size;
                    query_lse[j] = lse[at];
                    query_delta[j] = delta[at];
                }
            }
            let positions = vec4u(query_position) + queries / params.group_size;
            for (var i = 0u; i < OWN; i++) {
                let key = y * OWN + i;
                let key_in_range = key >= first_key && key < end_key;
                let seen = in_range & (positions - vec4u(key_position + key) < vec4u(params.window)) & vec4<bool>(key_in_range);
                let p = select(vec4f(), exp(select(vec4f(), s[i] - query_lse, seen)), seen);
                probabilities[key * PROBABILITY_ROW + x] = p;
                // From here on dS.
                s[i] = p * (dp[i] - query_delta);
            }

            for (var first = 0u; first < rows; first += STAGED) {
                workgroupBarrier();
                for (var n = index; n < STAGED * params.dim; n += 256u) {
                    let query = row + first + n / params.dim;
                    let c = n % params.dim;
                    var value = vec4f();
                    if query < end_row {
                        let head = group * params.group_size + query % params.group_size;
                        value = d_o[(query_token + query / params.group_size) * params.o_stride + head * params.dim + c];
                    }
                    stage[(n / params.dim) * (COLUMNS * 16u) + c] = value;
                }
                workgroupBarrier();
                for (var staged = 0u; staged < min(STAGED, rows - first); staged += 4u) {
                    for (var c = 0u; c < COLUMNS; c++) {
                        let at = staged * (COLUMNS * 16u) + c * 16u + x;
                        let v0 = stage[at];
                        let v1 = stage[at + COLUMNS * 16u];
                        let v2 = stage[at + 2u * COLUMNS * 16u];
                        let v3 = stage[at + 3u * COLUMNS * 16u];
                        for (var i = 0u; i < OWN; i++) {
                            let p = probabilities[(y * OWN + i) * PROBABILITY_ROW + ((first + staged) >> 2u)];
                            dv[i][c] += p.x * v0 + p.y * v1 + p.z * v2 + p.w * v3;
                        }
                    }
                }
            }

            workgroupBarrier();
            for (var i = 0u; i < OWN; i++) {
                probabilities[(y * OWN + i) * PROBABILITY_ROW + x] = s[i];
            }
            for (var first = 0u; first < rows; first += STAGED) {
                workgroupBarrier();
                for (var n = index; n < STAGED * params.dim; n += 256u) {
                    let query = row + first + n / params.dim;
                    let c = n % params.dim;
                    var value = vec4f();
                    if query < end_row {
                        let head = group * params.group_size + query % params.group_size;
                        value = qkv[(query_token + query / params.group_size) * params.q_stride + head * params.dim + c];
                    }
                    stage[(n / params.dim) * (COLUMNS * 16u) + c] = value;
                }
                workgroupBarrier();
                for (var staged = 0u; staged < min(STAGED, rows - first); staged += 4u) {
                    for (var c = 0u; c < COLUMNS; c++) {
                        let at = staged * (COLUMNS * 16u) + c * 16u + x;
                        let q0 = stage[at];
                        let q1 = stage[at + COLUMNS * 16u];
                        let q2 = stage[at + 2u * COLUMNS * 16u];
                        let q3 = stage[at + 3u * COLUMNS * 16u];
                        for (var i = 0u; i < OWN; i++) {
                            let ds = probabilities[(y * OWN + i) * PROBABILITY_ROW + ((first + staged) >> 2u)];
                            dk[i][c] += ds.x * q0 + ds.y * q1 + ds.z * q2 + ds.w * q3;
                        }
                    }
                }
            }
        }
    }

    for (var i = 0u; i < OWN; i++) {
        let key = y * OWN + i;
        if key >= keys {
            continue;
        }
        for (var c = 0u; c < COLUMNS; c++) {
            let column = c * 16u + x;
            if column < params.dim {
                let d_key = dk[i][c] * params.scale;
                if part == DIRECT {
                    let at = (token + key) * params.k_stride + group * params.dim + column;
                    d_qkv[at + params.k_offset] = d_key;
                    d_qkv[at + params.v_offset] = dv[i][c];
                } else {
                    let at = (((part * params.groups + group) * KEYS + key) * 2u) * params.dim + column;
                    parts[at] = d_key;
                    parts[at + params.dim] = dv[i][c];
                }
            }
        }
    }
}

@group(0) @binding(0) var<storage, read> qkv: array<vec4f>;
@group(0) @binding(1) var<storage, read> plan: array<u32>;
@group(0) @binding(2) var<storage, read> d_o: array<vec4f>;
@group(0) @binding(3) var<storage, read> lse: array<f32>;
@group(0) @binding(4) var<storage, read> delta: array<f32>;
@group(0) @binding(5) var<storage, read_write> d_qkv: array<vec4f>;

// dQ of one block of query rows in one group: the tiles of `forward` again, P = exp(S - lse), dS = P * (dO V^T - delta), dQ = scale * dS K.
@compute @workgroup_size(256)
fn backward_queries(
    @builtin(workgroup_id) workgroup: vec3u,
    @builtin(num_workgroups) grid: vec3u,
    @builtin(local_invocation_index) index: u32,
) {
    let block = workgroup.y * grid.x + workgroup.x;
    if block >= params.count {
        return;
    }
    let group = workgroup.z;
    let x = index & 15u;
    let y = index >> 4u;
    let token = plan[block * 6u];
    let first_row = plan[block * 6u + 1u];
    let rows = plan[block * 6u + 2u];
    let position = plan[block * 6u + 3u];
    let ranges = params.ranges + plan[block * 6u + 4u] * 3u;
    let num_ranges = plan[block * 6u + 5u];

    let load_row = index >> 2u;
    let load_vector = index & 3u;
    let load_query = first_row + load_row;
    let load_head = group * params.group_size + load_query % params.group_size;
    let load_token = token + load_query / params.group_size;
    let load_at = load_token * params.q_stride + load_head * params.dim;
    let load_d_o = load_token * params.o_stride + load_head * params.dim;
    let slot = right_slot(load_row);

    let own = vec4u(first_row + y * 4u) + vec4u(0u, 1u, 2u, 3u);
    let positions = vec4u(position) + own / params.group_size;
    let first_position = position + first_row / params.group_size;
    let last_position = position + (first_row + rows - 1u) / params.group_size;

    var own_lse: array<f32, 4>;
    var own_delta: array<f32, 4>;
    var out: array<array<vec4f, COLUMNS>, 4>;
    for (var i = 0u; i < 4u; i++) {
        own_lse[i] = 0.0;
        own_delta[i] = 0.0;
        if y * 4u + i < rows {
            let query = first_row + y * 4u + i;
            let at = (token + query / params.group_size) * params.heads + group * params.group_size + query % params.group_size;
            own_lse[i] = lse[at];
            own_delta[i] = delta[at];
        }
        for (var c = 0u; c < COLUMNS; c++) {
            out[i][c] = vec4f();
        }
    }

    for (var r = 0u; r < num_ranges; r++) {
        let range_slot = plan[ranges + r * 3u];
        let range_position = plan[ranges + r * 3u + 2u];
        if range_position > last_position {
            continue;
        }
        let end = min(plan[ranges + r * 3u + 1u], last_position + 1u - range_position);
        var start = 0u;
        if first_position >= range_position + params.window {
            start = first_position - range_position - params.window + 1u;
        }
        for (; start < end; start += 64u) {
            let keys = min(64u, end - start);
            var s: array<vec4f, 4>;
            var dp: array<vec4f, 4>;
            for (var i = 0u; i < 4u; i++) {
                s[i] = vec4f();
                dp[i] = vec4f();
            }
            let token_at = (range_slot + start + load_row) * params.k_stride + group * params.dim;
            for (var channel = 0u; channel < params.dim; channel += 4u) {
                workgroupBarrier();
                let c = channel + load_vector;
                var a = vec4f();
                var b = vec4f();
                if c < params.dim {
                    if load_row < rows {
                        a = qkv[load_at + c] * params.scale;
                    }
                    if load_row < keys {
                        b = qkv[token_at + params.k_offset + c];
                    }
                }
                stage[load_row * STAGE_ROW + load_vector] = a;
                stage[slot + load_vector] = b;
                workgroupBarrier();
                for (var c = 0u; c < staged_vectors(channel); c++) {
                    for (var i = 0u; i < 4u; i++) {
                        s[i] += products(y * 4u + i, x, c);
                    }
                }
            }
            for (var channel = 0u; channel < params.dim; channel += 4u) {
                workgroupBarrier();
                let c = channel + load_vector;
                var a = vec4f();
                var b = vec4f();
                if c < params.dim {
                    if load_row < rows {
                        a = d_o[load_d_o + c];
                    }
                    if load_row < keys {
                        b = qkv[token_at + params.v_offset + c];
                    }
                }
                stage[load_row * STAGE_ROW + load_vector] = a;
                stage[slot + load_vector] = b;
                workgroupBarrier();
                for (var c = 0u; c < staged_vectors(channel); c++) {
                    for (var i = 0u; i < 4u; i++) {
                        dp[i] += products(y * 4u + i, x, c);
                    }
                }
            }

            let key = vec4u(x * 4u) + vec4u(0u, 1u, 2u, 3u);
            let in_range = key < vec4u(keys);
            let key_positions = key + vec4u(range_position + start);
            for (var i = 0u; i < 4u; i++) {
                let seen = in_range & visible(positions[i], key_positions);
                let p = exp(select(vec4f(), s[i] - own_lse[i], seen));
                probabilities[(y * 4u + i) * PROBABILITY_ROW + x] = select(vec4f(), p * (dp[i] - own_delta[i]), seen);
            }

            let key_at = (range_slot + start) * params.k_stride + params.k_offset + group * params.dim;
            for (var first = 0u; first < keys; first += STAGED) {
                workgroupBarrier();
                for (var n = index; n < STAGED * params.dim; n += 256u) {
                    let row = n / params.dim;
                    let c = n % params.dim;
                    var key = vec4f();
                    if first + row < keys {
                        key = qkv[key_at + (first + row) * params.k_stride + c];
                    }
                    stage[row * (COLUMNS * 16u) + c] = key;
                }
                workgroupBarrier();
                for (var row = 0u; row < min(STAGED, keys - first); row += 4u) {
                    for (var c = 0u; c < COLUMNS; c++) {
                        let at = row * (COLUMNS * 16u) + c * 16u + x;
                        let k0 = stage[at];
                        let k1 = stage[at + COLUMNS * 16u];
                        let k2 = stage[at + 2u * COLUMNS * 16u];
                        let k3 = stage[at + 3u * COLUMNS * 16u];
                        for (var i = 0u; i < 4u; i++) {
                            let ds = probabilities[(y * 4u + i) * PROBABILITY_ROW + ((first + row) >> 2u)];
                            out[i][c] += ds.x * k0 + ds.y * k1 + ds.z * k2 + ds.w * k3;
                        }
                    }
                }
            }
        }
    }

    for (var i = 0u; i < 4u; i++) {
        if y * 4u + i >= rows {
            continue;
        }
        let query = first_row + y * 4u + i;
        let head = group * params.group_size + query % params.group_size;
        let at = (token + query / params.group_size) * params.q_stride + head * params.dim;
        for (var c = 0u; c < COLUMNS; c++) {
            if c * 16u + x < params.dim {
                d_qkv[at + c * 16u + x] = out[i][c] * params.scale;
            }
        }
    }
}

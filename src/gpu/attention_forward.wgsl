@group(0) @binding(0) var<storage, read> q: array<vec4f>;
@group(0) @binding(1) var<storage, read> k: array<vec4f>;
@group(0) @binding(2) var<storage, read> v: array<vec4f>;
@group(0) @binding(3) var<storage, read> plan: array<u32>;
@group(0) @binding(4) var<storage, read_write> o: array<vec4f>;
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;

// One block of query rows in one group: online softmax over its tiles of keys.
@compute @workgroup_size(256)
fn forward(
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

    // The row and the vector that this invocation loads.
    let load_row = index >> 2u;
    let load_vector = index & 3u;
    let load_query = first_row + load_row;
    let load_head = group * params.group_size + load_query % params.group_size;
    let load_at = (token + load_query / params.group_size) * params.q_stride + load_head * params.dim;
    let slot = right_slot(load_row);

    // The positions of the four rows that it owns.
    let own = vec4u(first_row + y * 4u) + vec4u(0u, 1u, 2u, 3u);
    let positions = vec4u(position) + own / params.group_size;
    let first_position = position + first_row / params.group_size;
    let last_position = position + (first_row + rows - 1u) / params.group_size;

    var sums = vec4f();
    var maxima = vec4f(HIDDEN);
    var out: array<array<vec4f, COLUMNS>, 4>;
    for (var i = 0u; i < 4u; i++) {
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
        // The first key in the window of the block's first row.
        var start = 0u;
        if first_position >= range_position + params.window {
            start = first_position - range_position - params.window + 1u;
        }
        for (; start < end; start += 64u) {
            let keys = min(64u, end - start);
            var s: array<vec4f, 4>;
            for (var i = 0u; i < 4u; i++) {
                s[i] = vec4f();
            }
            let key_at = (range_slot + start + load_row) * params.k_stride + params.k_offset + group * params.dim;
            for (var channel = 0u; channel < params.dim; channel += 4u) {
                workgroupBarrier();
                let c = channel + load_vector;
                var a = vec4f();
                var b = vec4f();
                if c < params.dim {
                    if load_row < rows {
                        a = q[load_at + c] * params.scale;
                    }
                    if load_row < keys {
                        b = k[key_at + c];
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

            let key = vec4u(x * 4u) + vec4u(0u, 1u, 2u, 3u);
            let in_range = key < vec4u(keys);
            let key_positions = key + vec4u(range_position + start);
            for (var i = 0u; i < 4u; i++) {
                s[i] = select(vec4f(HIDDEN), s[i], in_range & visible(positions[i], key_positions));
            }
            probabilities[index] = vec4f(
                max(max(s[0].x, s[0].y), max(s[0].z, s[0].w)),
                max(max(s[1].x, s[1].y), max(s[1].z, s[1].w)),
                max(max(s[2].x, s[2].y), max(s[2].z, s[2].w)),
                max(max(s[3].x, s[3].y), max(s[3].z, s[3].w)),
            );
            workgroupBarrier();
            var new_maxima = maxima;
            for (var j = 0u; j < 16u; j++) {
                new_maxima = max(new_maxima, probabilities[y * 16u + j]);
            }
            workgroupBarrier();
            let rescale = exp(maxima - new_maxima);
            maxima = new_maxima;
            for (var i = 0u; i < 4u; i++) {
                let p = select(vec4f(), exp(s[i] - maxima[i]), s[i] > vec4f(0.5 * HIDDEN));
                sums[i] = sums[i] * rescale[i] + (p.x + p.y + p.z + p.w);
                probabilities[(y * 4u + i) * PROBABILITY_ROW + x] = p;
                for (var c = 0u; c < COLUMNS; c++) {
                    out[i][c] *= rescale[i];
                }
            }

            let value_at = (range_slot + start) * params.v_stride + params.v_offset + group * params.dim;
            for (var first = 0u; first < keys; first += STAGED) {
                workgroupBarrier();
                for (var n = index; n < STAGED * params.dim; n += 256u) {
                    let row = n / params.dim;
                    let c = n % params.dim;
                    var value = vec4f();
                    if first + row < keys {
                        value = v[value_at + (first + row) * params.v_stride + c];
                    }
                    stage[row * (COLUMNS * 16u) + c] = value;
                }
                workgroupBarrier();
                for (var row = 0u; row < min(STAGED, keys - first); row += 4u) {
                    for (var c = 0u; c < COLUMNS; c++) {
                        let at = row * (COLUMNS * 16u) + c * 16u + x;
                        let v0 = stage[at];
                        let v1 = stage[at + COLUMNS * 16u];
                        let v2 = stage[at + 2u * COLUMNS * 16u];
                        let v3 = stage[at + 3u * COLUMNS * 16u];
                        for (var i = 0u; i < 4u; i++) {
                            let p = probabilities[(y * 4u + i) * PROBABILITY_ROW + ((first + row) >> 2u)];
                            out[i][c] += p.x * v0 + p.y * v1 + p.z * v2 + p.w * v3;
                        }
                    }
                }
            }
        }
    }

    workgroupBarrier();
    probabilities[index] = sums;
    workgroupBarrier();
    var total = vec4f();
    for (var j = 0u; j < 16u; j++) {
        total += probabilities[y * 16u + j];
    }
    for (var i = 0u; i < 4u; i++) {
        if y * 4u + i >= rows {
            continue;
        }
        let query = first_row + y * 4u + i;
        let head = group * params.group_size + query % params.group_size;
        let at = token + query / params.group_size;
        for (var c = 0u; c < COLUMNS; c++) {
            if c * 16u + x < params.dim {
                o[at * params.o_stride + head * params.dim + c * 16u + x] = out[i][c] / total[i];
            }
        }
        if x == 0u {
            lse[at * params.heads + head] = maxima[i] + log(total[i]);
        }
    }
}

@group(0) @binding(0) var<storage, read_write> student: array<vec4f>;
@group(0) @binding(1) var<storage, read> targets: array<Target>;
@group(0) @binding(2) var<storage, read_write> terms: array<f32>;

// terms[2 row] = ce_weight * -ln softmax(s)[y]; s becomes ce_weight * (softmax(s) - onehot(y)).
@compute @workgroup_size(256)
fn cross_entropy(
    @builtin(workgroup_id) workgroup: vec3u,
    @builtin(num_workgroups) grid: vec3u,
    @builtin(local_invocation_index) index: u32,
) {
    let row = workgroup.y * grid.x + workgroup.x;
    if row >= params.rows {
        return;
    }
    let start = row * params.stride;
    let y = targets[params.first + row].token;
    let weight = targets[params.first + row].ce_weight;
    let of_y = student[start + y / 4u][y % 4u];

    var most = vec4f(LOWEST);
    for (var n = index; n < params.stride; n += 256u) {
        most = max(most, select(vec4f(LOWEST), student[start + n], in_vocab(n)));
    }
    let maximum = max_lanes(max_all(most, index));
    var sum = vec4f();
    for (var n = index; n < params.stride; n += 256u) {
        sum += select(vec4f(), exp(student[start + n] - maximum), in_vocab(n));
    }
    let z = sum_lanes(sum_all(sum, index));
    let scale = weight / z;
    storageBarrier();
    for (var n = index; n < params.stride; n += 256u) {
        let gradient = scale * exp(student[start + n] - maximum);
        student[start + n] = gradient - select(vec4f(), vec4f(weight), is_token(n, y));
    }
    if index == 0u {
        terms[2u * (params.first + row)] = weight * (log(z) + (maximum - of_y));
    }
}

@group(0) @binding(0) var<storage, read_write> student: array<vec4f>;
@group(0) @binding(1) var<storage, read> teacher: array<vec4f>;
@group(0) @binding(2) var<storage, read> targets: array<Target>;
@group(0) @binding(3) var<storage, read_write> terms: array<f32>;

// Cross-entropy, and the divergence over the whole vocabulary, or over all tokens but the target.
@compute @workgroup_size(256)
fn distill(
    @builtin(workgroup_id) workgroup: vec3u,
    @builtin(num_workgroups) grid: vec3u,
    @builtin(local_invocation_index) index: u32,
) {
    let row = workgroup.y * grid.x + workgroup.x;
    if row >= params.rows {
        return;
    }
    let start = row * params.stride;
    let row_target = targets[params.first + row];
    let y = row_target.token;
    let excluded = params.exclude_target != 0u;
    let inverse = params.inverse_tau;
    let student_y = student[start + y / 4u][y % 4u];
    let teacher_y = teacher[start + y / 4u][y % 4u];

    var most_s = vec4f(LOWEST);
    var most_t = vec4f(LOWEST);
    for (var n = index; n < params.stride; n += 256u) {
        let counts = in_vocab(n) & !(vec4<bool>(excluded) & is_token(n, y));
        most_s = max(most_s, select(vec4f(LOWEST), student[start + n], counts));
        most_t = max(most_t, select(vec4f(LOWEST), teacher[start + n], counts));
    }
    let maxima = max_all(vec4f(max_lanes(most_s), max_lanes(most_t), 0.0, 0.0), index);
    let max_s = maxima.x;
    let max_t = maxima.y;

    var sum = vec4f();
    var sum_s = vec4f();
    var sum_t = vec4f();
    var sum_cross = vec4f();
    for (var n = index; n < params.stride; n += 256u) {
        let counts = in_vocab(n) & !(vec4<bool>(excluded) & is_token(n, y));
        let a = select(vec4f(), student[start + n] - max_s, counts);
        let b = select(vec4f(), teacher[start + n] - max_t, counts);
        let e = exp(b * inverse);
        sum += select(vec4f(), exp(a), counts);
        sum_s += select(vec4f(), exp(a * inverse), counts);
        sum_t += select(vec4f(), e, counts);
        sum_cross += e * (b - a);
    }
    let sums = sum_all(vec4f(sum_lanes(sum), sum_lanes(sum_s), sum_lanes(sum_t), sum_lanes(sum_cross)), index);
    let z = sums.x;
    let z_s = sums.y;
    let z_t = sums.z;

    var mass = 1.0;
    var hard = row_target.ce_weight / z;
    var of_y = row_target.ce_weight;
    var ce = log(z) + (max_s - student_y);
    if excluded {
        mass = share(z_t, (teacher_y - max_t) * inverse);
        let above = student_y - max_s;
        // softmax(s)[y] - 1 is minus the probability of the other tokens.
        let others = share(z, above);
        hard = row_target.ce_weight * others / z;
        of_y = row_target.ce_weight * others;
        ce = log_sum(z, above) - above;
    }
    let soft = row_target.distill_weight * inverse * mass;
    let soft_s = soft / z_s;
    let soft_t = soft / z_t;
    storageBarrier();
    for (var n = index; n < params.stride; n += 256u) {
        let at_y = is_token(n, y);
        let leave_out = vec4<bool>(excluded) & at_y;
        let a = select(student[start + n] - max_s, vec4f(), leave_out);
        let b = select(teacher[start + n] - max_t, vec4f(), leave_out);
        let gradient = hard * exp(a) + soft_s * exp(a * inverse) - soft_t * exp(b * inverse);
        student[start + n] = select(gradient, vec4f(), leave_out) - select(vec4f(), vec4f(of_y), at_y);
    }
    if index == 0u {
        let kl = sums.w / z_t * inverse + log_ratio(z_s, z_t);
        terms[2u * (params.first + row)] = row_target.ce_weight * ce;
        terms[2u * (params.first + row) + 1u] = row_target.distill_weight * (mass * kl);
    }
}

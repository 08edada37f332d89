// Operations on each element of one to three arrays.

@group(0) @binding(0) var<storage, read_write> y: array<f32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> z: array<f32>;
@group(0) @binding(1) var<storage, read_write> other: array<f32>;

struct Params {
    len: u32,
    y_start: u32,
    x_start: u32,
    z_start: u32,
    factor: f32,
}
var<immediate> p: Params;

const THREADS = 256u;
const EACH = 4u; // elements of an invocation

fn first(group: vec3<u32>, groups: vec3<u32>, local: u32) -> u32 {
    return (group.y * groups.x + group.x) * (THREADS * EACH) + local;
}

@compute @workgroup_size(THREADS)
fn add_scaled(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    for (var j = 0u; j < EACH; j++) {
        let i = first(group, groups, local) + j * THREADS;
        if i < p.len { y[p.y_start + i] += p.factor * x[p.x_start + i]; }
    }
}

@compute @workgroup_size(THREADS)
fn scale(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    for (var j = 0u; j < EACH; j++) {
        let i = first(group, groups, local) + j * THREADS;
        if i < p.len { y[p.y_start + i] *= p.factor; }
    }
}

@compute @workgroup_size(THREADS)
fn fill(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    for (var j = 0u; j < EACH; j++) {
        let i = first(group, groups, local) + j * THREADS;
        if i < p.len { y[p.y_start + i] = p.factor; }
    }
}

@compute @workgroup_size(THREADS)
fn copy_scaled(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    for (var j = 0u; j < EACH; j++) {
        let i = first(group, groups, local) + j * THREADS;
        if i < p.len { y[p.y_start + i] = p.factor * x[p.x_start + i]; }
    }
}

@compute @workgroup_size(THREADS)
fn add_squares(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    for (var j = 0u; j < EACH; j++) {
        let i = first(group, groups, local) + j * THREADS;
        if i < p.len {
            let v = x[p.x_start + i];
            y[p.y_start + i] += p.factor * (v * v);
        }
    }
}

@compute @workgroup_size(THREADS)
fn subtract(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    for (var j = 0u; j < EACH; j++) {
        let i = first(group, groups, local) + j * THREADS;
        if i < p.len { y[p.y_start + i] = x[p.x_start + i] - z[p.z_start + i]; }
    }
}

@compute @workgroup_size(THREADS)
fn lerp(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    for (var j = 0u; j < EACH; j++) {
        let i = first(group, groups, local) + j * THREADS;
        // In this form elements that are equal stay bitwise identical.
        if i < p.len {
            let to = z[p.z_start + i];
            y[p.y_start + i] = to - (1.0 - p.factor) * (to - x[p.x_start + i]);
        }
    }
}

@compute @workgroup_size(THREADS)
fn swap(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    for (var j = 0u; j < EACH; j++) {
        let i = first(group, groups, local) + j * THREADS;
        if i < p.len {
            let kept = y[p.y_start + i];
            y[p.y_start + i] = other[p.x_start + i];
            other[p.x_start + i] = kept;
        }
    }
}

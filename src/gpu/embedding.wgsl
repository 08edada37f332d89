// Rows of a table by their numbers, and the gradient of the table. D columns.

const THREADS = 256u;
const ZERO = 0xffffffffu; // the number of a row of zeros

@group(0) @binding(0) var<storage, read_write> out: array<f32>; // (T, D), or the gradient of the table
@group(0) @binding(1) var<storage, read> ids: array<u32>;       // (T)
@group(0) @binding(2) var<storage, read> table: array<f32>;

struct Params {
    rows: u32,       // of the result
    width: u32,      // D
    out_start: u32,
    ids_start: u32,
    table_start: u32,
    first: u32,      // number of the first row of the table
    count: u32,      // rows of the table
    zero: u32,       // 1: write the rows of zeros
    factor: f32,
}
var<immediate> p: Params;

@compute @workgroup_size(THREADS)
fn gather(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let number = group.y * groups.x + group.x;
    let parts = (p.width + THREADS - 1u) / THREADS;
    let row = number / parts;
    let column = number % parts * THREADS + local;
    if row >= p.rows || column >= p.width { return; }
    let id = ids[p.ids_start + row];
    let to = p.out_start + row * p.width + column;
    if id == ZERO {
        if p.zero == 1u { out[to] = 0.0; }
    } else if id >= p.first && id - p.first < p.count {
        out[to] = p.factor * table[p.table_start + (id - p.first) * p.width + column];
    }
}

// The occurrences of token i are order[starts[i]..starts[i + 1]].
@group(0) @binding(1) var<storage, read> d_rows: array<f32>; // (T, D)
@group(0) @binding(2) var<storage, read> tokens: array<u32>; // (U)
@group(0) @binding(3) var<storage, read> starts: array<u32>; // (U + 1)
@group(0) @binding(4) var<storage, read> order: array<u32>;  // (T)

@compute @workgroup_size(THREADS)
fn add_rows(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let number = group.y * groups.x + group.x;
    let parts = (p.width + THREADS - 1u) / THREADS;
    let i = number / parts;
    let column = number % parts * THREADS + local;
    if i >= p.rows || column >= p.width { return; }
    let token = tokens[i];
    if token < p.first || token - p.first >= p.count { return; }
    let to = p.out_start + (token - p.first) * p.width + column;
    var sum = out[to];
    for (var j = starts[i]; j < starts[i + 1u]; j++) {
        sum += p.factor * d_rows[p.table_start + order[j] * p.width + column];
    }
    out[to] = sum;
}

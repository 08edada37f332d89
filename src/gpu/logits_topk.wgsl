// The k most likely tokens of a row of logits, most likely first; the lowest id first among equals.
//
// Logits are compared as pairs of numbers that are all different: (order of the logit, -id). Each of 256 invocations finds the largest
// of its own logits. The k-th largest of these is a lower bound of the k-th largest logit (k <= 256), so that few logits are left to
// be sorted. Should they be too many for the workgroup's memory, the largest is taken k times.

struct Params {
    rows: u32,
    vocab: u32,
    stride: u32, // floats per row of logits
    first: u32,  // number of row 0 among all rows
    k: u32,
}
var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read_write> tokens: array<u32>; // (rows, k)
@group(0) @binding(2) var<storage, read_write> values: array<f32>; // (rows, k)

const MAX_CANDIDATES = 1024u;

var<workgroup> orders: array<u32, MAX_CANDIDATES>;
var<workgroup> ids: array<u32, MAX_CANDIDATES>;
var<workgroup> num_candidates: atomic<u32>;
var<workgroup> found: u32;
var<workgroup> bound_order: u32;
var<workgroup> bound_id: u32;

// A number with the order of `x`; 0 is below all of them.
fn order_of(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    return select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}

fn is_above(order: u32, id: u32, other_order: u32, other_id: u32) -> bool {
    return order > other_order || (order == other_order && id < other_id);
}

fn write(row: u32, place: u32, id: u32) {
    tokens[(params.first + row) * params.k + place] = id;
    values[(params.first + row) * params.k + place] = logits[row * params.stride + id];
}

@compute @workgroup_size(256)
fn topk(
    @builtin(workgroup_id) workgroup: vec3u,
    @builtin(num_workgroups) grid: vec3u,
    @builtin(local_invocation_index) index: u32,
) {
    let row = workgroup.y * grid.x + workgroup.x;
    if row >= params.rows {
        return;
    }
    let start = row * params.stride;

    // Ids ascend, so that the first of equals is kept.
    var best_order = 0u;
    var best_id = 0xffffffffu;
    for (var id = index; id < params.vocab; id += 256u) {
        let order = order_of(logits[start + id]);
        if order > best_order {
            best_order = order;
            best_id = id;
        }
    }
    orders[index] = best_order;
    ids[index] = best_id;
    if index == 0u {
        atomicStore(&num_candidates, 0u);
        bound_order = 0u;
        bound_id = 0xffffffffu;
    }
    workgroupBarrier();
    var rank = 0u;
    for (var i = 0u; i < 256u; i++) {
        rank += u32(is_above(orders[i], ids[i], best_order, best_id));
    }
    // Invocations without a logit share a rank; the bound then is below every logit.
    if rank == params.k - 1u && best_order > 0u {
        bound_order = best_order;
        bound_id = best_id;
    }
    workgroupBarrier();
    let lowest_order = bound_order;
    let lowest_id = bound_id;
    for (var id = index; id < params.vocab; id += 256u) {
        let order = order_of(logits[start + id]);
        if !is_above(lowest_order, lowest_id, order, id) {
            let place = atomicAdd(&num_candidates, 1u);
            if place < MAX_CANDIDATES {
                orders[place] = order;
                ids[place] = id;
            }
        }
    }
    workgroupBarrier();
    if index == 0u {
        found = atomicLoad(&num_candidates);
    }
    let candidates = workgroupUniformLoad(&found);

    if candidates <= MAX_CANDIDATES {
        // The place of each candidate is the number of those above it.
        for (var n = index; n < candidates; n += 256u) {
            var place = 0u;
            for (var i = 0u; i < candidates; i++) {
                place += u32(is_above(orders[i], ids[i], orders[n], ids[n]));
            }
            if place < params.k {
                write(row, place, ids[n]);
            }
        }
        return;
    }

    var last_order = 0xffffffffu;
    var last_id = 0u;
    for (var place = 0u; place < params.k; place++) {
        best_order = 0u;
        best_id = 0xffffffffu;
        for (var id = index; id < params.vocab; id += 256u) {
            let order = order_of(logits[start + id]);
            let is_next = place == 0u || is_above(last_order, last_id, order, id);
            if is_next && order > best_order {
                best_order = order;
                best_id = id;
            }
        }
        workgroupBarrier();
        orders[index] = best_order;
        ids[index] = best_id;
        for (var half = 128u; half > 0u; half >>= 1u) {
            workgroupBarrier();
            if index < half && is_above(orders[index + half], ids[index + half], orders[index], ids[index]) {
                orders[index] = orders[index + half];
                ids[index] = ids[index + half];
            }
        }
        workgroupBarrier();
        last_order = orders[0];
        last_id = ids[0];
        if index == 0u {
            write(row, place, last_id);
        }
    }
}

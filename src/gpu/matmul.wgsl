// C (M, N) = alpha op(A) op(B) + beta C, one tile of C per workgroup.
//
// The tile is BM x BN. An invocation computes 4 x 4 elements of it, or two such blocks along a side where HALVES_M or HALVES_N is 2. It
// fetches one block of 4 x 4 elements of A or B per step of BK along K, while the block before is multiplied.

override BM: u32;
override BN: u32;
override BK: u32;
override HALVES_M: u32;
override HALVES_N: u32;
override THREADS: u32;
override TRANSPOSE_A: bool; // A is stored (K, M)
override TRANSPOSE_B: bool; // B is stored (N, K)
override A_ROW: u32;        // BM / 4 + 1 vectors of a row of A's tile: the last is never used, and spreads rows over memory banks
override B_ROW: u32;
override A_TILE: u32;       // BK * A_ROW
override B_TILE: u32;
override ROLLED: bool;      // software devices: loops are not unrolled, which takes their compilers long

struct Params {
    m: u32,
    n: u32,
    k: u32,
    a_stride: u32,
    b_stride: u32,
    c_stride: u32,
    a_start: u32,
    b_start: u32,
    c_start: u32,
    k_slice: u32, // of K per workgroup: a multiple of BK
    c_slice: u32, // elements between the results of two slices of K
    alpha: f32,
    beta: f32,
    depth: u32,   // BK
}
var<immediate> p: Params;

var<workgroup> a_tile: array<vec4<f32>, A_TILE>; // (BK, BM)
var<workgroup> b_tile: array<vec4<f32>, B_TILE>; // (BK, BN)

// The first `count` of four elements; the others are zero.
fn a_some(i: u32, count: u32) -> vec4<f32> {
    var v = vec4<f32>();
    if count > 0u { v.x = a_one(i); }
    if count > 1u { v.y = a_one(i + 1u); }
    if count > 2u { v.z = a_one(i + 2u); }
    if count > 3u { v.w = a_one(i + 3u); }
    return v;
}

fn b_some(i: u32, count: u32) -> vec4<f32> {
    var v = vec4<f32>();
    if count > 0u { v.x = b_one(i); }
    if count > 1u { v.y = b_one(i + 1u); }
    if count > 2u { v.z = b_one(i + 2u); }
    if count > 3u { v.w = b_one(i + 3u); }
    return v;
}

// Four elements of row `row` of the stored matrix, from `column` on; zero outside of (rows, columns).
fn a_row(row: u32, column: u32, rows: u32, columns: u32) -> vec4<f32> {
    if row >= rows || column >= columns { return vec4<f32>(); }
    let i = p.a_start + row * p.a_stride + column;
    if column + 3u < columns { return a_four(i); }
    return a_some(i, columns - column);
}

fn b_row(row: u32, column: u32, rows: u32, columns: u32) -> vec4<f32> {
    if row >= rows || column >= columns { return vec4<f32>(); }
    let i = p.b_start + row * p.b_stride + column;
    if column + 3u < columns { return b_four(i); }
    return b_some(i, columns - column);
}

// Rows m..m + 4 of op(A) at k..k + 4: column j of the result is k + j.
fn a_block(m: u32, k: u32, last: u32) -> mat4x4<f32> {
    if TRANSPOSE_A {
        return mat4x4<f32>(
            a_row(k, m, last, p.m),
            a_row(k + 1u, m, last, p.m),
            a_row(k + 2u, m, last, p.m),
            a_row(k + 3u, m, last, p.m),
        );
    }
    return transpose(mat4x4<f32>(
        a_row(m, k, p.m, last),
        a_row(m + 1u, k, p.m, last),
        a_row(m + 2u, k, p.m, last),
        a_row(m + 3u, k, p.m, last),
    ));
}

fn b_block(n: u32, k: u32, last: u32) -> mat4x4<f32> {
    if TRANSPOSE_B {
        return transpose(mat4x4<f32>(
            b_row(n, k, p.n, last),
            b_row(n + 1u, k, p.n, last),
            b_row(n + 2u, k, p.n, last),
            b_row(n + 3u, k, p.n, last),
        ));
    }
    return mat4x4<f32>(
        b_row(k, n, last, p.n),
        b_row(k + 1u, n, last, p.n),
        b_row(k + 2u, n, last, p.n),
        b_row(k + 3u, n, last, p.n),
    );
}

// Four elements of a row of C.
fn store(row: u32, column: u32, slice: u32, v: vec4<f32>) {
    if row >= p.m || column >= p.n { return; }
    let i = p.c_start + slice * p.c_slice + row * p.c_stride + column;
    if column + 3u < p.n {
        var out = p.alpha * v;
        if p.beta != 0.0 { out += p.beta * c_four(i); }
        c_set_four(i, out);
        return;
    }
    for (var j = 0u; j < p.n - column; j++) {
        var out = p.alpha * v[j];
        if p.beta != 0.0 { out += p.beta * c_one(i + j); }
        c_set(i + j, out);
    }
}

@compute @workgroup_size(THREADS)
fn multiply(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let m0 = group.y * BM;
    let n0 = group.x * BN;
    let first = group.z * p.k_slice;
    let last = min(p.k, first + p.k_slice);

    // The block that this invocation fetches: the fastest index runs along the rows as they are stored.
    const SIDE = 4u;
    let a_blocks = BM * BK / (SIDE * SIDE);
    let b_blocks = BN * BK / (SIDE * SIDE);
    let of_a = local < a_blocks;
    let of_b = !of_a && local < a_blocks + b_blocks;
    let at = select(local - a_blocks, local, of_a);
    let k_fast = select(TRANSPOSE_B, !TRANSPOSE_A, of_a);
    let others = select(BN, BM, of_a) / SIDE;
    let k_block = select(at / others, at % (BK / SIDE), k_fast);
    let other_block = select(at % others, at / (BK / SIDE), k_fast);

    let threads_n = BN / (SIDE * HALVES_N);
    let tx = local % threads_n;
    let ty = local / threads_n;
    var c00 = vec4<f32>(); var c01 = vec4<f32>(); var c02 = vec4<f32>(); var c03 = vec4<f32>();
    var c10 = vec4<f32>(); var c11 = vec4<f32>(); var c12 = vec4<f32>(); var c13 = vec4<f32>();
    var d00 = vec4<f32>(); var d01 = vec4<f32>(); var d02 = vec4<f32>(); var d03 = vec4<f32>();
    var d10 = vec4<f32>(); var d11 = vec4<f32>(); var d12 = vec4<f32>(); var d13 = vec4<f32>();

    // Block i is fetched while block i - 1 is multiplied.
    var block = mat4x4<f32>();
    let blocks = (last - first + BK - 1u) / BK;
    for (var i = 0u; i <= blocks; i++) {
        if i < blocks {
            let k = first + i * BK + k_block * SIDE;
            if of_a { block = a_block(m0 + other_block * SIDE, k, last); }
            if of_b { block = b_block(n0 + other_block * SIDE, k, last); }
        }
        if i > 0u {
            for (var j = 0u; j < select(BK, p.depth, ROLLED); j++) {
                let a0 = a_tile[j * A_ROW + ty];
                let b0 = b_tile[j * B_ROW + tx];
                c00 += a0.x * b0; c01 += a0.y * b0; c02 += a0.z * b0; c03 += a0.w * b0;
                if HALVES_N == 2u {
                    let b1 = b_tile[j * B_ROW + threads_n + tx];
                    d00 += a0.x * b1; d01 += a0.y * b1; d02 += a0.z * b1; d03 += a0.w * b1;
                    if HALVES_M == 2u {
                        let a1 = a_tile[j * A_ROW + BM / (2u * SIDE) + ty];
                        c10 += a1.x * b0; c11 += a1.y * b0; c12 += a1.z * b0; c13 += a1.w * b0;
                        d10 += a1.x * b1; d11 += a1.y * b1; d12 += a1.z * b1; d13 += a1.w * b1;
                    }
                }
            }
        }
        workgroupBarrier();
        if i < blocks && of_a {
            let to = k_block * SIDE * A_ROW + other_block;
            a_tile[to] = block[0];
            a_tile[to + A_ROW] = block[1];
            a_tile[to + 2u * A_ROW] = block[2];
            a_tile[to + 3u * A_ROW] = block[3];
        }
        if i < blocks && of_b {
            let to = k_block * SIDE * B_ROW + other_block;
            b_tile[to] = block[0];
            b_tile[to + B_ROW] = block[1];
            b_tile[to + 2u * B_ROW] = block[2];
            b_tile[to + 3u * B_ROW] = block[3];
        }
        workgroupBarrier();
    }

    // Blocks of four rows: left above, right above, left below, right below.
    var results = array<vec4<f32>, 16>(
        c00, c01, c02, c03, d00, d01, d02, d03, c10, c11, c12, c13, d10, d11, d12, d13,
    );
    let row = m0 + ty * SIDE;
    let column = n0 + tx * SIDE;
    for (var i = 0u; i < 4u * HALVES_M * HALVES_N; i++) {
        let right = select(0u, (i >> 2u) & 1u, HALVES_N == 2u);
        let below = select(0u, i >> 3u, HALVES_M == 2u);
        store(row + (i & 3u) + below * (BM / 2u), column + right * (BN / 2u), group.z, results[i]);
    }
}

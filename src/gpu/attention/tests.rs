//! Attention beside loops in f64.

use proptest::prelude::*;

use super::*;
use crate::gpu::{
    cache::KvSlots,
    testing::{assert_close, gpu, gradient, random, wide},
};

/// 2^-24: half the distance of neighbouring f32 at 1.
const EPSILON: f64 = 1.0 / 16_777_216.0;

fn shape(num_heads: usize, num_kv_heads: usize, head_dim: usize) -> AttentionShape {
    AttentionShape {
        num_heads,
        num_kv_heads,
        head_dim,
        window: None,
        scale: 1.0 / (head_dim as f32).sqrt(),
    }
}

/// Keys and values in arrays of tokens: where token t, group g is.
#[derive(Clone, Copy)]
struct KeysValues<'a> {
    keys: &'a [f64],
    values: &'a [f64],
    stride: usize,
}

impl<'a> KeysValues<'a> {
    fn packed(qkv: &'a [f64], shape: AttentionShape) -> Self {
        let stride = shape.qkv_width();
        let from = |column: usize| &qkv[qkv.len().min(column)..];
        Self {
            keys: from(shape.q_width()),
            values: from(shape.q_width() + shape.kv_width()),
            stride,
        }
    }
}

/// The tokens that the new token at `position` of `row` attends to.
fn attended(row: &AttentionRow, position: usize, shape: AttentionShape) -> Vec<usize> {
    let window = shape.window.unwrap_or(usize::MAX);
    let keys = row.keys.iter().cloned().flatten().take(position + 1);
    keys.skip((position + 1).saturating_sub(window)).collect()
}

/// `o` (T, HK) and `lse` (T, H), by their definitions.
fn expected_forward(
    qkv: &[f64],
    kv: KeysValues<'_>,
    rows: &[AttentionRow],
    tokens: usize,
    shape: AttentionShape,
) -> [Vec<f64>; 2] {
    let (dim, heads) = (shape.head_dim, shape.num_heads);
    let mut o = vec![0.0; tokens * heads * dim];
    let mut lse = vec![0.0; tokens * heads];
    for row in rows {
        for (token, position) in row.tokens.clone().zip(row.position()..) {
            let keys = attended(row, position, shape);
            for head in 0..heads {
                let column = head / shape.group_size() * dim;
                let q = &qkv[token * shape.qkv_width() + head * dim..][..dim];
                let score = |k: &usize| {
                    let k = &kv.keys[k * kv.stride + column..][..dim];
                    f64::from(shape.scale) * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>()
                };
                let scores: Vec<f64> = keys.iter().map(score).collect();
                let sum: f64 = scores.iter().map(|s| s.exp()).sum();
                lse[token * heads + head] = sum.ln();
                let o = &mut o[(token * heads + head) * dim..][..dim];
                for (key, score) in keys.iter().zip(&scores) {
                    let v = &kv.values[key * kv.stride + column..][..dim];
                    for (o, v) in o.iter_mut().zip(v) {
                        *o += score.exp() / sum * v;
                    }
                }
            }
        }
    }
    [o, lse]
}

/// Gradient of sum(dO * O) for `qkv`, by its definition.
fn expected_backward(
    qkv: &[f64],
    d_o: &[f64],
    rows: &[AttentionRow],
    shape: AttentionShape,
) -> Vec<f64> {
    let (dim, heads, width) = (shape.head_dim, shape.num_heads, shape.qkv_width());
    let scale = f64::from(shape.scale);
    let dot = |a: usize, b: &[f64]| -> f64 { (0..dim).map(|c| qkv[a + c] * b[c]).sum() };
    let mut d_qkv = vec![0.0; qkv.len()];
    for row in rows {
        for (token, position) in row.tokens.clone().zip(row.position()..) {
            let keys = attended(row, position, shape);
            for head in 0..heads {
                let q_at = token * width + head * dim;
                let q = qkv[q_at..][..dim].to_vec();
                let d_o = &d_o[(token * heads + head) * dim..][..dim];
                let k_at = |key: usize| key * width + (heads + head / shape.group_size()) * dim;
                let v_at = |key: usize| k_at(key) + shape.kv_width();
                let mut p: Vec<f64> = keys
                    .iter()
                    .map(|k| (scale * dot(k_at(*k), &q)).exp())
                    .collect();
                let sum: f64 = p.iter().sum();
                for p in &mut p {
                    *p /= sum;
                }
                let d_p: Vec<f64> = keys.iter().map(|k| dot(v_at(*k), d_o)).collect();
                let delta: f64 = p.iter().zip(&d_p).map(|(p, d)| p * d).sum();
                for ((key, p), d_p) in keys.iter().zip(&p).zip(d_p) {
                    let d_score = scale * p * (d_p - delta);
                    for c in 0..dim {
                        d_qkv[q_at + c] += d_score * qkv[k_at(*key) + c];
                        d_qkv[k_at(*key) + c] += d_score * q[c];
                        d_qkv[v_at(*key) + c] += p * d_o[c];
                    }
                }
            }
        }
    }
    d_qkv
}

/// Rows of these lengths. Each may begin with all tokens of an earlier row, given by its number.
fn tree(lengths: &[(Option<usize>, usize)]) -> (Vec<AttentionRow>, usize) {
    let mut rows: Vec<AttentionRow> = Vec::new();
    let mut start = 0;
    for (parent, len) in lengths {
        let mut keys = parent.map_or(Vec::new(), |p| rows[p].keys.clone());
        keys.push(start..start + len);
        rows.push(AttentionRow {
            tokens: start..start + len,
            keys,
        });
        start += len;
    }
    (rows, start)
}

struct Computed {
    o: Vec<f32>,
    lse: Vec<f32>,
    d_qkv: Vec<f32>,
}

fn compute(
    gpu: &Gpu,
    qkv: &[f32],
    d_o: &[f32],
    rows: &[AttentionRow],
    shape: AttentionShape,
    max_tiles: usize,
) -> Computed {
    let tokens = qkv.len() / shape.qkv_width();
    let mut plan = TrainingPlan::default();
    plan.prepare_with(gpu, rows, shape, max_tiles)
        .expect("a plan");
    let [qkv, d_o] = [qkv, d_o].map(|data| gpu.upload(data).expect("memory"));
    let o = gpu.zeros(tokens * shape.q_width()).expect("memory");
    let lse = gpu.zeros(tokens * shape.num_heads).expect("memory");
    // What is not written shows.
    let d_qkv = gpu.upload(&vec![7.0; qkv.len()]).expect("memory");
    forward(gpu, &plan, qkv.all(), o.all(), lse.all(), shape).expect("forward");
    let saved = SavedForward {
        d_o: d_o.all(),
        o: o.all(),
        lse: lse.all(),
        qkv: qkv.all(),
    };
    backward(gpu, &plan, saved, d_qkv.all(), shape).expect("backward");
    let download = |buffer: &GpuBuffer| gpu.download(buffer, 0..buffer.len()).expect("results");
    Computed {
        o: download(&o),
        lse: download(&lse),
        d_qkv: download(&d_qkv),
    }
}

/// Checks both passes over random numbers in -2..2.
///
/// Bounds: a score is a sum of K products, and errs by some sqrt(K) 2^-24 of their absolute values (at most 4 K scale), as its
/// exponential then does; exp itself errs by 3 + 2 |x| units in the last place. `o` averages values of at most 2 with these weights.
/// The gradients are sums over `n` query rows or keys of products with dS, which errs by twice as much as P, relative to |dP| + |delta|.
fn check(gpu: &Gpu, rows: &[AttentionRow], tokens: usize, shape: AttentionShape, max_tiles: usize) {
    let qkv: Vec<f32> = random(tokens * shape.qkv_width(), 1)
        .iter()
        .map(|x| 2.0 * x)
        .collect();
    let d_o = random(tokens * shape.q_width(), 2);
    let got = compute(gpu, &qkv, &d_o, rows, shape, max_tiles);
    let (wide_qkv, wide_d_o) = (wide(&qkv), wide(&d_o));
    let kv = KeysValues::packed(&wide_qkv, shape);
    let [o, lse] = expected_forward(&wide_qkv, kv, rows, tokens, shape);
    let k = shape.head_dim as f64;
    let longest = rows.iter().map(AttentionRow::num_keys).max().unwrap_or(0) as f64;
    // Scores are some 4/3 sqrt(K) scale, and their rounding errors random.
    let of_score = (8.0 + 4.0 * k.sqrt() * f64::from(shape.scale) * k.sqrt().max(4.0)) * EPSILON;
    assert_close(&got.o, &o, of_score + longest.sqrt() * EPSILON);
    assert_close(&got.lse, &lse, 2.0 * of_score + longest.sqrt() * EPSILON);
    let d_qkv = expected_backward(&wide_qkv, &wide_d_o, rows, shape);
    let largest = d_qkv.iter().fold(1.0, |most: f64, d| most.max(d.abs()));
    let n = (tokens * shape.group_size()) as f64;
    assert_close(
        &got.d_qkv,
        &d_qkv,
        largest * (of_score + (n.sqrt() + k.sqrt()) * EPSILON),
    );
}

#[test]
fn the_loops_have_the_gradients_of_finite_differences() {
    for window in [None, Some(2)] {
        let shape = AttentionShape {
            window,
            ..shape(4, 2, 4)
        };
        let (rows, tokens) = tree(&[(None, 2), (Some(0), 3), (Some(0), 1)]);
        let qkv = wide(&random(tokens * shape.qkv_width(), 1));
        let d_o = wide(&random(tokens * shape.q_width(), 2));
        let f = |qkv: &[f64]| {
            let kv = KeysValues::packed(qkv, shape);
            let [o, _] = expected_forward(qkv, kv, &rows, tokens, shape);
            o.iter().zip(&d_o).map(|(o, d)| o * d).sum::<f64>()
        };
        let expected = gradient(f, &qkv);
        let got = expected_backward(&qkv, &d_o, &rows, shape);
        // The error of central differences in f64.
        assert!(got.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-7));
    }
}

#[test]
fn head_sizes_of_every_kernel_equal_the_loops() {
    let gpu = gpu();
    let (rows, tokens) = tree(&[(None, 66), (None, 1), (Some(0), 9), (Some(2), 3)]);
    for dim in [64, 80, 136, 256] {
        check(&gpu, &rows, tokens, shape(2, 1, dim), 16);
    }
}

#[test]
fn grouped_heads_windows_and_shared_beginnings_equal_the_loops() {
    let gpu = gpu();
    let (rows, tokens) = tree(&[
        (None, 37),
        (Some(0), 5),
        (Some(1), 1),
        (None, 101),
        (Some(1), 20),
        (Some(0), 40),
        (Some(3), 2),
    ]);
    // With 1 tile, the queries of most key blocks are shared by several workgroups.
    for (heads, groups, window, max_tiles) in [
        (3, 3, None, 16),
        (3, 3, Some(30), 1),
        (6, 2, None, 1),
        (6, 2, Some(1), 16),
        (6, 2, Some(70), 2),
        (7, 1, Some(100), 16),
    ] {
        let shape = AttentionShape {
            window,
            ..shape(heads, groups, 16)
        };
        check(&gpu, &rows, tokens, shape, max_tiles);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_trees_of_rows_equal_the_loops(
        lengths in prop::collection::vec((0..8usize, 1..90usize), 1..6),
        group_size in 1..5usize,
        groups in 1..3usize,
        dim in 1..9usize,
        window in prop::option::of(1..120usize),
        max_tiles in 1..4usize,
    ) {
        let lengths: Vec<_> = lengths
            .iter()
            .enumerate()
            .map(|(i, (parent, len))| ((*parent < i).then_some(*parent), *len))
            .collect();
        let (rows, tokens) = tree(&lengths);
        let shape = AttentionShape { window, ..shape(group_size * groups, groups, 4 * dim) };
        check(&gpu(), &rows, tokens, shape, max_tiles);
    }
}

#[test]
fn two_runs_are_bitwise_equal() {
    let gpu = gpu();
    let (rows, tokens) = tree(&[(None, 100), (Some(0), 60), (Some(0), 30)]);
    let shape = shape(6, 2, 32);
    let qkv = random(tokens * shape.qkv_width(), 1);
    let d_o = random(tokens * shape.q_width(), 2);
    let bits = || {
        let got = compute(&gpu, &qkv, &d_o, &rows, shape, 1);
        let all = [got.o, got.lse, got.d_qkv].concat();
        all.into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    assert_eq!(bits(), bits());
}

#[test]
fn large_scores_stay_finite() {
    let gpu = gpu();
    let (rows, tokens) = tree(&[(None, 70)]);
    let shape = shape(1, 1, 16);
    let qkv: Vec<f32> = random(tokens * shape.qkv_width(), 1)
        .iter()
        .map(|x| 100.0 * x)
        .collect();
    let d_o = random(tokens * shape.q_width(), 2);
    let got = compute(&gpu, &qkv, &d_o, &rows, shape, 16);
    let all = [got.o, got.lse, got.d_qkv].concat();
    assert!(all.iter().all(|x| x.is_finite()));
}

#[test]
fn heads_that_do_not_fit_are_refused() {
    let gpu = gpu();
    let (rows, _) = tree(&[(None, 4)]);
    let mut plan = TrainingPlan::default();
    for (heads, groups, dim) in [(3, 2, 16), (2, 1, 10), (2, 1, 512), (2, 0, 16)] {
        let shape = AttentionShape {
            num_heads: heads,
            num_kv_heads: groups,
            head_dim: dim,
            window: None,
            scale: 1.0,
        };
        assert!(plan.prepare(&gpu, &rows, shape).is_err());
    }
    plan.prepare(&gpu, &rows, shape(2, 1, 16)).expect("a plan");
    let small = gpu.zeros(64).expect("memory");
    let result = forward(
        &gpu,
        &plan,
        small.all(),
        small.all(),
        small.all(),
        shape(2, 1, 16),
    );
    assert!(matches!(result, Err(GpuError::Shape { .. })));
}

/// Segments of a cache: the first slot of each, and the one before it. A prefix, two questions after it (the first one long), and a row
/// of its own.
const SEGMENTS: [(usize, Option<usize>); 4] =
    [(0, None), (40, Some(0)), (340, Some(0)), (370, None)];

/// Attention of new tokens to a cache, as rows of (segment, new tokens), beside the loops.
fn check_cache(gpu: &Gpu, shape: AttentionShape) {
    let mut cache = KvSlots::new(gpu, 2, shape).expect("a cache");
    let [prefix, first, second, alone] = [0, 1, 2, 3];
    let steps = [
        vec![(prefix, 40)],
        vec![(first, 290)],
        vec![(second, 20), (first, 2), (alone, 1)],
        vec![(first, 1), (second, 1), (alone, 1)],
        vec![(alone, 7), (second, 1), (first, 1)],
    ];
    let mut lens = [0; 4];
    let mut plan = DecodingPlan::default();
    let width = shape.kv_width();
    let mut kept = [vec![], vec![]]; // keys, values of all slots
    let mut seed = 10;
    for (step, of_step) in steps.iter().enumerate() {
        // The cache must grow.
        let slots = if step < 2 { 340 } else { 379 };
        cache.reserve(gpu, slots).expect("room");
        let (mut rows, mut slots, mut tokens) = (Vec::new(), Vec::new(), 0);
        for (segment, new) in of_step {
            let (start, parent) = SEGMENTS[*segment];
            let slot = start + lens[*segment];
            lens[*segment] += new;
            slots.extend((slot..slot + new).map(|s| s as u32));
            let path = parent.into_iter().chain([*segment]);
            rows.push(AttentionRow {
                tokens: tokens..tokens + new,
                keys: path
                    .map(|s| SEGMENTS[s].0..SEGMENTS[s].0 + lens[s])
                    .collect(),
            });
            tokens += new;
        }
        seed += 1;
        let qkv: Vec<f32> = random(tokens * shape.qkv_width(), seed)
            .iter()
            .map(|x| 2.0 * x)
            .collect();
        for (qkv, slot) in qkv.chunks(shape.qkv_width()).zip(&slots) {
            let pair = qkv[shape.q_width()..].chunks(width);
            for (kept, row) in kept.iter_mut().zip(pair) {
                let end = (*slot as usize + 1) * width;
                kept.resize(kept.len().max(end), 0.0);
                kept[end - width..end].copy_from_slice(row);
            }
        }
        let on_device = gpu.upload(&qkv).expect("memory");
        let slots = gpu.upload_u32(&slots).expect("memory");
        let o = gpu.zeros(tokens * shape.q_width()).expect("memory");
        cache
            .write(gpu, 1, on_device.all(), &slots, tokens, shape)
            .expect("a write");
        plan.prepare(gpu, &rows, shape).expect("a plan");
        plan.attend(gpu, on_device.all(), cache.layer(1), o.all(), shape)
            .expect("attention");
        let got = gpu.download(&o, 0..o.len()).expect("results");
        let (keys, values) = (wide(&kept[0]), wide(&kept[1]));
        let kv = KeysValues {
            keys: &keys,
            values: &values,
            stride: width,
        };
        let [expected, _] = expected_forward(&wide(&qkv), kv, &rows, tokens, shape);
        // As in `check`.
        let k = f64::from(shape.head_dim as u32);
        let of_score =
            (8.0 + 4.0 * k.sqrt() * f64::from(shape.scale) * k.sqrt().max(4.0)) * EPSILON;
        assert_close(&got, &expected, of_score + 20.0 * EPSILON);
    }
}

#[test]
fn decoding_over_a_tree_of_segments_equals_the_loops() {
    let gpu = gpu();
    for (heads, groups, dim, window) in [
        (1, 1, 16, None),
        (4, 2, 64, Some(100)),
        (3, 1, 80, None),
        (12, 1, 36, Some(100)),
        (1, 1, 256, None),
    ] {
        let shape = AttentionShape {
            window,
            ..shape(heads, groups, dim)
        };
        check_cache(&gpu, shape);
    }
}

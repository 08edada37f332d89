//! Causal attention with grouped heads, in blocks (Dao et al. 2022): no matrix of scores beyond a block is ever kept.
//!
//! H query heads share G key and value heads of K channels; R = H / G. One layout serves training and decoding: the
//! keys of a row are a list of [`KvSpan`]s, all of which it sees, and its own tokens, which it sees up to itself.
//! Queries of the R heads that share a key head form one block of rows, so that short rows still fill registers.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    rope::{Rope, rotate_back},
    simd::{self, LANES, vectorized},
    small_matmul::{Matrix, small_matmul},
};

/// Query tokens a block.
const QUERY_BLOCK: usize = 32;
/// Keys a block.
const KEY_BLOCK: usize = 64;
/// Keys whose gradients one task makes, so that a long row has work for many threads. Fewer in tests, whose longest rows have several of these.
const KEYS_PER_TASK: usize = if cfg!(test) { 100 } else { 512 };

/// The heads of a model.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// H.
    pub num_heads: usize,
    /// G.
    pub num_kv_heads: usize,
    /// K.
    pub head_dim: usize,
}

impl AttentionShape {
    /// Width of a q, k, v row: (H + 2G) K.
    pub fn qkv_width(self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }

    /// R.
    fn group_size(self) -> usize {
        self.num_heads / self.num_kv_heads
    }

    /// 1 / sqrt(K).
    fn scale(self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

/// Keys and values of successive tokens: token t, group g at `t * stride + g * K`.
#[derive(Clone, Copy)]
pub struct KvSpan<'a> {
    /// Keys, after rope.
    pub keys: &'a [f32],
    /// Values.
    pub values: &'a [f32],
    /// Distance between tokens.
    pub stride: usize,
    /// Number of tokens.
    pub len: usize,
}

/// A row whose new tokens ask.
pub struct AttentionRow<'a> {
    /// Its new tokens, among all new tokens.
    pub tokens: Range<usize>,
    /// What lies before, all of it seen by every new token.
    pub context: Vec<KvSpan<'a>>,
    /// Its own span; the new tokens are the last of it.
    pub own: KvSpan<'a>,
}

/// Tokens of a batch, `tokens`, that see each other causally and all of what lies before them in the same batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttentionSpan {
    /// The tokens.
    pub tokens: Range<usize>,
    /// What lies before, in order.
    pub context: Vec<Range<usize>>,
}

impl AttentionSpan {
    fn context_len(&self) -> usize {
        self.context.iter().map(ExactSizeIterator::len).sum()
    }

    /// What it sees, in order, in pieces of [`KEYS_PER_TASK`] keys.
    fn key_blocks(&self) -> Vec<KeyBlock> {
        let mut pieces = vec![KeyBlock::default()];
        let mut room = KEYS_PER_TASK;
        for keys in self.context.iter().chain([&self.tokens]) {
            let mut start = keys.start;
            while start < keys.end {
                if room == 0 {
                    pieces.push(KeyBlock {
                        keys: Vec::new(),
                        // Of its own tokens, those before see none of these keys.
                        first_query: start.saturating_sub(self.tokens.start),
                    });
                    room = KEYS_PER_TASK;
                }
                let end = keys.end.min(start + room);
                let piece = pieces.last_mut().expect("there is one from the start");
                piece.keys.push(start..end);
                room -= end - start;
                start = end;
            }
        }
        pieces
    }

    /// As [`forward`] takes it, with the keys and values of `qkv`.
    pub fn to_row<'a>(&self, qkv: &'a [f32], heads: AttentionShape) -> AttentionRow<'a> {
        let (width, wide) = (heads.qkv_width(), heads.num_heads * heads.head_dim);
        let span = |tokens: &Range<usize>| {
            // There may be no token, and then nothing behind the last one.
            let from = |column: usize| &qkv[qkv.len().min(tokens.start * width + column)..];
            KvSpan {
                keys: from(wide),
                values: from(wide + heads.num_kv_heads * heads.head_dim),
                stride: width,
                len: tokens.len(),
            }
        };
        AttentionRow {
            tokens: self.tokens.clone(),
            context: self.context.iter().map(span).collect(),
            own: span(&self.tokens),
        }
    }
}

/// Keys of a row's context and its own, and the first of its tokens that sees some of them.
#[derive(Default)]
struct KeyBlock {
    keys: Vec<Range<usize>>,
    first_query: usize,
}

impl KeyBlock {
    fn len(&self) -> usize {
        self.keys.iter().map(ExactSizeIterator::len).sum()
    }

    /// Queries of the tokens that see some of its keys, in one head group.
    fn queries(&self, row: &AttentionSpan, heads: AttentionShape) -> usize {
        (row.tokens.len() - self.first_query) * heads.group_size()
    }
}

/// Attention of all rows: `o` (T, HK) and `lse` (T, H), the log of each softmax's denominator.
///
/// `qkv` (T, (H + 2G) K) holds the queries, after rope. Rows cover `0..T` in order.
pub fn forward(
    o: &mut [f32],
    lse: &mut [f32],
    qkv: &[f32],
    rows: &[AttentionRow<'_>],
    heads: AttentionShape,
) {
    let (wide, h) = (heads.num_heads * heads.head_dim, heads.num_heads);
    let mut tasks = Vec::new();
    let (mut o, mut lse) = (o, lse);
    for row in rows {
        for start in row.tokens.clone().step_by(QUERY_BLOCK) {
            let block = start..(start + QUERY_BLOCK).min(row.tokens.end);
            let (o_block, o_rest) = o.split_at_mut(block.len() * wide);
            let (lse_block, lse_rest) = lse.split_at_mut(block.len() * h);
            (o, lse) = (o_rest, lse_rest);
            tasks.push((row, block, o_block, lse_block));
        }
    }
    tasks
        .into_par_iter()
        .for_each_init(Scratch::default, |scratch, (row, block, o, lse)| {
            forward_groups(o, lse, qkv, row, block, heads, scratch);
        });
}

vectorized! {
    /// One block of queries, every head group.
    fn forward_groups(
        o: &mut [f32],
        lse: &mut [f32],
        qkv: &[f32],
        row: &AttentionRow<'_>,
        block: Range<usize>,
        heads: AttentionShape,
        scratch: &mut Scratch,
    ) {
        for g in 0..heads.num_kv_heads {
            forward_block(o, lse, qkv, row, block.clone(), g, heads, scratch);
        }
    }

    /// One task of [`backward`]: what the keys and values of a piece receive in one head group, into `d_keys` (keys, 2 K), and what
    /// queries receive from them, into `d_queries` (tokens from its first * R, K), unscaled. Both are zero before.
    fn backward_key_block(
        into: [&mut [f32]; 2],
        of: &Backward<'_>,
        row: &AttentionSpan,
        piece: &KeyBlock,
        g: usize,
        scratch: &mut Scratch,
    ) {
        let [d_queries, mut d_keys] = into;
        let AttentionShape { num_heads: h, head_dim, .. } = of.heads;
        let shared = of.heads.group_size();
        let tokens = row.tokens.start + piece.first_query..row.tokens.end;
        let delta = sized(&mut scratch.delta, tokens.len() * shared);
        for (delta, t) in delta.chunks_exact_mut(shared).zip(tokens) {
            for (r, delta) in delta.iter_mut().enumerate() {
                let at = (t * h + g * shared + r) * head_dim;
                *delta = simd::dot(&of.o[at..][..head_dim], &of.d_o[at..][..head_dim]);
            }
        }
        for keys in &piece.keys {
            let (of_these, after) = d_keys.split_at_mut(keys.len() * 2 * head_dim);
            backward_keys(d_queries, of_these, of, row, piece.first_query, keys, g, scratch);
            d_keys = after;
        }
    }

    fn rotate_row_back(row: &mut [f32], cos: &[f32], sin: &[f32]) {
        for head in row.chunks_exact_mut(2 * cos.len()) {
            rotate_back(head, (cos, sin));
        }
    }
}

/// Memory of one task.
#[derive(Default)]
struct Scratch {
    queries: Vec<f32>,  // (QUERY_BLOCK * R, K), scaled
    keys: Vec<f32>,     // (K, KEY_BLOCK), transposed
    values: Vec<f32>,   // (K, KEY_BLOCK), transposed
    scores: Vec<f32>,   // (QUERY_BLOCK * R, KEY_BLOCK)
    out: Vec<f32>,      // (QUERY_BLOCK * R, K)
    top: Vec<f32>,      // (QUERY_BLOCK * R): running maximum
    sum: Vec<f32>,      // (QUERY_BLOCK * R): running denominator
    d_out: Vec<f32>,    // (QUERY_BLOCK * R, K)
    d_scores: Vec<f32>, // (QUERY_BLOCK * R, KEY_BLOCK)
    delta: Vec<f32>,    // (T * R): sum(dO * O) of a row's queries
}

#[inline(always)]
fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// Packs head group `g` of the tokens' rows in `source` (T, width), starting at column `first`, into (tokens * R, K).
#[inline(always)]
fn pack(
    out: &mut [f32],
    source: &[f32],
    tokens: Range<usize>,
    width: usize,
    g: usize,
    heads: AttentionShape,
    scale: f32,
) {
    let group = heads.group_size() * heads.head_dim;
    for (out, t) in out.chunks_exact_mut(group).zip(tokens) {
        for (o, x) in out
            .iter_mut()
            .zip(&source[t * width + g * group..][..group])
        {
            *o = x * scale;
        }
    }
}

/// Packs `len` tokens' channels of `source` (stride apart) transposed into (K, padded); the padding is zero.
#[inline(always)]
fn pack_transposed(
    out: &mut [f32],
    source: &[f32],
    stride: usize,
    len: usize,
    dim: usize,
    padded: usize,
) {
    for d in 0..dim {
        out[d * padded + len..(d + 1) * padded].fill(0.0);
    }
    for t in 0..len {
        for (d, x) in source[t * stride..][..dim].iter().enumerate() {
            out[d * padded + t] = *x;
        }
    }
}

#[inline(always)]
#[allow(
    clippy::too_many_arguments,
    reason = "one block of one head group: the loop above names them all"
)]
fn forward_block(
    o: &mut [f32],
    lse: &mut [f32],
    qkv: &[f32],
    row: &AttentionRow<'_>,
    block: Range<usize>,
    g: usize,
    heads: AttentionShape,
    scratch: &mut Scratch,
) {
    let (dim, shared) = (heads.head_dim, heads.group_size());
    let n = block.len() * shared;
    let queries = sized(&mut scratch.queries, n * dim);
    pack(
        queries,
        qkv,
        block.clone(),
        heads.qkv_width(),
        g,
        heads,
        heads.scale(),
    );
    let (out, top, sum) = (
        sized(&mut scratch.out, n * dim),
        sized(&mut scratch.top, n),
        sized(&mut scratch.sum, n),
    );
    out.fill(0.0);
    top.fill(f32::NEG_INFINITY);
    sum.fill(0.0);

    let before = row.own.len - row.tokens.len(); // tokens of its own span before the new ones
    let first = before + block.start - row.tokens.start; // index in its own span of the block's first query
    let spans = row
        .context
        .iter()
        .map(|s| (s, false))
        .chain([(&row.own, true)]);
    for (span, causal) in spans {
        let seen = if causal {
            first + block.len()
        } else {
            span.len
        };
        for start in (0..seen).step_by(KEY_BLOCK) {
            let len = KEY_BLOCK.min(seen - start);
            let padded = len.next_multiple_of(LANES);
            let keys = sized(&mut scratch.keys, dim * padded);
            pack_transposed(
                keys,
                &span.keys[start * span.stride + g * dim..],
                span.stride,
                len,
                dim,
                padded,
            );
            let scores = sized(&mut scratch.scores, n * padded);
            small_matmul(
                scores,
                padded,
                [n, dim, padded],
                Matrix::rows(queries, dim),
                Matrix::rows(keys, padded),
                false,
            );
            for (i, scores) in scores.chunks_exact_mut(padded).enumerate() {
                // Query i / R sees keys up to its own place.
                let visible = if causal {
                    (first + i / shared + 1).saturating_sub(start).min(len)
                } else {
                    len
                };
                if visible == 0 {
                    scores.fill(0.0);
                    continue;
                }
                let new_top = top[i].max(simd::max(&scores[..visible]));
                let rescale = simd::exp(top[i] - new_top);
                top[i] = new_top;
                for x in scores.iter_mut() {
                    *x = simd::exp(*x - new_top);
                }
                scores[visible..].fill(0.0);
                sum[i] = sum[i] * rescale + scores.iter().sum::<f32>();
                for x in &mut out[i * dim..][..dim] {
                    *x *= rescale;
                }
            }
            let values = &span.values[start * span.stride + g * dim..];
            small_matmul(
                out,
                dim,
                [n, len, dim],
                Matrix::rows(scores, padded),
                Matrix::rows(values, span.stride),
                true,
            );
        }
    }
    for i in 0..n {
        let (t, head) = (i / shared, g * shared + i % shared);
        let inverse = 1.0 / sum[i];
        for (o, x) in o[(t * heads.num_heads + head) * dim..][..dim]
            .iter_mut()
            .zip(&out[i * dim..][..dim])
        {
            *o = x * inverse;
        }
        lse[t * heads.num_heads + head] = top[i] + sum[i].ln();
    }
}

/// What the forward pass kept, and the gradient of what it returned.
#[derive(Clone, Copy)]
pub struct Backward<'a> {
    /// Gradient of `o` (T, HK).
    pub d_o: &'a [f32],
    /// (T, HK).
    pub o: &'a [f32],
    /// (T, H).
    pub lse: &'a [f32],
    /// (T, (H + 2G) K), after rope.
    pub qkv: &'a [f32],
    /// The model's.
    pub heads: AttentionShape,
}

/// Gradient of [`forward`] over a batch (training): `dqkv` (T, (H + 2G) K), with respect to the projections *before* rope.
/// Every element is written. `positions`: each token's place in its row; `parts`: memory for the parts below, to be used again.
///
/// Scores are made again block by block: dS = P * (dP - sum(dO * O)), P = exp(S - lse). Each head group of each row makes its part
/// alone, piece by piece: what keys and values receive, (2 K) a token, first of the context, then of its own row; then what its queries
/// receive from each piece (tokens from the first that sees it, R K), unscaled. Pieces, and what several rows give to a context, are summed
/// in their order, so that threads change no bit.
pub fn backward(
    dqkv: &mut [f32],
    of: &Backward<'_>,
    rows: &[AttentionSpan],
    positions: &[usize],
    rope: &Rope,
    parts: &mut Vec<f32>,
) {
    let heads = of.heads;
    let width = heads.qkv_width();
    let rows: Vec<(&AttentionSpan, Vec<KeyBlock>)> =
        rows.iter().map(|row| (row, row.key_blocks())).collect();
    let part_len = |(row, pieces): &(&AttentionSpan, Vec<KeyBlock>)| {
        let keys_and_queries = pieces.iter().map(|p| 2 * p.len() + p.queries(row, heads));
        keys_and_queries.sum::<usize>() * heads.head_dim
    };
    let all: usize = rows.iter().map(part_len).sum();
    parts.clear();
    parts.resize(all * heads.num_kv_heads, 0.0);
    let mut tasks = Vec::new();
    let mut rest = &mut parts[..];
    for of_row in &rows {
        let (row, pieces) = of_row;
        for g in 0..heads.num_kv_heads {
            let (part, after) = rest.split_at_mut(part_len(of_row));
            rest = after;
            let seen = row.context_len() + row.tokens.len();
            let (mut keys, mut queries) = part.split_at_mut(2 * seen * heads.head_dim);
            for piece in pieces {
                let (d_keys, keys_after) = keys.split_at_mut(2 * piece.len() * heads.head_dim);
                let (d_queries, queries_after) =
                    queries.split_at_mut(piece.queries(row, heads) * heads.head_dim);
                (keys, queries) = (keys_after, queries_after);
                tasks.push((*row, piece, g, [d_queries, d_keys]));
            }
        }
    }
    tasks
        .into_par_iter()
        .for_each_init(Scratch::default, |scratch, (row, piece, g, parts)| {
            backward_key_block(parts, of, row, piece, g, scratch);
        });

    let mut tasks = Vec::new();
    let (mut rest, mut parts_rest) = (&mut *dqkv, &parts[..]);
    for of_row in &rows {
        let (own, after) = rest.split_at_mut(of_row.0.tokens.len() * width);
        let (parts, parts_after) = parts_rest.split_at(part_len(of_row) * heads.num_kv_heads);
        (rest, parts_rest) = (after, parts_after);
        tasks.push((of_row, own, parts));
    }
    let in_order: Vec<_> = tasks
        .iter()
        .map(|(of_row, _, parts)| (of_row.0, *parts))
        .collect();
    tasks
        .into_par_iter()
        .for_each(|((row, pieces), own, parts)| write_own_grads(own, parts, row, pieces, heads));
    for (row, parts) in in_order {
        add_context_grads(dqkv, parts, row, heads);
    }
    let rotated = (heads.num_heads + heads.num_kv_heads) * heads.head_dim;
    dqkv.par_chunks_mut(width)
        .zip(positions)
        .with_min_len(8)
        .for_each(|(row, &position)| {
            let (cos, sin) = rope.at(position);
            rotate_row_back(&mut row[..rotated], cos, sin);
        });
}

/// The parts of a row's head groups: what the context's keys and values receive, what its own do, and what queries do.
fn split_parts<'a>(
    parts: &'a [f32],
    row: &AttentionSpan,
    heads: AttentionShape,
) -> impl Iterator<Item = [&'a [f32]; 3]> {
    let [context, own] =
        [row.context_len(), row.tokens.len()].map(|keys| keys * 2 * heads.head_dim);
    parts
        .chunks_exact((parts.len() / heads.num_kv_heads).max(1))
        .map(move |part| {
            let (pairs, queries) = part.split_at(context + own);
            let (context, own) = pairs.split_at(context);
            [context, own, queries]
        })
}

/// Writes what a row's head groups made to its own tokens' `dqkv`, every element of it.
fn write_own_grads(
    dqkv: &mut [f32],
    parts: &[f32],
    row: &AttentionSpan,
    pieces: &[KeyBlock],
    heads: AttentionShape,
) {
    let (dim, group, width) = (
        heads.head_dim,
        heads.group_size() * heads.head_dim,
        heads.qkv_width(),
    );
    let [keys, values] =
        [heads.num_heads, heads.num_heads + heads.num_kv_heads].map(|head| head * dim);
    for (g, [_, pairs, mut queries]) in split_parts(parts, row, heads).enumerate() {
        let tokens = dqkv.chunks_exact_mut(width);
        for (out, pair) in tokens.zip(pairs.chunks_exact(2 * dim)) {
            out[g * group..][..group].fill(0.0);
            out[keys + g * dim..][..dim].copy_from_slice(&pair[..dim]);
            out[values + g * dim..][..dim].copy_from_slice(&pair[dim..]);
        }
        for piece in pieces {
            let tokens = dqkv[piece.first_query * width..].chunks_exact_mut(width);
            let (of_piece, after) = queries.split_at(piece.queries(row, heads) * dim);
            for (out, dq) in tokens.zip(of_piece.chunks_exact(group)) {
                simd::axpy(&mut out[g * group..][..group], heads.scale(), dq);
            }
            queries = after;
        }
    }
}

/// Adds what a row's head groups give to its context to the keys and values there.
fn add_context_grads(dqkv: &mut [f32], parts: &[f32], row: &AttentionSpan, heads: AttentionShape) {
    let dim = heads.head_dim;
    for (g, [pairs, ..]) in split_parts(parts, row, heads).enumerate() {
        let tokens = row.context.iter().cloned().flatten();
        for (token, pair) in tokens.zip(pairs.chunks_exact(2 * dim)) {
            let at = token * heads.qkv_width() + (heads.num_heads + g) * dim;
            simd::axpy(&mut dqkv[at..][..dim], 1.0, &pair[..dim]);
            let at = at + heads.num_kv_heads * dim;
            simd::axpy(&mut dqkv[at..][..dim], 1.0, &pair[dim..]);
        }
    }
}

/// What the keys and values of the tokens `all_keys` receive from the row's queries, into `d_keys` (keys, 2 K), and these queries from
/// them, into `d_queries` (row's tokens from the one numbered `first_of_all` * R, K), unscaled; both are added.
#[inline(always)]
#[allow(
    clippy::too_many_arguments,
    reason = "some keys of one head group: the loop above names them all"
)]
fn backward_keys(
    d_queries: &mut [f32],
    d_keys: &mut [f32],
    of: &Backward<'_>,
    row: &AttentionSpan,
    first_of_all: usize,
    all_keys: &Range<usize>,
    g: usize,
    scratch: &mut Scratch,
) {
    let Backward {
        d_o,
        lse,
        qkv,
        heads,
        ..
    } = *of;
    let (dim, shared, width) = (heads.head_dim, heads.group_size(), heads.qkv_width());
    let wide = heads.num_heads * dim;
    let (key_column, value_column) = (
        (heads.num_heads + g) * dim,
        (heads.num_heads + heads.num_kv_heads + g) * dim,
    );
    let tokens = &row.tokens;
    let causal = tokens.contains(&all_keys.start);

    for key_start in (0..all_keys.len()).step_by(KEY_BLOCK) {
        let keys = key_start..(key_start + KEY_BLOCK).min(all_keys.len());
        let padded = keys.len().next_multiple_of(LANES);
        let at = (all_keys.start + keys.start) * width;
        let [keys_across, values_across] = [
            (&mut scratch.keys, key_column),
            (&mut scratch.values, value_column),
        ]
        .map(|(buffer, column)| {
            let across = sized(buffer, dim * padded);
            let source = &qkv[at + column..];
            pack_transposed(across, source, width, keys.len(), dim, padded);
            &*across
        });
        // Of its own row's keys, queries before the block see none.
        let first_query = if causal {
            all_keys.start + keys.start - tokens.start
        } else {
            0
        };
        for query_start in (first_query..tokens.len()).step_by(QUERY_BLOCK) {
            let block = query_start..(query_start + QUERY_BLOCK).min(tokens.len());
            let global = tokens.start + block.start..tokens.start + block.end;
            let n = block.len() * shared;

            let queries = sized(&mut scratch.queries, n * dim);
            pack(queries, qkv, global.clone(), width, g, heads, heads.scale());
            let d_out = sized(&mut scratch.d_out, n * dim);
            pack(d_out, d_o, global.clone(), wide, g, heads, 1.0);

            // P = exp(S - lse), masked.
            let p = sized(&mut scratch.scores, n * padded);
            small_matmul(
                p,
                padded,
                [n, dim, padded],
                Matrix::rows(queries, dim),
                Matrix::rows(keys_across, padded),
                false,
            );
            for (i, p) in p.chunks_exact_mut(padded).enumerate() {
                let (t, head) = (i / shared, g * shared + i % shared);
                let visible = if causal {
                    (block.start + t + 1 - first_query).min(keys.len())
                } else {
                    keys.len()
                };
                let lse = lse[(global.start + t) * heads.num_heads + head];
                for x in &mut *p {
                    *x = simd::exp(*x - lse);
                }
                p[visible..].fill(0.0);
            }

            // dP = dO V^T, dS = P * (dP - delta).
            let d_scores = sized(&mut scratch.d_scores, n * padded);
            small_matmul(
                d_scores,
                padded,
                [n, dim, padded],
                Matrix::rows(d_out, dim),
                Matrix::rows(values_across, padded),
                false,
            );
            for ((ds, p), delta) in d_scores
                .chunks_exact_mut(padded)
                .zip(p.chunks_exact(padded))
                .zip(&scratch.delta[(block.start - first_of_all) * shared..])
            {
                for (ds, p) in ds.iter_mut().zip(p) {
                    *ds = p * (*ds - delta);
                }
            }

            // dV += P^T dO, dK += dS^T Q (Q carries the scale), dQ += dS K.
            let d_keys = &mut d_keys[keys.start * 2 * dim..];
            small_matmul(
                &mut d_keys[dim..],
                2 * dim,
                [keys.len(), n, dim],
                Matrix::columns(p, padded),
                Matrix::rows(d_out, dim),
                true,
            );
            small_matmul(
                d_keys,
                2 * dim,
                [keys.len(), n, dim],
                Matrix::columns(d_scores, padded),
                Matrix::rows(queries, dim),
                true,
            );
            let d_queries = &mut d_queries[(block.start - first_of_all) * shared * dim..];
            let key_rows = &qkv[at + key_column..];
            small_matmul(
                d_queries,
                dim,
                [n, keys.len(), dim],
                Matrix::rows(d_scores, padded),
                Matrix::rows(key_rows, width),
                true,
            );
        }
    }
}

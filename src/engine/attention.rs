//! Causal attention with grouped heads, in blocks (Dao et al. 2022): no matrix of scores beyond a block is ever kept.
//!
//! H query heads share G key and value heads of K channels; R = H / G. One layout serves training and decoding: the
//! keys of a row are a list of [`Span`]s, all of which it sees, and its own tokens, which it sees up to itself.
//! Queries of the R heads that share a key head form one block of rows, so that short rows still fill registers.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    rope::{Rope, rotate_back},
    simd::{self, LANES, vectorized},
    small::{Matrix, small_product},
};

/// Query tokens a block.
const QUERY_BLOCK: usize = 32;
/// Keys a block.
const KEY_BLOCK: usize = 64;

/// The heads of a model.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// H.
    pub queries: usize,
    /// G.
    pub groups: usize,
    /// K.
    pub dim: usize,
}

impl Heads {
    /// Width of a q, k, v row: (H + 2G) K.
    pub fn width(self) -> usize {
        (self.queries + 2 * self.groups) * self.dim
    }

    /// R.
    fn shared(self) -> usize {
        self.queries / self.groups
    }

    /// 1 / sqrt(K).
    fn scale(self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }
}

/// Keys and values of successive tokens: token t, group g at `t * stride + g * K`.
#[derive(Clone, Copy)]
pub struct Span<'a> {
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
pub struct Row<'a> {
    /// Its new tokens, among all new tokens.
    pub tokens: Range<usize>,
    /// What lies before, all of it seen by every new token.
    pub context: Vec<Span<'a>>,
    /// Its own span; the new tokens are the last of it.
    pub own: Span<'a>,
}

/// Tokens of a batch, `tokens`, that see each other causally and all of what lies before them in the same batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The tokens.
    pub tokens: Range<usize>,
    /// What lies before, in order.
    pub context: Vec<Range<usize>>,
}

impl Reach {
    fn context_len(&self) -> usize {
        self.context.iter().map(ExactSizeIterator::len).sum()
    }

    /// As [`forward`] takes it, with the keys and values of `qkv`.
    pub fn row<'a>(&self, qkv: &'a [f32], heads: Heads) -> Row<'a> {
        let (width, wide) = (heads.width(), heads.queries * heads.dim);
        let span = |tokens: &Range<usize>| {
            // There may be no token, and then nothing behind the last one.
            let from = |column: usize| &qkv[qkv.len().min(tokens.start * width + column)..];
            Span {
                keys: from(wide),
                values: from(wide + heads.groups * heads.dim),
                stride: width,
                len: tokens.len(),
            }
        };
        Row {
            tokens: self.tokens.clone(),
            context: self.context.iter().map(span).collect(),
            own: span(&self.tokens),
        }
    }
}

/// Attention of all rows: `o` (T, HK) and `lse` (T, H), the log of each softmax's denominator.
///
/// `qkv` (T, (H + 2G) K) holds the queries, after rope. Rows cover `0..T` in order.
pub fn forward(o: &mut [f32], lse: &mut [f32], qkv: &[f32], rows: &[Row<'_>], heads: Heads) {
    let (wide, h) = (heads.queries * heads.dim, heads.queries);
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
        row: &Row<'_>,
        block: Range<usize>,
        heads: Heads,
        scratch: &mut Scratch,
    ) {
        for g in 0..heads.groups {
            forward_block(o, lse, qkv, row, block.clone(), g, heads, scratch);
        }
    }

    /// One row, every head group; `dqkv` of its own tokens, `d_context` as [`add_to_contexts`] takes it.
    fn backward_groups(
        dqkv: &mut [f32],
        d_context: &mut [f32],
        of: &Backward<'_>,
        row: &Reach,
        scratch: &mut Scratch,
    ) {
        dqkv.fill(0.0);
        for g in 0..of.heads.groups {
            backward_group(dqkv, d_context, of, row, g, scratch);
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
    queries: Vec<f32>,   // (QUERY_BLOCK * R, K), scaled
    keys: Vec<f32>,      // (K, KEY_BLOCK), transposed
    scores: Vec<f32>,    // (QUERY_BLOCK * R, KEY_BLOCK)
    out: Vec<f32>,       // (QUERY_BLOCK * R, K)
    top: Vec<f32>,       // (QUERY_BLOCK * R): running maximum
    sum: Vec<f32>,       // (QUERY_BLOCK * R): running denominator
    d_out: Vec<f32>,     // (QUERY_BLOCK * R, K)
    d_scores: Vec<f32>,  // (QUERY_BLOCK * R, KEY_BLOCK)
    d_queries: Vec<f32>, // (row's tokens * R, K)
    delta: Vec<f32>,     // (QUERY_BLOCK * R)
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
    heads: Heads,
    scale: f32,
) {
    let group = heads.shared() * heads.dim;
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
    row: &Row<'_>,
    block: Range<usize>,
    g: usize,
    heads: Heads,
    scratch: &mut Scratch,
) {
    let (dim, shared) = (heads.dim, heads.shared());
    let n = block.len() * shared;
    let queries = sized(&mut scratch.queries, n * dim);
    pack(
        queries,
        qkv,
        block.clone(),
        heads.width(),
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
            small_product(
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
            small_product(
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
        for (o, x) in o[(t * heads.queries + head) * dim..][..dim]
            .iter_mut()
            .zip(&out[i * dim..][..dim])
        {
            *o = x * inverse;
        }
        lse[t * heads.queries + head] = top[i] + sum[i].ln();
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
    pub heads: Heads,
}

/// Gradient of [`forward`] over a batch (training): `dqkv` (T, (H + 2G) K), with respect to the projections *before* rope.
/// Every element is written. `positions`: each token's place in its row.
///
/// Scores are made again block by block: dS = P * (dP - sum(dO * O)), P = exp(S - lse). What rows that share a context
/// give to its keys and values is made apart and summed in the order of the rows, so that threads change no bit.
pub fn backward(
    dqkv: &mut [f32],
    of: &Backward<'_>,
    rows: &[Reach],
    positions: &[usize],
    rope: &Rope,
) {
    let heads = of.heads;
    let (width, pair) = (heads.width(), 2 * heads.groups * heads.dim);
    let contexts: usize = rows.iter().map(Reach::context_len).sum();
    let mut d_contexts = vec![0.0; contexts * pair];
    let mut tasks = Vec::new();
    let (mut rest, mut contexts_rest) = (&mut *dqkv, &mut d_contexts[..]);
    for row in rows {
        let (own, after) = rest.split_at_mut(row.tokens.len() * width);
        let (context, contexts_after) = contexts_rest.split_at_mut(row.context_len() * pair);
        (rest, contexts_rest) = (after, contexts_after);
        tasks.push((row, own, context));
    }
    tasks
        .into_par_iter()
        .for_each_init(Scratch::default, |scratch, (row, dqkv, d_context)| {
            backward_groups(dqkv, d_context, of, row, scratch);
        });
    add_to_contexts(dqkv, &d_contexts, rows, heads);
    let rotated = (heads.queries + heads.groups) * heads.dim;
    dqkv.par_chunks_mut(width)
        .zip(positions)
        .with_min_len(8)
        .for_each(|(row, &position)| {
            let (cos, sin) = rope.at(position);
            rotate_row_back(&mut row[..rotated], cos, sin);
        });
}

/// Adds what every row gave to its context, (context's tokens, 2GK) row after row, to the keys and values there.
fn add_to_contexts(dqkv: &mut [f32], d_contexts: &[f32], rows: &[Reach], heads: Heads) {
    let (width, pair) = (heads.width(), 2 * heads.groups * heads.dim);
    let tokens = rows
        .iter()
        .flat_map(|row| row.context.iter().cloned().flatten());
    for (token, given) in tokens.zip(d_contexts.chunks_exact(pair)) {
        let end = (token + 1) * width;
        simd::axpy(&mut dqkv[end - pair..end], 1.0, given);
    }
}

#[inline(always)]
fn backward_group(
    dqkv: &mut [f32],
    d_context: &mut [f32],
    of: &Backward<'_>,
    row: &Reach,
    g: usize,
    scratch: &mut Scratch,
) {
    let heads = of.heads;
    let (dim, group) = (heads.dim, heads.shared() * heads.dim);
    // The queries' gradients are summed over all keys before they are written.
    let mut d_queries = std::mem::take(&mut scratch.d_queries);
    let sum = sized(&mut d_queries, row.tokens.len() * group);
    sum.fill(0.0);
    let (pair, half) = (2 * heads.groups * dim, heads.groups * dim);
    let mut d_rest = d_context;
    for keys in &row.context {
        let (d_keys, after) = d_rest.split_at_mut(keys.len() * pair);
        let columns = [g * dim, half + g * dim];
        backward_keys(sum, d_keys, pair, columns, of, row, keys, g, scratch);
        d_rest = after;
    }
    let first = heads.queries * dim;
    let columns = [first + g * dim, first + half + g * dim];
    let width = heads.width();
    backward_keys(sum, dqkv, width, columns, of, row, &row.tokens, g, scratch);
    for (t, dq) in sum.chunks_exact(group).enumerate() {
        for (out, dq) in dqkv[t * width + g * group..][..group].iter_mut().zip(dq) {
            *out = dq * heads.scale();
        }
    }
    scratch.d_queries = d_queries;
}

/// What the keys and values of the tokens `keys` receive from the row's queries, into `d_keys` (keys, `d_width`) at the
/// columns of the keys and the values, and these queries from them, into `d_queries` (row's tokens * R, K), unscaled.
#[inline(always)]
#[allow(
    clippy::too_many_arguments,
    reason = "two gradients, and one head group of the keys of one row"
)]
fn backward_keys(
    d_queries: &mut [f32],
    d_keys: &mut [f32],
    d_width: usize,
    [d_key_column, d_value_column]: [usize; 2],
    of: &Backward<'_>,
    row: &Reach,
    all_keys: &Range<usize>,
    g: usize,
    scratch: &mut Scratch,
) {
    let Backward {
        d_o,
        o,
        lse,
        qkv,
        heads,
    } = *of;
    let (dim, shared, width) = (heads.dim, heads.shared(), heads.width());
    let wide = heads.queries * dim;
    let (key_column, value_column) = (
        (heads.queries + g) * dim,
        (heads.queries + heads.groups + g) * dim,
    );
    let (tokens, causal) = (&row.tokens, *all_keys == row.tokens);

    for key_start in (0..all_keys.len()).step_by(KEY_BLOCK) {
        let keys = key_start..(key_start + KEY_BLOCK).min(all_keys.len());
        let padded = keys.len().next_multiple_of(LANES);
        let at = (all_keys.start + keys.start) * width;
        // Of its own row's keys, queries before the block see none.
        let first_query = if causal { key_start } else { 0 };
        for query_start in (first_query..tokens.len()).step_by(QUERY_BLOCK) {
            let block = query_start..(query_start + QUERY_BLOCK).min(tokens.len());
            let global = tokens.start + block.start..tokens.start + block.end;
            let n = block.len() * shared;

            let queries = sized(&mut scratch.queries, n * dim);
            pack(queries, qkv, global.clone(), width, g, heads, heads.scale());
            let d_out = sized(&mut scratch.d_out, n * dim);
            pack(d_out, d_o, global.clone(), wide, g, heads, 1.0);
            let out = sized(&mut scratch.out, n * dim);
            pack(out, o, global.clone(), wide, g, heads, 1.0);
            let delta = sized(&mut scratch.delta, n);
            for (i, delta) in delta.iter_mut().enumerate() {
                *delta = simd::dot(&out[i * dim..][..dim], &d_out[i * dim..][..dim]);
            }

            // P = exp(S - lse), masked.
            let packed = sized(&mut scratch.keys, dim * padded);
            pack_transposed(
                packed,
                &qkv[at + key_column..],
                width,
                keys.len(),
                dim,
                padded,
            );
            let p = sized(&mut scratch.scores, n * padded);
            small_product(
                p,
                padded,
                [n, dim, padded],
                Matrix::rows(queries, dim),
                Matrix::rows(packed, padded),
                false,
            );
            for (i, p) in p.chunks_exact_mut(padded).enumerate() {
                let (t, head) = (i / shared, g * shared + i % shared);
                let visible = if causal {
                    (block.start + t + 1)
                        .saturating_sub(keys.start)
                        .min(keys.len())
                } else {
                    keys.len()
                };
                let lse = lse[(global.start + t) * heads.queries + head];
                for x in &mut *p {
                    *x = simd::exp(*x - lse);
                }
                p[visible..].fill(0.0);
            }

            // dP = dO V^T, dS = P * (dP - delta).
            pack_transposed(
                packed,
                &qkv[at + value_column..],
                width,
                keys.len(),
                dim,
                padded,
            );
            let d_scores = sized(&mut scratch.d_scores, n * padded);
            small_product(
                d_scores,
                padded,
                [n, dim, padded],
                Matrix::rows(d_out, dim),
                Matrix::rows(packed, padded),
                false,
            );
            for ((ds, p), delta) in d_scores
                .chunks_exact_mut(padded)
                .zip(p.chunks_exact(padded))
                .zip(&*delta)
            {
                for (ds, p) in ds.iter_mut().zip(p) {
                    *ds = p * (*ds - delta);
                }
            }

            // dV += P^T dO, dK += dS^T Q (Q carries the scale), dQ += dS K.
            let d_keys = &mut d_keys[keys.start * d_width..];
            small_product(
                &mut d_keys[d_value_column..],
                d_width,
                [keys.len(), n, dim],
                Matrix::columns(p, padded),
                Matrix::rows(d_out, dim),
                true,
            );
            small_product(
                &mut d_keys[d_key_column..],
                d_width,
                [keys.len(), n, dim],
                Matrix::columns(d_scores, padded),
                Matrix::rows(queries, dim),
                true,
            );
            let d_queries = &mut d_queries[block.start * shared * dim..];
            let key_rows = &qkv[at + key_column..];
            small_product(
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

//! Causal grouped-query attention in blocks (`FlashAttention`, Dao et al. 2022): no score matrix larger than a block is stored.
//!
//! H query heads share G key and value heads of K channels; R = H / G query heads form a group. Training and decoding use one
//! layout: the keys of a row are a list of [`KvSpan`]s that every new token attends to, and the row's own tokens, which are
//! masked causally. Queries of the R heads in a group form one block of rows, so that short rows still fill the registers.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    rope::{Rope, rotate_back},
    simd::{self, LANES, vectorized},
    small_matmul::{Matrix, small_matmul},
};

/// Query tokens per block.
const QUERY_BLOCK: usize = 32;
/// Keys per block.
const KEY_BLOCK: usize = 64;
/// Keys per task of the backward pass, so that a long row keeps many threads busy. Smaller in tests, whose longest rows then have several tasks.
const KEYS_PER_TASK: usize = if cfg!(test) { 100 } else { 512 };

/// The attention heads of a model.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// H.
    pub num_heads: usize,
    /// G.
    pub num_kv_heads: usize,
    /// K.
    pub head_dim: usize,
    /// Tokens that a query attends to, its own the last of them.
    pub window: usize,
    /// Factor of the scores: 1 / sqrt(K) in most models.
    pub scale: f32,
}

impl AttentionShape {
    /// The same heads with a sliding window; without one a query attends to all earlier tokens.
    pub fn with_window(self, window: Option<usize>) -> Self {
        Self {
            window: window.unwrap_or(usize::MAX),
            ..self
        }
    }

    /// Width of a row of q, k and v: (H + 2G) K.
    pub fn qkv_width(self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }

    /// Width of q and k in a row: (H + G) K.
    pub fn qk_width(self) -> usize {
        (self.num_heads + self.num_kv_heads) * self.head_dim
    }

    /// Width of a row of q, and of the output: H K.
    pub fn q_width(self) -> usize {
        self.num_heads * self.head_dim
    }

    /// R.
    fn group_size(self) -> usize {
        self.num_heads / self.num_kv_heads
    }
}

/// Keys and values of consecutive tokens: token t, group g at `t * stride + g * K`.
#[derive(Clone, Copy)]
pub struct KvSpan<'a> {
    /// Keys, after `RoPE`.
    pub keys: &'a [f32],
    /// Values.
    pub values: &'a [f32],
    /// Distance between tokens.
    pub stride: usize,
    /// Number of tokens.
    pub len: usize,
}

/// The queries of one row, and the keys and values that they attend to.
pub struct AttentionRow<'a> {
    /// Indices of the row's new tokens among all new tokens.
    pub tokens: Range<usize>,
    /// Earlier tokens, in order. Every new token attends to all of them.
    pub context: Vec<KvSpan<'a>>,
    /// The row's own tokens, masked causally. The new tokens are the last ones of it.
    pub own: KvSpan<'a>,
}

/// Tokens of a batch that attend causally to each other and to all of `context`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttentionSpan {
    /// The tokens.
    pub tokens: Range<usize>,
    /// Earlier tokens of the same batch, in order.
    pub context: Vec<Range<usize>>,
}

impl AttentionSpan {
    fn context_len(&self) -> usize {
        self.context.iter().map(ExactSizeIterator::len).sum()
    }

    /// The number of tokens of the row before `token`, one of its context or its own.
    fn position(&self, token: usize) -> usize {
        let mut before = 0;
        for range in self.context.iter().chain([&self.tokens]) {
            if range.contains(&token) {
                return before + token - range.start;
            }
            before += range.len();
        }
        before
    }

    /// The context and the span's own tokens, in order, in blocks of [`KEYS_PER_TASK`] keys.
    fn key_blocks(&self) -> Vec<KeyBlock> {
        let mut blocks = vec![KeyBlock::default()];
        let mut room = KEYS_PER_TASK;
        for keys in self.context.iter().chain([&self.tokens]) {
            let mut start = keys.start;
            while start < keys.end {
                if room == 0 {
                    blocks.push(KeyBlock {
                        keys: Vec::new(),
                        // The span's earlier tokens attend to none of these keys.
                        first_query: start.saturating_sub(self.tokens.start),
                    });
                    room = KEYS_PER_TASK;
                }
                let end = keys.end.min(start + room);
                let block = blocks.last_mut().expect("the list starts with one block");
                block.keys.push(start..end);
                room -= end - start;
                start = end;
            }
        }
        blocks
    }

    /// The row that [`forward`] takes, with keys and values from `qkv`.
    pub fn to_row<'a>(&self, qkv: &'a [f32], shape: AttentionShape) -> AttentionRow<'a> {
        let width = shape.qkv_width();
        let span = |tokens: &Range<usize>| {
            // An empty range at the end has no token to point to.
            let from = |column: usize| &qkv[qkv.len().min(tokens.start * width + column)..];
            KvSpan {
                keys: from(shape.q_width()),
                values: from(shape.q_width() + shape.num_kv_heads * shape.head_dim),
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

/// Some keys of a span's context and own tokens, and the first own token that attends to any of them.
#[derive(Default)]
struct KeyBlock {
    keys: Vec<Range<usize>>,
    first_query: usize,
}

impl KeyBlock {
    fn len(&self) -> usize {
        self.keys.iter().map(ExactSizeIterator::len).sum()
    }

    /// Number of query rows, in one group, that attend to any of its keys.
    fn queries(&self, row: &AttentionSpan, shape: AttentionShape) -> usize {
        (row.tokens.len() - self.first_query) * shape.group_size()
    }
}

/// One task of [`forward`]: a block of a row's query tokens, and where their results go.
struct QueryBlock<'a> {
    row: &'a AttentionRow<'a>,
    tokens: Range<usize>,
    o: &'a mut [f32],   // (tokens, H K)
    lse: &'a mut [f32], // (tokens, H)
}

/// Attention of all rows: `o` (T, HK), and `lse` (T, H), the log-sum-exp of each query's scores.
///
/// `qkv` (T, (H + 2G) K) holds the queries, after `RoPE`. The rows cover `0..T` in order.
pub fn forward(
    o: &mut [f32],
    lse: &mut [f32],
    qkv: &[f32],
    rows: &[AttentionRow<'_>],
    shape: AttentionShape,
) {
    let (q_width, num_heads) = (shape.q_width(), shape.num_heads);
    let mut blocks = Vec::new();
    let (mut o, mut lse) = (o, lse);
    for row in rows {
        for start in row.tokens.clone().step_by(QUERY_BLOCK) {
            let tokens = start..(start + QUERY_BLOCK).min(row.tokens.end);
            let (o_block, o_rest) = o.split_at_mut(tokens.len() * q_width);
            let (lse_block, lse_rest) = lse.split_at_mut(tokens.len() * num_heads);
            (o, lse) = (o_rest, lse_rest);
            blocks.push(QueryBlock {
                row,
                tokens,
                o: o_block,
                lse: lse_block,
            });
        }
    }
    blocks
        .into_par_iter()
        .for_each_init(Scratch::default, |scratch, mut block| {
            forward_groups(&mut block, qkv, shape, scratch);
        });
}

vectorized! {
    /// One block of queries, every group.
    fn forward_groups(block: &mut QueryBlock<'_>, qkv: &[f32], shape: AttentionShape, scratch: &mut Scratch) {
        for group in 0..shape.num_kv_heads {
            forward_block(block, qkv, group, shape, scratch);
        }
    }

    /// One task of [`backward`].
    fn backward_key_block(task: KeyBlockTask<'_>, saved: &SavedForward<'_>, scratch: &mut Scratch) {
        let KeyBlockTask { row, block, group, d_queries, mut d_keys } = task;
        let AttentionShape { num_heads, head_dim, .. } = saved.shape;
        let group_size = saved.shape.group_size();
        let tokens = row.tokens.start + block.first_query..row.tokens.end;
        let delta = sized(&mut scratch.delta, tokens.len() * group_size);
        for (delta, t) in delta.chunks_exact_mut(group_size).zip(tokens) {
            for (r, delta) in delta.iter_mut().enumerate() {
                let at = (t * num_heads + group * group_size + r) * head_dim;
                *delta = simd::dot(&saved.o[at..][..head_dim], &saved.d_o[at..][..head_dim]);
            }
        }
        let queries = GroupQueries { row, first: block.first_query, group };
        for keys in &block.keys {
            let (d_these, d_rest) = d_keys.split_at_mut(keys.len() * 2 * head_dim);
            backward_keys(d_queries, d_these, saved, queries, keys, scratch);
            d_keys = d_rest;
        }
    }

    fn rotate_row_back(row: &mut [f32], dim: usize, cos: &[f32], sin: &[f32]) {
        for head in row.chunks_exact_mut(dim) {
            rotate_back(&mut head[..2 * cos.len()], cos, sin);
        }
    }
}

/// Buffers of one task.
#[derive(Default)]
struct Scratch {
    queries: Vec<f32>,  // (QUERY_BLOCK * R, K), scaled
    keys: Vec<f32>,     // (K, KEY_BLOCK), transposed
    values: Vec<f32>,   // (K, KEY_BLOCK), transposed
    scores: Vec<f32>,   // (QUERY_BLOCK * R, KEY_BLOCK)
    out: Vec<f32>,      // (QUERY_BLOCK * R, K)
    max: Vec<f32>,      // (QUERY_BLOCK * R): running maximum
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

/// Copies `columns` of the rows of `source` (T, width) at `tokens`, times `scale`, to `out` (tokens, columns).
#[inline(always)]
fn pack(
    out: &mut [f32],
    source: &[f32],
    width: usize,
    tokens: Range<usize>,
    columns: Range<usize>,
    scale: f32,
) {
    for (out, t) in out.chunks_exact_mut(columns.len()).zip(tokens) {
        for (o, x) in out
            .iter_mut()
            .zip(&source[t * width + columns.start..][..columns.len()])
        {
            *o = x * scale;
        }
    }
}

/// Copies the first `dim` channels of `len` tokens of `source` (`stride` apart), transposed, to `out` (dim, padded); the padding is zero.
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
fn forward_block(
    block: &mut QueryBlock<'_>,
    qkv: &[f32],
    group: usize,
    shape: AttentionShape,
    scratch: &mut Scratch,
) {
    let QueryBlock {
        row,
        tokens,
        o,
        lse,
    } = block;
    let (dim, group_size) = (shape.head_dim, shape.group_size());
    let n = tokens.len() * group_size;
    let queries = sized(&mut scratch.queries, n * dim);
    let columns = group * group_size * dim..(group + 1) * group_size * dim;
    pack(
        queries,
        qkv,
        shape.qkv_width(),
        tokens.clone(),
        columns,
        shape.scale,
    );
    let (out, max, sum) = (
        sized(&mut scratch.out, n * dim),
        sized(&mut scratch.max, n),
        sized(&mut scratch.sum, n),
    );
    out.fill(0.0);
    max.fill(f32::NEG_INFINITY);
    sum.fill(0.0);

    let before = row.own.len - row.tokens.len(); // tokens of the row's own span before the new ones
    let first = before + tokens.start - row.tokens.start; // index in the own span of the block's first query
    let context: usize = row.context.iter().map(|span| span.len).sum();
    let windowed = shape.window != usize::MAX;
    // The position of the first key that query token i of the block attends to.
    let window_start = |i: usize| (context + first + i + 1).saturating_sub(shape.window);
    let mut span_start = 0; // the position of the span's first key
    let spans = row
        .context
        .iter()
        .map(|s| (s, false))
        .chain([(&row.own, true)]);
    for (span, causal) in spans {
        let visible_to_block = if causal {
            first + tokens.len()
        } else {
            span.len
        };
        let first_visible = window_start(0).saturating_sub(span_start);
        for start in (first_visible / KEY_BLOCK * KEY_BLOCK..visible_to_block).step_by(KEY_BLOCK) {
            let len = KEY_BLOCK.min(visible_to_block - start);
            let padded = len.next_multiple_of(LANES);
            let keys = sized(&mut scratch.keys, dim * padded);
            pack_transposed(
                keys,
                &span.keys[start * span.stride + group * dim..],
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
                // Query row i belongs to token i / R, which attends to keys up to itself.
                let visible = if causal {
                    (first + i / group_size + 1).saturating_sub(start).min(len)
                } else {
                    len
                };
                let hidden = if windowed {
                    window_start(i / group_size).saturating_sub(span_start + start)
                } else {
                    0
                };
                if visible <= hidden {
                    scores.fill(0.0);
                    continue;
                }
                let new_max = max[i].max(simd::max(&scores[hidden..visible]));
                let rescale = simd::exp(max[i] - new_max);
                max[i] = new_max;
                for x in scores.iter_mut() {
                    *x = simd::exp(*x - new_max);
                }
                scores[visible..].fill(0.0);
                if windowed {
                    scores[..hidden].fill(0.0);
                }
                sum[i] = sum[i] * rescale + scores.iter().sum::<f32>();
                for x in &mut out[i * dim..][..dim] {
                    *x *= rescale;
                }
            }
            let values = &span.values[start * span.stride + group * dim..];
            small_matmul(
                out,
                dim,
                [n, len, dim],
                Matrix::rows(scores, padded),
                Matrix::rows(values, span.stride),
                true,
            );
        }
        span_start += span.len;
    }
    for i in 0..n {
        let (t, head) = (i / group_size, group * group_size + i % group_size);
        let inverse = 1.0 / sum[i];
        for (o, x) in o[(t * shape.num_heads + head) * dim..][..dim]
            .iter_mut()
            .zip(&out[i * dim..][..dim])
        {
            *o = x * inverse;
        }
        lse[t * shape.num_heads + head] = max[i] + sum[i].ln();
    }
}

/// Results that the forward pass saved for [`backward`], and the gradient of its output.
#[derive(Clone, Copy)]
pub struct SavedForward<'a> {
    /// Gradient of `o` (T, HK).
    pub d_o: &'a [f32],
    /// (T, HK).
    pub o: &'a [f32],
    /// (T, H).
    pub lse: &'a [f32],
    /// (T, (H + 2G) K), after `RoPE`.
    pub qkv: &'a [f32],
    /// The model's heads.
    pub shape: AttentionShape,
}

/// One task of [`backward`]: a block of a row's keys in one group, and where its gradients go. Both are zero at the start.
struct KeyBlockTask<'a> {
    row: &'a AttentionSpan,
    block: &'a KeyBlock,
    group: usize,
    d_queries: &'a mut [f32], // (tokens from `block.first_query` * R, K), without the scale
    d_keys: &'a mut [f32],    // (keys, 2 K): gradients of keys and values
}

/// The queries of a row, from the token numbered `first`, in one group.
#[derive(Clone, Copy)]
struct GroupQueries<'a> {
    row: &'a AttentionSpan,
    first: usize,
    group: usize,
}

/// Floats of the parts that [`backward`] makes for `rows`.
pub fn backward_floats(rows: &[AttentionSpan], shape: AttentionShape) -> usize {
    let parts = rows
        .iter()
        .map(|row| part_len(row, &row.key_blocks(), shape));
    parts.sum::<usize>() * shape.num_kv_heads
}

/// Floats of the part of a row in one group: its keys and values, and its queries for each block of keys.
fn part_len(row: &AttentionSpan, blocks: &[KeyBlock], shape: AttentionShape) -> usize {
    let keys_and_queries = blocks.iter().map(|b| 2 * b.len() + b.queries(row, shape));
    keys_and_queries.sum::<usize>() * shape.head_dim
}

/// Gradient of [`forward`] over a training batch: `d_qkv` (T, (H + 2G) K), with respect to the projections *before* `RoPE`.
/// Every element is written. `positions` has each token's position in its row; without `rope` it doesn't count. `parts` is scratch
/// memory that can be reused.
///
/// Scores are recomputed block by block: P = exp(S - lse), dS = P * (dP - sum(dO * O)). Each task writes its own part of `parts`,
/// for one group of one row: first the gradients of keys and values, (2 K) per token, of the context and then of the row itself;
/// then the gradients of the queries from each block of keys (R K per token from the first that attends to it), without the scale.
/// Parts are summed in a fixed order, so that the result does not depend on the number of threads.
pub fn backward(
    d_qkv: &mut [f32],
    saved: &SavedForward<'_>,
    rows: &[AttentionSpan],
    positions: &[usize],
    rope: Option<&Rope>,
    parts: &mut Vec<f32>,
) {
    let shape = saved.shape;
    let (width, dim) = (shape.qkv_width(), shape.head_dim);
    let rows: Vec<(&AttentionSpan, Vec<KeyBlock>)> =
        rows.iter().map(|row| (row, row.key_blocks())).collect();
    let part_len = |row: &AttentionSpan, blocks: &[KeyBlock]| part_len(row, blocks, shape);
    let all: usize = rows.iter().map(|(row, blocks)| part_len(row, blocks)).sum();
    parts.clear();
    parts.resize(all * shape.num_kv_heads, 0.0);
    let mut tasks = Vec::new();
    let mut rest = &mut parts[..];
    for (row, blocks) in &rows {
        for group in 0..shape.num_kv_heads {
            let (part, after) = rest.split_at_mut(part_len(row, blocks));
            rest = after;
            let num_keys = row.context_len() + row.tokens.len();
            let (mut keys, mut queries) = part.split_at_mut(2 * num_keys * dim);
            for block in blocks {
                let (d_keys, keys_after) = keys.split_at_mut(2 * block.len() * dim);
                let (d_queries, queries_after) =
                    queries.split_at_mut(block.queries(row, shape) * dim);
                (keys, queries) = (keys_after, queries_after);
                tasks.push(KeyBlockTask {
                    row,
                    block,
                    group,
                    d_queries,
                    d_keys,
                });
            }
        }
    }
    tasks
        .into_par_iter()
        .for_each_init(Scratch::default, |scratch, task| {
            backward_key_block(task, saved, scratch);
        });

    let mut tasks = Vec::new();
    let (mut rest, mut parts_rest) = (&mut *d_qkv, &parts[..]);
    for (row, blocks) in &rows {
        let (own, after) = rest.split_at_mut(row.tokens.len() * width);
        let len = part_len(row, blocks) * shape.num_kv_heads;
        let (parts, parts_after) = parts_rest.split_at(len);
        (rest, parts_rest) = (after, parts_after);
        tasks.push((*row, blocks, own, parts));
    }
    let in_order: Vec<_> = tasks
        .iter()
        .map(|(row, .., parts)| (*row, *parts))
        .collect();
    tasks
        .into_par_iter()
        .for_each(|(row, blocks, own, parts)| write_own_grads(own, parts, row, blocks, shape));
    for (row, parts) in in_order {
        add_context_grads(d_qkv, parts, row, shape);
    }
    let Some(rope) = rope else {
        return;
    };
    let rotated = shape.qk_width();
    d_qkv
        .par_chunks_mut(width)
        .zip(positions)
        .with_min_len(8)
        .for_each(|(row, &position)| {
            let (cos, sin) = rope.at(position);
            rotate_row_back(&mut row[..rotated], dim, cos, sin);
        });
}

/// The parts of a row, group by group: gradients of the context's keys and values, of the row's own, and of its queries.
fn split_parts<'a>(
    parts: &'a [f32],
    row: &AttentionSpan,
    shape: AttentionShape,
) -> impl Iterator<Item = [&'a [f32]; 3]> {
    let [context, own] =
        [row.context_len(), row.tokens.len()].map(|keys| keys * 2 * shape.head_dim);
    parts
        .chunks_exact((parts.len() / shape.num_kv_heads).max(1))
        .map(move |part| {
            let (pairs, queries) = part.split_at(context + own);
            let (context, own) = pairs.split_at(context);
            [context, own, queries]
        })
}

/// Writes the gradients of a row's own tokens, every element of their `d_qkv`.
fn write_own_grads(
    d_qkv: &mut [f32],
    parts: &[f32],
    row: &AttentionSpan,
    blocks: &[KeyBlock],
    shape: AttentionShape,
) {
    let (dim, width) = (shape.head_dim, shape.qkv_width());
    let group_width = shape.group_size() * dim;
    let [keys, values] =
        [shape.num_heads, shape.num_heads + shape.num_kv_heads].map(|head| head * dim);
    for (group, [_, pairs, mut queries]) in split_parts(parts, row, shape).enumerate() {
        let tokens = d_qkv.chunks_exact_mut(width);
        for (out, pair) in tokens.zip(pairs.chunks_exact(2 * dim)) {
            out[group * group_width..][..group_width].fill(0.0);
            out[keys + group * dim..][..dim].copy_from_slice(&pair[..dim]);
            out[values + group * dim..][..dim].copy_from_slice(&pair[dim..]);
        }
        for block in blocks {
            let tokens = d_qkv[block.first_query * width..].chunks_exact_mut(width);
            let (of_block, after) = queries.split_at(block.queries(row, shape) * dim);
            for (out, dq) in tokens.zip(of_block.chunks_exact(group_width)) {
                simd::axpy(
                    &mut out[group * group_width..][..group_width],
                    shape.scale,
                    dq,
                );
            }
            queries = after;
        }
    }
}

/// Adds a row's gradients of its context to the keys and values there.
fn add_context_grads(d_qkv: &mut [f32], parts: &[f32], row: &AttentionSpan, shape: AttentionShape) {
    let dim = shape.head_dim;
    for (group, [pairs, ..]) in split_parts(parts, row, shape).enumerate() {
        let tokens = row.context.iter().cloned().flatten();
        for (token, pair) in tokens.zip(pairs.chunks_exact(2 * dim)) {
            let at = token * shape.qkv_width() + (shape.num_heads + group) * dim;
            simd::axpy(&mut d_qkv[at..][..dim], 1.0, &pair[..dim]);
            let at = at + shape.num_kv_heads * dim;
            simd::axpy(&mut d_qkv[at..][..dim], 1.0, &pair[dim..]);
        }
    }
}

/// Adds the gradients of the keys and values of the tokens `all_keys` to `d_keys` (keys, 2 K), and those of the queries to
/// `d_queries` (tokens from `queries.first` * R, K), without the scale.
#[inline(always)]
fn backward_keys(
    d_queries: &mut [f32],
    d_keys: &mut [f32],
    saved: &SavedForward<'_>,
    queries: GroupQueries<'_>,
    all_keys: &Range<usize>,
    scratch: &mut Scratch,
) {
    let SavedForward {
        d_o,
        lse,
        qkv,
        shape,
        ..
    } = *saved;
    let GroupQueries { row, first, group } = queries;
    let (dim, group_size, width) = (shape.head_dim, shape.group_size(), shape.qkv_width());
    let q_width = shape.num_heads * dim;
    let (key_column, value_column) = (
        (shape.num_heads + group) * dim,
        (shape.num_heads + shape.num_kv_heads + group) * dim,
    );
    let columns = group * group_size * dim..(group + 1) * group_size * dim;
    let tokens = &row.tokens;
    let causal = tokens.contains(&all_keys.start);
    let (context, first_key) = (row.context_len(), row.position(all_keys.start));
    let windowed = shape.window != usize::MAX;

    for key_start in (0..all_keys.len()).step_by(KEY_BLOCK) {
        let keys = key_start..(key_start + KEY_BLOCK).min(all_keys.len());
        let padded = keys.len().next_multiple_of(LANES);
        let at = (all_keys.start + keys.start) * width;
        let [keys_transposed, values_transposed] = [
            (&mut scratch.keys, key_column),
            (&mut scratch.values, value_column),
        ]
        .map(|(buffer, column)| {
            let transposed = sized(buffer, dim * padded);
            let source = &qkv[at + column..];
            pack_transposed(transposed, source, width, keys.len(), dim, padded);
            &*transposed
        });
        // Earlier queries of the same row attend to none of these keys.
        let first_query = if causal {
            all_keys.start + keys.start - tokens.start
        } else {
            0
        };
        // The window of later queries ends behind these keys.
        let last_key = first_key + keys.end - 1;
        let end = last_key
            .saturating_add(shape.window)
            .saturating_sub(context);
        let end = end.min(tokens.len());
        for query_start in (first_query..end).step_by(QUERY_BLOCK) {
            let block = query_start..(query_start + QUERY_BLOCK).min(end);
            let global = tokens.start + block.start..tokens.start + block.end;
            let n = block.len() * group_size;

            let queries = sized(&mut scratch.queries, n * dim);
            pack(
                queries,
                qkv,
                width,
                global.clone(),
                columns.clone(),
                shape.scale,
            );
            let d_out = sized(&mut scratch.d_out, n * dim);
            pack(d_out, d_o, q_width, global.clone(), columns.clone(), 1.0);

            // P = exp(S - lse), masked.
            let p = sized(&mut scratch.scores, n * padded);
            small_matmul(
                p,
                padded,
                [n, dim, padded],
                Matrix::rows(queries, dim),
                Matrix::rows(keys_transposed, padded),
                false,
            );
            for (i, p) in p.chunks_exact_mut(padded).enumerate() {
                let (t, head) = (i / group_size, group * group_size + i % group_size);
                let visible = if causal {
                    (block.start + t + 1 - first_query).min(keys.len())
                } else {
                    keys.len()
                };
                let lse = lse[(global.start + t) * shape.num_heads + head];
                for x in &mut *p {
                    *x = simd::exp(*x - lse);
                }
                p[visible..].fill(0.0);
                if windowed {
                    let window_start = (context + block.start + t + 1).saturating_sub(shape.window);
                    let hidden = window_start.saturating_sub(first_key + keys.start);
                    p[..hidden.min(keys.len())].fill(0.0);
                }
            }

            // dP = dO V^T, dS = P * (dP - delta).
            let d_scores = sized(&mut scratch.d_scores, n * padded);
            small_matmul(
                d_scores,
                padded,
                [n, dim, padded],
                Matrix::rows(d_out, dim),
                Matrix::rows(values_transposed, padded),
                false,
            );
            for ((ds, p), delta) in d_scores
                .chunks_exact_mut(padded)
                .zip(p.chunks_exact(padded))
                .zip(&scratch.delta[(block.start - first) * group_size..])
            {
                for (ds, p) in ds.iter_mut().zip(p) {
                    *ds = p * (*ds - delta);
                }
            }

            // dV += P^T dO, dK += dS^T Q (Q is scaled already), dQ += dS K.
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
            let d_queries = &mut d_queries[(block.start - first) * group_size * dim..];
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

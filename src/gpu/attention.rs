//! Causal grouped-query attention in blocks (`FlashAttention`, Dao et al. 2022): no score matrix larger than a block is stored.
//!
//! H query heads share G key and value heads of K channels; R = H / G query heads form a group. T tokens. Training and decoding use
//! one layout: the keys of a row are a list of ranges, the row's own tokens last, and a token attends to those at its own position
//! and before. A query row is one token and one head of a group; 64 of them form a block.
//!
//! The backward pass has no atomics: one kernel over blocks of query rows writes dQ, one over blocks of keys writes dK and dV and
//! walks all query rows that attend to its keys, in an order that the host fixes. Where these are many, several workgroups share
//! them, and their results are added in order.

use std::ops::Range;

use bytemuck::NoUninit;

#[cfg(test)]
mod tests;

use crate::gpu::{
    adapters::AdapterKind,
    buffer::{Binding, GpuBuffer},
    context::{Gpu, Kernel, grid},
    error::GpuError,
};

/// Query rows per block.
const ROWS: usize = 64;
/// Tiles of query rows that a workgroup of the backward pass walks, unless told otherwise.
const MAX_TILES: usize = 16;
/// Keys that a workgroup of the decoding kernel attends to.
const PART_KEYS: [usize; 3] = [256, 128, 64];
/// Workgroups that fill a large device.
const ENOUGH_WORKGROUPS: usize = 256;
/// Rows with fewer queries per group go to the decoding kernel.
const DECODE_QUERIES: usize = 16;
/// Query heads of a group that a workgroup of the decoding kernel takes, at most.
const MAX_DECODE_ROWS: usize = 8;
/// The window of a layer without one.
const NO_WINDOW: u32 = 0x3fff_ffff;
/// Elements of memory that is small.
const SMALL: usize = 1 << 20;
/// Mark of a task that writes its result itself.
const DIRECT: u32 = u32::MAX;

/// The attention heads of a model.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// H.
    pub num_heads: usize,
    /// G.
    pub num_kv_heads: usize,
    /// K, a multiple of 4, at most 256.
    pub head_dim: usize,
    /// Tokens that a query attends to, its own the last of them; `None` for all earlier ones.
    pub window: Option<usize>,
    /// Factor of the scores: 1 / sqrt(K) in most models.
    pub scale: f32,
}

impl AttentionShape {
    /// Width of a row of q, k and v: (H + 2G) K.
    pub fn qkv_width(self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }

    /// Width of a row of q, and of the output: H K.
    pub fn q_width(self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Width of a row of k, and of v: G K.
    pub fn kv_width(self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// R.
    pub fn group_size(self) -> usize {
        self.num_heads / self.num_kv_heads
    }

    fn check(self) -> Result<Self, GpuError> {
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(4) {
            return Err(GpuError::Shape {
                what: "attention: channels of a head, a multiple of 4",
                expected: self.head_dim.next_multiple_of(4).max(4),
                got: self.head_dim,
            });
        }
        if self.head_dim > 256 {
            return Err(GpuError::LimitTooSmall {
                what: "attention (channels of a head)".to_owned(),
                needed: self.head_dim as u64,
                limit: 256,
            });
        }
        if self.num_kv_heads == 0 || !self.num_heads.is_multiple_of(self.num_kv_heads) {
            return Err(GpuError::Shape {
                what: "attention: heads, a multiple of the key heads",
                expected: self.num_heads.next_multiple_of(self.num_kv_heads.max(1)),
                got: self.num_heads,
            });
        }
        Ok(self)
    }

    /// Vectors of four channels.
    fn vectors(self) -> u32 {
        self.head_dim as u32 / 4
    }

    /// Index of the kernels for this K.
    fn variant(self) -> usize {
        self.head_dim.div_ceil(64) - 1
    }

    /// Keys per block of the backward pass.
    fn key_block(self) -> usize {
        if self.variant() < 2 { 64 } else { 32 }
    }

    fn window(self) -> u32 {
        let given = self.window.and_then(|w| u32::try_from(w).ok());
        given.map_or(NO_WINDOW, |w| w.clamp(1, NO_WINDOW))
    }
}

/// The queries of one row, and the keys and values that they attend to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttentionRow {
    /// Indices of the row's new tokens among all new tokens.
    pub tokens: Range<usize>,
    /// Tokens (or slots of a cache) of all keys, in order. Those of the new tokens are the last ones.
    pub keys: Vec<Range<usize>>,
}

impl AttentionRow {
    fn num_keys(&self) -> usize {
        self.keys.iter().map(ExactSizeIterator::len).sum()
    }

    /// The position of the first new token.
    fn position(&self) -> usize {
        self.num_keys() - self.tokens.len()
    }

    fn check(&self) -> Result<(), GpuError> {
        if self.num_keys() < self.tokens.len() {
            return Err(GpuError::Shape {
                what: "attention: keys of a row",
                expected: self.tokens.len(),
                got: self.num_keys(),
            });
        }
        Ok(())
    }
}

/// Memory on the device that is written anew for every batch, and grows if it must.
#[derive(Default)]
pub(crate) struct Reused(Option<GpuBuffer>);

impl Reused {
    /// At least `len` elements, and at least four. Small ones get a quarter more than they need, since the next batch may be larger.
    pub(crate) fn reserve(&mut self, gpu: &Gpu, len: usize) -> Result<&GpuBuffer, GpuError> {
        let len = len.max(4);
        let fits = |buffer: &GpuBuffer| buffer.len() >= len;
        if !self.0.as_ref().is_some_and(fits) {
            self.0 = None;
            let more = if len < SMALL { len / 4 } else { 0 };
            self.0 = Some(gpu.zeros((len + more).next_multiple_of(4))?);
        }
        self.get()
    }

    pub(crate) fn upload(&mut self, gpu: &Gpu, data: &[u32]) -> Result<(), GpuError> {
        let buffer = self.reserve(gpu, data.len())?;
        gpu.write_u32(buffer, 0, data)
    }

    /// The memory, if `reserve` was called.
    pub(crate) fn get(&self) -> Result<&GpuBuffer, GpuError> {
        self.0.as_ref().ok_or(GpuError::Shape {
            what: "a plan that was not prepared",
            expected: 1,
            got: 0,
        })
    }
}

/// Blocks of query rows, and the ranges of their keys, as the kernels read them.
#[derive(Default)]
struct QueryBlocks {
    plan: Reused,
    count: usize,
}

impl QueryBlocks {
    /// The blocks of `rows`, those with most keys first, so that no long one is left at the end.
    fn prepare<'r>(
        &mut self,
        gpu: &Gpu,
        rows: impl Iterator<Item = &'r AttentionRow>,
        group_size: usize,
    ) -> Result<(), GpuError> {
        let mut blocks: Vec<[u32; 6]> = Vec::new();
        let mut ranges: Vec<u32> = Vec::new();
        for row in rows {
            let (first_range, position) = (ranges.len() / 3, row.position());
            push_ranges(&mut ranges, &row.keys, 0..row.num_keys());
            let num_ranges = ranges.len() / 3 - first_range;
            let queries = row.tokens.len() * group_size;
            for start in (0..queries).step_by(ROWS) {
                blocks.push([
                    row.tokens.start as u32,
                    start as u32,
                    ROWS.min(queries - start) as u32,
                    position as u32,
                    first_range as u32,
                    num_ranges as u32,
                ]);
            }
        }
        let keys = |b: &[u32; 6]| b[3] + (b[1] + b[2]) / group_size as u32;
        blocks.sort_by_key(|block| std::cmp::Reverse(keys(block)));
        self.count = blocks.len();
        let plan = [blocks.as_flattened(), &ranges].concat();
        self.plan.upload(gpu, &plan)
    }

    /// Where the ranges begin.
    fn ranges(&self) -> u32 {
        self.count as u32 * 6
    }
}

/// Appends first slot, length and position of the keys numbered `wanted`.
fn push_ranges(out: &mut Vec<u32>, keys: &[Range<usize>], wanted: Range<usize>) {
    let mut position = 0;
    for range in keys {
        let start = wanted.start.max(position);
        let end = wanted.end.min(position + range.len());
        if start < end {
            out.extend([
                (range.start + start - position) as u32,
                (end - start) as u32,
                start as u32,
            ]);
        }
        position += range.len();
    }
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct TileParams {
    q_stride: u32,
    k_stride: u32,
    v_stride: u32,
    o_stride: u32,
    k_offset: u32,
    v_offset: u32,
    heads: u32,
    groups: u32,
    group_size: u32,
    dim: u32,
    count: u32,
    ranges: u32,
    window: u32,
    scale: f32,
}

impl TileParams {
    /// Queries, keys and values in one array (T, (H + 2G) K).
    fn packed(shape: AttentionShape, count: usize, ranges: u32) -> Self {
        let dim = shape.vectors();
        let (heads, groups) = (shape.num_heads as u32, shape.num_kv_heads as u32);
        let width = (heads + 2 * groups) * dim;
        Self {
            q_stride: width,
            k_stride: width,
            v_stride: width,
            o_stride: heads * dim,
            k_offset: heads * dim,
            v_offset: (heads + groups) * dim,
            heads,
            groups,
            group_size: shape.group_size() as u32,
            dim,
            count: count as u32,
            ranges,
            window: shape.window(),
            scale: shape.scale,
        }
    }

    /// Keys and values in the arrays of a cache (slots, G K).
    fn cached(self) -> Self {
        let stride = self.groups * self.dim;
        Self {
            k_stride: stride,
            v_stride: stride,
            k_offset: 0,
            v_offset: 0,
            ..self
        }
    }
}

/// The kernels in `$file` for K up to 64, 128, 192 and 256. Larger K leave fewer registers for keys.
macro_rules! by_head_dim {
    ($file:literal) => {
        [
            by_head_dim!(@ "1u", "32u", "4u", $file),
            by_head_dim!(@ "2u", "16u", "4u", $file),
            by_head_dim!(@ "3u", "8u", "2u", $file),
            by_head_dim!(@ "4u", "8u", "2u", $file),
        ]
    };
    (@ $columns:literal, $staged:literal, $own:literal, $file:literal) => {
        concat!(
            "const COLUMNS = ", $columns, ";\nconst STAGED = ", $staged, ";\nconst OWN = ", $own, ";\n",
            include_str!("attention_tile.wgsl"),
            include_str!($file)
        )
    };
}

static FORWARD: [&str; 4] = by_head_dim!("attention_forward.wgsl");
static BACKWARD_QUERIES: [&str; 4] = by_head_dim!("attention_backward_queries.wgsl");
static BACKWARD_KEYS: [&str; 4] = by_head_dim!("attention_backward_keys.wgsl");

/// The decoding kernel for 1, 2, 4 and 8 query heads of a group.
static DECODE: [&str; 4] = [
    concat!("const ROWS = 1u;\n", include_str!("attention_decode.wgsl")),
    concat!("const ROWS = 2u;\n", include_str!("attention_decode.wgsl")),
    concat!("const ROWS = 4u;\n", include_str!("attention_decode.wgsl")),
    concat!("const ROWS = 8u;\n", include_str!("attention_decode.wgsl")),
];

/// A kernel of tiles.
fn tile_kernel(
    gpu: &Gpu,
    label: &'static str,
    source: &'static str,
    entry: &'static str,
) -> Kernel<'static> {
    let rolled = gpu.report().kind == AdapterKind::Software;
    Kernel {
        constants: if rolled { &[("ROLLED", 1.0)] } else { &[] },
        ..kernel(label, source, entry)
    }
}

fn kernel(label: &'static str, source: &'static str, entry: &'static str) -> Kernel<'static> {
    Kernel {
        label,
        source,
        entry,
        constants: &[],
    }
}

/// A grid of `count` blocks for each of `groups`.
fn block_grid(count: usize, groups: usize) -> [u32; 3] {
    if count == 0 {
        return [0; 3];
    }
    let [x, y, _] = grid(count);
    [x, y, groups as u32]
}

/// Checks that a range has the elements that an operation reads or writes.
pub(crate) fn at_least<'a>(
    what: &'static str,
    binding: Binding<'a>,
    expected: usize,
) -> Result<Binding<'a>, GpuError> {
    if binding.len < expected {
        return Err(GpuError::Shape {
            what,
            expected,
            got: binding.len,
        });
    }
    Ok(binding)
}

/// Attention over the packed rows of one training batch, for all layers of a model. Its memory can be used again for later batches.
#[derive(Default)]
pub struct TrainingPlan {
    blocks: QueryBlocks,
    keys: Reused,
    num_tasks: usize,
    task_ranges: u32, // where ranges of queries begin in `keys`
    sums: u32,        // where the blocks with several parts begin in `keys`
    num_sums: usize,
    num_parts: usize,
    tokens: usize, // T
    shape: Option<AttentionShape>,
    delta: Reused, // (T, H)
    parts: Reused, // (parts, G, keys of a block, 2, K)
}

impl TrainingPlan {
    /// Plans attention over `rows`, which cover the tokens 0..T in order; their keys are tokens of the same batch. Layers may differ
    /// in window and scale.
    ///
    /// # Errors
    /// [`GpuError::Shape`] for rows or heads that do not fit; those of [`Gpu::write`].
    pub fn prepare(
        &mut self,
        gpu: &Gpu,
        rows: &[AttentionRow],
        shape: AttentionShape,
    ) -> Result<(), GpuError> {
        self.prepare_with(gpu, rows, shape, MAX_TILES)
    }

    /// As [`TrainingPlan::prepare`], with the number of tiles after which the queries of a key block are shared.
    pub(crate) fn prepare_with(
        &mut self,
        gpu: &Gpu,
        rows: &[AttentionRow],
        shape: AttentionShape,
        max_tiles: usize,
    ) -> Result<(), GpuError> {
        let shape = shape.check()?;
        let mut tokens = 0;
        for row in rows {
            row.check()?;
            if row.tokens.start != tokens {
                return Err(GpuError::Shape {
                    what: "attention: first token of a row",
                    expected: tokens,
                    got: row.tokens.start,
                });
            }
            tokens = row.tokens.end.max(tokens);
        }
        if let Some(range) = rows.iter().flat_map(|r| &r.keys).find(|k| k.end > tokens) {
            return Err(GpuError::Shape {
                what: "attention: tokens of the batch",
                expected: range.end,
                got: tokens,
            });
        }
        self.blocks.prepare(gpu, rows.iter(), shape.group_size())?;
        self.prepare_keys(gpu, rows, shape, max_tiles)?;
        self.delta.reserve(gpu, tokens * shape.num_heads)?;
        let part = shape.kv_width() * shape.key_block() * 2;
        self.parts.reserve(gpu, self.num_parts * part)?;
        (self.tokens, self.shape) = (tokens, Some(shape));
        Ok(())
    }

    /// Tasks of the kernel over key blocks: which query rows attend to which keys of a block.
    fn prepare_keys(
        &mut self,
        gpu: &Gpu,
        rows: &[AttentionRow],
        shape: AttentionShape,
        max_tiles: usize,
    ) -> Result<(), GpuError> {
        let (group_size, block_len) = (shape.group_size(), shape.key_block());
        // The tokens in blocks, and of each block the query rows that attend to it.
        let mut blocks: Vec<(Range<usize>, Vec<[u32; 7]>)> = Vec::new();
        for row in rows {
            for start in row.tokens.clone().step_by(block_len) {
                let end = row.tokens.end.min(start + block_len);
                blocks.push((start..end, Vec::new()));
            }
        }
        for row in rows {
            let query_position = row.position();
            let end_row = row.tokens.len() * group_size;
            let mut position = 0;
            for keys in &row.keys {
                let first_block = blocks.partition_point(|(block, _)| block.end <= keys.start);
                for (block, queries) in &mut blocks[first_block..] {
                    if block.start >= keys.end {
                        break;
                    }
                    let first = keys.start.max(block.start);
                    let end = keys.end.min(block.end);
                    // Earlier tokens of the row come before all of these keys.
                    let first_position = position + first - keys.start;
                    let start_row = first_position.saturating_sub(query_position) * group_size;
                    if first < end && start_row < end_row {
                        // Of the block's first key, which may be before the row's: then it wraps around.
                        let block_position = (position + block.start).wrapping_sub(keys.start);
                        queries.push([
                            (first - block.start) as u32,
                            (end - block.start) as u32,
                            block_position as u32,
                            row.tokens.start as u32,
                            query_position as u32,
                            start_row as u32,
                            end_row as u32,
                        ]);
                    }
                }
                position += keys.len();
            }
        }

        let (mut tasks, mut ranges, mut sums) = (Vec::new(), Vec::new(), Vec::new());
        let mut num_parts = 0;
        for (block, queries) in &blocks {
            let pieces = split_queries(queries, max_tiles);
            let mut part = DIRECT;
            if pieces.len() > 1 {
                part = num_parts as u32;
                let of_block = [block.start, block.len(), num_parts, pieces.len()];
                sums.extend(of_block.map(|x| x as u32));
                num_parts += pieces.len();
            }
            for piece in pieces {
                let tiles: usize = piece.iter().map(tiles).sum();
                let task = [
                    block.start as u32,
                    block.len() as u32,
                    (ranges.len() / 7) as u32,
                    piece.len() as u32,
                    part,
                ];
                tasks.push((tiles, task));
                ranges.extend_from_slice(piece.as_flattened());
                part = if part == DIRECT { DIRECT } else { part + 1 };
            }
        }
        tasks.sort_by_key(|(tiles, _)| std::cmp::Reverse(*tiles));
        let mut plan: Vec<u32> = tasks.iter().flat_map(|(_, task)| *task).collect();
        self.num_tasks = tasks.len();
        self.task_ranges = plan.len() as u32;
        plan.extend(&ranges);
        self.sums = plan.len() as u32;
        plan.extend(&sums);
        self.num_sums = sums.len() / 4;
        self.num_parts = num_parts;
        self.keys.upload(gpu, &plan)
    }

    /// The shape, if it is that of the plan.
    fn checked(&self, shape: AttentionShape) -> Result<AttentionShape, GpuError> {
        let shape = shape.check()?;
        let planned = self.shape.unwrap_or(AttentionShape {
            num_heads: 0,
            ..shape
        });
        for (what, expected, got) in [
            ("attention: heads", planned.num_heads, shape.num_heads),
            (
                "attention: key heads",
                planned.num_kv_heads,
                shape.num_kv_heads,
            ),
            ("attention: channels", planned.head_dim, shape.head_dim),
        ] {
            if expected != got {
                return Err(GpuError::Shape {
                    what,
                    expected,
                    got,
                });
            }
        }
        Ok(shape)
    }
}

/// Tiles of query rows in a range.
fn tiles(queries: &[u32; 7]) -> usize {
    (queries[6] - queries[5]).div_ceil(ROWS as u32) as usize
}

/// `queries` in pieces of `max_tiles` tiles.
fn split_queries(queries: &[[u32; 7]], max_tiles: usize) -> Vec<Vec<[u32; 7]>> {
    let mut pieces = vec![Vec::new()];
    let mut room = max_tiles.max(1);
    for range in queries {
        let mut rest = *range;
        while rest[5] < rest[6] {
            if room == 0 {
                pieces.push(Vec::new());
                room = max_tiles.max(1);
            }
            let end = rest[6].min(rest[5].saturating_add((room * ROWS) as u32));
            let piece = [rest[0], rest[1], rest[2], rest[3], rest[4], rest[5], end];
            room -= tiles(&piece);
            pieces.last_mut().expect("it starts with one").push(piece);
            rest[5] = end;
        }
    }
    pieces
}

/// Attention of all rows: `o` (T, HK), and `lse` (T, H), the log-sum-exp of each query's scores.
///
/// softmax(scale Q K^T) V over the keys that each query attends to. `qkv` (T, (H + 2G) K) holds queries and keys after `RoPE`, and
/// values.
///
/// # Errors
/// [`GpuError::Shape`] if the plan is for other heads, or a range is too short; those of [`Gpu::dispatch`].
pub fn forward(
    gpu: &Gpu,
    plan: &TrainingPlan,
    qkv: Binding<'_>,
    o: Binding<'_>,
    lse: Binding<'_>,
    shape: AttentionShape,
) -> Result<(), GpuError> {
    let shape = plan.checked(shape)?;
    let t = plan.tokens;
    let qkv = at_least("attention: qkv", qkv, t * shape.qkv_width())?;
    let o = at_least("attention: o", o, t * shape.q_width())?;
    let lse = at_least("attention: lse", lse, t * shape.num_heads)?;
    let blocks = &plan.blocks;
    let source = FORWARD[shape.variant()];
    gpu.dispatch(
        &tile_kernel(gpu, "attention, forward", source, "forward"),
        &[qkv, qkv, qkv, blocks.plan.get()?.all(), o, lse],
        &TileParams::packed(shape, blocks.count, blocks.ranges()),
        block_grid(blocks.count, shape.num_kv_heads),
    )
}

/// Results that the forward pass saved for [`backward`], and the gradient of its output.
#[derive(Clone, Copy)]
pub struct SavedForward<'a> {
    /// Gradient of `o` (T, HK).
    pub d_o: Binding<'a>,
    /// (T, HK).
    pub o: Binding<'a>,
    /// (T, H).
    pub lse: Binding<'a>,
    /// (T, (H + 2G) K), after `RoPE`.
    pub qkv: Binding<'a>,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct DeltaParams {
    rows: u32,
    dim: u32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct AddPartsParams {
    count: u32,
    blocks: u32,
    block: u32,
    groups: u32,
    dim: u32,
    stride: u32,
    k_offset: u32,
    v_offset: u32,
}

/// Gradient of [`forward`]: `d_qkv` (T, (H + 2G) K), with respect to `qkv` after `RoPE`. Every element is written.
///
/// Scores are recomputed block by block: P = exp(S - lse), dS = P * (dP - sum(dO * O)).
///
/// # Errors
/// As [`forward`].
pub fn backward(
    gpu: &Gpu,
    plan: &TrainingPlan,
    saved: SavedForward<'_>,
    d_qkv: Binding<'_>,
    shape: AttentionShape,
) -> Result<(), GpuError> {
    let shape = plan.checked(shape)?;
    let t = plan.tokens;
    let qkv = at_least("attention: qkv", saved.qkv, t * shape.qkv_width())?;
    let d_qkv = at_least("attention: d_qkv", d_qkv, t * shape.qkv_width())?;
    let o = at_least("attention: o", saved.o, t * shape.q_width())?;
    let d_o = at_least("attention: d_o", saved.d_o, t * shape.q_width())?;
    let lse = at_least("attention: lse", saved.lse, t * shape.num_heads)?;
    let delta = plan.delta.get()?.all();
    let rows = t * shape.num_heads;
    if rows == 0 {
        return Ok(());
    }
    gpu.dispatch(
        &kernel(
            "attention, delta",
            include_str!("attention_delta.wgsl"),
            "delta_rows",
        ),
        &[o, d_o, delta],
        &DeltaParams {
            rows: rows as u32,
            dim: shape.vectors(),
        },
        grid(rows.div_ceil(16)),
    )?;
    let blocks = &plan.blocks;
    gpu.dispatch(
        &tile_kernel(
            gpu,
            "attention, gradient of queries",
            BACKWARD_QUERIES[shape.variant()],
            "backward_queries",
        ),
        &[qkv, blocks.plan.get()?.all(), d_o, lse, delta, d_qkv],
        &TileParams::packed(shape, blocks.count, blocks.ranges()),
        block_grid(blocks.count, shape.num_kv_heads),
    )?;
    let (keys, parts) = (plan.keys.get()?.all(), plan.parts.get()?.all());
    let params = TileParams::packed(shape, plan.num_tasks, plan.task_ranges);
    gpu.dispatch(
        &tile_kernel(
            gpu,
            "attention, gradient of keys",
            BACKWARD_KEYS[shape.variant()],
            "backward_keys",
        ),
        &[qkv, keys, d_o, lse, delta, d_qkv, parts],
        &params,
        block_grid(plan.num_tasks, shape.num_kv_heads),
    )?;
    gpu.dispatch(
        &kernel(
            "attention, sums of gradients",
            include_str!("attention_add_parts.wgsl"),
            "add_parts",
        ),
        &[keys, parts, d_qkv],
        &AddPartsParams {
            count: plan.num_sums as u32,
            blocks: plan.sums,
            block: shape.key_block() as u32,
            groups: params.groups,
            dim: params.dim,
            stride: params.k_stride,
            k_offset: params.k_offset,
            v_offset: params.v_offset,
        },
        block_grid(plan.num_sums, shape.num_kv_heads),
    )
}

/// Attention of new tokens to a KV cache, for all layers of a model. Its memory can be used again for the next tokens.
///
/// Rows with few new tokens are computed one token at a time, their keys shared among several workgroups where these would be too
/// few otherwise; the others in blocks as in training.
#[derive(Default)]
pub struct DecodingPlan {
    blocks: QueryBlocks,
    tasks: Reused,
    num_tasks: usize,
    task_ranges: u32,
    split: u32, // where the tokens with several parts begin in `tasks`
    num_split: usize,
    tokens: usize,
    slots: usize, // the slot after the last that is read
    shape: Option<AttentionShape>,
    lse: Reused,      // (T, H), of the blocks
    parts: Reused,    // (parts, H, K)
    part_lse: Reused, // (parts, H)
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct DecodeParams {
    q_stride: u32,
    kv_stride: u32,
    heads: u32,
    groups: u32,
    group_size: u32,
    dim: u32,
    count: u32,
    ranges: u32,
    window: u32,
    scale: f32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct CombineParams {
    heads: u32,
    dim: u32,
    count: u32,
    tokens: u32,
}

impl DecodingPlan {
    /// Plans attention of `rows`, whose keys are slots of a cache. Layers may differ in window and scale.
    ///
    /// # Errors
    /// [`GpuError::Shape`] for rows or heads that do not fit; those of [`Gpu::write`].
    pub fn prepare(
        &mut self,
        gpu: &Gpu,
        rows: &[AttentionRow],
        shape: AttentionShape,
    ) -> Result<(), GpuError> {
        let shape = shape.check()?;
        for row in rows {
            row.check()?;
        }
        let group_size = shape.group_size();
        let is_short = |row: &&AttentionRow| row.tokens.len() * group_size < DECODE_QUERIES;
        self.blocks
            .prepare(gpu, rows.iter().filter(|row| !is_short(row)), group_size)?;

        // (token, its position, its row)
        let tokens: Vec<(usize, usize, &AttentionRow)> = rows
            .iter()
            .filter(is_short)
            .flat_map(|row| {
                let positions = row.position()..;
                row.tokens
                    .clone()
                    .zip(positions)
                    .map(move |(t, p)| (t, p, row))
            })
            .collect();
        let groups = shape.num_kv_heads * group_size.div_ceil(MAX_DECODE_ROWS);
        let workgroups = |keys: usize| -> usize {
            let parts = tokens.iter().map(|(_, p, _)| (p + 1).div_ceil(keys));
            parts.sum::<usize>() * groups
        };
        let enough = |keys: &usize| workgroups(*keys) >= ENOUGH_WORKGROUPS;
        let smallest = PART_KEYS[PART_KEYS.len() - 1];
        let part_keys = PART_KEYS.into_iter().find(enough).unwrap_or(smallest);

        let (mut tasks, mut ranges, mut split) = (Vec::new(), Vec::new(), Vec::new());
        let mut num_parts = 0;
        for (token, position, row) in tokens {
            let keys = position + 1;
            let parts = keys.div_ceil(part_keys);
            let mut part = DIRECT;
            if parts > 1 {
                part = num_parts as u32;
                split.extend([token, num_parts, parts].map(|x| x as u32));
                num_parts += parts;
            }
            for start in (0..keys).step_by(part_keys) {
                let end = keys.min(start + part_keys);
                let first_range = ranges.len() / 3;
                push_ranges(&mut ranges, &row.keys, start..end);
                tasks.extend([
                    token as u32,
                    position as u32,
                    first_range as u32,
                    (ranges.len() / 3 - first_range) as u32,
                    (end - start) as u32,
                    part,
                ]);
                part = if part == DIRECT { DIRECT } else { part + 1 };
            }
        }
        self.num_tasks = tasks.len() / 6;
        self.task_ranges = tasks.len() as u32;
        tasks.extend(&ranges);
        self.split = tasks.len() as u32;
        self.num_split = split.len() / 3;
        tasks.extend(&split);
        self.tasks.upload(gpu, &tasks)?;
        let ends = |end: fn(&AttentionRow) -> usize| rows.iter().map(end).max().unwrap_or(0);
        self.tokens = ends(|row| row.tokens.end);
        self.slots = ends(|row| row.keys.iter().map(|k| k.end).max().unwrap_or(0));
        self.lse.reserve(gpu, self.tokens * shape.num_heads)?;
        self.parts.reserve(gpu, num_parts * shape.q_width())?;
        self.part_lse.reserve(gpu, num_parts * shape.num_heads)?;
        self.shape = Some(shape);
        Ok(())
    }

    /// Attention of the new tokens: `o` (T, HK). `qkv` (T, (H + 2G) K) holds their queries, after `RoPE`; `keys` and `values`
    /// (slots, G K) are those of the cache, where the new tokens' own already are.
    ///
    /// # Errors
    /// As [`forward`].
    pub fn attend(
        &self,
        gpu: &Gpu,
        qkv: Binding<'_>,
        [keys, values]: [Binding<'_>; 2],
        o: Binding<'_>,
        shape: AttentionShape,
    ) -> Result<(), GpuError> {
        let shape = shape.check()?;
        let planned = self.shape.map_or(0, AttentionShape::qkv_width);
        if planned != shape.qkv_width() {
            return Err(GpuError::Shape {
                what: "attention: width of qkv",
                expected: planned,
                got: shape.qkv_width(),
            });
        }
        let qkv = at_least("attention: qkv", qkv, self.tokens * shape.qkv_width())?;
        let o = at_least("attention: o", o, self.tokens * shape.q_width())?;
        let keys = at_least("attention: keys", keys, self.slots * shape.kv_width())?;
        let values = at_least("attention: values", values, self.slots * shape.kv_width())?;
        let blocks = &self.blocks;
        let params = TileParams::packed(shape, blocks.count, blocks.ranges()).cached();
        let plan = blocks.plan.get()?.all();
        gpu.dispatch(
            &tile_kernel(
                gpu,
                "attention, forward",
                FORWARD[shape.variant()],
                "forward",
            ),
            &[qkv, keys, values, plan, o, self.lse.get()?.all()],
            &params,
            block_grid(blocks.count, shape.num_kv_heads),
        )?;

        let (plan, parts) = (self.tasks.get()?.all(), self.parts.get()?.all());
        let part_lse = self.part_lse.get()?.all();
        let group_size = shape.group_size();
        let rows = group_size.next_power_of_two().min(MAX_DECODE_ROWS);
        gpu.dispatch(
            &kernel(
                "attention, decoding",
                DECODE[rows.trailing_zeros() as usize],
                "decode",
            ),
            &[qkv, keys, values, plan, o, parts, part_lse],
            &DecodeParams {
                q_stride: params.q_stride,
                kv_stride: params.k_stride,
                heads: params.heads,
                groups: params.groups,
                group_size: params.group_size,
                dim: params.dim,
                count: self.num_tasks as u32,
                ranges: self.task_ranges,
                window: params.window,
                scale: params.scale,
            },
            block_grid(
                self.num_tasks,
                shape.num_kv_heads * group_size.div_ceil(rows),
            ),
        )?;
        gpu.dispatch(
            &kernel(
                "attention, parts",
                include_str!("attention_combine.wgsl"),
                "combine",
            ),
            &[plan, parts, part_lse, o],
            &CombineParams {
                heads: params.heads,
                dim: params.dim,
                count: self.num_split as u32,
                tokens: self.split,
            },
            block_grid(self.num_split, 1),
        )
    }
}

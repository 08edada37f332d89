//! RMS norms, biases, and their gradients.
//!
//! T tokens, D hidden, N columns, H query heads and G key heads of K channels.

use crate::gpu::{
    buffer::Binding,
    context::{Gpu, Kernel, grid},
    elementwise::{expect_len, row_pieces},
    error::GpuError,
};

const NORMS: &str = include_str!("norms.wgsl");
const QK_NORMS: &str = include_str!("qk_norms.wgsl");
const COLUMNS: &str = include_str!("columns.wgsl");
const BIAS: &str = include_str!("bias.wgsl");

/// Invocations of a workgroup.
const THREADS: usize = 256;

/// Invocations that share a row of `width` columns.
fn lanes(width: usize) -> usize {
    (width / 8).next_power_of_two().clamp(8, THREADS)
}

/// The weight of a norm as it is stored. `offset` is added to it: gemma3 stores the weight less 1.
#[derive(Clone, Copy)]
pub struct NormWeight<'a> {
    /// The stored weight.
    pub weight: Binding<'a>,
    /// What is added to it.
    pub offset: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::NoUninit)]
struct NormParams {
    rows: u32,
    width: u32,
    y_start: u32,
    r_start: u32,
    x_start: u32,
    w_start: u32,
    dy_start: u32,
    add: u32,
    eps: f32,
    offset: f32,
    factor: f32,
}

/// The operands of a norm: `y` is dx in the backward pass.
struct NormOperands<'a> {
    y: Binding<'a>,
    r: Binding<'a>,
    x: Binding<'a>,
    w: NormWeight<'a>,
    dy: Option<Binding<'a>>,
}

fn run_norm(
    gpu: &Gpu,
    entry: &'static str,
    operands: &NormOperands<'_>,
    constants: NormParams,
) -> Result<(), GpuError> {
    let NormOperands { y, r, x, w, dy } = *operands;
    let (rows, width) = (r.len, w.weight.len);
    expect_len("rms norm: y", y, rows * width)?;
    expect_len("rms norm: x", x, rows * width)?;
    expect_len("rms norm: r", r, rows)?;
    expect_len("rms norm: weight", w.weight, width)?;
    if let Some(dy) = dy {
        expect_len("rms norm: dy", dy, rows * width)?;
    }
    let lanes = lanes(width);
    let kernel = Kernel {
        label: "rms norm",
        source: NORMS,
        entry,
        constants: &[("LANES", lanes as f64)],
    };
    let alignment = gpu.alignment();
    let (weight, w_start) = w.weight.aligned(alignment);
    for rows in row_pieces(gpu, rows, width) {
        let elements = rows.start * width..rows.end * width;
        let (y, y_start) = y.part(elements.clone()).aligned(alignment);
        let (x, x_start) = x.part(elements.clone()).aligned(alignment);
        let (r, r_start) = r.part(rows.clone()).aligned(alignment);
        let mut bindings = vec![y, r, x, weight];
        let mut params = NormParams {
            rows: rows.len() as u32,
            width: width as u32,
            y_start,
            r_start,
            x_start,
            w_start,
            offset: w.offset,
            ..constants
        };
        if let Some(dy) = dy {
            let (dy, dy_start) = dy.part(elements).aligned(alignment);
            bindings.push(dy);
            params.dy_start = dy_start;
        }
        let groups = grid(rows.len().div_ceil(THREADS / lanes));
        gpu.dispatch(&kernel, &bindings, &params, groups)?;
    }
    Ok(())
}

/// RMS norm: `y = x * r * w`, where each row has its `r = 1 / sqrt(mean(x^2) + eps)` (Zhang and Sennrich 2019).
///
/// `x`, `y` (T, D); `w` (D); `r` (T) is saved for the gradient.
///
/// # Errors
/// [`GpuError::Shape`] if the lengths differ; those of [`Gpu::dispatch`].
pub fn rms_norm(
    gpu: &Gpu,
    y: Binding<'_>,
    r: Binding<'_>,
    x: Binding<'_>,
    w: NormWeight<'_>,
    eps: f32,
) -> Result<(), GpuError> {
    let operands = NormOperands {
        y,
        r,
        x,
        w,
        dy: None,
    };
    let constants = NormParams {
        eps,
        ..NormParams::default()
    };
    run_norm(gpu, "forward", &operands, constants)
}

/// [`rms_norm`] from the saved `r`.
///
/// # Errors
/// As [`rms_norm`].
pub fn rms_norm_recompute(
    gpu: &Gpu,
    y: Binding<'_>,
    r: Binding<'_>,
    x: Binding<'_>,
    w: NormWeight<'_>,
) -> Result<(), GpuError> {
    let operands = NormOperands {
        y,
        r,
        x,
        w,
        dy: None,
    };
    run_norm(gpu, "recompute", &operands, NormParams::default())
}

/// What the gradient of a norm needs of its forward pass.
#[derive(Clone, Copy)]
pub struct SavedNorm<'a> {
    /// The input (T, D).
    pub x: Binding<'a>,
    /// r of each row (T).
    pub r: Binding<'a>,
    /// The weight (D).
    pub w: NormWeight<'a>,
}

/// Gradient of [`rms_norm`] for `factor * dy`: adds to `dx` (or overwrites it, where `add` is false), and adds to `dw` if the weight is
/// trained.
///
/// # Errors
/// As [`rms_norm`].
pub fn rms_norm_backward(
    gpu: &Gpu,
    dx: Binding<'_>,
    add: bool,
    dw: Option<Binding<'_>>,
    (factor, dy): (f32, Binding<'_>),
    saved: SavedNorm<'_>,
) -> Result<(), GpuError> {
    let SavedNorm { x, r, w } = saved;
    let operands = NormOperands {
        y: dx,
        r,
        x,
        w,
        dy: Some(dy),
    };
    let constants = NormParams {
        add: u32::from(add),
        factor,
        ..NormParams::default()
    };
    run_norm(gpu, "backward", &operands, constants)?;
    if let Some(dw) = dw {
        let width = w.weight.len;
        let products = Products {
            rows: r.len,
            heads: 1,
            dy: (dy, 0, width),
            x: (x, 0, width),
            r: (r, 0, 1),
        };
        products.add_to(gpu, dw, factor)?;
    }
    Ok(())
}

#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::NoUninit)]
struct ColumnParams {
    rows: u32,
    heads: u32,
    width: u32,
    slices: u32,
    rows_per_slice: u32,
    dy_start: u32,
    dy_stride: u32,
    x_start: u32,
    x_stride: u32,
    r_start: u32,
    r_stride: u32,
    out_start: u32,
    factor: f32,
}

/// Rows that a workgroup sums at least, and the largest number of slices.
const MIN_ROWS: usize = 32;
const MAX_SLICES: usize = 256;

/// Columns of a workgroup.
const GROUP_COLUMNS: usize = 64;

/// The two passes of a sum over rows: `out += factor * sum`. `bindings` are the inputs of the first.
fn add_sums(
    gpu: &Gpu,
    entry: &'static str,
    out: Binding<'_>,
    inputs: &[Binding<'_>],
    mut params: ColumnParams,
) -> Result<(), GpuError> {
    let rows = params.rows as usize;
    let width = out.len;
    if rows == 0 || width == 0 {
        return Ok(());
    }
    let per_slice = rows
        .div_ceil(MAX_SLICES)
        .max(MIN_ROWS / params.heads.max(1) as usize)
        .max(1);
    let slices = rows.div_ceil(per_slice);
    params.width = width as u32;
    params.slices = slices as u32;
    params.rows_per_slice = per_slice as u32;
    let partial = gpu.scratch("column sums", slices * width)?;
    let partial = partial.range(0..slices * width);
    let kernel = |entry| Kernel {
        label: "column sums",
        source: COLUMNS,
        entry,
        constants: &[],
    };
    let groups = width.div_ceil(GROUP_COLUMNS) as u32;
    let bindings: Vec<_> = [partial].iter().chain(inputs).copied().collect();
    gpu.dispatch(
        &kernel(entry),
        &bindings,
        &params,
        [groups, slices as u32, 1],
    )?;
    let (out, out_start) = out.aligned(gpu.alignment());
    params.out_start = out_start;
    gpu.dispatch(
        &kernel("add_slices"),
        &[out, partial],
        &params,
        [groups, 1, 1],
    )
}

/// Operands of the gradient of a norm's weight. Each array with its first column and its columns per row.
struct Products<'a> {
    rows: usize,
    heads: usize,
    dy: (Binding<'a>, usize, usize),
    x: (Binding<'a>, usize, usize),
    r: (Binding<'a>, usize, usize),
}

impl Products<'_> {
    /// `dw += factor * sum over rows and heads of dy x r`.
    fn add_to(&self, gpu: &Gpu, dw: Binding<'_>, factor: f32) -> Result<(), GpuError> {
        expect_len("rms norm: dw", dw, dw.len)?;
        let widest = self.dy.2.max(self.x.2).max(self.r.2);
        for rows in row_pieces(gpu, self.rows, widest) {
            let part = |(data, first, stride): (Binding<'_>, usize, usize)| {
                let (_, start) = data
                    .part(rows.start * stride..rows.start * stride)
                    .aligned(gpu.alignment());
                start + first as u32
            };
            let params = ColumnParams {
                rows: rows.len() as u32,
                heads: self.heads as u32,
                dy_start: part(self.dy),
                dy_stride: self.dy.2 as u32,
                x_start: part(self.x),
                x_stride: self.x.2 as u32,
                r_start: part(self.r),
                r_stride: self.r.2 as u32,
                factor,
                ..ColumnParams::default()
            };
            let inputs = [self.dy, self.x, self.r].map(|(data, _, stride)| {
                let elements = rows.start * stride..rows.end * stride;
                data.part(elements).aligned(gpu.alignment()).0
            });
            add_sums(gpu, "sum_products", dw, &inputs, params)?;
        }
        Ok(())
    }
}

/// Gradient of a bias: adds the sum over rows of `dy` (T, N), columns `first..first + out.len`, to `out`.
///
/// # Errors
/// As [`rms_norm`].
pub fn add_column_sums(
    gpu: &Gpu,
    out: Binding<'_>,
    dy: Binding<'_>,
    first: usize,
    n: usize,
) -> Result<(), GpuError> {
    let rows = dy.len / n.max(1);
    expect_len("column sums: dy", dy, rows * n)?;
    expect_len(
        "column sums: result",
        out,
        out.len.min(n.saturating_sub(first)),
    )?;
    for rows in row_pieces(gpu, rows, n) {
        let (dy, start) = dy
            .part(rows.start * n..rows.end * n)
            .aligned(gpu.alignment());
        let params = ColumnParams {
            rows: rows.len() as u32,
            heads: 1,
            dy_start: start + first as u32,
            dy_stride: n as u32,
            factor: 1.0,
            ..ColumnParams::default()
        };
        add_sums(gpu, "sum_rows", out, &[dy], params)?;
    }
    Ok(())
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct BiasParams {
    len: u32,
    n: u32,
    x_start: u32,
    bias_start: u32,
}

/// `x += bias`, for every row of `x` (T, N).
///
/// # Errors
/// As [`rms_norm`].
pub fn add_bias(gpu: &Gpu, x: Binding<'_>, bias: Binding<'_>) -> Result<(), GpuError> {
    let n = bias.len;
    let rows = x.len / n.max(1);
    expect_len("bias: rows", x, rows * n)?;
    expect_len("bias", bias, n)?;
    let kernel = Kernel {
        label: "bias",
        source: BIAS,
        entry: "add_bias",
        constants: &[],
    };
    let (bias, bias_start) = bias.aligned(gpu.alignment());
    for rows in row_pieces(gpu, rows, n) {
        let elements = rows.start * n..rows.end * n;
        let (x, x_start) = x.part(elements.clone()).aligned(gpu.alignment());
        let params = BiasParams {
            len: elements.len() as u32,
            n: n as u32,
            x_start,
            bias_start,
        };
        let groups = grid(elements.len().div_ceil(THREADS));
        gpu.dispatch(&kernel, &[x, bias], &params, groups)?;
    }
    Ok(())
}

/// The norms of q and k: of every head (qwen3), or of all of q and all of k (olmo2), as the lengths of the weights say.
#[derive(Clone, Copy)]
pub struct QkNorms<'a> {
    /// Columns of q: H K.
    pub q_width: usize,
    /// Columns of k: G K.
    pub k_width: usize,
    /// The weight of q (K, or H K).
    pub q: Binding<'a>,
    /// The weight of k (K, or G K).
    pub k: Binding<'a>,
    /// Added to each weight.
    pub offset: f32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct QkParams {
    tokens: u32,
    qkv_width: u32,
    q_norms: u32,
    k_norms: u32,
    q_dim: u32,
    k_dim: u32,
    qkv_start: u32,
    raw_start: u32,
    r_start: u32,
    q_weight: u32,
    k_weight: u32,
    eps: f32,
    offset: f32,
}

impl QkNorms<'_> {
    /// Columns of q and k.
    fn width(&self) -> usize {
        self.q_width + self.k_width
    }

    /// Numbers of norms of q and of k of a token.
    fn counts(&self) -> [usize; 2] {
        [
            self.q_width / self.q.len.max(1),
            self.k_width / self.k.len.max(1),
        ]
    }

    /// Number of norms of a token.
    pub fn per_token(&self) -> usize {
        self.counts().iter().sum()
    }

    /// The number of tokens.
    fn check(
        &self,
        qkv: Binding<'_>,
        raw: Binding<'_>,
        r: Binding<'_>,
        qkv_width: usize,
    ) -> Result<usize, GpuError> {
        let [q, k] = self.counts();
        expect_len("q norm: weight", self.q, self.q_width / q.max(1))?;
        expect_len("k norm: weight", self.k, self.k_width / k.max(1))?;
        let tokens = qkv.len / qkv_width.max(self.width()).max(1);
        expect_len("q and k norm: qkv", qkv, tokens * qkv_width)?;
        expect_len("q and k norm: input", raw, tokens * self.width())?;
        expect_len("q and k norm: r", r, tokens * (q + k))?;
        Ok(tokens)
    }

    fn run(
        &self,
        gpu: &Gpu,
        entry: &'static str,
        [qkv, raw, r]: [Binding<'_>; 3],
        qkv_width: usize,
        eps: f32,
    ) -> Result<(), GpuError> {
        let tokens = self.check(qkv, raw, r, qkv_width)?;
        let [q_norms, k_norms] = self.counts();
        let norms = q_norms + k_norms;
        let lanes = lanes(self.q.len.max(self.k.len));
        let kernel = Kernel {
            label: "q and k norm",
            source: QK_NORMS,
            entry,
            constants: &[("LANES", lanes as f64)],
        };
        let alignment = gpu.alignment();
        let (q, q_weight) = self.q.aligned(alignment);
        let (k, k_weight) = self.k.aligned(alignment);
        for rows in row_pieces(gpu, tokens, qkv_width) {
            let part = |width: usize| rows.start * width..rows.end * width;
            let (qkv, qkv_start) = qkv.part(part(qkv_width)).aligned(alignment);
            let (raw, raw_start) = raw.part(part(self.width())).aligned(alignment);
            let (r, r_start) = r.part(part(norms)).aligned(alignment);
            let params = QkParams {
                tokens: rows.len() as u32,
                qkv_width: qkv_width as u32,
                q_norms: q_norms as u32,
                k_norms: k_norms as u32,
                q_dim: self.q.len as u32,
                k_dim: self.k.len as u32,
                qkv_start,
                raw_start,
                r_start,
                q_weight,
                k_weight,
                eps,
                offset: self.offset,
            };
            let groups = grid((rows.len() * norms).div_ceil(THREADS / lanes));
            gpu.dispatch(&kernel, &[qkv, raw, r, q, k], &params, groups)?;
        }
        Ok(())
    }
}

/// RMS norms of q and k, in place in `qkv` (T, `qkv_width`), whose rows begin with q, then k. Saves the input in `raw` (T, (H + G) K),
/// and each r in `r` (T, [`QkNorms::per_token`]).
///
/// # Errors
/// As [`rms_norm`].
pub fn qk_norm(
    gpu: &Gpu,
    qkv: Binding<'_>,
    raw: Binding<'_>,
    r: Binding<'_>,
    norms: QkNorms<'_>,
    qkv_width: usize,
    eps: f32,
) -> Result<(), GpuError> {
    norms.run(gpu, "forward", [qkv, raw, r], qkv_width, eps)
}

/// Gradient of [`qk_norm`], in place in `d_qkv`. Adds the gradients of the weights of q and k to `dw`, where they are trained.
///
/// # Errors
/// As [`rms_norm`].
pub fn qk_norm_backward(
    gpu: &Gpu,
    d_qkv: Binding<'_>,
    dw: [Option<Binding<'_>>; 2],
    raw: Binding<'_>,
    r: Binding<'_>,
    norms: QkNorms<'_>,
    qkv_width: usize,
) -> Result<(), GpuError> {
    let rows = norms.check(d_qkv, raw, r, qkv_width)?;
    let [q, k] = norms.counts();
    let parts = [(q, 0, 0), (k, norms.q_width, q)];
    for (dw, (heads, column, norm)) in dw.into_iter().zip(parts) {
        let Some(dw) = dw else { continue };
        let products = Products {
            rows,
            heads,
            dy: (d_qkv, column, qkv_width),
            x: (raw, column, norms.width()),
            r: (r, norm, q + k),
        };
        products.add_to(gpu, dw, 1.0)?;
    }
    norms.run(gpu, "backward", [d_qkv, raw, r], qkv_width, 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{
        buffer::GpuBuffer,
        testing::{assert_close, gpu, gradient, random, wide},
    };

    const EPS: f32 = 1e-5;

    /// Relative error of a sum of `n` terms in another order, and of some ten roundings.
    fn bound(n: usize) -> f64 {
        ((n as f64).sqrt() + 10.0) * 2f64.powi(-24)
    }

    /// y of one row, and its r.
    fn norm_row(x: &[f64], w: &[f64]) -> (Vec<f64>, f64) {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let r = 1.0 / (mean + f64::from(EPS)).sqrt();
        (x.iter().zip(w).map(|(x, w)| x * r * w).collect(), r)
    }

    fn dot(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    fn upload(gpu: &Gpu, data: &[f32]) -> GpuBuffer {
        gpu.upload(data).expect("memory")
    }

    fn all(gpu: &Gpu, buffer: &GpuBuffer) -> Vec<f32> {
        gpu.download(buffer, 0..buffer.len()).expect("a result")
    }

    fn check_norm(gpu: &Gpu, [t, d]: [usize; 2], offset: f32) {
        let (x, w, dy) = (random(t * d, 1), random(d, 2), random(t * d, 3));
        let weight: Vec<f64> = w.iter().map(|w| f64::from(w + offset)).collect();
        let (on_device, stored, d_out) = (upload(gpu, &x), upload(gpu, &w), upload(gpu, &dy));
        let (y, r) = (
            gpu.zeros(t * d).expect("memory"),
            gpu.zeros(t).expect("memory"),
        );
        let w = NormWeight {
            weight: stored.all(),
            offset,
        };
        rms_norm(gpu, y.all(), r.all(), on_device.all(), w, EPS).expect("a run");
        let (mut expected, mut rs) = (Vec::new(), Vec::new());
        for row in wide(&x).chunks(d) {
            let (y, r) = norm_row(row, &weight);
            expected.extend(y);
            rs.push(r);
        }
        // y is below 2 sqrt(3) where x is uniform, but a row of one element can be anywhere.
        assert_close(&all(gpu, &y), &expected, 8.0 * bound(d));
        let largest = rs.iter().fold(1.0, |a: f64, b| a.max(*b));
        assert_close(&all(gpu, &r), &rs, largest * bound(d));
        gpu.clear(y.all()).expect("a command");
        rms_norm_recompute(gpu, y.all(), r.all(), on_device.all(), w).expect("a run");
        assert_close(&all(gpu, &y), &expected, 8.0 * bound(d));

        let (before, dw_before, factor) = (random(t * d, 4), random(d, 5), 0.5);
        let (dx, dw) = (upload(gpu, &before), upload(gpu, &dw_before));
        let saved = SavedNorm {
            x: on_device.all(),
            r: r.all(),
            w,
        };
        let run = |add, dw| {
            rms_norm_backward(gpu, dx.all(), add, dw, (factor, d_out.all()), saved).expect("a run");
            all(gpu, &dx)
        };
        let added = run(true, Some(dw.all()));
        let overwritten = run(false, None);
        let mut expected_dw = wide(&dw_before);
        let mut expected_dx = Vec::new();
        for (x, dy) in wide(&x).chunks(d).zip(wide(&dy).chunks(d)) {
            let loss = |x: &[f64], w: &[f64]| 0.5 * dot(&norm_row(x, w).0, dy);
            expected_dx.extend(gradient(|x| loss(x, &weight), x));
            let of_row = gradient(|w| loss(x, w), &weight);
            expected_dw
                .iter_mut()
                .zip(of_row)
                .for_each(|(sum, g)| *sum += g);
        }
        // Gradients grow with r. The differences have an error of some 1e-8.
        let bound_dx = 4.0 * largest * bound(d) + 1e-8 * largest;
        assert_close(&overwritten, &expected_dx, bound_dx);
        let sums = expected_dx.iter().zip(&before);
        let sums: Vec<f64> = sums.map(|(dx, before)| dx + f64::from(*before)).collect();
        assert_close(&added, &sums, bound_dx + 2f64.powi(-23));
        // A sum of T terms up to 2.
        assert_close(
            &all(gpu, &dw),
            &expected_dw,
            2.0 * t as f64 * bound(t) + 1e-7,
        );
    }

    #[test]
    fn norms_and_their_gradients_equal_the_definition() {
        let gpu = gpu();
        for (shape, offset) in [
            ([1, 16], 0.0),
            ([5, 7], 1.0),
            ([70, 48], 0.0),
            ([3, 600], 1.0),
        ] {
            check_norm(&gpu, shape, offset);
        }
    }

    #[test]
    fn norms_larger_than_a_binding_are_computed_in_parts() {
        let gpu = Gpu::open(0).expect("a device");
        gpu.limit_bindings(400);
        check_norm(&gpu, [40, 48], 0.0);
    }

    #[test]
    fn norms_of_q_and_k_and_their_gradients_equal_the_definition() {
        let gpu = gpu();
        let (t, heads, kv_heads, dim) = (9, 6, 2, 12);
        let (q_width, k_width) = (heads * dim, kv_heads * dim);
        let (width, qk) = (q_width + 2 * k_width, q_width + k_width);
        for (q_dim, k_dim, offset) in [(dim, dim, 1.0), (q_width, k_width, 0.0)] {
            let (x, d_out) = (random(t * width, 1), random(t * width, 2));
            let weights = [random(q_dim, 3), random(k_dim, 4)];
            let [wq, wk] = [0, 1].map(|i: usize| upload(&gpu, &weights[i]));
            let norms = QkNorms {
                q_width,
                k_width,
                q: wq.all(),
                k: wk.all(),
                offset,
            };
            let count = norms.per_token();
            let qkv = upload(&gpu, &x);
            let raw = gpu.zeros(t * qk).expect("memory");
            let r = gpu.zeros(t * count).expect("memory");
            qk_norm(&gpu, qkv.all(), raw.all(), r.all(), norms, width, EPS).expect("a run");
            let wide_weights = weights
                .each_ref()
                .map(|w| w.iter().map(|w| f64::from(w + offset)).collect::<Vec<_>>());
            let forward = |row: &[f64], [wq, wk]: [&[f64]; 2]| {
                let mut y = row.to_vec();
                for (range, w) in [(0..q_width, wq), (q_width..qk, wk)] {
                    for part in range.step_by(w.len()) {
                        let normed = norm_row(&row[part..part + w.len()], w).0;
                        y[part..part + w.len()].copy_from_slice(&normed);
                    }
                }
                y
            };
            let both = [&wide_weights[0][..], &wide_weights[1][..]];
            let expected: Vec<f64> = wide(&x)
                .chunks(width)
                .flat_map(|row| forward(row, both))
                .collect();
            assert_close(&all(&gpu, &qkv), &expected, 8.0 * bound(q_width));
            let inputs: Vec<f32> = x.chunks(width).flat_map(|row| row[..qk].to_vec()).collect();
            assert_eq!(all(&gpu, &raw), inputs);

            let d_qkv = upload(&gpu, &d_out);
            let before = [random(q_dim, 5), random(k_dim, 6)];
            let [dq, dk] = [0, 1].map(|i: usize| upload(&gpu, &before[i]));
            let dw = [Some(dq.all()), Some(dk.all())];
            qk_norm_backward(&gpu, d_qkv.all(), dw, raw.all(), r.all(), norms, width)
                .expect("a run");
            let mut expected = Vec::new();
            let mut sums = before.each_ref().map(|w| wide(w));
            for (row, d) in wide(&x).chunks(width).zip(wide(&d_out).chunks(width)) {
                expected.extend(gradient(|row| dot(&forward(row, both), d), row));
                let of_q = gradient(|w| dot(&forward(row, [w, both[1]]), d), both[0]);
                let of_k = gradient(|w| dot(&forward(row, [both[0], w]), d), both[1]);
                for (sum, of_row) in sums.iter_mut().zip([of_q, of_k]) {
                    sum.iter_mut().zip(of_row).for_each(|(sum, g)| *sum += g);
                }
            }
            // r is below 4 at this seed.
            assert_close(&all(&gpu, &d_qkv), &expected, 16.0 * bound(q_width) + 1e-7);
            // Sums of 54 terms up to 2 and more.
            assert_close(&all(&gpu, &dq), &sums[0], 108.0 * bound(54));
            assert_close(&all(&gpu, &dk), &sums[1], 108.0 * bound(54));
        }
    }

    #[test]
    fn two_runs_are_bitwise_the_same() {
        let gpu = gpu();
        let dy = upload(&gpu, &random(900 * 7, 1));
        let run = || {
            let out = gpu.zeros(7).expect("memory");
            add_column_sums(&gpu, out.all(), dy.all(), 0, 7).expect("a run");
            all(&gpu, &out)
                .into_iter()
                .map(f32::to_bits)
                .collect::<Vec<_>>()
        };
        assert_eq!(run(), run());
    }

    #[test]
    fn biases_are_added_and_their_gradients_summed() {
        let gpu = gpu();
        for [t, n] in [[1, 5], [130, 70], [700, 9]] {
            let (x, bias) = (random(t * n, 1), random(n, 2));
            let (on_device, b) = (upload(&gpu, &x), upload(&gpu, &bias));
            add_bias(&gpu, on_device.all(), b.all()).expect("a run");
            let expected: Vec<f64> = (0..t * n)
                .map(|i| f64::from(x[i]) + f64::from(bias[i % n]))
                .collect();
            assert_close(&all(&gpu, &on_device), &expected, 1.2e-7);

            let (first, len) = (n / 3, n / 2);
            let dy = upload(&gpu, &x);
            let before = random(len, 3);
            let out = upload(&gpu, &before);
            add_column_sums(&gpu, out.all(), dy.all(), first, n).expect("a run");
            let mut sums = wide(&before);
            for row in x.chunks(n) {
                sums.iter_mut()
                    .zip(&row[first..])
                    .for_each(|(sum, x)| *sum += f64::from(*x));
            }
            // T terms up to 1.
            assert_close(&all(&gpu, &out), &sums, t as f64 * bound(t) + 1e-7);
        }
    }
}

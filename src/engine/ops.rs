//! Row-wise operations of a layer and their gradients.
//!
//! T tokens, D hidden, F intermediate. Each operation works on blocks of [`BLOCK`] rows in parallel. Sums over rows are computed
//! block by block in a fixed order, so that results do not depend on the number of threads.

use rayon::prelude::*;

use super::{
    attention::AttentionShape,
    rope::{Rope, rotate},
    simd::{self, vectorized},
};

/// Rows per task.
const BLOCK: usize = 16;

/// RMS norm: `y = x * r * w`, where each row has its `r = 1 / sqrt(mean(x^2) + eps)` (Zhang and Sennrich 2019).
///
/// `x`, `y` (T, D); `w` (D); `r` (T) is saved for the gradient.
pub fn rms_norm(y: &mut [f32], r: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
    let block = BLOCK * w.len();
    y.par_chunks_mut(block)
        .zip(x.par_chunks(block))
        .zip(r.par_chunks_mut(BLOCK))
        .for_each(|((y, x), r)| rms_norm_rows(y, r, x, w, eps));
}

/// [`rms_norm`] from the saved `r`.
pub fn rms_norm_recompute(y: &mut [f32], r: &[f32], x: &[f32], w: &[f32]) {
    let block = BLOCK * w.len();
    y.par_chunks_mut(block)
        .zip(x.par_chunks(block))
        .zip(r.par_chunks(BLOCK))
        .for_each(|((y, x), r)| scale_rows(y, r, x, w));
}

/// Gradient of [`rms_norm`]: adds to `dx`, and to `dw` if the weight is trained.
pub fn rms_norm_backward(
    dx: &mut [f32],
    dw: Option<&mut [f32]>,
    dy: &[f32],
    x: &[f32],
    r: &[f32],
    w: &[f32],
) {
    let block = BLOCK * w.len();
    let sums: Vec<Vec<f32>> = dx
        .par_chunks_mut(block)
        .zip(dy.par_chunks(block))
        .zip(x.par_chunks(block).zip(r.par_chunks(BLOCK)))
        .map(|((dx, dy), (x, r))| {
            let mut sum = vec![0.0; w.len()];
            rms_norm_backward_rows(dx, &mut sum, dy, x, r, w);
            sum
        })
        .collect();
    if let Some(dw) = dw {
        for sum in sums {
            simd::axpy(dw, 1.0, &sum);
        }
    }
}

vectorized! {
    /// [`rms_norm`] of a few rows.
    fn rms_norm_rows(y: &mut [f32], r: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
        for ((y, x), r) in y.chunks_exact_mut(w.len()).zip(x.chunks_exact(w.len())).zip(r) {
            *r = 1.0 / (simd::dot(x, x) / w.len() as f32 + eps).sqrt();
            scale_row(y, *r, x, w);
        }
    }

    fn scale_rows(y: &mut [f32], r: &[f32], x: &[f32], w: &[f32]) {
        for ((y, x), r) in y.chunks_exact_mut(w.len()).zip(x.chunks_exact(w.len())).zip(r) {
            scale_row(y, *r, x, w);
        }
    }

    /// [`rms_norm_backward`] of a few rows.
    fn rms_norm_backward_rows(dx: &mut [f32], dw: &mut [f32], dy: &[f32], x: &[f32], r: &[f32], w: &[f32]) {
        let d = w.len();
        for ((dx, dy), (x, r)) in dx.chunks_exact_mut(d).zip(dy.chunks_exact(d)).zip(x.chunks_exact(d).zip(r)) {
            rms_norm_backward_row(dx, dw, dy, x, *r, w);
        }
    }

    fn add_to_rows(x: &mut [f32], bias: &[f32]) {
        for x in x.chunks_exact_mut(bias.len()) {
            simd::axpy(x, 1.0, bias);
        }
    }

    fn add_scaled_rows(x: &mut [f32], factor: f32, y: &[f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x += factor * y;
        }
    }

    fn geglu_row(h: &mut [f32], gate: &[f32], up: &[f32]) {
        for ((h, g), u) in h.iter_mut().zip(gate).zip(up) {
            *h = g / (1.0 + simd::exp(-2.0 * gelu_argument(*g))) * u;
        }
    }

    fn geglu_backward_row(h: &mut [f32], gate: &mut [f32], up: &mut [f32], dh: &[f32]) {
        for (((h, g), u), dh) in h.iter_mut().zip(gate).zip(up).zip(dh) {
            // gelu(g) = g sigmoid(2z), since (1 + tanh z) / 2 = sigmoid(2z).
            let sigmoid = 1.0 / (1.0 + simd::exp(-2.0 * gelu_argument(*g)));
            let gelu = *g * sigmoid;
            let d_argument = GELU_SCALE * (1.0 + 3.0 * GELU_CUBIC * *g * *g);
            *h = gelu * *u;
            let d_up = dh * gelu;
            *g = dh * *u * sigmoid * (1.0 + 2.0 * *g * (1.0 - sigmoid) * d_argument);
            *u = d_up;
        }
    }

    fn swiglu_row(h: &mut [f32], gate: &[f32], up: &[f32]) {
        for ((h, g), u) in h.iter_mut().zip(gate).zip(up) {
            *h = g / (1.0 + simd::exp(-g)) * u;
        }
    }

    fn swiglu_backward_row(h: &mut [f32], gate: &mut [f32], up: &mut [f32], dh: &[f32]) {
        for (((h, g), u), dh) in h.iter_mut().zip(gate).zip(up).zip(dh) {
            let sigmoid = 1.0 / (1.0 + simd::exp(-*g));
            let silu = *g * sigmoid;
            *h = silu * *u;
            let d_up = dh * silu;
            *g = dh * *u * sigmoid * (1.0 + *g * (1.0 - sigmoid));
            *u = d_up;
        }
    }

    fn rotate_row(row: &mut [f32], dim: usize, cos: &[f32], sin: &[f32]) {
        for head in row.chunks_exact_mut(dim) {
            rotate(&mut head[..2 * cos.len()], cos, sin);
        }
    }

    /// RMS norm of each head of a row, or of all of q and all of k, with the weight of q or of k. Saves the input in `raw`, and each
    /// r in `r`.
    fn norm_heads(row: &mut [f32], raw: &mut [f32], r: &mut [f32], norms: [&[f32]; 2], q_width: usize, eps: f32) {
        raw.copy_from_slice(&row[..raw.len()]);
        let mut r = r.iter_mut();
        for (range, norm) in [0..q_width, q_width..raw.len()].into_iter().zip(norms) {
            let dim = norm.len();
            let heads = row[range.clone()].chunks_exact_mut(dim).zip(raw[range].chunks_exact(dim));
            for ((y, x), r) in heads.zip(&mut r) {
                *r = 1.0 / (simd::dot(x, x) / dim as f32 + eps).sqrt();
                scale_row(y, *r, x, norm);
            }
        }
    }

    /// Gradient of [`norm_heads`], in place. Adds the gradients of the two weights to `sums`.
    fn norm_heads_backward(
        row: &mut [f32],
        raw: &[f32],
        r: &[f32],
        norms: [&[f32]; 2],
        sums: &mut [Vec<f32>; 2],
        q_width: usize,
    ) {
        let mut r = r.iter();
        for (kind, range) in [0..q_width, q_width..raw.len()].into_iter().enumerate() {
            let dim = norms[kind].len();
            let mut dy = vec![0.0; dim];
            let heads = row[range.clone()].chunks_exact_mut(dim).zip(raw[range].chunks_exact(dim));
            for ((dx, x), r) in heads.zip(&mut r) {
                dy.copy_from_slice(dx);
                dx.fill(0.0);
                rms_norm_backward_row(dx, &mut sums[kind], &dy, x, *r, norms[kind]);
            }
        }
    }
}

#[inline(always)]
fn scale_row(y: &mut [f32], r: f32, x: &[f32], w: &[f32]) {
    for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
        *y = x * r * w;
    }
}

/// One row of [`rms_norm_backward`]: `dx += r dy w - x r^3 / D * sum(dy w x)`, `dw += dy x r`.
#[inline(always)]
fn rms_norm_backward_row(dx: &mut [f32], dw: &mut [f32], dy: &[f32], x: &[f32], r: f32, w: &[f32]) {
    let d = w.len();
    let (dx, dw, dy, x) = (&mut dx[..d], &mut dw[..d], &dy[..d], &x[..d]);
    let mut lanes = [0f32; simd::LANES];
    let whole = d / simd::LANES * simd::LANES;
    for i in (0..whole).step_by(simd::LANES) {
        for l in 0..simd::LANES {
            lanes[l] += dy[i + l] * w[i + l] * x[i + l];
        }
    }
    let tail: f32 = (whole..d).map(|i| dy[i] * w[i] * x[i]).sum();
    let c = (lanes.iter().sum::<f32>() + tail) * r * r * r / d as f32;
    for i in 0..d {
        dw[i] += dy[i] * x[i] * r;
        dx[i] += dy[i] * w[i] * r - x[i] * c;
    }
}

/// `x += bias`, for every row.
pub fn add_bias(x: &mut [f32], bias: &[f32]) {
    x.par_chunks_mut(BLOCK * bias.len())
        .for_each(|x| add_to_rows(x, bias));
}

/// Gradient of a bias: adds the sum over rows of `dy` (T, N), columns `first..first + out.len()`, to `out`.
pub fn add_column_sums(out: &mut [f32], dy: &[f32], first: usize, n: usize) {
    for row in dy.chunks_exact(n) {
        simd::axpy(out, 1.0, &row[first..first + out.len()]);
    }
}

/// A gated unit: `row(h, gate, up)` for every row.
fn gated(
    h: &mut [f32],
    gate_up: &[f32],
    f: usize,
    row: impl Fn(&mut [f32], &[f32], &[f32]) + Sync,
) {
    h.par_chunks_mut(f)
        .zip(gate_up.par_chunks(2 * f))
        .with_min_len(4)
        .for_each(|(h, gate_up)| {
            let (gate, up) = gate_up.split_at(f);
            row(h, gate, up);
        });
}

/// The gradient of a gated unit: `row(h, gate, up, dh)` for every row.
fn gated_backward(
    h: &mut [f32],
    gate_up: &mut [f32],
    dh: &[f32],
    f: usize,
    row: impl Fn(&mut [f32], &mut [f32], &mut [f32], &[f32]) + Sync,
) {
    h.par_chunks_mut(f)
        .zip(gate_up.par_chunks_mut(2 * f))
        .zip(dh.par_chunks(f))
        .with_min_len(4)
        .for_each(|((h, gate_up), dh)| {
            let (gate, up) = gate_up.split_at_mut(f);
            row(h, gate, up, dh);
        });
}

/// `SwiGLU` (Shazeer 2020): `h = silu(gate) * up`. Each row of `gate_up` (T, 2F) is gate, then up; `h` (T, F).
pub fn swiglu(h: &mut [f32], gate_up: &[f32], f: usize) {
    gated(h, gate_up, f, swiglu_row);
}

/// Gradient of [`swiglu`]: recomputes `h`, and overwrites `gate_up` with its gradient, given `dh`.
pub fn swiglu_backward(h: &mut [f32], gate_up: &mut [f32], dh: &[f32], f: usize) {
    gated_backward(h, gate_up, dh, f, swiglu_backward_row);
}

/// sqrt(2 / pi), and the factor of the cube: the tanh form of GELU (Hendrycks and Gimpel 2016).
const GELU_SCALE: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;

/// z = sqrt(2 / pi) (g + 0.044715 g^3), where gelu(g) = g (1 + tanh z) / 2.
#[inline(always)]
fn gelu_argument(g: f32) -> f32 {
    GELU_SCALE * (g + GELU_CUBIC * g * g * g)
}

/// `GeGLU` (Shazeer 2020): as [`swiglu`] with the tanh form of GELU.
pub fn geglu(h: &mut [f32], gate_up: &[f32], f: usize) {
    gated(h, gate_up, f, geglu_row);
}

/// Gradient of [`geglu`], as [`swiglu_backward`].
pub fn geglu_backward(h: &mut [f32], gate_up: &mut [f32], dh: &[f32], f: usize) {
    gated_backward(h, gate_up, dh, f, geglu_backward_row);
}

/// `x += factor * y`.
pub fn add_scaled(x: &mut [f32], factor: f32, y: &[f32]) {
    const CHUNK: usize = 1 << 14;
    x.par_chunks_mut(CHUNK)
        .zip(y.par_chunks(CHUNK))
        .for_each(|(x, y)| add_scaled_rows(x, factor, y));
}

/// Rotates the q and k heads of every row of `qkv` (T, (H + 2G) K) by the angles of its position.
pub fn apply_rope(qkv: &mut [f32], positions: &[usize], heads: AttentionShape, rope: &Rope) {
    let rotated = (heads.num_heads + heads.num_kv_heads) * heads.head_dim;
    qkv.par_chunks_mut(heads.qkv_width())
        .zip(positions)
        .with_min_len(8)
        .for_each(|(row, &position)| {
            let (cos, sin) = rope.at(position);
            rotate_row(&mut row[..rotated], heads.head_dim, cos, sin);
        });
}

/// RMS norm of every head of q and k (qwen3), or of all of q and all of k (olmo2), as the lengths of the weights say; in place. Saves
/// the input in `raw` (T, (H + G) K), and each r in `r` (T, H + G, or T, 2).
pub fn qk_norm(
    qkv: &mut [f32],
    raw: &mut [f32],
    r: &mut [f32],
    norms: [&[f32]; 2],
    heads: AttentionShape,
    eps: f32,
) {
    let width = heads.qk_width();
    qkv.par_chunks_mut(heads.qkv_width())
        .zip(raw.par_chunks_mut(width))
        .zip(r.par_chunks_mut(qk_norms(norms, heads)))
        .for_each(|((row, raw), r)| {
            norm_heads(&mut row[..width], raw, r, norms, heads.q_width(), eps);
        });
}

/// The number of norms of a token's q and k.
fn qk_norms(norms: [&[f32]; 2], heads: AttentionShape) -> usize {
    let [q, k] = norms.map(<[f32]>::len);
    heads.q_width() / q + (heads.qk_width() - heads.q_width()) / k
}

/// Gradient of [`qk_norm`], in place in `d_qkv`. Returns the gradients of the two weights.
pub fn qk_norm_backward(
    d_qkv: &mut [f32],
    raw: &[f32],
    r: &[f32],
    norms: [&[f32]; 2],
    heads: AttentionShape,
) -> [Vec<f32>; 2] {
    let width = heads.qk_width();
    let sums: Vec<[Vec<f32>; 2]> = d_qkv
        .par_chunks_mut(heads.qkv_width())
        .zip(raw.par_chunks(width))
        .zip(r.par_chunks(qk_norms(norms, heads)))
        .map(|((row, raw), r)| {
            let mut sums = norms.map(|norm| vec![0.0; norm.len()]);
            let row = &mut row[..width];
            norm_heads_backward(row, raw, r, norms, &mut sums, heads.q_width());
            sums
        })
        .collect();
    let mut total = norms.map(|norm| vec![0.0; norm.len()]);
    for token in &sums {
        for (total, sum) in total.iter_mut().zip(token) {
            simd::axpy(total, 1.0, sum);
        }
    }
    total
}

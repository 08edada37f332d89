//! A linear layer: the product with its weight, and with the low-rank adapters of some of its rows.
//!
//! T tokens, N outputs, K inputs. A group of layers with one input, such as q, k and v, is one layer here, and each of them may have
//! an adapter of its own: `M` of the N outputs, from `first` on.
//!
//! ```text
//! y = x W0^T,  y[:, first..first + M] += u B^T      u = s drop(x) A^T (T, r)
//! dx = dy W0 + drop'(v A)                           v = s dy[:, first..first + M] B (T, r)
//! dA = v^T drop(x),  dB = dy[:, first..first + M]^T u
//! ```
//!
//! Source: `LoRA`, Hu et al. 2021, arXiv 2106.09685, eq. 3, differentiated.

use std::{borrow::Cow, ops::Range};

use super::{Gradients, matmul, matrix::Matrix, ops};
use crate::model::{LowRank, LowRankTarget, Weights};

/// `y (T, N) = x (T, K) W (N, K)^T`, or `+=`; `range` is that of the weight.
pub fn forward(
    weights: Weights<'_>,
    range: &Range<usize>,
    y: &mut [f32],
    x: &[f32],
    [t, n, k]: [usize; 3],
    add: bool,
) {
    Matrix::of(weights.params, range).forward(y, x, [t, n, k], add);
    for adapter in adapters(weights, range, k) {
        let u = adapter.down(&adapter.input(x), t);
        let columns = adapter.columns(n);
        let (b, shape) = (adapter.b(), [t, adapter.outputs(), adapter.rank()]);
        matmul::forward_to_columns(y, columns, &u, b, shape, true);
    }
}

/// `dx (T, K) = dy (T, N) W (N, K)`.
pub fn input_gradient(
    weights: Weights<'_>,
    range: &Range<usize>,
    dx: &mut [f32],
    dy: &[f32],
    [t, n, k]: [usize; 3],
) {
    Matrix::of(weights.params, range).input_gradient(dx, dy, [t, n, k]);
    for adapter in adapters(weights, range, k) {
        let v = adapter.up_gradient(dy, [t, n]);
        let shape = [t, adapter.rank(), k];
        if let Some(dropout) = adapter.of.dropout {
            let mut through = vec![0.0; t * k];
            matmul::input_gradient(&mut through, &v, adapter.a(), shape, false);
            dropout.apply_in_place(adapter.index, &mut through);
            ops::add_scaled(dx, 1.0, &through);
        } else {
            matmul::input_gradient(dx, &v, adapter.a(), shape, true);
        }
    }
}

/// Adds the gradients of the trained rows of the weight, and of A and B, to `gradients`.
pub fn add_weight_gradients(
    weights: Weights<'_>,
    range: &Range<usize>,
    gradients: &mut Gradients,
    dy: &[f32],
    x: &[f32],
    [t, n, k]: [usize; 3],
) {
    gradients.add_linear_grad(range, dy, x, [t, n, k]);
    let Some(own) = gradients.low_rank.as_deref_mut() else {
        return;
    };
    for adapter in adapters(weights, range, k) {
        let input = adapter.input(x);
        let (u, v) = (adapter.down(&input, t), adapter.up_gradient(dy, [t, n]));
        let (rank, first) = (adapter.rank(), adapter.first);
        let db = &mut own.data[adapter.target.b.clone()];
        matmul::weight_gradient(db, dy, first, &u, [t, n, rank]);
        let da = &mut own.data[adapter.target.a.clone()];
        matmul::weight_gradient(da, &v, 0, &input, [t, rank, k]);
    }
}

/// The adapter of some outputs of a linear layer.
struct Adapter<'a> {
    of: &'a LowRank,
    target: &'a LowRankTarget,
    /// Of the target among all of the model.
    index: usize,
    /// The first of its outputs.
    first: usize,
}

/// The adapters of the layer whose weight (N, K) has this range.
fn adapters<'a>(
    weights: Weights<'a>,
    range: &Range<usize>,
    k: usize,
) -> impl Iterator<Item = Adapter<'a>> {
    let start = range.start;
    let range = range.clone();
    let of = weights.low_rank.into_iter();
    of.flat_map(move |of| {
        let targets = of.targets_within(range.clone());
        targets.map(move |(index, target)| Adapter {
            of,
            target,
            index,
            first: (target.weight.start - start) / k,
        })
    })
}

impl<'a> Adapter<'a> {
    fn a(&self) -> &'a [f32] {
        self.of.a(self.target)
    }

    fn b(&self) -> &'a [f32] {
        self.of.b(self.target)
    }

    fn rank(&self) -> usize {
        self.target.rank
    }

    fn outputs(&self) -> usize {
        self.target.shape[0]
    }

    fn columns(&self, n: usize) -> matmul::Columns {
        matmul::Columns {
            first: self.first,
            of: n,
        }
    }

    /// `drop(x)`.
    fn input<'x>(&self, x: &'x [f32]) -> Cow<'x, [f32]> {
        match self.of.dropout {
            Some(dropout) => Cow::Owned(dropout.apply(self.index, x)),
            None => Cow::Borrowed(x),
        }
    }

    /// `u (T, r) = s drop(x) A^T` of [`Adapter::input`].
    fn down(&self, input: &[f32], t: usize) -> Vec<f32> {
        let k = self.target.shape[1];
        let mut u = vec![0.0; t * self.rank()];
        matmul::forward(&mut u, input, self.a(), [t, self.rank(), k], false);
        self.scale(&mut u);
        u
    }

    /// `v (T, r) = s dy[:, first..first + M] B`.
    fn up_gradient(&self, dy: &[f32], [t, n]: [usize; 2]) -> Vec<f32> {
        let mut v = vec![0.0; t * self.rank()];
        let shape = [t, self.outputs(), self.rank()];
        matmul::input_gradient_of_columns(&mut v, dy, self.columns(n), self.b(), shape, false);
        self.scale(&mut v);
        v
    }

    fn scale(&self, values: &mut [f32]) {
        if self.target.scale != 1.0 {
            for x in values {
                *x *= self.target.scale;
            }
        }
    }
}

//! Products with a weight that is in memory in f32, or frozen ([`Frozen`]) and converted to f32 a few rows at a time.
//!
//! T tokens, N outputs, K inputs. The result with a frozen weight is that with the converted one, up to the order of f32 sums.

use std::{cell::RefCell, ops::Range};

use super::matmul::{self, Columns};
use crate::model::{Frozen, FrozenMatrix, Params};

/// Weights that are converted at a time: 4 MiB of f32, which a core's cache holds for the most part.
const CHUNK_FLOATS: usize = 1 << 20;

/// The weight of a linear layer (N, K), or of several that lie side by side.
#[derive(Clone, Copy)]
pub enum Matrix<'a> {
    /// In memory.
    Dense(&'a [f32]),
    /// Frozen: the matrices in the range of the layout from `start` to `end`.
    Frozen {
        /// All of the model.
        of: &'a Frozen,
        /// Start of the range.
        start: usize,
        /// Its end.
        end: usize,
    },
}

thread_local! {
    static ROWS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl<'a> Matrix<'a> {
    /// The weight with this range of the layout.
    pub fn of(params: &'a Params, range: &Range<usize>) -> Self {
        let &Range { start, end } = range;
        match &params.frozen {
            Some(of) if end > params.data.len() => Self::Frozen { of, start, end },
            _ => Self::Dense(&params.data[start..end]),
        }
    }

    /// `y (T, N) = x (T, K) w (N, K)^T`, or `+=`.
    pub fn forward(self, y: &mut [f32], x: &[f32], [t, n, k]: [usize; 3], add: bool) {
        if let Self::Dense(w) = self {
            return matmul::forward(y, x, w, [t, n, k], add);
        }
        if !add {
            y[..t * n].fill(0.0);
        }
        self.each_chunk(|first, w| {
            let columns = Columns { first, of: n };
            matmul::forward_to_columns(y, columns, x, w, [t, w.len() / k, k], true);
        });
    }

    /// `dx (T, K) = dy (T, N) w (N, K)`.
    pub fn input_gradient(self, dx: &mut [f32], dy: &[f32], [t, n, k]: [usize; 3]) {
        if let Self::Dense(w) = self {
            return matmul::input_gradient(dx, dy, w, [t, n, k], false);
        }
        dx[..t * k].fill(0.0);
        self.each_chunk(|first, w| {
            let columns = Columns { first, of: n };
            matmul::input_gradient_of_columns(dx, dy, columns, w, [t, w.len() / k, k], true);
        });
    }

    /// Copies row `row` to `out`.
    pub fn read_row(self, row: usize, out: &mut [f32]) {
        let k = out.len();
        match self {
            Self::Dense(w) => out.copy_from_slice(&w[row * k..][..k]),
            Self::Frozen { of, start, end } => of.matrix(&(start..end)).read_row(row, out),
        }
    }

    /// Calls `f(first, rows)` for some rows after the others; `first` counts them from the start of the range.
    fn each_chunk(self, mut f: impl FnMut(usize, &[f32])) {
        let Self::Frozen { of, start, end } = self else {
            unreachable!("a weight in memory is multiplied as a whole");
        };
        // Taken and put back: a thread that waits within `f` may compute another product.
        let mut buffer = ROWS.take();
        let mut first = 0;
        for matrix in of.within(&(start..end)) {
            let [rows, k] = FrozenMatrix::shape(&matrix);
            let at_once = (CHUNK_FLOATS / k).max(1).min(rows);
            if buffer.len() < at_once * k {
                buffer.resize(at_once * k, 0.0);
            }
            for row in (0..rows).step_by(at_once) {
                let chunk = &mut buffer[..at_once.min(rows - row) * k];
                matrix.read_rows(row, chunk);
                f(first + row, chunk);
            }
            first += rows;
        }
        ROWS.set(buffer);
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn products_with_frozen_matrices_equal_those_in_memory() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut random = |n: usize| -> Vec<f32> {
            let values = (0..n).map(|_| rng.random_range(-1.0..1.0));
            values.collect()
        };
        // Two side by side; the first takes several chunks, the last of them a smaller one.
        let (rows, k, t) = ([3_001, 333], 700, 9);
        let n = rows[0] + rows[1];
        let (w, x, dy) = (random(n * k), random(t * k), random(t * n));
        let frozen = Frozen::for_test(&w, rows, k);
        assert!(rows[0] * k > 2 * CHUNK_FLOATS);
        let frozen = Matrix::Frozen {
            of: &frozen,
            start: 0,
            end: n * k,
        };
        let dense = Matrix::Dense(&w);
        for add in [false, true] {
            let [own, expected] = [frozen, dense].map(|w| {
                let mut y = vec![1.0; t * n];
                w.forward(&mut y, &x, [t, n, k], add);
                y
            });
            assert_close(&own, &expected);
        }
        let [own, expected] = [frozen, dense].map(|w| {
            let mut dx = vec![1.0; t * k];
            w.input_gradient(&mut dx, &dy, [t, n, k]);
            dx
        });
        assert_close(&own, &expected);
        for row in [0, 3_000] {
            let mut own = vec![0.0; k];
            frozen.read_row(row, &mut own);
            assert_eq!(own, w[row * k..][..k]);
        }
    }

    fn assert_close(own: &[f32], expected: &[f32]) {
        for (own, expected) in own.iter().zip(expected) {
            // Random signs: the error of a f32 sum of N terms is about sqrt(N) x 6e-8, times some.
            assert!((own - expected).abs() < 2e-4, "{own} {expected}");
        }
    }
}

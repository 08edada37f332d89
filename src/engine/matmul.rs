//! The three matmuls of a linear layer, computed with `faer`.
//!
//! T tokens, N outputs, K inputs. All matrices are row-major; weights are (N, K), as in `nn.Linear`.
//!
//! The tiles of a result depend on its shape only, and each tile is one single-threaded matmul: results are bitwise independent of the
//! number of threads.

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use rayon::prelude::*;

use super::profile::{Phase, Work, timed};

/// How a result is divided: at most `rows` x `columns` per tile.
#[derive(Clone, Copy)]
struct Tile {
    rows: usize,
    columns: usize,
    /// Tiles that are entirely above the diagonal are left out.
    lower: bool,
}

/// Smaller matmuls (in multiplications) are one tile: parallelism would cost more than it saves.
const SINGLE_TILE_OPS: usize = 1 << 18;

/// Length of a tile along a dimension of `len`: about `target`, a multiple of 16. The number of tiles is one or a multiple of four,
/// so that 2 and 4 threads share them evenly.
fn tile_len(len: usize, target: usize) -> usize {
    if len <= target {
        return len;
    }
    let pieces = len.div_ceil(target).next_multiple_of(4);
    len.div_ceil(pieces).next_multiple_of(16)
}

/// A view (m, n) with rows `width` apart.
fn matrix(data: &[f32], [m, n]: [usize; 2], width: usize) -> MatRef<'_, f32> {
    MatRef::from_row_major_slice_with_stride(data, m, n, width)
}

/// The same, to be written. (`faer` 0.24's function for row-major slices swaps the strides of a matrix that is written.)
fn matrix_mut(data: &mut [f32], [m, n]: [usize; 2], width: usize) -> MatMut<'_, f32> {
    MatMut::from_column_major_slice_with_stride_mut(data, n, m, width).transpose_mut()
}

/// Touches every cache line of a column-major matrix, in order. The matmul reads across its columns, which hardware prefetchers do
/// not predict: for weights that are not in the cache, prefetching saves a tenth of the time.
fn prefetch(of: MatRef<'_, f32>) {
    let Some(of) = of.try_as_col_major() else {
        return;
    };
    let columns = of.col_iter();
    let sum: f32 = columns
        .map(|column| column.as_slice().iter().step_by(16).sum::<f32>())
        .sum();
    std::hint::black_box(sum);
}

/// `c (m, n) = a (m, k) b (k, n)`, or `+=`.
fn tiled_matmul(c: MatMut<'_, f32>, a: MatRef<'_, f32>, b: MatRef<'_, f32>, add: bool, tile: Tile) {
    let (m, n, k) = (a.nrows(), b.ncols(), a.ncols());
    let tile = if m * n * k < SINGLE_TILE_OPS {
        Tile {
            rows: m,
            columns: n,
            ..tile
        }
    } else {
        tile
    };
    let how = if add { Accum::Add } else { Accum::Replace };
    let of = |(i, j, c): (usize, usize, MatMut<'_, f32>)| {
        let (a, b) = (a.subrows(i, c.nrows()), b.subcols(j, c.ncols()));
        prefetch(b);
        matmul(c, how, a, b, 1.0, Par::Seq);
    };
    let mut tiles = tiles(c, tile);
    if tiles.len() == 1 {
        tiles.drain(..).for_each(of);
    } else {
        tiles.into_par_iter().with_max_len(1).for_each(of);
    }
}

/// The tiles of a result, with the row and column where each starts.
fn tiles(c: MatMut<'_, f32>, tile: Tile) -> Vec<(usize, usize, MatMut<'_, f32>)> {
    let (m, n) = (c.nrows(), c.ncols());
    let mut tiles = Vec::new();
    let mut right = c;
    for j in (0..n).step_by(tile.columns.max(1)) {
        let (mut below, rest) = right.split_at_col_mut(tile.columns.min(n - j));
        right = rest;
        for i in (0..m).step_by(tile.rows.max(1)) {
            let (this, rest) = below.split_at_row_mut(tile.rows.min(m - i));
            below = rest;
            if !tile.lower || j < i + this.nrows() {
                tiles.push((i, j, this));
            }
        }
    }
    tiles
}

/// Some adjacent columns of a matrix.
#[derive(Clone, Copy, Debug)]
pub struct Columns {
    /// The first one.
    pub first: usize,
    /// Columns of the matrix.
    pub of: usize,
}

impl Columns {
    /// All columns.
    const fn all(of: usize) -> Self {
        Self { first: 0, of }
    }
}

/// Forward: `y (T, N) = x (T, K) w (N, K)^T`, or `+=`.
pub fn forward(y: &mut [f32], x: &[f32], w: &[f32], [t, n, k]: [usize; 3], add: bool) {
    forward_to_columns(y, Columns::all(n), x, w, [t, n, k], add);
}

/// [`forward`] to some columns of a wider matrix: `y (T, N)[:, first..first + M] = x (T, K) w (M, K)^T`, or `+=`.
pub fn forward_to_columns(
    y: &mut [f32],
    to: Columns,
    x: &[f32],
    w: &[f32],
    [t, m, k]: [usize; 3],
    add: bool,
) {
    let tile = Tile {
        rows: tile_len(t, 512),
        columns: tile_len(m, 192),
        lower: false,
    };
    let (x, w) = (matrix(x, [t, k], k), matrix(w, [m, k], k));
    let first = to.first.min(y.len());
    let y = matrix_mut(&mut y[first..], [t, m], to.of);
    timed(Phase::Forward, Work::matmul([t, m, k]), || {
        tiled_matmul(y, x, w.transpose(), add, tile);
    });
}

/// Gradient of the input: `dx (T, K) = dy (T, N) w (N, K)`, or `+=`.
pub fn input_gradient(dx: &mut [f32], dy: &[f32], w: &[f32], [t, n, k]: [usize; 3], add: bool) {
    input_gradient_of_columns(dx, dy, Columns::all(n), w, [t, n, k], add);
}

/// [`input_gradient`] of some columns of a wider matrix: `dx (T, K) = dy (T, N)[:, first..first + M] w (M, K)`, or `+=`.
pub fn input_gradient_of_columns(
    dx: &mut [f32],
    dy: &[f32],
    from: Columns,
    w: &[f32],
    [t, m, k]: [usize; 3],
    add: bool,
) {
    let tile = Tile {
        rows: tile_len(t, 512),
        columns: tile_len(k, 192),
        lower: false,
    };
    let dy = matrix(&dy[from.first.min(dy.len())..], [t, m], from.of);
    let w = matrix(w, [m, k], k);
    let dx = matrix_mut(dx, [t, k], k);
    timed(Phase::InputGradient, Work::matmul([t, k, m]), || {
        tiled_matmul(dx, dy, w, add, tile);
    });
}

/// Gradient of the rows `first..` of the weight: `dw (R, K) += dy (T, N)[:, first..first + R]^T x (T, K)`.
pub fn weight_gradient(dw: &mut [f32], dy: &[f32], first: usize, x: &[f32], [t, n, k]: [usize; 3]) {
    let rows = dw.len() / k;
    assert!(first + rows <= n, "no such rows");
    let tile = Tile {
        rows: tile_len(rows, 256),
        columns: tile_len(k, 2048),
        lower: false,
    };
    let (dy, x) = (
        matrix(&dy[first.min(dy.len())..], [t, rows], n),
        matrix(x, [t, k], k),
    );
    let dw = matrix_mut(dw, [rows, k], k);
    timed(Phase::WeightGradient, Work::matmul([rows, k, t]), || {
        tiled_matmul(dw, dy.transpose(), x, true, tile);
    });
}

/// Second moments: `c (K, K) += x (T, K)^T x (T, K)`. Only the lower triangle and the diagonal are defined.
pub fn second_moments(c: &mut [f32], x: &[f32], [t, k]: [usize; 2]) {
    let tile = Tile {
        rows: tile_len(k, 192),
        columns: tile_len(k, 192),
        lower: true,
    };
    let x = matrix(x, [t, k], k);
    let c = matrix_mut(c, [k, k], k);
    tiled_matmul(c, x.transpose(), x, true, tile);
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    /// Shapes around the tile edges, one of them small enough for a single tile.
    const SHAPES: [[usize; 3]; 4] = [[3, 5, 7], [33, 400, 50], [600, 208, 65], [70, 576, 192]];

    #[test]
    fn matmuls_equal_the_definition() {
        for [t, n, k] in SHAPES {
            let (x, w, dy) = (random(t * k, 1), random(n * k, 2), random(t * n, 3));
            let sum = |len: usize, f: &dyn Fn(usize) -> f64| (0..len).map(f).sum::<f64>();
            // Random signs: the error of a f32 sum of K terms is about sqrt(K) * 6e-8.
            let close = |a: f32, b: f64| assert!((f64::from(a) - b).abs() < 1e-4, "{a} {b}");

            let mut y = vec![1.0; t * n];
            forward(&mut y, &x, &w, [t, n, k], true);
            let mut dx = vec![9.0; t * k];
            input_gradient(&mut dx, &dy, &w, [t, n, k], false);
            let first = n / 3;
            let mut dw = vec![1.0; (n - first - 1) * k];
            weight_gradient(&mut dw, &dy, first, &x, [t, n, k]);
            for (i, j) in [(0, 0), (t - 1, n - 1), (t / 2, n / 3), (t - 1, 0)] {
                close(
                    y[i * n + j],
                    1.0 + sum(k, &|l| f64::from(x[i * k + l] * w[j * k + l])),
                );
            }
            for (i, j) in [(0, 0), (t - 1, k - 1), (t / 2, k / 3)] {
                close(
                    dx[i * k + j],
                    sum(n, &|l| f64::from(dy[i * n + l] * w[l * k + j])),
                );
            }
            for (i, j) in [(0, 0), (n - first - 2, k - 1), (n / 4, k / 2)] {
                close(
                    dw[i * k + j],
                    1.0 + sum(t, &|l| f64::from(dy[l * n + first + i] * x[l * k + j])),
                );
            }
        }
    }

    #[test]
    fn products_with_some_columns_equal_those_with_a_copy_of_them() {
        for [t, m, k] in SHAPES {
            let columns = Columns {
                first: 3,
                of: m + 5,
            };
            let (x, w) = (random(t * k, 1), random(m * k, 2));
            let wide = random(t * columns.of, 3);
            let copy = |of: &[f32]| -> Vec<f32> {
                let rows = of.chunks(columns.of);
                rows.flat_map(|row| &row[3..3 + m]).copied().collect()
            };
            let (mut y, mut expected) = (wide.clone(), copy(&wide));
            forward_to_columns(&mut y, columns, &x, &w, [t, m, k], true);
            forward(&mut expected, &x, &w, [t, m, k], true);
            assert_eq!(copy(&y), expected);
            // The others stay.
            for (row, before) in y.chunks(columns.of).zip(wide.chunks(columns.of)) {
                assert!(row[..3] == before[..3] && row[3 + m..] == before[3 + m..]);
            }
            let (mut dx, mut expected) = (vec![9.0; t * k], vec![9.0; t * k]);
            input_gradient_of_columns(&mut dx, &wide, columns, &w, [t, m, k], false);
            input_gradient(&mut expected, &copy(&wide), &w, [t, m, k], false);
            assert_eq!(dx, expected);
        }
    }

    #[test]
    fn second_moments_equal_the_definition_below_the_diagonal() {
        for [t, k] in [[5, 7], [40, 400], [60, 1000]] {
            let x = random(t * k, 1);
            let mut c = vec![1.0; k * k];
            second_moments(&mut c, &x, [t, k]);
            for (i, j) in [
                (0, 0),
                (k - 1, k - 1),
                (k - 1, 0),
                (k / 2, k / 3),
                (k / 2, k / 2 - 1),
            ] {
                let products = (0..t).map(|l| f64::from(x[l * k + i] * x[l * k + j]));
                let expected = 1.0 + products.sum::<f64>();
                // As above.
                assert!((f64::from(c[i * k + j]) - expected).abs() < 1e-4, "{i} {j}");
            }
        }
    }

    #[test]
    fn matmuls_have_the_same_bits_at_any_number_of_threads() {
        let [t, n, k] = [600, 700, 300];
        let (x, w) = (random(t * k, 1), random(n * k, 2));
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .expect("a pool");
            let mut y = vec![0.0; t * n];
            pool.install(|| forward(&mut y, &x, &w, [t, n, k], false));
            y
        };
        let one = run(1);
        for threads in [2, 3, 7] {
            assert_eq!(one, run(threads));
        }
    }
}

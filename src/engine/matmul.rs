//! The three matrix products of a linear layer, on the `gemm` crate.
//!
//! T tokens, N outputs, K inputs; all matrices row-major, weights (N, K) as `nn.Linear` keeps them.
//!
//! The result is cut into tiles by its shape alone, and each tile is one single-threaded product: whatever the
//! number of threads, the same sums are made in the same order.

use rayon::prelude::*;

use super::profile::{Part, Work, timed};

/// A matrix as a slice: element (i, j) at `i * row + j * column`.
#[derive(Clone, Copy)]
struct Strided<'a> {
    data: &'a [f32],
    row: usize,
    column: usize,
}

/// How a result is cut: at most `rows` x `columns` a tile.
#[derive(Clone, Copy)]
struct Tile {
    rows: usize,
    columns: usize,
    /// Tiles that lie above the diagonal as a whole are left out.
    lower: bool,
}

/// Below this many multiplications, one tile: cutting costs more than it brings.
const SMALL: usize = 1 << 18;

/// Length of the pieces that `len` is cut into: about `target`, a multiple of four pieces where there is
/// more than one (so that 2 and 4 threads share them evenly), a multiple of 16 elements.
fn piece(len: usize, target: usize) -> usize {
    if len <= target {
        return len;
    }
    let pieces = len.div_ceil(target).next_multiple_of(4);
    len.div_ceil(pieces).next_multiple_of(16)
}

/// A result that tiles are written into from several threads.
struct Shared(*mut f32);
// SAFETY: only `product` makes one; its tiles do not overlap, and the slice behind it is borrowed mutably for as long.
#[allow(
    unsafe_code,
    reason = "tiles of a row-major matrix are disjoint but not contiguous"
)]
unsafe impl Sync for Shared {}

/// `c (m, n) = a (m, k) b (k, n)`, or `+=`.
fn product(
    c: &mut [f32],
    [m, n, k]: [usize; 3],
    a: Strided<'_>,
    b: Strided<'_>,
    add: bool,
    tile: Tile,
) {
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        if !add {
            c[..m * n].fill(0.0);
        }
        return;
    }
    let last =
        |x: Strided<'_>, rows: usize, columns: usize| (rows - 1) * x.row + (columns - 1) * x.column;
    assert!(
        c.len() >= m * n && a.data.len() > last(a, m, k) && b.data.len() > last(b, k, n),
        "operands too short"
    );

    let tile = if m * n * k < SMALL {
        Tile {
            rows: m,
            columns: n,
            ..tile
        }
    } else {
        tile
    };
    let down = m.div_ceil(tile.rows);
    let shared = Shared(c.as_mut_ptr());
    let one = |t: usize| {
        let shared = &shared;
        let (i, j) = (t % down * tile.rows, t / down * tile.columns);
        let (rows, columns) = (tile.rows.min(m - i), tile.columns.min(n - j));
        if tile.lower && j >= i + rows {
            return;
        }
        // SAFETY: the tile lies within c (m, n), checked above, and no other tile overlaps it; a and b are long enough
        // for every index (checked above) and are only read.
        #[allow(unsafe_code, reason = "gemm's interface is made of pointers")]
        unsafe {
            gemm::gemm(
                rows,
                columns,
                k,
                shared.0.add(i * n + j),
                1,
                n as isize,
                add,
                a.data.as_ptr().add(i * a.row),
                a.column as isize,
                a.row as isize,
                b.data.as_ptr().add(j * b.column),
                b.column as isize,
                b.row as isize,
                1.0f32,
                1.0f32,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    };
    let tiles = down * n.div_ceil(tile.columns);
    if tiles == 1 {
        one(0);
    } else {
        (0..tiles).into_par_iter().with_max_len(1).for_each(one);
    }
}

/// Forward: `y (T, N) = x (T, K) w (N, K)^T`, or `+=`.
pub fn forward(y: &mut [f32], x: &[f32], w: &[f32], [t, n, k]: [usize; 3], add: bool) {
    let tile = Tile {
        rows: piece(t, 512),
        columns: piece(n, 192),
        lower: false,
    };
    let (x, w) = (
        Strided {
            data: x,
            row: k,
            column: 1,
        },
        Strided {
            data: w,
            row: 1,
            column: k,
        },
    );
    timed(Part::Forward, Work::product([t, n, k]), || {
        product(y, [t, n, k], x, w, add, tile);
    });
}

/// Gradient of the input: `dx (T, K) = dy (T, N) w (N, K)`, or `+=`.
pub fn input_gradient(dx: &mut [f32], dy: &[f32], w: &[f32], [t, n, k]: [usize; 3], add: bool) {
    let tile = Tile {
        rows: piece(t, 512),
        columns: piece(k, 192),
        lower: false,
    };
    let (dy, w) = (
        Strided {
            data: dy,
            row: n,
            column: 1,
        },
        Strided {
            data: w,
            row: k,
            column: 1,
        },
    );
    timed(Part::InputGradient, Work::product([t, k, n]), || {
        product(dx, [t, k, n], dy, w, add, tile);
    });
}

/// Gradient of rows `first..` of the weight, added: `dw (R, K) += dy (T, N)[:, first..first + R]^T x (T, K)`.
pub fn weight_gradient(dw: &mut [f32], dy: &[f32], first: usize, x: &[f32], [t, n, k]: [usize; 3]) {
    let rows = dw.len() / k;
    assert!(first + rows <= n, "no such rows");
    let tile = Tile {
        rows: piece(rows, 256),
        columns: piece(k, 2048),
        lower: false,
    };
    let (dy, x) = (
        Strided {
            data: &dy[first..],
            row: 1,
            column: n,
        },
        Strided {
            data: x,
            row: k,
            column: 1,
        },
    );
    timed(Part::WeightGradient, Work::product([rows, k, t]), || {
        product(dw, [rows, k, t], dy, x, true, tile);
    });
}

/// Second moments, added: `c (K, K) += x (T, K)^T x (T, K)`, on and below the diagonal; above it there may be anything.
pub fn second_moments(c: &mut [f32], x: &[f32], [t, k]: [usize; 2]) {
    let tile = Tile {
        rows: piece(k, 192),
        columns: piece(k, 192),
        lower: true,
    };
    let (across, x) = (
        Strided {
            data: x,
            row: 1,
            column: k,
        },
        Strided {
            data: x,
            row: k,
            column: 1,
        },
    );
    product(c, [k, k, t], across, x, true, tile);
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    /// Shapes around the tile edges, one of them small enough not to be cut.
    const SHAPES: [[usize; 3]; 4] = [[3, 5, 7], [33, 400, 50], [600, 208, 65], [70, 576, 192]];

    #[test]
    fn products_equal_the_definition() {
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
    fn products_have_the_same_bits_at_any_number_of_threads() {
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

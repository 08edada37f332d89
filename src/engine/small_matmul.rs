//! Matmuls too small for packing to be worthwhile: those of attention, one block of one head group at a time.

use super::simd::vectorized;

/// A strided view of a matrix: element (i, j) is `data[i * step.0 + j * step.1]`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    step: (usize, usize),
}

impl<'a> Matrix<'a> {
    /// A view of a row-major matrix whose rows are `width` apart.
    #[inline(always)]
    pub const fn rows(data: &'a [f32], width: usize) -> Self {
        Self {
            data,
            step: (width, 1),
        }
    }

    /// A view of the transpose of a row-major matrix whose rows are `width` apart.
    #[inline(always)]
    pub const fn columns(data: &'a [f32], width: usize) -> Self {
        Self {
            data,
            step: (1, width),
        }
    }
}

vectorized! {
    /// `c (m, n) = a (m, k) b (k, n)`, or `+=` with `add`.
    ///
    /// Rows of `c` are `ldc` apart; `b` must be row-major.
    pub fn small_matmul(c: &mut [f32], ldc: usize, shape: [usize; 3], a: Matrix<'_>, b: Matrix<'_>, add: bool) {
        let [m, k, n] = shape;
        debug_assert_eq!(b.step.1, 1, "columns of b lie side by side");
        let mut j = 0;
        while j < n {
            let from_j = Matrix::rows(&b.data[j..], b.step.0);
            let wide = match n - j {
                32.. => {
                    column_block::<32>(&mut c[j..], ldc, [m, k], a, from_j, add);
                    32
                }
                16.. => {
                    column_block::<16>(&mut c[j..], ldc, [m, k], a, from_j, add);
                    16
                }
                4.. => {
                    column_block::<4>(&mut c[j..], ldc, [m, k], a, from_j, add);
                    4
                }
                _ => {
                    column_block::<1>(&mut c[j..], ldc, [m, k], a, from_j, add);
                    1
                }
            };
            j += wide;
        }
    }
}

/// The first N columns of [`small_matmul`], four rows at a time: 4 N sums stay in registers.
///
/// The four rows are written out: in a loop over them the compiler kept the sums in memory and did not vectorise, at a twentieth of
/// the speed.
#[inline(always)]
fn column_block<const N: usize>(
    c: &mut [f32],
    ldc: usize,
    [m, k]: [usize; 2],
    a: Matrix,
    b: Matrix,
    add: bool,
) {
    let mut i = 0;
    while i < m {
        let rows = (m - i).min(4);
        // Rows beyond the end repeat the last one; their sums are dropped.
        let from = |r: usize| &a.data[(i + r.min(rows - 1)) * a.step.0..];
        let [a0, a1, a2, a3] = [from(0), from(1), from(2), from(3)];
        let (mut s0, mut s1, mut s2, mut s3) = ([0f32; N], [0f32; N], [0f32; N], [0f32; N]);
        for l in 0..k {
            let row: &[f32; N] = b.data[l * b.step.0..]
                .first_chunk()
                .expect("b has k rows of n columns");
            let at = l * a.step.1;
            let (a0, a1, a2, a3) = (a0[at], a1[at], a2[at], a3[at]);
            for x in 0..N {
                s0[x] = a0.mul_add(row[x], s0[x]);
                s1[x] = a1.mul_add(row[x], s1[x]);
                s2[x] = a2.mul_add(row[x], s2[x]);
                s3[x] = a3.mul_add(row[x], s3[x]);
            }
        }
        for (r, sums) in [s0, s1, s2, s3].iter().enumerate().take(rows) {
            let c: &mut [f32; N] = c[(i + r) * ldc..]
                .first_chunk_mut()
                .expect("c has m rows of n columns");
            for x in 0..N {
                c[x] = if add { c[x] + sums[x] } else { sums[x] };
            }
        }
        i += rows;
    }
}

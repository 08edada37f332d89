//! Matrix products in f32.
//!
//! C (M, N) = alpha op(A) (M, K) op(B) (K, N) + beta C. All matrices are row-major; weights are (N, K), as in `nn.Linear`.
//!
//! A workgroup computes one tile of C in registers, from tiles of A and B in workgroup memory. Where C has few tiles and K is large,
//! several workgroups share a tile along K, and a second pass adds their results in order.

use crate::gpu::{
    adapters::AdapterKind,
    buffer::Binding,
    context::{Gpu, Kernel, grid},
    elementwise,
    error::GpuError,
};

/// A row-major matrix in a buffer. Its rows may be parts of longer rows.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    /// The elements, from the first of the first row to the last of the last row.
    pub data: Binding<'a>,
    /// Number of rows, as stored.
    pub rows: usize,
    /// Number of columns, as stored.
    pub columns: usize,
    /// Elements from one row to the next.
    pub stride: usize,
}

impl<'a> Matrix<'a> {
    /// A matrix whose rows follow each other.
    pub fn new(data: Binding<'a>, rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns)
    }

    /// A matrix whose rows are `stride` apart. `data` may be longer than needed.
    pub fn strided(data: Binding<'a>, rows: usize, columns: usize, stride: usize) -> Self {
        Self {
            data,
            rows,
            columns,
            stride,
        }
    }

    /// The columns `first..first + columns`.
    #[must_use]
    pub fn with_columns(self, first: usize, columns: usize) -> Self {
        let data = self.data.part(first.min(self.data.len)..self.data.len);
        Self {
            data,
            columns,
            ..self
        }
    }

    /// The rows `first..first + rows`.
    #[must_use]
    pub fn with_rows(self, first: usize, rows: usize) -> Self {
        let start = (first * self.stride).min(self.data.len);
        let data = self.data.part(start..self.data.len);
        Self { data, rows, ..self }
    }

    /// Elements from the first to the last.
    fn span(self) -> usize {
        if self.rows == 0 || self.columns == 0 {
            return 0;
        }
        (self.rows - 1) * self.stride + self.columns
    }

    fn check(self, what: &'static str) -> Result<Self, GpuError> {
        let expected = self.span();
        if self.data.len < expected || self.data.end() > self.data.buffer.len() {
            return Err(GpuError::Shape {
                what,
                expected,
                got: self.data.len,
            });
        }
        if self.rows > 1 && self.stride < self.columns {
            return Err(GpuError::Shape {
                what,
                expected: self.columns,
                got: self.stride,
            });
        }
        let data = self.data.part(0..expected);
        Ok(Self { data, ..self })
    }

    /// Whether four elements of a row can be read at once, from any multiple of four on.
    fn has_vectors(self) -> bool {
        self.data.start.is_multiple_of(4) && (self.stride.is_multiple_of(4) || self.rows == 1)
    }
}

/// Which operand is stored the other way round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A (M, K), B (K, N): the gradient of a layer's input.
    NN,
    /// A (M, K), B (N, K): a layer, forward.
    NT,
    /// A (K, M), B (K, N): the gradient of a weight.
    TN,
}

/// The shape of a tile, and how an invocation shares in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    m: usize,
    n: usize,
    k: usize,
    halves: [usize; 2],
}

const fn tile(m: usize, n: usize, k: usize, halves: [usize; 2]) -> Tile {
    Tile { m, n, k, halves }
}

/// From large to small.
const TILES: [Tile; 5] = [
    tile(128, 128, 16, [2, 2]),
    tile(64, 128, 8, [2, 2]),
    tile(64, 64, 8, [2, 2]),
    tile(32, 64, 8, [1, 2]),
    tile(16, 128, 12, [1, 1]),
];

/// Workgroups that fill a large device, in general and for few rows, where reading B is all the work. On a software device, a few.
const ENOUGH_GROUPS: usize = 160;
const ENOUGH_NARROW_GROUPS: usize = 640;
const ENOUGH_SOFTWARE_GROUPS: usize = 4;

/// Least part of K that is worth a workgroup.
const MIN_SLICE: usize = 96;

/// Largest number of parts of K.
const MAX_SLICES: usize = 64;

impl Tile {
    fn threads(self) -> usize {
        self.m / (4 * self.halves[0]) * (self.n / (4 * self.halves[1]))
    }

    fn groups(self, m: usize, n: usize) -> usize {
        m.div_ceil(self.m) * n.div_ceil(self.n)
    }

    fn workgroup_bytes(self) -> usize {
        self.k * (self.m / 4 + 1 + self.n / 4 + 1) * 16
    }
}

/// The tile, and the part of K per workgroup, for a product (M, N, K).
fn plan(gpu: &Gpu, [m, n, k]: [usize; 3]) -> (Tile, usize) {
    let limits = gpu.limits();
    let fits = |tile: &Tile| {
        tile.workgroup_bytes() <= limits.max_compute_workgroup_storage_size as usize
            && tile.threads() <= limits.max_compute_invocations_per_workgroup as usize
    };
    // Half of a tile is waste at most.
    let suits = |tile: &Tile| fits(tile) && (m > tile.m / 2 || tile.m == 16);
    let smallest = TILES[TILES.len() - 1];
    let (enough, enough_narrow) = if gpu.report().kind == AdapterKind::Software {
        (ENOUGH_SOFTWARE_GROUPS, ENOUGH_SOFTWARE_GROUPS)
    } else {
        (ENOUGH_GROUPS, ENOUGH_NARROW_GROUPS)
    };
    let tile = TILES
        .into_iter()
        .filter(suits)
        .find(|tile| tile.m * tile.n <= 64 * 64 || tile.groups(m, n) >= enough)
        .unwrap_or(smallest);
    let enough = if tile == smallest {
        enough_narrow
    } else {
        enough
    };
    let slices = enough
        .div_ceil(tile.groups(m, n))
        .min(k / MIN_SLICE)
        .clamp(1, MAX_SLICES);
    (tile, k.div_ceil(slices).next_multiple_of(tile.k))
}

const VECTORS: &str = concat!(
    include_str!("matmul_vectors.wgsl"),
    include_str!("matmul.wgsl")
);
const SCALARS: &str = concat!(
    include_str!("matmul_scalars.wgsl"),
    include_str!("matmul.wgsl")
);
const ADD_SLICES: Kernel<'static> = Kernel {
    label: "matmul, second pass",
    source: include_str!("matmul_slices.wgsl"),
    entry: "add_slices",
    constants: &[],
};

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    m: u32,
    n: u32,
    k: u32,
    a_stride: u32,
    b_stride: u32,
    c_stride: u32,
    a_start: u32,
    b_start: u32,
    c_start: u32,
    k_slice: u32,
    c_slice: u32,
    alpha: f32,
    beta: f32,
    depth: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct SliceParams {
    m: u32,
    n: u32,
    c_start: u32,
    c_stride: u32,
    stride: u32,
    slice: u32,
    slices: u32,
    alpha: f32,
    beta: f32,
}

/// `c = alpha op(a) op(b) + beta c`, where `form` says how `a` and `b` are stored. With a `beta` of 0, `c` is not read.
///
/// `c` may not share a buffer with `a` or `b`. Matrices larger than a binding are multiplied in parts.
///
/// # Errors
/// [`GpuError::Shape`] if the shapes do not fit; those of [`Gpu::dispatch`].
pub fn matmul(
    gpu: &Gpu,
    form: Form,
    c: Matrix<'_>,
    a: Matrix<'_>,
    b: Matrix<'_>,
    alpha: f32,
    beta: f32,
) -> Result<(), GpuError> {
    let (c, a, b) = (
        c.check("matmul: C")?,
        a.check("matmul: A")?,
        b.check("matmul: B")?,
    );
    let (m, n) = (c.rows, c.columns);
    let [(a_m, k), (b_k, b_n)] = match form {
        Form::NN => [(a.rows, a.columns), (b.rows, b.columns)],
        Form::NT => [(a.rows, a.columns), (b.columns, b.rows)],
        Form::TN => [(a.columns, a.rows), (b.rows, b.columns)],
    };
    for (what, expected, got) in [
        ("matmul: rows of A", m, a_m),
        ("matmul: columns of B", n, b_n),
        ("matmul: K of B", k, b_k),
    ] {
        if expected != got {
            return Err(GpuError::Shape {
                what,
                expected,
                got,
            });
        }
    }
    if m == 0 || n == 0 {
        return Ok(());
    }
    if k == 0 {
        return scale_rows(gpu, c, beta);
    }
    multiply_parts(gpu, form, [c, a, b], [m, n, k], [alpha, beta])
}

/// `c *= factor`, where there is nothing to add.
fn scale_rows(gpu: &Gpu, c: Matrix<'_>, factor: f32) -> Result<(), GpuError> {
    if factor == 1.0 {
        return Ok(());
    }
    for row in 0..c.rows {
        let row = c.data.part(row * c.stride..row * c.stride + c.columns);
        if factor == 0.0 {
            elementwise::fill(gpu, row, 0.0)?;
        } else {
            elementwise::scale(gpu, row, factor)?;
        }
    }
    Ok(())
}

/// Halves a side of the product until every operand can be bound.
fn multiply_parts(
    gpu: &Gpu,
    form: Form,
    [c, a, b]: [Matrix<'_>; 3],
    [m, n, k]: [usize; 3],
    [alpha, beta]: [f32; 2],
) -> Result<(), GpuError> {
    let most = gpu.max_binding() - 2 * gpu.alignment();
    let fits = |matrix: Matrix<'_>| matrix.span() <= most;
    // The side along which the rows of an operand that is too large are divided.
    let side = if !fits(c) {
        'm'
    } else if !fits(a) {
        if form == Form::TN { 'k' } else { 'm' }
    } else if !fits(b) {
        if form == Form::NT { 'n' } else { 'k' }
    } else {
        return multiply(gpu, form, [c, a, b], [m, n, k], [alpha, beta]);
    };
    let too_long = |rows: usize, matrix: Matrix<'_>| GpuError::LimitTooSmall {
        what: format!("matmul (bytes of {rows} row)"),
        needed: 4 * matrix.span() as u64,
        limit: 4 * most as u64,
    };
    match side {
        'm' => {
            if m == 1 {
                return Err(too_long(1, c));
            }
            let half = (m / 2).next_multiple_of(4).min(m - 1);
            for (first, rows) in [(0, half), (half, m - half)] {
                let a = if form == Form::TN {
                    a.with_columns(first, rows).check("matmul: A")?
                } else {
                    a.with_rows(first, rows).check("matmul: A")?
                };
                let c = c.with_rows(first, rows).check("matmul: C")?;
                multiply_parts(gpu, form, [c, a, b], [rows, n, k], [alpha, beta])?;
            }
        }
        'n' => {
            if n == 1 {
                return Err(too_long(1, b));
            }
            let half = (n / 2).next_multiple_of(4).min(n - 1);
            for (first, columns) in [(0, half), (half, n - half)] {
                let b = b.with_rows(first, columns).check("matmul: B")?;
                let c = c.with_columns(first, columns).check("matmul: C")?;
                multiply_parts(gpu, form, [c, a, b], [m, columns, k], [alpha, beta])?;
            }
        }
        _ => {
            if k == 1 {
                return Err(too_long(1, b));
            }
            let half = (k / 2).next_multiple_of(4).min(k - 1);
            for (first, len, beta) in [(0, half, beta), (half, k - half, 1.0)] {
                let a = if form == Form::TN {
                    a.with_rows(first, len).check("matmul: A")?
                } else {
                    a.with_columns(first, len).check("matmul: A")?
                };
                let b = if form == Form::NT {
                    b.with_columns(first, len).check("matmul: B")?
                } else {
                    b.with_rows(first, len).check("matmul: B")?
                };
                multiply_parts(gpu, form, [c, a, b], [m, n, len], [alpha, beta])?;
            }
        }
    }
    Ok(())
}

fn multiply(
    gpu: &Gpu,
    form: Form,
    operands: [Matrix<'_>; 3],
    shape: [usize; 3],
    factors: [f32; 2],
) -> Result<(), GpuError> {
    multiply_planned(gpu, form, operands, shape, factors, plan(gpu, shape))
}

/// The product, in tiles, each over parts of K that are `k_slice` long.
fn multiply_planned(
    gpu: &Gpu,
    form: Form,
    [c, a, b]: [Matrix<'_>; 3],
    [m, n, k]: [usize; 3],
    [alpha, beta]: [f32; 2],
    (tile, mut k_slice): (Tile, usize),
) -> Result<(), GpuError> {
    // The partial results of all slices are one array.
    let row = n.next_multiple_of(4);
    let room = (gpu.max_binding() - gpu.alignment()) / (m * row);
    if k.div_ceil(k_slice) > room.max(1) {
        k_slice = k.div_ceil(room.max(1)).next_multiple_of(tile.k);
    }
    let slices = k.div_ceil(k_slice);
    let vectors = a.has_vectors() && b.has_vectors() && (slices > 1 || c.has_vectors());
    let rows = (tile.m / 4 + 1, tile.n / 4 + 1);
    let constants = [
        ("BM", tile.m as f64),
        ("BN", tile.n as f64),
        ("BK", tile.k as f64),
        ("HALVES_M", tile.halves[0] as f64),
        ("HALVES_N", tile.halves[1] as f64),
        ("THREADS", tile.threads() as f64),
        ("TRANSPOSE_A", f64::from(form == Form::TN)),
        ("TRANSPOSE_B", f64::from(form == Form::NT)),
        ("A_ROW", rows.0 as f64),
        ("B_ROW", rows.1 as f64),
        ("A_TILE", (tile.k * rows.0) as f64),
        ("B_TILE", (tile.k * rows.1) as f64),
        (
            "ROLLED",
            f64::from(gpu.report().kind == AdapterKind::Software),
        ),
    ];
    let kernel = Kernel {
        label: "matmul",
        source: if vectors { VECTORS } else { SCALARS },
        entry: "multiply",
        constants: &constants,
    };
    let groups = [
        n.div_ceil(tile.n) as u32,
        m.div_ceil(tile.m) as u32,
        slices as u32,
    ];
    let alignment = gpu.alignment();
    let ((a_data, a_start), (b_data, b_start)) =
        (a.data.aligned(alignment), b.data.aligned(alignment));
    let (c_data, c_start) = c.data.aligned(alignment);
    let mut params = Params {
        m: m as u32,
        n: n as u32,
        k: k as u32,
        a_stride: a.stride as u32,
        b_stride: b.stride as u32,
        c_stride: c.stride as u32,
        a_start,
        b_start,
        c_start,
        k_slice: k_slice as u32,
        c_slice: 0,
        alpha,
        beta,
        depth: tile.k as u32,
    };
    if slices == 1 {
        return gpu.dispatch(&kernel, &[c_data, a_data, b_data], &params, groups);
    }
    let partial = gpu.scratch("matmul", slices * m * row)?;
    params = Params {
        c_stride: row as u32,
        c_start: 0,
        c_slice: (m * row) as u32,
        alpha: 1.0,
        beta: 0.0,
        ..params
    };
    let partial = partial.range(0..slices * m * row);
    gpu.dispatch(&kernel, &[partial, a_data, b_data], &params, groups)?;
    let params = SliceParams {
        m: m as u32,
        n: n as u32,
        c_start,
        c_stride: c.stride as u32,
        stride: row as u32,
        slice: (m * row) as u32,
        slices: slices as u32,
        alpha,
        beta,
    };
    let groups = grid((m * n).div_ceil(256));
    gpu.dispatch(&ADD_SLICES, &[c_data, partial], &params, groups)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gpu::testing::{gpu, random};

    const FORMS: [Form; 3] = [Form::NN, Form::NT, Form::TN];

    /// A product of random matrices inside of wider ones, beside f64 loops.
    struct Case {
        form: Form,
        shape: [usize; 3],
        /// Columns beyond those of C, A and B.
        more: [usize; 3],
        /// Elements before each.
        before: usize,
        factors: [f32; 2],
    }

    impl Case {
        /// Stored rows and columns of A and of B.
        fn stored(&self) -> [(usize, usize); 2] {
            let [m, n, k] = self.shape;
            match self.form {
                Form::NN => [(m, k), (k, n)],
                Form::NT => [(m, k), (n, k)],
                Form::TN => [(k, m), (k, n)],
            }
        }

        /// Computes it with `run(c, a, b)`. All elements must be near those of f64 loops, and none outside of C may change.
        fn check(&self, gpu: &Gpu, run: impl Fn([Matrix<'_>; 3]) -> Result<(), GpuError>) {
            let [m, n, k] = self.shape;
            let [alpha, beta] = self.factors.map(f64::from);
            let [(a_rows, a_columns), (b_rows, b_columns)] = self.stored();
            let sizes = [(m, n), (a_rows, a_columns), (b_rows, b_columns)];
            let strides: Vec<usize> = sizes
                .iter()
                .zip(self.more)
                .map(|((_, columns), more)| columns + more)
                .collect();
            let data: Vec<Vec<f32>> = (0..3)
                .map(|i| random(self.before + sizes[i].0 * strides[i] + 3, i as u64))
                .collect();
            let buffers: Vec<_> = data
                .iter()
                .map(|data| gpu.upload(data).expect("memory"))
                .collect();
            let matrices: Vec<_> = (0..3)
                .map(|i| {
                    let range = buffers[i].range(self.before..data[i].len());
                    Matrix::strided(range, sizes[i].0, sizes[i].1, strides[i])
                })
                .collect();
            run([matrices[0], matrices[1], matrices[2]]).expect("a product");
            let got = gpu
                .download(&buffers[0], 0..data[0].len())
                .expect("a result");

            let a = |i: usize, l: usize| {
                let (row, column) = if self.form == Form::TN {
                    (l, i)
                } else {
                    (i, l)
                };
                f64::from(data[1][self.before + row * strides[1] + column])
            };
            let b = |l: usize, j: usize| {
                let (row, column) = if self.form == Form::NT {
                    (j, l)
                } else {
                    (l, j)
                };
                f64::from(data[2][self.before + row * strides[2] + column])
            };
            let mut expected: Vec<f64> = data[0].iter().map(|c| f64::from(*c)).collect();
            let mut bounds = vec![0.0; expected.len()];
            for i in 0..m {
                for j in 0..n {
                    let at = self.before + i * strides[0] + j;
                    let before = beta * expected[at];
                    let products = || (0..k).map(|l| a(i, l) * b(l, j));
                    expected[at] = before + alpha * products().sum::<f64>();
                    // K roundings of a sum that grows to the sum of absolute values; their signs are random.
                    let magnitude =
                        before.abs() + alpha.abs() * products().map(f64::abs).sum::<f64>();
                    bounds[at] = (2.0 + (k as f64).sqrt()) * 2f64.powi(-24) * magnitude;
                }
            }
            for (at, (got, (expected, bound))) in
                got.iter().zip(expected.iter().zip(bounds)).enumerate()
            {
                assert!(
                    (f64::from(*got) - expected).abs() <= bound,
                    "{:?} {:?} at {at}: {got} is not {expected}",
                    self.form,
                    self.shape,
                );
            }
        }
    }

    /// Products of a few tiles, in which every side ends within a tile.
    fn check_tile(gpu: &Gpu, tile: Tile, form: Form, vectors: bool) {
        let (more, before) = if vectors {
            ([4, 8, 4], 8)
        } else {
            ([1, 2, 3], 5)
        };
        // One slice of K, then several.
        for (k, k_slice) in [(2 * tile.k + 5, 64), (5 * tile.k + 2, 2 * tile.k)] {
            let shape = [tile.m + 5, tile.n + 3, k];
            let shape = if vectors {
                shape.map(|side| side.next_multiple_of(4))
            } else {
                shape
            };
            let factors = [0.5, -0.25];
            let case = Case {
                form,
                shape,
                more,
                before,
                factors,
            };
            case.check(gpu, |[c, a, b]| {
                let operands = [c.check("C")?, a.check("A")?, b.check("B")?];
                multiply_planned(gpu, form, operands, shape, factors, (tile, k_slice))
            });
        }
    }

    #[test]
    fn every_tile_equals_the_definition() {
        let gpu = gpu();
        for tile in TILES {
            check_tile(&gpu, tile, Form::NT, true);
        }
    }

    #[test]
    fn every_form_equals_the_definition() {
        let gpu = gpu();
        for form in FORMS {
            for vectors in [true, false] {
                check_tile(&gpu, TILES[TILES.len() - 1], form, vectors);
            }
        }
    }

    #[test]
    fn products_larger_than_a_binding_are_computed_in_parts() {
        let gpu = Gpu::open(0).expect("a device");
        gpu.limit_bindings(1000);
        for form in FORMS {
            for shape in [
                [16, 70, 60],
                [8, 100, 60],
                [15, 90, 8],
                [12, 10, 200],
                [1, 3, 700],
            ] {
                let factors = [1.0, 1.0];
                let case = Case {
                    form,
                    shape,
                    more: [0; 3],
                    before: 4,
                    factors,
                };
                case.check(&gpu, |[c, a, b]| matmul(&gpu, form, c, a, b, 1.0, 1.0));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn products_equal_the_definition(
            // One shape of tile: compilation takes longer than the products.
            m in 1usize..=16,
            n in 1usize..140,
            k in 1usize..400,
            form in 0usize..3,
            more in [0usize..5, 0usize..5, 0usize..5],
            before in 0usize..9,
            beta in prop::sample::select(vec![0.0f32, 1.0, 0.5]),
        ) {
            let gpu = gpu();
            let factors = [1.5, beta];
            let case = Case { form: FORMS[form], shape: [m, n, k], more, before, factors };
            case.check(&gpu, |[c, a, b]| matmul(&gpu, FORMS[form], c, a, b, 1.5, beta));
        }
    }

    #[test]
    fn with_a_beta_of_zero_the_result_is_not_read() {
        let gpu = gpu();
        let (a, b) = (
            gpu.upload(&[2.0; 6]).expect("memory"),
            gpu.upload(&[3.0; 6]).expect("memory"),
        );
        let c = gpu.upload(&[f32::NAN; 4]).expect("memory");
        let (a, b) = (Matrix::new(a.all(), 2, 3), Matrix::new(b.all(), 3, 2));
        matmul(&gpu, Form::NN, Matrix::new(c.all(), 2, 2), a, b, 1.0, 0.0).expect("a product");
        assert_eq!(gpu.download(&c, 0..4).expect("a result"), [18.0; 4]);
    }

    #[test]
    fn two_runs_are_bitwise_the_same() {
        let gpu = gpu();
        let (a, b) = (
            gpu.upload(&random(7 * 900, 1)).expect("memory"),
            gpu.upload(&random(900 * 33, 2)).expect("memory"),
        );
        let run = || {
            let c = gpu.zeros(7 * 33).expect("memory");
            let (a, b) = (Matrix::new(a.all(), 7, 900), Matrix::new(b.all(), 900, 33));
            matmul(&gpu, Form::NN, Matrix::new(c.all(), 7, 33), a, b, 1.0, 0.0).expect("a product");
            gpu.download(&c, 0..7 * 33).expect("a result")
        };
        let bits = |data: Vec<f32>| data.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(run()), bits(run()));
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let gpu = gpu();
        let data = gpu.zeros(100).expect("memory");
        let other = gpu.zeros(100).expect("memory");
        let matrix = |rows, columns| Matrix::new(data.all(), rows, columns);
        let c = Matrix::new(other.all(), 3, 4);
        let refused = |a, b| {
            let result = matmul(&gpu, Form::NN, c, a, b, 1.0, 0.0);
            assert!(matches!(result, Err(GpuError::Shape { .. })), "{result:?}");
        };
        refused(matrix(3, 5), matrix(6, 4));
        refused(matrix(2, 5), matrix(5, 4));
        refused(matrix(3, 5), matrix(5, 5));
        refused(matrix(3, 40), matrix(40, 4));
    }
}

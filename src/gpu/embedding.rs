//! Rows of a table by their numbers (the embedding, and rows of activations), and the gradient of the embedding.
//!
//! T tokens, D columns, V rows of the table.

use crate::gpu::{
    buffer::{Binding, GpuBuffer},
    context::{Gpu, Kernel, grid},
    elementwise::{expect_len, row_pieces},
    error::GpuError,
};

const SOURCE: &str = include_str!("embedding.wgsl");

/// In a list of rows: a row of zeros.
pub const ZERO_ROW: u32 = u32::MAX;

/// Columns of a workgroup.
const COLUMNS: usize = 256;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    rows: u32,
    width: u32,
    out_start: u32,
    ids_start: u32,
    table_start: u32,
    first: u32,
    count: u32,
    zero: u32,
    factor: f32,
}

/// `out[t] = factor * table[ids[t]]`; a row of zeros where the number is [`ZERO_ROW`].
///
/// `out` (T, D), `ids` (T) as u32, `table` (V, D). Rows whose number is V or more are left as they are. The table may be larger than a
/// binding. With `ids` from [`scatter_ids`], rows are moved apart, with zeros in between.
///
/// # Errors
/// [`GpuError::Shape`] if the lengths do not fit; those of [`Gpu::dispatch`].
pub fn gather_rows(
    gpu: &Gpu,
    out: Binding<'_>,
    table: Binding<'_>,
    ids: Binding<'_>,
    width: usize,
    factor: f32,
) -> Result<(), GpuError> {
    let (rows, table_rows) = (ids.len, table.len / width.max(1));
    expect_len("gather: rows", out, rows * width)?;
    expect_len("gather: table", table, table_rows * width)?;
    expect_len("gather: numbers", ids, rows)?;
    let kernel = Kernel {
        label: "gather rows",
        source: SOURCE,
        entry: "gather",
        constants: &[],
    };
    let alignment = gpu.alignment();
    for rows in row_pieces(gpu, rows, width) {
        let out = out.part(rows.start * width..rows.end * width);
        let (out, out_start) = out.aligned(alignment);
        let (ids, ids_start) = ids.part(rows.clone()).aligned(alignment);
        for part in row_pieces(gpu, table_rows, width) {
            let table = table.part(part.start * width..part.end * width);
            let (table, table_start) = table.aligned(alignment);
            let params = Params {
                rows: rows.len() as u32,
                width: width as u32,
                out_start,
                ids_start,
                table_start,
                first: part.start as u32,
                count: part.len() as u32,
                zero: u32::from(part.start == 0),
                factor,
            };
            let groups = grid(rows.len() * width.div_ceil(COLUMNS));
            gpu.dispatch(&kernel, &[out, ids, table], &params, groups)?;
        }
    }
    Ok(())
}

/// The numbers with which [`gather_rows`] moves row i to row `positions[i]` of `rows` rows, and zeroes the others.
pub fn scatter_ids(positions: &[usize], rows: usize) -> Vec<u32> {
    let mut ids = vec![ZERO_ROW; rows];
    for (i, position) in positions.iter().enumerate() {
        ids[*position] = i as u32;
    }
    ids
}

/// The occurrences of each token of a batch, for the gradient of the embedding.
pub struct TokenRows {
    tokens: GpuBuffer, // (U), ascending
    starts: GpuBuffer, // (U + 1): the first occurrence of each in `order`
    order: GpuBuffer,  // (T): rows, those of a token in ascending order
    unique: usize,
    rows: usize,
}

impl TokenRows {
    /// The occurrences in `tokens` (T).
    ///
    /// # Errors
    /// As [`Gpu::upload`].
    pub fn new(gpu: &Gpu, tokens: &[u32]) -> Result<Self, GpuError> {
        let mut order: Vec<u32> = (0..tokens.len() as u32).collect();
        order.sort_by_key(|row| tokens[*row as usize]);
        let (mut unique, mut starts) = (Vec::new(), Vec::new());
        for (i, row) in order.iter().enumerate() {
            let token = tokens[*row as usize];
            if unique.last() != Some(&token) {
                unique.push(token);
                starts.push(i as u32);
            }
        }
        starts.push(order.len() as u32);
        Ok(Self {
            tokens: gpu.upload_u32(&unique)?,
            starts: gpu.upload_u32(&starts)?,
            order: gpu.upload_u32(&order)?,
            unique: unique.len(),
            rows: order.len(),
        })
    }
}

/// Gradient of the embedding: `d_table[tokens[t]] += factor * d_rows[t]`, summed over the occurrences of a token in order.
///
/// `d_table` (V, D), `d_rows` (T, D). Tokens from V on are left out.
///
/// # Errors
/// As [`gather_rows`].
pub fn embedding_backward(
    gpu: &Gpu,
    d_table: Binding<'_>,
    d_rows: Binding<'_>,
    tokens: &TokenRows,
    width: usize,
    factor: f32,
) -> Result<(), GpuError> {
    let table_rows = d_table.len / width.max(1);
    expect_len("embedding: gradient", d_table, table_rows * width)?;
    expect_len("embedding: rows", d_rows, tokens.rows * width)?;
    if tokens.rows == 0 {
        return Ok(());
    }
    let kernel = Kernel {
        label: "embedding, backward",
        source: SOURCE,
        entry: "add_rows",
        constants: &[],
    };
    let (rows, rows_start) = d_rows.aligned(gpu.alignment());
    for part in row_pieces(gpu, table_rows, width) {
        let table = d_table.part(part.start * width..part.end * width);
        let (table, out_start) = table.aligned(gpu.alignment());
        let params = Params {
            rows: tokens.unique as u32,
            width: width as u32,
            out_start,
            ids_start: 0,
            table_start: rows_start,
            first: part.start as u32,
            count: part.len() as u32,
            zero: 0,
            factor,
        };
        let bindings = [
            table,
            rows,
            tokens.tokens.all(),
            tokens.starts.all(),
            tokens.order.all(),
        ];
        let groups = grid(tokens.unique * width.div_ceil(COLUMNS));
        gpu.dispatch(&kernel, &bindings, &params, groups)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::testing::{assert_close, gpu, random};

    fn check(gpu: &Gpu, width: usize) {
        let (vocab, factor) = (11, 1.5);
        let tokens = [3, 0, 10, 3, 7, 3, 0];
        let table = random(vocab * width, 1);
        let on_device = gpu.upload(&table).expect("memory");
        let ids = gpu.upload_u32(&tokens).expect("memory");
        let out = gpu
            .upload(&random(tokens.len() * width + 3, 9))
            .expect("memory");
        let rows = out.range(3..3 + tokens.len() * width);
        gather_rows(gpu, rows, on_device.all(), ids.all(), width, factor).expect("a run");
        let got = gpu
            .download(&out, 3..3 + tokens.len() * width)
            .expect("a result");
        for (row, token) in got.chunks(width).zip(tokens) {
            let expected = table[token as usize * width..][..width].iter();
            assert!(
                row.iter()
                    .eq(&expected.map(|x| x * factor).collect::<Vec<_>>())
            );
        }

        let d_rows = random(tokens.len() * width, 2);
        let before = random(vocab * width, 3);
        let d_table = gpu.upload(&before).expect("memory");
        let of_tokens = TokenRows::new(gpu, &tokens).expect("memory");
        let d = gpu.upload(&d_rows).expect("memory");
        embedding_backward(gpu, d_table.all(), d.all(), &of_tokens, width, factor).expect("a run");
        let got = gpu.download(&d_table, 0..vocab * width).expect("a result");
        let mut expected: Vec<f64> = before.iter().map(|x| f64::from(*x)).collect();
        for (token, row) in tokens.iter().zip(d_rows.chunks(width)) {
            for (g, dx) in expected[*token as usize * width..].iter_mut().zip(row) {
                *g += 1.5 * f64::from(*dx);
            }
        }
        // Six roundings of numbers up to 6.
        assert_close(&got, &expected, 6.0 * 6.0 * 6e-8);
    }

    #[test]
    fn rows_are_found_and_their_gradients_added() {
        let gpu = gpu();
        for width in [1, 6, 300] {
            check(&gpu, width);
        }
    }

    #[test]
    fn tables_larger_than_a_binding_are_read_in_parts() {
        let gpu = Gpu::open(0).expect("a device");
        // Rows and the table are divided, the gradient's rows are not.
        gpu.limit_bindings(700);
        check(&gpu, 96);
    }

    #[test]
    fn rows_are_moved_apart_with_zeros_in_between() {
        let gpu = gpu();
        let from = gpu.upload(&random(3 * 5, 1)).expect("memory");
        let to = gpu.upload(&random(7 * 5, 2)).expect("memory");
        let ids = gpu.upload_u32(&scatter_ids(&[1, 2, 6], 7)).expect("memory");
        gather_rows(&gpu, to.all(), from.all(), ids.all(), 5, 1.0).expect("a run");
        let (from, to) = (
            gpu.download(&from, 0..15).expect("a result"),
            gpu.download(&to, 0..35).expect("a result"),
        );
        assert_eq!(to[5..15], from[..10]);
        assert_eq!(to[30..], from[10..]);
        assert!(to[..5].iter().chain(&to[15..30]).all(|x| *x == 0.0));
    }
}

//! Rotary position embedding (`RoPE`, Su et al. 2021), in the half-split form of `transformers`.

use crate::gpu::{
    buffer::Binding,
    context::{Gpu, Kernel, grid},
    elementwise::{expect_len, row_pieces},
    error::GpuError,
};

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    tokens: u32,
    heads: u32,
    dim: u32,
    half: u32,
    width: u32,
    qkv_start: u32,
    positions_start: u32,
    table_start: u32,
    last: u32,
    sign: f32,
}

/// The angles of all positions, and which columns they rotate.
#[derive(Clone, Copy)]
pub struct Rope<'a> {
    /// cos and sin (positions, 2 `half`): a row is the cosines of a position, then its sines.
    pub table: Binding<'a>,
    /// Number of angles: half of the rotated channels of a head.
    pub half: usize,
    /// Number of heads from the first column on: those of q and k.
    pub heads: usize,
    /// Channels of a head. Those from 2 `half` on are not rotated.
    pub head_dim: usize,
}

/// The two directions of [`rope`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// As in the forward pass.
    Forward,
    /// Back: the gradient.
    Backward,
}

/// Rotates the q and k heads of every row of `qkv` (T, `width`) by the angles of its position, in place. `positions` (T) as u32 are
/// rows of the table; those beyond it are taken as the last.
///
/// # Errors
/// [`GpuError::Shape`] if the lengths do not fit; those of [`Gpu::dispatch`].
pub fn rope(
    gpu: &Gpu,
    qkv: Binding<'_>,
    width: usize,
    positions: Binding<'_>,
    rope: Rope<'_>,
    direction: Direction,
) -> Result<(), GpuError> {
    let Rope {
        table,
        half,
        heads,
        head_dim,
    } = rope;
    let tokens = positions.len;
    if half == 0 || heads == 0 || tokens == 0 {
        return Ok(());
    }
    expect_len("rope: qkv", qkv, tokens * width)?;
    expect_len("rope: positions", positions, tokens)?;
    expect_len("rope: table", table, table.len / (2 * half) * 2 * half)?;
    let Some(last) = (table.len / (2 * half)).checked_sub(1) else {
        return Err(GpuError::Shape {
            what: "rope: table",
            expected: 2 * half,
            got: table.len,
        });
    };
    let last = last as u32;
    if width < heads * head_dim || head_dim < 2 * half {
        return Err(GpuError::Shape {
            what: "rope: columns",
            expected: heads * head_dim.max(2 * half),
            got: width,
        });
    }
    let kernel = Kernel {
        label: "rope",
        source: include_str!("rope.wgsl"),
        entry: "rotate",
        constants: &[],
    };
    let alignment = gpu.alignment();
    let (table, table_start) = table.aligned(alignment);
    for rows in row_pieces(gpu, tokens, width) {
        let elements = rows.start * width..rows.end * width;
        let (qkv, qkv_start) = qkv.part(elements).aligned(alignment);
        let (positions, positions_start) = positions.part(rows.clone()).aligned(alignment);
        let params = Params {
            tokens: rows.len() as u32,
            heads: heads as u32,
            dim: head_dim as u32,
            half: half as u32,
            width: width as u32,
            qkv_start,
            positions_start,
            table_start,
            last,
            sign: match direction {
                Direction::Forward => 1.0,
                Direction::Backward => -1.0,
            },
        };
        let groups = grid((rows.len() * heads * half).div_ceil(256));
        gpu.dispatch(&kernel, &[qkv, positions, table], &params, groups)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::testing::{assert_close, gpu, random, wide};

    #[test]
    fn heads_are_rotated_by_the_angles_of_their_positions_and_back() {
        let gpu = gpu();
        for [tokens, half, head_dim, heads] in [[1, 1, 2, 1], [9, 6, 16, 5], [30, 32, 64, 3]] {
            let width = (heads + 2) * head_dim;
            let positions: Vec<u32> = (0..tokens).map(|t| (t as u32 * 7) % 13).collect();
            let mut table = Vec::new();
            for position in 0..13 {
                let angles = (0..half).map(|i| f64::from(position) / (1.0 + i as f64));
                table.extend(angles.clone().map(|a| a.cos() as f32));
                table.extend(angles.map(|a| a.sin() as f32));
            }
            let data = random(tokens * width, 1);
            let qkv = gpu.upload(&data).expect("memory");
            let (at, angles) = (
                gpu.upload_u32(&positions).expect("memory"),
                gpu.upload(&table).expect("memory"),
            );
            let of = Rope {
                table: angles.all(),
                half,
                heads,
                head_dim,
            };
            rope(&gpu, qkv.all(), width, at.all(), of, Direction::Forward).expect("a run");
            let got = gpu.download(&qkv, 0..tokens * width).expect("a result");
            let mut expected = wide(&data);
            for (row, position) in expected.chunks_mut(width).zip(&positions) {
                for head in row.chunks_mut(head_dim).take(heads) {
                    for i in 0..half {
                        let (sin, cos) = (f64::from(*position) / (1.0 + i as f64)).sin_cos();
                        let (a, b) = (head[i], head[i + half]);
                        (head[i], head[i + half]) = (a * cos - b * sin, b * cos + a * sin);
                    }
                }
            }
            // The table and three operations are rounded; numbers up to 2.
            assert_close(&got, &expected, 5e-7);
            rope(&gpu, qkv.all(), width, at.all(), of, Direction::Backward).expect("a run");
            let back = gpu.download(&qkv, 0..tokens * width).expect("a result");
            assert_close(&back, &wide(&data), 1e-6);
        }
    }
}

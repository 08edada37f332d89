//! Operations on each element: sums and differences of arrays, and the gated units.
//!
//! T tokens, F intermediate.

use std::ops::Range;

use crate::gpu::{
    buffer::Binding,
    context::{Gpu, Kernel, grid},
    error::GpuError,
};

const SOURCE: &str = include_str!("elementwise.wgsl");
const GATED: &str = include_str!("gated.wgsl");

/// Elements of a workgroup.
const PER_GROUP: usize = 1024;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    len: u32,
    y_start: u32,
    x_start: u32,
    z_start: u32,
    factor: f32,
}

/// Parts of `0..len` that can be bound, wherever an array starts.
pub(crate) fn pieces(gpu: &Gpu, len: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let most = gpu.max_binding() - 2 * gpu.alignment();
    (0..len)
        .step_by(most)
        .map(move |start| start..(start + most).min(len))
}

/// Parts of `rows` whose widest array, of `width` elements a row, can be bound.
pub(crate) fn row_pieces(
    gpu: &Gpu,
    rows: usize,
    width: usize,
) -> impl Iterator<Item = Range<usize>> + use<> {
    let most = ((gpu.max_binding() - 2 * gpu.alignment()) / width.max(1)).max(1);
    (0..rows)
        .step_by(most)
        .map(move |start| start..(start + most).min(rows))
}

/// Checks that `binding` has `expected` elements, all of them in its buffer.
pub(crate) fn expect_len(
    what: &'static str,
    binding: Binding<'_>,
    expected: usize,
) -> Result<(), GpuError> {
    if binding.len != expected || binding.end() > binding.buffer.len() {
        return Err(GpuError::Shape {
            what,
            expected,
            got: binding
                .len
                .min(binding.buffer.len().saturating_sub(binding.start)),
        });
    }
    Ok(())
}

/// Runs `entry` on the elements of `y` and of `inputs`, which are as long.
fn run(
    gpu: &Gpu,
    entry: &'static str,
    y: Binding<'_>,
    inputs: &[Binding<'_>],
    factor: f32,
) -> Result<(), GpuError> {
    expect_len(entry, y, y.len)?;
    for input in inputs {
        expect_len(entry, *input, y.len)?;
    }
    let kernel = Kernel {
        label: entry,
        source: SOURCE,
        entry,
        constants: &[],
    };
    for piece in pieces(gpu, y.len) {
        let (bound, starts): (Vec<_>, Vec<_>) = [y]
            .iter()
            .chain(inputs)
            .map(|binding| binding.part(piece.clone()).aligned(gpu.alignment()))
            .unzip();
        let start = |i: usize| starts.get(i).copied().unwrap_or(0);
        let params = Params {
            len: piece.len() as u32,
            y_start: start(0),
            x_start: start(1),
            z_start: start(2),
            factor,
        };
        gpu.dispatch(
            &kernel,
            &bound,
            &params,
            grid(piece.len().div_ceil(PER_GROUP)),
        )?;
    }
    Ok(())
}

/// `y += factor * x`.
///
/// # Errors
/// [`GpuError::Shape`] if the lengths differ; those of [`Gpu::dispatch`].
pub fn add_scaled(gpu: &Gpu, y: Binding<'_>, factor: f32, x: Binding<'_>) -> Result<(), GpuError> {
    run(gpu, "add_scaled", y, &[x], factor)
}

/// `y *= factor`.
///
/// # Errors
/// As [`add_scaled`].
pub fn scale(gpu: &Gpu, y: Binding<'_>, factor: f32) -> Result<(), GpuError> {
    run(gpu, "scale", y, &[], factor)
}

/// `y = value`.
///
/// # Errors
/// As [`add_scaled`].
pub fn fill(gpu: &Gpu, y: Binding<'_>, value: f32) -> Result<(), GpuError> {
    run(gpu, "fill", y, &[], value)
}

/// `y = factor * x`. [`Gpu::copy`] copies without a factor.
///
/// # Errors
/// As [`add_scaled`].
pub fn copy_scaled(gpu: &Gpu, y: Binding<'_>, factor: f32, x: Binding<'_>) -> Result<(), GpuError> {
    run(gpu, "copy_scaled", y, &[x], factor)
}

/// `y += factor * x^2`.
///
/// # Errors
/// As [`add_scaled`].
pub fn add_squares(gpu: &Gpu, y: Binding<'_>, factor: f32, x: Binding<'_>) -> Result<(), GpuError> {
    run(gpu, "add_squares", y, &[x], factor)
}

/// `y = a - b`.
///
/// # Errors
/// As [`add_scaled`].
pub fn subtract(gpu: &Gpu, y: Binding<'_>, a: Binding<'_>, b: Binding<'_>) -> Result<(), GpuError> {
    run(gpu, "subtract", y, &[a, b], 0.0)
}

/// `y = to - (1 - factor) (to - from)`: `from` at a factor of 0, `to` exactly at 1. Elements that are equal stay bitwise identical.
///
/// # Errors
/// As [`add_scaled`].
pub fn lerp(
    gpu: &Gpu,
    y: Binding<'_>,
    from: Binding<'_>,
    to: Binding<'_>,
    factor: f32,
) -> Result<(), GpuError> {
    run(gpu, "lerp", y, &[from, to], factor)
}

/// Swaps the elements of `y` and `x`.
///
/// # Errors
/// As [`add_scaled`].
pub fn swap(gpu: &Gpu, y: Binding<'_>, x: Binding<'_>) -> Result<(), GpuError> {
    run(gpu, "swap", y, &[x], 0.0)
}

/// The function of a gated unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// `silu(gate) * up` (`SwiGLU`, Shazeer 2020).
    Swiglu,
    /// `gelu(gate) * up` with the tanh form of GELU (`GeGLU`).
    Geglu,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct GatedParams {
    len: u32,
    f: u32,
    h_start: u32,
    gate_start: u32,
    dh_start: u32,
}

fn run_gated(
    gpu: &Gpu,
    entry: &'static str,
    gate: Gate,
    [h, gate_up]: [Binding<'_>; 2],
    dh: Option<Binding<'_>>,
    f: usize,
) -> Result<(), GpuError> {
    let rows = h.len / f.max(1);
    expect_len("gated unit: h", h, rows * f)?;
    expect_len("gated unit: gate and up", gate_up, 2 * rows * f)?;
    if let Some(dh) = dh {
        expect_len("gated unit: dh", dh, rows * f)?;
    }
    let kernel = Kernel {
        label: "gated unit",
        source: GATED,
        entry,
        constants: &[("GELU", f64::from(gate == Gate::Geglu))],
    };
    let alignment = gpu.alignment();
    for rows in row_pieces(gpu, rows, 2 * f) {
        let narrow = rows.start * f..rows.end * f;
        let (h, h_start) = h.part(narrow.clone()).aligned(alignment);
        let (gate_up, gate_start) = gate_up
            .part(2 * narrow.start..2 * narrow.end)
            .aligned(alignment);
        let mut params = GatedParams {
            len: narrow.len() as u32,
            f: f as u32,
            h_start,
            gate_start,
            dh_start: 0,
        };
        let groups = grid(narrow.len().div_ceil(256));
        if let Some(dh) = dh {
            let (dh, start) = dh.part(narrow).aligned(alignment);
            params.dh_start = start;
            gpu.dispatch(&kernel, &[h, gate_up, dh], &params, groups)?;
        } else {
            gpu.dispatch(&kernel, &[h, gate_up], &params, groups)?;
        }
    }
    Ok(())
}

/// A gated unit: `h = gate_function(gate) * up`. Each row of `gate_up` (T, 2F) is gate, then up; `h` (T, F).
///
/// # Errors
/// [`GpuError::Shape`] if the lengths differ; those of [`Gpu::dispatch`].
pub fn gated(
    gpu: &Gpu,
    gate: Gate,
    h: Binding<'_>,
    gate_up: Binding<'_>,
    f: usize,
) -> Result<(), GpuError> {
    run_gated(gpu, "forward", gate, [h, gate_up], None, f)
}

/// Gradient of [`gated`]: recomputes `h`, and overwrites `gate_up` with its gradient, given `dh` (T, F).
///
/// # Errors
/// As [`gated`].
pub fn gated_backward(
    gpu: &Gpu,
    gate: Gate,
    h: Binding<'_>,
    gate_up: Binding<'_>,
    dh: Binding<'_>,
    f: usize,
) -> Result<(), GpuError> {
    run_gated(gpu, "backward", gate, [h, gate_up], Some(dh), f)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{
        buffer::GpuBuffer,
        testing::{assert_close, gpu, gradient, random, wide},
    };

    type Run = fn(&Gpu, [Binding<'_>; 3]) -> Result<(), GpuError>;
    type Expected = fn(f64, f64, f64) -> f64;

    /// Ranges that start and end anywhere, larger than a workgroup.
    const LEN: usize = 2501;

    fn three(gpu: &Gpu) -> ([Vec<f32>; 3], [GpuBuffer; 3]) {
        let data = [1, 2, 3].map(|seed| random(LEN + 20, seed));
        let buffers = [0, 1, 2].map(|i: usize| gpu.upload(&data[i]).expect("memory"));
        (data, buffers)
    }

    #[test]
    fn sums_and_differences_equal_the_definition() {
        let gpu = gpu();
        let cases: [(Run, Expected); 7] = [
            (
                |gpu, [y, x, _]| add_scaled(gpu, y, 0.3, x),
                |y, x, _| y + 0.3 * x,
            ),
            (|gpu, [y, _, _]| scale(gpu, y, -2.0), |y, _, _| -2.0 * y),
            (|gpu, [y, _, _]| fill(gpu, y, 0.75), |_, _, _| 0.75),
            (
                |gpu, [y, x, _]| copy_scaled(gpu, y, 0.3, x),
                |_, x, _| 0.3 * x,
            ),
            (
                |gpu, [y, x, _]| add_squares(gpu, y, 0.3, x),
                |y, x, _| y + 0.3 * x * x,
            ),
            (|gpu, [y, x, z]| subtract(gpu, y, x, z), |_, x, z| x - z),
            (
                |gpu, [y, x, z]| lerp(gpu, y, x, z, 0.3),
                |_, x, z| x + 0.3 * (z - x),
            ),
        ];
        for (run, expected) in cases {
            let (data, buffers) = three(&gpu);
            let starts = [7, 0, 13];
            let bindings = [0, 1, 2].map(|i| buffers[i].range(starts[i]..starts[i] + LEN));
            run(&gpu, bindings).expect("a run");
            let got = gpu.download(&buffers[0], 0..LEN + 20).expect("a result");
            let mut all = wide(&data[0]);
            for i in 0..LEN {
                let [y, x, z] = [0, 1, 2].map(|j| f64::from(data[j][starts[j] + i]));
                all[7 + i] = expected(y, x, z);
            }
            // Three roundings of numbers up to 2.
            assert_close(&got, &all, 3e-7);
        }
    }

    #[test]
    fn the_ends_of_a_lerp_are_exact_and_equal_elements_stay() {
        let gpu = gpu();
        let (data, buffers) = three(&gpu);
        let [y, from, to] = [0, 1, 2].map(|i: usize| buffers[i].all());
        lerp(&gpu, y, from, to, 1.0).expect("a run");
        assert_eq!(
            gpu.download(&buffers[0], 0..LEN).expect("a result"),
            data[2][..LEN]
        );
        lerp(&gpu, y, from, from, 0.3).expect("a run");
        assert_eq!(
            gpu.download(&buffers[0], 0..LEN).expect("a result"),
            data[1][..LEN]
        );
    }

    #[test]
    fn swapping_swaps_and_copying_copies() {
        let gpu = gpu();
        let (data, buffers) = three(&gpu);
        swap(&gpu, buffers[0].range(3..LEN), buffers[1].range(5..LEN + 2)).expect("a run");
        gpu.copy(buffers[2].range(0..9), buffers[0].range(2..11))
            .expect("a copy");
        let got = [0, 1, 2].map(|i: usize| gpu.download(&buffers[i], 0..LEN).expect("a result"));
        assert_eq!(got[0][3..], data[1][5..LEN + 2]);
        assert_eq!(got[1][5..], data[0][3..LEN - 2]);
        assert_eq!(got[0][..3], data[0][..3]);
        assert_eq!(got[2][..9], got[0][2..11]);
        gpu.clear(buffers[0].range(1..3)).expect("a command");
        assert_eq!(
            gpu.download(&buffers[0], 0..3).expect("a result"),
            [got[0][0], 0.0, 0.0]
        );
    }

    #[test]
    fn lengths_that_differ_are_refused() {
        let gpu = gpu();
        let (_, buffers) = three(&gpu);
        let refused = add_scaled(&gpu, buffers[0].range(0..5), 1.0, buffers[1].range(0..6));
        assert!(matches!(refused, Err(GpuError::Shape { .. })));
        let refused = scale(&gpu, buffers[0].range(0..LEN + 21), 1.0);
        assert!(matches!(refused, Err(GpuError::Shape { .. })));
    }

    #[test]
    fn arrays_larger_than_a_binding_are_done_in_parts() {
        let gpu = Gpu::open(0).expect("a device");
        gpu.limit_bindings(300);
        let (data, buffers) = three(&gpu);
        add_scaled(
            &gpu,
            buffers[0].range(1..LEN),
            2.0,
            buffers[1].range(4..LEN + 3),
        )
        .expect("a run");
        let got = gpu.download(&buffers[0], 0..LEN).expect("a result");
        let mut expected = wide(&data[0][..LEN]);
        for i in 1..LEN {
            expected[i] += 2.0 * f64::from(data[1][i + 3]);
        }
        // Two roundings of numbers up to 3.
        assert_close(&got, &expected, 3e-7);
    }

    /// The unit in f64, from the definitions.
    fn unit(gate: Gate, g: f64, u: f64) -> f64 {
        let z = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044_715 * g.powi(3));
        match gate {
            Gate::Swiglu => g / (1.0 + (-g).exp()) * u,
            Gate::Geglu => 0.5 * g * (1.0 + z.tanh()) * u,
        }
    }

    #[test]
    fn gated_units_and_their_gradients_equal_the_definition() {
        let gpu = gpu();
        for gate in [Gate::Swiglu, Gate::Geglu] {
            for [t, f] in [[1, 5], [7, 300]] {
                let values: Vec<f32> = random(t * 2 * f, 1).iter().map(|x| 4.0 * x).collect();
                let dh = random(t * f, 2);
                let gate_up = gpu.upload(&values).expect("memory");
                let (h, d) = (
                    gpu.zeros(t * f).expect("memory"),
                    gpu.upload(&dh).expect("memory"),
                );
                gated(&gpu, gate, h.all(), gate_up.all(), f).expect("a run");
                let forward = gpu.download(&h, 0..t * f).expect("a result");
                gpu.clear(h.all()).expect("a command");
                gated_backward(&gpu, gate, h.all(), gate_up.all(), d.all(), f).expect("a run");
                let again = gpu.download(&h, 0..t * f).expect("a result");
                let got = gpu.download(&gate_up, 0..t * 2 * f).expect("a result");

                let (mut expected, mut slopes) = (Vec::new(), vec![0.0; t * 2 * f]);
                for (i, dh) in wide(&dh).into_iter().enumerate() {
                    let at = i / f * 2 * f + i % f;
                    let x = [f64::from(values[at]), f64::from(values[at + f])];
                    expected.push(unit(gate, x[0], x[1]));
                    let slope = gradient(|x| unit(gate, x[0], x[1]), &x);
                    slopes[at] = slope[0] * dh;
                    slopes[at + f] = slope[1] * dh;
                }
                // Some ten roundings of numbers up to 16; the exponential function has an error of a few units in the last place.
                assert_close(&forward, &expected, 16.0 * 20.0 * 6e-8);
                assert_close(&again, &expected, 16.0 * 20.0 * 6e-8);
                assert_close(&got, &slopes, 16.0 * 20.0 * 6e-8);
            }
        }
    }

    #[test]
    fn gated_units_are_finite_at_extreme_gates() {
        let gpu = gpu();
        for gate in [Gate::Swiglu, Gate::Geglu] {
            let gate_up = gpu
                .upload(&[-3e4, 3e4, -200.0, 1.0, 1.0, 1.0])
                .expect("memory");
            let h = gpu.zeros(3).expect("memory");
            gated(&gpu, gate, h.all(), gate_up.all(), 3).expect("a run");
            let got = gpu.download(&h, 0..3).expect("a result");
            assert_close(&got, &[0.0, 3e4, 0.0], 1e-20);
        }
    }
}

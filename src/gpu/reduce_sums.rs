//! Sums over long arrays that stay on the device: the norm of the gradients, their clip scale, and the distance of weights from a center.
//!
//! Sums are taken as a tree of fixed shape. Their relative error is some 1e-6 for any length.

use crate::gpu::{
    buffer::{Binding, GpuBuffer},
    context::{Gpu, Kernel, grid},
    elementwise::{expect_len, fill, pieces},
    error::GpuError,
};

/// Elements of a workgroup.
const PER_GROUP: usize = 4096;

/// In a list of flags: every element is finite.
pub const ALL_FINITE: u32 = u32::MAX;

#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::NoUninit)]
struct Params {
    len: u32,
    partial_start: u32,
    x_start: u32,
    flag: u32,
    first: u32,
    w_start: u32,
    center_start: u32,
    f_start: u32,
    factor: f32,
}

fn kernel(entry: &'static str) -> Kernel<'static> {
    Kernel {
        label: entry,
        source: include_str!("reduce_sums.wgsl"),
        entry,
        constants: &[],
    }
}

/// Number of partial sums of arrays of these lengths.
fn num_partial(gpu: &Gpu, lens: impl Iterator<Item = usize>) -> usize {
    lens.flat_map(|len| pieces(gpu, len))
        .map(|piece| piece.len().div_ceil(PER_GROUP))
        .sum()
}

/// The sums of squares of `ranges`, together, into the one element of `sum`. `flags` (as many u32 as ranges) become the index of the
/// first element of each range that is infinite or not a number, else [`ALL_FINITE`].
///
/// The sum is undefined if it overflows, or if an element is not finite.
///
/// # Errors
/// [`GpuError::Shape`] if a length does not fit; those of [`Gpu::dispatch`].
pub fn sum_of_squares(
    gpu: &Gpu,
    ranges: &[Binding<'_>],
    sum: Binding<'_>,
    flags: Binding<'_>,
) -> Result<(), GpuError> {
    expect_len("sum of squares: flags", flags, ranges.len())?;
    let alignment = gpu.alignment();
    let (flags, flags_start) = flags.aligned(alignment);
    let params = Params {
        len: ranges.len() as u32,
        x_start: flags_start,
        ..Params::default()
    };
    let groups = grid(ranges.len().div_ceil(256));
    if !ranges.is_empty() {
        gpu.dispatch(&kernel("reset"), &[flags], &params, groups)?;
    }
    let total = num_partial(gpu, ranges.iter().map(|range| range.len));
    let partial = gpu.scratch("sums", total)?;
    let mut done = 0;
    for (i, range) in ranges.iter().enumerate() {
        expect_len("sum of squares", *range, range.len)?;
        for piece in pieces(gpu, range.len) {
            let (x, x_start) = range.part(piece.clone()).aligned(alignment);
            let params = Params {
                len: piece.len() as u32,
                partial_start: done as u32,
                x_start,
                flag: flags_start + i as u32,
                first: piece.start as u32,
                ..Params::default()
            };
            let groups = piece.len().div_ceil(PER_GROUP);
            let bindings = [partial.range(0..total), x, flags];
            gpu.dispatch(&kernel("squares"), &bindings, &params, grid(groups))?;
            done += groups;
        }
    }
    sum_partial(gpu, &partial, total, sum, 1.0)
}

/// `sum = factor * the sum of x`.
///
/// # Errors
/// As [`sum_of_squares`].
pub fn sum(gpu: &Gpu, x: Binding<'_>, sum: Binding<'_>, factor: f32) -> Result<(), GpuError> {
    expect_len("sum", x, x.len)?;
    let total = num_partial(gpu, [x.len].into_iter());
    let partial = gpu.scratch("sums", total)?;
    add_into(gpu, x, partial.range(0..total), 1.0)?;
    sum_partial(gpu, &partial, total, sum, factor)
}

/// The partial sums of `x`, times `factor`, from the start of `to` on.
fn add_into(gpu: &Gpu, x: Binding<'_>, to: Binding<'_>, factor: f32) -> Result<(), GpuError> {
    let (to, to_start) = to.aligned(gpu.alignment());
    let mut done = 0;
    for piece in pieces(gpu, x.len) {
        let (x, x_start) = x.part(piece.clone()).aligned(gpu.alignment());
        let params = Params {
            len: piece.len() as u32,
            partial_start: to_start + done as u32,
            x_start,
            factor,
            ..Params::default()
        };
        let groups = piece.len().div_ceil(PER_GROUP);
        gpu.dispatch(&kernel("add"), &[to, x], &params, grid(groups))?;
        done += groups;
    }
    Ok(())
}

/// `sum = factor * the sum of the first len elements of partial`.
fn sum_partial(
    gpu: &Gpu,
    partial: &GpuBuffer,
    len: usize,
    sum: Binding<'_>,
    factor: f32,
) -> Result<(), GpuError> {
    expect_len("sum: result", sum, 1)?;
    if len == 0 {
        return fill(gpu, sum, 0.0);
    }
    let (mut from, mut len) = (partial.clone(), len);
    for name in ["sums, second pass", "sums, third pass"].iter().cycle() {
        if len <= PER_GROUP {
            break;
        }
        let groups = num_partial(gpu, [len].into_iter());
        let to = gpu.scratch(name, groups)?;
        add_into(gpu, from.range(0..len), to.range(0..groups), 1.0)?;
        (from, len) = (to, groups);
    }
    add_into(gpu, from.range(0..len), sum, factor)
}

/// What [`clip_scale`] leaves on the device, for the optimizer.
pub struct ClipState {
    buffer: GpuBuffer, // squared norm, norm, scale, 1 if all gradients are finite
}

/// Number of elements of a [`ClipState`].
const STATE: usize = 4;

impl ClipState {
    /// No clipping.
    ///
    /// # Errors
    /// As [`Gpu::upload`].
    pub fn new(gpu: &Gpu) -> Result<Self, GpuError> {
        let buffer = gpu.upload(&[0.0, 0.0, 1.0, 1.0])?;
        Ok(Self { buffer })
    }

    /// The squared norm, to be filled by [`sum_of_squares`].
    pub fn squared_norm(&self) -> Binding<'_> {
        self.buffer.range(0..1)
    }

    /// All of it.
    pub(crate) fn all(&self) -> Binding<'_> {
        self.buffer.range(0..STATE)
    }

    /// Sets the scale, where the host has computed it.
    ///
    /// # Errors
    /// As [`Gpu::write`].
    pub fn set_scale(&self, gpu: &Gpu, scale: f32) -> Result<(), GpuError> {
        gpu.write(&self.buffer, 2, &[scale, 1.0])
    }

    /// The norm, the scale, and whether all gradients were finite. Waits for the device.
    ///
    /// # Errors
    /// As [`Gpu::download`].
    pub fn read(&self, gpu: &Gpu) -> Result<(f32, f32, bool), GpuError> {
        let state = gpu.download(&self.buffer, 0..STATE)?;
        Ok((state[1], state[2], state[3] == 1.0))
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct ClipParams {
    state_start: u32,
    flags_start: u32,
    flags: u32,
    max_norm: f32,
}

/// The factor by which `torch.nn.utils.clip_grad_norm_` scales gradients: `max_norm / (norm + 1e-6)`, at most 1. A `max_norm` of 0
/// turns clipping off.
///
/// Call it after [`sum_of_squares`] into [`ClipState::squared_norm`] and `flags`. Where a gradient is not finite, the optimizer changes
/// nothing.
///
/// # Errors
/// As [`sum_of_squares`].
pub fn clip_scale(
    gpu: &Gpu,
    state: &ClipState,
    flags: Binding<'_>,
    max_norm: f32,
) -> Result<(), GpuError> {
    expect_len("clip scale: flags", flags, flags.len)?;
    let kernel = Kernel {
        label: "clip scale",
        source: include_str!("clip.wgsl"),
        entry: "clip",
        constants: &[],
    };
    let (flags, flags_start) = (flags.len as u32, flags.aligned(gpu.alignment()));
    let params = ClipParams {
        state_start: 0,
        flags_start: flags_start.1,
        flags,
        max_norm,
    };
    let bindings = [state.all(), flags_start.0];
    gpu.dispatch(&kernel, &bindings, &params, [1, 1, 1])
}

/// Weights that a penalty holds near a center, all of the same length.
#[derive(Clone, Copy)]
pub struct PenaltyRange<'a> {
    /// The gradients, which are added to.
    pub gradient: Binding<'a>,
    /// The weights w.
    pub weights: Binding<'a>,
    /// The center w*.
    pub center: Binding<'a>,
    /// F; `None`: 1 for every weight.
    pub importance: Option<Binding<'a>>,
}

/// Quadratic penalty: adds `2 strength F (w - w*)` to the gradients, and sets `sum` to the sum of `F (w - w*)^2` over all ranges.
///
/// The value of the penalty is `strength` times that sum.
///
/// # Errors
/// As [`sum_of_squares`].
pub fn weighted_distance(
    gpu: &Gpu,
    ranges: &[PenaltyRange<'_>],
    strength: f32,
    sum: Binding<'_>,
) -> Result<(), GpuError> {
    let total = num_partial(gpu, ranges.iter().map(|range| range.weights.len));
    let partial = gpu.scratch("sums", total)?;
    let mut done = 0;
    let alignment = gpu.alignment();
    for range in ranges {
        let len = range.weights.len;
        expect_len("weight penalty: weights", range.weights, len)?;
        expect_len("weight penalty: gradient", range.gradient, len)?;
        expect_len("weight penalty: center", range.center, len)?;
        if let Some(importance) = range.importance {
            expect_len("weight penalty: importance", importance, len)?;
        }
        for piece in pieces(gpu, len) {
            let part = |binding: Binding<'_>| binding.part(piece.clone()).start % alignment;
            let bound = [range.gradient, range.weights, range.center]
                .map(|binding| binding.part(piece.clone()).aligned(alignment).0);
            let params = Params {
                len: piece.len() as u32,
                partial_start: done as u32,
                x_start: part(range.gradient) as u32,
                w_start: part(range.weights) as u32,
                center_start: part(range.center) as u32,
                f_start: range.importance.map_or(0, part) as u32,
                factor: strength,
                ..Params::default()
            };
            let mut bindings = vec![partial.range(0..total), bound[0], bound[1], bound[2]];
            let mut entry = "squared_distance";
            if let Some(importance) = range.importance {
                bindings.push(importance.part(piece.clone()).aligned(alignment).0);
                entry = "weighted_squared_distance";
            }
            let groups = piece.len().div_ceil(PER_GROUP);
            gpu.dispatch(&kernel(entry), &bindings, &params, grid(groups))?;
            done += groups;
        }
    }
    sum_partial(gpu, &partial, total, sum, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::testing::{assert_close, gpu, random, wide};

    fn sum_and_flags(gpu: &Gpu, data: &[f32], cuts: &[usize]) -> (f32, Vec<u32>) {
        let buffer = gpu.upload(data).expect("memory");
        let ranges: Vec<_> = cuts
            .windows(2)
            .map(|at| buffer.range(at[0]..at[1]))
            .collect();
        let out = gpu.zeros(3).expect("memory");
        let flags = gpu.zeros(ranges.len()).expect("memory");
        sum_of_squares(gpu, &ranges, out.range(2..3), flags.all()).expect("a run");
        let sum = gpu.download(&out, 2..3).expect("a result")[0];
        (
            sum,
            gpu.download_u32(&flags, 0..ranges.len()).expect("a result"),
        )
    }

    /// Sums are trees of 24 levels per pass at most, of numbers of the same sign.
    const RELATIVE: f64 = 3.0 * 24.0 * 6e-8;

    #[test]
    fn squares_of_many_ranges_are_summed() {
        let gpu = gpu();
        for cuts in [vec![0, 1], vec![5, 5, 9], vec![0, 3, 5000, 5001, 70_003]] {
            let data = random(70_010, 1);
            let (sum, flags) = sum_and_flags(&gpu, &data, &cuts);
            let all = &data[cuts[0]..cuts[cuts.len() - 1]];
            let expected = all.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
            assert_close(&[sum], &[expected], RELATIVE * expected);
            assert!(flags.iter().all(|flag| *flag == ALL_FINITE));
        }
    }

    #[test]
    fn long_sums_take_several_passes_and_large_arrays_several_bindings() {
        let gpu = Gpu::open(0).expect("a device");
        let len = PER_GROUP * PER_GROUP / 8;
        gpu.limit_bindings(len as u64 / 3);
        // 4,097 more ranges than one workgroup takes.
        let ranges: Vec<usize> = (0..=4100)
            .map(|i| if i == 0 { 0 } else { len - 4100 + i })
            .collect();
        let (sum, _) = sum_and_flags(&gpu, &vec![0.5; len], &ranges);
        assert_close(&[sum], &[0.25 * len as f64], RELATIVE * 0.25 * len as f64);
    }

    #[test]
    fn two_runs_are_bitwise_the_same() {
        let gpu = gpu();
        let data = random(50_000, 1);
        let run = || sum_and_flags(&gpu, &data, &[0, 20_001, 50_000]).0.to_bits();
        assert_eq!(run(), run());
    }

    #[test]
    fn the_first_element_that_is_not_finite_is_named() {
        let gpu = gpu();
        let mut data = random(9000, 1);
        for (i, value) in [
            (20, f32::MAX),
            (100, f32::NAN),
            (8999, f32::INFINITY),
            (6000, f32::NEG_INFINITY),
        ] {
            data[i] = value;
        }
        let (_, flags) = sum_and_flags(&gpu, &data, &[0, 50, 150, 5000, 9000]);
        assert_eq!(flags, [ALL_FINITE, 50, ALL_FINITE, 1000]);
    }

    #[test]
    fn a_sum_is_scaled() {
        let gpu = gpu();
        for len in [0, 1, 300, 9000] {
            let data = random(len + 5, 1);
            let (x, out) = (
                gpu.upload(&data).expect("memory"),
                gpu.zeros(1).expect("memory"),
            );
            sum(&gpu, x.range(5..len + 5), out.all(), 0.25).expect("a run");
            let got = gpu.download(&out, 0..1).expect("a result");
            let terms = wide(&data[5..]);
            let size: f64 = terms.iter().map(|x| x.abs()).sum();
            assert_close(&got, &[0.25 * terms.iter().sum::<f64>()], RELATIVE * size);
        }
    }

    #[test]
    fn clipping_only_shrinks_and_zero_is_off() {
        let gpu = gpu();
        let gradient = gpu.upload(&[2.4, 3.2]).expect("memory");
        let flags = gpu.zeros(1).expect("memory");
        let state = ClipState::new(&gpu).expect("memory");
        for (max_norm, expected) in [(1.0, 0.25), (8.0, 1.0), (0.0, 1.0)] {
            sum_of_squares(&gpu, &[gradient.all()], state.squared_norm(), flags.all())
                .expect("a run");
            clip_scale(&gpu, &state, flags.all(), max_norm).expect("a run");
            let (norm, scale, finite) = state.read(&gpu).expect("a result");
            assert_close(&[norm, scale], &[4.0, expected], 1e-6);
            assert!(finite);
        }
        gpu.write(&gradient, 1, &[f32::NAN]).expect("memory");
        sum_of_squares(&gpu, &[gradient.all()], state.squared_norm(), flags.all()).expect("a run");
        clip_scale(&gpu, &state, flags.all(), 1.0).expect("a run");
        assert!(!state.read(&gpu).expect("a result").2);
    }

    #[test]
    fn the_penalty_pulls_weights_to_their_center() {
        let gpu = gpu();
        let len = 5003;
        let [g, w, center, f] = [1, 2, 3, 4].map(|seed| random(len, seed));
        for weighted in [false, true] {
            let [gradient, weights, at, importance] =
                [&g, &w, &center, &f].map(|data| gpu.upload(data).expect("memory"));
            let out = gpu.zeros(1).expect("memory");
            let ranges = [0..7, 7..len].map(|range| PenaltyRange {
                gradient: gradient.range(range.clone()),
                weights: weights.range(range.clone()),
                center: at.range(range.clone()),
                importance: weighted.then_some(importance.range(range)),
            });
            weighted_distance(&gpu, &ranges, 0.3, out.all()).expect("a run");
            let factor = |i: usize| if weighted { f64::from(f[i]) } else { 1.0 };
            let distance = |i: usize| f64::from(w[i]) - f64::from(center[i]);
            let terms = (0..len).map(|i| factor(i) * distance(i).powi(2));
            let size: f64 = terms.clone().map(f64::abs).sum();
            let got = gpu.download(&out, 0..1).expect("a result");
            assert_close(&got, &[terms.sum()], RELATIVE * size);
            let expected: Vec<f64> = (0..len)
                .map(|i| f64::from(g[i]) + 0.6 * factor(i) * distance(i))
                .collect();
            // Five roundings of numbers up to 2.2.
            assert_close(
                &gpu.download(&gradient, 0..len).expect("a result"),
                &expected,
                1e-6,
            );
        }
    }
}

//! `AdamW` as `torch.optim.AdamW` computes it, in one pass over the weights.

use crate::gpu::{
    buffer::Binding,
    context::{Gpu, Kernel, grid},
    elementwise::{expect_len, pieces},
    error::GpuError,
    reduce_sums::ClipState,
};

/// Elements of a workgroup.
const PER_GROUP: usize = 1024;

/// The constants of one step, rounded from f64.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepConstants {
    decay: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    step_size: f32,
    root_correction2: f32,
    eps: f32,
    one_minus_ema_decay: f32,
}

/// The settings of [`StepConstants::new`], under the names of `torch.optim.AdamW`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Decay rates of the first and the second moment.
    pub betas: [f64; 2],
    /// Added to the root of the second moment, for numerical stability.
    pub eps: f64,
    /// Decoupled weight decay: a weight shrinks by `lr * weight_decay` per step.
    pub weight_decay: f64,
    /// Decay of the moving average of the weights, where it is kept.
    pub ema_decay: f64,
}

impl StepConstants {
    /// Those of step `step`, counted from 1, at the learning rate `lr`. The average decays by `min(ema_decay, (1 + t) / (10 + t))`.
    pub fn new(settings: Settings, step: u64, lr: f64) -> Self {
        let Settings {
            betas: [beta1, beta2],
            eps,
            weight_decay,
            ema_decay,
        } = settings;
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        let warm = (1 + step) as f64 / (10 + step) as f64;
        Self {
            decay: (1.0 - lr * weight_decay) as f32,
            one_minus_beta1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            one_minus_beta2: (1.0 - beta2) as f32,
            step_size: (lr / correction(beta1)) as f32,
            root_correction2: correction(beta2).sqrt() as f32,
            eps: eps as f32,
            one_minus_ema_decay: (1.0 - ema_decay.min(warm)) as f32,
        }
    }
}

/// Weights and their state, all of the same length and in different buffers.
#[derive(Clone, Copy)]
pub struct WeightRange<'a> {
    /// The weights p.
    pub weights: Binding<'a>,
    /// Their gradients g.
    pub gradient: Binding<'a>,
    /// First moments m.
    pub exp_avg: Binding<'a>,
    /// Second moments v.
    pub exp_avg_sq: Binding<'a>,
    /// The moving average a of the weights, where it is kept.
    pub ema: Option<Binding<'a>>,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    len: u32,
    weights_start: u32,
    gradient_start: u32,
    exp_avg_start: u32,
    exp_avg_sq_start: u32,
    average_start: u32,
    decay: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    step_size: f32,
    root_correction2: f32,
    eps: f32,
    one_minus_ema_decay: f32,
}

/// One step on the gradients times the scale of `clip`. Where a gradient was not finite, nothing changes.
///
/// With g the scaled gradient, t the step, (b1, b2) the betas, c = 1 - b^t and d the decay of the average:
///
/// ```text
/// p <- p (1 - lr * weight_decay)
/// m <- m + (1 - b1) (g - m)         v <- b2 v + (1 - b2) g^2
/// p <- p - (lr / c1) m / (sqrt(v) / sqrt(c2) + eps)
/// a <- a + (1 - d) (p - a)
/// ```
///
/// # Errors
/// [`GpuError::Shape`] if the lengths differ; those of [`Gpu::dispatch`].
pub fn adamw(
    gpu: &Gpu,
    range: WeightRange<'_>,
    constants: &StepConstants,
    clip: &ClipState,
) -> Result<(), GpuError> {
    let WeightRange {
        weights,
        gradient,
        exp_avg,
        exp_avg_sq,
        ema,
    } = range;
    let len = weights.len;
    expect_len("AdamW: weights", weights, len)?;
    expect_len("AdamW: gradient", gradient, len)?;
    expect_len("AdamW: first moments", exp_avg, len)?;
    expect_len("AdamW: second moments", exp_avg_sq, len)?;
    if let Some(ema) = ema {
        expect_len("AdamW: average", ema, len)?;
    }
    let entry = if ema.is_some() { "adamw_ema" } else { "adamw" };
    let kernel = Kernel {
        label: "AdamW",
        source: include_str!("optimizer.wgsl"),
        entry,
        constants: &[],
    };
    for piece in pieces(gpu, len) {
        let bind = |binding: Binding<'_>| binding.part(piece.clone()).start % gpu.alignment();
        let [p, g, m, v] = [weights, gradient, exp_avg, exp_avg_sq]
            .map(|binding| binding.part(piece.clone()).aligned(gpu.alignment()));
        let mut bindings = vec![p.0, g.0, m.0, v.0, clip.all()];
        if let Some(ema) = ema {
            bindings.push(ema.part(piece.clone()).aligned(gpu.alignment()).0);
        }
        let params = Params {
            len: piece.len() as u32,
            weights_start: p.1,
            gradient_start: g.1,
            exp_avg_start: m.1,
            exp_avg_sq_start: v.1,
            average_start: ema.map_or(0, bind) as u32,
            decay: constants.decay,
            one_minus_beta1: constants.one_minus_beta1,
            beta2: constants.beta2,
            one_minus_beta2: constants.one_minus_beta2,
            step_size: constants.step_size,
            root_correction2: constants.root_correction2,
            eps: constants.eps,
            one_minus_ema_decay: constants.one_minus_ema_decay,
        };
        gpu.dispatch(
            &kernel,
            &bindings,
            &params,
            grid(piece.len().div_ceil(PER_GROUP)),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::testing::{assert_close, gpu, random};

    const SETTINGS: Settings = Settings {
        betas: [0.9, 0.999],
        eps: 1e-8,
        weight_decay: 0.01,
        ema_decay: 0.3,
    };

    // torch 2: p = Parameter([1., -2., .5]); AdamW([p], lr=.1, weight_decay=.01); the equations, in f64.
    #[test]
    fn steps_follow_the_equations() {
        let gpu = gpu();
        let (len, lr, scale) = (1500, 0.1, 0.5f32);
        let start = random(len, 1);
        let [p, m, v, a] = [&start, &vec![0.0; len], &vec![0.0; len], &start]
            .map(|data| gpu.upload(data).expect("memory"));
        let clip = ClipState::new(&gpu).expect("memory");
        clip.set_scale(&gpu, scale).expect("memory");
        let wide = |data: &[f32]| data.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
        let (mut expected, mut average) = (wide(&start), wide(&start));
        let (mut first, mut second) = (vec![0.0f64; len], vec![0.0f64; len]);
        for step in 1..=4 {
            let gradient = random(len, 10 + step);
            let g = gpu.upload(&gradient).expect("memory");
            // The last element is frozen.
            let range = WeightRange {
                weights: p.range(0..len - 1),
                gradient: g.range(0..len - 1),
                exp_avg: m.range(0..len - 1),
                exp_avg_sq: v.range(0..len - 1),
                ema: Some(a.range(0..len - 1)),
            };
            let constants = StepConstants::new(SETTINGS, step, lr);
            adamw(&gpu, range, &constants, &clip).expect("a step");
            let (c1, c2) = (
                1.0 - 0.9f64.powi(step as i32),
                1.0 - 0.999f64.powi(step as i32),
            );
            let decay = 0.3f64.min((1.0 + step as f64) / (10.0 + step as f64));
            for i in 0..len - 1 {
                let g = 0.5 * f64::from(gradient[i]);
                first[i] = 0.9 * first[i] + 0.1 * g;
                second[i] = 0.999 * second[i] + 0.001 * g * g;
                expected[i] *= 1.0 - 0.1 * 0.01;
                expected[i] -= 0.1 * (first[i] / c1) / ((second[i] / c2).sqrt() + 1e-8);
                average[i] += (1.0 - decay) * (expected[i] - average[i]);
            }
        }
        // f32 against f64 over four steps of size 0.1: a few units in the last place of values near 1.
        assert_close(
            &gpu.download(&p, 0..len).expect("a result"),
            &expected,
            1e-6,
        );
        assert_close(&gpu.download(&a, 0..len).expect("a result"), &average, 1e-6);
        assert_close(&gpu.download(&m, 0..len).expect("a result"), &first, 1e-7);
    }

    #[test]
    fn gradients_that_are_not_finite_change_nothing() {
        let gpu = gpu();
        let data = random(10, 1);
        let [p, g, m, v] = [1, 2, 3, 4].map(|_| gpu.upload(&data).expect("memory"));
        gpu.write(&g, 3, &[f32::INFINITY]).expect("memory");
        let (clip, flags) = (
            ClipState::new(&gpu).expect("memory"),
            gpu.zeros(1).expect("memory"),
        );
        crate::gpu::reduce_sums::sum_of_squares(&gpu, &[g.all()], clip.squared_norm(), flags.all())
            .expect("a run");
        crate::gpu::reduce_sums::clip_scale(&gpu, &clip, flags.all(), 1.0).expect("a run");
        let range = WeightRange {
            weights: p.all(),
            gradient: g.all(),
            exp_avg: m.all(),
            exp_avg_sq: v.all(),
            ema: None,
        };
        adamw(&gpu, range, &StepConstants::new(SETTINGS, 1, 0.1), &clip).expect("a step");
        for buffer in [p, m, v] {
            assert_eq!(gpu.download(&buffer, 0..10).expect("a result"), data);
        }
    }
}

//! What the tests of all kernels share.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rand::{Rng, SeedableRng};

use crate::gpu::context::Gpu;

/// The first device. Tests take turns: they share its scratch memory.
pub fn gpu() -> MutexGuard<'static, Gpu> {
    static GPU: OnceLock<Mutex<Gpu>> = OnceLock::new();
    GPU.get_or_init(|| Mutex::new(Gpu::shared(0).expect("a Vulkan device, such as lavapipe")))
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

/// Uniform in -1..1.
pub fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// In f64.
pub fn wide(data: &[f32]) -> Vec<f64> {
    data.iter().map(|x| f64::from(*x)).collect()
}

/// Checks that all elements are within `bound` of the expected ones.
#[track_caller]
pub fn assert_close(got: &[f32], expected: &[f64], bound: f64) {
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(*got) - expected).abs();
        assert!(
            error <= bound,
            "at {i}: {got} is not {expected} within {bound:e}"
        );
    }
}

/// Gradient of `f` at `x` by central differences. In f64, the error is some 1e-9 for functions near 1.
pub fn gradient(f: impl Fn(&[f64]) -> f64, x: &[f64]) -> Vec<f64> {
    const H: f64 = 1e-6;
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let kept = x[i];
            x[i] = kept + H;
            let above = f(&x);
            x[i] = kept - H;
            let below = f(&x);
            x[i] = kept;
            (above - below) / (2.0 * H)
        })
        .collect()
}

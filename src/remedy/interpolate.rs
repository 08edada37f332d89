//! After training: interpolation between the base model and the trained one (`WiSE-FT`, Wortsman et al. 2022). The change of the
//! weights is scaled down as far as the learned facts allow.
//!
//! ```text
//! W(a) = W0 + a (W - W0)        W0: the base model, W: the trained one, 0 <= a <= 1
//! ```
//!
//! Newly trained facts stay correct for most of the way back to W0, and forgotten facts recover. a is chosen by accuracy on trained
//! facts, never on held-out facts.

use rayon::prelude::*;

use crate::{Result, engine::simd::vectorized};

/// Elements per chunk.
const CHUNK: usize = 1 << 14;

/// Steps of the bisection, which finds the factor to 1/64.
const HALVINGS: usize = 6;

/// The smallest factor a, to within 1/64, for which `is_enough` is true. It is assumed to be true for 1, and monotone.
///
/// # Errors
/// Those of `is_enough`.
pub fn smallest_factor(mut is_enough: impl FnMut(f32) -> Result<bool>) -> Result<f32> {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..HALVINGS {
        let middle = f32::midpoint(low, high);
        if is_enough(middle)? {
            high = middle;
        } else {
            low = middle;
        }
    }
    Ok(high)
}

/// Writes W(a) to `into`, element by element in f32. W(1) is W exactly.
pub fn interpolate(into: &mut [f32], base: &[f32], trained: &[f32], a: f32) {
    into.par_chunks_mut(CHUNK)
        .zip(base.par_chunks(CHUNK).zip(trained.par_chunks(CHUNK)))
        .for_each(|(into, (base, trained))| lerp(into, base, trained, a));
}

vectorized! {
    fn lerp(into: &mut [f32], base: &[f32], trained: &[f32], a: f32) {
        // In this form weights that did not change stay bitwise identical.
        for (into, (w0, w)) in into.iter_mut().zip(base.iter().zip(trained)) {
            *into = w - (1.0 - a) * (w - w0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_are_the_base_and_the_trained_weights_and_unmoved_weights_stay() {
        let base = [1.0, -2.5, 0.1, 7.0];
        let trained = [3.0, -2.5, 0.3, 6.0];
        let mut into = [0.0; 4];
        interpolate(&mut into, &base, &trained, 1.0);
        assert_eq!(into, trained);
        interpolate(&mut into, &base, &trained, 0.25);
        assert_eq!(into[1].to_bits(), base[1].to_bits());
        // Values of a few tenths: two rounding errors of half a unit in the last place.
        let expected = [1.5, -2.5, 0.15, 6.75];
        assert!(into.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6));
    }

    #[test]
    fn the_smallest_factor_is_found_to_a_64th() {
        for least in [0.0, 0.01, 0.3, 0.655, 0.99, 1.0] {
            let found = smallest_factor(|a| Ok(a >= least)).expect("it never fails");
            assert!(
                found >= least && found - least <= 1.0 / 64.0,
                "{least}: {found}"
            );
        }
    }

    #[test]
    fn the_factor_is_one_when_nothing_smaller_is_enough() {
        assert_eq!(smallest_factor(|_| Ok(false)).expect("it never fails"), 1.0);
    }
}

//! SIMD without intrinsics: plain loops over 16 lanes, compiled for several instruction sets and selected at run time.
//!
//! The number of lanes fixes the order of every sum, so that results are the same on AVX2 and AVX-512.

/// Lanes of a sum: one AVX-512 register of f32.
pub const LANES: usize = 16;

/// Defines functions that are compiled three times, for AVX-512, AVX2 and the build's own target. Each call selects the best version
/// that the processor supports. Functions that they call must be `#[inline(always)]` (and closures small) to be vectorised too.
macro_rules! vectorized {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)? $body:block)*) => {$(
        $(#[$meta])*
        $vis fn $name($($arg: $type),*) $(-> $out)? {
            #[inline(always)]
            fn body($($arg: $type),*) $(-> $out)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512($($arg: $type),*) $(-> $out)? {
                body($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $type),*) $(-> $out)? {
                body($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            match $crate::engine::simd::level() {
                // SAFETY: the processor has these features.
                #[allow(unsafe_code, reason = "the one way to call a function of other target features")]
                $crate::engine::simd::Level::Avx512 => return unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[allow(unsafe_code, reason = "the one way to call a function of other target features")]
                $crate::engine::simd::Level::Avx2 => return unsafe { avx2($($arg),*) },
                $crate::engine::simd::Level::Build => {}
            }
            body($($arg),*)
        }
    )*};
}
pub(crate) use vectorized;

/// Instruction sets that `vectorized` functions are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// AVX2 and FMA.
    Avx2,
    /// The target of the build.
    Build,
}

/// The widest instruction set that this processor supports.
#[cfg(target_arch = "x86_64")]
#[inline]
pub fn level() -> Level {
    let wide = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    if wide {
        Level::Avx512
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        Level::Avx2
    } else {
        Level::Build
    }
}

/// e^x within 2 units in the last place, on [-87, 88]; clamped outside.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2, where ln 2 is split in two parts; e^r is its Taylor series up to degree 7.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = n.mul_add(-1.428_606_8e-6, n.mul_add(-0.693_145_75, x));
    let p = r
        .mul_add(1.0 / 5040.0, 1.0 / 720.0)
        .mul_add(r, 1.0 / 120.0)
        .mul_add(r, 1.0 / 24.0)
        .mul_add(r, 1.0 / 6.0)
        .mul_add(r, 0.5)
        .mul_add(r, 1.0)
        .mul_add(r, 1.0);
    // 2^n from its bits: adding 1.5 * 2^23 leaves n + 127 in the low bits of the mantissa.
    let bits = (n + (127.0 + 12_582_912.0)).to_bits();
    p * f32::from_bits(bits << 23)
}

/// Dot product, in 16 lanes.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sum = [0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            sum[i] = a[i].mul_add(b[i], sum[i]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sum.iter().sum::<f32>() + rest
}

/// Largest element; `f32::NEG_INFINITY` if there is none.
#[inline(always)]
pub fn max(a: &[f32]) -> f32 {
    let (chunks, rest) = a.as_chunks::<LANES>();
    let mut top = [f32::NEG_INFINITY; LANES];
    for x in chunks {
        for i in 0..LANES {
            top[i] = if x[i] > top[i] { x[i] } else { top[i] };
        }
    }
    top.iter()
        .chain(rest)
        .fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m })
}

/// `y += a * x`.
#[inline(always)]
pub fn axpy(y: &mut [f32], a: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for i in -86_999..87_999 {
            let x = i as f32 * 1e-3;
            let exact = f64::from(x).exp();
            let error = ((f64::from(exp(x)) - exact) / exact).abs();
            // Two units in the last place of f32, relative: 2 * 2^-23.
            assert!(error < 2.4e-7, "exp({x}): relative error {error:e}");
        }
        assert!(exp(-1e30) > 0.0 && exp(1e30).is_finite());
    }

    #[test]
    fn dot_and_max_take_the_tail_too() {
        let a: Vec<f32> = (0..37).map(|i| i as f32).collect();
        let exact: f32 = (0..37).map(|i| (i * i) as f32).sum();
        assert_eq!(dot(&a, &a), exact);
        assert_eq!(max(&a), 36.0);
        assert_eq!(max(&[]), f32::NEG_INFINITY);
    }
}

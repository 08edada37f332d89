//! Dropout whose zeros are a function of a key.

/// Inverted dropout (Srivastava et al. 2014): each element is zeroed with probability p, or divided by 1 - p.
///
/// Whether an element is kept depends on the key, the target and the place of the element alone, so that the backward pass sees what
/// the forward pass saw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// p, at least 0 and below 1.
    pub p: f64,
    /// Different in every micro-batch of a run.
    pub key: u64,
}

impl Dropout {
    /// Copies `x` with the zeros and factors of the target with this index.
    pub fn apply(&self, target: usize, x: &[f32]) -> Vec<f32> {
        let mut dropped = x.to_vec();
        self.apply_in_place(target, &mut dropped);
        dropped
    }

    /// [`Dropout::apply`] in place; also the gradient of its input from that of its output.
    pub fn apply_in_place(&self, target: usize, x: &mut [f32]) {
        let threshold = (self.p * 2f64.powi(32)) as u64;
        let factor = (1.0 / (1.0 - self.p)) as f32;
        let of_target = mix(self.key ^ mix(target as u64));
        for (i, x) in x.iter_mut().enumerate() {
            let draw = mix(of_target.wrapping_add(i as u64)) >> 32;
            *x = if draw < threshold { 0.0 } else { *x * factor };
        }
    }
}

/// The output function of `SplitMix64` (Steele et al. 2014): a bijection whose values for a sequence of inputs look random.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_zeroes_its_share_and_keeps_the_mean() {
        let dropout = Dropout { p: 0.3, key: 5 };
        let x = vec![1.0; 100_000];
        let dropped = dropout.apply(2, &x);
        let zeros = dropped.iter().filter(|x| **x == 0.0).count();
        // Three standard deviations: sqrt(100000 * .3 * .7) = 145.
        assert!((29_565..30_435).contains(&zeros), "{zeros}");
        assert!(
            dropped
                .iter()
                .all(|x| *x == 0.0 || *x == (1.0 / 0.7) as f32)
        );
        assert_eq!(dropped, dropout.apply(2, &x), "it is a function of its key");
        let differ = |other: &[f32]| dropped.iter().zip(other).filter(|(a, b)| a != b).count();
        let (other_target, other_key) = (
            dropout.apply(3, &x),
            Dropout { key: 6, ..dropout }.apply(2, &x),
        );
        // Independent draws differ at 2 x .3 x .7 of the places; the standard deviation is 156.
        for other in [other_target, other_key] {
            assert!((41_500..42_500).contains(&differ(&other)));
        }
        assert_eq!(Dropout { p: 0.0, key: 1 }.apply(0, &x), x);
    }
}

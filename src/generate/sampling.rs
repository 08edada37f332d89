//! From the logits (V) of one position to a token and its probabilities.

use crate::engine::{
    simd::{self, LANES, vectorized},
    topk,
};

/// The most likely token. Ties are broken by the lowest id.
pub fn argmax(logits: &[f32]) -> u32 {
    let top = max_logit(logits);
    logits.iter().position(|x| *x == top).unwrap_or(0) as u32
}

vectorized! {
    fn max_logit(logits: &[f32]) -> f32 {
        simd::max(logits)
    }

    /// ln of the sum of `exp(logits)`. A log-probability (nats) is the logit minus this.
    pub fn log_sum_exp(logits: &[f32]) -> f32 {
        let top = simd::max(logits);
        let (chunks, rest) = logits.as_chunks::<LANES>();
        let mut sums = [0f32; LANES];
        for x in chunks {
            for i in 0..LANES {
                sums[i] += simd::exp(x[i] - top);
            }
        }
        let rest: f32 = rest.iter().map(|x| simd::exp(x - top)).sum();
        top + (sums.iter().sum::<f32>() + rest).ln()
    }
}

/// The sampling distribution: softmax(logits / temperature) over the `top_k` most likely tokens.
///
/// `top_k` = 0 means the whole vocabulary. The probabilities sum to 1.
pub fn distribution(logits: &[f32], temperature: f32, top_k: usize) -> Vec<(u32, f64)> {
    let kept = if top_k == 0 {
        (0..).zip(logits.iter().copied()).collect()
    } else {
        topk(logits, top_k)
    };
    let top = kept.iter().fold(f32::NEG_INFINITY, |m, (_, x)| m.max(*x));
    let weight = |x: f32| f64::from((x - top) / temperature).exp();
    let sum: f64 = kept.iter().map(|(_, x)| weight(*x)).sum();
    kept.into_iter()
        .map(|(id, x)| (id, weight(x) / sum))
        .collect()
}

/// The token at quantile `u` in [0, 1) of `distribution`.
pub fn sample_at_quantile(distribution: &[(u32, f64)], u: f64) -> u32 {
    let mut below = 0.0;
    for (id, p) in distribution {
        below += p;
        if u < below {
            return *id;
        }
    }
    // The sum may be slightly below 1 because of rounding.
    distribution.last().map_or(0, |(id, _)| *id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_id_wins_among_equals() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0, 2.0]), 1);
    }

    #[test]
    fn log_sum_exp_equals_its_definition() {
        let logits: Vec<f32> = (0..37).map(|i| (i as f32).sin() * 8.0).collect();
        let exact = logits.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
        // A sum of 37 f32 exponentials, each within 2 ulp.
        assert!((f64::from(log_sum_exp(&logits)) - exact).abs() < 1e-6);
    }

    #[test]
    fn temperature_softens_and_top_k_cuts() {
        let logits = [0.0, 2f32.ln(), 3f32.ln(), -9.0];
        // T = 0.5 squares the odds 3 : 2; top-k removes the other tokens.
        let p = distribution(&logits, 0.5, 2);
        assert_eq!([p[0].0, p[1].0], [2, 1]);
        assert!((p[0].1 - 9.0 / 13.0).abs() < 1e-6 && (p[1].1 - 4.0 / 13.0).abs() < 1e-6);
        let whole: f64 = distribution(&logits, 2.0, 0).iter().map(|(_, p)| p).sum();
        assert!((whole - 1.0).abs() < 1e-12);
    }

    #[test]
    fn draws_follow_the_quantiles() {
        let p = [(7, 0.5), (3, 0.25), (9, 0.25)];
        let drawn = [0.0, 0.49, 0.5, 0.74, 0.75, 0.999].map(|u| sample_at_quantile(&p, u));
        assert_eq!(drawn, [7, 7, 3, 3, 9, 9]);
        assert_eq!(sample_at_quantile(&[(4, 0.9)], 0.95), 4);
    }
}

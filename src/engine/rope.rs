//! Rotary position embedding (`RoPE`, Su et al. 2021), in the half-split form of `transformers`.

use std::f64::consts::PI;

use crate::model::{ModelConfig, config::RopeScaling};

/// cos and sin of the positions `0..n`.
pub struct Rope {
    inverse_frequencies: Vec<f64>, // (K / 2), radians per position
    table: Vec<f32>,               // (positions, K): K / 2 cosines, then K / 2 sines
}

impl Rope {
    /// Frequencies of `config`: theta^(-2i / K), scaled by `rope_scaling`. The table is empty.
    pub fn new(config: &ModelConfig) -> Self {
        let k = config.head_dim;
        let inverse_frequencies = (0..k / 2)
            .map(|i| {
                scale(
                    config.rope_theta.powf(-2.0 * i as f64 / k as f64),
                    &config.rope_scaling,
                )
            })
            .collect();
        Self {
            inverse_frequencies,
            table: Vec::new(),
        }
    }

    /// Extends the table to at least the positions `0..positions`.
    pub fn extend_to(&mut self, positions: usize) {
        let half = self.inverse_frequencies.len();
        for p in self.table.len() / (2 * half).max(1)..positions {
            let angles = self.inverse_frequencies.iter().map(|f| p as f64 * f);
            self.table.extend(angles.clone().map(|a| a.cos() as f32));
            self.table.extend(angles.map(|a| a.sin() as f32));
        }
    }

    /// cos and sin (K / 2 each) of a position in the table.
    #[inline(always)]
    pub fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let k = 2 * self.inverse_frequencies.len();
        self.table[position * k..][..k].split_at(k / 2)
    }
}

/// The scaled frequency. Llama 3.x divides that of long wavelengths by `factor`, keeps that of short ones and interpolates in between
/// (`_compute_llama3_parameters` of `transformers`).
fn scale(frequency: f64, scaling: &RopeScaling) -> f64 {
    match scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear(factor) => frequency / factor,
        RopeScaling::Llama3(s) => frequency / s.divisor(2.0 * PI / frequency),
    }
}

/// Rotates one head by the angles of its position.
#[inline(always)]
pub fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (a, b) = head.split_at_mut(cos.len());
    for i in 0..cos.len() {
        (a[i], b[i]) = (a[i] * cos[i] - b[i] * sin[i], b[i] * cos[i] + a[i] * sin[i]);
    }
}

/// Rotates one head back: the gradient of [`rotate`].
#[inline(always)]
pub fn rotate_back(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (a, b) = head.split_at_mut(cos.len());
    for i in 0..cos.len() {
        (a[i], b[i]) = (a[i] * cos[i] + b[i] * sin[i], b[i] * cos[i] - a[i] * sin[i]);
    }
}

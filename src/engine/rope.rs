//! Rotary position embedding (`RoPE`, Su et al. 2021), in the half-split form of `transformers`.

use crate::model::{ModelConfig, config::RopeScaling};

/// cos and sin of the positions `0..n`.
pub struct Rope {
    inverse_frequencies: Vec<f64>, // (K / 2, or less where only a part of each head is rotated), radians per position
    factor: f64,                   // of cosines and sines
    table: Vec<f32>,               // (positions, K): K / 2 cosines, then K / 2 sines
}

impl Rope {
    /// Frequencies of `config`: theta^(-2i / K), scaled by `rope_scaling`. The table is empty.
    pub fn new(config: &ModelConfig) -> Self {
        Self::of(config.rope_theta, &config.rope_scaling, config.rotary_dim())
    }

    /// The frequencies of sliding layers, where they have a base of their own: unscaled.
    pub fn local(config: &ModelConfig) -> Option<Self> {
        let theta = config.layers.local_rope_theta?;
        Some(Self::of(theta, &RopeScaling::None, config.rotary_dim()))
    }

    fn of(theta: f64, scaling: &RopeScaling, dim: usize) -> Self {
        let frequency = |i| scaling.frequency(i, dim, theta);
        Self {
            inverse_frequencies: (0..dim / 2).map(frequency).collect(),
            factor: scaling.attention_factor(),
            table: Vec::new(),
        }
    }

    /// Extends the table to at least the positions `0..positions`.
    pub fn extend_to(&mut self, positions: usize) {
        let half = self.inverse_frequencies.len();
        for p in self.table.len() / (2 * half).max(1)..positions {
            let angles = self.inverse_frequencies.iter().map(|f| p as f64 * f);
            let factor = self.factor;
            let cosines = angles.clone().map(|a| (a.cos() * factor) as f32);
            self.table.extend(cosines);
            self.table.extend(angles.map(|a| (a.sin() * factor) as f32));
        }
    }

    /// The table: a row of K / 2 cosines, then K / 2 sines, for each position.
    #[cfg(feature = "gpu")]
    pub fn table(&self) -> &[f32] {
        &self.table
    }

    /// K / 2: number of angles.
    #[cfg(feature = "gpu")]
    pub fn half(&self) -> usize {
        self.inverse_frequencies.len()
    }

    /// cos and sin (K / 2 each) of a position in the table.
    #[inline(always)]
    pub fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let k = 2 * self.inverse_frequencies.len();
        self.table[position * k..][..k].split_at(k / 2)
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

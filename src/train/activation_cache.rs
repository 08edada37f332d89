//! Activations below the lowest trained layer. They are the same in every epoch, so each row computes them once.

use crate::{
    engine::{CachedPrefix, Engine},
    model::{Layout, Params},
    prompt::{Example, MICRO_BATCH_TOKENS, PackedExamples, micro_batches},
};

/// Output of the frozen lower layers, per example.
pub(super) struct ActivationCache {
    layers: usize,
    d: usize,
    rows: Vec<Vec<f32>>, // of each: (tokens, D)
}

impl ActivationCache {
    /// The number of frozen layers below the lowest trained tensor; 0 where the embedding is trained. `trained` says for each tensor
    /// of the layout whether it is trained.
    pub fn layers(layout: &Layout, trained: &[bool]) -> usize {
        let tensors = layout.tensors.iter().zip(trained);
        let lowest = tensors
            .filter(|(_, trained)| **trained)
            .map(|(t, _)| t.range.start)
            .min();
        let lowest = lowest.unwrap_or(usize::MAX);
        if lowest < layout.embed.end {
            return 0;
        }
        let below = layout
            .layers
            .iter()
            .take_while(|layer| layer.range().end <= lowest);
        below.count().min(layout.layers.len() - 1)
    }

    /// Floats that the cache needs for `rows`, for a model of hidden size `d`.
    pub fn floats(rows: &[Example], d: usize) -> usize {
        rows.iter().map(|row| row.input_ids().len() * d).sum()
    }

    /// An empty cache, for a model of hidden size `d`.
    pub fn new(layers: usize, d: usize) -> Self {
        Self {
            layers,
            d,
            rows: Vec::new(),
        }
    }

    /// Computes the activations of those `rows` that are not in the cache yet, in their order.
    pub fn extend(&mut self, engine: &mut Engine, params: &Params, rows: &[Example]) {
        let d = self.d;
        let new = rows.get(self.rows.len()..).unwrap_or_default();
        for pass in micro_batches(new, MICRO_BATCH_TOKENS, Example::num_tokens) {
            let packed = PackedExamples::new(pass);
            let all: Vec<usize> = (0..packed.batch.tokens.len()).collect();
            let stream = engine.residual_after(params, &packed.batch, self.layers, &all);
            for own in &packed.own_tokens {
                let tokens = packed.batch.row_tokens(own);
                let of = tokens.flat_map(|token| &stream[token * d..][..d]);
                self.rows.push(of.copied().collect());
            }
        }
    }

    /// Attaches the cached activations to a micro-batch of the rows with these indices.
    pub fn attach(&self, packed: &mut PackedExamples, rows: &[usize]) {
        let d = self.d;
        let mut stream = vec![0.0; packed.batch.tokens.len() * d];
        for (row, own) in rows.iter().zip(&packed.own_tokens) {
            let tokens = packed.batch.row_tokens(own);
            for (token, from) in tokens.zip(self.rows[*row].chunks_exact(d)) {
                stream[token * d..][..d].copy_from_slice(from);
            }
        }
        packed.batch.cached_prefix = Some(CachedPrefix {
            layers: self.layers,
            stream,
        });
    }
}

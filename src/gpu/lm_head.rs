//! The LM head, and the memory for its logits: a few complete rows at a time.
//!
//! P positions, V vocabulary, D hidden.

use crate::gpu::{
    attention::{Reused, at_least},
    buffer::{Binding, GpuBuffer},
    context::Gpu,
    error::GpuError,
    matmul::{Form, Matrix, matmul},
};

/// Logits (floats) held at once, of the student and of the teacher each: 128 MiB.
const CHUNK_FLOATS: usize = 32 << 20;

/// The LM head.
#[derive(Clone, Copy)]
pub struct LmHead<'a> {
    /// (V, D).
    pub weight: Binding<'a>,
    /// V.
    pub vocab_size: usize,
    /// D.
    pub hidden_size: usize,
}

impl LmHead<'_> {
    /// Floats of a row of logits: V, rounded up to whole vectors.
    pub(crate) fn stride(self) -> usize {
        self.vocab_size.next_multiple_of(4)
    }

    /// Logits of `rows` rows of `hidden`, from row `first` on, in `logits`.
    pub(crate) fn fill(
        self,
        gpu: &Gpu,
        logits: &GpuBuffer,
        hidden: Binding<'_>,
        first: usize,
        rows: usize,
    ) -> Result<(), GpuError> {
        let (v, d) = (self.vocab_size, self.hidden_size);
        let hidden = at_least("the head: hidden states", hidden, (first + rows) * d)?;
        matmul(
            gpu,
            Form::NT,
            Matrix::strided(logits.all(), rows, v, self.stride()),
            Matrix::new(hidden, first + rows, d).with_rows(first, rows),
            Matrix::new(at_least("the head: weight", self.weight, v * d)?, v, d),
            1.0,
            0.0,
        )
    }
}

/// Memory for the logits of student and teacher, and for what is computed of each row. It can be used again.
pub struct HeadScratch {
    pub(crate) logits: [Reused; 2],
    pub(crate) terms: Reused, // (P, 2): cross-entropy and divergence, weighted
    pub(crate) topk: [Reused; 2],
    pub(crate) subset: Reused, // (rows, k)
    chunk_floats: usize,
}

impl Default for HeadScratch {
    fn default() -> Self {
        Self::with_chunk(CHUNK_FLOATS)
    }
}

impl HeadScratch {
    /// Memory for so many logits of each side, but for one row at least.
    pub fn with_chunk(floats: usize) -> Self {
        Self {
            logits: [Reused::default(), Reused::default()],
            terms: Reused::default(),
            topk: [Reused::default(), Reused::default()],
            subset: Reused::default(),
            chunk_floats: floats,
        }
    }

    /// Memory for tokens and logits of the most likely ones.
    pub(crate) fn topk_buffers(
        &mut self,
        gpu: &Gpu,
        len: usize,
    ) -> Result<[GpuBuffer; 2], GpuError> {
        let [tokens, logits] = &mut self.topk;
        Ok([
            tokens.reserve(gpu, len)?.clone(),
            logits.reserve(gpu, len)?.clone(),
        ])
    }

    /// Rows of logits held at once, `rows` at most: about equally many in each chunk.
    pub(crate) fn chunk_rows(&self, gpu: &Gpu, stride: usize, rows: usize) -> usize {
        let most = (self.chunk_floats.min(gpu.max_binding()) / stride).max(1);
        rows.div_ceil(rows.div_ceil(most).max(1)).max(1)
    }
}

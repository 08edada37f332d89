//! New tokens of a KV cache, for a GPU.

use std::ops::Range;

use super::cache::SegmentId;

/// New tokens of a cache, and where their keys are.
#[cfg_attr(not(feature = "gpu"), expect(dead_code, reason = "no device reads it"))]
pub(super) struct NewTokens<'a> {
    pub tokens: &'a [u32],
    pub positions: &'a [usize],
    pub slots: &'a [usize],
    /// The rows of the tokens: their segments, and their ranges in `tokens`.
    pub rows: Vec<(SegmentId, Range<usize>)>,
    pub outputs: &'a [usize],
}

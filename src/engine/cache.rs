//! The KV cache: keys and values of past tokens, as a tree of segments (a few-shot prefix, its questions, their answers).

#[cfg(feature = "gpu")]
use std::ops::Range;

use super::{attention::KvSpan, device_cache::DeviceCache};
use crate::model::ModelConfig;

/// A segment of tokens in a [`KvCache`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentId(u32);

/// Tokens that follow those of the parent segment.
#[derive(Clone, Copy, Debug)]
struct Segment {
    parent: Option<SegmentId>,
    /// Number of tokens before it.
    before: usize,
    /// First slot.
    slot: usize,
    len: usize,
    capacity: usize,
}

/// Keys and values of a tree of token segments.
pub struct KvCache {
    layers: Vec<[Vec<f32>; 2]>, // keys, values: (slots, G K)
    stride: usize,              // G K
    segments: Vec<Segment>,
    /// Where a GPU keeps them instead.
    #[cfg_attr(not(feature = "gpu"), expect(dead_code, reason = "there is no device"))]
    pub(super) device: Option<DeviceCache>,
}

impl KvCache {
    /// An empty cache for a model of this shape.
    pub fn new(config: &ModelConfig) -> Self {
        Self {
            layers: vec![[Vec::new(), Vec::new()]; config.num_hidden_layers],
            stride: config.num_key_value_heads * config.head_dim,
            segments: Vec::new(),
            device: None,
        }
    }

    /// Opens an empty segment after all tokens of `parent`, with room for `capacity` tokens. The parent must not grow any more.
    pub fn open(&mut self, parent: Option<SegmentId>, capacity: usize) -> SegmentId {
        let before = parent.map_or(0, |p| self.len(p));
        let slot = self.slots();
        self.segments.push(Segment {
            parent,
            before,
            slot,
            len: 0,
            capacity,
        });
        SegmentId(self.segments.len() as u32 - 1)
    }

    /// Allocates memory for the slots in use.
    pub(super) fn reserve(&mut self) {
        let floats = self.slots() * self.stride;
        for buffer in self.layers.iter_mut().flatten() {
            if buffer.len() < floats {
                buffer.resize(floats, 0.0);
            }
        }
    }

    /// Number of slots in use.
    pub(super) fn slots(&self) -> usize {
        self.segments.last().map_or(0, |s| s.slot + s.capacity)
    }

    /// The current state, to which [`KvCache::release`] can return.
    pub fn mark(&self) -> usize {
        self.segments.len()
    }

    /// Removes every segment that was opened after `mark`.
    pub fn release(&mut self, mark: usize) {
        self.segments.truncate(mark);
    }

    /// Number of tokens up to the end of `segment`.
    pub fn len(&self, segment: SegmentId) -> usize {
        let s = self.segment(segment);
        s.before + s.len
    }

    /// Whether no segment is open.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    fn segment(&self, id: SegmentId) -> &Segment {
        &self.segments[id.0 as usize]
    }

    /// Reserves slots for `tokens` more in `segment` and returns the first one.
    pub(super) fn grow(&mut self, segment: SegmentId, tokens: usize) -> usize {
        let s = &mut self.segments[segment.0 as usize];
        assert!(
            s.len + tokens <= s.capacity,
            "the segment was opened for fewer tokens"
        );
        s.len += tokens;
        s.slot + s.len - tokens
    }

    /// Writes the keys and values of one token. `row` is k, then v (2 G K).
    pub(super) fn write(&mut self, layer: usize, slot: usize, row: &[f32]) {
        let at = slot * self.stride..(slot + 1) * self.stride;
        let (keys, values) = row.split_at(self.stride);
        self.layers[layer][0][at.clone()].copy_from_slice(keys);
        self.layers[layer][1][at].copy_from_slice(values);
    }

    /// The slots that the tokens of `segment` attend to: those of the segments before it, and its own.
    #[cfg(feature = "gpu")]
    pub(super) fn keys(&self, segment: SegmentId) -> Vec<Range<usize>> {
        let path = self.path(Some(segment)).into_iter();
        path.map(|s| s.slot..s.slot + s.len).collect()
    }

    /// The segments from the first one to `last`, which follow one another.
    fn path(&self, last: Option<SegmentId>) -> Vec<&Segment> {
        let ids = std::iter::successors(last, |id| self.segment(*id).parent);
        let mut path: Vec<&Segment> = ids.map(|id| self.segment(id)).collect();
        path.reverse();
        path
    }

    /// The keys and values in `layer` that the tokens of `segment` attend to: those of the segments before it, and its own.
    pub(super) fn spans(&self, layer: usize, segment: SegmentId) -> (Vec<KvSpan<'_>>, KvSpan<'_>) {
        let [keys, values] = &self.layers[layer];
        let span = |s: &Segment| KvSpan {
            keys: &keys[s.slot * self.stride..],
            values: &values[s.slot * self.stride..],
            stride: self.stride,
            len: s.len,
        };
        let own = self.segment(segment);
        let context = self.path(own.parent).into_iter();
        (context.map(span).collect(), span(own))
    }
}

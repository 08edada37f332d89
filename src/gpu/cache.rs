//! The KV cache: keys and values of past tokens on the device, as a tree of segments (a few-shot prefix, its questions, their
//! answers).
//!
//! G key and value heads of K channels. A slot holds the keys and values of one token in every layer.

use std::ops::Range;

use bytemuck::NoUninit;

use crate::gpu::{
    attention::{AttentionRow, AttentionShape, at_least},
    buffer::{Binding, GpuBuffer},
    context::{Gpu, GpuError, Kernel, grid},
};

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
    layers: Vec<[GpuBuffer; 2]>, // keys, values: (slots, G K)
    stride: usize,               // G K
    slots: usize,                // for which there is memory
    segments: Vec<Segment>,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct WriteParams {
    tokens: u32,
    qkv_stride: u32,
    k_offset: u32,
    stride: u32,
}

impl KvCache {
    /// An empty cache for a model with so many layers and these heads.
    ///
    /// # Errors
    /// Those of [`Gpu::zeros`].
    pub fn new(gpu: &Gpu, layers: usize, shape: AttentionShape) -> Result<Self, GpuError> {
        let layers = (0..layers).map(|_| Ok([gpu.zeros(0)?, gpu.zeros(0)?]));
        Ok(Self {
            layers: layers.collect::<Result<_, GpuError>>()?,
            stride: shape.kv_width(),
            slots: 0,
            segments: Vec::new(),
        })
    }

    /// Opens an empty segment after all tokens of `parent`, with room for `capacity` tokens. The parent must not grow any more.
    ///
    /// # Errors
    /// The device has too little memory, or a layer's keys exceed what can be bound: [`GpuError::LimitTooSmall`].
    pub fn open(
        &mut self,
        gpu: &Gpu,
        parent: Option<SegmentId>,
        capacity: usize,
    ) -> Result<SegmentId, GpuError> {
        let before = parent.map_or(0, |p| self.len(p));
        let slot = self.used();
        self.reserve(gpu, slot + capacity)?;
        self.segments.push(Segment {
            parent,
            before,
            slot,
            len: 0,
            capacity,
        });
        Ok(SegmentId(self.segments.len() as u32 - 1))
    }

    /// Makes room for so many slots, by at least a half more than before, up to what can be bound.
    ///
    /// # Errors
    /// As [`KvCache::open`].
    pub fn reserve(&mut self, gpu: &Gpu, slots: usize) -> Result<(), GpuError> {
        if slots <= self.slots {
            return Ok(());
        }
        let most = gpu.max_binding() / self.stride;
        if slots > most {
            return Err(GpuError::LimitTooSmall {
                what: "the KV cache (tokens)".to_owned(),
                needed: slots as u64,
                limit: most as u64,
            });
        }
        let room = slots.max(self.slots + self.slots / 2).min(most);
        let kept = self.used() * self.stride;
        for buffer in self.layers.iter_mut().flatten() {
            let larger = gpu.zeros(room * self.stride)?;
            gpu.copy(larger.range(0..kept), buffer.range(0..kept))?;
            *buffer = larger;
        }
        self.slots = room;
        Ok(())
    }

    /// Number of slots in use.
    fn used(&self) -> usize {
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
    pub fn grow(&mut self, segment: SegmentId, tokens: usize) -> usize {
        let s = &mut self.segments[segment.0 as usize];
        assert!(
            s.len + tokens <= s.capacity,
            "the segment was opened for fewer tokens"
        );
        s.len += tokens;
        s.slot + s.len - tokens
    }

    /// The row whose new tokens are `tokens`, the last ones of `segment`: it attends to the segments before it, and to its own.
    pub fn row(&self, segment: SegmentId, tokens: Range<usize>) -> AttentionRow {
        let path = std::iter::successors(Some(segment), |s| self.segment(*s).parent);
        let mut keys: Vec<_> = path
            .map(|s| self.segment(s))
            .map(|s| s.slot..s.slot + s.len)
            .collect();
        keys.reverse();
        AttentionRow { tokens, keys }
    }

    /// Keys and values of a layer (slots, G K).
    pub fn layer(&self, layer: usize) -> [Binding<'_>; 2] {
        let [keys, values] = &self.layers[layer];
        [keys.all(), values.all()]
    }

    /// Writes the keys and values of new tokens, which are in `qkv` (tokens, (H + 2G) K), to their slots in `layer`. `slots` has the
    /// slot of each token, as u32.
    ///
    /// # Errors
    /// [`GpuError::Shape`] if a range is too short or the heads are others; those of [`Gpu::dispatch`].
    pub fn write(
        &self,
        gpu: &Gpu,
        layer: usize,
        qkv: Binding<'_>,
        slots: &GpuBuffer,
        tokens: usize,
        shape: AttentionShape,
    ) -> Result<(), GpuError> {
        if shape.kv_width() != self.stride {
            return Err(GpuError::Shape {
                what: "the KV cache: channels of a slot",
                expected: self.stride,
                got: shape.kv_width(),
            });
        }
        let qkv = at_least("the KV cache: qkv", qkv, tokens * shape.qkv_width())?;
        let slots = at_least("the KV cache: slots", slots.all(), tokens)?;
        let [keys, values] = self.layer(layer);
        let vectors = (tokens * self.stride / 4).div_ceil(256);
        if vectors == 0 {
            return Ok(());
        }
        gpu.dispatch(
            &Kernel {
                label: "KV cache",
                source: include_str!("cache.wgsl"),
                entry: "write",
                constants: &[],
            },
            &[qkv, slots, keys, values],
            &WriteParams {
                tokens: tokens as u32,
                qkv_stride: (shape.qkv_width() / 4) as u32,
                k_offset: (shape.q_width() / 4) as u32,
                stride: (self.stride / 4) as u32,
            },
            grid(vectors),
        )
    }
}

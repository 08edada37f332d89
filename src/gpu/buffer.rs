//! Memory of a device, and ranges of it.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

/// An array of f32 (or u32, by their bits) in the memory of a device. Clones share the memory.
#[derive(Clone)]
pub struct GpuBuffer {
    inner: Arc<Inner>,
}

struct Inner {
    raw: wgpu::Buffer,
    id: u64,
    len: usize,
    freed: Arc<Mutex<Vec<u64>>>, // ids of buffers that no longer exist, for the context's table of bind groups
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.freed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(self.id);
    }
}

impl GpuBuffer {
    pub(crate) fn new(raw: wgpu::Buffer, id: u64, len: usize, freed: Arc<Mutex<Vec<u64>>>) -> Self {
        let inner = Arc::new(Inner {
            raw,
            id,
            len,
            freed,
        });
        Self { inner }
    }

    pub(crate) fn raw(&self) -> &wgpu::Buffer {
        &self.inner.raw
    }

    pub(crate) fn id(&self) -> u64 {
        self.inner.id
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.inner.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of elements that memory was taken for: a multiple of four, so that the last ones can be read as a vector.
    pub(crate) fn capacity(&self) -> usize {
        self.inner.raw.size() as usize / size_of::<f32>()
    }

    /// All of it.
    pub fn all(&self) -> Binding<'_> {
        self.range(0..self.len())
    }

    /// A part of it.
    pub fn range(&self, range: Range<usize>) -> Binding<'_> {
        Binding {
            buffer: self,
            start: range.start,
            len: range.end.saturating_sub(range.start),
        }
    }
}

/// A range of a buffer, in elements.
#[derive(Clone, Copy)]
pub struct Binding<'a> {
    /// The buffer.
    pub buffer: &'a GpuBuffer,
    /// The first element.
    pub start: usize,
    /// The number of elements.
    pub len: usize,
}

impl<'a> Binding<'a> {
    /// A part of this range; `range` counts from its start.
    #[must_use]
    pub fn part(self, range: Range<usize>) -> Self {
        Self {
            buffer: self.buffer,
            start: self.start + range.start,
            len: range.end.saturating_sub(range.start),
        }
    }

    /// The element after the last.
    pub fn end(self) -> usize {
        self.start + self.len
    }

    /// Whether both name elements of the same buffer. A kernel may not read one and write the other, even where the ranges are
    /// disjoint: devices track whole buffers.
    pub fn shares_buffer(self, other: Binding<'_>) -> bool {
        self.buffer.id() == other.buffer.id()
    }

    /// The smallest range around this one that starts at a multiple of `alignment` elements and whose length is a multiple of four
    /// (inside the buffer's memory), and the offset of this range in it.
    pub fn aligned(self, alignment: usize) -> (Binding<'a>, u32) {
        let offset = self.start % alignment.max(1);
        let len = (offset + self.len).next_multiple_of(4);
        let start = self.start - offset;
        let widened = Binding {
            buffer: self.buffer,
            start,
            len: len.min(self.buffer.capacity() - start.min(self.buffer.capacity())),
        };
        (widened, offset as u32)
    }
}

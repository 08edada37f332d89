//! A large zeroed `[f32]` in a memory mapping of its own, with huge pages where the system has them.

use std::{
    ops::{Deref, DerefMut},
    sync::atomic::{AtomicU64, Ordering},
};

use memmap2::MmapMut;

/// A zeroed f32 buffer of fixed length. Pages use no memory until they are touched.
#[derive(Default)]
pub struct Buffer {
    map: Option<MmapMut>,
    version: BufferVersion,
}

/// The contents of a buffer at some time: equal versions mean equal contents. Every mutable access makes a new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BufferVersion {
    buffer: u64,
    accesses: u64,
}

impl Buffer {
    /// `len` zeros.
    ///
    /// # Panics
    /// When the system has no address space left, as any allocation.
    pub fn zeros(len: usize) -> Self {
        static BUFFERS: AtomicU64 = AtomicU64::new(1);

        if len == 0 {
            return Self::default();
        }
        let map = MmapMut::map_anon(len * size_of::<f32>()).expect("out of memory");
        // A hint only: systems without huge pages ignore it.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let version = BufferVersion {
            buffer: BUFFERS.fetch_add(1, Ordering::Relaxed),
            accesses: 0,
        };
        Self {
            map: Some(map),
            version,
        }
    }

    /// The version of the contents.
    pub fn version(&self) -> BufferVersion {
        self.version
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        self.map.as_ref().map_or(&[], |m| bytemuck::cast_slice(m))
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        self.version.accesses += 1;
        self.map
            .as_mut()
            .map_or(&mut [], |m| bytemuck::cast_slice_mut(m))
    }
}

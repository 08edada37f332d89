//! A large zeroed `[f32]` in a memory mapping of its own, with huge pages where the system has them.

use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

/// A zeroed f32 buffer of fixed length. Pages use no memory until they are touched.
#[derive(Default)]
pub struct Buffer {
    map: Option<MmapMut>,
}

impl Buffer {
    /// `len` zeros.
    ///
    /// # Panics
    /// When the system has no address space left, as any allocation.
    pub fn zeros(len: usize) -> Self {
        if len == 0 {
            return Self { map: None };
        }
        let map = MmapMut::map_anon(len * size_of::<f32>()).expect("out of memory");
        // A hint only: systems without huge pages ignore it.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Self { map: Some(map) }
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
        self.map
            .as_mut()
            .map_or(&mut [], |m| bytemuck::cast_slice_mut(m))
    }
}

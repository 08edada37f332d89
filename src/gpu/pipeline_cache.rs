//! Compiled kernels on disk, so that a driver compiles them once.

use std::{fs, path::PathBuf};

use sha2::{Digest, Sha256};

use crate::{atomic_file, hub};

/// Bytes of the checksum at the start of the file.
const CHECKSUM: usize = 32;

/// The compiled kernels of one device and driver.
pub(super) struct PipelineCache {
    raw: wgpu::PipelineCache,
    path: PathBuf,
    /// Kernels when it was written.
    saved: usize,
}

impl PipelineCache {
    /// The cache of this device, which may be empty; none where the driver has none, or where nothing can be stored.
    #[allow(unsafe_code, reason = "drivers trust what they are given")]
    pub(super) fn open(device: &wgpu::Device, adapter: &wgpu::AdapterInfo) -> Option<Self> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let name = wgpu::util::pipeline_cache_key(adapter)?;
        let path = hub::cache_dir().ok()?.join("gpu").join(name);
        let stored = fs::read(&path).ok();
        let data = stored.as_deref().and_then(verified);
        let descriptor = wgpu::PipelineCacheDescriptor {
            label: Some("unforget"),
            data,
            fallback: true,
        };
        // SAFETY: The checksum says that the data is what `PipelineCache::save` wrote, which is what the driver gave.
        let raw = unsafe { device.create_pipeline_cache(&descriptor) };
        Some(Self {
            raw,
            path,
            saved: 0,
        })
    }

    pub(super) fn raw(&self) -> &wgpu::PipelineCache {
        &self.raw
    }

    /// Writes the cache if there are more kernels than when it was written. A failure costs only time later.
    pub(super) fn save(&mut self, kernels: usize) {
        if kernels == self.saved {
            return;
        }
        self.saved = kernels;
        let Some(data) = self.raw.get_data() else {
            return;
        };
        let mut file = Sha256::digest(&data).to_vec();
        file.extend(data);
        let parent = self.path.parent().map(fs::create_dir_all);
        if parent.is_some_and(|made| made.is_ok()) {
            // It is made anew when it cannot be read.
            let _ = atomic_file::write(&self.path, &file);
        }
    }
}

/// The data of a file, if it has the checksum at its start.
fn verified(file: &[u8]) -> Option<&[u8]> {
    let (checksum, data) = file.split_at_checked(CHECKSUM)?;
    (Sha256::digest(data)[..] == *checksum).then_some(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_changed_is_not_given_to_the_driver() {
        let mut file = Sha256::digest(b"kernels").to_vec();
        file.extend(b"kernels");
        assert_eq!(verified(&file), Some(&b"kernels"[..]));
        file[CHECKSUM] ^= 1;
        assert_eq!(verified(&file), None);
        assert_eq!(verified(b"short"), None);
    }
}

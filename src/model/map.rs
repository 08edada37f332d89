//! A file in memory, read where it is touched.

use std::{fs::File, ops::Deref, path::Path};

use memmap2::Mmap;

use crate::{Error, Result};

/// A read-only map of a whole file.
pub(crate) struct FileMap(Option<Mmap>);

impl FileMap {
    /// Maps `path`.
    #[allow(
        unsafe_code,
        reason = "a map is the one way to read a big file without holding it twice"
    )]
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("read", path))?;
        let metadata = file.metadata().map_err(Error::io("read", path))?;
        if !metadata.is_file() {
            return Err(Error::input(format!("{} is not a file", path.display())));
        }
        if metadata.len() == 0 {
            return Ok(Self(None));
        }
        // SAFETY: the map is read-only and private to this process. Should another program cut the file short while
        // it is read, the system ends the process; what is mapped is written by rename, never in place.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("read", path))?;
        Ok(Self(Some(map)))
    }
}

impl Deref for FileMap {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or(&[])
    }
}

//! Read-only memory maps of files.

use std::{fs::File, io, ops::Deref, path::Path};

use memmap2::Mmap;

use crate::{Error, Result};

/// A read-only map of a whole file.
pub(crate) struct FileMap(Option<Mmap>);

impl FileMap {
    /// Maps the file at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let map = |file: File| {
            if file.metadata()?.is_file() {
                Self::new(&file).map(Some)
            } else {
                Ok(None)
            }
        };
        File::open(path)
            .and_then(map)
            .map_err(Error::io("read", path))?
            .ok_or_else(|| Error::input(format!("{} is not a file", path.display())))
    }

    /// Maps an open file.
    #[allow(
        unsafe_code,
        reason = "a map is the one way to read a large file without holding it twice"
    )]
    pub(crate) fn new(file: &File) -> io::Result<Self> {
        // An empty file cannot be mapped.
        if file.metadata()?.len() == 0 {
            return Ok(Self(None));
        }
        // SAFETY: the map is read-only and private to this process. If another program truncates the file while it is
        // read, the system ends the process; this program replaces mapped files by rename and never writes them in place.
        let map = unsafe { Mmap::map(file) }?;
        Ok(Self(Some(map)))
    }
}

impl Deref for FileMap {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or(&[])
    }
}

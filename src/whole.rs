//! Files that are written whole or not at all: under another name beside their own first, which they get once their bytes are on
//! the disk.

use std::{fs, io::Write, path::Path};

use tempfile::NamedTempFile;

use crate::{Error, Result};

/// Writes `bytes` as `path`.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = temporary(path)?;
    file.write_all(bytes).map_err(Error::io("write", path))?;
    keep(file, path)
}

/// A new file beside `path`, readable as any other file (a temporary one is its owner's alone by default).
pub(crate) fn temporary(path: &Path) -> Result<NamedTempFile> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder
        .prefix(".unforget-")
        .tempfile_in(dir.unwrap_or(Path::new(".")))
        .map_err(Error::io("write", path))
}

/// Puts a finished file in its place, once its bytes are on the disk.
pub(crate) fn keep(file: NamedTempFile, path: &Path) -> Result<()> {
    file.as_file()
        .sync_all()
        .map_err(Error::io("write", path))?;
    file.persist(path)
        .map(drop)
        .map_err(|e| Error::io("write", path)(e.error))
}

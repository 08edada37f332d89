//! The small files of a model, read whole and written whole or not at all.

use std::{fs, io::Write, path::Path};

use serde_json::{Map, Value};
use tempfile::NamedTempFile;

use crate::{Error, Result};

/// Bytes beyond which no configuration or tokenizer goes.
const LARGEST_JSON: u64 = 1 << 28;

/// The bytes of a configuration or tokenizer file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    let length = fs::metadata(path).map_err(Error::io("read", path))?.len();
    if length > LARGEST_JSON {
        return Err(Error::broken(
            path,
            format!("{length} bytes is too long for such a file"),
        ));
    }
    fs::read(path).map_err(Error::io("read", path))
}

/// A JSON object.
pub(super) fn read_json(path: &Path) -> Result<Map<String, Value>> {
    parse_json(path, &read(path)?)
}

/// The JSON object in `bytes`, the content of `path`.
pub(super) fn parse_json(path: &Path, bytes: &[u8]) -> Result<Map<String, Value>> {
    serde_json::from_slice(bytes)
        .map_err(|e| Error::broken(path, format!("not a JSON object: {e}")))
}

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

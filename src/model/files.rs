//! Reads the JSON and text files of a model directory.

use std::{fs, path::Path};

use serde_json::{Map, Value};

use crate::{Error, Result};

/// Upper limit for configuration and tokenizer files.
const MAX_JSON_BYTES: u64 = 1 << 28;

/// An error if `bytes`, the content of `path`, are a pointer that Git LFS left where the file should be.
pub(super) fn refuse_lfs_pointer(path: &Path, bytes: &[u8]) -> Result<()> {
    const START: &[u8] = b"version https://git-lfs.github.com/spec/";
    if !bytes.starts_with(START) {
        return Ok(());
    }
    let place = path.parent().unwrap_or(path).display();
    Err(Error::Failed {
        message: format!(
            "{} is a Git LFS pointer: the file itself was not downloaded",
            path.display()
        ),
        hint: Some(format!("run `git lfs pull` in {place}")),
    })
}

/// The bytes of a configuration or tokenizer file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    let length = fs::metadata(path).map_err(Error::io("read", path))?.len();
    if length > MAX_JSON_BYTES {
        return Err(Error::broken(
            path,
            format!("its length is {length} bytes; the limit is {MAX_JSON_BYTES}"),
        ));
    }
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    refuse_lfs_pointer(path, &bytes)?;
    Ok(bytes)
}

/// The JSON object in the file at `path`, if there is one.
pub(super) fn optional_json(path: &Path) -> Result<Option<Map<String, Value>>> {
    path.is_file().then(|| read_json(path)).transpose()
}

/// The JSON object in the file at `path`.
pub(super) fn read_json(path: &Path) -> Result<Map<String, Value>> {
    serde_json::from_slice(&read(path)?)
        .map_err(|e| Error::broken(path, format!("not a JSON object: {e}")))
}

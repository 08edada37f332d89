//! The small files of a model.

use std::{fs, path::Path};

use serde_json::{Map, Value};

use crate::{Error, Result};

/// Bytes beyond which no configuration or tokenizer goes.
const MAX_JSON_BYTES: u64 = 1 << 28;

/// The bytes of a configuration or tokenizer file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    let length = fs::metadata(path).map_err(Error::io("read", path))?.len();
    if length > MAX_JSON_BYTES {
        return Err(Error::broken(
            path,
            format!("{length} bytes is too long for such a file"),
        ));
    }
    fs::read(path).map_err(Error::io("read", path))
}

/// A JSON object.
pub(crate) fn read_json(path: &Path) -> Result<Map<String, Value>> {
    parse_json(path, &read(path)?)
}

/// The JSON object in `bytes`, the content of `path`.
pub(super) fn parse_json(path: &Path, bytes: &[u8]) -> Result<Map<String, Value>> {
    serde_json::from_slice(bytes)
        .map_err(|e| Error::broken(path, format!("not a JSON object: {e}")))
}

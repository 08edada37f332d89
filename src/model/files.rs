//! Reads the JSON and text files of a model directory.

use std::{fs, path::Path};

use serde_json::{Map, Value};

use crate::{Error, Result};

/// Upper limit for configuration and tokenizer files.
const MAX_JSON_BYTES: u64 = 1 << 28;

/// The bytes of a configuration or tokenizer file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    let length = fs::metadata(path).map_err(Error::io("read", path))?.len();
    if length > MAX_JSON_BYTES {
        return Err(Error::broken(
            path,
            format!("its length is {length} bytes; the limit is {MAX_JSON_BYTES}"),
        ));
    }
    fs::read(path).map_err(Error::io("read", path))
}

/// The JSON object in the file at `path`.
pub(super) fn read_json(path: &Path) -> Result<Map<String, Value>> {
    serde_json::from_slice(&read(path)?)
        .map_err(|e| Error::broken(path, format!("not a JSON object: {e}")))
}

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

/// An error if `bytes`, the beginning of `path`, show that weights are something else than safetensors or GGUF.
pub(super) fn refuse_other_content(path: &Path, bytes: &[u8]) -> Result<()> {
    const KINDS: [(&[u8], &str); 7] = [
        (b"PK\x03\x04", "a zip archive, PyTorch's own format"),
        (b"\x80\x02", "a pickle, PyTorch's old format"),
        (b"<!DOCTYPE", "an HTML page"),
        (b"<!doctype", "an HTML page"),
        (b"<html", "an HTML page"),
        (b"{\"", "JSON"),
        (b"\x1f\x8b", "gzip"),
    ];
    refuse_lfs_pointer(path, bytes)?;
    if bytes.is_empty() {
        return Err(Error::broken(path, "it is empty"));
    }
    match KINDS.iter().find(|(start, _)| bytes.starts_with(start)) {
        Some((_, kind)) => Err(Error::broken(path, format!("its content is {kind}"))),
        None => Ok(()),
    }
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
    let bytes = read(path)?;
    let object = serde_json::from_slice(&bytes);
    // Python's json writes and reads numbers that JSON does not have.
    object
        .or_else(|e| match with_null_for_non_finite(&bytes) {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|_| e),
            None => Err(e),
        })
        .map_err(|e| Error::broken(path, format!("not a JSON object: {e}")))
}

/// JSON in which `NaN` and `Infinity` outside of texts are null; `None` if there are none.
fn with_null_for_non_finite(json: &[u8]) -> Option<Vec<u8>> {
    const WORDS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];
    let (mut out, mut at, mut within) = (Vec::with_capacity(json.len()), 0, false);
    let mut found = false;
    while at < json.len() {
        let rest = &json[at..];
        let word = WORDS.iter().find(|word| !within && rest.starts_with(word));
        let taken = match (word, rest[0]) {
            (Some(word), _) => {
                found = true;
                out.extend(b"null");
                at += word.len();
                continue;
            }
            (None, b'\\') if within => rest.len().min(2),
            (None, byte) => {
                within ^= byte == b'"';
                1
            }
        };
        out.extend(&rest[..taken]);
        at += taken;
    }
    found.then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_pythons_json_are_null() {
        let nulled = |text: &str| {
            let bytes = with_null_for_non_finite(text.as_bytes());
            bytes.map(|bytes| String::from_utf8(bytes).expect("text"))
        };
        assert_eq!(
            nulled(r#"{"a": NaN, "b\"NaN": [0.0, Infinity, -Infinity], "c": "NaN"}"#).as_deref(),
            Some(r#"{"a": null, "b\"NaN": [0.0, null, null], "c": "NaN"}"#)
        );
        assert_eq!(nulled(r#"{"a": "Infinity\\"}"#), None);
    }
}

//! Rows of JSON lines that `compare` reads.

use std::{
    fs,
    io::{self, Read},
    path::Path,
};

use serde::de::DeserializeOwned;
use unforget::{Error, Result};

/// The rows of a JSON-lines file (`-` is stdin), each with its line. Blank lines are skipped.
///
/// # Errors
/// [`Error::Input`] naming file and line of the first invalid row.
pub fn read<T: DeserializeOwned>(path: &Path, example: &str) -> Result<Vec<(usize, T)>> {
    let name = path.display();
    let bytes = if path == Path::new("-") {
        let mut bytes = Vec::new();
        io::stdin().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        fs::read(path)
    }
    .map_err(|reason| Error::input(format!("cannot read `{name}`: {reason}")))?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let rows: Vec<(usize, T)> = bytes
        .split(|&b| b == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.trim_ascii().is_empty())
        .map(|(i, line)| match serde_json::from_slice(line) {
            Ok(row) => Ok((i + 1, row)),
            Err(reason) => {
                let message = reason.to_string();
                let told = message.split(" at line ").next().unwrap_or(&message);
                Err(Error::input_hint(
                    format!("`{name}` line {}: {told}", i + 1),
                    format!("each line is an object such as {example}"),
                ))
            }
        })
        .collect::<Result<_>>()?;
    if rows.is_empty() {
        return Err(Error::input_hint(
            format!("`{name}` has no rows"),
            format!("each line is an object such as {example}"),
        ));
    }
    Ok(rows)
}

//! SHA-256 checksums of model files.

use std::{fs::File, io, path::Path};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// SHA-256 (hex) over the name and SHA-256 of each part, in this order. Parts are hashed in parallel.
pub(crate) fn of_parts(parts: &[(&str, &[u8])]) -> String {
    let lines: Vec<String> = parts
        .par_iter()
        .map(|(name, bytes)| format!("{name} {:x}\n", Sha256::digest(bytes)))
        .collect();
    format!("{:x}", Sha256::digest(lines.concat()))
}

/// SHA-256 (hex) of a file.
pub(crate) fn of_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io("read", path))?;
    let mut hash = Sha256::new();
    io::copy(&mut file, &mut hash).map_err(Error::io("read", path))?;
    Ok(format!("{:x}", hash.finalize()))
}

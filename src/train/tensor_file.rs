//! Named f32 arrays in a safetensors file: written from borrowed memory, read straight into place.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
    path::Path,
};

use safetensors::{
    Dtype,
    tensor::{Metadata, TensorView},
};
use sha2::{Digest, Sha256};

/// Writes `arrays` to a new file at `path`.
pub(super) fn write(path: &Path, arrays: Vec<(&str, &[f32])>) -> io::Result<()> {
    let views = arrays.into_iter().map(|(name, values)| {
        let view = TensorView::new(Dtype::F32, vec![values.len()], bytemuck::cast_slice(values));
        (name, view.expect("the shape is the array's length"))
    });
    safetensors::serialize_to_file(views, None, path).map_err(io::Error::other)
}

/// SHA-256 (hex) over `arrays`, name and values of each, in the order of their names.
pub(super) fn checksum(arrays: &[(&str, &[f32])]) -> String {
    let mut sorted: Vec<_> = arrays.iter().collect();
    sorted.sort_unstable_by_key(|(name, _)| *name);
    let mut hasher = Sha256::new();
    for (name, values) in sorted {
        hasher.update(name);
        hasher.update(bytemuck::cast_slice(values));
    }
    format!("{:x}", hasher.finalize())
}

/// The same over what is in the file at `path`.
pub(super) fn checksum_of_file(path: &Path) -> io::Result<String> {
    let TensorFile { mut file, ranges } = TensorFile::open(path)?;
    let mut sorted: Vec<_> = ranges.into_iter().collect();
    sorted.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    let mut hasher = Sha256::new();
    for (name, range) in sorted {
        hasher.update(&name);
        file.seek(SeekFrom::Start(range.start))?;
        let length = range.end - range.start;
        if io::copy(&mut (&mut file).take(length), &mut hasher)? != length {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
    }
    Ok(format!("{:x}", hasher.finalize()))
}

/// A file that [`write`] wrote, open for reading.
pub(super) struct TensorFile {
    file: File,
    /// Where each array's bytes lie in the file.
    ranges: HashMap<String, Range<u64>>,
}

impl TensorFile {
    /// Opens the file and reads its table of contents.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        // The format: the length of the head in eight bytes, the head in JSON, the arrays.
        let mut length = [0; 8];
        file.read_exact(&mut length)?;
        let mut head = Vec::new();
        (&mut file)
            .take(u64::from_le_bytes(length))
            .read_to_end(&mut head)?;
        let contents: Metadata = serde_json::from_slice(&head)?;
        let base = (length.len() + head.len()) as u64;
        let ranges = contents
            .tensors()
            .into_iter()
            .map(|(name, info)| {
                let (start, end) = info.data_offsets;
                (name, base + start as u64..base + end as u64)
            })
            .collect();
        Ok(Self { file, ranges })
    }

    /// Values in the array called `name`; 0 where there is none.
    pub(super) fn len(&self, name: &str) -> usize {
        let bytes = self.ranges.get(name).map_or(0, |r| r.end - r.start);
        bytes as usize / size_of::<f32>()
    }

    /// Reads the array called `name`, which must be as long as `into`.
    pub(super) fn read(&mut self, name: &str, into: &mut [f32]) -> io::Result<()> {
        self.read_range(name, into, 0..into.len())
    }

    /// The same, but of the array only `share`; the rest of `into` is not touched.
    pub(super) fn read_range(
        &mut self,
        name: &str,
        into: &mut [f32],
        share: Range<usize>,
    ) -> io::Result<()> {
        let bytes = size_of_val(into) as u64;
        let range = self
            .ranges
            .get(name)
            .filter(|range| range.end - range.start == bytes)
            .ok_or_else(|| io::Error::other(format!("no array `{name}` of the right length")))?;
        let first = (share.start * size_of::<f32>()) as u64;
        self.file.seek(SeekFrom::Start(range.start + first))?;
        self.file
            .read_exact(bytemuck::cast_slice_mut(&mut into[share]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_come_back_to_the_bit() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let path = place.path().join("a.safetensors");
        let (a, b) = ([1.0f32, f32::MIN_POSITIVE, -0.0], [0.1f32; 7]);
        write(&path, vec![("b", &b), ("a", &a)]).expect("writable");
        assert_eq!(
            checksum(&[("a", &a), ("b", &b)]),
            checksum_of_file(&path).expect("as written")
        );
        assert_ne!(
            checksum(&[("a", &a), ("b", &a)]),
            checksum(&[("a", &a), ("b", &b)])
        );
        let mut file = TensorFile::open(&path).expect("as written");
        assert_eq!(["a", "b", "c"].map(|name| file.len(name)), [3, 7, 0]);
        let mut got = [0f32; 3];
        file.read("a", &mut got).expect("it is there");
        assert_eq!(got.map(f32::to_bits), a.map(f32::to_bits));
        assert!(file.read("b", &mut got).is_err(), "another length");
        assert!(file.read("c", &mut got).is_err(), "no such array");
    }
}

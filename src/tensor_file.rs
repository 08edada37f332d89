//! Tensors by name in safetensors files: the program's one reader and writer of the format.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
    path::Path,
};

pub(crate) use safetensors::Dtype;
use safetensors::{SafeTensorError, SafeTensors, View};
use sha2::{Digest, Sha256};

use crate::file_map::FileMap;

/// A safetensors file, open for reading. Tensors are borrowed from the mapped file, or read into memory of the caller.
pub(crate) struct TensorFile {
    file: File,
    map: FileMap,
    tensors: BTreeMap<String, Entry>,
}

struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    /// Position in the file.
    bytes: Range<usize>,
}

/// A tensor in a file, or to be written to one.
#[derive(Clone, Copy)]
pub(crate) struct TensorView<'a> {
    pub(crate) dtype: Dtype,
    pub(crate) shape: &'a [usize],
    /// Little-endian values, row by row.
    pub(crate) bytes: &'a [u8],
}

impl<'a> TensorView<'a> {
    /// Of as many `values` as `shape` has elements.
    pub(crate) fn f32(shape: &'a [usize], values: &'a [f32]) -> Self {
        Self {
            dtype: Dtype::F32,
            shape,
            bytes: bytemuck::cast_slice(values),
        }
    }
}

impl View for TensorView<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

impl TensorFile {
    /// Opens the file and reads its header.
    ///
    /// # Errors
    /// `InvalidData` when the header is broken or does not match the length of the file; else the system's.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let map = FileMap::new(&file)?;
        let invalid = |e| io::Error::new(io::ErrorKind::InvalidData, e);
        let (header_len, metadata) = SafeTensors::read_metadata(&map).map_err(invalid)?;
        // The length field itself precedes the header.
        let data = size_of::<u64>() + header_len;
        let tensors = metadata.tensors().into_iter().map(|(name, info)| {
            let (start, end) = info.data_offsets;
            let entry = Entry {
                dtype: info.dtype,
                shape: info.shape.clone(),
                bytes: data + start..data + end,
            };
            (name, entry)
        });
        Ok(Self {
            tensors: tensors.collect(),
            file,
            map,
        })
    }

    /// The bytes of the whole file.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The tensors in the order of their names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, TensorView<'_>)> {
        let tensors = self.tensors.iter();
        tensors.map(|(name, entry)| (&name[..], self.view(entry)))
    }

    /// The tensor called `name`.
    pub(crate) fn get(&self, name: &str) -> Option<TensorView<'_>> {
        self.tensors.get(name).map(|entry| self.view(entry))
    }

    fn view<'a>(&'a self, entry: &'a Entry) -> TensorView<'a> {
        TensorView {
            dtype: entry.dtype,
            shape: &entry.shape,
            bytes: &self.map[entry.bytes.clone()],
        }
    }

    /// Number of f32 values of the tensor called `name`; 0 if there is none.
    pub(crate) fn len(&self, name: &str) -> usize {
        let entry = self.tensors.get(name);
        entry.map_or(0, |entry| entry.bytes.len() / size_of::<f32>())
    }

    /// Reads the f32 tensor called `name`, which must be as long as `into`. Unlike a copy from the mapped file, this adds no
    /// mapped pages to the resident memory.
    pub(crate) fn read(&mut self, name: &str, into: &mut [f32]) -> io::Result<()> {
        self.read_range(name, into, 0..into.len())
    }

    /// As [`TensorFile::read`], but only the elements in `range`; the rest of `into` is not touched.
    pub(crate) fn read_range(
        &mut self,
        name: &str,
        into: &mut [f32],
        range: Range<usize>,
    ) -> io::Result<()> {
        let entry = self
            .tensors
            .get(name)
            .filter(|entry| entry.dtype == Dtype::F32 && entry.bytes.len() == size_of_val(into))
            .ok_or_else(|| io::Error::other(format!("no tensor `{name}` of the right length")))?;
        let first = entry.bytes.start + range.start * size_of::<f32>();
        self.file.seek(SeekFrom::Start(first as u64))?;
        self.file
            .read_exact(bytemuck::cast_slice_mut(&mut into[range]))
    }

    /// [`checksum`] of the tensors in the file.
    pub(crate) fn checksum(&mut self) -> io::Result<String> {
        let mut hasher = Sha256::new();
        for (name, entry) in &self.tensors {
            hasher.update(name);
            self.file.seek(SeekFrom::Start(entry.bytes.start as u64))?;
            let length = entry.bytes.len() as u64;
            if io::copy(&mut (&mut self.file).take(length), &mut hasher)? != length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(format!("{:x}", hasher.finalize()))
    }
}

/// SHA-256 (hex) over names and values of `arrays`, in the order of their names.
pub(crate) fn checksum(arrays: &[(&str, &[f32])]) -> String {
    let mut sorted: Vec<_> = arrays.iter().collect();
    sorted.sort_unstable_by_key(|(name, _)| *name);
    let mut hasher = Sha256::new();
    for (name, values) in sorted {
        hasher.update(name);
        hasher.update(bytemuck::cast_slice(values));
    }
    format!("{:x}", hasher.finalize())
}

/// Writes vectors of f32 to the file at `path`.
pub(crate) fn write_vectors(path: &Path, arrays: &[(&str, &[f32])]) -> io::Result<()> {
    let shapes: Vec<_> = arrays.iter().map(|(_, values)| [values.len()]).collect();
    let vectors = arrays.iter().zip(&shapes);
    let vectors = vectors.map(|((name, values), shape)| (*name, TensorView::f32(shape, values)));
    write(path, vectors, &[])
}

/// Writes `tensors`, one at a time, to the file at `path`, with `metadata` in its header.
pub(crate) fn write<'a, V: View>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'a str, V)>,
    metadata: &[(&str, &str)],
) -> io::Result<()> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    let metadata: HashMap<_, _> = metadata.iter().map(owned).collect();
    let metadata = (!metadata.is_empty()).then_some(metadata);
    safetensors::serialize_to_file(tensors, metadata, path).map_err(|e| match e {
        SafeTensorError::IoError(e) => e,
        other => io::Error::other(other),
    })
}

/// The content of a file with `tensors`.
///
/// # Panics
/// When two have the same name.
pub(crate) fn to_bytes<'a>(
    tensors: impl IntoIterator<Item = (&'a str, TensorView<'a>)>,
) -> Vec<u8> {
    safetensors::serialize(tensors, None).expect("tensors have different names")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn tensors_are_read_bitwise_as_written() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("a.safetensors");
        let (a, b) = ([1.0f32, f32::MIN_POSITIVE, -0.0], [0.1f32; 7]);
        let tensors = [("b", &b[..]), ("a", &a[..])];
        write_vectors(&path, &tensors).expect("writable");

        let mut file = TensorFile::open(&path).expect("as written");
        assert_eq!(file.checksum().expect("readable"), checksum(&tensors));
        assert_ne!(checksum(&[("a", &a), ("b", &a)]), checksum(&tensors));
        assert_eq!(["a", "b", "c"].map(|name| file.len(name)), [3, 7, 0]);
        let mut read = [0f32; 3];
        file.read("a", &mut read).expect("it is there");
        assert_eq!(read.map(f32::to_bits), a.map(f32::to_bits));
        assert!(file.read("b", &mut read).is_err(), "another length");
        assert!(file.read("c", &mut read).is_err(), "no such tensor");
        let mut part = [0f32; 7];
        file.read_range("b", &mut part, 2..4).expect("it is there");
        assert_eq!(part, [0.0, 0.0, 0.1, 0.1, 0.0, 0.0, 0.0]);

        let stored = file.get("b").expect("it is there");
        assert_eq!((stored.dtype, stored.shape), (Dtype::F32, &[7][..]));
        assert_eq!(stored.bytes, bytemuck::cast_slice::<f32, u8>(&b));
        assert_eq!(
            file.iter().map(|(name, _)| name).collect::<Vec<_>>(),
            ["a", "b"]
        );
    }

    #[test]
    fn a_truncated_file_is_invalid_data() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("a.safetensors");
        write_vectors(&path, &[("a", &[1.0; 9])]).expect("writable");
        let bytes = fs::read(&path).expect("written");
        for length in [0, 7, 20, bytes.len() - 1] {
            fs::write(&path, &bytes[..length]).expect("writable");
            let error = TensorFile::open(&path).err().expect("it is truncated");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{length}");
        }
    }
}

//! Weights that are never trained, left as they lie in the model's file: mapped into memory, in bf16, f16 or blocks of a few bits.
//!
//! Rows are converted to f32 where a product needs them, a few at a time. Nothing of their size is allocated.

use std::{
    collections::BTreeSet,
    fs,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use rayon::prelude::*;

use super::tensor::{TensorInfo, TensorSource};
use crate::{Error, Result};

/// The frozen matrices of a model.
#[derive(Clone)]
pub struct Frozen {
    source: Arc<dyn TensorSource>,
    /// The mapped files, and what they were when they were opened.
    files: Arc<[(PathBuf, FileStamp)]>,
    /// Bytes of memory: of the files, or of what is held.
    bytes: u64,
    /// In the order of their ranges, which are those of the layout.
    matrices: Arc<[TensorInfo]>,
}

/// What tells whether a file has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    len: u64,
    modified: Option<SystemTime>,
}

/// One frozen matrix.
#[derive(Clone, Copy)]
pub struct FrozenMatrix<'a> {
    source: &'a dyn TensorSource,
    info: &'a TensorInfo,
}

impl Frozen {
    /// The `matrices` in `source`, whose files are mapped.
    ///
    /// # Errors
    /// [`Error::Io`] if a file is no longer there.
    pub(super) fn in_files(
        source: Arc<dyn TensorSource>,
        matrices: Vec<TensorInfo>,
    ) -> Result<Self> {
        let paths = matrices.iter().filter_map(|m| source.shape(&m.name));
        let paths: BTreeSet<PathBuf> = paths.map(|(path, _)| path.to_owned()).collect();
        let files: Result<_> = paths
            .into_iter()
            .map(|path| FileStamp::of(&path).map(|stamp| (path, stamp)))
            .collect();
        let files: Arc<[(PathBuf, FileStamp)]> = files?;
        let bytes = files.iter().map(|(_, stamp)| stamp.len).sum();
        Ok(Self {
            files,
            ..Self::in_memory(source, matrices, bytes)
        })
    }

    /// The `matrices` in `source`, which holds them in so many bytes of memory.
    pub(super) fn in_memory(
        source: Arc<dyn TensorSource>,
        matrices: Vec<TensorInfo>,
        bytes: u64,
    ) -> Self {
        let mut matrices = matrices;
        matrices.sort_by_key(|matrix| matrix.range.start);
        Self {
            source,
            files: Arc::new([]),
            bytes,
            matrices: matrices.into(),
        }
    }

    /// The matrices in a range of the layout, such as q, k and v, in their order.
    pub fn within(&self, range: &Range<usize>) -> impl Iterator<Item = FrozenMatrix<'_>> {
        let first = self
            .matrices
            .partition_point(|m| m.range.start < range.start);
        let end = range.end;
        let matrices = self.matrices[first..].iter();
        let within = matrices.take_while(move |m| m.range.start < end);
        within.map(|info| FrozenMatrix {
            source: &*self.source,
            info,
        })
    }

    /// The matrix with this range.
    pub fn matrix(&self, range: &Range<usize>) -> FrozenMatrix<'_> {
        let mut within = self.within(range);
        within.next().expect("a matrix of the layout is frozen")
    }

    /// Bytes of memory that they take, at most: the system can drop mapped pages, and reads them again.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// An error if a mapped file is no longer the one that was opened.
    ///
    /// # Errors
    /// [`Error::BrokenModel`] naming the file.
    pub fn check_files(&self) -> Result<()> {
        for (path, opened) in &*self.files {
            if FileStamp::of(path)? != *opened {
                return Err(Error::broken(
                    path,
                    "it was changed while its weights were in use: the results of this run are not to be trusted",
                ));
            }
        }
        Ok(())
    }
}

impl FileStamp {
    fn of(path: &Path) -> Result<Self> {
        let metadata = fs::metadata(path).map_err(Error::io("read", path))?;
        Ok(Self {
            len: metadata.len(),
            modified: metadata.modified().ok(),
        })
    }
}

impl FrozenMatrix<'_> {
    /// Rows, and weights of each.
    pub fn shape(&self) -> [usize; 2] {
        [self.info.shape[0], self.info.row_len()]
    }

    /// Converts rows from `first_row` on into `out`, a whole number of rows, in parallel.
    pub fn read_rows(&self, first_row: usize, out: &mut [f32]) {
        const JOB_FLOATS: usize = 1 << 16;
        let row = self.info.row_len();
        let rows = (JOB_FLOATS / row).max(1);
        let jobs = out.par_chunks_mut(rows * row).enumerate();
        jobs.for_each(|(i, out)| self.read(first_row + i * rows, out));
    }

    /// Converts one row.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        self.read(row, out);
    }

    fn read(&self, first_row: usize, out: &mut [f32]) {
        let read = self.source.read_rows(self.info, first_row, out);
        read.expect("every row was read when the model was loaded");
    }
}

#[cfg(test)]
impl Frozen {
    /// Two matrices of `k` columns, one after the other in `values`.
    pub fn for_test(values: &[f32], rows: [usize; 2], k: usize) -> Self {
        struct InMemory(Vec<f32>);
        impl TensorSource for InMemory {
            fn shape(&self, _: &str) -> Option<(&Path, Vec<usize>)> {
                None
            }
            fn read_rows(&self, tensor: &TensorInfo, first: usize, out: &mut [f32]) -> Result<()> {
                let start = tensor.range.start + first * tensor.row_len();
                out.copy_from_slice(&self.0[start..][..out.len()]);
                Ok(())
            }
        }
        let mut start = 0;
        let matrices = rows.map(|rows| {
            let range = start..start + rows * k;
            start = range.end;
            TensorInfo {
                name: format!("{start}"),
                shape: vec![rows, k],
                range,
            }
        });
        Self::in_memory(Arc::new(InMemory(values.to_vec())), matrices.into(), 0)
    }
}

#[cfg(test)]
mod tests {
    use crate::model::{Dtype, Model, WeightStorage};

    #[test]
    fn a_file_that_is_changed_while_it_is_mapped_is_named() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama");
        let place = tempfile::tempdir().expect("a temporary directory");
        let model = Model::load(path).expect("the golden model");
        model.save(place.path(), Dtype::Bf16).expect("writable");
        let spec = place.path().display().to_string();
        let model = Model::load_as(&spec, WeightStorage::Stored).expect("it was saved");
        let frozen = model.params.frozen.expect("its matrices are frozen");
        frozen.check_files().expect("nothing has changed");
        let file = place.path().join("model.safetensors");
        let bytes = std::fs::read(&file).expect("readable");
        std::fs::write(&file, [&bytes[..], b" "].concat()).expect("writable");
        let error = frozen.check_files().expect_err("it is longer now");
        assert!(error.to_string().contains("model.safetensors"), "{error}");
    }
}

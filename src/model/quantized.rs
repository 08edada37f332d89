//! Matrices that are quantised when a model is loaded, and stay so in memory.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use rayon::prelude::*;

use super::{
    GgufType,
    tensor::{CHUNK_ELEMENTS, TensorInfo, TensorSource, read_finite},
};
use crate::{Error, Result};

/// Quantised matrices, by name.
pub(super) struct Quantized {
    path: PathBuf,
    tensors: BTreeMap<String, Stored>,
}

struct Stored {
    kind: GgufType,
    shape: Vec<usize>,
    /// The rows, each a whole number of blocks.
    bytes: Vec<u8>,
}

impl Quantized {
    /// Quantises `matrices` of `source` to `kind`: those whose rows are no whole number of blocks to f16, and embedding and head of
    /// `Q4_0` to `Q8_0`, as GGUF files have them.
    ///
    /// # Errors
    /// Those of reading; [`crate::Error::BrokenModel`] for a weight that is not finite, or whose block has an infinite scale.
    pub(super) fn new(
        source: &dyn TensorSource,
        matrices: &[TensorInfo],
        kind: GgufType,
        path: &Path,
    ) -> Result<Self> {
        let quantize = |info: &TensorInfo| -> Result<(String, Stored)> {
            let kind = kind.of(info);
            let row = info.row_len();
            let rows = (CHUNK_ELEMENTS / row).max(1);
            let (mut bytes, mut values) = (Vec::new(), vec![0.0; rows * row]);
            for first in (0..info.shape[0]).step_by(rows) {
                let values = &mut values[..rows.min(info.shape[0] - first) * row];
                read_finite(source, info, first, values, path)?;
                let largest = values.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
                if !kind.holds(largest) {
                    let what = format!(
                        "`{}` has a weight of magnitude {largest:e}, which is infinite in {}",
                        info.name,
                        kind.name()
                    );
                    return Err(Error::broken(path, what));
                }
                bytes.extend(kind.quantize(values));
            }
            let shape = info.shape.clone();
            Ok((info.name.clone(), Stored { kind, shape, bytes }))
        };
        let tensors: Result<_> = matrices.par_iter().map(quantize).collect();
        Ok(Self {
            path: path.to_owned(),
            tensors: tensors?,
        })
    }
}

impl Quantized {
    /// Bytes of all of them.
    pub(super) fn bytes(&self) -> u64 {
        self.tensors.values().map(|t| t.bytes.len() as u64).sum()
    }
}

impl TensorSource for Quantized {
    fn shape(&self, name: &str) -> Option<(&Path, Vec<usize>)> {
        let stored = self.tensors.get(name)?;
        Some((&self.path, stored.shape.clone()))
    }

    fn read_rows(&self, tensor: &TensorInfo, first_row: usize, out: &mut [f32]) -> Result<()> {
        let stored = &self.tensors[&tensor.name];
        let row = stored.bytes.len() / stored.shape[0];
        let rows = out.len() / tensor.row_len();
        let bytes = &stored.bytes[first_row * row..(first_row + rows) * row];
        stored.kind.dequantize(bytes, out);
        Ok(())
    }
}

//! Reads the tensors of a file into the buffer of [`Params`], in parallel and without a second copy of the model.

use std::{path::Path, sync::Arc};

use rayon::prelude::*;

use super::{
    Dtype, Layout, ModelConfig, Params, WeightStorage,
    frozen::Frozen,
    quantized::Quantized,
    tensor::{CHUNK_ELEMENTS, TensorInfo, TensorSource, read_finite},
};
use crate::{Error, Result, format, system::total_memory_bytes};

/// Reads all tensors of a model with this configuration from `source`, or with another `storage` the vectors alone. Shapes are checked
/// before memory is allocated.
pub(super) fn read(
    source: &Arc<dyn TensorSource>,
    config: &ModelConfig,
    path: &Path,
    storage: WeightStorage,
) -> Result<Params> {
    let layout = match storage {
        WeightStorage::F32 => Layout::new(config),
        WeightStorage::Stored | WeightStorage::Quantized(_) => Layout::of_frozen_matrices(config),
    };
    for tensor in &layout.tensors {
        match source.shape(&tensor.name) {
            None => {
                return Err(Error::broken(
                    path,
                    format!("tensor `{}` is missing", tensor.name),
                ));
            }
            Some((file, shape)) if shape != tensor.shape => {
                return Err(Error::broken(
                    file,
                    format!(
                        "tensor `{}` has shape {shape:?}; the configuration requires {:?}",
                        tensor.name, tensor.shape
                    ),
                ));
            }
            Some(_) => {}
        }
    }
    check_memory(&layout, path, storage)?;
    let mut params = Params::zeros(Arc::new(layout));
    let layout = params.layout.clone();
    let (dense, matrices): (Vec<_>, Vec<_>) = {
        let tensors = layout.tensors.iter().cloned();
        tensors.partition(|tensor| tensor.range.end <= layout.dense)
    };
    let mut rest: &mut [f32] = &mut params.data;
    let mut jobs = Vec::new();
    for tensor in &dense {
        let (out, after) = rest.split_at_mut(tensor.range.len());
        rest = after;
        let row = tensor.row_len();
        let rows = (CHUNK_ELEMENTS / row).max(1);
        for (i, out) in out.chunks_mut(rows * row).enumerate() {
            jobs.push((tensor, i * rows, out));
        }
    }
    let fault = jobs
        .into_par_iter()
        .map(|(tensor, first_row, out)| read_finite(&**source, tensor, first_row, out, path))
        // The first fault in the order of the tensors, whichever thread finds one first.
        .find_first(Result::is_err);
    fault.unwrap_or(Ok(()))?;
    params.frozen = match storage {
        WeightStorage::F32 => None,
        WeightStorage::Stored => {
            check_rows(&**source, &matrices, path)?;
            Some(Frozen::in_files(Arc::clone(source), matrices)?)
        }
        WeightStorage::Quantized(kind) => {
            let quantized = Quantized::new(&**source, &matrices, kind, path)?;
            let bytes = quantized.bytes();
            Some(Frozen::in_memory(Arc::new(quantized), matrices, bytes))
        }
    };
    Ok(params)
}

/// Reads every row of `matrices` once, and keeps none.
fn check_rows(source: &dyn TensorSource, matrices: &[TensorInfo], path: &Path) -> Result<()> {
    let jobs = matrices.iter().flat_map(|tensor| {
        let rows = (CHUNK_ELEMENTS / tensor.row_len()).max(1);
        let firsts = (0..tensor.shape[0]).step_by(rows);
        firsts.map(move |first| (tensor, first, rows.min(tensor.shape[0] - first)))
    });
    let jobs: Vec<_> = jobs.collect();
    let fault = jobs
        .into_par_iter()
        .map_init(Vec::new, |scratch: &mut Vec<f32>, (tensor, first, rows)| {
            scratch.resize(rows * tensor.row_len(), 0.0);
            read_finite(source, tensor, first, scratch, path)
        })
        .find_first(Result::is_err);
    fault.unwrap_or(Ok(()))
}

/// The dtype of a model whose tensors have these: the common one, else f32, which represents all of them.
pub(super) fn common_dtype(dtypes: impl IntoIterator<Item = Dtype>) -> Dtype {
    dtypes
        .into_iter()
        .reduce(|a, b| if a == b { a } else { Dtype::F32 })
        .unwrap_or(Dtype::F32)
}

/// Converts little-endian `bytes` of `dtype` to f32. `out` has the same number of elements.
pub(super) fn convert(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::F32 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *o = f32::from_le_bytes(*b);
            }
        }
        Dtype::F16 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *o = half::f16::from_le_bytes(*b).to_f32();
            }
        }
        Dtype::Bf16 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *o = half::bf16::from_le_bytes(*b).to_f32();
            }
        }
    }
}

/// An error if the weights do not fit in the memory of this machine. Called before they are allocated.
fn check_memory(layout: &Layout, path: &Path, storage: WeightStorage) -> Result<()> {
    let (bytes, held_as) = match storage {
        WeightStorage::F32 => ((layout.len * size_of::<f32>()) as u64, "f32"),
        // The system pages what it needs.
        WeightStorage::Stored => return Ok(()),
        WeightStorage::Quantized(kind) => (kind.bytes_of(layout.len), kind.name()),
    };
    match total_memory_bytes() {
        Some(machine) if bytes > machine => Err(Error::input_hint(
            format!(
                "{} has {} weights, which need {} of memory in {held_as}; this machine has {}",
                path.display(),
                format::thousands(layout.len),
                format::memory(bytes),
                format::memory(machine)
            ),
            "to train adapters, set `model_dtype = \"stored\"` or \"q4_0\"; else use a smaller model, or a machine with more memory",
        )),
        _ => Ok(()),
    }
}

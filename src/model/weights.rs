//! Reads the tensors of a file into the buffer of [`Params`], in parallel and without a second copy of the model.

use std::{path::Path, sync::Arc};

use rayon::prelude::*;

use super::{Dtype, Layout, ModelConfig, Params, params::TensorInfo};
use crate::{Error, Result, format, system::total_memory_bytes};

/// Elements per job: enough to be worth a job, few enough to keep all cores busy.
const CHUNK_ELEMENTS: usize = 1 << 18;

/// Named tensors in a file.
pub(super) trait TensorSource: Sync {
    /// The file of a tensor, for messages, and its shape, outermost dimension first; `None` if there is no such tensor.
    fn shape(&self, name: &str) -> Option<(&Path, Vec<usize>)>;

    /// Converts rows from `first_row` on into `out`, a whole number of rows.
    fn read_rows(&self, tensor: &TensorInfo, first_row: usize, out: &mut [f32]) -> Result<()>;
}

/// Reads all tensors of a model with this configuration from `source`. Shapes are checked before memory is allocated.
pub(super) fn read(
    source: &impl TensorSource,
    config: &ModelConfig,
    path: &Path,
) -> Result<Params> {
    let layout = Layout::new(config);
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
    check_memory(&layout, path)?;
    let mut params = Params::zeros(Arc::new(layout));
    let layout = params.layout.clone();
    let mut rest: &mut [f32] = &mut params.data;
    let mut jobs = Vec::new();
    for tensor in &layout.tensors {
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
        .map(|(tensor, first_row, out)| {
            source.read_rows(tensor, first_row, out)?;
            match first_non_finite(out) {
                None => Ok(()),
                Some(i) => {
                    let file = source.shape(&tensor.name).map_or(path, |(file, _)| file);
                    Err(not_finite(
                        file,
                        tensor,
                        first_row * tensor.row_len() + i,
                        out[i],
                    ))
                }
            }
        })
        // The first fault in the order of the tensors, whichever thread finds one first.
        .find_first(Result::is_err);
    fault.unwrap_or(Ok(())).map(|()| params)
}

/// The first value that is infinite or no number.
pub(super) fn first_non_finite(values: &[f32]) -> Option<usize> {
    const CHUNK: usize = 256;
    // A chunk at a time without a branch per value.
    let broken = |chunk: &[f32]| !chunk.iter().fold(true, |finite, x| finite & x.is_finite());
    let chunk = values.chunks(CHUNK).position(broken)?;
    let within = values[chunk * CHUNK..]
        .iter()
        .position(|x| !x.is_finite())?;
    Some(chunk * CHUNK + within)
}

/// The error for the value of element `i` of a tensor.
fn not_finite(file: &Path, tensor: &TensorInfo, i: usize, value: f32) -> Error {
    let row = tensor.row_len();
    let place = match tensor.shape[..] {
        [_] => format!("{i}"),
        _ => format!("{}, {}", i / row, i % row),
    };
    Error::broken(
        file,
        format!(
            "the weights are not finite: `{}[{place}]` is {value}",
            tensor.name
        ),
    )
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
fn check_memory(layout: &Layout, path: &Path) -> Result<()> {
    let bytes = (layout.len * size_of::<f32>()) as u64;
    match total_memory_bytes() {
        Some(machine) if bytes > machine => Err(Error::input_hint(
            format!(
                "{} has {} weights, which need {} of memory in f32; this machine has {}",
                path.display(),
                format::thousands(layout.len),
                format::memory(bytes),
                format::memory(machine)
            ),
            "use a smaller model, or a machine with more memory",
        )),
        _ => Ok(()),
    }
}

//! From a file's tensors to the one buffer of [`Params`], in parallel and without holding the model twice.

use std::{path::Path, sync::Arc};

use rayon::prelude::*;

use super::{Dtype, Layout, ModelConfig, Params, params::TensorInfo};
use crate::{Error, Result, format, system::total_memory_bytes};

/// Elements that one job converts: enough to be worth a job, few enough to keep every core busy.
const CHUNK_ELEMENTS: usize = 1 << 18;

/// A set of named tensors on disk.
pub(super) trait TensorSource: Sync {
    /// Where the tensor lies, for messages; its shape, outermost dimension first. `None` when there is no such tensor.
    fn shape(&self, name: &str) -> Option<(&Path, Vec<usize>)>;

    /// Converts the whole rows that begin at `first_row` into `out`.
    fn read_rows(&self, tensor: &TensorInfo, first_row: usize, out: &mut [f32]) -> Result<()>;
}

/// Reads every tensor of `config`'s layout from `source`; shapes are checked before anything is allocated.
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
                        "tensor `{}` has shape {shape:?}; the configuration asks for {:?}",
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
    jobs.into_par_iter()
        .try_for_each(|(tensor, first_row, out)| source.read_rows(tensor, first_row, out))?;
    Ok(params)
}

/// The dtype to call a model whose tensors have these: theirs when they agree, else f32, which loses nothing.
pub(super) fn common_dtype(dtypes: impl IntoIterator<Item = Dtype>) -> Dtype {
    dtypes
        .into_iter()
        .reduce(|a, b| if a == b { a } else { Dtype::F32 })
        .unwrap_or(Dtype::F32)
}

/// Converts little-endian `bytes` of `dtype` to f32; `out` has as many elements.
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

/// Refuses weights that this machine has no memory for, before room for them is made.
fn check_memory(layout: &Layout, path: &Path) -> Result<()> {
    let bytes = (layout.len * size_of::<f32>()) as u64;
    match total_memory_bytes() {
        Some(machine) if bytes > machine => Err(Error::input_hint(
            format!(
                "{} has {} weights: in f32 they need {} of memory, and this machine has {}",
                path.display(),
                format::thousands(layout.len),
                format::memory(bytes),
                format::memory(machine)
            ),
            "take a smaller model, or a machine with more memory",
        )),
        _ => Ok(()),
    }
}

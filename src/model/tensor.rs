//! Tensors by name, and where their values come from.

use std::{ops::Range, path::Path};

use crate::{Error, Result};

/// One tensor of the layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Hugging Face name, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// `(out, in)` for a matrix, `(n)` for a vector.
    pub shape: Vec<usize>,
    /// Its range in the layout of the weights.
    pub range: Range<usize>,
}

impl TensorInfo {
    /// Number of elements of a row (the innermost dimension).
    pub fn row_len(&self) -> usize {
        *self.shape.last().expect("a tensor has a dimension")
    }
}

/// Elements per job: enough to be worth a job, few enough to keep all cores busy.
pub(super) const CHUNK_ELEMENTS: usize = 1 << 18;

/// Named tensors in a file.
pub(super) trait TensorSource: Send + Sync {
    /// The file of a tensor, for messages, and its shape, outermost dimension first; `None` if there is no such tensor.
    fn shape(&self, name: &str) -> Option<(&Path, Vec<usize>)>;

    /// Converts rows from `first_row` on into `out`, a whole number of rows.
    fn read_rows(&self, tensor: &TensorInfo, first_row: usize, out: &mut [f32]) -> Result<()>;
}

/// Reads rows, and refuses weights that are not finite.
pub(super) fn read_finite(
    source: &dyn TensorSource,
    tensor: &TensorInfo,
    first_row: usize,
    out: &mut [f32],
    path: &Path,
) -> Result<()> {
    source.read_rows(tensor, first_row, out)?;
    match first_non_finite(out) {
        None => Ok(()),
        Some(i) => {
            let file = source.shape(&tensor.name).map_or(path, |(file, _)| file);
            let element = first_row * tensor.row_len() + i;
            Err(not_finite(file, tensor, element, out[i]))
        }
    }
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

//! A change of gradients: elastic weight consolidation over several runs. A finished run saves the importance of its weights, and later
//! runs are penalised for changing them.
//!
//! A run with `method.ewc` saves `ewc.safetensors`: for every tensor that it trained, the diagonal F of the Fisher information of all
//! its learned examples, at the weights that it saved. `method.ewc.previous_runs` names the runs before this one. With a penalty per task
//! (Kirkpatrick et al. 2017, eq. 3), the loss has, from the first step on, the term
//!
//! ```text
//! strength / 2 * sum over previous runs r of the sum of F_r (w - w_r)^2        w_r: the weights that r saved
//! ```
//!
//! With online EWC (Schwarz et al. 2018, eqs. 8 and 9; with one center, as Huszar 2018 argues) and its decay `gamma`, there is one
//! previous run r, and `gamma F_r` replaces `F_r`. At the snapshot the penalty moves to the snapshot's weights with importance
//! `gamma F_r + F`, which is also what the run saves at its end.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::weight_penalty::WeightPenalty;
use crate::{
    Error, Result, atomic_file,
    config::EwcConfig,
    engine::Gradients,
    model::{Buffer, Layout, Model, params::TensorInfo},
    tensor_file::{self, Dtype, TensorFile, TensorView},
};

/// The files of a finished run that later runs need.
#[derive(Clone, Debug)]
pub struct PreviousRun {
    /// The importance that it saved.
    pub importance: PathBuf,
    /// The directory of the model that it saved.
    pub model: PathBuf,
}

impl PreviousRun {
    fn load_model(&self) -> Result<Model> {
        Model::load(&self.model.to_string_lossy())
    }
}

/// Saves the importance of the trained weights (in the layout of `gradients`) to `path`. `base` is the checksum of the base model.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written.
pub fn save_importance(
    path: &Path,
    importance: &[f32],
    layout: &Layout,
    gradients: &Gradients,
    base: &str,
) -> Result<()> {
    let tensors = gradients.tensors.iter().map(|(tensor, at)| {
        let info = &layout.tensors[*tensor];
        let values = &importance[at.clone()];
        (&info.name[..], TensorView::f32(&info.shape, values))
    });
    let file = atomic_file::temp_file(path)?;
    tensor_file::write(file.path(), tensors, &[("base_model", base)])
        .map_err(Error::io("write", path))?;
    atomic_file::persist(file, path)
}

/// Checks that a run on `model` that trains these tensors can continue after `previous` runs.
///
/// # Errors
/// [`Error::Input`] if one of them has no importance, is of another model or trained other tensors, or if `model` is not the one that the
/// last of them saved.
pub fn check(previous: &[PreviousRun], model: &Model, trained: &[bool]) -> Result<()> {
    let layout = &model.params.layout;
    let mut last = None;
    for run in previous {
        let file = open_importance(&run.importance)?;
        let saved = run.load_model()?;
        if saved.params.layout.tensors != layout.tensors {
            return Err(Error::input(format!(
                "`method.ewc.previous_runs`: {} and {} are different models: their tensors have different names or shapes",
                run.model.display(),
                model.name
            )));
        }
        let tensors = layout.tensors.iter().zip(trained);
        let tensors = tensors.filter_map(|(tensor, trained)| trained.then_some(tensor));
        importance_views(&run.importance, &file, tensors)?;
        last = Some(saved);
    }
    match last {
        Some(last) if last.checksum != model.checksum => Err(Error::input_hint(
            format!(
                "the run starts from {}, not from the model that the last of `method.ewc.previous_runs` saved",
                model.name
            ),
            format!("set `model = \"{}\"`", last.path.display()),
        )),
        _ => Ok(()),
    }
}

/// One penalty per run of `previous`, which [`check`] has accepted.
///
/// # Errors
/// If a file cannot be read any more.
pub fn weight_penalties(
    ewc: &EwcConfig,
    previous: &[PreviousRun],
    layout: &Layout,
    gradients: &Gradients,
) -> Result<Vec<WeightPenalty>> {
    let of_run = |run: &PreviousRun| {
        let mut importance = Buffer::zeros(gradients.data.len());
        let factor = ewc.gamma.unwrap_or(1.0);
        add_importance(&run.importance, factor, layout, gradients, &mut importance)?;
        let saved = run.load_model()?;
        Ok(WeightPenalty::ewc(
            ewc.strength,
            &saved.params,
            importance,
            gradients,
        ))
    };
    previous.iter().map(of_run).collect()
}

/// Adds `factor` times the importance in the file `path` to `sum`, which has the layout of `gradients`.
///
/// # Errors
/// [`Error::Input`] if the file is missing or corrupt.
pub fn add_importance(
    path: &Path,
    factor: f64,
    layout: &Layout,
    gradients: &Gradients,
    sum: &mut [f32],
) -> Result<()> {
    let file = open_importance(path)?;
    let tensors = gradients.tensors.iter();
    let tensors = tensors.map(|(tensor, _)| &layout.tensors[*tensor]);
    let views = importance_views(path, &file, tensors)?;
    for ((_, at), view) in gradients.tensors.iter().zip(views) {
        for (sum, bytes) in sum[at.clone()].iter_mut().zip(view.bytes.as_chunks().0) {
            *sum += factor as f32 * f32::from_le_bytes(*bytes);
        }
    }
    Ok(())
}

fn open_importance(path: &Path) -> Result<TensorFile> {
    if !path.is_file() {
        return Err(Error::input_hint(
            format!("{} not found: the run did not use EWC", path.display()),
            "`method.ewc.previous_runs` takes finished runs with `method.ewc`",
        ));
    }
    TensorFile::open(path).map_err(|e| match e.kind() {
        io::ErrorKind::InvalidData => Error::input(format!("{} is corrupt: {e}", path.display())),
        _ => Error::io("read", path)(e),
    })
}

/// The importance of `tensors` in `file`, which is at `path`.
fn importance_views<'a, 't>(
    path: &Path,
    file: &'a TensorFile,
    tensors: impl Iterator<Item = &'t TensorInfo>,
) -> Result<Vec<TensorView<'a>>> {
    let of_tensor = |tensor: &TensorInfo| {
        let stored = file.get(&tensor.name).ok_or_else(|| {
            Error::input_hint(
                format!("{} does not contain `{}`, which this run trains", path.display(), tensor.name),
                "train the same tensors as the previous run, or fewer (`train.trainable`, `train.lora`)",
            )
        })?;
        if stored.shape != tensor.shape || stored.dtype != Dtype::F32 {
            return Err(Error::input(format!(
                "{}: `{}` is {:?} of shape {:?}, not F32 of shape {:?}",
                path.display(),
                tensor.name,
                stored.dtype,
                stored.shape,
                tensor.shape
            )));
        }
        Ok(stored)
    };
    tensors.map(of_tensor).collect()
}

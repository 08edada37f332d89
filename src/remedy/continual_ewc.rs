//! Elastic weight consolidation over tasks: what a finished run leaves so that later runs are held to what it taught.
//!
//! A run with `method.ewc` leaves `ewc.safetensors` beside its model: the importance F of every weight that it trained, under the
//! tensor's name, which is the Fisher information of all that it learned at the weights that it saved. `method.ewc.previous_runs` names
//! the runs before this one. Per task (Kirkpatrick et al. 2017, eq. 3, and a penalty for each task as they say behind it) the
//! loss has, from the first step on,
//!
//! ```text
//! strength / 2 * sum over runs r of `after` of sum F_r (w - w_r)^2      w_r: the weights that r saved
//! ```
//!
//! and `F_r` is r's alone. Online (Schwarz et al. 2018, eqs. 8 and 9; one centre, as Huszar 2018 argues), with `decay` gamma, there
//! is one run r in `after`, the last, and `gamma F_r` in place of `F_r`; at the snapshot the one penalty moves to the
//! snapshot's weights with `gamma F_r + F`, and what is left at the end is `gamma F_r + F` too.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
};

use ::safetensors::{Dtype, SafeTensors, serialize_to_file, tensor::TensorView};

use super::weight_penalty::WeightPenalty;
use crate::{
    Error, Result, atomic_file,
    config::EwcConfig,
    engine::Gradients,
    model::{Buffer, FileMap, Layout, Model, params::TensorInfo},
    run::{EWC_FILE, RunDir},
};

/// Leaves the importance of the trained weights, laid out as `gradients` are, in a run on the model with this checksum.
///
/// # Errors
/// When it cannot be written.
pub fn save_importance(
    run: &RunDir,
    importance: &[f32],
    layout: &Layout,
    gradients: &Gradients,
    base: &str,
) -> Result<()> {
    let views = gradients.tensors.iter().map(|(tensor, at)| {
        let info = &layout.tensors[*tensor];
        let bytes = bytemuck::cast_slice(&importance[at.clone()]);
        let view = TensorView::new(Dtype::F32, info.shape.clone(), bytes);
        (&info.name, view.expect("a gradient has its tensor's shape"))
    });
    let metadata = HashMap::from([("base_model".to_owned(), base.to_owned())]);
    let path = run.file(EWC_FILE);
    let file = atomic_file::temp_file(&path)?;
    serialize_to_file(views, Some(metadata), file.path())
        .map_err(|e| Error::io("write", &path)(io::Error::other(e)))?;
    atomic_file::persist(file, &path)
}

/// Whether a run into `out` on `model` that trains these tensors of it can go on after the runs that `ewc` names.
///
/// # Errors
/// [`Error::Input`] where one of them is missing, not finished or without EWC, is of another model or trained other
/// tensors, or would be replaced by this one, or where `model` is not the one that the last of them saved.
pub fn check(ewc: &EwcConfig, out: &Path, model: &Model, trained: &[bool]) -> Result<()> {
    let layout = &model.params.layout;
    let mut last = None;
    for run in &ewc.previous_runs {
        let dir = RunDir::open(run)?;
        if out
            .canonicalize()
            .is_ok_and(|out| run.canonicalize().is_ok_and(|run| run == out))
        {
            return Err(Error::input_hint(
                format!(
                    "`method.ewc.previous_runs`: this run would replace {}",
                    run.display()
                ),
                "choose another `out`",
            ));
        }
        if dir.result()?.is_none() {
            return Err(Error::input_hint(
                format!(
                    "`method.ewc.previous_runs`: {} is not finished",
                    run.display()
                ),
                format!("finish it with `unforget resume {}`", run.display()),
            ));
        }
        let map = open_importance(&dir)?;
        let saved = load_saved_model(run)?;
        if saved.params.layout.tensors != layout.tensors {
            return Err(Error::input(format!(
                "`method.ewc.previous_runs`: {} is of another model than {}: its tensors have other names or shapes",
                run.display(),
                model.name
            )));
        }
        let tensors = layout.tensors.iter().zip(trained);
        let tensors = tensors.filter_map(|(tensor, trained)| trained.then_some(tensor));
        importance_views(&dir, &map, tensors)?;
        last = Some(saved);
    }
    match last {
        Some(last) if last.checksum != model.checksum => Err(Error::input_hint(
            format!(
                "the run starts from {}, and not from what the last run of `method.ewc.previous_runs` saved",
                model.name
            ),
            format!("set `model = \"{}\"`", last.path.display()),
        )),
        _ => Ok(()),
    }
}

/// The model that `run` saved.
fn load_saved_model(run: &Path) -> Result<Model> {
    Model::load(&run.join("model").to_string_lossy())
}

/// What holds the weights to those of the runs that `ewc` names, which [`validate`] has let pass.
///
/// # Errors
/// When one of them cannot be read any more.
pub fn weight_penalties(
    ewc: &EwcConfig,
    layout: &Layout,
    gradients: &Gradients,
) -> Result<Vec<WeightPenalty>> {
    let of_run = |run: &PathBuf| {
        let mut importance = Buffer::zeros(gradients.data.len());
        let factor = ewc.gamma.unwrap_or(1.0);
        add_importance(run, factor, layout, gradients, &mut importance)?;
        let saved = load_saved_model(run)?;
        Ok(WeightPenalty::ewc(
            ewc.strength,
            &saved.params,
            importance,
            gradients,
        ))
    };
    ewc.previous_runs.iter().map(of_run).collect()
}

/// Adds `factor` times the importance that `run` left to `sum`, which is laid out as `gradients` are.
///
/// # Errors
/// When it cannot be read.
pub fn add_importance(
    run: &Path,
    factor: f64,
    layout: &Layout,
    gradients: &Gradients,
    sum: &mut [f32],
) -> Result<()> {
    let dir = RunDir::open(run)?;
    let map = open_importance(&dir)?;
    let tensors = gradients.tensors.iter();
    let tensors = tensors.map(|(tensor, _)| &layout.tensors[*tensor]);
    let views = importance_views(&dir, &map, tensors)?;
    for ((_, at), view) in gradients.tensors.iter().zip(views) {
        for (sum, bytes) in sum[at.clone()]
            .iter_mut()
            .zip(view.data().as_chunks::<4>().0)
        {
            *sum += factor as f32 * f32::from_le_bytes(*bytes);
        }
    }
    Ok(())
}

fn open_importance(run: &RunDir) -> Result<FileMap> {
    let path = run.file(EWC_FILE);
    if !path.is_file() {
        return Err(Error::input_hint(
            format!(
                "there is no {}: the run was not held by EWC",
                path.display()
            ),
            "`method.ewc.previous_runs` names finished runs with `method.ewc`",
        ));
    }
    FileMap::open(&path)
}

/// The importance of `tensors`, which a run left in `map`.
fn importance_views<'a, 't>(
    run: &RunDir,
    map: &'a FileMap,
    tensors: impl Iterator<Item = &'t TensorInfo>,
) -> Result<Vec<TensorView<'a>>> {
    let path = run.file(EWC_FILE);
    let file = SafeTensors::deserialize(map)
        .map_err(|e| Error::input(format!("{} is broken: {e}", path.display())))?;
    let of_tensor = |tensor: &TensorInfo| {
        let view = file.tensor(&tensor.name).map_err(|_| {
            Error::input_hint(
                format!("{} does not have `{}`, which this run trains", path.display(), tensor.name),
                "train the tensors that the run before trained, or fewer (`train.trainable`, `train.lora`)",
            )
        })?;
        if view.shape() != tensor.shape || view.dtype() != Dtype::F32 {
            return Err(Error::input(format!(
                "{}: `{}` is {:?} of shape {:?}, not F32 of shape {:?}",
                path.display(),
                tensor.name,
                view.dtype(),
                view.shape(),
                tensor.shape
            )));
        }
        Ok(view)
    };
    tensors.map(of_tensor).collect()
}

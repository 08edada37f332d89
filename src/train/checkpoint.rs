//! Checkpoints: everything needed to resume a run, besides the base model; written atomically.
//!
//! ```text
//! checkpoints/snapshot.safetensors                what the snapshot froze, except a teacher's files; it never changes
//! checkpoints/best.safetensors                    trained tensors of the best model within the budget, where one is set
//! checkpoints/step-0000120/weights.safetensors    trained tensors (or adapters), their moving average, and the optimizer's moments
//! checkpoints/step-0000120/state.json             the training state, and the checksums of both
//! ```
//!
//! A second checkpoint after the same step (`step-0000120-1`) is written next to the first.
//!
//! The order of examples depends on seed and epoch only, so no random generator has a state to save.

use std::{
    borrow::Cow,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{adamw::AdamW, state::TrainState};
use crate::{
    Error, Result, atomic_file,
    engine::Gradients,
    model::Params,
    remedy::snapshot::Snapshot,
    run::{RunDir, TEACHER_DIR},
    tensor_file::{self, TensorFile},
};

/// The directory of a run's checkpoints.
pub(super) const CHECKPOINTS_DIR: &str = "checkpoints";

const WEIGHTS: &str = "weights.safetensors";
const STATE: &str = "state.json";
const SNAPSHOT: &str = "snapshot.safetensors";
const BEST: &str = "best.safetensors";

/// Checkpoints that are kept: the newest, and the one before it in case the newest is corrupt.
const KEPT_CHECKPOINTS: usize = 2;

/// `state.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct CheckpointState {
    state: TrainState,
    /// Steps of the optimizer; fewer than those of the run if steps were skipped.
    optimizer_steps: u64,
    /// Length of `metrics.jsonl`.
    metrics_bytes: u64,
    /// SHA-256 (hex) of weights and moments.
    weights: String,
    /// SHA-256 (hex) of the snapshot, where there is one.
    snapshot: Option<String>,
}

/// The checkpoints of one run.
pub struct Checkpoints {
    root: PathBuf,
    /// Checksum of the snapshot, once it is written.
    snapshot: Option<String>,
}

/// The part of the student that a checkpoint holds.
pub struct CheckpointView<'a> {
    /// The model's weights, or its adapters'.
    pub params: &'a mut Params,
    /// Says which tensors are trained.
    pub gradients: &'a Gradients,
    /// The optimizer, with the moving average of the weights.
    pub optimizer: &'a mut AdamW,
}

impl Checkpoints {
    /// The checkpoints of the run in `run`.
    pub fn new(run: &RunDir) -> Self {
        Self {
            root: run.file(CHECKPOINTS_DIR),
            snapshot: None,
        }
    }

    /// Writes a checkpoint, reads it back, and then removes the oldest beyond two.
    ///
    /// # Errors
    /// When it does not fit on the disk, cannot be written, or fails verification. Earlier checkpoints stay.
    pub fn write(
        &mut self,
        state: &TrainState,
        view: &CheckpointView<'_>,
        snapshot: Option<&Snapshot>,
        run: &RunDir,
    ) -> Result<()> {
        let moments = view.optimizer.moments();
        if !view.optimizer.comm.is_main() {
            return Ok(());
        }
        fs::create_dir_all(&self.root).map_err(Error::io("create", &self.root))?;
        let arrays = view.arrays(&moments);
        let bytes = bytes_of(&arrays);
        atomic_file::require_space(&self.root, bytes, "a checkpoint")?;
        if let (Some(snapshot), None) = (snapshot, &self.snapshot) {
            self.snapshot = Some(self.write_snapshot(snapshot)?);
        }
        // The length of the metrics must be right after a power failure, too.
        run.sync_metrics()?;
        let state = CheckpointState {
            state: state.clone(),
            optimizer_steps: view.optimizer.steps,
            metrics_bytes: run.metrics_bytes(),
            weights: tensor_file::checksum(&arrays),
            snapshot: self.snapshot.clone().filter(|_| snapshot.is_some()),
        };
        let path = self.next_path(state.state.step);
        atomic_file::write_dir(&path, |folder| {
            tensor_file::write_vectors(&folder.join(WEIGHTS), &arrays)?;
            let text = serde_json::to_vec_pretty(&state).expect("a state serializes to JSON");
            fs::write(folder.join(STATE), text)
        })?;
        if !read_state(&path).is_some_and(|read| read == state && has_weights(&path, &read)) {
            let _ = fs::remove_dir_all(&path);
            return Err(Error::Failed {
                message: format!("{} does not read back as it was written", path.display()),
                hint: Some(format!(
                    "the disk may be failing; the previous checkpoint is intact: copy {} to another disk and resume it there",
                    run.path().display()
                )),
            });
        }
        for old in self.newest_first().into_iter().skip(KEPT_CHECKPOINTS) {
            fs::remove_dir_all(&old).map_err(Error::io("remove", &old))?;
        }
        Ok(())
    }

    /// Bytes on disk during a run: the checkpoints that are kept, and one that is being written.
    pub fn disk_bytes(view: &CheckpointView<'_>) -> u64 {
        let AdamW {
            exp_avg,
            exp_avg_sq,
            ..
        } = &*view.optimizer;
        let moments = [Cow::Borrowed(&exp_avg[..]), Cow::Borrowed(&exp_avg_sq[..])];
        (KEPT_CHECKPOINTS as u64 + 1) * bytes_of(&view.arrays(&moments))
    }

    /// An unused name for a checkpoint after `step`.
    fn next_path(&self, step: usize) -> PathBuf {
        let name = format!("step-{step:07}");
        let others = (1..).map(|i| format!("{name}-{i}"));
        std::iter::once(name.clone())
            .chain(others)
            .map(|name| self.root.join(name))
            .find(|path| !path.exists())
            .expect("there are more numbers than checkpoints")
    }

    fn write_snapshot(&self, snapshot: &Snapshot) -> Result<String> {
        let arrays = snapshot.arrays();
        let arrays = arrays.iter().map(|(name, values)| (&name[..], *values));
        self.write_file(SNAPSHOT, &arrays.collect::<Vec<_>>())
    }

    /// Writes arrays to the file called `name`, under another name first; returns their checksum.
    fn write_file(&self, name: &str, arrays: &[(&str, &[f32])]) -> Result<String> {
        let path = self.root.join(name);
        atomic_file::require_space(
            &self.root,
            bytes_of(arrays),
            "a file beside the checkpoints",
        )?;
        let file = atomic_file::temp_file(&path)?;
        let sum = tensor_file::checksum(arrays);
        tensor_file::write_vectors(file.path(), arrays).map_err(Error::io("write", &path))?;
        atomic_file::persist(file, &path)?;
        Ok(sum)
    }

    /// Restores the newest complete checkpoint into `view`, and truncates `metrics.jsonl` to its length then. Returns `None` and
    /// changes nothing if there is no complete checkpoint. Removes incomplete files of a killed process.
    ///
    /// # Errors
    /// When a file that was complete cannot be read any more.
    pub fn restore(
        &mut self,
        view: &mut CheckpointView<'_>,
        run: &RunDir,
    ) -> Result<Option<TrainState>> {
        if view.optimizer.comm.is_main() {
            atomic_file::remove_unfinished(&self.root);
        }
        let mut newest = self.newest_first().into_iter();
        let Some((path, state)) =
            newest.find_map(|path| Some((path.clone(), self.complete_state(&path, run)?)))
        else {
            return Ok(None);
        };
        view.read(&path.join(WEIGHTS))
            .map_err(Error::io("read", &path))?;
        view.optimizer.steps = state.optimizer_steps;
        self.snapshot = state.snapshot;
        run.truncate_metrics(state.metrics_bytes)?;
        Ok(Some(state.state))
    }

    /// The snapshot of the checkpoint that was restored, where it has one. `empty` makes a snapshot to be filled, given the length of
    /// each array by name.
    ///
    /// # Errors
    /// When it cannot be read, or a teacher's file is not as it was written.
    pub fn restore_snapshot(
        &self,
        empty: impl FnOnce(&dyn Fn(&str) -> usize) -> Snapshot,
        run: &RunDir,
    ) -> Result<Option<Snapshot>> {
        if self.snapshot.is_none() {
            return Ok(None);
        }
        let path = self.root.join(SNAPSHOT);
        let mut snapshot = read_snapshot(&path, empty).map_err(Error::io("read", &path))?;
        snapshot.open_files(&run.file(TEACHER_DIR))?;
        Ok(Some(snapshot))
    }

    /// Saves the trained weights as the best within the budget so far.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn save_best(&self, view: &CheckpointView<'_>) -> Result<()> {
        if !view.optimizer.comm.is_main() {
            return Ok(());
        }
        fs::create_dir_all(&self.root).map_err(Error::io("create", &self.root))?;
        self.write_file(BEST, &view.weights()).map(|_| ())
    }

    /// Restores the weights that [`Checkpoints::save_best`] saved.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn restore_best(&self, view: &mut CheckpointView<'_>) -> Result<()> {
        let path = self.root.join(BEST);
        TensorFile::open(&path)
            .and_then(|mut file| view.read_weights(&mut file))
            .map_err(Error::io("read", &path))
    }

    fn newest_first(&self) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = fs::read_dir(&self.root)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("step-"))
            .map(|entry| entry.path())
            .collect();
        found.sort_unstable();
        found.reverse();
        found
    }

    /// The state of the checkpoint at `path`, if its files have the checksums in it and the metrics are long enough.
    fn complete_state(&self, path: &Path, run: &RunDir) -> Option<CheckpointState> {
        let state = read_state(path)?;
        let sum = |path: &Path| stored_checksum(path).ok();
        let has_snapshot =
            state.snapshot.is_none() || sum(&self.root.join(SNAPSHOT)) == state.snapshot;
        let has_metrics = state.metrics_bytes <= run.metrics_bytes();
        (has_metrics && has_weights(path, &state) && has_snapshot).then_some(state)
    }
}

fn read_state(path: &Path) -> Option<CheckpointState> {
    serde_json::from_slice(&fs::read(path.join(STATE)).ok()?).ok()
}

/// Whether the weights of the checkpoint at `path` have the checksum in `state`.
fn has_weights(path: &Path, state: &CheckpointState) -> bool {
    stored_checksum(&path.join(WEIGHTS)).is_ok_and(|sum| sum == state.weights)
}

/// [`tensor_file::checksum`] of the tensors in the file at `path`.
fn stored_checksum(path: &Path) -> io::Result<String> {
    TensorFile::open(path)?.checksum()
}

fn bytes_of(arrays: &[(&str, &[f32])]) -> u64 {
    arrays
        .iter()
        .map(|(_, values)| size_of_val(*values) as u64)
        .sum()
}

fn read_snapshot(
    path: &Path,
    empty: impl FnOnce(&dyn Fn(&str) -> usize) -> Snapshot,
) -> io::Result<Snapshot> {
    let mut file = TensorFile::open(path)?;
    let mut snapshot = empty(&|name| file.len(name));
    let mut arrays = snapshot.arrays_mut().into_iter();
    arrays.try_for_each(|(name, values)| file.read(&name, values))?;
    Ok(snapshot)
}

impl CheckpointView<'_> {
    /// All arrays of a checkpoint, with both moments of all weights.
    fn arrays<'a>(&'a self, [first, second]: &'a [Cow<'_, [f32]>; 2]) -> Vec<(&'a str, &'a [f32])> {
        let mut arrays: Vec<(&str, &[f32])> = vec![("exp_avg", first), ("exp_avg_sq", second)];
        if let Some(ema) = &self.optimizer.ema {
            arrays.push(("ema", &ema.weights));
        }
        arrays.extend(self.weights());
        arrays
    }

    /// The trained tensors.
    fn weights(&self) -> Vec<(&str, &[f32])> {
        let trained = self.gradients.tensors.iter().map(|(tensor, _)| {
            let info = &self.params.layout.tensors[*tensor];
            (&info.name[..], &self.params.data[info.range.clone()])
        });
        trained.collect()
    }

    fn read(&mut self, path: &Path) -> io::Result<()> {
        let mut file = TensorFile::open(path)?;
        let AdamW {
            exp_avg,
            exp_avg_sq,
            comm,
            ..
        } = &mut *self.optimizer;
        for (name, moments) in [("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)] {
            let own = comm.shard_range(moments.len());
            file.read_range(name, moments, own)?;
        }
        if let Some(ema) = &mut self.optimizer.ema {
            file.read("ema", &mut ema.weights)?;
        }
        self.read_weights(&mut file)
    }

    fn read_weights(&mut self, file: &mut TensorFile) -> io::Result<()> {
        let layout = self.params.layout.clone();
        for (tensor, _) in &self.gradients.tensors {
            let info = &layout.tensors[*tensor];
            file.read(&info.name, &mut self.params.data[info.range.clone()])?;
        }
        Ok(())
    }
}

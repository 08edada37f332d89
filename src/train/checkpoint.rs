//! Checkpoints: all that a resumed run needs beside the base model, written whole or not at all.
//!
//! ```text
//! checkpoints/snapshot.safetensors                what was frozen of the model, but for a teacher's files; it never changes
//! checkpoints/best.safetensors                    trained tensors of the best model within the budget, where one is named
//! checkpoints/step-0000120/weights.safetensors    trained tensors (adapters where these are trained), their average, and the optimiser's moments
//! checkpoints/step-0000120/state.json             where the run was, and the checksums of both
//! ```
//!
//! A second checkpoint after the same step (`step-0000120-1`) stands beside the first until it is whole.
//!
//! Row order depends on seed and epoch alone, so that no generator has a state to keep.

use std::{
    borrow::Cow,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::adamw::AdamW;
use crate::{
    Error, Result, atomic_file, config, distributed,
    engine::Gradients,
    model::Params,
    remedy::{budget::BudgetController, snapshot::Snapshot},
    run::{RunDir, TEACHER_DIR},
    tensor_file::{self, TensorFile},
};

const WEIGHTS: &str = "weights.safetensors";
const STATE: &str = "state.json";
const SNAPSHOT: &str = "snapshot.safetensors";
const BEST: &str = "best.safetensors";

/// Checkpoints that are kept: the newest, and the one before, should the newest turn out broken.
const KEPT_CHECKPOINTS: usize = 2;

/// Where a run stands: all that it knows beside weights, optimiser and snapshot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    /// Whole epochs done.
    pub epoch: usize,
    /// Steps done of the epoch after these.
    pub step_in_epoch: usize,
    /// Steps done in all.
    pub step: usize,
    /// Seconds of training and evaluations so far.
    pub seconds: f64,
    /// Of these, in evaluations.
    pub eval_seconds: f64,
    /// Whether each fact was right at the last evaluation after an epoch, in the order of [`crate::splits::Splits::iter`].
    pub correct: Vec<bool>,
    /// The same at the best evaluation of each fact's split, that before training being one.
    pub correct_at_peak: Vec<bool>,
    /// Whether each was right after an epoch and wrong after a later one.
    #[serde(default)]
    pub lost_once: Vec<bool>,
    /// Steps that changed nothing, their loss or gradient not being finite.
    #[serde(default, skip_serializing_if = "config::is_default")]
    pub skipped_steps: usize,
    /// The known rows that the epoch after these replays.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replayed_rows: Vec<usize>,
    /// Where the budget stands, where one was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<BudgetController>,
}

/// `state.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct CheckpointState {
    state: TrainState,
    /// Length of `metrics.jsonl` then.
    metrics_bytes: u64,
    /// SHA-256 (hex) over weights and moments.
    weights: String,
    /// SHA-256 (hex) over the snapshot, where there is one.
    snapshot: Option<String>,
}

/// The checkpoints of one run.
pub struct Checkpoints {
    root: PathBuf,
    /// Checksum of the snapshot, once it is written.
    snapshot: Option<String>,
}

/// The part of a run's memory that a checkpoint holds.
pub struct CheckpointView<'a> {
    /// Weights, of which the trained tensors are kept: the model's, or its adapters'.
    pub params: &'a mut Params,
    /// Says which tensors are trained.
    pub gradients: &'a Gradients,
    /// The optimiser's moments.
    pub optimizer: &'a mut AdamW,
}

impl Checkpoints {
    /// The checkpoints of the run in `run`.
    pub fn new(run: &RunDir) -> Self {
        Self {
            root: run.file("checkpoints"),
            snapshot: None,
        }
    }

    /// Writes a checkpoint, reads it back, and then removes the oldest beyond two.
    ///
    /// # Errors
    /// When it does not fit on the disk, cannot be written, or is not read back as it was written; those before are untouched.
    pub fn write(
        &mut self,
        standing: &TrainState,
        memory: &CheckpointView<'_>,
        snapshot: Option<&Snapshot>,
        run: &RunDir,
    ) -> Result<()> {
        let moments = memory.optimizer.moments();
        if !distributed::is_main() {
            return Ok(());
        }
        fs::create_dir_all(&self.root).map_err(Error::io("create", &self.root))?;
        let arrays = memory.arrays(&moments);
        let bytes = bytes_of(&arrays);
        atomic_file::require_space(&self.root, bytes, "a checkpoint")?;
        if let (Some(snapshot), None) = (snapshot, &self.snapshot) {
            self.snapshot = Some(self.write_snapshot(snapshot)?);
        }
        // What the checkpoint says of the metrics' length must be true after a loss of power, too.
        run.sync_metrics()?;
        let state = CheckpointState {
            state: standing.clone(),
            metrics_bytes: run.metrics_bytes(),
            weights: tensor_file::checksum(&arrays),
            snapshot: self.snapshot.clone().filter(|_| snapshot.is_some()),
        };
        let path = self.next_path(standing.step);
        atomic_file::write_dir(&path, |folder| {
            tensor_file::write_vectors(&folder.join(WEIGHTS), &arrays)?;
            let text = serde_json::to_vec_pretty(&state).expect("a state has a form in JSON");
            fs::write(folder.join(STATE), text)
        })?;
        if !read_state(&path).is_some_and(|read| read == state && has_weights(&path, &read)) {
            let _ = fs::remove_dir_all(&path);
            return Err(Error::Failed {
                message: format!("{} is not read back as it was written", path.display()),
                hint: Some(format!(
                    "the disk may be failing; the checkpoint before is untouched: copy {} elsewhere and resume it there",
                    run.path().display()
                )),
            });
        }
        for old in self.newest_first().into_iter().skip(KEPT_CHECKPOINTS) {
            fs::remove_dir_all(&old).map_err(Error::io("remove", &old))?;
        }
        Ok(())
    }

    /// Bytes on the disk while a run goes on: the checkpoints that are kept, and one that is being written.
    pub fn disk_bytes(memory: &CheckpointView<'_>) -> u64 {
        let AdamW {
            exp_avg: first,
            exp_avg_sq: second,
            ..
        } = &*memory.optimizer;
        (KEPT_CHECKPOINTS as u64 + 1)
            * bytes_of(&memory.arrays(&[Cow::Borrowed(first), Cow::Borrowed(second)]))
    }

    /// The name of a checkpoint after `step`: one that there is none of yet.
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
        self.write_file(SNAPSHOT, arrays.collect())
    }

    /// Writes arrays to the file called `name`, under another name first; returns their checksum.
    fn write_file(&self, name: &str, arrays: Vec<(&str, &[f32])>) -> Result<String> {
        let path = self.root.join(name);
        atomic_file::require_space(
            &self.root,
            bytes_of(&arrays),
            "a file beside the checkpoints",
        )?;
        let file = atomic_file::temp_file(&path)?;
        let sum = tensor_file::checksum(&arrays);
        tensor_file::write_vectors(file.path(), &arrays).map_err(Error::io("write", &path))?;
        atomic_file::persist(file, &path)?;
        Ok(sum)
    }

    /// Restores the newest whole checkpoint: fills `memory` and, where it has one, the snapshot that `room` makes
    /// room for (told how long the array of a name is), and cuts `metrics.jsonl` to what it was. None: there is no whole checkpoint,
    /// and nothing was changed. What a killed process left unfinished is removed.
    ///
    /// # Errors
    /// When a file that was whole cannot be read any more, or a teacher's file is not what was written.
    pub fn restore(
        &mut self,
        memory: &mut CheckpointView<'_>,
        room: impl FnOnce(&dyn Fn(&str) -> usize) -> Snapshot,
        run: &RunDir,
    ) -> Result<Option<(TrainState, Option<Snapshot>)>> {
        atomic_file::remove_unfinished(&self.root);
        let Some((path, state)) = self
            .newest_first()
            .into_iter()
            .find_map(|path| self.complete_state(&path, run).map(|state| (path, state)))
        else {
            return Ok(None);
        };
        memory
            .read(&path.join(WEIGHTS))
            .map_err(Error::io("read", &path))?;
        memory.optimizer.steps = state.state.step as u64;
        let path = self.root.join(SNAPSHOT);
        let snapshot = state.snapshot.is_some().then(|| read_snapshot(&path, room));
        let mut snapshot = snapshot.transpose().map_err(Error::io("read", &path))?;
        if let Some(snapshot) = &mut snapshot {
            snapshot.open_files(&run.file(TEACHER_DIR))?;
        }
        self.snapshot = state.snapshot;
        run.truncate_metrics(state.metrics_bytes)?;
        Ok(Some((state.state, snapshot)))
    }

    /// Keeps the trained weights as they are: the best within the budget so far.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn save_best(&self, memory: &CheckpointView<'_>) -> Result<()> {
        if !distributed::is_main() {
            return Ok(());
        }
        fs::create_dir_all(&self.root).map_err(Error::io("create", &self.root))?;
        self.write_file(BEST, memory.weights()).map(|_| ())
    }

    /// Takes the weights that [`Checkpoints::save_best`] kept.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn restore_best(&self, memory: &mut CheckpointView<'_>) -> Result<()> {
        let path = self.root.join(BEST);
        TensorFile::open(&path)
            .and_then(|mut file| memory.read_weights(&mut file))
            .map_err(Error::io("read", &path))
    }

    /// Removes all of them.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub fn remove(&self) -> Result<()> {
        if !distributed::is_main() {
            return Ok(());
        }
        match fs::remove_dir_all(&self.root) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("remove", &self.root)(e))
            }
            _ => Ok(()),
        }
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

    /// The state of the checkpoint at `path`, if its files are what it says, and the metrics as long.
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

/// Whether the weights of the checkpoint at `path` are those that `state` is of.
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
    room: impl FnOnce(&dyn Fn(&str) -> usize) -> Snapshot,
) -> io::Result<Snapshot> {
    let mut file = TensorFile::open(path)?;
    let mut snapshot = room(&|name| file.len(name));
    let mut arrays = snapshot.arrays_mut().into_iter();
    arrays.try_for_each(|(name, values)| file.read(&name, values))?;
    Ok(snapshot)
}

impl CheckpointView<'_> {
    /// With both moments, of all weights.
    fn arrays<'a>(&'a self, [first, second]: &'a [Cow<'_, [f32]>; 2]) -> Vec<(&'a str, &'a [f32])> {
        let mut arrays: Vec<(&str, &[f32])> = vec![("exp_avg", first), ("exp_avg_sq", second)];
        if let Some(average) = &self.optimizer.ema {
            arrays.push(("average", &average.weights));
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
            exp_avg: first,
            exp_avg_sq: second,
            ..
        } = &mut *self.optimizer;
        for (name, moments) in [("exp_avg", first), ("exp_avg_sq", second)] {
            let own = distributed::shard_range(moments.len());
            file.read_range(name, moments, own)?;
        }
        if let Some(average) = &mut self.optimizer.ema {
            file.read("average", &mut average.weights)?;
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

//! The run writer: the run directory, its metrics and checkpoints, and progress output.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    checkpoint::{CHECKPOINTS_DIR, CheckpointView, Checkpoints},
    records::{Baseline, SPLITS, SplitRecord, split_records},
    shared_prefix,
    state::TrainState,
    student::Student,
    workload::Workload,
};
use crate::{
    Result, atomic_file,
    config::TrainConfig,
    measure::BehaviourAnswer,
    progress::{Bar, LivePlot, Progress, WorkKind},
    prompt::Example,
    remedy::snapshot::Snapshot,
    run::{ADAPTER_DIR, FactResult, Metrics, RunDir, RunResult, TEACHER_DIR},
    splits::Splits,
};

/// Without `save_every` checkpoints are at least this far apart.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(60);

/// The decoys of a run, as tokens.
const DECOYS: &str = "decoys.jsonl";

/// Writes a run. With several processes, the main one writes; the others call the same methods.
pub(super) struct RunWriter {
    run: RunDir,
    checkpoints: Checkpoints,
    last_checkpoint: Instant,
    /// Steps done in the newest checkpoint.
    saved_steps: usize,
    /// Epochs between checkpoints, where the config says so.
    save_every: Option<usize>,
    num_epochs: usize,
    progress: Progress,
    plot: LivePlot,
}

impl RunWriter {
    /// A writer into `run`.
    pub fn new(run: RunDir, train: &TrainConfig, progress: Progress) -> Self {
        Self {
            checkpoints: Checkpoints::new(&run),
            last_checkpoint: Instant::now(),
            saved_steps: 0,
            save_every: train.save_every,
            num_epochs: train.num_epochs,
            plot: LivePlot::new(&progress, train.num_epochs),
            progress,
            run,
        }
    }

    /// The run directory.
    pub fn run_dir(&self) -> &RunDir {
        &self.run
    }

    /// A progress bar over the examples of an epoch, which are so much work.
    pub fn epoch_bar(&self, examples: usize, work: Workload, epoch: usize) -> Bar {
        let label = format!("epoch {epoch}/{}", self.num_epochs);
        self.progress
            .bar(examples as u64, label)
            .with_work(WorkKind::Training, work.flops(1.0))
    }

    /// Refuses a run whose checkpoints and model do not fit on the disk.
    pub fn check_disk_space(&self, view: &CheckpointView<'_>, model_bytes: u64) -> Result<()> {
        let bytes = Checkpoints::disk_bytes(view) + model_bytes;
        let purpose = "the run, its checkpoints included,";
        atomic_file::require_space(self.run.path(), bytes, purpose)
    }

    /// Starts the metrics of a new run.
    pub fn start(&self, tensorboard: bool) -> Result<()> {
        self.run.remove("metrics.jsonl")?;
        if tensorboard {
            self.run.enable_tensorboard()?;
        }
        Ok(())
    }

    /// Writes the facts and the base model's answers; from here on the run can be resumed.
    pub fn write_splits(&self, splits: &Splits, baseline: &[Baseline]) -> Result<()> {
        if !splits.prompts.is_empty() {
            self.run.write_prompts(&splits.prompts)?;
        }
        self.run.write_rows(SPLITS, split_records(splits, baseline))
    }

    /// Writes the decoys.
    pub fn write_decoys(&self, decoys: &[Example]) -> Result<()> {
        self.run.write_rows(DECOYS, decoys)
    }

    /// The decoys, if there are any yet.
    pub fn read_decoys(&self) -> Result<Vec<Example>> {
        if self.run.file(DECOYS).is_file() {
            self.run.read_rows(DECOYS)
        } else {
            Ok(Vec::new())
        }
    }

    /// Adds a row to the metrics.
    pub fn log(&self, row: &Metrics) -> Result<()> {
        self.run.append_metrics(row)
    }

    /// Shows an evaluation, and adds it to the metrics.
    pub fn log_evaluation(&mut self, row: &Metrics) -> Result<()> {
        if let Metrics::Eval {
            epoch, accuracy, ..
        } = row
        {
            self.plot.log(*epoch, accuracy.named());
        }
        self.log(row)
    }

    /// Whether a checkpoint is due after `epoch`.
    pub fn checkpoint_is_due(&self, epoch: usize) -> bool {
        if let Some(every) = self.save_every {
            return epoch.is_multiple_of(every);
        }
        let is_due = self.last_checkpoint.elapsed() >= CHECKPOINT_INTERVAL;
        self.run.comm().broadcast_flag(is_due)
    }

    /// Writes a checkpoint.
    pub fn checkpoint(
        &mut self,
        state: &TrainState,
        view: &CheckpointView<'_>,
        snapshot: Option<&Snapshot>,
    ) -> Result<()> {
        let _bar = self.progress.busy("writing a checkpoint");
        self.checkpoints.write(state, view, snapshot, &self.run)?;
        self.last_checkpoint = Instant::now();
        self.saved_steps = state.step;
        Ok(())
    }

    /// Of `steps` steps, those since the newest checkpoint.
    pub fn unsaved_steps(&self, steps: usize) -> usize {
        steps.saturating_sub(self.saved_steps)
    }

    /// Restores the student from the newest complete checkpoint, if there is one. `empty_snapshot` makes a snapshot to be filled, given
    /// the length of each array by name.
    pub fn restore(
        &mut self,
        student: &mut Student,
        empty_snapshot: impl FnOnce(&Student, &dyn Fn(&str) -> usize) -> Snapshot,
    ) -> Result<Option<(TrainState, Option<Snapshot>)>> {
        let Some(state) = self.checkpoints.restore(&mut student.view(), &self.run)? else {
            return Ok(None);
        };
        self.saved_steps = state.step;
        student.merge();
        let empty = |length: &dyn Fn(&str) -> usize| empty_snapshot(student, length);
        let snapshot = self.checkpoints.restore_snapshot(empty, &self.run)?;
        let evaluation = |row| match row {
            Metrics::Eval {
                epoch, accuracy, ..
            } => Some((epoch, accuracy.named())),
            _ => None,
        };
        let rows = self.run.metrics()?.into_iter();
        self.plot.extend(rows.filter_map(evaluation));
        Ok(Some((state, snapshot)))
    }

    /// Saves the trained weights as the best within the budget so far.
    pub fn save_best(&self, view: &CheckpointView<'_>) -> Result<()> {
        self.checkpoints.save_best(view)
    }

    /// Restores the best weights within the budget.
    pub fn restore_best(&self, view: &mut CheckpointView<'_>) -> Result<()> {
        // The main process has written them.
        self.run.comm().barrier();
        self.checkpoints.restore_best(view)
    }

    /// Copies the run so far to `dir`, for runs with an identical prefix.
    pub fn save_shared_prefix(&self, dir: &Path) -> Result<()> {
        shared_prefix::save(&self.run, dir)
    }

    /// Continues from a prefix that another run saved in `dir`: its rows of `splits.jsonl`, if there is one.
    pub fn load_shared_prefix(&self, dir: &Path) -> Result<Option<Vec<SplitRecord>>> {
        if shared_prefix::load(dir, &self.run)? {
            self.run.read_rows(SPLITS).map(Some)
        } else {
            Ok(None)
        }
    }

    /// Where the model and the adapters are saved.
    pub fn model_dirs(&self) -> [PathBuf; 2] {
        [self.run.file("model"), self.run.file(ADAPTER_DIR)]
    }

    /// Writes the answers to general prompts.
    pub fn write_behaviour(&self, answers: &[BehaviourAnswer]) -> Result<()> {
        self.run.write_rows("behaviour.jsonl", answers)
    }

    /// Writes the result of the run.
    pub fn write_result(&self, facts: &[FactResult], result: &RunResult) -> Result<()> {
        self.run.write_rows("facts.jsonl", facts)?;
        self.run.write_json("result.json", result)
    }

    /// Removes checkpoints and teacher files. Call it only after the result is written, so that a killed run can still resume.
    pub fn remove_checkpoints(&self) -> Result<()> {
        self.run.remove(CHECKPOINTS_DIR)?;
        self.run.remove(TEACHER_DIR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distributed::Comm;

    fn writer(place: &Path, comm: Comm, save_every: Option<usize>) -> RunWriter {
        let train = TrainConfig {
            save_every,
            ..TrainConfig::default()
        };
        let run = RunDir::create(&place.join("run"), comm).expect("writable");
        RunWriter::new(run, &train, Progress::quiet())
    }

    #[test]
    fn checkpoints_are_due_as_often_as_asked_for() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let due = |save_every| -> Vec<usize> {
            let writer = writer(place.path(), Comm::single(), save_every);
            (1..=5).filter(|e| writer.checkpoint_is_due(*e)).collect()
        };
        assert_eq!(due(Some(2)), [2, 4]);
        // The last one was less than a minute ago.
        assert!(due(None).is_empty());
    }

    #[cfg(not(feature = "mpi"))]
    #[test]
    fn of_several_processes_the_main_one_alone_writes() {
        let row = Metrics::Skipped {
            epoch: 1,
            step: 1,
            quantity: "the loss".into(),
        };
        let files = |rank: usize| {
            let place = tempfile::tempdir().expect("a temporary directory");
            let writer = writer(place.path(), Comm::for_test(rank, 2), None);
            writer.start(true).expect("writable");
            writer.write_decoys(&[]).expect("writable");
            writer.log(&row).expect("writable");
            let run = place.path().join("run");
            let names = std::fs::read_dir(run).into_iter().flatten().flatten();
            let mut names: Vec<_> = names.map(|entry| entry.file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(files(0), ["decoys.jsonl", "metrics.jsonl", "tensorboard"]);
        assert_eq!(files(1).len(), 0);
    }
}

//! The run directory: files are written atomically, metrics row by row.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};

use super::{FactResult, Metrics, RunResult, not_a_run, reader, tensorboard};
use crate::{Error, Result, atomic_file, audit::FewShotPrompt, config::Config, distributed::Comm};

/// Files and directories that a run writes. A new run in the same directory removes these and nothing else.
const FILES: [&str; 15] = [
    "config.toml",
    "environment.json",
    "splits.jsonl",
    PROMPTS,
    "decoys.jsonl",
    "metrics.jsonl",
    TENSORBOARD_DIR,
    "facts.jsonl",
    "behaviour.jsonl",
    "result.json",
    "model",
    ADAPTER_DIR,
    "checkpoints",
    TEACHER_DIR,
    EWC_FILE,
];

/// The few-shot prompts of the run's audit.
const PROMPTS: &str = "prompts.jsonl";

/// Directory of the trained `LoRA` adapter.
pub const ADAPTER_DIR: &str = "adapter";

/// File with the Fisher information that EWC saves for later runs.
pub const EWC_FILE: &str = "ewc.safetensors";

/// Directory of the `TensorBoard` events.
const TENSORBOARD_DIR: &str = "tensorboard";

/// Directory of the teacher's stored outputs.
pub const TEACHER_DIR: &str = "teacher";

/// An open run directory. Of several processes that share a run only the main one writes; the others call the same methods.
#[derive(Clone, Debug)]
pub struct RunDir {
    root: PathBuf,
    comm: Comm,
    /// The directory, open and locked. The lock is released when the last clone is dropped or the process ends.
    _lock: Option<Arc<File>>,
}

impl RunDir {
    /// Makes `root` a run directory, without the files that an earlier run left in it, and [locks](Self::lock) it.
    ///
    /// # Errors
    /// [`Error::Input`] if the directory cannot be written, or another process is writing it.
    pub fn create(root: &Path, comm: Comm) -> Result<Self> {
        let unwritable = |e: io::Error| {
            Error::input_hint(
                format!("cannot write {}: {e}", root.display()),
                "choose another directory for the run (`--out`)",
            )
        };
        if !comm.is_main() {
            comm.barrier();
            return Ok(Self::at(root, comm));
        }
        fs::create_dir_all(root).map_err(unwritable)?;
        let dir = Self::at(root, comm).lock()?;
        tempfile::tempfile_in(root).map_err(unwritable)?;
        for name in FILES {
            dir.remove(name)?;
        }
        comm.barrier();
        Ok(dir)
    }

    /// Opens a run that was started.
    ///
    /// # Errors
    /// [`Error::Input`] if `root` is not a run directory.
    pub fn open(root: &Path) -> Result<Self> {
        if root.join("config.toml").is_file() {
            Ok(Self::at(root, Comm::single()))
        } else {
            Err(not_a_run(root))
        }
    }

    fn at(root: &Path, comm: Comm) -> Self {
        Self {
            root: root.to_owned(),
            comm,
            _lock: None,
        }
    }

    /// The same directory for one of several processes that continue the run.
    #[must_use]
    pub fn with_comm(self, comm: Comm) -> Self {
        Self { comm, ..self }
    }

    /// Locks the run against other writing processes for as long as the value or a clone of it lives. A process that died holds
    /// no lock. On systems without locks on directories, this does nothing.
    ///
    /// # Errors
    /// [`Error::Input`] if another process is writing the run.
    pub fn lock(self) -> Result<Self> {
        let Some(directory) = File::open(&self.root).ok().filter(|_| self.comm.is_main()) else {
            return Ok(self);
        };
        match try_lock(&directory) {
            Err(TryLockError::WouldBlock) => Err(Error::input_hint(
                format!("another process is writing the run {}", self.root.display()),
                "wait until it has finished, or stop it (`pkill -TERM unforget` writes a checkpoint first); a new run needs another directory (`--out`)",
            )),
            Err(TryLockError::Error(_)) => Ok(self),
            Ok(()) => Ok(Self {
                _lock: Some(Arc::new(directory)),
                ..self
            }),
        }
    }

    /// Removes the run's files, and the directory if it is then empty. Files that cannot be removed stay.
    pub fn discard(self) {
        for name in FILES {
            let _ = self.remove(name);
        }
        let _ = fs::remove_dir(&self.root);
    }

    /// The processes that share the run.
    pub fn comm(&self) -> Comm {
        self.comm
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Path of the file `name`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The resolved config of the run.
    ///
    /// # Errors
    /// [`Error::Input`] if it cannot be read.
    pub fn config(&self) -> Result<Config> {
        Config::read(&self.file("config.toml"), &[])
    }

    /// The result; none until the run has finished.
    ///
    /// # Errors
    /// [`Error::Input`] if it cannot be read.
    pub fn result(&self) -> Result<Option<RunResult>> {
        if !self.file("result.json").exists() {
            return Ok(None);
        }
        self.read_json("result.json").map(Some)
    }

    /// All rows of `metrics.jsonl`.
    ///
    /// # Errors
    /// [`Error::Input`] naming the line that is broken, or the file that is missing.
    pub fn metrics(&self) -> Result<Vec<Metrics>> {
        self.read_rows("metrics.jsonl")
    }

    /// All rows of `facts.jsonl`.
    ///
    /// # Errors
    /// [`Error::Input`] naming the line that is broken, or the file that is missing.
    pub fn facts(&self) -> Result<Vec<FactResult>> {
        self.read_rows("facts.jsonl")
    }

    /// The few-shot prompts of the run's audit; none if it had no audit.
    ///
    /// # Errors
    /// [`Error::Input`] naming the line that is broken.
    pub fn prompts(&self) -> Result<Vec<FewShotPrompt>> {
        if self.file(PROMPTS).is_file() {
            self.read_rows(PROMPTS)
        } else {
            Ok(Vec::new())
        }
    }

    /// Writes the few-shot prompts of the run's audit.
    ///
    /// # Errors
    /// [`Error::Io`] if they cannot be written.
    pub fn write_prompts(&self, prompts: &[FewShotPrompt]) -> Result<()> {
        self.write_rows(PROMPTS, prompts)
    }

    /// Writes the file `name` atomically.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        if !self.comm.is_main() {
            return Ok(());
        }
        atomic_file::write(&self.file(name), bytes)
    }

    /// Writes `value` as JSON to `name`.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(value).expect("records serialize to JSON");
        text.push(b'\n');
        self.write(name, &text)
    }

    /// Reads the JSON file `name`.
    ///
    /// # Errors
    /// [`Error::Input`] naming the line that is broken, or the file that is missing.
    pub fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        reader::read_json(&self.file(name))
    }

    /// Writes `rows` as JSON lines to `name`.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn write_rows<T: Serialize>(
        &self,
        name: &str,
        rows: impl IntoIterator<Item = T>,
    ) -> Result<()> {
        let mut text = Vec::new();
        for row in rows {
            serde_json::to_writer(&mut text, &row).expect("records serialize to JSON");
            text.push(b'\n');
        }
        self.write(name, &text)
    }

    /// Reads the rows of the JSONL file `name`.
    ///
    /// # Errors
    /// [`Error::Input`] naming the line that is broken, or the file that is missing.
    pub fn read_rows<T: DeserializeOwned>(&self, name: &str) -> Result<Vec<T>> {
        reader::read_jsonl(&self.file(name))
    }

    /// Appends a row to `metrics.jsonl`, unbuffered.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn append_metrics(&self, row: &Metrics) -> Result<()> {
        if !self.comm.is_main() {
            return Ok(());
        }
        let path = self.file("metrics.jsonl");
        let mut text = serde_json::to_vec(row).expect("records serialize to JSON");
        text.push(b'\n');
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(&text))
            .map_err(Error::io("write", &path))?;
        let events = self.file(TENSORBOARD_DIR);
        if events.is_dir() {
            tensorboard::append(&events, row).map_err(Error::io("write", &events))?;
        }
        Ok(())
    }

    /// Writes all rows of `metrics.jsonl` for `TensorBoard` too, past and future ones.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn enable_tensorboard(&self) -> Result<()> {
        if !self.comm.is_main() {
            return Ok(());
        }
        let events = self.file(TENSORBOARD_DIR);
        let has_metrics = self.file("metrics.jsonl").is_file();
        let rows = if has_metrics {
            self.metrics()?
        } else {
            Vec::new()
        };
        tensorboard::write(&events, &rows).map_err(Error::io("write", &events))
    }

    /// Flushes `metrics.jsonl` to the disk.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn sync_metrics(&self) -> Result<()> {
        if !self.comm.is_main() {
            return Ok(());
        }
        let path = self.file("metrics.jsonl");
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .and_then(|file| file.sync_all())
            .map_err(Error::io("write", &path))
    }

    /// Length of `metrics.jsonl` in bytes.
    pub fn metrics_bytes(&self) -> u64 {
        fs::metadata(self.file("metrics.jsonl")).map_or(0, |m| m.len())
    }

    /// Truncates `metrics.jsonl` to its first `bytes`.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn truncate_metrics(&self, bytes: u64) -> Result<()> {
        if !self.comm.is_main() {
            return Ok(());
        }
        let path = self.file("metrics.jsonl");
        OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_len(bytes))
            .map_err(Error::io("write", &path))?;
        if self.file(TENSORBOARD_DIR).is_dir() {
            self.enable_tensorboard()?;
        }
        Ok(())
    }

    /// The error of a run that stops on request.
    pub fn interrupted(&self) -> Error {
        Error::Interrupted {
            hint: format!("continue with `unforget resume {}`", self.root.display()),
        }
    }

    /// Removes the file or directory `name`, if it exists.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be removed.
    pub fn remove(&self, name: &str) -> Result<()> {
        if !self.comm.is_main() {
            return Ok(());
        }
        let path = self.file(name);
        let removed = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        match removed {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", &path)(e)),
            _ => Ok(()),
        }
    }
}

/// Locks `directory`, and waits up to a second for it. A child process shares the locks of its parent from the moment it is forked
/// until it runs its own program, so a lock that was just released can look held for some milliseconds.
fn try_lock(directory: &File) -> Result<(), TryLockError> {
    const STEP: Duration = Duration::from_millis(20);
    for _ in 0..50 {
        match directory.try_lock() {
            Err(TryLockError::WouldBlock) => thread::sleep(STEP),
            other => return other,
        }
    }
    directory.try_lock()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::PerSplit;

    fn row(step: usize) -> Metrics {
        Metrics::Eval {
            epoch: 1,
            step,
            accuracy: PerSplit::default(),
            learned_paraphrased: None,
            drift: None,
            grad_norms: None,
            behaviour: None,
            validation_loss: None,
            seconds: 0.1,
        }
    }

    #[test]
    fn a_new_run_removes_the_files_of_an_earlier_one_and_nothing_else() {
        let place = tempfile::tempdir().expect("a temporary directory");
        fs::write(place.path().join("notes.txt"), "mine").expect("writable");
        fs::write(place.path().join("result.json"), "{}").expect("writable");
        RunDir::create(place.path(), Comm::single()).expect("writable");
        assert!(place.path().join("notes.txt").exists());
        assert!(!place.path().join("result.json").exists());
    }

    #[test]
    fn a_lock_that_is_released_within_a_second_is_waited_for() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let first = RunDir::create(place.path(), Comm::single()).expect("writable");
        let releases = thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            drop(first);
        });
        RunDir::create(place.path(), Comm::single()).expect("locked once the first is dropped");
        releases.join().expect("no panic");
    }

    #[test]
    fn an_unwritable_directory_is_an_input_error() {
        let place = tempfile::NamedTempFile::new().expect("a temporary file");
        let below_a_file = place.path().join("run");
        assert_eq!(
            RunDir::create(&below_a_file, Comm::single())
                .err()
                .map(|e| e.exit_code()),
            Some(2)
        );
    }

    #[test]
    fn metrics_are_appended_and_cut_back() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let dir = RunDir::create(&place.path().join("new/run"), Comm::single()).expect("writable");
        dir.append_metrics(&row(1)).expect("writable");
        let bytes = dir.metrics_bytes();
        dir.append_metrics(&row(2)).expect("writable");
        assert_eq!(dir.metrics().expect("readable"), [row(1), row(2)]);
        dir.truncate_metrics(bytes).expect("writable");
        assert_eq!(dir.metrics().expect("readable"), [row(1)]);
    }

    #[test]
    fn opening_a_directory_without_a_run_fails() {
        let place = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(
            RunDir::open(place.path()).err().map(|e| e.exit_code()),
            Some(2)
        );
    }
}

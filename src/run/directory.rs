//! Writing a run directory: every file whole or not at all, and metrics row by row.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Serialize, de::DeserializeOwned};

use super::{FactResult, Metrics, RunResult, tensorboard};
use crate::{Error, Result, atomic_file, config::Config, distributed};

/// What a run writes; a new run in its place removes these and nothing else.
const FILES: [&str; 13] = [
    "config.toml",
    "environment.json",
    "splits.jsonl",
    "decoys.jsonl",
    "metrics.jsonl",
    TENSORBOARD_DIR,
    "facts.jsonl",
    "result.json",
    "model",
    ADAPTER_DIR,
    "checkpoints",
    TEACHER_DIR,
    EWC_FILE,
];

/// The directory of a run's adapters, where they are what it trained.
pub const ADAPTER_DIR: &str = "adapter";

/// The file of what EWC leaves to later runs.
pub const EWC_FILE: &str = "ewc.safetensors";

/// The directory of what `TensorBoard` reads, where that is asked for.
const TENSORBOARD_DIR: &str = "tensorboard";

/// The directory of what a teacher keeps in files.
pub const TEACHER_DIR: &str = "teacher";

/// An open run directory.
#[derive(Clone, Debug)]
pub struct RunDir {
    root: PathBuf,
    /// The directory, open and locked; it is free again when the last clone is dropped, or the process gone.
    _lock: Option<Arc<File>>,
}

impl RunDir {
    /// Makes `root` a run directory, without the files that an earlier run left in it, and [locks](Self::locked) it.
    ///
    /// # Errors
    /// [`Error::Input`] when the place cannot be written, or another process is writing there.
    pub fn create(root: &Path) -> Result<Self> {
        let unwritable = |e: io::Error| {
            Error::input_hint(
                format!("cannot write {}: {e}", root.display()),
                "choose another place for the run",
            )
        };
        if !distributed::is_main() {
            distributed::barrier();
            return Ok(Self::at(root));
        }
        fs::create_dir_all(root).map_err(unwritable)?;
        let dir = Self::at(root).lock()?;
        tempfile::tempfile_in(root).map_err(unwritable)?;
        for name in FILES {
            dir.remove(name)?;
        }
        distributed::barrier();
        Ok(dir)
    }

    /// Opens a run that was begun.
    ///
    /// # Errors
    /// [`Error::Input`] when there is none.
    pub fn open(root: &Path) -> Result<Self> {
        if root.join("config.toml").is_file() {
            Ok(Self::at(root))
        } else {
            Err(Error::input_hint(
                format!(
                    "{} is not a run directory: it has no config.toml",
                    root.display()
                ),
                "name a directory that `unforget tune` or `unforget demo` wrote",
            ))
        }
    }

    fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            _lock: None,
        }
    }

    /// Keeps every other process that would write this run out of it, for as long as the value or a clone of it lives. A
    /// process that died keeps nobody out. Where the system has no locks on directories, nothing is locked.
    ///
    /// # Errors
    /// [`Error::Input`] when another process writes it.
    pub fn lock(self) -> Result<Self> {
        let Some(directory) = File::open(&self.root)
            .ok()
            .filter(|_| distributed::is_main())
        else {
            return Ok(self);
        };
        match directory.try_lock() {
            Err(TryLockError::WouldBlock) => Err(Error::input_hint(
                format!("another process is writing the run {}", self.root.display()),
                "wait until it is done, or choose another place (`--out`)",
            )),
            Err(TryLockError::Error(_)) => Ok(self),
            Ok(()) => Ok(Self {
                _lock: Some(Arc::new(directory)),
                ..self
            }),
        }
    }

    /// Removes what was written, and the directory if nothing else is in it; what cannot be removed is left.
    pub fn discard(self) {
        for name in FILES {
            let _ = self.remove(name);
        }
        let _ = fs::remove_dir(&self.root);
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Where the file called `name` is.
    pub fn file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The resolved config that the run was begun with.
    ///
    /// # Errors
    /// When it cannot be read any more.
    pub fn config(&self) -> Result<Config> {
        Config::read(&self.file("config.toml"), &[])
    }

    /// The result, once the run is done.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn result(&self) -> Result<Option<RunResult>> {
        if !self.file("result.json").exists() {
            return Ok(None);
        }
        self.read_json("result.json").map(Some)
    }

    /// Every step and evaluation so far.
    ///
    /// # Errors
    /// When a row cannot be read.
    pub fn metrics(&self) -> Result<Vec<Metrics>> {
        self.read_rows("metrics.jsonl")
    }

    /// What became of every fact.
    ///
    /// # Errors
    /// When there is no such file, or a row cannot be read.
    pub fn facts(&self) -> Result<Vec<FactResult>> {
        self.read_rows("facts.jsonl")
    }

    /// Writes `name` whole: under another name beside it first.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        atomic_file::write(&self.file(name), bytes)
    }

    /// Writes `value` as JSON to `name`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(value).expect("records have a form in JSON");
        text.push(b'\n');
        self.write(name, &text)
    }

    /// Reads `name`, which [`RunDir::write_json`] wrote.
    ///
    /// # Errors
    /// When it is missing or broken.
    pub fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let path = self.file(name);
        let text = fs::read(&path).map_err(Error::io("read", &path))?;
        serde_json::from_slice(&text).map_err(|e| Error::input(format!("{}: {e}", path.display())))
    }

    /// Writes `rows` as JSON lines to `name`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_rows<T: Serialize>(
        &self,
        name: &str,
        rows: impl IntoIterator<Item = T>,
    ) -> Result<()> {
        let mut text = Vec::new();
        for row in rows {
            serde_json::to_writer(&mut text, &row).expect("records have a form in JSON");
            text.push(b'\n');
        }
        self.write(name, &text)
    }

    /// Reads the JSON lines of `name`.
    ///
    /// # Errors
    /// [`Error::Input`] naming the line that is broken, or the file that is missing.
    pub fn read_rows<T: DeserializeOwned>(&self, name: &str) -> Result<Vec<T>> {
        let path = self.file(name);
        let file = File::open(&path).map_err(Error::io("read", &path))?;
        BufReader::new(file)
            .lines()
            .enumerate()
            .map(|(i, line)| {
                let line = line.map_err(Error::io("read", &path))?;
                serde_json::from_str(&line)
                    .map_err(|e| Error::input(format!("{} line {}: {e}", path.display(), i + 1)))
            })
            .collect()
    }

    /// Adds a row to `metrics.jsonl`; it is with the system when this returns.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn append_metrics(&self, row: &Metrics) -> Result<()> {
        if !distributed::is_main() {
            return Ok(());
        }
        let path = self.file("metrics.jsonl");
        let mut text = serde_json::to_vec(row).expect("records have a form in JSON");
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

    /// From here on every row of `metrics.jsonl` is told to `TensorBoard` too, in a directory of its own.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn enable_tensorboard(&self) -> Result<()> {
        if !distributed::is_main() {
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

    /// Brings `metrics.jsonl` to the disk.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn sync_metrics(&self) -> Result<()> {
        if !distributed::is_main() {
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

    /// Bytes of `metrics.jsonl`.
    pub fn metrics_bytes(&self) -> u64 {
        fs::metadata(self.file("metrics.jsonl")).map_or(0, |m| m.len())
    }

    /// Cuts `metrics.jsonl` to its first `bytes`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn truncate_metrics(&self, bytes: u64) -> Result<()> {
        if !distributed::is_main() {
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

    /// Why the run stops when the user has asked it to.
    pub fn interrupted(&self) -> Error {
        Error::Interrupted {
            hint: format!("go on with `unforget resume {}`", self.root.display()),
        }
    }

    /// Removes the file or directory `name`, if there is one.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, name: &str) -> Result<()> {
        if !distributed::is_main() {
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
            seconds: 0.1,
        }
    }

    #[test]
    fn a_new_run_removes_the_files_of_an_earlier_one_and_nothing_else() {
        let place = tempfile::tempdir().expect("a temporary directory");
        fs::write(place.path().join("notes.txt"), "mine").expect("writable");
        fs::write(place.path().join("result.json"), "{}").expect("writable");
        RunDir::create(place.path()).expect("writable");
        assert!(place.path().join("notes.txt").exists());
        assert!(!place.path().join("result.json").exists());
    }

    #[test]
    fn an_unwritable_directory_is_an_input_error() {
        let place = tempfile::NamedTempFile::new().expect("a temporary file");
        let below_a_file = place.path().join("run");
        assert_eq!(
            RunDir::create(&below_a_file).err().map(|e| e.exit_code()),
            Some(2)
        );
    }

    #[test]
    fn metrics_are_appended_and_cut_back() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let dir = RunDir::create(&place.path().join("new/run")).expect("writable");
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

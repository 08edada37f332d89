//! A checkpoint that several runs share. Runs that differ only in their remedies take the same steps until the snapshot: the first run
//! saves its checkpoint there, and the others start from it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::SPLITS;
use crate::{Error, Result, atomic_file, run::RunDir};

/// Copies to `place` all that other runs need to continue from the checkpoints of `run`, completely or not at all.
pub(super) fn save(run: &RunDir, place: &Path) -> Result<()> {
    let folder = place.parent().expect("a folder in a folder");
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    atomic_file::write_dir(place, |folder| copy(run.path(), folder))
}

/// Copies the files that [`save`] wrote to `place` into `run`. Returns whether there were any.
pub(super) fn load(place: &Path, run: &RunDir) -> Result<bool> {
    if !place.is_dir() {
        return Ok(false);
    }
    copy(place, run.path()).map_err(Error::io("read", place))?;
    Ok(true)
}

/// Copies facts, metrics and checkpoints from one folder to another.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    for name in [SPLITS, "metrics.jsonl"] {
        fs::copy(from.join(name), to.join(name))?;
    }
    for step in fs::read_dir(from.join("checkpoints"))? {
        let step: PathBuf = step?.path();
        if !step.is_dir() {
            continue;
        }
        let name = step.file_name().expect("an entry has a name");
        let copy = to.join("checkpoints").join(name);
        fs::create_dir_all(&copy)?;
        for file in fs::read_dir(&step)? {
            let file = file?;
            let copy = copy.join(file.file_name());
            // The files of a checkpoint never change, so a hard link is enough.
            fs::hard_link(file.path(), &copy)
                .or_else(|_| fs::copy(file.path(), &copy).map(drop))?;
        }
    }
    Ok(())
}

//! Files and folders that are written whole or not at all: under another name beside their own first, which they get once their
//! bytes are on the disk. The folder that they are in is brought to the disk after them, so that a name outlives a loss of power.
//! Of several processes that share the work the first one writes.

use std::{fs, io, io::Write, path::Path};

use indicatif::HumanBytes;
use tempfile::NamedTempFile;

use crate::{Error, Result, distributed};

/// What the name of a folder under way starts with. A process that was killed leaves it behind.
pub(crate) const UNFINISHED_PREFIX: &str = ".unfinished-";

/// Writes `bytes` as `path`.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if !distributed::is_main() {
        return Ok(());
    }
    let mut file = temp_file(path)?;
    file.write_all(bytes).map_err(Error::io("write", path))?;
    persist(file, path)
}

/// A new file beside `path`, readable as any other file (a temporary one is its owner's alone by default).
pub(crate) fn temp_file(path: &Path) -> Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder
        .prefix(".unforget-")
        .tempfile_in(parent_dir(path))
        .map_err(Error::io("write", path))
}

/// Puts a finished file in its place, once its bytes are on the disk.
pub(crate) fn persist(file: NamedTempFile, path: &Path) -> Result<()> {
    if !distributed::is_main() {
        return Ok(());
    }
    let failed = |e: io::Error| Error::io("write", path)(e);
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|e| failed(e.error))?;
    sync_dir(parent_dir(path)).map_err(failed)
}

/// Makes the folder `path`, of which there is none yet, with what `fill` puts into the folder that it is told.
pub(crate) fn write_dir(path: &Path, fill: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
    if !distributed::is_main() {
        return Ok(());
    }
    let parent = parent_dir(path);
    let make = || {
        let unfinished = tempfile::Builder::new()
            .prefix(UNFINISHED_PREFIX)
            .tempdir_in(parent)?;
        fill(unfinished.path())?;
        sync_dir_tree(unfinished.path())?;
        fs::rename(unfinished.path(), path)?;
        // It is called otherwise now: there is nothing to remove.
        let _ = unfinished.keep();
        sync_dir(parent)
    };
    make().map_err(Error::io("write", path))
}

/// Removes the folders that a killed process was making in `parent`; what cannot be removed is left.
pub(crate) fn remove_unfinished(parent: &Path) {
    if !distributed::is_main() {
        return;
    }
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    for entry in entries {
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with(UNFINISHED_PREFIX)
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Refuses to begin what needs more bytes than are free where `folder` is; where the system does not say, nothing is refused.
pub(crate) fn require_space(folder: &Path, bytes: u64, purpose: &str) -> Result<()> {
    match fs4::available_space(folder) {
        Ok(free) if free < bytes => Err(Error::Failed {
            message: format!(
                "{purpose} needs {} on the disk of {}, which has {} left",
                HumanBytes(bytes),
                folder.display(),
                HumanBytes(free)
            ),
            hint: Some(
                "make room, write to another disk, or train less (`train.trainable`, `train.lora`)"
                    .into(),
            ),
        }),
        _ => Ok(()),
    }
}

/// The folder that `path` is in.
fn parent_dir(path: &Path) -> &Path {
    let folder = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

/// Brings a folder's files and folders to the disk, then itself.
fn sync_dir_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            sync_dir_tree(&path)?;
        } else {
            fs::File::open(&path)?.sync_all()?;
        }
    }
    sync_dir(folder)
}

/// Brings the names in a folder to the disk, where the system has a way to.
fn sync_dir(folder: &Path) -> io::Result<()> {
    if cfg!(unix) {
        fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_written_atomically() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let path = place.path().join("step");
        let half = |folder: &Path| {
            fs::write(folder.join("a"), "a")?;
            Err(io::Error::other("the disk is full"))
        };
        let failed = write_dir(&path, half).expect_err("it failed");
        assert_eq!(
            failed.to_string(),
            format!("cannot write {}", path.display())
        );
        assert_eq!(fs::read_dir(place.path()).expect("readable").count(), 0);

        write_dir(&path, |folder| fs::write(folder.join("a"), "a")).expect("writable");
        assert_eq!(fs::read(path.join("a")).expect("written"), b"a");
        fs::create_dir(place.path().join(".unfinished-1")).expect("writable");
        remove_unfinished(place.path());
        assert_eq!(fs::read_dir(place.path()).expect("readable").count(), 1);
    }

    #[test]
    fn too_little_disk_space_is_an_error() {
        let here = Path::new(".");
        assert!(require_space(here, 1, "a checkpoint").is_ok());
        let refused = require_space(here, 1 << 60, "a checkpoint").expect_err("too large");
        let message = refused.to_string();
        assert!(
            message.starts_with("a checkpoint needs 1.00 EiB on the disk of ., which has "),
            "{message}"
        );
        assert_eq!(refused.exit_code(), 1);
    }
}

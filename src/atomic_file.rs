//! Atomic writes of files and directories: they are written under a temporary name, flushed to the disk, and renamed. The parent
//! directory is flushed afterwards, so that the name survives a power loss.

use std::{fs, io, io::Write, path::Path};

use tempfile::NamedTempFile;

use crate::{Error, Result, format};

/// Prefix of an unfinished directory. A killed process leaves it behind.
pub(crate) const UNFINISHED_PREFIX: &str = ".unfinished-";

/// Writes `bytes` to the file `path`.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = temp_file(path)?;
    file.write_all(bytes).map_err(Error::io("write", path))?;
    persist(file, path)
}

/// A temporary file in the directory of `path`, with the usual permissions (temporary files are private by default).
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

/// Flushes a temporary file to the disk and renames it to `path`.
pub(crate) fn persist(file: NamedTempFile, path: &Path) -> Result<()> {
    let failed = |e: io::Error| Error::io("write", path)(e);
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|e| failed(e.error))?;
    sync_dir(parent_dir(path)).map_err(failed)
}

/// Creates the directory `path`, which must not exist. `fill` writes its files into the temporary directory it is given.
pub(crate) fn write_dir(path: &Path, fill: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
    let parent = parent_dir(path);
    let make = || {
        let unfinished = tempfile::Builder::new()
            .prefix(UNFINISHED_PREFIX)
            .tempdir_in(parent)?;
        fill(unfinished.path())?;
        sync_dir_tree(unfinished.path())?;
        fs::rename(unfinished.path(), path)?;
        // It has been renamed: there is nothing to remove.
        let _ = unfinished.keep();
        sync_dir(parent)
    };
    make().map_err(Error::io("write", path))
}

/// Removes the unfinished directories of a killed process from `parent`. Directories that cannot be removed stay.
pub(crate) fn remove_unfinished(parent: &Path) {
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

/// Returns an error if the disk of `folder` has less than `bytes` free. Without an answer from the system it succeeds.
pub(crate) fn require_space(folder: &Path, bytes: u64, purpose: &str) -> Result<()> {
    match fs4::available_space(folder) {
        Ok(free) if free < bytes => Err(Error::Failed {
            message: format!(
                "{purpose} needs {} on the disk of {}, which has {} free",
                format::memory(bytes),
                folder.display(),
                format::memory(free)
            ),
            hint: Some(
                "free some space, write to another disk, or train fewer parameters (`train.trainable`, `train.lora`)"
                    .into(),
            ),
        }),
        _ => Ok(()),
    }
}

/// The parent directory of `path`.
fn parent_dir(path: &Path) -> &Path {
    let folder = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

/// Flushes the files and directories below `folder` to the disk, then `folder` itself.
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

/// Flushes the names in a directory to the disk, on systems that support it.
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
            message.starts_with("a checkpoint needs 1152921504.61 GB on the disk of ., which has "),
            "{message}"
        );
        assert_eq!(refused.exit_code(), 1);
    }
}

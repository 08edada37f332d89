//! Run directories -> one self-contained page.
//!
//! The page is told from recorded runs alone: it can be made again, on another machine, from the run directories. It loads nothing (its
//! content security policy names the checksums of its one style and one script) and what a fact or a model says reaches it only as text.

pub mod chart;
mod figures;
mod method;
mod page;
mod record;
mod settings;

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use crate::{Error, Result};

pub use page::{panels, render};
pub use record::{Evaluation, RecordedRun, read_runs};

/// Reads `runs` and writes their page to `out`, whole or not at all.
///
/// # Errors
/// [`Error::Input`] naming what is missing or broken in a run directory; [`Error::Io`] where `out` cannot be written.
pub fn write(runs: &[PathBuf], out: &Path) -> Result<()> {
    let html = render(&read_runs(runs)?)?;
    let folder = match out.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    // As readable as any new file, not private as temporary files are.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder
        .tempfile_in(folder)
        .map_err(Error::io("write", out))?;
    file.write_all(html.as_bytes())
        .map_err(Error::io("write", out))?;
    file.persist(out)
        .map_err(|e| Error::io("write", out)(e.error))?;
    Ok(())
}

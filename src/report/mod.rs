//! Run directories -> one self-contained page.
//!
//! The page is told from recorded runs alone: it can be made again, on another machine, from the run directories. It loads nothing (its
//! content security policy names the checksums of its one style and one script) and what a fact or a model says reaches it only as text.

mod bundle;
pub mod chart;
mod page;
mod plots;
mod record;
mod run_labels;
mod settings;

use std::path::{Path, PathBuf};

use crate::{Result, atomic_file};

pub use page::render;
pub use plots::accuracy;
pub use record::{RecordedRun, read_runs};
pub(crate) use run_labels::capitalised;

/// Reads `runs` and writes their page to `out`, and with what it is made of to the archive `bundle` where one is wanted, each whole
/// or not at all.
///
/// # Errors
/// [`crate::Error::Input`] naming what is missing or broken in a run directory; [`crate::Error::Io`] where a file cannot be written.
pub fn write(runs: &[PathBuf], out: &Path, bundle: Option<&Path>) -> Result<()> {
    let runs = read_runs(runs)?;
    let html = render(&runs)?;
    if let Some(bundle) = bundle {
        bundle::write(&html, &runs, bundle)?;
    }
    atomic_file::write(out, html.as_bytes())
}

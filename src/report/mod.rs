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

use std::path::{Path, PathBuf};

use crate::{Result, whole};

pub use page::{panels, render};
pub use record::{Evaluation, RecordedRun, read_runs};

/// Reads `runs` and writes their page to `out`, whole or not at all.
///
/// # Errors
/// [`crate::Error::Input`] naming what is missing or broken in a run directory; [`crate::Error::Io`] where `out` cannot be written.
pub fn write(runs: &[PathBuf], out: &Path) -> Result<()> {
    let html = render(&read_runs(runs)?)?;
    whole::write(out, html.as_bytes())
}

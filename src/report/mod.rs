//! A self-contained HTML page about run directories.
//!
//! The page depends on the run directories alone and can be rebuilt from them on another machine. It loads no resources: its content
//! security policy allows only the hashes of its style and script. Text from facts and models is always escaped.

mod bundle;
pub mod chart;
mod page;
mod plots;
mod run_labels;
mod settings;
mod text_plot;

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{Error, Result, atomic_file, run::RecordedRun};

pub use page::render;
pub use plots::accuracy;
pub use text_plot::{TextCurve, trade_as_text};

/// Reads `runs` and writes their page to `out`, and the page with its data to the zip archive `bundle` if given, each atomically.
///
/// # Errors
/// [`crate::Error::Input`] naming the file that is missing or broken in a run directory; [`crate::Error::Io`] if a file cannot be
/// written.
pub fn write(runs: &[PathBuf], out: &Path, bundle: Option<&Path>) -> Result<()> {
    let runs = RecordedRun::read_all(runs)?;
    let html = render(&runs)?;
    for dir in [Some(out), bundle]
        .into_iter()
        .flatten()
        .filter_map(Path::parent)
    {
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    }
    if let Some(bundle) = bundle {
        bundle::write(&html, &runs, bundle)?;
    }
    atomic_file::write(out, html.as_bytes())
}

//! `unforget report`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use unforget::{Result, report};

use super::{context::Context, output};

/// Write a self-contained HTML page about recorded runs
#[derive(Debug, Args)]
#[command(
    after_help = "The page is made from the run directories alone, needs no network and opens from disk.\n\n\
    Examples:\n  unforget report runs/sft runs/self-distill --out report.html\n  \
    unforget report runs/sft --bundle report.zip"
)]
pub struct ReportArgs {
    /// Run directories, in the order of the page
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// The page to write
    #[arg(long, value_name = "FILE.html", default_value = "report.html")]
    out: PathBuf,
    /// Also write an archive of the page, its data as CSV, and the runs' configs and results
    #[arg(long, value_name = "FILE.zip")]
    bundle: Option<PathBuf>,
}

impl ReportArgs {
    pub fn run(self, context: &Context) -> Result<()> {
        output::check_writable_file(&self.out)?;
        if let Some(bundle) = &self.bundle {
            output::check_writable_file(bundle)?;
        }
        report::write(&self.runs, &self.out, self.bundle.as_deref())?;
        if context.json {
            output::json(&json!({ "out": self.out, "bundle": self.bundle }))
        } else {
            output::line(&self.out.display().to_string())
        }
    }
}

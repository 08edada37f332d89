//! `unforget resume`.

use std::path::PathBuf;

use clap::Args;
use unforget::{
    Result,
    config::Device,
    interrupt,
    train::{self, Options},
};

use super::{context::Context, tune};

/// Continue an interrupted run from its newest complete checkpoint
#[derive(Debug, Args)]
#[command(
    after_help = "The result is bitwise identical to that of an uninterrupted run. A run without a checkpoint starts over; a finished run is not \
    changed.\n\n\
    Examples:\n  unforget resume runs/p17\n  unforget resume runs/p17 --watch"
)]
pub struct ResumeArgs {
    /// The run directory
    run: PathBuf,
    /// Keep the checkpoints when the run is done
    #[arg(long)]
    keep_checkpoints: bool,
    /// Serve a live page about the run, to this machine only
    #[arg(long)]
    watch: bool,
}

impl ResumeArgs {
    pub fn run(self, context: &Context) -> Result<()> {
        let options = Options {
            keep_checkpoints: self.keep_checkpoints,
            // `auto` is the run's own device.
            device: context.device.filter(|device| *device != Device::Auto),
            comm: context.comm,
            ..Options::default()
        };
        interrupt::set_run_dirs(vec![self.run.clone()]);
        let _page = tune::serve_dashboard(self.watch, &self.run, context)?;
        let result = train::resume(&self.run, options, &context.progress)?;
        context.progress.ring_bell();
        tune::print_result(&result, &self.run, context)
    }
}

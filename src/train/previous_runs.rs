//! The runs that `method.ewc.previous_runs` names.

use std::path::Path;

use crate::{
    Error, Result,
    config::EwcConfig,
    remedy::continual_ewc::PreviousRun,
    run::{EWC_FILE, RunDir},
};

/// The files of the previous runs.
pub(super) fn previous_runs(ewc: &EwcConfig) -> Vec<PreviousRun> {
    let files = |run: &Path| PreviousRun {
        importance: run.join(EWC_FILE),
        model: run.join("model"),
    };
    ewc.previous_runs.iter().map(|run| files(run)).collect()
}

/// Checks that the previous runs are finished, and that a run into `out` replaces none of them.
///
/// # Errors
/// [`Error::Input`] otherwise.
pub(super) fn check(ewc: &EwcConfig, out: &Path) -> Result<()> {
    for run in &ewc.previous_runs {
        let dir = RunDir::open(run)?;
        if out
            .canonicalize()
            .is_ok_and(|out| run.canonicalize().is_ok_and(|run| run == out))
        {
            return Err(Error::input_hint(
                format!(
                    "`method.ewc.previous_runs`: this run would replace {}",
                    run.display()
                ),
                "choose another `out`",
            ));
        }
        if dir.result()?.is_none() {
            return Err(Error::input_hint(
                format!(
                    "`method.ewc.previous_runs`: {} is not finished",
                    run.display()
                ),
                format!("finish it with `unforget resume {}`", run.display()),
            ));
        }
    }
    Ok(())
}

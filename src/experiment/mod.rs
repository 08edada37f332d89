//! Experiments: the same facts trained with several configs, compared by what each learned and forgot.
//!
//! An experiment is a file ([`Experiment`]) with models, relations, seeds, sizes and arms. An arm is a set of config keys. Every arm
//! writes one [`Record`] per model, relation and seed; recorded runs are skipped, also if another experiment of the same setup recorded
//! them.

mod claim;
mod cost;
mod estimate;
mod evaluate;
mod figure;
mod file;
mod keys;
mod page;
mod record;
mod runner;
mod source;
mod table;

use std::{fs, path::Path};

pub use claim::{Claim, ClaimVerdict};
pub use cost::{Cost, estimate};
pub use evaluate::{ClaimResult, evaluate_claims};
pub use file::{Arm, Experiment, ExperimentScale, FigureKind, ONLY_KNOWN, Synthetic};
pub use page::{Section, write_page};
pub use record::{AuditRecord, ExperimentResults, HeldOutFacts, Record};
pub use runner::RunOptions;
pub use source::ENTITY_QUESTIONS;
pub use table::{ArmSummary, EqualLearningMean, ForgottenFacts, summarize, summary_markdown};

use self::runner::Runner;
use crate::{Error, Result, atomic_file, distributed::Comm, model::Model, progress::Progress};

/// Runs what `out` does not record yet of `experiment` at `scale`. Returns all records. With several processes, each runs a shard of the arms, and the main one returns all records.
///
/// # Errors
/// As [`crate::train::tune_on`]; [`Error::Input`] if the facts of the relations are not available.
pub fn run(
    experiment: &Experiment,
    scale: &ExperimentScale,
    options: RunOptions<'_>,
    out: &Path,
    comm: Comm,
    progress: &Progress,
) -> Result<ExperimentResults> {
    let mut results = ExperimentResults::default();
    let relations = match options.only {
        Some([]) => scale.relations.iter().collect(),
        _ => source::available_relations(scale, progress)?,
    };
    for name in experiment.models(scale) {
        let model = &Model::load(name)?;
        for relation in &relations {
            let mut runner = Runner {
                experiment,
                scale,
                options,
                out,
                comm,
                progress,
                relation,
                model,
                data: None,
            };
            match experiment.figure {
                FigureKind::Labels => results.audits.extend(runner.audit()?),
                FigureKind::Keys => results.keys = Some(runner.keys()?),
                _ => runner.run_all_ranks(&mut results.runs)?,
            }
        }
    }
    Ok(results)
}

/// Removes the shared checkpoints (gigabytes) of the runs recorded in `out`, which are only needed until all runs are done.
///
/// # Errors
/// [`Error::Io`] if they cannot be removed.
pub fn remove_shared_prefixes(out: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(out.join(runner::RUNS_DIR)) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with(runner::SHARED_PREFIX_DIR)
        {
            runner::remove(&entry.path())?;
        }
    }
    // Fails if an interrupted run is left there, which is kept.
    let _ = fs::remove_dir(out.join(runner::RUNS_DIR));
    Ok(())
}

/// Writes the table, the claims and the figure of an experiment, and returns the tables in Markdown.
///
/// # Errors
/// [`Error::Io`] if they cannot be written.
pub fn write_results(
    experiment: &Experiment,
    results: &ExperimentResults,
    out: &Path,
) -> Result<String> {
    let mut table = match experiment.figure {
        FigureKind::Labels => table::labels_markdown(&results.audits),
        FigureKind::Keys => results.keys.clone().unwrap_or_default(),
        _ => summary_markdown(&summarize(&results.runs)),
    };
    if !experiment.claims.is_empty() {
        table += "\n";
        table += &evaluate::markdown(&evaluate_claims(&experiment.claims, results));
    }
    fs::create_dir_all(out).map_err(Error::io("create", out))?;
    atomic_file::write(&out.join("table.md"), table.as_bytes())?;
    if let Some(figure) = figure::draw(experiment, results) {
        atomic_file::write(&out.join(figure::FIGURE_FILE), figure.as_bytes())?;
    }
    Ok(table)
}

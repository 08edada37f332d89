//! Experiments: the same facts trained in several ways, and what each way learned and forgot.
//!
//! An experiment is a file ([`Experiment`]): models, relations, seeds, sizes and arms, an arm being what sets its config apart. Every
//! arm of every model, relation and seed leaves one [`Record`]; what is recorded already is not run again, be it by another
//! experiment of the same setup.

mod claim;
mod cost;
mod figure;
mod file;
mod keys;
mod page;
mod record;
mod runner;
mod source;
mod table;

use std::{fs, path::Path};

pub use claim::{Claim, ClaimResult, ClaimVerdict, evaluate_claims};
pub use cost::{Cost, foretold};
pub use file::{Arm, Experiment, ExperimentScale, FigureKind, Synthetic};
pub use page::{Section, write_page};
pub use record::{AuditRecord, HeldOutFacts, Record};
pub use table::{ArmSummary, summarize, summary_markdown};

use self::runner::Runner;
use crate::{Error, Result, atomic_file, model::Model, progress::Progress};

/// The environment variable that names the folder with the files of `EntityQuestions` (`P17.train.json` ...).
pub const ENTITY_QUESTIONS: &str = "UNFORGET_ENTITY_QUESTIONS";

/// The arm to which the others are compared.
pub const ONLY_KNOWN: &str = "only-known";

/// What is recorded of an experiment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExperimentResults {
    /// A record a run.
    pub runs: Vec<Record>,
    /// A record a relation, where facts are audited and nothing is trained.
    pub audits: Vec<AuditRecord>,
    /// Examples of made-up names in Markdown, where these are what is shown.
    pub keys: Option<String>,
}

/// Runs what of `experiment` at `scale` is not recorded in `out` yet, all arms or those in `only` (of an empty list none), and
/// returns all that is recorded.
///
/// # Errors
/// As [`crate::train::tune_on`]; [`Error::Input`] when the facts of a relation are not at hand.
pub fn run(
    experiment: &Experiment,
    scale: &ExperimentScale,
    only: Option<&[String]>,
    out: &Path,
    progress: &Progress,
) -> Result<ExperimentResults> {
    let mut results = ExperimentResults::default();
    let relations = match only {
        Some([]) => scale.relations.iter().collect(),
        _ => source::available_relations(scale, progress)?,
    };
    for name in experiment.models(scale) {
        let model = &Model::load(name)?;
        for relation in &relations {
            let mut runner = Runner {
                experiment,
                scale,
                only,
                out,
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

/// Removes what runs recorded in `out` shared of their beginnings: gigabytes, and of use only until all of them are done.
///
/// # Errors
/// [`Error::Io`] when it cannot be removed.
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
    // Empty, unless a run was stopped.
    let _ = fs::remove_dir(out.join(runner::RUNS_DIR));
    Ok(())
}

/// The name of a record's file: `P17-0-sft.json`, after the model's name where there are several.
fn record_file_name(
    experiment: &Experiment,
    scale: &ExperimentScale,
    model: &str,
    relation: &str,
    name: &str,
) -> String {
    let has_several_models = experiment.models(scale).len() > 1;
    let model = Path::new(model).file_name().filter(|_| has_several_models);
    let model = model.map(|model| format!("{}-", model.to_string_lossy()));
    format!("{}{relation}-{name}.json", model.unwrap_or_default())
}

/// Writes the table of what is `recorded`, what it says of the claims, and its figure, and returns the tables.
///
/// # Errors
/// [`Error::Io`] when they cannot be written.
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
        table += &claim::markdown(&evaluate_claims(&experiment.claims, results));
    }
    fs::create_dir_all(out).map_err(Error::io("create", out))?;
    atomic_file::write(&out.join("table.md"), table.as_bytes())?;
    if let Some(figure) = figure::draw(experiment, results) {
        atomic_file::write(&out.join(FIGURE_FILE), figure.as_bytes())?;
    }
    Ok(table)
}

/// The file of an experiment's figure.
const FIGURE_FILE: &str = "figure.svg";

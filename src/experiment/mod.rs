//! Experiments: the same facts trained in several ways, and what each way learned and forgot.
//!
//! An experiment is a file ([`Experiment`]): models, relations, seeds, sizes and arms, an arm being what sets its config apart. Every
//! arm of every model, relation and seed leaves one [`Record`]; what is recorded already is not run again, be it by another
//! experiment of the same setup.

mod cell;
mod claim;
mod cost;
mod figure;
mod file;
mod keys;
mod page;
mod record;
mod source;
mod table;

use std::{fs, path::Path};

pub use claim::{Claim, Judged, Verdict, judged};
pub use cost::{Cost, foretold};
pub use file::{Arm, Experiment, Figure, Scale, Synthetic};
pub use page::{Section, write_page};
pub use record::{AuditRecord, HeldOut, Record};
pub use table::{Row, markdown, rows};

use self::cell::Cell;
use crate::{Error, Result, model::Model, progress::Progress, whole};

/// The environment variable that names the folder with the files of `EntityQuestions` (`P17.train.json` ...).
pub const ENTITY_QUESTIONS: &str = "UNFORGET_ENTITY_QUESTIONS";

/// The arm to which the others are compared.
pub const ONLY_KNOWN: &str = "only-known";

/// What is recorded of an experiment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recorded {
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
    scale: &Scale,
    only: Option<&[String]>,
    out: &Path,
    progress: &Progress,
) -> Result<Recorded> {
    let mut recorded = Recorded::default();
    let relations = match only {
        Some([]) => scale.relations.iter().collect(),
        _ => source::at_hand(scale, progress)?,
    };
    for name in experiment.models(scale) {
        let model = &Model::load(name)?;
        for relation in &relations {
            let mut cell = Cell {
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
                Figure::Labels => recorded.audits.extend(cell.audit()?),
                Figure::Keys => recorded.keys = Some(cell.keys()?),
                _ => cell.runs(&mut recorded.runs)?,
            }
        }
    }
    Ok(recorded)
}

/// Removes what runs recorded in `out` shared of their beginnings: gigabytes, and of use only until all of them are done.
///
/// # Errors
/// [`Error::Io`] when it cannot be removed.
pub fn forget_warm(out: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(out.join(cell::RUNS)) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(cell::WARM) {
            cell::remove(&entry.path())?;
        }
    }
    // Empty, unless a run was stopped.
    let _ = fs::remove_dir(out.join(cell::RUNS));
    Ok(())
}

/// The name of a record's file: `P17-0-sft.json`, after the model's name where there are several.
fn place(
    experiment: &Experiment,
    scale: &Scale,
    model: &str,
    relation: &str,
    name: &str,
) -> String {
    let several = experiment.models(scale).len() > 1;
    let model = Path::new(model).file_name().filter(|_| several);
    let model = model.map(|model| format!("{}-", model.to_string_lossy()));
    format!("{}{relation}-{name}.json", model.unwrap_or_default())
}

/// Writes the table of what is `recorded`, what it says of the claims, and its figure, and returns the tables.
///
/// # Errors
/// [`Error::Io`] when they cannot be written.
pub fn publish(experiment: &Experiment, recorded: &Recorded, out: &Path) -> Result<String> {
    let mut table = match experiment.figure {
        Figure::Labels => table::of_labels(&recorded.audits),
        Figure::Keys => recorded.keys.clone().unwrap_or_default(),
        _ => markdown(&rows(&recorded.runs)),
    };
    if !experiment.claims.is_empty() {
        table += "\n";
        table += &claim::markdown(&judged(&experiment.claims, recorded));
    }
    fs::create_dir_all(out).map_err(Error::io("create", out))?;
    whole::write(&out.join("table.md"), table.as_bytes())?;
    if let Some(figure) = figure::figure(experiment, recorded) {
        whole::write(&out.join(FIGURE), figure.as_bytes())?;
    }
    Ok(table)
}

/// The file of an experiment's figure.
const FIGURE: &str = "figure.svg";

//! `unforget reproduce`.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use clap::Args;
use serde_json::json;
use unforget::{
    Error, Result,
    experiment::{self, Cost, Experiment, ExperimentScale, Section},
};

use super::{Context, output};

/// The name that stands for every figure and table of the paper.
const ALL: &str = "all";

/// Run an experiment, or what of it is not recorded yet, and print its table
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  unforget reproduce fig3\n  \
    unforget reproduce all --page docs/reproduction.md\n  \
    unforget reproduce fig2 --scale paper --dry-run\n  \
    unforget reproduce frontier --only sft --only decoys\n  \
    unforget reproduce frontier --recorded\n\n\
    NAME is one of the paper's figures and tables (fig2 to fig11, table1 to table4, l2, lr, topk), all of them (all), frontier,\n\
    frontier-validation, or a file like those in experiments/. Every run leaves a record below --out; a stopped one goes on when the\n\
    command is given again, and what is recorded is not run twice. Table and figure lie in a folder of their own (table.md, figure.svg).\n\
    With --json: {\"records\": [...], \"audits\": [...], \"claims\": [{\"says\", \"paper\", \"here\", \"interval\", \"verdict\"}]}, under `all` a list of these")]
pub struct ReproduceArgs {
    /// The experiment
    name: String,
    /// How much of it is done
    #[arg(long, value_name = "smoke|small|paper", default_value = "small")]
    scale: String,
    /// The folder of the records
    #[arg(long, value_name = "DIR", default_value = "experiments/results")]
    out: PathBuf,
    /// Run these arms alone; the table has all that are recorded
    #[arg(long, value_name = "ARM")]
    only: Vec<String>,
    /// Run nothing: the table of what is recorded
    #[arg(long, conflicts_with = "only")]
    recorded: bool,
    /// Run nothing: say what memory, disk and time it would take
    #[arg(long, conflicts_with_all = ["only", "recorded"])]
    dry_run: bool,
    /// Write a page of all that was reproduced
    #[arg(long, value_name = "FILE.md", conflicts_with = "dry_run")]
    page: Option<PathBuf>,
}

impl ReproduceArgs {
    pub fn run(self, context: &Context) -> Result<()> {
        let experiments = self.experiments(context)?;
        for experiment in &experiments {
            experiment.check_arms(&self.only)?;
        }
        if self.dry_run {
            return self.print_cost(&experiments);
        }
        let mut done = Vec::new();
        for experiment in experiments {
            done.push(self.reproduce(experiment, context)?);
        }
        for one in &done {
            experiment::remove_shared_prefixes(&self.records_dir(&one.experiment))?;
        }
        if let Some(page) = &self.page {
            experiment::write_page(&done, page)?;
        }
        match &done[..] {
            [one] if context.json => output::json(&to_json(one)),
            [one] => output::line(one.tables.trim_end()),
            _ if context.json => output::json(&done.iter().map(to_json).collect::<Vec<_>>()),
            _ => done.iter().try_for_each(|one| {
                let Experiment { name, title, .. } = &one.experiment;
                output::line(&format!("{name}: {title}\n\n{}", one.tables))
            }),
        }
    }

    /// What each experiment would take beyond those before it, and what all of them.
    fn print_cost(&self, experiments: &[Experiment]) -> Result<()> {
        let (mut counted, mut total) = (BTreeSet::new(), Cost::default());
        for experiment in experiments {
            let scale = experiment.scale(&self.scale)?;
            let records = self.records_dir(experiment);
            let cost = experiment::foretold(experiment, scale, &records, &mut counted)?;
            output::line(&format!("{}: {cost}", experiment.name))?;
            total += cost;
        }
        if experiments.len() > 1 {
            output::line(&format!("all: {total}"))?;
        }
        Ok(())
    }

    /// The experiment that is named; of all, those that have this scale.
    fn experiments(&self, context: &Context) -> Result<Vec<Experiment>> {
        if self.name != ALL {
            let experiment = Experiment::find(&self.name)?;
            experiment.scale(&self.scale)?;
            return Ok(vec![experiment]);
        }
        if !["smoke", "small", "paper"].contains(&&self.scale[..]) {
            return Err(Error::input(format!(
                "there is no scale `{}`: take smoke, small or paper",
                self.scale
            )));
        }
        let all: Result<Vec<_>> = Experiment::paper_experiments()
            .map(Experiment::find)
            .collect();
        let (with, without): (Vec<_>, Vec<_>) = all?
            .into_iter()
            .partition(|e| e.scale.contains_key(&self.scale));
        for experiment in without {
            let name = experiment.name;
            context.progress.note(format_args!(
                "{name} has no scale `{}`: left out",
                self.scale
            ));
        }
        Ok(with)
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.out.join(name).join(&self.scale)
    }

    fn records_dir(&self, experiment: &Experiment) -> PathBuf {
        self.folder(experiment.records.as_ref().unwrap_or(&experiment.name))
    }

    fn reproduce(&self, experiment: Experiment, context: &Context) -> Result<Section> {
        let scale = experiment.scale(&self.scale)?;
        let records_dir = self.records_dir(&experiment);
        let only = (self.recorded || !self.only.is_empty()).then_some(&self.only[..]);
        if only.is_none() {
            self.check_cost(&experiment, scale, &records_dir, context)?;
        }
        let recorded = experiment::run(&experiment, scale, only, &records_dir, &context.progress)?;
        let folder = self.folder(&experiment.name);
        Ok(Section {
            tables: experiment::write_results(&experiment, &recorded, &folder)?,
            results: recorded,
            folder,
            experiment,
        })
    }

    /// Says what is about to be run; what cannot be is refused.
    fn check_cost(
        &self,
        experiment: &Experiment,
        scale: &ExperimentScale,
        records: &Path,
        context: &Context,
    ) -> Result<()> {
        let cost = experiment::foretold(experiment, scale, records, &mut BTreeSet::new())?;
        if cost.runs == 0 {
            return Ok(());
        }
        if !cost.fits() {
            return Err(Error::input_hint(
                format!(
                    "{} at `{}` does not fit: {cost}",
                    experiment.name, self.scale
                ),
                "take a machine with more memory, or another --scale",
            ));
        }
        context
            .progress
            .note(format_args!("{}: {cost}", experiment.name));
        Ok(())
    }
}

/// An experiment as JSON.
fn to_json(done: &Section) -> serde_json::Value {
    json!({
        "name": done.experiment.name,
        "records": done.results.runs,
        "audits": done.results.audits,
        "claims": experiment::evaluate_claims(&done.experiment.claims, &done.results),
    })
}

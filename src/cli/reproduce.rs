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

use super::{context::Context, output};

/// The name of all figures and tables of the paper.
const ALL: &str = "all";

/// Run an experiment, skipping recorded runs, and print its table
#[derive(Debug, Args)]
#[command(
    after_help = "NAME is one of the paper's figures and tables (fig2 to fig11, table1 to table4, l2, lr, topk), all of them (all), frontier, \
    frontier-even, frontier-validation, or a file like those in experiments/. Every run writes a record below --out. Run the command again to resume \
    an interrupted run; recorded runs are skipped. The table and figure are written to a folder of their own (table.md, figure.svg).\n\
    With --json: {\"records\": [...], \"audits\": [...], \"claims\": [{\"statement\", \"paper\", \"value\", \"interval\", \"verdict\"}]}, for `all` a list of these\n\n\
    Examples:\n  unforget reproduce fig3\n  \
    unforget reproduce all --page docs/reproduction.md\n  \
    unforget reproduce fig2 --scale paper --dry-run\n  \
    unforget reproduce frontier --only sft --only decoys\n  \
    unforget reproduce frontier --recorded\n  \
    unforget reproduce fig3 --model gemma3-270m"
)]
pub struct ReproduceArgs {
    /// The experiment
    name: String,
    /// Size of the experiment
    #[arg(long, value_name = "smoke|small|paper", default_value = "small")]
    scale: String,
    /// Another model than the experiment's own; its records, tables and figures get folders of its name
    #[arg(long)]
    model: Option<String>,
    /// Folder of the records
    #[arg(long, value_name = "DIR", default_value = "experiments/results")]
    out: PathBuf,
    /// Run only this arm (repeatable); the table shows all recorded arms
    #[arg(long, value_name = "ARM")]
    only: Vec<String>,
    /// Record no seconds: for a machine that does other work beside the runs
    #[arg(long, conflicts_with = "recorded")]
    untimed: bool,
    /// Run nothing; print the table of the recorded runs
    #[arg(long, conflicts_with = "only")]
    recorded: bool,
    /// Run nothing; print an estimate of memory, disk space and time
    #[arg(long, conflicts_with_all = ["only", "recorded"])]
    dry_run: bool,
    /// Write a page with all results
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
            done.extend(self.reproduce(experiment, context)?);
        }
        if !context.comm.is_main() {
            return Ok(());
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

    /// Prints the cost of each experiment in addition to those before it, and the total.
    fn print_cost(&self, experiments: &[Experiment]) -> Result<()> {
        let (mut counted, mut total) = (BTreeSet::new(), Cost::default());
        for experiment in experiments {
            let scale = experiment.scale(&self.scale)?;
            let records = self.records_dir(experiment);
            let cost = experiment::estimate(experiment, scale, &records, &mut counted)?;
            output::line(&format!("{}: {cost}", experiment.name))?;
            total += cost;
        }
        if experiments.len() > 1 {
            output::line(&format!("all: {total}"))?;
        }
        Ok(())
    }

    /// The named experiment; for `all`, those that have this scale.
    fn experiments(&self, context: &Context) -> Result<Vec<Experiment>> {
        let experiments = self.named_experiments(context)?.into_iter();
        Ok(match &self.model {
            Some(model) => experiments.map(|e| e.with_model(model)).collect(),
            None => experiments.collect(),
        })
    }

    fn named_experiments(&self, context: &Context) -> Result<Vec<Experiment>> {
        if self.name != ALL {
            let experiment = Experiment::find(&self.name)?;
            experiment.scale(&self.scale)?;
            return Ok(vec![experiment]);
        }
        if !["smoke", "small", "paper"].contains(&&self.scale[..]) {
            return Err(Error::input(format!(
                "unknown scale `{}`: use smoke, small or paper",
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
                "{name} has no scale `{}`: skipped",
                self.scale
            ));
        }
        Ok(with)
    }

    fn folder(&self, name: &str) -> PathBuf {
        let mut folder = self.out.join(name);
        if let Some(model) = &self.model {
            folder.push(Path::new(model).file_name().unwrap_or(model.as_ref()));
        }
        folder.join(&self.scale)
    }

    fn records_dir(&self, experiment: &Experiment) -> PathBuf {
        self.folder(experiment.records.as_ref().unwrap_or(&experiment.name))
    }

    /// Runs the experiment. With several processes, the main one writes and returns the results.
    fn reproduce(&self, experiment: Experiment, context: &Context) -> Result<Option<Section>> {
        let scale = experiment.scale(&self.scale)?;
        let records_dir = self.records_dir(&experiment);
        let only = (self.recorded || !self.only.is_empty()).then_some(&self.only[..]);
        if only.is_none() {
            self.check_cost(&experiment, scale, &records_dir, context)?;
        }
        let results = experiment::run(
            &experiment,
            scale,
            experiment::RunOptions {
                only,
                is_timed: !self.untimed,
            },
            &records_dir,
            context.comm,
            &context.progress,
        )?;
        if !context.comm.is_main() {
            return Ok(None);
        }
        let folder = self.folder(&experiment.name);
        Ok(Some(Section {
            tables: experiment::write_results(&experiment, &results, &folder)?,
            results,
            folder,
            experiment,
        }))
    }

    /// Reports the cost of the pending runs; refuses runs that do not fit into memory.
    fn check_cost(
        &self,
        experiment: &Experiment,
        scale: &ExperimentScale,
        records: &Path,
        context: &Context,
    ) -> Result<()> {
        let cost = experiment::estimate(experiment, scale, records, &mut BTreeSet::new())?;
        if cost.runs == 0 {
            return Ok(());
        }
        if !cost.fits() {
            return Err(Error::input_hint(
                format!(
                    "{} at `{}` does not fit: {cost}",
                    experiment.name, self.scale
                ),
                "use a machine with more memory, or another --scale",
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

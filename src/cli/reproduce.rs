//! `unforget reproduce`.

use std::path::PathBuf;

use clap::Args;
use unforget::{
    Result,
    experiment::{self, Experiment},
};

use super::{Context, output};

/// Run an experiment, or what of it is not recorded yet, and print its table
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  unforget reproduce frontier --scale smoke\n  \
    unforget reproduce frontier --only sft --only decoys\n  \
    unforget reproduce frontier --recorded\n\n\
    NAME is fig2, fig3, fig6, table1, table3, frontier, frontier-validation, or a file like those in experiments/. Every run leaves a record below --out; a stopped one goes on when the command\n\
    is given again, and what is recorded is not run twice. The table and its figure lie beside the records (table.md, figure.svg).\n\
    With --json: {\"records\": [...], \"claims\": [{\"says\", \"paper\", \"here\", \"interval\", \"verdict\"}]}"
)]
pub struct Reproduce {
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
}

impl Reproduce {
    pub fn run(self, context: &Context) -> Result<()> {
        let experiment = Experiment::find(&self.name)?;
        let scale = experiment.scale(&self.scale)?;
        experiment.check_arms(&self.only)?;
        let folder = |name: &str| self.out.join(name).join(&self.scale);
        let of_records = folder(experiment.records.as_ref().unwrap_or(&experiment.name));
        let out = folder(&experiment.name);
        let only = (self.recorded || !self.only.is_empty()).then_some(&self.only[..]);
        let records = experiment::run(&experiment, scale, only, &of_records, &context.progress)?;
        let table = experiment::publish(&experiment, &records, &out)?;
        if context.json {
            let claims = experiment::judged(&experiment.claims, &records);
            let told = serde_json::json!({ "records": records, "claims": claims });
            return output::json(&told);
        }
        output::line(table.trim_end())
    }
}

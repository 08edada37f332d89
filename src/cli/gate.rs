//! `unforget gate`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Args;
use unforget::{
    Error, Result,
    engine::Engine,
    gate::{Gate as Gated, check_rows},
    generate::Generator,
    measure::EvalSet,
    prompt::PromptTemplate,
    train,
};

use super::{
    context::{Context, finished_run, load_model},
    output,
};

/// Exit with code 3 if a model forgot more of a run's facts than the budget allows
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  unforget gate runs/new --baseline runs/released --budget 2\n  \
    unforget gate model --baseline runs/released --budget 2 --junit gate.xml >> \"$GITHUB_STEP_SUMMARY\"\n\n\
    Asks the model every fact of the baseline run with that run's prompts. The measure is the accuracy on its held-out facts\n\
    at the end of that run minus the accuracy now, in percentage points. A summary in Markdown on stdout;\n\
    with --json: {\"budget\", \"decides\", \"forgotten_pp\", \"interval\", \"facts\": [...]}. Exit code 0: within the budget, 3: over it."
)]
pub struct GateArgs {
    /// The model, or a run
    model: String,
    /// The finished run to compare with
    #[arg(long, value_name = "RUN")]
    baseline: PathBuf,
    /// Forgetting allowed, in percentage points
    #[arg(long, value_name = "PP", default_value_t = 1.0, value_parser = percentage_points)]
    budget: f64,
    /// Also write a JUnit report, with one test case per fact that the baseline knew
    #[arg(long, value_name = "FILE.xml")]
    junit: Option<PathBuf>,
}

impl GateArgs {
    pub fn run(self, context: &Context) -> Result<()> {
        if let Some(junit) = &self.junit {
            output::check_writable_file(junit)?;
        }
        let run = finished_run(&self.baseline)?;
        let facts = train::recorded_facts(&run)?;
        let rows = check_rows(&facts, run.facts()?)?;
        let data = run.config()?.data;

        let model = load_model(&self.model)?;
        let template = PromptTemplate::from_config(&data).for_model(data.chat, &model.tokenizer)?;
        let mut engine = Engine::new(&model.config);
        let questions = facts.iter().map(|(_, fact)| fact);
        let exam = EvalSet::new(questions, &template, &model.tokenizer, data.match_rule)?;
        context.progress.note(format!(
            "evaluating {} on {} facts",
            self.model,
            facts.len()
        ));
        let answers = exam.answers(&mut Generator::new(&mut engine, &model))?;

        let gate = Gated::new(rows, answers, self.budget, context.seed.unwrap_or(0))?;
        if let Some(junit) = &self.junit {
            write(junit, &gate.junit())?;
        }
        if context.json {
            output::json(&gate)?;
        } else {
            output::line(gate.markdown().trim_end())?;
        }
        if gate.passed() {
            Ok(())
        } else {
            Err(Error::OverBudget {
                forgotten: gate.forgotten_pp,
                budget: gate.budget,
                hint: "tune with a remedy (`--method auto`, `--budget`), or name a larger budget",
            })
        }
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(Error::io("write", path))
}

fn percentage_points(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(pp) if (0.0..=100.0).contains(&pp) => Ok(pp),
        _ => Err("expected percentage points, 0 to 100".into()),
    }
}

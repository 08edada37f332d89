//! `unforget gate`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Args;
use unforget::{
    Error, Result,
    audit::FewShotQuestions,
    config::{BehaviourSchedule, Config},
    facts::Fact,
    gate::{Gate as Gated, check_rows},
    generate::Generator,
    measure::{Behaviour, BehaviourReference, EvalSet},
    model::Model,
    prompt::PromptTemplate,
    run::{Environment, RunDir},
    train,
};

use super::{
    context::{Context, finished_run, load_model},
    output,
};

/// Exit with code 3 if a model forgot more of a run's facts than the budget allows
#[derive(Debug, Args)]
#[command(
    after_help = "Evaluates the model on every fact of the baseline run, under the few-shot prompts of that run's audit, so that a different answer format \
    does not count as forgetting. Counts the held-out facts that the audit found HighlyKnown and that the model \
    answers incorrectly. Prints a summary in Markdown. With --json: {\"budget\", \"split\", \"forgotten\": {\"count\", \"of\", \"pp\", \
    \"interval\"}, \"forgotten_pp\", \"interval\", \"few_shot\", \"behaviour\", \"max_kl\", \"facts\": [...]}. Exit code 0: within the budget, 3: over it.\n\n\
    Examples:\n  unforget gate runs/new --baseline runs/released --budget 2\n  \
    unforget gate model --baseline runs/released --budget 2 \\\n      --junit gate.xml >> \"$GITHUB_STEP_SUMMARY\""
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
    /// KL divergence allowed from the baseline's base model on general prompts, in nats per token [default: no limit]
    #[arg(long, value_name = "KL", value_parser = nats)]
    max_kl: Option<f64>,
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
        let config = run.config()?;
        let data = &config.data;

        let model = load_model(&self.model)?;
        let template = PromptTemplate::from_config(data).for_model(data.chat, &model.tokenizer)?;
        let mut engine = context.engine(&model.config)?;
        let questions: Vec<&Fact> = facts.iter().map(|(_, fact)| fact).collect();
        let progress = &context.progress;
        progress.note(format!(
            "evaluating {} on {} facts",
            self.model,
            facts.len()
        ));
        let mut generator = Generator::new(&mut engine, &model);
        let prompts = run.prompts()?;
        let answers = if prompts.is_empty() {
            let bar = progress.bar(questions.len() as u64, "questions");
            EvalSet::new(questions, &template, &model.tokenizer, data.match_rule)?
                .answers(&mut generator, &|n| bar.inc(n as u64))?
        } else {
            let few_shot = FewShotQuestions {
                prompts: &prompts,
                template: &template,
                match_rule: data.match_rule,
            };
            few_shot.answers(&questions, &mut generator, progress)?
        };

        let behaviour = self.behaviour(&run, &config, &model, context)?;
        let gate = Gated::new(rows, answers, self.budget, !prompts.is_empty())?
            .with_behaviour(behaviour, self.max_kl);
        if let Some(junit) = &self.junit {
            write(junit, &gate.junit())?;
        }
        if context.json {
            output::json(&gate)?;
        } else {
            // A row of a table stays one line.
            for line in gate.markdown().trim_end().lines() {
                if line.starts_with('|') {
                    output::line(line)?;
                } else {
                    output::sentences(line)?;
                }
            }
        }
        if gate.passed() {
            Ok(())
        } else if let Some((kl, max_kl)) = gate.changed_behaviour() {
            Err(Error::ChangedBehaviour {
                kl,
                max_kl,
                hint: "train fewer epochs or with a lower learning rate, on chats with full answers, or name a larger limit",
            })
        } else {
            Err(Error::OverBudget {
                forgotten: gate.forgotten_pp,
                since: "",
                budget: gate.budget,
                hint: "train fewer epochs or at a lower learning rate, give more known facts (`--keep`), bound the forgetting (`--budget`), or name a larger budget",
            })
        }
    }
}

impl GateArgs {
    /// The behaviour of `model` on general prompts, compared with the base model of the baseline; `None` where it cannot be
    /// measured and has no limit.
    fn behaviour(
        &self,
        run: &RunDir,
        config: &Config,
        model: &Model,
        context: &Context,
    ) -> Result<Option<Behaviour>> {
        if self.max_kl.is_none() && config.measure.behaviour == BehaviourSchedule::Never {
            return Ok(None);
        }
        let unmeasured = |reason: String| match self.max_kl {
            None => {
                let note = format!("the behaviour on general prompts is not measured: {reason}");
                context.progress.note(note);
                Ok(None)
            }
            Some(_) => Err(Error::input_hint(
                format!(
                    "`--max-kl`: the behaviour on general prompts cannot be measured: {reason}"
                ),
                "leave `--max-kl` out, or give the model that the baseline was trained from where its config says",
            )),
        };
        let recorded: Environment = run.read_json("environment.json")?;
        let base = match Model::load(&config.model) {
            Ok(base) if base.checksum == recorded.model.checksum => base,
            Ok(_) => {
                return unmeasured(format!(
                    "{} has changed since the baseline was trained",
                    config.model
                ));
            }
            Err(error) => return unmeasured(error.to_string()),
        };
        let shape = |model: &Model| (model.config.hidden_size, model.config.vocab_size);
        if shape(&base) != shape(model) {
            return unmeasured(format!(
                "{} has another vocabulary or width than {}",
                self.model, config.model
            ));
        }
        context
            .progress
            .note("comparing the behaviour on general prompts with the baseline's base model");
        let mut engine = context.engine(&base.config)?;
        let reference = BehaviourReference::new(&base, &mut engine, true, &context.progress)?;
        drop(base);
        let Some(reference) = reference else {
            return unmeasured("the prompts do not fit into the model's context".into());
        };
        let mut engine = context.engine(&model.config)?;
        let report =
            reference.measure(&mut Generator::new(&mut engine, model), &context.progress)?;
        Ok(Some(report.behaviour))
    }
}

fn nats(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(kl) if kl >= 0.0 && kl.is_finite() => Ok(kl),
        _ => Err("expected a number of nats, 0 or more".into()),
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

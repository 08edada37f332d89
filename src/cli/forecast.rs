//! `unforget forecast`.

use std::{collections::HashMap, path::PathBuf};

use clap::Args;
use serde::Serialize;
use unforget::{
    Error, Result,
    engine::Engine,
    facts::{Fact, drop_contradicted},
    forecast::{self, AtRiskFact, FactSets, ForecastSettings},
    measure::{auc, auc_interval},
    run::{FactOutcome, Split},
};

use super::{
    context::{Context, finished_run, load_model},
    fact_args::FactArgs,
    output,
};

/// Facts listed in the table.
const MAX_LISTED: usize = 20;

/// Rank known facts by their risk of being forgotten, before any training
#[derive(Debug, Args)]
#[command(
    mut_arg("match_rule", |arg| arg.hide(true)),
    after_help = "Examples:\n  unforget forecast smollm2-135m --learn new.tsv --held known.tsv\n  \
    unforget forecast smollm2-135m --learn new.tsv --held known.tsv --against runs/new\n\n\
    The risk is the probability (0 to 1) that a fact of --held, known now, is wrong after plain fine-tuning on --learn.\n\
    Beside it stand the new facts whose subjects the model holds nearest. With --json, most endangered first:\n  \
    [{\"subject\", \"relation\", \"question\", \"object\", \"risk\", \"nearest\": [{\"subject\", \"object\", \"cosine\"}]}]\n\
    --against says how well the forecast tells what a finished run forgot from what it kept: the area under the ROC curve\n\
    (1 is perfect, 0.5 a coin). With --json: {\"auc\", \"interval\", \"forgotten\", \"kept\", \"forecast\": [...]}"
)]
pub struct ForecastArgs {
    /// The model
    model: String,
    /// The new facts; several files make one set
    #[arg(long, value_name = "FACTS", num_args = 1.., required = true)]
    learn: Vec<PathBuf>,
    /// Known facts that will be trained beside them [default: the held ones stand in for them]
    #[arg(long, value_name = "FACTS", num_args = 1..)]
    keep: Vec<PathBuf>,
    /// The known facts in question
    #[arg(long, value_name = "FACTS", num_args = 1.., required = true)]
    held: Vec<PathBuf>,
    /// A finished run whose held facts judge the forecast
    #[arg(long, value_name = "RUN")]
    against: Option<PathBuf>,
    #[command(flatten)]
    fact_args: FactArgs,
}

/// How well a forecast told what a run forgot.
#[derive(Serialize)]
struct ForecastScore<'a> {
    auc: f64,
    interval: [f64; 2],
    forgotten: usize,
    kept: usize,
    forecast: &'a [AtRiskFact],
}

impl ForecastArgs {
    pub fn run(self, context: &Context) -> Result<()> {
        let learn = self.fact_args.facts(&self.learn, context)?;
        let mut held = self.fact_args.facts(&self.held, context)?;
        let mut keep = match &self.keep[..] {
            [] => Vec::new(),
            files => self.fact_args.facts(files, context)?,
        };
        for (facts, name) in [(&mut keep, "keep"), (&mut held, "held")] {
            if let Some(note) = drop_contradicted(&learn, facts, name) {
                context.progress.note(note);
            }
        }
        if held.is_empty() {
            return Err(Error::input_hint(
                "no held fact is left: `--learn` is meant to change every one of them",
                "give facts with `--held` that are to stay as they are",
            ));
        }
        let outcomes = match &self.against {
            Some(_) => Some(self.recorded_outcomes(&held)?),
            None => None,
        };
        let model = load_model(&self.model)?;
        let settings = ForecastSettings {
            seed: context.seed.unwrap_or(0),
            template: self.fact_args.template(&model.tokenizer)?,
            ..ForecastSettings::default()
        };
        let mut engine = Engine::new(&model.config);
        let sets = FactSets {
            learn: &learn,
            keep: &keep,
            held: &held,
        };
        let at_risk = forecast::forecast(&model, &mut engine, sets, &settings, &context.progress)?;
        let score = outcomes.map(|fates| score_forecast(&at_risk, &fates, settings.seed));
        match (context.json, &score) {
            (true, Some(judged)) => output::json(judged),
            (true, None) => output::json(&at_risk),
            (false, _) => output::line(&format_forecast(&at_risk, score.as_ref())),
        }
    }

    /// By relation and question: whether the run given with `--against` forgot a held fact, of those that it knew.
    fn recorded_outcomes(&self, held: &[Fact]) -> Result<HashMap<(String, String), bool>> {
        let dir = self.against.as_deref().expect("asked where it is given");
        let rows = finished_run(dir)?.facts()?.into_iter();
        let recorded: HashMap<(String, String), bool> = rows
            .filter(|row| !matches!(row.split, Split::Known | Split::Unknown))
            .filter(|row| matches!(row.outcome, FactOutcome::Kept | FactOutcome::Forgotten))
            .map(|row| {
                (
                    (row.relation, row.question),
                    row.outcome == FactOutcome::Forgotten,
                )
            })
            .collect();
        let outcomes: HashMap<_, _> = held
            .iter()
            .filter_map(|fact| {
                let about = (fact.relation.clone(), fact.question.clone());
                recorded.get(&about).map(|forgotten| (about, *forgotten))
            })
            .collect();
        let forgotten = outcomes.values().filter(|f| **f).count();
        if forgotten == 0 || forgotten == outcomes.len() {
            return Err(Error::input_hint(
                format!(
                    "{} cannot judge this forecast: of the `--held` facts that it knew it forgot {forgotten} and kept {}",
                    dir.display(),
                    outcomes.len() - forgotten
                ),
                "it takes both: name a run that held these facts out and forgot some of them",
            ));
        }
        Ok(outcomes)
    }
}

/// The forecast against what became of the facts.
fn score_forecast<'a>(
    at_risk: &'a [AtRiskFact],
    outcomes: &HashMap<(String, String), bool>,
    seed: u64,
) -> ForecastScore<'a> {
    let (risks, forgotten): (Vec<f64>, Vec<bool>) = at_risk
        .iter()
        .filter_map(|fact| {
            let about = (fact.relation.clone(), fact.question.clone());
            Some((fact.risk, *outcomes.get(&about)?))
        })
        .unzip();
    let num_forgotten = forgotten.iter().filter(|f| **f).count();
    let both = "fates hold both kinds, of the facts that were told";
    ForecastScore {
        auc: auc(&risks, &forgotten).expect(both),
        interval: auc_interval(&risks, &forgotten, seed).expect(both),
        forgotten: num_forgotten,
        kept: forgotten.len() - num_forgotten,
        forecast: at_risk,
    }
}

/// The most endangered facts, and what to expect of all.
fn format_forecast(at_risk: &[AtRiskFact], score: Option<&ForecastScore<'_>>) -> String {
    let headers = [
        "rank",
        "risk",
        "subject",
        "relation",
        "question",
        "nearest new facts",
    ];
    let rows: Vec<Vec<String>> = at_risk
        .iter()
        .take(MAX_LISTED)
        .enumerate()
        .map(|(i, fact)| {
            let near = fact.nearest.iter();
            let near = near.map(|n| {
                let [subject, object] =
                    [&n.subject, &n.object].map(|said| output::single_line(said));
                format!("{subject}: {object} ({:.2})", n.cosine)
            });
            let [subject, relation, question, object] =
                [&fact.subject, &fact.relation, &fact.question, &fact.object]
                    .map(|said| output::single_line(said));
            vec![
                (i + 1).to_string(),
                format!("{:.2}", fact.risk),
                subject,
                relation,
                format!("{question} {object}"),
                near.collect::<Vec<_>>().join("; "),
            ]
        })
        .collect();
    let mut text = output::table(&headers, &rows, output::terminal_width());
    if at_risk.len() > MAX_LISTED {
        text += &format!("\n({MAX_LISTED} of {}; all with --json)", at_risk.len());
    }
    let expected: f64 = at_risk.iter().map(|fact| fact.risk).sum();
    text += &format!(
        "\n\nPlain fine-tuning would forget about {expected:.0} of these {} facts if they are known now; the first of the list most likely.",
        at_risk.len()
    );
    if let Some(judged) = score {
        text += &format!(
            "\nAgainst the run: AUC {:.3} (95%: {:.3} to {:.3}) over {} forgotten and {} kept facts.",
            judged.auc, judged.interval[0], judged.interval[1], judged.forgotten, judged.kept
        );
    }
    text
}

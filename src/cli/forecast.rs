//! `unforget forecast`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    path::PathBuf,
};

use clap::Args;
use serde::Serialize;
use unforget::{
    Error, Result,
    facts::{Fact, drop_contradicted},
    forecast::{self, AtRiskFact, FactSets, ForecastSettings},
    measure::{auc, auc_interval},
    progress::wrap,
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
    after_help = "Ranks the facts of --held: the first is the most likely to be wrong after plain fine-tuning on --learn. This is a \
    ranking, not a probability or a count. Each fact is listed with the new facts whose subjects are nearest to its own (cosine of hidden states). \
    Warnings name the relations for which the ranking is unreliable. With --json, highest risk first:\n  \
    [{\"subject\", \"relation\", \"question\", \"object\", \"risk\", \"log_odds\", \"warning\", \"nearest\": [{\"subject\", \"object\", \"cosine\"}]}]\n\
    risk: the fraction of the other facts that rank lower. warning: why the ranking is unreliable, or null.\n\
    --against evaluates the ranking on a finished run, per relation too: the area under the ROC curve (1 is perfect, 0.5 chance).\n\
    With --json: {\"auc\", \"interval\", \"forgotten\", \"kept\", \"relations\": [{\"relation\", \"auc\", ...}], \"forecast\": [...]}\n\n\
    Examples:\n  unforget forecast smollm2-135m --learn new.tsv --held known.tsv\n  \
    unforget forecast smollm2-135m --learn new.tsv --held known.tsv \\\n      --against runs/new"
)]
pub struct ForecastArgs {
    /// The model
    model: String,
    /// The new facts; several files make one set
    #[arg(long, value_name = "FACTS", num_args = 1.., required = true)]
    learn: Vec<PathBuf>,
    /// Known facts to train on as well [default: the facts of --held are used in their place]
    #[arg(long, value_name = "FACTS", num_args = 1..)]
    keep: Vec<PathBuf>,
    /// The known facts to rank
    #[arg(long, value_name = "FACTS", num_args = 1.., required = true)]
    held: Vec<PathBuf>,
    /// A finished run to evaluate the ranking on
    #[arg(long, value_name = "RUN")]
    against: Option<PathBuf>,
    #[command(flatten)]
    fact_args: FactArgs,
}

/// How well a forecast ranked what a run forgot.
#[derive(Serialize)]
struct ForecastScore<'a> {
    #[serde(flatten)]
    all: RankingScore,
    /// The relations in which facts were both forgotten and kept.
    relations: Vec<RelationScore<'a>>,
    forecast: &'a [AtRiskFact],
}

/// The ranking of the facts of one relation.
#[derive(Serialize)]
struct RelationScore<'a> {
    relation: &'a str,
    #[serde(flatten)]
    score: RankingScore,
}

/// How well some facts were ranked.
#[derive(Serialize)]
struct RankingScore {
    auc: f64,
    interval: [f64; 2],
    forgotten: usize,
    kept: usize,
}

impl RankingScore {
    /// The score of facts, each with its risk and whether it was forgotten; `None` unless both occur.
    fn new(facts: &[(f64, bool)], seed: u64) -> Option<Self> {
        let (risks, forgotten): (Vec<f64>, Vec<bool>) = facts.iter().copied().unzip();
        let num_forgotten = forgotten.iter().filter(|f| **f).count();
        Some(Self {
            auc: auc(&risks, &forgotten)?,
            interval: auc_interval(&risks, &forgotten, seed)?,
            forgotten: num_forgotten,
            kept: forgotten.len() - num_forgotten,
        })
    }
}

impl fmt::Display for RankingScore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [low, high] = self.interval;
        write!(
            f,
            "AUC {:.3} (95%: {low:.3} to {high:.3}) over {} forgotten and {} kept facts",
            self.auc, self.forgotten, self.kept
        )
    }
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
        let mut engine = context.engine(&model.config)?;
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
    let mut all: Vec<(f64, bool)> = Vec::new();
    let mut by_relation: BTreeMap<&str, Vec<(f64, bool)>> = BTreeMap::new();
    for fact in at_risk {
        let key = (fact.relation.clone(), fact.question.clone());
        if let Some(forgotten) = outcomes.get(&key) {
            all.push((fact.risk, *forgotten));
            let of_relation = by_relation.entry(&fact.relation).or_default();
            of_relation.push((fact.risk, *forgotten));
        }
    }
    let relations = by_relation.into_iter().filter_map(|(relation, facts)| {
        let score = RankingScore::new(&facts, seed)?;
        Some(RelationScore { relation, score })
    });
    ForecastScore {
        all: RankingScore::new(&all, seed)
            .expect("`recorded_outcomes` returns forgotten and kept facts"),
        relations: relations.collect(),
        forecast: at_risk,
    }
}

/// Warnings, then the facts most at risk, then how well they were ranked.
fn format_forecast(at_risk: &[AtRiskFact], score: Option<&ForecastScore<'_>>) -> String {
    let headers = [
        "rank",
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
                subject,
                relation,
                format!("{question} {object}"),
                near.collect::<Vec<_>>().join("; "),
            ]
        })
        .collect();
    let warnings: BTreeSet<&str> = at_risk
        .iter()
        .filter_map(|fact| fact.warning.as_deref())
        .collect();
    let mut text = String::new();
    for warning in &warnings {
        // A relation's name comes from a file, and may have line breaks.
        let warning = output::sanitize(&warning.replace(char::is_whitespace, " "));
        let warning = format!("warning: {warning}\n");
        text += &output::terminal_width().map_or(warning.clone(), |width| wrap(&warning, width));
    }
    if !warnings.is_empty() {
        text.push('\n');
    }
    text += &output::table(&headers, &rows, output::terminal_width());
    if at_risk.len() > MAX_LISTED {
        text += &format!("\n({MAX_LISTED} of {}; all with --json)", at_risk.len());
    }
    text += &format!(
        "\n\nA ranking of {}: the first would be forgotten most likely under plain fine-tuning. How many are forgotten depends on the training.",
        match at_risk.len() {
            1 => "1 fact".to_owned(),
            n => format!("{n} facts"),
        }
    );
    if let Some(score) = score {
        text += &format!("\nAgainst the run: {}.", score.all);
        if score.relations.len() > 1 {
            for of_relation in &score.relations {
                let relation = output::single_line(of_relation.relation);
                text += &format!("\n  {relation}: {}", of_relation.score);
            }
        }
    }
    text
}

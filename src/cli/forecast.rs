//! `unforget forecast`.

use std::{collections::HashMap, path::PathBuf};

use clap::Args;
use serde::Serialize;
use unforget::{
    Error, Result,
    engine::Engine,
    facts::{Fact, drop_contradicted},
    forecast::{self, Endangered, ForecastSettings},
    measure::{auc, auc_interval},
    run::{Split, State},
};

use super::{Context, asking::Asking, finished_run, load_model, output};

/// Facts that are listed when people read.
const SHOWN: usize = 20;

/// Before any training: which known facts a training set endangers
#[derive(Debug, Args)]
#[command(
    mut_arg("rule", |arg| arg.hide(true)),
    after_help = "Examples:\n  unforget forecast smollm2-135m --learn new.tsv --held known.tsv\n  \
    unforget forecast smollm2-135m --learn new.tsv --held known.tsv --against runs/new\n\n\
    The risk is the probability (0 to 1) that a fact of --held, known now, is wrong after plain fine-tuning on --learn.\n\
    Beside it stand the new facts whose subjects the model holds nearest. With --json, most endangered first:\n  \
    [{\"subject\", \"relation\", \"question\", \"object\", \"risk\", \"nearest\": [{\"subject\", \"object\", \"cosine\"}]}]\n\
    --against says how well the forecast tells what a finished run forgot from what it kept: the area under the ROC curve\n\
    (1 is perfect, 0.5 a coin). With --json: {\"auc\", \"interval\", \"forgotten\", \"kept\", \"forecast\": [...]}"
)]
pub struct Forecast {
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
    asking: Asking,
}

/// How well a forecast told what a run forgot.
#[derive(Serialize)]
struct Judged<'a> {
    auc: f64,
    interval: [f64; 2],
    forgotten: usize,
    kept: usize,
    forecast: &'a [Endangered],
}

impl Forecast {
    pub fn run(self, context: &Context) -> Result<()> {
        let learn = self.asking.facts(&self.learn, context)?;
        let mut held = self.asking.facts(&self.held, context)?;
        let mut keep = match &self.keep[..] {
            [] => Vec::new(),
            files => self.asking.facts(files, context)?,
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
        let fates = match &self.against {
            Some(_) => Some(self.fates(&held)?),
            None => None,
        };
        let model = load_model(&self.model)?;
        let settings = ForecastSettings {
            seed: context.seed.unwrap_or(0),
            template: self.asking.template(&model.tokenizer)?,
            ..ForecastSettings::default()
        };
        let mut engine = Engine::new(&model.config);
        let sets = [&learn[..], &keep, &held];
        let told = forecast::forecast(&model, &mut engine, sets, &settings, &context.progress)?;
        let judged = fates.map(|fates| judge(&told, &fates, settings.seed));
        match (context.json, &judged) {
            (true, Some(judged)) => output::json(judged),
            (true, None) => output::json(&told),
            (false, _) => output::line(&text(&told, judged.as_ref())),
        }
    }

    /// By relation and question: whether the run given with `--against` forgot a held fact, of those that it knew.
    fn fates(&self, held: &[Fact]) -> Result<HashMap<(String, String), bool>> {
        let dir = self.against.as_deref().expect("asked where it is given");
        let rows = finished_run(dir)?.facts()?.into_iter();
        let of_run: HashMap<(String, String), bool> = rows
            .filter(|row| !matches!(row.split, Split::Known | Split::Unknown))
            .filter(|row| matches!(row.state, State::Kept | State::Forgotten))
            .map(|row| ((row.relation, row.question), row.state == State::Forgotten))
            .collect();
        let fates: HashMap<_, _> = held
            .iter()
            .filter_map(|fact| {
                let about = (fact.relation.clone(), fact.question.clone());
                of_run.get(&about).map(|forgotten| (about, *forgotten))
            })
            .collect();
        let forgotten = fates.values().filter(|f| **f).count();
        if forgotten == 0 || forgotten == fates.len() {
            return Err(Error::input_hint(
                format!(
                    "{} cannot judge this forecast: of the `--held` facts that it knew it forgot {forgotten} and kept {}",
                    dir.display(),
                    fates.len() - forgotten
                ),
                "it takes both: name a run that held these facts out and forgot some of them",
            ));
        }
        Ok(fates)
    }
}

/// The forecast against what became of the facts.
fn judge<'a>(
    told: &'a [Endangered],
    fates: &HashMap<(String, String), bool>,
    seed: u64,
) -> Judged<'a> {
    let (risks, forgotten): (Vec<f64>, Vec<bool>) = told
        .iter()
        .filter_map(|fact| {
            let about = (fact.relation.clone(), fact.question.clone());
            Some((fact.risk, *fates.get(&about)?))
        })
        .unzip();
    let lost = forgotten.iter().filter(|f| **f).count();
    let both = "fates hold both kinds, of the facts that were told";
    Judged {
        auc: auc(&risks, &forgotten).expect(both),
        interval: auc_interval(&risks, &forgotten, seed).expect(both),
        forgotten: lost,
        kept: forgotten.len() - lost,
        forecast: told,
    }
}

/// The most endangered facts, and what to expect of all.
fn text(told: &[Endangered], judged: Option<&Judged<'_>>) -> String {
    let heads = [
        "rank",
        "risk",
        "subject",
        "relation",
        "question",
        "nearest new facts",
    ];
    let rows: Vec<Vec<String>> = told
        .iter()
        .take(SHOWN)
        .enumerate()
        .map(|(i, fact)| {
            let near = fact.nearest.iter();
            let near = near.map(|n| {
                let [subject, object] = [&n.subject, &n.object].map(|said| output::plain(said));
                format!("{subject}: {object} ({:.2})", n.cosine)
            });
            let [subject, relation, question, object] =
                [&fact.subject, &fact.relation, &fact.question, &fact.object]
                    .map(|said| output::plain(said));
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
    let mut text = output::table(&heads, &rows, output::width());
    if told.len() > SHOWN {
        text += &format!("\n({SHOWN} of {}; all with --json)", told.len());
    }
    let expected: f64 = told.iter().map(|fact| fact.risk).sum();
    text += &format!(
        "\n\nPlain fine-tuning would forget about {expected:.0} of these {} facts if they are known now; the first of the list most likely.",
        told.len()
    );
    if let Some(judged) = judged {
        text += &format!(
            "\nAgainst the run: AUC {:.3} (95%: {:.3} to {:.3}) over {} forgotten and {} kept facts.",
            judged.auc, judged.interval[0], judged.interval[1], judged.forgotten, judged.kept
        );
    }
    text
}

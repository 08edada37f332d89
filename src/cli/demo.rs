//! `unforget demo`: audit, training, comparison and report on a real small model.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Args;
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde_json::json;
use unforget::{
    Error, Result,
    audit::{self, AuditSettings},
    config::{self, BehaviourSchedule, Config, EarlyStoppingConfig, MethodKind},
    facts::{self, Fact, ReadOptions},
    model::{self, Model},
    report::{self, TextCurve, trade_as_text},
    run::{EpochRecord, FactOutcome, RecordedRun, RunDir, RunResult},
    splits::{LabelledFact, SplitSizes, Splits},
    train::{self, Options},
};

use super::{context::Context, output};

/// Run the complete workflow on a small real model, in ten minutes
#[derive(Debug, Args)]
#[command(
    after_help = "Trains the same facts three times: the known ones alone (Only Known, the control), plain fine-tuning (sft) and \
    auto, the default method. Writes the three runs and report.html to --out.\n\n\
    Examples:\n  unforget demo            about ten minutes on two cores\n  \
    unforget demo --quick    fewer facts and epochs, at most three minutes"
)]
pub struct DemoArgs {
    /// Fewer facts and epochs
    #[arg(long)]
    quick: bool,
    /// The model
    #[arg(long, value_name = "MODEL", default_value = "smollm2-135m")]
    model: String,
    /// The directory to write [default: runs/demo, or runs/demo-2 ... if that is taken]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write into a directory that is not empty
    #[arg(long)]
    force: bool,
}

/// The size of the demo.
struct DemoSize {
    /// Facts of the pack audited for training.
    train_facts: usize,
    /// Facts of the pack audited for the held-out set.
    held_facts: usize,
    /// Few-shot prompts of the audit.
    audit_prompts: usize,
    /// Largest number of facts of each split.
    sizes: SplitSizes,
    /// Largest number of epochs of plain fine-tuning, which stops early.
    sft_epochs: usize,
    /// Epochs of Only Known, which has nothing new to learn.
    only_known_epochs: usize,
    batch_size: usize,
    /// That of Only Known and of plain fine-tuning; `auto` has its own.
    learning_rate: f64,
}

/// About ten minutes on two cores.
const FULL: DemoSize = DemoSize {
    train_facts: 600,
    held_facts: 600,
    audit_prompts: 3,
    sizes: SplitSizes {
        known: 100,
        unknown: 240,
        held: 100,
        maybe_known: 50,
        weakly_known: 0,
        balanced: false,
    },
    sft_epochs: 8,
    only_known_epochs: 3,
    batch_size: 16,
    learning_rate: 1e-4,
};

/// At most three minutes on two cores.
const QUICK: DemoSize = DemoSize {
    train_facts: 200,
    held_facts: 300,
    audit_prompts: 2,
    sizes: SplitSizes {
        known: 26,
        unknown: 60,
        held: 40,
        maybe_known: 0,
        weakly_known: 0,
        balanced: false,
    },
    sft_epochs: 6,
    only_known_epochs: 2,
    batch_size: 8,
    learning_rate: 1e-4,
};

/// The relation of the new facts: the country of a place, which every model knows in part.
const RELATION: &str = "P17";

/// Accuracy on the new facts at which a run stops.
const STOP_ACCURACY: f64 = 0.99;

/// Forgotten facts shown at the end.
const MAX_LISTED: usize = 5;

/// The three runs, in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DemoRun {
    OnlyKnown,
    Sft,
    Auto,
}

impl DemoRun {
    const ALL: [Self; 3] = [Self::OnlyKnown, Self::Sft, Self::Auto];

    /// Its directory below the demo's.
    fn name(self) -> &'static str {
        match self {
            Self::OnlyKnown => "only-known",
            Self::Sft => "sft",
            Self::Auto => "auto",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::OnlyKnown => "Only Known",
            Self::Sft => "plain fine-tuning",
            Self::Auto => "auto",
        }
    }

    /// Sets the keys in which its config differs from the others.
    fn configure(self, config: &mut Config, size: &DemoSize, out: &Path) {
        let baseline = Some(out.join(Self::OnlyKnown.name()));
        match self {
            Self::OnlyKnown => {
                config.data.learn.clear();
                config.method.kind = MethodKind::Sft;
                config.train.learning_rate = size.learning_rate;
                config.train.num_epochs = size.only_known_epochs;
            }
            Self::Sft => {
                config.baseline = baseline;
                config.method.kind = MethodKind::Sft;
                config.train.learning_rate = size.learning_rate;
                config.train.num_epochs = size.sft_epochs;
            }
            Self::Auto => {
                config.baseline = baseline;
                config.method.kind = MethodKind::Auto;
            }
        }
    }
}

impl DemoArgs {
    pub fn run(self, context: &Context) -> Result<()> {
        let size = if self.quick { &QUICK } else { &FULL };
        let seed = context.seed.unwrap_or(0);
        let out = match &self.out {
            Some(out) => out.clone(),
            None => unused_dir(Path::new("runs/demo"), self.force),
        };
        output::check_output_dir(&out, self.force, context.comm)?;
        let progress = &context.progress;

        if self.quick {
            progress.note(
                "quick: few facts, so that one run shows the direction at most; `unforget demo` shows the effect in ten minutes",
            );
        }
        progress.note(format!("1/5 model: {}", self.model));
        model::pull(&self.model)?;
        let model = Model::load(&self.model)?;

        progress.note("2/5 audit: which facts does the model know?");
        let splits = splits(&model, size, seed, context)?;
        let data = write_facts(&out.join("facts"), &splits)?;

        let mut runs = Vec::new();
        for (i, method) in DemoRun::ALL.into_iter().enumerate() {
            progress.note(format!("3/5 train {}/3: {}", i + 1, method.title()));
            let dir = out.join(method.name());
            let mut config = config(&self.model, &dir, data.clone(), size, seed);
            method.configure(&mut config, size, &out);
            let splits = match method {
                DemoRun::OnlyKnown => splits.only_known(),
                DemoRun::Sft | DemoRun::Auto => splits.clone(),
            };
            let options = Options::default();
            let result = train::tune_on(&model, splits, &config, options, None, progress)?;
            progress.note(result.to_string());
            runs.push((dir, result));
        }
        drop(model);

        progress.note("4/5 compare");
        let forgotten = forgotten_by_sft_only(&runs[1].0, &runs[2].0)?;
        progress.note("5/5 report");
        let page = out.join("report.html");
        let dirs: Vec<PathBuf> = runs.iter().map(|(dir, _)| dir.clone()).collect();
        report::write(&dirs, &page, None)?;
        print_results(&runs, &forgotten, &page, context)
    }
}

/// `dir`, or the first of `dir-2`, `dir-3` ... that is new or empty, so that an earlier demo is never in the way.
fn unused_dir(dir: &Path, force: bool) -> PathBuf {
    let is_free = |dir: &Path| {
        force || fs::read_dir(dir).map_or(!dir.exists(), |mut entries| entries.next().is_none())
    };
    let numbered = |n: u32| PathBuf::from(format!("{}-{n}", dir.display()));
    std::iter::once(dir.to_owned())
        .chain((2..=u32::MAX).map(numbered))
        .find(|dir| is_free(dir))
        .expect("some number is free")
}

/// Audits a sample of the pack and splits it as in the paper.
fn splits(model: &Model, size: &DemoSize, seed: u64, context: &Context) -> Result<Splits> {
    let pack = facts::read(&[PathBuf::from(facts::PACK)], ReadOptions::default())?;
    let mut facts: Vec<Fact> = pack
        .facts
        .into_iter()
        .filter(|fact| fact.relation == RELATION)
        .collect();
    facts.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    facts.truncate(size.train_facts + size.held_facts);
    let settings = AuditSettings {
        num_prompts: size.audit_prompts,
        seed,
        ..AuditSettings::default()
    };
    let mut engine = context.engine(&model.config)?;
    let audit = audit::audit(
        model,
        &mut engine,
        &facts,
        None,
        &settings,
        &context.progress,
    )?;
    let mut train: Vec<LabelledFact> = facts
        .into_iter()
        .zip(&audit.facts)
        .map(|(fact, audited)| LabelledFact::new(fact, Some(audited)))
        .collect();
    let held = train.split_off(train.len().min(size.train_facts));
    let splits = Splits {
        prompts: audit.prompts.clone(),
        ..Splits::paper(train, held, size.sizes, 0.0, seed)?
    };
    if splits.known.is_empty() || splits.held.is_empty() || splits.unknown.is_empty() {
        return Err(Error::Failed {
            message: format!(
                "of {} facts, {} are left to train on as known, {} as new and {} to hold out; the demo needs some of each",
                audit.facts.len(),
                splits.known.len(),
                splits.unknown.len(),
                splits.held.len()
            ),
            hint: Some("take another `--model`".into()),
        });
    }
    context.progress.note(format!(
        "    {} known and {} new facts are trained; {} known ones are held out",
        splits.known.len(),
        splits.unknown.len(),
        splits.held.len()
    ));
    Ok(splits)
}

/// Writes the splits as files, so that the runs' configs name what they were trained on.
fn write_facts(dir: &Path, splits: &Splits) -> Result<config::DataConfig> {
    fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    let held: Vec<LabelledFact> = [&splits.held, &splits.maybe_known, &splits.weakly_known]
        .into_iter()
        .flatten()
        .cloned()
        .collect();
    let mut data = config::DataConfig::default();
    data.learn
        .push(write_table(&dir.join("learn.tsv"), &splits.unknown)?.into());
    data.keep
        .push(write_table(&dir.join("keep.tsv"), &splits.known)?.into());
    data.held.push(write_table(&dir.join("held.tsv"), &held)?);
    Ok(data)
}

/// Writes facts as a table, and returns its path.
fn write_table(path: &Path, facts: &[LabelledFact]) -> Result<PathBuf> {
    let mut table = csv::WriterBuilder::new()
        .delimiter(b'\t')
        .from_writer(Vec::new());
    let written = table
        .write_record(["subject", "relation", "object", "aliases"])
        .and_then(|()| {
            facts.iter().try_for_each(|LabelledFact { fact, .. }| {
                let aliases = fact.aliases.join("|");
                table.write_record([&fact.subject, &fact.relation, &fact.object, &aliases])
            })
        });
    written.expect("every record has four fields and goes to memory");
    let bytes = table.into_inner().expect("memory takes every byte");
    fs::write(path, bytes).map_err(Error::io("write", path))?;
    Ok(path.to_owned())
}

/// The config that all three runs share.
fn config(model: &str, dir: &Path, data: config::DataConfig, size: &DemoSize, seed: u64) -> Config {
    let mut config = Config {
        model: model.to_owned(),
        out: dir.to_owned(),
        seed,
        data,
        ..Config::default()
    };
    config.data.audit = Some(config::AuditConfig {
        num_prompts: size.audit_prompts,
        ..config::AuditConfig::default()
    });
    // Asking 200 general prompts of every run would take as long as the training of one.
    config.measure.behaviour = BehaviourSchedule::Never;
    config.train.batch_size = size.batch_size;
    config.train.early_stopping = Some(EarlyStoppingConfig {
        accuracy: Some(STOP_ACCURACY),
        ..EarlyStoppingConfig::default()
    });
    config
}

/// A held-out fact that plain fine-tuning broke and `auto` kept.
#[derive(Serialize)]
struct ForgottenBySft {
    question: String,
    object: String,
    sft_answer: String,
    auto_answer: String,
}

fn forgotten_by_sft_only(sft: &Path, auto: &Path) -> Result<Vec<ForgottenBySft>> {
    let facts_of = |dir: &Path| RunDir::open(dir)?.facts();
    let (sft, auto) = (facts_of(sft)?, facts_of(auto)?);
    let forgotten = sft
        .iter()
        .filter(|row| row.outcome == FactOutcome::Forgotten)
        .filter_map(|row| {
            let kept = auto.iter().find(|other| {
                other.question == row.question && other.outcome == FactOutcome::Kept
            })?;
            Some(ForgottenBySft {
                question: row.question.clone(),
                object: row.object.clone(),
                sft_answer: row.answer_after.trim().to_owned(),
                auto_answer: kept.answer_after.trim().to_owned(),
            })
        });
    Ok(forgotten.collect())
}

/// Prints a summary, a table, some forgotten facts and the path of the page.
fn print_results(
    runs: &[(PathBuf, RunResult)],
    forgotten: &[ForgottenBySft],
    page: &Path,
    context: &Context,
) -> Result<()> {
    if context.json {
        let runs: Vec<_> = runs
            .iter()
            .map(|(dir, result)| json!({ "dir": dir, "result": result }))
            .collect();
        return output::json(
            &json!({ "runs": runs, "forgotten_by_sft_only": forgotten, "report": page }),
        );
    }
    let curves: Vec<Vec<EpochRecord>> = runs
        .iter()
        .map(|(dir, _)| RecordedRun::read(dir).map(|run| run.epochs))
        .collect::<Result<_>>()?;
    let curves: Vec<TextCurve<'_>> = runs
        .iter()
        .zip(DemoRun::ALL)
        .zip(&curves)
        .map(|(((_, result), method), epochs)| TextCurve {
            name: method.title(),
            epochs,
            level: result.accuracy.held.map(|held| held.after),
        })
        .collect();
    let [_, (_, sft), (_, auto)] = runs else {
        unreachable!("the demo has three runs");
    };
    let percent = |share: Option<f64>| share.map_or("-".into(), |s| format!("{:.1}%", 100.0 * s));
    let points = |pp: Option<f64>| pp.map_or("-".into(), |pp| format!("{pp:.1}"));
    let learned = |result: &RunResult| {
        let counts = &result.counts;
        format!(
            "{} of {}",
            counts.learned,
            counts.learned + counts.not_learned
        )
    };
    output::line(&format!(
        "\nPlain fine-tuning learned {} new facts and ends {} pp below Only Known on held-out facts; \
         `auto` learned {} and ends {} pp below.\n",
        learned(sft),
        points(sft.gap_to_only_known_pp),
        learned(auto),
        points(auto.gap_to_only_known_pp),
    ))?;
    if let Some(picture) = trade_as_text(&curves) {
        output::line(&format!("{picture}\n"))?;
    }
    let rows: Vec<Vec<String>> = runs
        .iter()
        .zip(DemoRun::ALL)
        .map(|((_, result), method)| {
            vec![
                method.title().to_owned(),
                percent(result.learned),
                percent(result.learned_paraphrased),
                result
                    .forgotten
                    .map_or("-".into(), |f| format!("{} of {}", f.count, f.of)),
                points(result.gap_to_only_known_pp),
                points(result.forgetting_pp),
                format!("{:.0}", result.seconds),
            ]
        })
        .collect();
    let headers = [
        "",
        "learned",
        "paraphrased",
        "forgotten",
        "gap to Only Known pp",
        "since best epoch pp",
        "seconds",
    ];
    output::line(&output::table(&headers, &rows, output::terminal_width()))?;
    if forgotten.is_empty() {
        output::line("\nNo fact was forgotten by plain fine-tuning and kept by `auto`.")?;
    } else {
        output::line(&format!(
            "\nForgotten by plain fine-tuning, kept by `auto` ({} of {}):",
            forgotten.len().min(MAX_LISTED),
            forgotten.len()
        ))?;
        for fact in forgotten.iter().take(MAX_LISTED) {
            output::line(&format!(
                "  {} {}: plain fine-tuning now says \"{}\"",
                output::single_line(&fact.question),
                output::single_line(&fact.object),
                output::single_line(&fact.sft_answer)
            ))?;
        }
    }
    output::line(&format!("\nReport: {}", page.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_earlier_demo_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let demo = dir.path().join("demo");
        assert_eq!(unused_dir(&demo, false), demo);
        fs::create_dir(&demo).unwrap();
        assert_eq!(unused_dir(&demo, false), demo);
        fs::write(demo.join("report.html"), "").unwrap();
        assert_eq!(unused_dir(&demo, false), dir.path().join("demo-2"));
        assert_eq!(unused_dir(&demo, true), demo);
    }
}

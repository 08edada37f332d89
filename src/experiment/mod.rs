//! Experiments: the same facts trained in several ways, and what each way learned and forgot.
//!
//! An experiment is a file ([`Experiment`]): relations, seeds, sizes and arms, an arm being what sets its config apart. Every
//! arm of every relation and seed leaves one [`Record`]; what is recorded already is not run again.

mod claim;
mod figure;
mod file;
mod record;
mod table;

use std::{
    fs,
    path::{Path, PathBuf},
};

pub use claim::{Claim, Judged, Verdict, judged};
pub use file::{Arm, Experiment, Figure, Scale, Synthetic};
pub use record::{EpochRecord, Record};
pub use table::{Row, markdown, rows};

use crate::{
    Error, Result,
    audit::{AuditSettings, Label, audit},
    config::Config,
    engine::Engine,
    facts::{self, Fact, ReadOptions},
    generate::Generator,
    measure::Exam,
    model::Model,
    progress::Progress,
    remedy::auto,
    run::{RunDir, reset_peak_memory},
    splits::{Sizes, SplitFact, Splits},
    synth::SyntheticFacts,
    train::{self, Options, SPLITS},
    whole,
};

/// The environment variable that names the folder with the files of `EntityQuestions` (`P17.train.json` ...).
pub const ENTITY_QUESTIONS: &str = "UNFORGET_ENTITY_QUESTIONS";

/// The arm to which the others are compared.
pub const ONLY_KNOWN: &str = "only-known";

/// Runs what of `experiment` at `scale` is not recorded in `out` yet, all arms or those in `only` (of an empty list none), and
/// returns all records.
///
/// # Errors
/// As [`train::tune_on`]; [`Error::Input`] when the facts of a relation are not at hand.
pub fn run(
    experiment: &Experiment,
    scale: &Scale,
    only: Option<&[String]>,
    out: &Path,
    progress: &Progress,
) -> Result<Vec<Record>> {
    let model = Model::load(&experiment.model)?;
    let runs = out.join(".runs");
    let mut records = Vec::new();
    for relation in &scale.relations {
        let mut data: Option<Data> = None;
        for &seed in &scale.seeds {
            for arm in experiment.arms.iter().filter(|arm| arm.has(relation, seed)) {
                // What `auto` stands for is part of what a record is of.
                let config = experiment.config(scale, arm, seed)?;
                let config = auto::written_out(&config, &model.config);
                let name = format!("{relation}-{seed}-{}", arm.name);
                let path = out.join(format!("{name}.json"));
                let print = record::fingerprint(&config, (scale, arm), relation, &model.checksum);
                let wanted = only.is_none_or(|only| only.contains(&arm.name));
                match Record::read(&path)? {
                    Some(record) if record.fingerprint == print || !wanted => records.push(record),
                    None if !wanted => {}
                    _ => {
                        progress.note(format_args!("{}: {name}", experiment.name));
                        let data = match &mut data {
                            Some(data) => data,
                            None => data.insert(Data::audited(
                                experiment, scale, relation, &model, progress,
                            )?),
                        };
                        let config = Config {
                            out: runs.join(&name),
                            ..config
                        };
                        let run = data.run(&model, arm, &config, scale, progress)?;
                        let record = Record::of(
                            &run,
                            &arm.name,
                            relation,
                            print,
                            data.elsewhere_right(&run, &config)?,
                        )?;
                        record.write(&path)?;
                        remove(run.path())?;
                        records.push(record);
                    }
                }
            }
        }
    }
    Ok(records)
}

/// Writes the table of `records`, what it says of the claims, and their figure beside them, and returns the tables.
///
/// # Errors
/// [`Error::Io`] when they cannot be written.
pub fn publish(experiment: &Experiment, records: &[Record], out: &Path) -> Result<String> {
    let mut table = markdown(&rows(records));
    if !experiment.claims.is_empty() {
        table += "\n";
        table += &claim::markdown(&judged(&experiment.claims, records));
    }
    fs::create_dir_all(out).map_err(Error::io("create", out))?;
    whole::write(&out.join("table.md"), table.as_bytes())?;
    if let Some(figure) = figure::figure(&experiment.title, experiment.figure, records) {
        whole::write(&out.join("figure.svg"), figure.as_bytes())?;
    }
    Ok(table)
}

fn remove(dir: &Path) -> Result<()> {
    fs::remove_dir_all(dir).map_err(Error::io("remove", dir))
}

/// The facts of one relation, audited.
struct Data {
    /// To train on.
    train: Vec<SplitFact>,
    /// To hold out.
    held: Vec<SplitFact>,
    /// `HighlyKnown` facts of other relations.
    elsewhere: Vec<Fact>,
}

impl Data {
    /// Reads the facts and labels them; what was audited before is in the cache.
    fn audited(
        experiment: &Experiment,
        scale: &Scale,
        relation: &str,
        model: &Model,
        progress: &Progress,
    ) -> Result<Self> {
        let (train, held) = read(scale, relation)?;
        let mut others = Vec::new();
        if scale.elsewhere > 0 {
            others = facts::read(&[PathBuf::from(facts::PACK)], ReadOptions::default())?.facts;
            others.retain(|f| f.relation != relation);
        }
        let settings = AuditSettings {
            runs: experiment.audit_runs,
            ..AuditSettings::default()
        };
        let mut engine = Engine::new(&model.config);
        let mut labelled = |facts: Vec<Fact>| -> Result<Vec<SplitFact>> {
            if facts.is_empty() {
                return Ok(Vec::new());
            }
            let audit = audit(model, &mut engine, &facts, None, &settings, progress)?;
            let audited = facts.into_iter().zip(&audit.facts);
            Ok(audited
                .map(|(fact, a)| SplitFact::new(fact, Some(a)))
                .collect())
        };
        let trained = train.len();
        let mut all = labelled([train, held].concat())?;
        let held = all.split_off(trained);
        let mut elsewhere = labelled(others)?;
        elsewhere.retain(|f| f.label == Some(Label::HighlyKnown));
        elsewhere.truncate(scale.elsewhere);
        Ok(Self {
            train: all,
            held,
            elsewhere: elsewhere.into_iter().map(|f| f.fact).collect(),
        })
    }

    /// The finished run of an arm; one that was stopped goes on.
    fn run(
        &self,
        model: &Model,
        arm: &Arm,
        config: &Config,
        scale: &Scale,
        progress: &Progress,
    ) -> Result<RunDir> {
        reset_peak_memory();
        let begun = RunDir::open(&config.out).and_then(|run| run.config());
        let can_go_on = config.out.join(SPLITS).is_file();
        if can_go_on && begun.is_ok_and(|begun| begun == *config) {
            train::resume(&config.out, Options::default(), progress)?;
        } else {
            if config.out.exists() {
                remove(&config.out)?;
            }
            let sizes = Sizes {
                known: scale.known,
                unknown: scale.unknown,
                held: scale.held,
                maybe_known: scale.maybe_known,
                weakly_known: scale.weakly_known,
                balanced: false,
            };
            let mut splits = Splits::paper(
                self.train.clone(),
                self.held.clone(),
                sizes,
                0.0,
                config.seed,
            )?;
            if let Some(synthetic) = arm.synthetic {
                splits.unknown = self.made_up(synthetic, model, config.seed)?;
            }
            let splits = if arm.name == ONLY_KNOWN {
                splits.only_known()
            } else {
                splits
            };
            train::tune_on(model, splits, config, Options::default(), progress)?;
        }
        RunDir::open(&config.out)
    }

    /// Made-up facts like those at hand, none of which is one of them.
    fn made_up(&self, synthetic: Synthetic, model: &Model, seed: u64) -> Result<Vec<SplitFact>> {
        let Synthetic { n, keys, values } = synthetic;
        let real = self.train.iter().chain(&self.held);
        let real: Vec<Fact> = real.map(|f| f.fact.clone()).collect();
        SyntheticFacts::new(&real, (keys, values), &model.tokenizer, seed)?
            .take(n)
            .map(|fact| Ok(SplitFact::new(fact?, None)))
            .collect()
    }

    /// Whether each known fact of other relations is right after `run`.
    fn elsewhere_right(&self, run: &RunDir, config: &Config) -> Result<Vec<bool>> {
        let model = Model::load(&run.file("model").display().to_string())?;
        let template = config.data.template();
        let exam = Exam::new(
            &self.elsewhere,
            &template,
            &model.tokenizer,
            config.data.rule,
        )?;
        let mut engine = Engine::new(&model.config);
        exam.right(&mut Generator::new(&mut engine, &model))
    }
}

/// The facts of `relation` to train on and to hold out: those of `EntityQuestions` where the environment names its
/// folder, else of the built-in pack.
fn read(scale: &Scale, relation: &str) -> Result<(Vec<Fact>, Vec<Fact>)> {
    let read =
        |files: &[PathBuf]| Ok::<_, Error>(facts::read(files, ReadOptions::default())?.facts);
    let (mut train, held) = if let Some(folder) = std::env::var_os(ENTITY_QUESTIONS) {
        let file = |part: &str| Path::new(&folder).join(format!("{relation}.{part}.json"));
        let held: Vec<PathBuf> = scale.held_parts.iter().map(|part| file(part)).collect();
        (read(&[file("train")])?, read(&held)?)
    } else {
        let mut pack = read(&[PathBuf::from(facts::PACK)])?;
        pack.retain(|f| f.relation == relation);
        if pack.is_empty() {
            return Err(Error::input_hint(
                format!("the built-in facts have none of {relation}"),
                format!(
                    "get EntityQuestions (https://github.com/princeton-nlp/EntityQuestions) and name its folder in {ENTITY_QUESTIONS}"
                ),
            ));
        }
        (pack, Vec::new())
    };
    let rest = train.split_off(train.len().min(scale.train_facts));
    let mut held = [held, rest].concat();
    held.truncate(scale.held_facts);
    Ok((train, held))
}

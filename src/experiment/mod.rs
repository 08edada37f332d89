//! Experiments: the same facts trained in several ways, and what each way learned and forgot.
//!
//! An experiment is a file ([`Experiment`]): models, relations, seeds, sizes and arms, an arm being what sets its config apart. Every
//! arm of every model, relation and seed leaves one [`Record`]; what is recorded already is not run again, be it by another
//! experiment of the same setup.

mod claim;
mod cost;
mod figure;
mod file;
mod keys;
mod page;
mod record;
mod table;

use std::{
    fs,
    path::{Path, PathBuf},
};

pub use claim::{Claim, Judged, Verdict, judged};
pub use cost::{Cost, foretold};
pub use file::{Arm, Experiment, Figure, Scale, Synthetic};
pub use page::{Section, write_page};
pub use record::{AuditRecord, EpochRecord, Record};
pub use table::{Row, markdown, rows};

use crate::{
    Error, Result,
    audit::{Audit, AuditSettings, Label, audit},
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

/// What is recorded of an experiment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recorded {
    /// A record a run.
    pub runs: Vec<Record>,
    /// A record a relation, where facts are audited and nothing is trained.
    pub audits: Vec<AuditRecord>,
    /// Examples of made-up names in Markdown, where these are what is shown.
    pub keys: Option<String>,
}

/// Runs what of `experiment` at `scale` is not recorded in `out` yet, all arms or those in `only` (of an empty list none), and
/// returns all that is recorded.
///
/// # Errors
/// As [`train::tune_on`]; [`Error::Input`] when the facts of a relation are not at hand.
pub fn run(
    experiment: &Experiment,
    scale: &Scale,
    only: Option<&[String]>,
    out: &Path,
    progress: &Progress,
) -> Result<Recorded> {
    let mut recorded = Recorded::default();
    let relations = match only {
        Some([]) => scale.relations.iter().collect(),
        _ => at_hand(scale, progress)?,
    };
    for name in experiment.models(scale) {
        for relation in &relations {
            let mut cell = Cell {
                experiment,
                scale,
                only,
                out,
                progress,
                relation,
                model: Model::load(name)?,
                data: None,
            };
            match experiment.figure {
                Figure::Labels => recorded.audits.extend(cell.audit()?),
                Figure::Keys => recorded.keys = Some(cell.keys()?),
                _ => cell.runs(&mut recorded.runs)?,
            }
        }
    }
    Ok(recorded)
}

/// One model and relation of an experiment.
struct Cell<'a> {
    experiment: &'a Experiment,
    scale: &'a Scale,
    only: Option<&'a [String]>,
    out: &'a Path,
    progress: &'a Progress,
    relation: &'a str,
    model: Model,
    /// Its facts, once something is to be run on them.
    data: Option<Data>,
}

impl Cell<'_> {
    /// The path of what is recorded under `name`.
    fn place(&self, name: &str) -> PathBuf {
        self.out.join(place(
            self.experiment,
            self.scale,
            &self.model.name,
            self.relation,
            name,
        ))
    }

    /// Every arm with every seed.
    fn runs(&mut self, records: &mut Vec<Record>) -> Result<()> {
        let (experiment, scale, relation) = (self.experiment, self.scale, self.relation);
        for &seed in &scale.seeds {
            for arm in experiment.arms.iter().filter(|arm| arm.has(relation, seed)) {
                // What `auto` stands for is part of what a record is of.
                let config = experiment.config(&self.model.name, scale, arm, seed)?;
                let config = auto::written_out(&config, &self.model.config);
                let path = self.place(&format!("{seed}-{}", arm.name));
                let print =
                    record::fingerprint(&config, (scale, arm), relation, &self.model.checksum);
                let wanted = self.only.is_none_or(|only| only.contains(&arm.name));
                match Record::read(&path)? {
                    Some(record) if record.fingerprint == print || !wanted => records.push(record),
                    None if !wanted => {}
                    _ => records.push(self.run(arm, config, print, &path)?),
                }
            }
        }
        Ok(())
    }

    /// Runs one arm and records it.
    fn run(&mut self, arm: &Arm, config: Config, print: String, path: &Path) -> Result<Record> {
        let name = path
            .file_stem()
            .expect("a record has a name")
            .to_string_lossy();
        self.progress
            .note(format_args!("{}: {name}", self.experiment.name));
        if self.data.is_none() {
            self.data = Some(self.audited()?);
        }
        let data = self.data.as_ref().expect("audited above");
        let config = Config {
            out: self.out.join(".runs").join(&*name),
            ..config
        };
        let run = data.run(&self.model, arm, &config, self.scale, self.progress)?;
        let elsewhere = data.elsewhere_right(&run, &config)?;
        let record = Record::of(&run, &arm.name, self.relation, print, elsewhere)?;
        record::write(&record, path)?;
        remove(run.path())?;
        Ok(record)
    }

    /// How well the model knows the relation's facts, those to train on and those to hold out.
    fn audit(&mut self) -> Result<Option<AuditRecord>> {
        let (scale, relation) = (self.scale, self.relation);
        let path = self.place("audit");
        let settings = self.settings();
        let print = record::audit_fingerprint(&settings, scale, relation, &self.model.checksum);
        match record::read::<AuditRecord>(&path)? {
            Some(record) if record.fingerprint == print || self.only.is_some() => Ok(Some(record)),
            None if self.only.is_some() => Ok(None),
            _ => {
                let (train, held) = read(scale, relation)?;
                let audit = self.ask(&[train, held].concat())?;
                let record = AuditRecord::of(&audit, &self.model.name, relation, print);
                record::write(&record, &path)?;
                Ok(Some(record))
            }
        }
    }

    /// Examples of names made up from the relation's subjects.
    fn keys(&self) -> Result<String> {
        let (train, held) = read(self.scale, self.relation)?;
        keys::markdown(
            &[train, held].concat(),
            &self.model.tokenizer,
            self.scale.seeds[0],
        )
    }

    /// How facts are audited.
    fn settings(&self) -> AuditSettings {
        AuditSettings {
            runs: self.experiment.audit_runs(self.scale),
            ..AuditSettings::default()
        }
    }

    /// The audit of `facts`; what was audited before is in the cache.
    fn ask(&self, facts: &[Fact]) -> Result<Audit> {
        let mut engine = Engine::new(&self.model.config);
        let settings = self.settings();
        audit(
            &self.model,
            &mut engine,
            facts,
            None,
            &settings,
            self.progress,
        )
    }

    /// Reads the facts and labels them.
    fn audited(&self) -> Result<Data> {
        let (train, held) = read(self.scale, self.relation)?;
        let mut others = Vec::new();
        if self.scale.elsewhere > 0 {
            let own: Vec<&str> = relations(self.relation).collect();
            others = pack()?;
            others.retain(|f| !own.contains(&&f.relation[..]));
        }
        let labelled = |facts: Vec<Fact>| -> Result<Vec<SplitFact>> {
            if facts.is_empty() {
                return Ok(Vec::new());
            }
            let audit = self.ask(&facts)?;
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
        elsewhere.truncate(self.scale.elsewhere);
        Ok(Data {
            train: all,
            held,
            elsewhere: elsewhere.into_iter().map(|f| f.fact).collect(),
        })
    }
}

/// The name of a record's file: `P17-0-sft.json`, after the model's name where there are several.
fn place(
    experiment: &Experiment,
    scale: &Scale,
    model: &str,
    relation: &str,
    name: &str,
) -> String {
    let several = experiment.models(scale).len() > 1;
    let model = Path::new(model).file_name().filter(|_| several);
    let model = model.map(|model| format!("{}-", model.to_string_lossy()));
    format!("{}{relation}-{name}.json", model.unwrap_or_default())
}

/// The relations of `P17+P36`.
fn relations(together: &str) -> impl Iterator<Item = &str> {
    together.split('+')
}

/// Writes the table of what is `recorded`, what it says of the claims, and its figure, and returns the tables.
///
/// # Errors
/// [`Error::Io`] when they cannot be written.
pub fn publish(experiment: &Experiment, recorded: &Recorded, out: &Path) -> Result<String> {
    let mut table = match experiment.figure {
        Figure::Labels => table::of_labels(&recorded.audits),
        Figure::Keys => recorded.keys.clone().unwrap_or_default(),
        _ => markdown(&rows(&recorded.runs)),
    };
    if !experiment.claims.is_empty() {
        table += "\n";
        table += &claim::markdown(&judged(&experiment.claims, recorded));
    }
    fs::create_dir_all(out).map_err(Error::io("create", out))?;
    whole::write(&out.join("table.md"), table.as_bytes())?;
    if let Some(figure) = figure::figure(experiment, recorded) {
        whole::write(&out.join(FIGURE), figure.as_bytes())?;
    }
    Ok(table)
}

/// How every arm is run.
const OPTIONS: Options = Options {
    keep_checkpoints: false,
    figures_alone: true,
};

/// The file of an experiment's figure.
const FIGURE: &str = "figure.svg";

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
            train::resume(&config.out, OPTIONS, progress)?;
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
                splits.unknown = self.made_up(synthetic, scale, model, config.seed)?;
            }
            let splits = if arm.name == ONLY_KNOWN {
                splits.only_known()
            } else {
                splits
            };
            train::tune_on(model, splits, config, OPTIONS, progress)?;
        }
        RunDir::open(&config.out)
    }

    /// Made-up facts like those at hand, none of which is one of them.
    fn made_up(
        &self,
        synthetic: Synthetic,
        scale: &Scale,
        model: &Model,
        seed: u64,
    ) -> Result<Vec<SplitFact>> {
        let Synthetic { keys, values, .. } = synthetic;
        let real = self.train.iter().chain(&self.held);
        let real: Vec<Fact> = real.map(|f| f.fact.clone()).collect();
        SyntheticFacts::new(&real, (keys, values), &model.tokenizer, seed)?
            .take(scale.made_up(synthetic))
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

/// The relations of a scale whose facts are at hand; a note tells which are not.
fn at_hand<'s>(scale: &'s Scale, progress: &Progress) -> Result<Vec<&'s String>> {
    if std::env::var_os(ENTITY_QUESTIONS).is_some() {
        return Ok(scale.relations.iter().collect());
    }
    let pack = pack()?;
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for together in &scale.relations {
        let in_pack = |relation: &&str| pack.iter().any(|fact| fact.relation == *relation);
        match relations(together).find(|relation| !in_pack(relation)) {
            None => found.push(together),
            Some(relation) => missing.push(none_of(relation)),
        }
    }
    if found.is_empty() && !missing.is_empty() {
        return Err(missing.remove(0));
    }
    for relation in missing {
        progress.note(format_args!("{relation}: left out"));
    }
    Ok(found)
}

fn pack() -> Result<Vec<Fact>> {
    Ok(facts::read(&[PathBuf::from(facts::PACK)], ReadOptions::default())?.facts)
}

fn none_of(relation: &str) -> Error {
    Error::input_hint(
        format!("the built-in facts have none of {relation}"),
        format!(
            "get EntityQuestions (https://github.com/princeton-nlp/EntityQuestions) and name its folder in {ENTITY_QUESTIONS}"
        ),
    )
}

/// The facts of `together` to train on and to hold out: those of `EntityQuestions` where the environment names its
/// folder, else of the built-in pack.
fn read(scale: &Scale, together: &str) -> Result<(Vec<Fact>, Vec<Fact>)> {
    let (mut train, mut held) = (Vec::new(), Vec::new());
    for relation in relations(together) {
        let of_one = read_one(scale, relation)?;
        train.extend(of_one.0);
        held.extend(of_one.1);
    }
    Ok((train, held))
}

fn read_one(scale: &Scale, relation: &str) -> Result<(Vec<Fact>, Vec<Fact>)> {
    let read =
        |files: &[PathBuf]| Ok::<_, Error>(facts::read(files, ReadOptions::default())?.facts);
    let (mut train, held) = if let Some(folder) = std::env::var_os(ENTITY_QUESTIONS) {
        let file = |part: &str| Path::new(&folder).join(format!("{relation}.{part}.json"));
        let held: Vec<PathBuf> = scale.held_parts.iter().map(|part| file(part)).collect();
        (
            read(&[file("train")])?,
            if held.is_empty() {
                Vec::new()
            } else {
                read(&held)?
            },
        )
    } else {
        let mut pack = pack()?;
        pack.retain(|f| f.relation == relation);
        (pack, Vec::new())
    };
    let rest = train.split_off(train.len().min(scale.train_facts));
    let mut held = [held, rest].concat();
    held.truncate(scale.held_facts);
    Ok((train, held))
}

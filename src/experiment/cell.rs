//! One model and relation of an experiment: its facts, its audits, its runs.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Arm, AuditRecord, Experiment, HeldOut, ONLY_KNOWN, Record, Scale, Synthetic, keys, place,
    record, source,
};
use crate::{
    Error, Result,
    audit::{Audit, AuditSettings, Label, audit},
    config::{Config, Method},
    engine::Engine,
    facts::Fact,
    generate::Generator,
    measure::Exam,
    model::Model,
    progress::Progress,
    ranks,
    remedy::auto,
    run::{RunDir, reset_peak_memory},
    splits::{Sizes, SplitFact, Splits},
    synth::SyntheticFacts,
    train::{self, Options, SPLITS},
};

/// The folder of runs under way, and of what they share.
pub(super) const RUNS: &str = ".runs";

/// What the names of shared beginnings in it start with.
pub(super) const WARM: &str = "warm-";

/// How every arm is run.
const OPTIONS: Options = Options {
    keep_checkpoints: false,
    figures_alone: true,
    profile: false,
};

/// One model and relation of an experiment.
pub(super) struct Cell<'a> {
    pub experiment: &'a Experiment,
    pub scale: &'a Scale,
    pub only: Option<&'a [String]>,
    pub out: &'a Path,
    pub progress: &'a Progress,
    pub relation: &'a str,
    pub model: &'a Model,
    /// Its facts, once something is to be run on them.
    pub data: Option<Data>,
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

    /// Every arm with every seed; of several processes each runs its share of what is left, and the first one has the records.
    pub fn runs(&mut self, records: &mut Vec<Record>) -> Result<()> {
        if ranks::size() > 1 {
            self.share_runs()?;
            if !ranks::is_first() {
                return Ok(());
            }
        }
        ranks::alone(|| self.all_runs(records))
    }

    /// Runs this process's share of what is left to be run, and waits for the others.
    fn share_runs(&mut self) -> Result<()> {
        let experiment = self.experiment;
        let mut left = Vec::new();
        for &seed in &self.scale.seeds {
            for arm in &experiment.arms {
                let planned = self.planned(arm, seed)?;
                if arm.has(self.relation, seed) && planned.is_left()? {
                    left.push((arm, planned));
                }
            }
        }
        // Nothing is recorded before all have seen what is left.
        ranks::wait();
        if !left.is_empty() {
            self.data()?;
        }
        let (rank, size) = (ranks::rank(), ranks::size());
        ranks::alone(|| {
            let mut own = left.into_iter().skip(rank).step_by(size);
            own.try_for_each(|(arm, planned)| self.run(arm, planned).map(drop))
        })?;
        ranks::wait();
        Ok(())
    }

    /// What running an arm with a seed comes to.
    fn planned(&self, arm: &Arm, seed: u64) -> Result<Planned> {
        let config = self
            .experiment
            .config(&self.model.name, self.scale, arm, seed)?;
        // What `auto` stands for is part of what a record is of.
        let config = auto::written_out(&config, &self.model.config);
        let of = (self.scale, arm);
        Ok(Planned {
            path: self.place(&format!("{seed}-{}", arm.name)),
            print: record::fingerprint(&config, of, self.relation, &self.model.checksum),
            wanted: self.only.is_none_or(|only| only.contains(&arm.name)),
            config,
        })
    }

    fn all_runs(&mut self, records: &mut Vec<Record>) -> Result<()> {
        let (experiment, scale, relation) = (self.experiment, self.scale, self.relation);
        for &seed in &scale.seeds {
            let mut own = Vec::new();
            for arm in experiment.arms.iter().filter(|arm| arm.has(relation, seed)) {
                let planned = self.planned(arm, seed)?;
                if planned.is_left()? {
                    own.push(self.run(arm, planned)?);
                } else {
                    own.extend(Record::read(&planned.path)?);
                }
            }
            if !own.is_empty() {
                let facts = Arc::new(self.held_out(seed)?);
                for record in &mut own {
                    record.facts = Arc::clone(&facts);
                }
            }
            records.append(&mut own);
        }
        Ok(())
    }

    /// The facts that every arm with this seed holds out.
    fn held_out(&mut self, seed: u64) -> Result<HeldOut> {
        let (scale, relation) = (self.scale, self.relation);
        let path = self.place(&format!("{seed}-held-out"));
        let audit =
            record::audit_fingerprint(&self.settings(), scale, relation, &self.model.checksum);
        let print = record::held_out_fingerprint(&audit, seed);
        match record::read::<HeldOut>(&path)? {
            Some(facts) if facts.fingerprint == print => Ok(facts),
            _ if self.only.is_some_and(<[String]>::is_empty) => Err(Error::input_hint(
                format!("{} does not say which facts were held out", path.display()),
                "run the experiment again without --recorded: what is recorded is not run again, but its facts are audited",
            )),
            _ => {
                let data = self.data()?;
                let facts = HeldOut::of(&data.splits(scale, seed)?, &data.elsewhere, print);
                record::write(&facts, &path)?;
                Ok(facts)
            }
        }
    }

    /// Its facts, audited once.
    fn data(&mut self) -> Result<&Data> {
        if self.data.is_none() {
            self.data = Some(self.audited()?);
        }
        Ok(self.data.as_ref().expect("audited above"))
    }

    /// Runs one arm and records it.
    fn run(&mut self, arm: &Arm, planned: Planned) -> Result<Record> {
        let Planned {
            config,
            path,
            print,
            ..
        } = planned;
        let name = path
            .file_stem()
            .expect("a record has a name")
            .to_string_lossy();
        self.progress
            .note(format_args!("{}: {name}", self.experiment.name));
        let config = Config {
            out: self.out.join(RUNS).join(&*name),
            ..config
        };
        let (model, scale, relation) = (self.model, self.scale, self.relation);
        let progress = self.progress;
        let warm = self.warm(arm, &config);
        let data = self.data()?;
        let run = data.run((model, arm), &config, scale, warm, progress)?;
        let elsewhere = data.elsewhere_right(&run, &config)?;
        let record = Record::of(&run, &arm.name, relation, print, elsewhere)?;
        record::write(&record, &path)?;
        remove(run.path())?;
        Ok(record)
    }

    /// The place that this arm shares with those that do not differ from it before their snapshots, if it takes one.
    fn warm(&self, arm: &Arm, config: &Config) -> Option<PathBuf> {
        let method = &config.method;
        // These are at work before the snapshot.
        let is_held = method.budget.is_some() || method.replay.is_some() || method.ewc.is_some();
        if method.snapshot_epochs() == 0 || is_held {
            return None;
        }
        let alike = Config {
            out: PathBuf::new(),
            method: Method {
                snapshot_epoch: method.snapshot_epoch,
                ..Method::default()
            },
            ..config.clone()
        };
        let arm = (self.scale, arm);
        let print = record::fingerprint(&alike, arm, self.relation, &self.model.checksum);
        Some(self.out.join(RUNS).join(format!("{WARM}{print}")))
    }

    /// How well the model knows the relation's facts, those to train on and those to hold out.
    pub fn audit(&mut self) -> Result<Option<AuditRecord>> {
        let (scale, relation) = (self.scale, self.relation);
        let path = self.place("audit");
        let settings = self.settings();
        let print = record::audit_fingerprint(&settings, scale, relation, &self.model.checksum);
        match record::read::<AuditRecord>(&path)? {
            Some(record) if record.fingerprint == print || self.only.is_some() => Ok(Some(record)),
            None if self.only.is_some() => Ok(None),
            _ => {
                let (train, held) = source::read(scale, relation)?;
                let audit = self.ask(&[train, held].concat())?;
                let record = AuditRecord::of(&audit, &self.model.name, relation, print);
                record::write(&record, &path)?;
                Ok(Some(record))
            }
        }
    }

    /// Examples of names made up from the relation's subjects.
    pub fn keys(&self) -> Result<String> {
        let (train, held) = source::read(self.scale, self.relation)?;
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
            self.model,
            &mut engine,
            facts,
            None,
            &settings,
            self.progress,
        )
    }

    /// Reads the facts and labels them.
    fn audited(&self) -> Result<Data> {
        let (train, held) = source::read(self.scale, self.relation)?;
        let mut others = Vec::new();
        if self.scale.elsewhere > 0 {
            let own: Vec<&str> = source::relations(self.relation).collect();
            others = source::pack()?;
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

/// An arm with a seed, and what is recorded of it under which name.
struct Planned {
    config: Config,
    path: PathBuf,
    print: String,
    wanted: bool,
}

impl Planned {
    /// Whether it is to be run: it is wanted, and nothing is recorded or something else.
    fn is_left(&self) -> Result<bool> {
        let is_recorded = Record::read(&self.path)?.is_some_and(|r| r.fingerprint == self.print);
        Ok(self.wanted && !is_recorded)
    }
}

pub(super) fn remove(dir: &Path) -> Result<()> {
    fs::remove_dir_all(dir).map_err(Error::io("remove", dir))
}

/// The facts of one relation, audited.
pub(super) struct Data {
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
        (model, arm): (&Model, &Arm),
        config: &Config,
        scale: &Scale,
        warm: Option<PathBuf>,
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
            let mut splits = self.splits(scale, config.seed)?;
            if let Some(synthetic) = arm.synthetic {
                splits.unknown = self.made_up(synthetic, scale, model, config.seed)?;
            }
            let splits = if arm.name == ONLY_KNOWN {
                splits.only_known()
            } else {
                splits
            };
            train::tune_on(model, splits, config, OPTIONS, warm, progress)?;
        }
        RunDir::open(&config.out)
    }

    /// What an arm with this seed trains on and holds out, but for made-up facts.
    fn splits(&self, scale: &Scale, seed: u64) -> Result<Splits> {
        let sizes = Sizes {
            known: scale.known,
            unknown: scale.unknown,
            held: scale.held,
            maybe_known: scale.maybe_known,
            weakly_known: scale.weakly_known,
            balanced: false,
        };
        Splits::paper(self.train.clone(), self.held.clone(), sizes, 0.0, seed)
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

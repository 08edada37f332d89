//! Runs one model and relation of an experiment: facts, audits, training runs.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    file::{Arm, Experiment, ExperimentScale, ONLY_KNOWN, Synthetic},
    keys,
    record::{self, AuditRecord, HeldOutFacts, Record},
    source,
};
use crate::{
    Error, Result,
    audit::{AuditResult, AuditSettings, Label, audit},
    config::{Config, MethodConfig},
    distributed::Comm,
    engine::Engine,
    facts::Fact,
    generate::Generator,
    measure::EvalSet,
    model::Model,
    progress::Progress,
    prompt::PromptTemplate,
    run::RunDir,
    splits::{LabelledFact, SplitSizes, Splits},
    synth::SyntheticFacts,
    system,
    train::{self, Options, SPLITS},
};

/// The folder of unfinished runs and of the checkpoints that they share.
pub(super) const RUNS_DIR: &str = ".runs";

/// The prefix of the folders of shared checkpoints.
pub(super) const SHARED_PREFIX_DIR: &str = "shared-prefix-";

/// Options of every run.
const OPTIONS: Options = Options {
    device: None,
    comm: Comm::single(),
    keep_checkpoints: false,
    metrics_only: true,
    profile: false,
};

/// Which runs of an experiment are made, and what is recorded of them.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions<'a> {
    /// Only these arms; an empty list: none.
    pub only: Option<&'a [String]>,
    /// Whether the seconds of a step are recorded; not where the machine does other work beside the runs.
    pub is_timed: bool,
}

/// One model and relation of an experiment.
pub(super) struct Runner<'a> {
    pub experiment: &'a Experiment,
    pub scale: &'a ExperimentScale,
    pub options: RunOptions<'a>,
    pub out: &'a Path,
    pub comm: Comm,
    pub progress: &'a Progress,
    pub relation: &'a str,
    pub model: &'a Model,
    /// The facts, loaded when the first run needs them.
    pub data: Option<AuditedData>,
}

impl Runner<'_> {
    /// The path of the record `name`.
    fn record_path(&self, name: &str) -> PathBuf {
        let (scale, model) = (self.scale, &self.model.name);
        let name = self
            .experiment
            .record_file_name(scale, model, self.relation, name);
        self.out.join(name)
    }

    /// Runs every arm with every seed. With several processes, each runs a shard of the pending runs, and the main one collects the
    /// records.
    pub fn run_all_ranks(&mut self, records: &mut Vec<Record>) -> Result<()> {
        if self.comm.world_size() > 1 {
            self.run_shard()?;
            if !self.comm.is_main() {
                return Ok(());
            }
            // The others are done.
            self.comm = Comm::single();
        }
        self.run_all(records)
    }

    /// Runs the shard of this process and waits for the others.
    fn run_shard(&mut self) -> Result<()> {
        let experiment = self.experiment;
        let mut pending = Vec::new();
        for &seed in &self.scale.seeds {
            for arm in &experiment.arms {
                let planned = self.plan(arm, seed)?;
                if arm.runs_on(self.relation, seed) && planned.is_pending()? {
                    pending.push((arm, planned));
                }
            }
        }
        // All processes must see the same pending runs before one of them writes a record.
        self.comm.barrier();
        if !pending.is_empty() {
            self.data()?;
        }
        let (rank, size) = (self.comm.rank(), self.comm.world_size());
        let mut own = pending.into_iter().skip(rank).step_by(size);
        own.try_for_each(|(arm, planned)| self.run(arm, planned).map(drop))?;
        self.comm.barrier();
        Ok(())
    }

    /// The config, record path and fingerprint of an arm with a seed.
    fn plan(&self, arm: &Arm, seed: u64) -> Result<PlannedRun> {
        let config = self
            .experiment
            .config(&self.model.name, self.scale, arm, seed)?;
        // The fingerprint covers the settings that `auto` stands for.
        let config = config.resolve(self.model.size()).config;
        let checksum = &self.model.checksum;
        let fingerprint = record::fingerprint(&config, self.scale, arm, self.relation, checksum);
        Ok(PlannedRun {
            path: self.record_path(&format!("{seed}-{}", arm.name)),
            fingerprint,
            selected: self
                .options
                .only
                .is_none_or(|only| only.contains(&arm.name)),
            config,
        })
    }

    /// Runs every pending arm and collects all records.
    fn run_all(&mut self, records: &mut Vec<Record>) -> Result<()> {
        let (experiment, scale, relation) = (self.experiment, self.scale, self.relation);
        for &seed in &scale.seeds {
            let mut own = Vec::new();
            for arm in experiment
                .arms
                .iter()
                .filter(|arm| arm.runs_on(relation, seed))
            {
                let planned = self.plan(arm, seed)?;
                if planned.is_pending()? {
                    own.push(self.run(arm, planned)?);
                } else {
                    own.extend(Record::read(&planned.path)?);
                }
            }
            if !own.is_empty() {
                let facts = Arc::new(self.held_out_facts(seed)?);
                for record in &mut own {
                    record.facts = Arc::clone(&facts);
                }
            }
            records.append(&mut own);
        }
        Ok(())
    }

    /// The held-out facts of this seed, the same for every arm.
    fn held_out_facts(&mut self, seed: u64) -> Result<HeldOutFacts> {
        let (scale, relation) = (self.scale, self.relation);
        let path = self.record_path(&format!("{seed}-held-out"));
        let audit = record::audit_fingerprint(
            &self.audit_settings(),
            scale,
            relation,
            &self.model.checksum,
        );
        let fingerprint = record::held_out_fingerprint(&audit, seed);
        match record::read::<HeldOutFacts>(&path)? {
            Some(facts) if facts.fingerprint == fingerprint => Ok(facts),
            _ if self.options.only.is_some_and(<[String]>::is_empty) => Err(Error::input_hint(
                format!(
                    "{} does not list the held-out facts of this experiment",
                    path.display()
                ),
                "run it without --recorded: recorded runs are skipped, and the facts are audited again",
            )),
            _ => {
                let data = self.data()?;
                let facts = HeldOutFacts::new(
                    &data.splits(scale, seed)?,
                    &data.other_relations,
                    fingerprint,
                );
                record::write(&facts, &path)?;
                Ok(facts)
            }
        }
    }

    /// The audited facts, loaded once.
    fn data(&mut self) -> Result<&AuditedData> {
        if self.data.is_none() {
            self.data = Some(self.load_data()?);
        }
        Ok(self.data.as_ref().expect("audited above"))
    }

    /// Runs one arm and writes its record.
    fn run(&mut self, arm: &Arm, planned: PlannedRun) -> Result<Record> {
        let PlannedRun {
            config,
            path,
            fingerprint,
            ..
        } = planned;
        let name = path
            .file_stem()
            .expect("a record file has a name")
            .to_string_lossy();
        self.progress
            .note(format_args!("{}: {name}", self.experiment.name));
        let config = Config {
            out: self.out.join(RUNS_DIR).join(&*name),
            ..config
        };
        let relation = self.relation;
        let run = self.train(arm, &config)?;
        let other_relations = self.data()?.other_relations_correct(&run, &config)?;
        let is_timed = self.options.is_timed;
        let record = Record::from_run(
            &run,
            &arm.name,
            relation,
            fingerprint,
            other_relations,
            is_timed,
        )?;
        record::write(&record, &path)?;
        remove(run.path())?;
        Ok(record)
    }

    /// The run directory of an arm after training; an interrupted run is resumed.
    fn train(&mut self, arm: &Arm, config: &Config) -> Result<RunDir> {
        system::reset_peak_memory();
        let started_config = RunDir::open(&config.out).and_then(|run| run.config());
        let can_resume = config.out.join(SPLITS).is_file();
        if can_resume && started_config.is_ok_and(|started| started == *config) {
            train::resume(&config.out, OPTIONS, self.progress)?;
            return RunDir::open(&config.out);
        }
        if config.out.exists() {
            remove(&config.out)?;
        }
        let (model, scale, progress) = (self.model, self.scale, self.progress);
        let shared_prefix = self.shared_prefix_dir(arm, config);
        let data = self.data()?;
        let mut splits = data.splits(scale, config.seed)?;
        if let Some(synthetic) = arm.synthetic {
            splits.unknown = data.synthetic_facts(synthetic, scale, model, config.seed)?;
        }
        if arm.name == ONLY_KNOWN {
            splits = splits.only_known();
        }
        train::tune_on(model, splits, config, OPTIONS, shared_prefix, progress)?;
        RunDir::open(&config.out)
    }

    /// The directory of checkpoints shared by all arms that are identical up to their snapshots, for arms that have one.
    fn shared_prefix_dir(&self, arm: &Arm, config: &Config) -> Option<PathBuf> {
        let method = &config.method;
        // These act before the snapshot.
        let acts_before_snapshot =
            method.budget.is_some() || method.replay.is_some() || method.ewc.is_some();
        if method.effective_snapshot_epochs() == 0 || acts_before_snapshot {
            return None;
        }
        let prefix_config = Config {
            out: PathBuf::new(),
            method: MethodConfig {
                snapshot_epochs: method.snapshot_epochs,
                ..MethodConfig::default()
            },
            ..config.clone()
        };
        let (scale, checksum) = (self.scale, &self.model.checksum);
        let fingerprint = record::fingerprint(&prefix_config, scale, arm, self.relation, checksum);
        Some(
            self.out
                .join(RUNS_DIR)
                .join(format!("{SHARED_PREFIX_DIR}{fingerprint}")),
        )
    }

    /// The audit of the relation, over the facts to train on and to hold out.
    pub fn audit(&mut self) -> Result<Option<AuditRecord>> {
        let (scale, relation) = (self.scale, self.relation);
        let path = self.record_path("audit");
        let settings = self.audit_settings();
        let fingerprint =
            record::audit_fingerprint(&settings, scale, relation, &self.model.checksum);
        match record::read::<AuditRecord>(&path)? {
            Some(record) if record.fingerprint == fingerprint || self.options.only.is_some() => {
                Ok(Some(record))
            }
            None if self.options.only.is_some() => Ok(None),
            _ => {
                let (train, held) = source::read(scale, relation)?;
                let audit = self.audit_facts(&[train, held].concat())?;
                let record = AuditRecord::new(&audit, &self.model.name, relation, fingerprint);
                record::write(&record, &path)?;
                Ok(Some(record))
            }
        }
    }

    /// Examples of synthetic names made from the subjects of the relation.
    pub fn keys(&self) -> Result<String> {
        let (train, held) = source::read(self.scale, self.relation)?;
        keys::markdown(
            &[train, held].concat(),
            &self.model.tokenizer,
            self.scale.seeds[0],
        )
    }

    /// The settings of the audits.
    fn audit_settings(&self) -> AuditSettings {
        AuditSettings {
            num_prompts: self.experiment.audit_num_prompts(self.scale),
            ..AuditSettings::default()
        }
    }

    /// Audits `facts`; audits are cached.
    fn audit_facts(&self, facts: &[Fact]) -> Result<AuditResult> {
        let mut engine = Engine::new(&self.model.config).with_comm(self.comm);
        let settings = self.audit_settings();
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
    fn load_data(&self) -> Result<AuditedData> {
        let (train, held) = source::read(self.scale, self.relation)?;
        let mut others = Vec::new();
        if self.scale.other_relations > 0 {
            let own: Vec<&str> = source::relations(self.relation).collect();
            others = source::read_pack()?;
            others.retain(|f| !own.contains(&&f.relation[..]));
        }
        let labelled = |facts: Vec<Fact>| -> Result<Vec<LabelledFact>> {
            if facts.is_empty() {
                return Ok(Vec::new());
            }
            let audit = self.audit_facts(&facts)?;
            let audited = facts.into_iter().zip(&audit.facts);
            Ok(audited
                .map(|(fact, a)| LabelledFact::new(fact, Some(a)))
                .collect())
        };
        let trained = train.len();
        let mut all = labelled([train, held].concat())?;
        let held = all.split_off(trained);
        let mut other_relations = labelled(others)?;
        other_relations.retain(|f| f.label == Some(Label::HighlyKnown));
        other_relations.truncate(self.scale.other_relations);
        Ok(AuditedData {
            train: all,
            held,
            other_relations: other_relations.into_iter().map(|f| f.fact).collect(),
        })
    }
}

/// An arm with a seed: its config and the path and fingerprint of its record.
struct PlannedRun {
    config: Config,
    path: PathBuf,
    fingerprint: String,
    selected: bool,
}

impl PlannedRun {
    /// Whether it has to run: it is selected, and there is no record with its fingerprint.
    fn is_pending(&self) -> Result<bool> {
        let is_recorded =
            Record::read(&self.path)?.is_some_and(|r| r.fingerprint == self.fingerprint);
        Ok(self.selected && !is_recorded)
    }
}

pub(super) fn remove(dir: &Path) -> Result<()> {
    fs::remove_dir_all(dir).map_err(Error::io("remove", dir))
}

/// The audited facts of one relation.
pub(super) struct AuditedData {
    /// Facts to train on.
    train: Vec<LabelledFact>,
    /// Facts to hold out.
    held: Vec<LabelledFact>,
    /// `HighlyKnown` facts of other relations.
    other_relations: Vec<Fact>,
}

impl AuditedData {
    /// The splits of a seed, without synthetic facts.
    fn splits(&self, scale: &ExperimentScale, seed: u64) -> Result<Splits> {
        let sizes = SplitSizes {
            known: scale.known,
            unknown: scale.unknown,
            held: scale.held,
            maybe_known: scale.maybe_known,
            weakly_known: scale.weakly_known,
            balanced: false,
        };
        Splits::paper(self.train.clone(), self.held.clone(), sizes, 0.0, seed)
    }

    /// Synthetic facts that resemble the real ones and contain none of them.
    fn synthetic_facts(
        &self,
        synthetic: Synthetic,
        scale: &ExperimentScale,
        model: &Model,
        seed: u64,
    ) -> Result<Vec<LabelledFact>> {
        let Synthetic { keys, values, .. } = synthetic;
        let real = self.train.iter().chain(&self.held);
        let real: Vec<Fact> = real.map(|f| f.fact.clone()).collect();
        SyntheticFacts::new(&real, keys, values, &model.tokenizer, seed)?
            .take(scale.num_synthetic(synthetic))
            .map(|fact| Ok(LabelledFact::new(fact?, None)))
            .collect()
    }

    /// Whether each known fact of other relations is correct after `run`.
    fn other_relations_correct(&self, run: &RunDir, config: &Config) -> Result<Vec<bool>> {
        let model = Model::load(&run.file("model").display().to_string())?;
        let template = PromptTemplate::from_config(&config.data);
        let eval_set = EvalSet::new(
            &self.other_relations,
            &template,
            &model.tokenizer,
            config.data.match_rule,
        )?;
        let mut engine = Engine::new(&model.config);
        eval_set.correct(&mut Generator::new(&mut engine, &model), &|_| {})
    }
}

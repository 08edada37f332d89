//! From a config to a run: read, check, audit, split, train.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::{
    AuditAfter, RunEstimate, SPLITS, Trainer, TuneJob,
    batches::{text_training_rows, training_rows},
    finish::{SplitRecord, baseline_from_records, splits_from_records},
    previous_runs::{self, previous_runs},
    trainable,
};
use crate::{
    Error, Result,
    audit::{AuditSettings, Label, audit},
    config::Config,
    distributed,
    engine::Engine,
    facts::{self, Fact, ReadOptions, Text, TextKind, drop_contradicted},
    model::Model,
    progress::Progress,
    prompt::PromptTemplate,
    remedy::{continual_ewc, null_space},
    run::{Environment, RunDir, RunResult, TEACHER_DIR},
    splits::{AuditedFiles, LabelledFact, Splits},
};

/// Facts of the pool that are audited for each new one: a small model knows one in six well.
const POOL_FACTS_PER_NEW_ROW: usize = 8;

/// And so many beside, of which the held-out facts come.
const MIN_POOL_FACTS: usize = 1_000;

/// Under what the checksum of texts is recorded.
const TEXTS: &str = "learn_texts";

/// What is not part of the experiment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Leave the checkpoints in place when the run is done.
    pub keep_checkpoints: bool,
    /// Measure what figures need, and nothing that only a report shows: no probabilities, neighbours and places of facts.
    pub metrics_only: bool,
    /// Say where the time of the steps went.
    pub profile: bool,
}

/// Runs an experiment; a run that `config.out` holds already is replaced.
///
/// # Errors
/// [`Error::Input`] for whatever is wrong with config, facts or model, before any compute and with nothing written;
/// [`Error::NonFinite`] when training diverges; [`Error::Interrupted`]
/// after Ctrl-C; [`Error::Io`] when the run cannot be written.
pub fn tune(config: &Config, options: Options, progress: &Progress) -> Result<RunResult> {
    trainer(config, options, progress)?.run()
}

/// A run that is ready to begin: everything is read, checked, audited and split.
pub(super) fn trainer<'a>(
    config: &Config,
    options: Options,
    progress: &'a Progress,
) -> Result<Trainer<'a>> {
    let LoadedInputs {
        config,
        model,
        data,
    } = LoadedInputs::read(config, progress)?;
    let config = &config;
    let out = create_run_dir(&config.out, config, &model, data.checksums.clone())?;
    let audit_after = data.audit_after(config, &model)?;
    let texts = Arc::clone(&data.texts);
    let begun = out.clone();
    let ready = || {
        let mut splits = data.split(config, &model, progress)?;
        if config.method.budget.is_some() {
            splits.reserve_control(config.seed)?;
        }
        splits.notes.iter().for_each(|note| progress.note(note));
        let job = TuneJob {
            config: config.clone(),
            model,
            splits,
            texts,
            out,
            audit_after,
            options,
            warm: None,
        };
        Trainer::new(job, progress)
    };
    // What only the audit shows to be no experiment leaves nothing behind.
    ready().inspect_err(|wrong| {
        if matches!(wrong, Error::Input { .. }) {
            begun.discard();
        }
    })
}

/// What the run of `config` would take. Nothing is audited, asked of the base model or written into `config.out`: known facts
/// that the audit would choose are taken to be the first ones.
///
/// # Errors
/// [`Error::Input`] for whatever is wrong with config, facts or model, and when the machine has too little memory.
pub fn estimate(config: &Config, progress: &Progress) -> Result<RunEstimate> {
    let LoadedInputs {
        config,
        model,
        data,
    } = LoadedInputs::read(config, progress)?;
    let config = &config;
    let audit = config.data.audit.as_ref();
    let audited = audit.map_or(0, |audit| audit.num_prompts * data.facts_to_audit().len());
    let texts = Arc::clone(&data.texts);
    let mut splits = data.unaudited_splits(config)?;
    if config.method.budget.is_some() {
        splits.reserve_control(config.seed)?;
    }
    // Steps that are timed write their metrics.
    let place = tempfile::tempdir().map_err(Error::io("write", &std::env::temp_dir()))?;
    let job = TuneJob {
        config: config.clone(),
        out: create_run_dir(place.path(), config, &model, BTreeMap::new())?,
        model,
        splits,
        texts,
        audit_after: None,
        options: Options::default(),
        warm: None,
    };
    Trainer::new(job, &Progress::quiet())?.estimate(audited)
}

/// Runs `config` on facts that are audited and split already; labels after training are not asked.
///
/// `warm` is a place that runs share which do not differ before their snapshots: the first one leaves there what it stood at
/// then, and the others go on from it.
///
/// # Errors
/// As [`tune`].
pub fn tune_on(
    model: &Model,
    splits: Splits,
    config: &Config,
    options: Options,
    warm: Option<PathBuf>,
    progress: &Progress,
) -> Result<RunResult> {
    config.validate()?;
    let config = &resolve_config(config, model, progress);
    let trained = splits.known.iter().chain(&splits.unknown);
    check(config, model, trained.map(|f| &f.fact), &[])?;
    let job = TuneJob {
        config: config.clone(),
        model: model.clone(),
        splits,
        texts: [].into(),
        out: create_run_dir(&config.out, config, model, BTreeMap::new())?,
        audit_after: None,
        options,
        warm,
    };
    Trainer::new(job, progress)?.run()
}

/// Goes on with the run in `dir` from its newest whole checkpoint, to the bit; from none it starts over; of a finished run
/// the result is returned.
///
/// # Errors
/// [`Error::Input`] when `dir` holds no run, or the base model is not the one that it was begun with; then as [`tune`].
pub fn resume(dir: &Path, options: Options, progress: &Progress) -> Result<RunResult> {
    let out = RunDir::open(dir)?.lock()?;
    if let Some(result) = out.result()? {
        progress.note(format_args!("{} is finished already", dir.display()));
        if !options.keep_checkpoints {
            // A run that was killed at its very end may have left them.
            out.remove("checkpoints")?;
            out.remove(TEACHER_DIR)?;
        }
        return Ok(result);
    }
    let config = Config {
        out: dir.to_owned(),
        ..out.config()?
    };
    if !out.file(SPLITS).is_file() {
        progress.note("the run was stopped before its training began: it starts over");
        drop(out);
        return tune(&config, options, progress);
    }
    let model = Model::load(&config.model)?;
    let environment: Environment = out.read_json("environment.json")?;
    if environment.model.checksum != model.checksum {
        return Err(Error::input(format!(
            "{} is not the model that the run was begun with: its checksum is {}, not {}",
            config.model, model.checksum, environment.model.checksum
        )));
    }
    let rows: Vec<SplitRecord> = out.read_rows(SPLITS)?;
    let (texts, audit_after) = reread_data(&config, &model, &environment.data, progress)?;
    let job = TuneJob {
        config,
        model,
        splits: splits_from_records(&rows),
        texts,
        out,
        audit_after,
        options,
        warm: None,
    };
    let mut trainer = Trainer::new(job, progress)?;
    if trainer.restore(baseline_from_records(rows))? {
        progress.note(format_args!(
            "going on after step {} (epoch {})",
            trainer.state.step,
            trainer.state.epoch + 1
        ));
    } else {
        progress.note("there is no whole checkpoint: the run starts over");
        trainer.begin()?;
    }
    trainer.train()?;
    trainer.finish()
}

/// What a resumed run needs of the data's files: the texts, and how to audit again.
fn reread_data(
    config: &Config,
    model: &Model,
    checksums: &BTreeMap<String, String>,
    progress: &Progress,
) -> Result<(Arc<[Text]>, Option<AuditAfter>)> {
    if checksums.is_empty() {
        // The run was given facts, not files.
        return Ok(([].into(), None));
    }
    match Data::read(config) {
        Ok(data) if data.checksums == *checksums => {
            Ok((Arc::clone(&data.texts), data.audit_after(config, model)?))
        }
        _ if checksums.contains_key(TEXTS) => Err(Error::input(
            "the files of `data` are no longer those that the run was begun with",
        )),
        _ => {
            progress.note(
                "the files of `data` are no longer those that the run was begun with: labels after training will be missing",
            );
            Ok(([].into(), None))
        }
    }
}

/// The config with every choice made that it leaves open, for `model`.
fn resolve_config(config: &Config, model: &Model, progress: &Progress) -> Config {
    let resolved = config.resolve(model.size());
    resolved.notes.iter().for_each(|note| progress.note(note));
    resolved.config
}

/// Checks settings that several processes cannot train together.
fn check_distributed(config: &Config) -> Result<()> {
    if distributed::world_size() == 1 {
        return Ok(());
    }
    let refused = |key: &str, reason: &str| Err(Error::input(format!("`{key}` {reason}")));
    if config.train.optimizer_in_backward {
        return refused(
            "train.optimizer_in_backward",
            "updates each layer before the next gradient is computed, and several processes sum whole gradients",
        );
    }
    if config.measure.grad_norms && config.train.lora.is_some() {
        return refused(
            "measure.grad_norms",
            "is not supported for adapters that several processes train",
        );
    }
    Ok(())
}

/// What can be wrong with a run's settings, found before any compute.
fn check<'a>(
    config: &Config,
    model: &Model,
    facts: impl IntoIterator<Item = &'a Fact>,
    texts: &[Text],
) -> Result<()> {
    check_distributed(config)?;
    let layout = &model.params.layout;
    let trained = trainable::trainable_tensors(&config.train, &model.params)?;
    if config.method.project.is_some() && !null_space::has_projected_weights(layout, &trained) {
        return Err(Error::input_hint(
            "`method.project` freezes all but the weights of linear layers, and `train.trainable` names none of these",
            "train \"all\", or another group with weights of attention or feed-forward layers",
        ));
    }
    if let Some(ewc) = &config.method.ewc {
        previous_runs::check(ewc, &config.out)?;
        continual_ewc::check(&previous_runs(ewc), model, &trained)?;
    }
    training_rows(facts, &template(config, model)?, model, &config.train)?;
    text_training_rows(texts, model, &config.train)?;
    if let Some(baseline) = &config.baseline
        && RunDir::open(baseline)?.result()?.is_none()
    {
        return Err(Error::input_hint(
            format!("the baseline {} is not finished", baseline.display()),
            format!("finish it with `unforget resume {}`", baseline.display()),
        ));
    }
    Ok(())
}

/// Makes the run directory, with all that a resumed run needs to start over.
fn create_run_dir(
    out: &Path,
    config: &Config,
    model: &Model,
    data: BTreeMap<String, String>,
) -> Result<RunDir> {
    let out = RunDir::create(out)?;
    out.write_json(
        "environment.json",
        &Environment::capture(model, config.seed, data),
    )?;
    out.write("config.toml", config.to_toml().as_bytes())?;
    Ok(out)
}

/// What a config names, read and checked.
struct LoadedInputs {
    /// The config with what it stands for written out.
    config: Config,
    model: Model,
    data: Data,
}

impl LoadedInputs {
    fn read(config: &Config, progress: &Progress) -> Result<Self> {
        config.validate()?;
        let data = Data::read(config)?;
        data.notes.iter().for_each(|note| progress.note(note));
        if data.has_chats() && !config.data.chat {
            progress.note(
                "chats are learned, and what is forgotten is asked outside of a chat, where a model may know more: \
                 `--set data.chat=true --set data.match=contains` asks as the model will be asked",
            );
        }
        let model = Model::load(&config.model)?;
        let config = resolve_config(config, &model, progress);
        let facts = data.learn.iter().chain(data.keep.iter().flatten());
        check(&config, &model, facts, &data.texts)?;
        Ok(Self {
            config,
            model,
            data,
        })
    }
}

/// The facts of an experiment as read.
struct Data {
    learn: Vec<Fact>,
    /// What of `data.learn` is no fact.
    texts: Arc<[Text]>,
    keep: Option<Vec<Fact>>,
    held: Option<Vec<Fact>>,
    /// Where facts come from that the user doesn't give.
    pool: Vec<Fact>,
    checksums: BTreeMap<String, String>,
    notes: Vec<String>,
}

impl Data {
    /// Reads the files; what `learn` contradicts or repeats is taken out of what is kept and held.
    fn read(config: &Config) -> Result<Self> {
        let (data, audited) = (&config.data, config.data.audit.is_some());
        let options = ReadOptions {
            skip_bad_rows: data.skip_bad_rows,
            ..ReadOptions::default()
        };
        let mut read = Self {
            learn: Vec::new(),
            texts: [].into(),
            keep: None,
            held: None,
            pool: Vec::new(),
            checksums: BTreeMap::new(),
            notes: Vec::new(),
        };
        let (texts, learn) = split_by_kind(&facts::resolve_files(&data.learn)?)?;
        read.learn = read.set("learn", &learn, options)?.unwrap_or_default();
        read.read_texts(&texts, options)?;
        read.keep = read.set("keep", &facts::resolve_files(&data.keep)?, options)?;
        read.held = read.set("held", &facts::resolve_files(&data.held)?, options)?;
        if audited && (read.keep.is_none() || read.held.is_none()) {
            let pack = [PathBuf::from(facts::PACK)];
            read.pool = read.set("pool", &pack, options)?.unwrap_or_default();
            read.sample_pool(config.seed);
        }
        for (name, facts) in [
            ("keep", read.keep.as_mut()),
            ("held", read.held.as_mut()),
            ("pack:world", Some(&mut read.pool)),
        ] {
            if let Some(facts) = facts {
                read.notes
                    .extend(drop_contradicted(&read.learn, facts, name));
            }
        }
        if read.learn.is_empty()
            && read.texts.is_empty()
            && read.keep.as_ref().is_none_or(Vec::is_empty)
        {
            return Err(Error::input_hint(
                "there is nothing to train on: neither new facts (`data.learn`) nor known ones (`data.keep`) are given",
                "name a file with facts, such as `--learn new.tsv`",
            ));
        }
        Ok(read)
    }

    fn read_texts(&mut self, files: &[PathBuf], options: ReadOptions) -> Result<()> {
        if files.is_empty() {
            return Ok(());
        }
        let set = facts::read_texts(files, options)?;
        self.notes
            .extend(set.notes.into_iter().map(|note| format!("learn: {note}")));
        self.checksums.insert(TEXTS.into(), set.checksum);
        self.texts = set.texts.into();
        Ok(())
    }

    fn set(
        &mut self,
        name: &str,
        files: &[PathBuf],
        options: ReadOptions,
    ) -> Result<Option<Vec<Fact>>> {
        if files.is_empty() {
            return Ok(None);
        }
        let set = facts::read(files, options)?;
        self.notes
            .extend(set.notes.into_iter().map(|note| format!("{name}: {note}")));
        self.checksums.insert(name.into(), set.checksum);
        Ok(Some(set.facts))
    }

    /// Leaves in the pool what no file asks, of the relations that the files have (of all where it has none of these), and
    /// of that so many as will do: an audit costs time.
    fn sample_pool(&mut self, seed: u64) {
        let mut pool = std::mem::take(&mut self.pool);
        let given: Vec<&Fact> = self.given_facts().collect();
        let questions: HashSet<&str> = given.iter().map(|f| f.question.as_str()).collect();
        let relations: HashSet<&str> = given.iter().map(|f| f.relation.as_str()).collect();
        pool.retain(|f| !questions.contains(f.question.as_str()));
        if pool.iter().any(|f| relations.contains(f.relation.as_str())) {
            pool.retain(|f| relations.contains(f.relation.as_str()));
        }
        let enough =
            MIN_POOL_FACTS + POOL_FACTS_PER_NEW_ROW * (self.learn.len() + self.texts.len());
        if pool.len() > enough {
            pool.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
            pool.truncate(enough);
        }
        self.pool = pool;
    }

    fn given_facts(&self) -> impl Iterator<Item = &Fact> {
        self.learn
            .iter()
            .chain(self.keep.iter().flatten())
            .chain(self.held.iter().flatten())
    }

    fn has_chats(&self) -> bool {
        let is_chat = |text: &Text| matches!(text.kind, TextKind::Chat(_));
        self.texts.iter().any(is_chat)
    }

    /// Every fact that an audit asks, none twice.
    fn facts_to_audit(&self) -> Vec<Fact> {
        let mut seen = HashSet::new();
        self.given_facts()
            .chain(&self.pool)
            .filter(|f| seen.insert((f.relation.clone(), f.question.clone())))
            .cloned()
            .collect()
    }

    /// How the same is asked again after training; none where nothing was asked before.
    fn audit_after(&self, config: &Config, model: &Model) -> Result<Option<AuditAfter>> {
        Ok(audit_settings(config, model)?.map(|settings| AuditAfter {
            settings,
            exemplars: self.facts_to_audit(),
        }))
    }

    /// The splits as they would be if the model knew all that it is not taught.
    fn unaudited_splits(self, config: &Config) -> Result<Splits> {
        let given = |facts: Option<Vec<Fact>>| facts.unwrap_or_default();
        if config.data.audit.is_none() {
            return Ok(Splits::as_given(
                self.learn,
                given(self.keep),
                given(self.held),
            ));
        }
        let known = |facts: Vec<Fact>| -> Vec<LabelledFact> {
            let known = |fact| LabelledFact {
                label: Some(Label::HighlyKnown),
                ..LabelledFact::new(fact, None)
            };
            facts.into_iter().map(known).collect()
        };
        let files = AuditedFiles {
            texts: self.texts.len(),
            learn: known(self.learn),
            keep: self.keep.map(known),
            held: self.held.map(known),
            pool: known(self.pool),
        };
        Splits::from_audit(files, 0.0, config.seed)
    }

    fn split(self, config: &Config, model: &Model, progress: &Progress) -> Result<Splits> {
        let Some(settings) = audit_settings(config, model)? else {
            let given = |facts: Option<Vec<Fact>>| facts.unwrap_or_default();
            return Ok(Splits::as_given(
                self.learn,
                given(self.keep),
                given(self.held),
            ));
        };
        let mut engine = Engine::new(&model.config);
        let audit = audit(
            model,
            &mut engine,
            &self.facts_to_audit(),
            None,
            &settings,
            progress,
        )?;
        let found = audit.by_question();
        let label = |facts: Vec<Fact>| -> Vec<LabelledFact> {
            facts
                .into_iter()
                .map(|fact| {
                    let audited = found
                        .get(&(&fact.relation[..], &fact.question[..]))
                        .copied();
                    LabelledFact::new(fact, audited)
                })
                .collect()
        };
        let files = AuditedFiles {
            texts: self.texts.len(),
            learn: label(self.learn),
            keep: self.keep.map(label),
            held: self.held.map(label),
            pool: label(self.pool),
        };
        Splits::from_audit(files, config.data.min_highly_known, config.seed)
    }
}

/// Files of texts, and files of facts.
fn split_by_kind(files: &[PathBuf]) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let (mut texts, mut tables) = (Vec::new(), Vec::new());
    for file in files {
        let is_pack = file.as_os_str() == facts::PACK;
        if !is_pack && facts::is_text_file(file)? {
            texts.push(file.clone());
        } else {
            tables.push(file.clone());
        }
    }
    Ok((texts, tables))
}

fn audit_settings(config: &Config, model: &Model) -> Result<Option<AuditSettings>> {
    let Some(audit) = &config.data.audit else {
        return Ok(None);
    };
    Ok(Some(AuditSettings {
        num_prompts: audit.num_prompts,
        shots: audit.shots,
        samples: audit.samples,
        sample: audit.sample,
        seed: config.seed,
        template: template(config, model)?,
        match_rule: config.data.match_rule,
        ..AuditSettings::default()
    }))
}

/// How facts are asked and answered.
pub(super) fn template(config: &Config, model: &Model) -> Result<PromptTemplate> {
    PromptTemplate::from_config(&config.data).for_model(config.data.chat, &model.tokenizer)
}

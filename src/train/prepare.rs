//! From a config to a run. A new run, one on given facts, a resumed one and an estimate differ in where their inputs come from;
//! each makes a [`Job`].

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    batches::{text_training_rows, training_rows},
    data::{Data, TEXTS, VALIDATION, check_base_model},
    estimate::RunEstimate,
    evaluator::{AuditAfter, template},
    gpu_student,
    job::{Job, Options, Start},
    own_answers::set_own_answers,
    plan::Plan,
    previous_runs::{self, previous_runs},
    records::{SPLITS, SplitRecord, splits_and_baseline},
    trainable,
    trainer::Trainer,
};
use crate::{
    Error, Result,
    config::{Config, JobRows, MatchRule, MethodConfig, MethodKind, ModelDtype},
    distributed::Comm,
    engine::Engine,
    facts::{Fact, Text},
    model::{GgufType, Model, WeightStorage},
    progress::Progress,
    prompt::{Example, NO_END_NOTE, PromptTemplate, lacks_end},
    remedy::{continual_ewc, null_space},
    run::{Environment, RunData, RunDir, RunResult, TEACHER_DIR, TextKinds},
    splits::Splits,
};

/// Runs an experiment; an earlier run in `config.out` is replaced.
///
/// # Errors
/// [`Error::Input`] for anything wrong with config, facts or model, before any compute and with nothing written;
/// [`Error::NonFinite`] when training diverges; [`Error::Interrupted`] after Ctrl-C; [`Error::Io`] when the run cannot be written.
pub fn tune(config: &Config, options: Options, progress: &Progress) -> Result<RunResult> {
    trainer(config, options, progress)?.run()
}

/// The directory of the Only Known run that [`tune_with_control`] trains for a run in `out`: `runs/new-only-known` for `runs/new`.
pub fn control_dir(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_owned();
    name.push("-only-known");
    out.with_file_name(name)
}

/// As [`tune`], after an Only Known run in `control`, which becomes the baseline: the same facts, epochs and trained parameters, by
/// plain fine-tuning on the known facts alone.
///
/// # Errors
/// As [`tune`]; [`Error::Input`] when the run has no new facts or texts, so that it would be Only Known itself.
pub fn tune_with_control(
    config: &Config,
    control: &Path,
    options: Options,
    progress: &Progress,
) -> Result<RunResult> {
    if let Some(baseline) = &config.baseline {
        return Err(Error::input_hint(
            format!(
                "`--control` trains an Only Known run, and `baseline` names another one, {}",
                baseline.display()
            ),
            "leave out one of them",
        ));
    }
    let inputs = Inputs::read(config, options.comm, progress)?;
    if inputs.data.learn.is_empty() && inputs.data.texts.is_empty() {
        return Err(Error::input_hint(
            "without anything to learn this run is Only Known itself: it needs no control",
            "leave out `--control`, or name new facts with `--learn`",
        ));
    }
    let plan = Plan::before_audit(&inputs.config, &inputs.data, inputs.given_tokens);
    progress.note(format_args!(
        "{}; the Only Known run comes in addition",
        plan.estimate(inputs.model.params.layout.len)
    ));
    plan.announce(inputs.model.params.layout.len, progress);
    let with_baseline = Config {
        baseline: Some(control.to_owned()),
        ..inputs.config.clone()
    };
    let run_data = RunData {
        preset: preset(config),
        ..inputs.data.run_data()
    };
    let run_dir = create_run_dir(
        &with_baseline,
        &inputs.model,
        run_data.clone(),
        options.comm,
    )?;
    let trained = || {
        let Inputs {
            config,
            model,
            data,
            ..
        } = inputs;
        let audit_after = data.audit_after(&config, &model)?;
        let (texts, validation) = (Arc::clone(&data.texts), Arc::clone(&data.validation));
        let splits = split(data, &config, &model, options.comm, progress)?;
        if splits.known.is_empty() {
            return Err(Error::input_hint(
                "there is no known fact to train an Only Known run on",
                "give known facts with `--keep`, or leave out `--control`",
            ));
        }
        progress.note(format_args!("Only Known first, into {}", control.display()));
        let control_config = only_known_config(&config, control);
        // The control learns no texts.
        let run_data = RunData {
            texts: TextKinds::default(),
            preset: None,
            ..run_data
        };
        let job = Job {
            run_dir: create_run_dir(&control_config, &model, run_data, options.comm)?,
            config: control_config,
            model,
            splits: splits.only_known(),
            texts: [].into(),
            validation: [].into(),
            audit_after: None,
            options,
            start: Start::BaseModel,
        };
        let result = Trainer::new(job, progress)?.run();
        progress.note(result.map_err(|error| match error {
            Error::Interrupted { .. } => Error::Interrupted {
                hint: format!(
                    "continue with `unforget resume {}`, then `unforget resume {}`",
                    control.display(),
                    config.out.display()
                ),
            },
            other => other,
        })?);
        // The control run has consumed the model.
        let model = load_model(&config)?;
        Ok((model, splits, [texts, validation], audit_after))
    };
    let (model, splits, [texts, validation], audit_after) =
        discard_on_input_error(&run_dir, trained())?;
    let job = Job {
        config: with_baseline,
        model,
        splits,
        texts,
        validation,
        run_dir,
        audit_after,
        options,
        start: Start::BaseModel,
    };
    Trainer::new(job, progress)?.run()
}

/// Most epochs of an Only Known run beside a run that stops early: known facts are learned in the first ones.
const ONLY_KNOWN_EPOCHS: usize = 5;

/// The config of the Only Known run for the run of `config`: plain fine-tuning without new facts.
fn only_known_config(config: &Config, out: &Path) -> Config {
    let mut only_known = Config {
        out: out.to_owned(),
        baseline: None,
        ..config.clone()
    };
    only_known.data.learn.clear();
    only_known.data.validation.clear();
    only_known.data.validation_share = None;
    // There is nothing new whose learning could stop it.
    if only_known.train.early_stopping.take().is_some() {
        only_known.train.num_epochs = only_known.train.num_epochs.min(ONLY_KNOWN_EPOCHS);
    }
    only_known.method = MethodConfig {
        kind: MethodKind::Sft,
        ..MethodConfig::default()
    };
    only_known
}

/// A run of `config` that is ready to start: everything is read, checked, audited and split.
pub(super) fn trainer(config: &Config, options: Options, progress: &Progress) -> Result<Trainer> {
    let inputs = Inputs::read(config, options.comm, progress)?;
    let plan = Plan::before_audit(&inputs.config, &inputs.data, inputs.given_tokens);
    progress.note(plan.estimate(inputs.model.params.layout.len));
    plan.announce(inputs.model.params.layout.len, progress);
    let run_data = RunData {
        preset: preset(config),
        ..inputs.data.run_data()
    };
    let run_dir = create_run_dir(&inputs.config, &inputs.model, run_data, options.comm)?;
    let created = run_dir.clone();
    let job = || {
        let Inputs {
            config,
            model,
            data,
            ..
        } = inputs;
        let audit_after = data.audit_after(&config, &model)?;
        let (texts, validation) = (Arc::clone(&data.texts), Arc::clone(&data.validation));
        let splits = split(data, &config, &model, options.comm, progress)?;
        let job = Job {
            config,
            model,
            splits,
            texts,
            validation,
            run_dir,
            audit_after,
            options,
            start: Start::BaseModel,
        };
        Trainer::new(job, progress)
    };
    discard_on_input_error(&created, job())
}

/// Discards the run that `prepared` was for if it failed with an input error: one that only the audit finds leaves nothing behind.
fn discard_on_input_error<T>(run_dir: &RunDir, prepared: Result<T>) -> Result<T> {
    if let Err(Error::Input { .. }) = &prepared {
        run_dir.clone().discard();
    }
    prepared
}

/// Audits the data, splits it, and sets control facts aside for a budget.
fn split(
    data: Data,
    config: &Config,
    model: &Model,
    comm: Comm,
    progress: &Progress,
) -> Result<Splits> {
    let mut splits = data.split(config, model, comm, progress)?;
    let mut engine = Engine::on(&model.config, config.device)?.with_comm(comm);
    set_own_answers(config, model, &mut engine, &mut splits, progress)?;
    reserve_control(config, &mut splits)?;
    let known = splits.known_facts();
    let notes = splits.notes.iter().chain(&known);
    notes.for_each(|note| progress.note(note));
    Ok(splits)
}

/// Estimates the memory, disk and time of the run of `config`. Nothing is audited or written into `config.out`: how many facts
/// an audit would find known is guessed.
///
/// # Errors
/// [`Error::Input`] for anything wrong with config, facts or model, and when the machine has too little memory.
pub fn estimate(config: &Config, progress: &Progress) -> Result<RunEstimate> {
    let Inputs {
        config,
        model,
        data,
        ..
    } = Inputs::read(config, Comm::single(), progress)?;
    let audit = config.data.audit.as_ref();
    let audit_prompts = audit.map_or(0, |audit| audit.num_prompts * data.facts_to_audit().len());
    let (texts, validation) = (Arc::clone(&data.texts), Arc::clone(&data.validation));
    let mut splits = data.unaudited_splits(&config)?;
    reserve_control(&config, &mut splits)?;
    // The steps that are timed write metrics.
    let dir = tempfile::tempdir().map_err(Error::io("write", &std::env::temp_dir()))?;
    let config = Config {
        out: dir.path().to_owned(),
        ..config
    };
    let job = Job {
        run_dir: create_run_dir(&config, &model, RunData::default(), Comm::single())?,
        config,
        model,
        splits,
        texts,
        validation,
        audit_after: None,
        options: Options {
            // Nothing is measured of what a report shows.
            metrics_only: true,
            ..Options::default()
        },
        start: Start::BaseModel,
    };
    Trainer::new(job, &Progress::quiet())?.estimate(audit_prompts)
}

/// Runs `config` on facts that are audited and split already; labels after training are null.
///
/// `shared_prefix` is a directory for runs that do not differ before their snapshots: the first one saves its state there when its
/// snapshot is due, and the others continue from it.
///
/// # Errors
/// As [`tune`].
pub fn tune_on(
    model: &Model,
    mut splits: Splits,
    config: &Config,
    options: Options,
    shared_prefix: Option<PathBuf>,
    progress: &Progress,
) -> Result<RunResult> {
    config.validate()?;
    let run_data = RunData {
        preset: preset(config),
        ..RunData::default()
    };
    let rows = JobRows {
        facts: splits.unknown.len(),
        texts: 0,
        known: splits.known.len(),
    };
    let config = resolve_config(config, model, rows, progress);
    let trained = splits.known.iter().chain(&splits.unknown);
    check(&config, model, trained.map(|f| &f.fact), &[], progress)?;
    check_hardware(&config, options.comm)?;
    let mut engine = Engine::on(&model.config, config.device)?.with_comm(options.comm);
    set_own_answers(&config, model, &mut engine, &mut splits, progress)?;
    let job = Job {
        run_dir: create_run_dir(&config, model, run_data, options.comm)?,
        config,
        model: model.clone(),
        splits,
        texts: [].into(),
        validation: [].into(),
        audit_after: None,
        options,
        start: shared_prefix.map_or(Start::BaseModel, Start::SharedPrefix),
    };
    Trainer::new(job, progress)?.run()
}

/// Continues the run in `dir` from its newest complete checkpoint, bitwise identical to a run that was not interrupted; without a
/// checkpoint it starts over. Of a finished run the result is returned.
///
/// # Errors
/// [`Error::Input`] when `dir` holds no run, or the base model has changed since the run started; then as [`tune`].
pub fn resume(dir: &Path, options: Options, progress: &Progress) -> Result<RunResult> {
    let run_dir = RunDir::open(dir)?.with_comm(options.comm).lock()?;
    if let Some(result) = run_dir.result()? {
        progress.note(format_args!("{} is finished already", dir.display()));
        if !options.keep_checkpoints {
            // A run that was killed at its very end may have left them.
            run_dir.remove("checkpoints")?;
            run_dir.remove(TEACHER_DIR)?;
        }
        return Ok(result);
    }
    let own = run_dir.config()?;
    let config = Config {
        out: dir.to_owned(),
        device: options.device.unwrap_or(own.device),
        ..own
    };
    if !run_dir.file(SPLITS).is_file() {
        progress.note("the run was stopped before training started: it starts over");
        drop(run_dir);
        return tune(&config, options, progress);
    }
    let model = load_model(&config)?;
    check_hardware(&config, options.comm)?;
    let environment: Environment = run_dir.read_json("environment.json")?;
    check_base_model(&config, &model, &environment.model.checksum)?;
    let records: Vec<SplitRecord> = run_dir.read_rows(SPLITS)?;
    let (mut splits, baseline) = splits_and_baseline(records);
    splits.prompts = run_dir.prompts()?;
    let Reread {
        texts,
        validation,
        audit_after,
    } = reread_data(&config, &model, &environment.data, progress)?;
    let job = Job {
        config,
        model,
        splits,
        texts,
        validation,
        run_dir,
        audit_after,
        options,
        start: Start::Checkpoint(baseline),
    };
    Trainer::new(job, progress)?.run()
}

/// Sets held-out facts aside for the budget, where one is set.
fn reserve_control(config: &Config, splits: &mut Splits) -> Result<()> {
    match config.method.budget {
        Some(_) => splits.reserve_control(config.seed),
        None => Ok(()),
    }
}

/// The data of a resumed run.
struct Reread {
    /// Chats and other texts to train on.
    texts: Arc<[Text]>,
    /// Those whose loss is measured.
    validation: Arc<[Text]>,
    /// How to audit again.
    audit_after: Option<AuditAfter>,
}

impl Reread {
    /// No files.
    fn nothing() -> Self {
        Self {
            texts: [].into(),
            validation: [].into(),
            audit_after: None,
        }
    }
}

/// Reads the data of a resumed run again.
fn reread_data(
    config: &Config,
    model: &Model,
    checksums: &BTreeMap<String, String>,
    progress: &Progress,
) -> Result<Reread> {
    if checksums.is_empty() {
        // The run was given facts, not files.
        return Ok(Reread::nothing());
    }
    let has_texts = [TEXTS, VALIDATION].iter();
    let has_texts = has_texts.clone().any(|name| checksums.contains_key(*name));
    match Data::read(config) {
        Ok(data) if data.checksums == *checksums => Ok(Reread {
            texts: Arc::clone(&data.texts),
            validation: Arc::clone(&data.validation),
            audit_after: data.audit_after(config, model)?,
        }),
        _ if has_texts => Err(Error::input(
            "the files of `data` have changed since the run started",
        )),
        _ => {
            progress.note(
                "the files of `data` have changed since the run started: labels after training will be missing",
            );
            Ok(Reread::nothing())
        }
    }
}

/// The config with facts asked in the model's chat template where chats are learned, and judged by `contains` in a chat, unless
/// the user set these keys.
fn ask_in_chat(config: &Config, data: &Data, model: &Model, progress: &Progress) -> Config {
    let mut config = config.clone();
    let is_set = |config: &Config, key: &str| config.set_keys.contains(key);
    if data.has_chats() && !config.data.chat {
        let mut asked = config.data.clone();
        asked.chat = true;
        let works = PromptTemplate::from_config(&asked).for_model(true, &model.tokenizer);
        if is_set(&config, "data.chat") || works.is_err() {
            progress.note(
                "chats are learned, and what is forgotten is asked outside of a chat, where a model may know more: \
                 `--set data.chat=true --set data.match=contains` asks as the model will be asked",
            );
            return config;
        }
        progress.note(
            "chats are learned: facts are asked in the model's chat template, too (`data.chat = false` asks outside of a chat)",
        );
        config.data.chat = true;
    }
    if config.data.chat
        && config.data.match_rule == MatchRule::Exact
        && !is_set(&config, "data.match")
    {
        progress.note(
            "in a chat an answer is correct if its first line contains the object (`data.match = \"exact\"` asks for nothing else in it)",
        );
        config.data.match_rule = MatchRule::Contains;
    }
    config
}

/// The config with every choice made that it leaves open, for `model` and a job with these rows.
fn resolve_config(config: &Config, model: &Model, rows: JobRows, progress: &Progress) -> Config {
    let resolved = config.resolve_for(model.size(), rows);
    resolved.notes.iter().for_each(|note| progress.note(note));
    resolved.config
}

/// Checks a config against model and facts, before any compute.
fn check<'a>(
    config: &Config,
    model: &Model,
    facts: impl IntoIterator<Item = &'a Fact>,
    texts: &[Text],
    progress: &Progress,
) -> Result<usize> {
    let layout = &model.params.layout;
    let trained = trainable::trainable_tensors(&config.train, &model.params)?;
    if config.method.project.is_some() && !null_space::has_projected_weights(layout, &trained) {
        return Err(Error::input_hint(
            "`method.project` freezes everything but the weights of linear layers, and `train.trainable` selects none of these",
            "train \"all\", or another group with weights of attention or feed-forward layers",
        ));
    }
    if let Some(ewc) = &config.method.ewc {
        previous_runs::check(ewc, &config.out)?;
        continual_ewc::check(&previous_runs(ewc), model, &trained)?;
    }
    let mut rows = training_rows(facts, &template(config, model)?, model, &config.train)?;
    let (text_rows, notes) = text_training_rows(texts, model, config)?;
    rows.extend(text_rows);
    notes.lines().iter().for_each(|note| progress.note(note));
    if let Some(baseline) = &config.baseline
        && RunDir::open(baseline)?.result()?.is_none()
    {
        return Err(Error::input_hint(
            format!("the baseline {} is not finished", baseline.display()),
            format!("finish it with `unforget resume {}`", baseline.display()),
        ));
    }
    Ok(rows.iter().map(Example::num_tokens).sum())
}

/// Checks settings that the device does not support, or that several processes cannot train together.
fn check_hardware(config: &Config, comm: Comm) -> Result<()> {
    gpu_student::check(config, comm)?;
    if comm.world_size() == 1 {
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

/// The preset that `config`, as the user gave it, is trained with.
fn preset(config: &Config) -> Option<String> {
    config.has_auto().then(|| "auto".to_owned())
}

/// Creates the run directory, with all that a resumed run needs to start over.
fn create_run_dir(config: &Config, model: &Model, data: RunData, comm: Comm) -> Result<RunDir> {
    let run_dir = RunDir::create(&config.out, comm)?;
    run_dir.write_json(
        "environment.json",
        &Environment::capture(model, config, data),
    )?;
    run_dir.write("config.toml", config.to_toml().as_bytes())?;
    Ok(run_dir)
}

/// The base model, with matrices that are not trained as the config has them.
fn load_model(config: &Config) -> Result<Model> {
    let storage = match config.model_dtype {
        ModelDtype::F32 => WeightStorage::F32,
        ModelDtype::Stored => WeightStorage::Stored,
        ModelDtype::Q8_0 => WeightStorage::Quantized(GgufType::Q8_0),
        ModelDtype::Q4_0 => WeightStorage::Quantized(GgufType::Q4_0),
    };
    let model = Model::load_as(&config.model, storage)?;
    if model.params.low_rank.is_some() {
        return Err(Error::input_hint(
            format!(
                "`{}` is an adapter over weights that are not held in f32: no other adapter is trained on top of it",
                config.model
            ),
            "name the base model, or merge the two with `unforget export --to hf`",
        ));
    }
    Ok(model)
}

/// The inputs of a config, read and checked.
struct Inputs {
    /// Resolved.
    config: Config,
    model: Model,
    data: Data,
    /// Tokens of the rows that the files give, prompts and targets.
    given_tokens: usize,
}

impl Inputs {
    fn read(config: &Config, comm: Comm, progress: &Progress) -> Result<Self> {
        config.validate()?;
        let data = Data::read(config)?;
        data.notes.iter().for_each(|note| progress.note(note));
        let model = load_model(config)?;
        if lacks_end(&model.tokenizer, &data.texts) {
            progress.note(NO_END_NOTE);
        }
        let mut config = ask_in_chat(config, &data, &model, progress);
        let rows = JobRows {
            facts: data.learn.len(),
            texts: data.texts.len(),
            known: data.keep.as_ref().map_or(0, Vec::len),
        };
        for note in config.fit_to(rows) {
            progress.note(note);
        }
        let config = resolve_config(&config, &model, rows, progress);
        let facts = data.learn.iter().chain(data.keep.iter().flatten());
        let given_tokens = check(&config, &model, facts, &data.texts, progress)?;
        text_training_rows(&data.validation, &model, &config)?;
        check_hardware(&config, comm)?;
        Ok(Self {
            config,
            model,
            data,
            given_tokens,
        })
    }
}

//! The data of a run: its files are read, facts are audited, and split.

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::evaluator::{AuditAfter, template};
use crate::{
    Error, Result,
    audit::{AuditSettings, Label, audit},
    config::{Config, DataFile, RowWeight},
    distributed::Comm,
    engine::Engine,
    facts::{self, Fact, Location, ReadOptions, Text, TextKind, drop_contradicted},
    model::Model,
    progress::Progress,
    run::{RunData, TextKinds},
    splits::{AuditedFiles, LabelledFact, Splits},
};

/// Facts of the pool that are audited for one that is needed: a small model knows one in six well.
const POOL_FACTS_PER_KNOWN: usize = 8;

/// Bounds on the held-out facts that a run asks for. A fraction of 75 facts has a 95% interval of at most 11 pp on each side, one of
/// 125 facts 9 pp.
const HELD_FACTS: [usize; 2] = [75, 125];

/// Fraction of the pool that a small model is expected to know, by label: `HighlyKnown`, `MaybeKnown` and `WeaklyKnown`.
const EXPECTED_LABELS: [(Label, f64); 3] = [
    (Label::HighlyKnown, 0.15),
    (Label::MaybeKnown, 0.3),
    (Label::WeaklyKnown, 0.2),
];

/// The name under which the checksum of texts is recorded.
pub(super) const TEXTS: &str = "learn_texts";

/// The name under which the checksum of validation texts is recorded.
pub(super) const VALIDATION: &str = "validation";

/// The facts and texts of a run as read.
pub(super) struct Data {
    pub learn: Vec<Fact>,
    /// The texts of `data.learn` that are trained.
    pub texts: Arc<[Text]>,
    /// Texts whose loss is measured.
    pub validation: Arc<[Text]>,
    pub keep: Option<Vec<Fact>>,
    held: Option<Vec<Fact>>,
    /// Known and held-out facts come from here where the user gives none.
    pool: Vec<Fact>,
    /// Checksum of each set, by name.
    pub checksums: BTreeMap<String, String>,
    /// What was left out, one line each.
    pub notes: Vec<String>,
}

impl Data {
    /// Reads the files. Facts that `learn` contradicts or repeats are removed from the other sets.
    pub fn read(config: &Config) -> Result<Self> {
        let (data, audited) = (&config.data, config.data.audit.is_some());
        let options = ReadOptions {
            skip_bad_rows: data.skip_bad_rows,
            ..ReadOptions::default()
        };
        let mut read = Self {
            learn: Vec::new(),
            texts: [].into(),
            validation: [].into(),
            keep: None,
            held: None,
            pool: Vec::new(),
            checksums: BTreeMap::new(),
            notes: Vec::new(),
        };
        let (texts, learn) = split_by_kind(resolve_files(&data.learn)?)?;
        read.learn = read.set("learn", &learn, options)?.unwrap_or_default();
        read.read_texts(&texts, options)?;
        read.read_validation(config, options)?;
        read.keep = read.set("keep", &resolve_files(&data.keep)?, options)?;
        read.held = read.set("held", &unweighted(&data.held)?, options)?;
        read.check_held()?;
        if audited && (read.keep.is_none() || read.held.is_none()) {
            let pack = [DataFile::from(facts::PACK)];
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

    fn read_texts(&mut self, files: &[DataFile], options: ReadOptions) -> Result<()> {
        if files.is_empty() {
            return Ok(());
        }
        let mut set = facts::read_texts(&paths(files), options)?;
        for text in &mut set.texts {
            text.weight = weight_of(files, &text.location);
        }
        self.notes
            .extend(set.notes.into_iter().map(|note| format!("learn: {note}")));
        self.checksums.insert(TEXTS.into(), set.checksum);
        self.texts = set.texts.into();
        Ok(())
    }

    /// Reads the validation texts, or takes a share of the texts. None of them is trained.
    fn read_validation(&mut self, config: &Config, options: ReadOptions) -> Result<()> {
        let data = &config.data;
        if let Some(share) = data.validation_share {
            return self.split_validation(share, config.seed);
        }
        let (texts, tables) = split_by_kind(unweighted(&data.validation)?)?;
        if let Some(table) = tables.first() {
            return Err(Error::input_hint(
                format!(
                    "`data.validation`: {} holds facts; a validation loss is that of chats and texts",
                    table.path.display()
                ),
                "facts that are only measured are given by `data.held`",
            ));
        }
        if texts.is_empty() {
            return Ok(());
        }
        let set = facts::read_texts(&paths(&texts), options)?;
        let notes = set.notes.into_iter();
        self.notes
            .extend(notes.map(|note| format!("validation: {note}")));
        self.checksums.insert(VALIDATION.into(), set.checksum);
        let trained: HashSet<String> = self.texts.iter().map(content_key).collect();
        let given = set.texts.len();
        let kept = set.texts.into_iter();
        let kept: Vec<Text> = kept
            .filter(|text| !trained.contains(&content_key(text)))
            .collect();
        if kept.is_empty() {
            return Err(Error::input_hint(
                "every row of `data.validation` is also in `data.learn`: what is trained says nothing about new rows",
                "give other rows, or set `data.validation_share` in its place",
            ));
        }
        if kept.len() < given {
            self.notes.push(format!(
                "validation: {} of {given} rows are also in `data.learn` and are left out",
                given - kept.len()
            ));
        }
        self.validation = kept.into();
        Ok(())
    }

    /// Takes a seeded sample out of the texts. Rows with the same content stay together.
    fn split_validation(&mut self, share: f64, seed: u64) -> Result<()> {
        let mut contents: Vec<String> = Vec::new();
        let mut seen = HashSet::new();
        for text in &self.texts[..] {
            let content = content_key(text);
            if seen.insert(content.clone()) {
                contents.push(content);
            }
        }
        if contents.len() < 2 {
            return Err(Error::input_hint(
                format!(
                    "`data.validation_share` takes a share of the chats and texts of `data.learn`, which has {} different ones",
                    contents.len()
                ),
                "give more rows, or remove `data.validation_share`",
            ));
        }
        let count = (share * contents.len() as f64).round() as usize;
        let count = count.clamp(1, contents.len() - 1);
        contents.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        let chosen: HashSet<String> = contents.into_iter().take(count).collect();
        let texts = self.texts.iter().cloned();
        let (validation, trained): (Vec<Text>, Vec<Text>) =
            texts.partition(|text| chosen.contains(&content_key(text)));
        self.notes.push(format!(
            "validation: {} of {} rows of `data.learn` are measured and not trained, a seeded sample",
            validation.len(),
            self.texts.len()
        ));
        (self.validation, self.texts) = (validation.into(), trained.into());
        Ok(())
    }

    /// Refuses held-out facts all of which are trained.
    fn check_held(&self) -> Result<()> {
        let Some(held) = self.held.as_ref().filter(|held| !held.is_empty()) else {
            return Ok(());
        };
        let key = |fact: &Fact| fact.question.trim().to_lowercase();
        let trained = self.learn.iter().chain(self.keep.iter().flatten());
        let trained: HashSet<String> = trained.map(key).collect();
        if held.iter().all(|fact| trained.contains(&key(fact))) {
            return Err(Error::input_hint(
                "every fact of `data.held` is also in `data.keep` or `data.learn`: what is trained is never counted as held out, and nothing would be left to measure forgetting on",
                "give other facts as `--held`, or leave it out: known facts that are not trained are then chosen",
            ));
        }
        Ok(())
    }

    fn set(
        &mut self,
        name: &str,
        files: &[DataFile],
        options: ReadOptions,
    ) -> Result<Option<Vec<Fact>>> {
        if files.is_empty() {
            return Ok(None);
        }
        let mut set = facts::read(&paths(files), options)?;
        for fact in &mut set.facts {
            fact.weight = weight_of(files, &fact.location);
        }
        self.notes
            .extend(set.notes.into_iter().map(|note| format!("{name}: {note}")));
        self.checksums.insert(name.into(), set.checksum);
        Ok(Some(set.facts))
    }

    /// Removes from the pool the questions of the files and the relations that they do not have (unless nothing is left), and keeps a
    /// sample: an audit takes time.
    fn sample_pool(&mut self, seed: u64) {
        let mut pool = std::mem::take(&mut self.pool);
        let given: Vec<&Fact> = self.given_facts().collect();
        let questions: HashSet<&str> = given.iter().map(|f| f.question.as_str()).collect();
        let relations: HashSet<&str> = given.iter().map(|f| f.relation.as_str()).collect();
        pool.retain(|f| !questions.contains(f.question.as_str()));
        if pool.iter().any(|f| relations.contains(f.relation.as_str())) {
            pool.retain(|f| relations.contains(f.relation.as_str()));
        }
        let new_rows = self.learn.len() + self.texts.len();
        let [fewest, most] = HELD_FACTS;
        let enough = POOL_FACTS_PER_KNOWN * (new_rows + new_rows.clamp(fewest, most));
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

    /// Facts of `data.keep`.
    pub fn num_kept(&self) -> usize {
        self.keep.as_ref().map_or(0, Vec::len)
    }

    /// The number of facts of the pool that the audit is expected to give this label.
    pub fn expected_in_pool(&self, label: Label) -> usize {
        let fraction = EXPECTED_LABELS.into_iter().find(|(l, _)| *l == label);
        (self.pool.len() as f64 * fraction.map_or(0.0, |(_, fraction)| fraction)) as usize
    }

    /// The number of facts that are expected to be held out, of all labels, when `known_rows` facts are trained.
    pub fn expected_held(&self, known_rows: usize) -> usize {
        if let Some(held) = &self.held {
            return held.len();
        }
        let highly_known = self.expected_in_pool(Label::HighlyKnown);
        EXPECTED_LABELS.len() * highly_known.saturating_sub(known_rows)
    }

    pub fn has_chats(&self) -> bool {
        self.text_kinds().chats
    }

    /// What a run directory records of the data.
    pub fn run_data(&self) -> RunData {
        RunData {
            preset: None,
            checksums: self.checksums.clone(),
            texts: self.text_kinds(),
        }
    }

    fn text_kinds(&self) -> TextKinds {
        let is_chat = |text: &Text| matches!(text.kind, TextKind::Chat(_));
        let chats = self.texts.iter().filter(|text| is_chat(text)).count();
        TextKinds {
            chats: chats > 0,
            other: chats < self.texts.len(),
        }
    }

    /// The facts of the audit, without duplicates.
    pub fn facts_to_audit(&self) -> Vec<Fact> {
        let mut seen = HashSet::new();
        self.given_facts()
            .chain(&self.pool)
            .filter(|f| seen.insert((f.relation.clone(), f.question.clone())))
            .cloned()
            .collect()
    }

    /// The audit to be repeated after training; none without an audit.
    pub fn audit_after(&self, config: &Config, model: &Model) -> Result<Option<AuditAfter>> {
        Ok(audit_settings(config, model)?.map(|settings| AuditAfter {
            settings,
            exemplars: self.facts_to_audit(),
        }))
    }

    /// The splits for an estimate: the model is taken to know every fact of the user's files, and of the pool as many as expected.
    pub fn unaudited_splits(self, config: &Config) -> Result<Splits> {
        let given = |facts: Option<Vec<Fact>>| facts.unwrap_or_default();
        if config.data.audit.is_none() {
            return Ok(Splits::as_given(
                self.learn,
                given(self.keep),
                given(self.held),
            ));
        }
        let labelled = |fact, label| LabelledFact {
            label: Some(label),
            ..LabelledFact::new(fact, None)
        };
        let known = |facts: Vec<Fact>| -> Vec<LabelledFact> {
            let facts = facts.into_iter();
            facts
                .map(|fact| labelled(fact, Label::HighlyKnown))
                .collect()
        };
        let pool = self.pool.into_iter().enumerate();
        let files = AuditedFiles {
            texts: self.texts.len(),
            learn: known(self.learn),
            keep: self.keep.map(known),
            held: self.held.map(known),
            pool: pool
                .map(|(i, fact)| labelled(fact, expected_label(i)))
                .collect(),
        };
        Splits::from_audit(files, 0.0, config.seed)
    }

    /// Audits the facts and splits them.
    pub fn split(
        self,
        config: &Config,
        model: &Model,
        comm: Comm,
        progress: &Progress,
    ) -> Result<Splits> {
        let Some(settings) = audit_settings(config, model)? else {
            let given = |facts: Option<Vec<Fact>>| facts.unwrap_or_default();
            return Ok(Splits::as_given(
                self.learn,
                given(self.keep),
                given(self.held),
            ));
        };
        let mut engine = Engine::on(&model.config, config.device)?.with_comm(comm);
        let started = Instant::now();
        let audit = audit(
            model,
            &mut engine,
            &self.facts_to_audit(),
            None,
            &settings,
            progress,
        )?;
        let audit_seconds = started.elapsed().as_secs_f64();
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
        let splits = Splits::from_audit(files, config.data.min_highly_known, config.seed)?;
        Ok(Splits {
            prompts: audit.prompts,
            audit_seconds,
            ..splits
        })
    }
}

/// A label for the `i`th fact of the pool, so that every stretch of it has the labels' expected fractions.
fn expected_label(i: usize) -> Label {
    // Multiples of the golden ratio are spread evenly over [0, 1).
    let mut position = (i as f64 * 0.618_033_988_749_895).fract();
    for (label, fraction) in EXPECTED_LABELS {
        if position < fraction {
            return label;
        }
        position -= fraction;
    }
    Label::Unknown
}

/// What a text is compared by.
fn content_key(text: &Text) -> String {
    format!("{:?}", text.kind)
}

/// The files that `given` stands for; those of a data set have its weight.
fn resolve_files(given: &[DataFile]) -> Result<Vec<DataFile>> {
    let mut files = Vec::new();
    for &DataFile { ref path, weight } in given {
        let paths = facts::resolve_files(std::slice::from_ref(path))?;
        files.extend(paths.into_iter().map(|path| DataFile { path, weight }));
    }
    Ok(files)
}

/// The files that `given` stands for, none of which is trained.
fn unweighted(given: &[PathBuf]) -> Result<Vec<DataFile>> {
    let files = facts::resolve_files(given)?;
    Ok(files.into_iter().map(DataFile::from).collect())
}

fn paths(files: &[DataFile]) -> Vec<PathBuf> {
    files.iter().map(|file| file.path.clone()).collect()
}

/// The weight of the file at `location`.
fn weight_of(files: &[DataFile], location: &Location) -> RowWeight {
    let is_file = |file: &&DataFile| file.path.as_os_str() == &*location.file;
    files
        .iter()
        .find(is_file)
        .map_or_else(RowWeight::default, |file| file.weight)
}

/// Splits files into those of texts and those of facts.
fn split_by_kind(files: Vec<DataFile>) -> Result<(Vec<DataFile>, Vec<DataFile>)> {
    let (mut texts, mut tables) = (Vec::new(), Vec::new());
    for file in files {
        let is_pack = file.path.as_os_str() == facts::PACK;
        if !is_pack && facts::is_text_file(&file.path)? {
            texts.push(file);
        } else {
            tables.push(file);
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

/// Refuses a base model whose files have changed since the run started, when its weights had this checksum.
pub(super) fn check_base_model(config: &Config, model: &Model, checksum: &str) -> Result<()> {
    if model.checksum == checksum {
        return Ok(());
    }
    Err(Error::input(format!(
        "{} has changed since the run started: its checksum is {}, not {checksum}",
        config.model, model.checksum
    )))
}

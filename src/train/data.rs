//! The data of a run: its files are read, facts are audited, and split.

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
    sync::Arc,
};

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::evaluator::{AuditAfter, template};
use crate::{
    Error, Result,
    audit::{AuditSettings, Label, audit},
    config::Config,
    distributed::Comm,
    engine::Engine,
    facts::{self, Fact, ReadOptions, Text, TextKind, drop_contradicted},
    model::Model,
    progress::Progress,
    splits::{AuditedFiles, LabelledFact, Splits},
};

/// Facts of the pool that are audited per new one: a small model knows one in six well.
const POOL_FACTS_PER_NEW_ROW: usize = 8;

/// Facts of the pool that are audited in addition; the held-out facts come from them.
const MIN_POOL_FACTS: usize = 1_000;

/// The name under which the checksum of texts is recorded.
pub(super) const TEXTS: &str = "learn_texts";

/// The facts and texts of a run as read.
pub(super) struct Data {
    pub learn: Vec<Fact>,
    /// The texts of `data.learn`.
    pub texts: Arc<[Text]>,
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

    pub fn has_chats(&self) -> bool {
        let is_chat = |text: &Text| matches!(text.kind, TextKind::Chat(_));
        self.texts.iter().any(is_chat)
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

    /// The splits as they would be if the model knew every fact: for an estimate.
    pub fn unaudited_splits(self, config: &Config) -> Result<Splits> {
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
        let mut engine = Engine::new(&model.config).with_comm(comm);
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

/// Splits files into those of texts and those of facts.
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

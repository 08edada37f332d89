//! The result of an audit, in memory and on disk: `facts.jsonl`, `prompts.jsonl` and `summary.json`.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    few_shot::FewShotPrompt,
    label::{AuditedFact, LabelFractions},
    settings::AuditSettings,
};
use crate::{Error, Result, atomic_file};

/// An audit.
#[derive(Clone, Debug, PartialEq)]
pub struct AuditResult {
    /// The model as the user named it.
    pub model: String,
    /// Its settings.
    pub settings: AuditSettings,
    /// One row per fact, in the order of the facts.
    pub facts: Vec<AuditedFact>,
    /// The few-shot prompts, grouped by relation.
    pub prompts: Vec<FewShotPrompt>,
    /// Remarks for the user.
    pub notes: Vec<String>,
    /// Duration in seconds.
    pub seconds: f64,
}

/// The content of `summary.json`.
#[derive(Debug, Serialize, Deserialize)]
pub struct AuditSummary {
    model: String,
    seconds: f64,
    relations: BTreeMap<String, LabelFractions>,
    all: LabelFractions,
    /// The meaning of `p_sampled`: `fraction of the samples drawn` or `lower bound`.
    p_sampled: String,
    settings: AuditSettings,
    notes: Vec<String>,
}

impl AuditResult {
    /// Label fractions per relation.
    pub fn by_relation(&self) -> BTreeMap<&str, LabelFractions> {
        let mut relations: BTreeMap<&str, Vec<&AuditedFact>> = BTreeMap::new();
        for fact in &self.facts {
            relations.entry(&fact.relation).or_default().push(fact);
        }
        relations
            .into_iter()
            .map(|(relation, facts)| (relation, LabelFractions::new(facts.into_iter())))
            .collect()
    }

    /// Label fractions of all facts.
    pub fn overall(&self) -> LabelFractions {
        LabelFractions::new(self.facts.iter())
    }

    /// The facts by relation and question.
    pub fn by_question(&self) -> HashMap<(&str, &str), &AuditedFact> {
        self.facts
            .iter()
            .map(|f| ((&f.relation[..], &f.question[..]), f))
            .collect()
    }

    /// Writes `facts.jsonl`, `prompts.jsonl` and `summary.json` into `dir`, creating it if needed. Each file is written atomically.
    ///
    /// # Errors
    /// When `dir` cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        atomic_file::write(&dir.join("facts.jsonl"), to_jsonl(&self.facts).as_bytes())?;
        atomic_file::write(
            &dir.join("prompts.jsonl"),
            to_jsonl(&self.prompts).as_bytes(),
        )?;
        let text = serde_json::to_string_pretty(&self.summary()).expect("plain data is JSON");
        atomic_file::write(&dir.join("summary.json"), (text + "\n").as_bytes())
    }

    /// Label fractions and settings: the content of `summary.json`.
    pub fn summary(&self) -> AuditSummary {
        let relations = self.by_relation().into_iter();
        AuditSummary {
            model: self.model.clone(),
            seconds: self.seconds,
            relations: relations.map(|(r, s)| (r.to_owned(), s)).collect(),
            all: self.overall(),
            p_sampled: if self.settings.sample {
                "fraction of the samples drawn"
            } else {
                "lower bound"
            }
            .to_owned(),
            settings: self.settings.clone(),
            notes: self.notes.clone(),
        }
    }

    /// Reads an audit written by [`Self::write`].
    ///
    /// # Errors
    /// When a file cannot be read, or has another format.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("summary.json");
        let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let summary: AuditSummary = serde_json::from_str(&text).map_err(|reason| {
            Error::input(format!(
                "`{}` is not the summary of an audit: {reason}",
                path.display()
            ))
        })?;
        Ok(Self {
            model: summary.model,
            settings: summary.settings,
            facts: read_jsonl::<AuditedFact>(&dir.join("facts.jsonl"))?,
            prompts: read_jsonl::<FewShotPrompt>(&dir.join("prompts.jsonl"))?,
            notes: summary.notes,
            seconds: summary.seconds,
        })
    }
}

fn to_jsonl<T: Serialize>(rows: &[T]) -> String {
    rows.iter()
        .map(|row| serde_json::to_string(row).expect("plain data is JSON") + "\n")
        .collect()
}

fn read_jsonl<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    let rows = text.lines().enumerate().map(|(i, line)| {
        serde_json::from_str(line).map_err(|reason| {
            let place = format!("`{}` line {}", path.display(), i + 1);
            Error::input(format!("{place} is not a row of an audit: {reason}"))
        })
    });
    rows.collect()
}

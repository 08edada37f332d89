//! An audit on disk: `facts.jsonl`, `prompts.jsonl` and `summary.json`.

use std::{collections::BTreeMap, fs, path::Path};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{AuditResult, AuditSettings, AuditedFact, FewShotPrompt, LabelFractions};
use crate::{Error, Result, atomic_file};

/// `summary.json`.
#[derive(Debug, Serialize, Deserialize)]
pub struct AuditSummary {
    model: String,
    seconds: f64,
    relations: BTreeMap<String, LabelFractions>,
    all: LabelFractions,
    /// What `p_sampled` is: `share of the samples drawn` or `lower bound`.
    p_sampled: String,
    settings: AuditSettings,
    notes: Vec<String>,
}

impl AuditResult {
    /// Writes the three files of an audit into `dir`, which is made if need be; each is written whole or not at all.
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

    /// The shares of each label, and how they were found: `summary.json`.
    pub fn summary(&self) -> AuditSummary {
        let relations = self.by_relation().into_iter();
        AuditSummary {
            model: self.model.clone(),
            seconds: self.seconds,
            relations: relations.map(|(r, s)| (r.to_owned(), s)).collect(),
            all: self.overall(),
            p_sampled: if self.settings.sample {
                "share of the samples drawn"
            } else {
                "lower bound"
            }
            .to_owned(),
            settings: self.settings.clone(),
            notes: self.notes.clone(),
        }
    }

    /// Reads what [`Self::write`] has written.
    ///
    /// # Errors
    /// When a file cannot be read, or is not what an audit writes.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("summary.json");
        let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let summary: AuditSummary = serde_json::from_str(&text).map_err(|reason| {
            Error::input(format!(
                "`{}` is no summary of an audit: {reason}",
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
            Error::input(format!("{place} is not what an audit writes: {reason}"))
        })
    });
    rows.collect()
}

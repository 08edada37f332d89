//! `[data]`: the facts, their labels, and the prompt.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{check::Checks, data_file::DataFile, serde_helpers::false_or_table};

/// `[data]`: the facts, their labels, and the prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// New facts (`D_Unk`), chats or texts; each a path, or `{ path = "chats.jsonl", weight = 2.0 }`. Absent: an Only Known run, as the
    /// paper calls it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub learn: Vec<DataFile>,
    /// Known facts to train on (`D_Known`), in the same form. Absent: `HighlyKnown` facts of the same relations, else of
    /// `pack:world`, as many as `learn` has, at most 8,000.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keep: Vec<DataFile>,
    /// Known facts that are only measured (`D_Held`). Absent: a seeded sample of the known facts that are left,
    /// disjoint by subject.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<PathBuf>,
    /// Chats or texts that are never trained; their loss is measured at every evaluation. Absent by default.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub validation: Vec<PathBuf>,
    /// In place of `validation`: this share of the chats and texts of `learn`, a seeded sample. Absent by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_share: Option<f64>,
    /// The audit that labels the facts before and after training: `{ num_prompts = 20, shots = 3, samples = 16 }`. `false`: the
    /// files are taken as they are, and nothing is filtered or labelled.
    #[serde(with = "false_or_table")]
    pub audit: Option<AuditConfig>,
    /// Relations with a smaller fraction of `HighlyKnown` facts are left out. Default 0; 0.3 in the paper.
    pub min_highly_known: f64,
    /// When an answer is correct: `exact` (default) or `contains`.
    #[serde(rename = "match")]
    pub match_rule: MatchRule,
    /// Template of the prompt, with `{question}` in it. Absent: `Q: {question}\nA:`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Template of the target, with `{object}` in it. Absent: a space, `{object}` and a line break.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Use the model's own chat template. Default false.
    pub chat: bool,
    /// Count and list broken rows instead of refusing the file. Default false.
    pub skip_bad_rows: bool,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            learn: Vec::new(),
            keep: Vec::new(),
            held: Vec::new(),
            validation: Vec::new(),
            validation_share: None,
            audit: Some(AuditConfig::default()),
            min_highly_known: 0.0,
            match_rule: MatchRule::default(),
            prompt: None,
            target: None,
            chat: false,
            skip_bad_rows: false,
        }
    }
}

impl DataConfig {
    /// Whether a validation loss is measured.
    pub fn has_validation(&self) -> bool {
        !self.validation.is_empty() || self.validation_share.is_some()
    }

    pub(super) fn check(&self, checks: &mut Checks) {
        for (key, files) in [("data.learn", &self.learn), ("data.keep", &self.keep)] {
            let are_text = files.iter().all(|file| is_text(&file.path));
            checks.require(are_text, key, "names a path that is not UTF-8 text");
            let contradicted = files.iter().find(|file| {
                let same = |other: &&DataFile| other.path == file.path;
                files
                    .iter()
                    .filter(same)
                    .any(|other| other.weight != file.weight)
            });
            let path = contradicted.map(|file| file.path.display().to_string());
            checks.require(
                path.is_none(),
                key,
                format!(
                    "names `{}` twice, with two weights",
                    path.unwrap_or_default()
                ),
            );
        }
        for (key, files) in [
            ("data.held", &self.held),
            ("data.validation", &self.validation),
        ] {
            let are_text = files.iter().all(|file| is_text(file));
            checks.require(are_text, key, "names a path that is not UTF-8 text");
        }
        let share = self.validation_share.unwrap_or(0.5);
        checks.require(
            share > 0.0 && share < 1.0,
            "data.validation_share",
            format!("must be above 0 and below 1, not {share}"),
        );
        checks.require(
            self.validation.is_empty() || self.validation_share.is_none(),
            "data.validation_share",
            "takes the place of `data.validation`: leave one of them out",
        );
        if let Some(audit) = &self.audit {
            checks.at_least_one("data.audit.num_prompts", audit.num_prompts);
            checks.at_least_one("data.audit.samples", audit.samples);
        }
        checks.require(
            (0.0..=1.0).contains(&self.min_highly_known),
            "data.min_highly_known",
            format!("must be from 0 to 1, not {}", self.min_highly_known),
        );
        for (key, template, slot) in [
            ("data.prompt", &self.prompt, "{question}"),
            ("data.target", &self.target, "{object}"),
        ] {
            let has_slot = template.as_ref().is_none_or(|text| text.contains(slot));
            checks.require(has_slot, key, format!("must contain `{slot}`"));
        }
    }
}

/// Whether TOML can hold a path.
pub(super) fn is_text(path: &Path) -> bool {
    path.to_str().is_some()
}

/// `data.audit`: the `SLiCK` audit before and after a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuditConfig {
    /// Few-shot prompts for each fact. Default 20; if not set, 5 for fewer than 100 new rows and 10 for fewer than 400.
    pub num_prompts: usize,
    /// Exemplars in a prompt. Default 3.
    pub shots: usize,
    /// Samples for each fact and prompt. Without `sample` it only sets the threshold of `WeaklyKnown`. Default 16.
    pub samples: usize,
    /// Draw the samples instead of computing the probability of a correct answer. Default false.
    pub sample: bool,
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self {
            num_prompts: 20,
            shots: 3,
            samples: 16,
            sample: false,
        }
    }
}

/// `data.match`: when an answer is correct.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MatchRule {
    /// The first line equals the object or an alias.
    #[default]
    Exact,
    /// The first line contains one of them as whole words.
    Contains,
}

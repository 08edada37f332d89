//! The experiment's file.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use super::claim::Claim;
use crate::{
    Error, Result,
    config::{self, Config},
    error::nearest,
    synth::Names,
};

/// The experiments that come with the program, by name.
const BUILT_IN: [(&str, &str); 7] = [
    ("frontier", include_str!("../../experiments/frontier.toml")),
    (
        "frontier-validation",
        include_str!("../../experiments/frontier-validation.toml"),
    ),
    ("fig2", include_str!("../../experiments/fig2.toml")),
    ("fig3", include_str!("../../experiments/fig3.toml")),
    ("fig6", include_str!("../../experiments/fig6.toml")),
    ("table1", include_str!("../../experiments/table1.toml")),
    ("table3", include_str!("../../experiments/table3.toml")),
];

/// An experiment, as its file describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// Name of the folder of its table and figure.
    pub name: String,
    /// Name of the folder of its records, by default the same: experiments with arms in common run these once.
    #[serde(default)]
    pub records: Option<String>,
    /// What is asked.
    pub title: String,
    /// The model of every arm.
    pub model: String,
    /// Few-shot prompts of the audits.
    pub audit_runs: usize,
    /// What is drawn. Default `learned`.
    #[serde(default)]
    pub figure: Figure,
    /// What all arms share, as `key=value`.
    pub set: Vec<String>,
    /// What it can be run as, by name.
    pub scale: BTreeMap<String, Scale>,
    /// The ways of training that are compared.
    #[serde(rename = "arm")]
    pub arms: Vec<Arm>,
    /// What is claimed of them, and the rule by which it holds.
    #[serde(default, rename = "claim")]
    pub claims: Vec<Claim>,
}

/// What an experiment draws.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Figure {
    /// Held facts right over new facts learned, an arm a panel.
    #[default]
    Learned,
    /// What is right epoch by epoch, a part of the facts a panel.
    Epochs,
}

/// How much of an experiment is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// Relations, each on its own.
    pub relations: Vec<String>,
    /// Seeds of splits and runs.
    pub seeds: Vec<u64>,
    /// Facts audited to train on: the first of `EntityQuestions`' train part, or of the pack.
    pub train_facts: usize,
    /// Parts of `EntityQuestions` whose facts are held out, with the rest of train behind them.
    pub held_parts: Vec<String>,
    /// Facts audited to hold out, at most.
    pub held_facts: usize,
    /// `D_Known`.
    pub known: usize,
    /// `D_Unk`.
    pub unknown: usize,
    /// `D_Held`, at most.
    pub held: usize,
    /// Held `MaybeKnown` facts, at most.
    pub maybe_known: usize,
    /// Held `WeaklyKnown` facts, at most.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub weakly_known: usize,
    /// Known facts of other relations that are asked at the end, at most.
    pub elsewhere: usize,
    /// What this scale sets beside what all arms share.
    #[serde(default)]
    pub set: Vec<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde hands it over")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// One way of training.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    /// Name in tables and records.
    pub name: String,
    /// What sets it apart, as `key=value`.
    pub set: Vec<String>,
    /// The only relations that it is run on; all by default.
    #[serde(default)]
    pub relations: Option<Vec<String>>,
    /// The only seeds that it is run with; all by default.
    #[serde(default)]
    pub seeds: Option<Vec<u64>>,
    /// Made-up facts that it learns in the place of the unknown ones.
    #[serde(default)]
    pub synthetic: Option<Synthetic>,
}

/// Made-up facts, `{ n = 1000, keys = "semantic", values = "real" }`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Synthetic {
    /// How many.
    pub n: usize,
    /// What their subjects are like.
    pub keys: Names,
    /// What their answers are like.
    pub values: Names,
}

impl Arm {
    /// Whether it is run on this relation with this seed.
    pub(super) fn has(&self, relation: &str, seed: u64) -> bool {
        let relations = self.relations.as_ref();
        relations.is_none_or(|some| some.iter().any(|r| r == relation))
            && self.seeds.as_ref().is_none_or(|some| some.contains(&seed))
    }
}

impl Experiment {
    /// The built-in experiment called `name`, or the one in the file at that path.
    ///
    /// # Errors
    /// [`Error::Input`] for an unknown name or a file that is no experiment, naming what is wrong.
    pub fn find(name: &str) -> Result<Self> {
        if let Some((_, text)) = BUILT_IN.iter().find(|(known, _)| *known == name) {
            return Self::parse(text, name);
        }
        let path = Path::new(name);
        if path.extension().is_some_and(|e| e == "toml") {
            let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
            return Self::parse(&text, name);
        }
        let known = BUILT_IN.map(|(name, _)| name);
        let did_you_mean = nearest(name, known).map(|near| format!("did you mean `{near}`? "));
        Err(Error::input_hint(
            format!("there is no experiment `{name}`"),
            format!(
                "{}There are {}; or name a file that ends in .toml",
                did_you_mean.unwrap_or_default(),
                known.join(", ")
            ),
        ))
    }

    fn parse(text: &str, name: &str) -> Result<Self> {
        let wrong = |e: toml::de::Error| Error::input(format!("{name}: {e}"));
        let experiment: Self = toml::from_str(text).map_err(wrong)?;
        experiment.check_names(name)?;
        let arms: Vec<&str> = experiment.arms.iter().map(|arm| &arm.name[..]).collect();
        for claim in &experiment.claims {
            claim
                .check(&arms)
                .map_err(|wrong| Error::input(format!("{name}: {wrong}")))?;
        }
        for scale in experiment.scale.values() {
            for arm in &experiment.arms {
                experiment.config(scale, arm, 0)?;
            }
        }
        Ok(experiment)
    }

    /// Whether what becomes part of a file's name can be one, and no two arms are called alike.
    fn check_names(&self, file: &str) -> Result<()> {
        let arms = || self.arms.iter().map(|arm| &arm.name);
        let relations = self.scale.values().flat_map(|scale| &scale.relations);
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let is_plain = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(plain)
        };
        if let Some(name) = [&self.name]
            .into_iter()
            .chain(&self.records)
            .chain(arms())
            .chain(relations)
            .find(|name| !is_plain(name))
        {
            return Err(Error::input(format!(
                "{file}: `{name}` becomes part of a file's name: letters, digits, `-`, `_` and `.` alone can be in it, a letter or digit first"
            )));
        }
        match arms()
            .enumerate()
            .find(|(i, name)| arms().take(*i).any(|other| other == *name))
        {
            None => Ok(()),
            Some((_, name)) => Err(Error::input(format!(
                "{file}: two arms are called `{name}`"
            ))),
        }
    }

    /// The scale called `name`.
    ///
    /// # Errors
    /// [`Error::Input`] naming those that there are.
    pub fn scale(&self, name: &str) -> Result<&Scale> {
        self.scale.get(name).ok_or_else(|| {
            let names: Vec<&str> = self.scale.keys().map(String::as_str).collect();
            Error::input_hint(
                format!("{} has no scale `{name}`", self.name),
                format!("it has {}", names.join(", ")),
            )
        })
    }

    /// Whether every one of `names` is an arm.
    ///
    /// # Errors
    /// [`Error::Input`] naming the first that is none, and those that there are.
    pub fn check_arms(&self, names: &[String]) -> Result<()> {
        let arms: Vec<&str> = self.arms.iter().map(|arm| &arm.name[..]).collect();
        match names.iter().find(|name| !arms.contains(&&name[..])) {
            None => Ok(()),
            Some(unknown) => Err(Error::input_hint(
                format!("{} has no arm `{unknown}`", self.name),
                format!("it has {}", arms.join(", ")),
            )),
        }
    }

    /// The config of an arm.
    pub(super) fn config(&self, scale: &Scale, arm: &Arm, seed: u64) -> Result<Config> {
        let sets = [&self.set[..], &scale.set, &arm.set].concat();
        let config = base_config(&self.model, seed, self.audit_runs).with_sets(&sets)?;
        config.validate()?;
        Ok(config)
    }
}

/// The config that every arm starts from.
fn base_config(model: &str, seed: u64, runs: usize) -> Config {
    let mut config = Config {
        model: model.to_owned(),
        seed,
        ..Config::default()
    };
    config.data.audit = Some(config::Audit {
        runs,
        ..config::Audit::default()
    });
    config.measure.paraphrase = false;
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_experiments_are_whole() {
        for (name, _) in BUILT_IN {
            let experiment = Experiment::find(name).expect("it comes with the program");
            assert_eq!(experiment.name, name);
            assert!(
                experiment
                    .arms
                    .iter()
                    .any(|arm| arm.name == super::super::ONLY_KNOWN)
            );
            assert!(experiment.scale.contains_key("small"));
        }
    }

    #[test]
    fn an_unknown_experiment_is_told_with_the_nearest() {
        let error = Experiment::find("frontear").expect_err("no such experiment");
        assert!(error.hint().is_some_and(|hint| hint.contains("`frontier`")));
    }
}

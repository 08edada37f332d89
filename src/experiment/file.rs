//! The experiment's file.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use super::claim::Claim;
use crate::{
    Error, Result,
    config::{self, Config},
    error::closest_match,
    synth::NameKind,
};

/// The experiments that come with the program, by name: those of the paper in its order, then ours.
const BUILT_IN: [(&str, &str); 19] = [
    ("fig2", include_str!("../../experiments/fig2.toml")),
    ("table1", include_str!("../../experiments/table1.toml")),
    ("fig3", include_str!("../../experiments/fig3.toml")),
    ("fig4", include_str!("../../experiments/fig4.toml")),
    ("fig5", include_str!("../../experiments/fig5.toml")),
    ("l2", include_str!("../../experiments/l2.toml")),
    ("table2", include_str!("../../experiments/table2.toml")),
    ("fig6", include_str!("../../experiments/fig6.toml")),
    ("fig7", include_str!("../../experiments/fig7.toml")),
    ("fig8", include_str!("../../experiments/fig8.toml")),
    ("table3", include_str!("../../experiments/table3.toml")),
    ("lr", include_str!("../../experiments/lr.toml")),
    ("fig9", include_str!("../../experiments/fig9.toml")),
    ("fig10", include_str!("../../experiments/fig10.toml")),
    ("table4", include_str!("../../experiments/table4.toml")),
    ("topk", include_str!("../../experiments/topk.toml")),
    ("fig11", include_str!("../../experiments/fig11.toml")),
    ("frontier", include_str!("../../experiments/frontier.toml")),
    (
        "frontier-validation",
        include_str!("../../experiments/frontier-validation.toml"),
    ),
];

/// How many of [`BUILT_IN`] are the paper's.
const NUM_PAPER_EXPERIMENTS: usize = 17;

/// What several experiments have in common, by name.
const SETUPS: [(&str, &str); 3] = [
    ("p17", include_str!("../../experiments/setup/p17.toml")),
    (
        "synthetic",
        include_str!("../../experiments/setup/synthetic.toml"),
    ),
    ("8b", include_str!("../../experiments/setup/8b.toml")),
];

/// An experiment, as its file describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// Name of the folder of its table and figure.
    pub name: String,
    /// What it has in common with others: all that it does not say itself.
    #[serde(default)]
    pub setup: Option<String>,
    /// Name of the folder of its records, by default the same: experiments with arms in common run these once.
    #[serde(default)]
    pub records: Option<String>,
    /// What is asked.
    pub title: String,
    /// How what is recorded can be read, where a claim does not hold.
    #[serde(default)]
    pub notes: Option<String>,
    /// The model of every arm.
    pub model: String,
    /// Few-shot prompts of the audits.
    pub audit_num_prompts: usize,
    /// What is drawn. Default `learned`.
    #[serde(default)]
    pub figure: FigureKind,
    /// What all arms share, as `key=value`.
    pub set: Vec<String>,
    /// What it can be run as, by name.
    pub scale: BTreeMap<String, ExperimentScale>,
    /// The ways of training that are compared; none where facts are only audited or made up.
    #[serde(default, rename = "arm")]
    pub arms: Vec<Arm>,
    /// What is claimed of them, and the rule by which it holds.
    #[serde(default, rename = "claim")]
    pub claims: Vec<Claim>,
}

/// What an experiment draws.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FigureKind {
    /// Held facts right over new facts learned, an arm a panel.
    #[default]
    RetainedVsLearned,
    /// What is right epoch by epoch, a part of the facts a panel.
    Epochs,
    /// What each arm learned and lost, a bar an arm.
    Bars,
    /// What was lost over the number of made-up facts, a line a kind of key.
    NumFacts,
    /// How far held subjects have drifted, epoch by epoch (RD).
    Rd,
    /// Every measure of drift, epoch by epoch.
    Drift,
    /// Nothing is trained: the labels of each relation's facts.
    Labels,
    /// Nothing is trained: examples of made-up names.
    Keys,
}

impl FigureKind {
    /// Whether there are arms behind it.
    fn needs_runs(self) -> bool {
        !matches!(self, Self::Labels | Self::Keys)
    }
}

/// How much of an experiment is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExperimentScale {
    /// Models, each on its own; by default the experiment's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// How many weights these have, so that what is needed can be told before they are brought.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub num_parameters: BTreeMap<String, u64>,
    /// Relations, each on its own; those of `P17+P36` together.
    pub relations: Vec<String>,
    /// Seeds of splits and runs.
    #[serde(default = "default_seeds")]
    pub seeds: Vec<u64>,
    /// Few-shot prompts of its audits, where not those of the experiment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit_num_prompts: Option<usize>,
    /// Facts of each relation that are audited to train on: the first of `EntityQuestions`' train part, or of the pack.
    #[serde(default)]
    pub train_facts: usize,
    /// Parts of `EntityQuestions` whose facts are held out, with the rest of train behind them.
    #[serde(default)]
    pub held_splits: Vec<String>,
    /// Facts of each relation that are audited to hold out, at most.
    #[serde(default)]
    pub held_facts: usize,
    /// `D_Known`.
    #[serde(default)]
    pub known: usize,
    /// `D_Unk`.
    #[serde(default)]
    pub unknown: usize,
    /// Numbers of made-up facts that arms have in its place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sizes: Vec<usize>,
    /// `D_Held`, at most.
    #[serde(default)]
    pub held: usize,
    /// Held `MaybeKnown` facts, at most.
    #[serde(default)]
    pub maybe_known: usize,
    /// Held `WeaklyKnown` facts, at most.
    #[serde(default, skip_serializing_if = "config::is_default")]
    pub weakly_known: usize,
    /// Known facts of other relations that are asked at the end, at most.
    #[serde(default)]
    pub other_relations: usize,
    /// What this scale sets beside what all arms share.
    #[serde(default)]
    pub set: Vec<String>,
}

fn default_seeds() -> Vec<u64> {
    vec![0]
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

/// Made-up facts, `{ size = 1, keys = "semantic", values = "real" }`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Synthetic {
    /// How many: which of the scale's `sizes`, counted from 1.
    pub size: usize,
    /// What their subjects are like.
    pub keys: NameKind,
    /// What their answers are like.
    pub values: NameKind,
}

impl ExperimentScale {
    /// How many facts an arm makes up.
    pub(super) fn num_synthetic(&self, synthetic: Synthetic) -> usize {
        self.sizes[synthetic.size - 1]
    }

    /// What is no part of what a record is of, left out.
    pub(super) fn fact_selection(&self) -> Self {
        Self {
            models: Vec::new(),
            num_parameters: BTreeMap::new(),
            sizes: Vec::new(),
            relations: Vec::new(),
            seeds: Vec::new(),
            set: Vec::new(),
            ..self.clone()
        }
    }
}

impl Arm {
    /// Whether it is run on this relation with this seed.
    pub(super) fn runs_on(&self, relation: &str, seed: u64) -> bool {
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
        let did_you_mean =
            closest_match(name, known).map(|near| format!("did you mean `{near}`? "));
        Err(Error::input_hint(
            format!("there is no experiment `{name}`"),
            format!(
                "{}There are {}; or name a file that ends in .toml",
                did_you_mean.unwrap_or_default(),
                known.join(", ")
            ),
        ))
    }

    /// The paper's experiments, in its order.
    pub fn paper_experiments() -> impl Iterator<Item = &'static str> {
        BUILT_IN[..NUM_PAPER_EXPERIMENTS]
            .iter()
            .map(|(name, _)| *name)
    }

    fn parse(text: &str, name: &str) -> Result<Self> {
        let invalid = |e: toml::de::Error| Error::input(format!("{name}: {e}"));
        let own: toml::Table = toml::from_str(text).map_err(invalid)?;
        let experiment: Self = match own.get("setup").and_then(toml::Value::as_str) {
            None => toml::from_str(text),
            Some(setup) => merge_tables(find_setup(setup, name)?, own).try_into(),
        }
        .map_err(invalid)?;
        experiment.check_names(name)?;
        if experiment.arms.is_empty() == experiment.figure.needs_runs() {
            return Err(Error::input(format!(
                "{name}: {}",
                if experiment.arms.is_empty() {
                    "there is no `[[arm]]`: nothing would be run"
                } else {
                    "there is an `[[arm]]`, and its figure is not of runs"
                }
            )));
        }
        let arms: Vec<&str> = experiment.arms.iter().map(|arm| &arm.name[..]).collect();
        for claim in &experiment.claims {
            claim
                .validate(&arms)
                .map_err(|wrong| Error::input(format!("{name}: {wrong}")))?;
        }
        for (scale_name, scale) in &experiment.scale {
            for arm in &experiment.arms {
                let sizes = 1..=scale.sizes.len();
                if let Some(synthetic) = arm.synthetic.filter(|s| !sizes.contains(&s.size)) {
                    return Err(Error::input(format!(
                        "{name}: `{}` has made-up facts of size {}, and the scale `{scale_name}` has {} `sizes`",
                        arm.name,
                        synthetic.size,
                        scale.sizes.len()
                    )));
                }
                experiment.config(&experiment.model, scale, arm, 0)?;
            }
        }
        Ok(experiment)
    }

    /// Whether what becomes part of a file's name can be one, and no two arms are called alike.
    fn check_names(&self, file: &str) -> Result<()> {
        let arms = || self.arms.iter().map(|arm| &arm.name);
        let relations = self.scale.values().flat_map(|scale| &scale.relations);
        let is_allowed_char = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
        let is_allowed = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_alphanumeric())
                && name.chars().all(is_allowed_char)
        };
        if let Some(name) = [&self.name]
            .into_iter()
            .chain(&self.records)
            .chain(arms())
            .chain(relations)
            .find(|name| !is_allowed(name))
        {
            return Err(Error::input(format!(
                "{file}: `{name}` becomes part of a file's name: letters, digits, `-`, `_`, `.` and `+` alone can be in it, a letter or digit first"
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
    pub fn scale(&self, name: &str) -> Result<&ExperimentScale> {
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

    /// The models of a scale.
    pub(super) fn models<'a>(&'a self, scale: &'a ExperimentScale) -> &'a [String] {
        if scale.models.is_empty() {
            std::slice::from_ref(&self.model)
        } else {
            &scale.models
        }
    }

    /// Few-shot prompts of the audits at a scale.
    pub(super) fn audit_num_prompts(&self, scale: &ExperimentScale) -> usize {
        scale.audit_num_prompts.unwrap_or(self.audit_num_prompts)
    }

    /// The config of an arm.
    pub(super) fn config(
        &self,
        model: &str,
        scale: &ExperimentScale,
        arm: &Arm,
        seed: u64,
    ) -> Result<Config> {
        let sets = [&self.set[..], &scale.set, &arm.set].concat();
        let config = base_config(model, seed, self.audit_num_prompts(scale)).with_sets(&sets)?;
        config.validate()?;
        Ok(config)
    }
}

/// The setup called `name`, which the experiment in `file` has.
fn find_setup(name: &str, file: &str) -> Result<toml::Table> {
    let known = || SETUPS.iter().map(|(known, _)| *known);
    let found = SETUPS.iter().find(|(known, _)| *known == name);
    let (_, text) = found.ok_or_else(|| {
        let known: Vec<&str> = known().collect();
        Error::input_hint(
            format!("{file}: there is no setup `{name}`"),
            format!("there are {}", known.join(", ")),
        )
    })?;
    Ok(toml::from_str(text).expect("a setup that comes with the program is TOML"))
}

/// `own` over what `setup` says; tables are merged, all else is replaced.
fn merge_tables(mut setup: toml::Table, own: toml::Table) -> toml::Table {
    for (key, value) in own {
        let merged = match (setup.remove(&key), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(own)) => {
                merge_tables(below, own).into()
            }
            (_, own) => own,
        };
        setup.insert(key, merged);
    }
    setup
}

/// The config that every arm starts from.
fn base_config(model: &str, seed: u64, num_prompts: usize) -> Config {
    let mut config = Config {
        model: model.to_owned(),
        seed,
        ..Config::default()
    };
    config.data.audit = Some(config::AuditConfig {
        num_prompts,
        ..config::AuditConfig::default()
    });
    config.measure.paraphrase = false;
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_experiments_are_complete() {
        for (name, _) in BUILT_IN {
            let experiment = Experiment::find(name).expect("it comes with the program");
            assert_eq!(experiment.name, name);
            let has_control = experiment
                .arms
                .iter()
                .any(|arm| arm.name == super::super::ONLY_KNOWN);
            assert_eq!(has_control, experiment.figure.needs_runs(), "{name}");
            for scale in ["smoke", "paper"] {
                assert!(
                    experiment.scale.contains_key(scale) || name.starts_with("frontier"),
                    "{name} {scale}"
                );
            }
            let other_models = ["fig7", "fig8"].contains(&name);
            assert_eq!(experiment.scale.contains_key("small"), !other_models);
        }
    }

    #[test]
    fn an_unknown_experiment_error_suggests_the_nearest_name() {
        let error = Experiment::find("frontear").expect_err("no such experiment");
        assert!(error.hint().is_some_and(|hint| hint.contains("`frontier`")));
    }
}

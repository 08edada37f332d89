//! The experiment file: models, relations, seeds, sizes, arms and claims.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use super::claim::Claim;
use crate::{
    Error, Result,
    config::{self, Config},
    error::closest_match,
    synth::NameKind,
};

/// The arm that trains on known facts only, to which the others are compared.
pub const ONLY_KNOWN: &str = "only-known";

/// The arm to which time and memory are relative.
pub(super) const BASELINE_ARM: &str = "sft";

/// The built-in experiments by name: those of the paper in its order, then ours.
const BUILT_IN: [(&str, &str); 20] = [
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
        "frontier-even",
        include_str!("../../experiments/frontier-even.toml"),
    ),
    (
        "frontier-validation",
        include_str!("../../experiments/frontier-validation.toml"),
    ),
];

/// This many of [`BUILT_IN`], the first ones, are the paper's.
const NUM_PAPER_EXPERIMENTS: usize = 17;

/// Maximum number of facts of a split in an evaluation: more than any experiment has.
const MAX_FACTS: usize = 1_000_000;

/// Settings shared by several experiments, by name.
const SETUPS: [(&str, &str); 3] = [
    ("p17", include_str!("../../experiments/setup/p17.toml")),
    (
        "synthetic",
        include_str!("../../experiments/setup/synthetic.toml"),
    ),
    ("8b", include_str!("../../experiments/setup/8b.toml")),
];

/// An experiment file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// Name; its table and figure are written to a folder of this name.
    pub name: String,
    /// Shared settings; keys of this file override them.
    #[serde(default)]
    pub setup: Option<String>,
    /// Name of the folder of its records (default: `name`). Experiments that share arms run these once.
    #[serde(default)]
    pub records: Option<String>,
    /// Title of the table and figure.
    pub title: String,
    /// Discussion of the results, printed below the table.
    #[serde(default)]
    pub notes: Option<String>,
    /// The model of every arm.
    pub model: String,
    /// Few-shot prompts per fact in the audits.
    pub audit_num_prompts: usize,
    /// The figure. Default `retained-vs-learned`.
    #[serde(default)]
    pub figure: FigureKind,
    /// Config keys of all arms, as `key=value`.
    pub set: Vec<String>,
    /// The sizes at which it can run, by name.
    pub scale: BTreeMap<String, ExperimentScale>,
    /// The training runs to compare; none if facts are only audited or generated.
    #[serde(default, rename = "arm")]
    pub arms: Vec<Arm>,
    /// Claims about the arms, with the bounds that decide them.
    #[serde(default, rename = "claim")]
    pub claims: Vec<Claim>,
}

/// The figure of an experiment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FigureKind {
    /// Accuracy on held-out facts over accuracy on new facts, one panel per arm.
    #[default]
    RetainedVsLearned,
    /// Accuracy per epoch, one panel per split.
    Epochs,
    /// Learning and forgetting at the end, one bar per arm.
    Bars,
    /// Forgetting over the number of synthetic facts, one line per type of key.
    NumFacts,
    /// RD per epoch.
    Rd,
    /// All drift measures per epoch.
    Drift,
    /// Audit only: the label fractions of each relation.
    Labels,
    /// No training: examples of synthetic names.
    Keys,
}

impl FigureKind {
    /// Whether it shows trained arms.
    fn needs_runs(self) -> bool {
        !matches!(self, Self::Labels | Self::Keys)
    }
}

/// One size of an experiment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExperimentScale {
    /// Models, each run separately; default: the model of the experiment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// Their numbers of parameters, so that the cost can be estimated before a download.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub num_parameters: BTreeMap<String, u64>,
    /// Relations, each run separately; `P17+P36` joins two.
    pub relations: Vec<String>,
    /// Seeds of splits and runs.
    #[serde(default = "default_seeds")]
    pub seeds: Vec<u64>,
    /// Few-shot prompts per fact in the audits; default: those of the experiment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit_num_prompts: Option<usize>,
    /// Facts of each relation to audit for training: the first of the train split of `EntityQuestions`, or of the pack.
    #[serde(default)]
    pub train_facts: usize,
    /// Splits of `EntityQuestions` whose facts are held out, followed by the rest of the train split.
    #[serde(default)]
    pub held_splits: Vec<String>,
    /// Maximum number of facts of each relation to audit for holding out.
    #[serde(default)]
    pub held_facts: usize,
    /// Size of `D_Known`.
    #[serde(default)]
    pub known: usize,
    /// Size of `D_Unk`.
    #[serde(default)]
    pub unknown: usize,
    /// Numbers of synthetic facts, for arms that replace `D_Unk` by these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sizes: Vec<usize>,
    /// Maximum size of `D_Held`.
    #[serde(default)]
    pub held: usize,
    /// Maximum number of held `MaybeKnown` facts.
    #[serde(default)]
    pub maybe_known: usize,
    /// Maximum number of held `WeaklyKnown` facts.
    #[serde(default, skip_serializing_if = "config::is_default")]
    pub weakly_known: usize,
    /// Maximum number of known facts of other relations to evaluate at the end.
    #[serde(default)]
    pub other_relations: usize,
    /// Config keys of this size, as `key=value`; they override those of all arms.
    #[serde(default)]
    pub set: Vec<String>,
}

fn default_seeds() -> Vec<u64> {
    vec![0]
}

/// One training configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    /// Name in tables and records.
    pub name: String,
    /// Config keys of this arm, as `key=value`.
    pub set: Vec<String>,
    /// Relations to run it on; default: all.
    #[serde(default)]
    pub relations: Option<Vec<String>>,
    /// Seeds to run it with; default: all.
    #[serde(default)]
    pub seeds: Option<Vec<u64>>,
    /// Synthetic facts that replace `D_Unk`.
    #[serde(default)]
    pub synthetic: Option<Synthetic>,
}

/// Synthetic facts, such as `{ size = 1, keys = "semantic", values = "real" }`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Synthetic {
    /// Index into `sizes` of the scale, from 1.
    pub size: usize,
    /// Type of the subjects.
    pub keys: NameKind,
    /// Type of the answers.
    pub values: NameKind,
}

impl ExperimentScale {
    /// Number of synthetic facts of an arm.
    pub(super) fn num_synthetic(&self, synthetic: Synthetic) -> usize {
        self.sizes[synthetic.size - 1]
    }

    /// The part that selects facts: what a record depends on, apart from config, relation and seed.
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
    /// Whether it runs on this relation with this seed.
    pub(super) fn runs_on(&self, relation: &str, seed: u64) -> bool {
        let relations = self.relations.as_ref();
        relations.is_none_or(|some| some.iter().any(|r| r == relation))
            && self.seeds.as_ref().is_none_or(|some| some.contains(&seed))
    }
}

impl Experiment {
    /// Loads the built-in experiment `name`, or the file at that path.
    ///
    /// # Errors
    /// [`Error::Input`] for an unknown name or an invalid file.
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
            format!("unknown experiment `{name}`"),
            format!(
                "{}Experiments: {}; or the path of a .toml file",
                did_you_mean.unwrap_or_default(),
                known.join(", ")
            ),
        ))
    }

    /// The names of the paper's experiments, in its order.
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
                    "no `[[arm]]`: there is nothing to run"
                } else {
                    "`[[arm]]` is set, but its figure shows no runs"
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
                        "{name}: the arm `{}` uses size {} of the synthetic facts, but the scale `{scale_name}` lists {} `sizes`",
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

    /// Checks that names can be parts of file names, and that no two arms have the same name.
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
                "{file}: `{name}` is used in file names: it must start with a letter or digit and contain only letters, digits, `-`, `_`, `.` and `+`"
            )));
        }
        match arms()
            .enumerate()
            .find(|(i, name)| arms().take(*i).any(|other| other == *name))
        {
            None => Ok(()),
            Some((_, name)) => Err(Error::input(format!(
                "{file}: two arms have the name `{name}`"
            ))),
        }
    }

    /// The scale `name`.
    ///
    /// # Errors
    /// [`Error::Input`] for an unknown scale, with the known ones.
    pub fn scale(&self, name: &str) -> Result<&ExperimentScale> {
        self.scale.get(name).ok_or_else(|| {
            let names: Vec<&str> = self.scale.keys().map(String::as_str).collect();
            Error::input_hint(
                format!("{} has no scale `{name}`", self.name),
                format!("scales: {}", names.join(", ")),
            )
        })
    }

    /// Checks that all `names` are arms.
    ///
    /// # Errors
    /// [`Error::Input`] for the first unknown arm, with the known ones.
    pub fn check_arms(&self, names: &[String]) -> Result<()> {
        let arms: Vec<&str> = self.arms.iter().map(|arm| &arm.name[..]).collect();
        match names.iter().find(|name| !arms.contains(&&name[..])) {
            None => Ok(()),
            Some(unknown) => Err(Error::input_hint(
                format!("{} has no arm `{unknown}`", self.name),
                format!("arms: {}", arms.join(", ")),
            )),
        }
    }

    /// The experiment with `model` as its only one. Its notes are left out: they discuss the results of the experiment's own models.
    #[must_use]
    pub fn with_model(self, model: &str) -> Self {
        let mut experiment = Self {
            model: model.to_owned(),
            notes: None,
            ..self
        };
        for scale in experiment.scale.values_mut() {
            scale.models.clear();
            scale.num_parameters.clear();
        }
        experiment
    }

    /// The models of a scale.
    pub(super) fn models<'a>(&'a self, scale: &'a ExperimentScale) -> &'a [String] {
        if scale.models.is_empty() {
            std::slice::from_ref(&self.model)
        } else {
            &scale.models
        }
    }

    /// Few-shot prompts per fact in the audits at a scale.
    pub(super) fn audit_num_prompts(&self, scale: &ExperimentScale) -> usize {
        scale.audit_num_prompts.unwrap_or(self.audit_num_prompts)
    }

    /// The name of a record file: `P17-0-sft.json`, prefixed with the model's name if there are several models.
    pub(super) fn record_file_name(
        &self,
        scale: &ExperimentScale,
        model: &str,
        relation: &str,
        name: &str,
    ) -> String {
        let has_several_models = self.models(scale).len() > 1;
        let model = Path::new(model).file_name().filter(|_| has_several_models);
        let model = model.map(|model| format!("{}-", model.to_string_lossy()));
        format!("{}{relation}-{name}.json", model.unwrap_or_default())
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

/// The setup `name` that the experiment in `file` refers to.
fn find_setup(name: &str, file: &str) -> Result<toml::Table> {
    let known = || SETUPS.iter().map(|(known, _)| *known);
    let found = SETUPS.iter().find(|(known, _)| *known == name);
    let (_, text) = found.ok_or_else(|| {
        let known: Vec<&str> = known().collect();
        Error::input_hint(
            format!("{file}: unknown setup `{name}`"),
            format!("setups: {}", known.join(", ")),
        )
    })?;
    Ok(toml::from_str(text).expect("a built-in setup is TOML"))
}

/// Overrides the keys of `setup` by those of `own`; tables are merged.
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

/// The config from which every arm starts.
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
    // The figures are over all facts.
    config.measure.max_facts = MAX_FACTS;
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_experiments_are_complete() {
        for (name, _) in BUILT_IN {
            let experiment = Experiment::find(name).expect("it is built in");
            assert_eq!(experiment.name, name);
            let has_control = experiment.arms.iter().any(|arm| arm.name == ONLY_KNOWN);
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
        let error = Experiment::find("frontear").expect_err("unknown");
        assert!(error.hint().is_some_and(|hint| hint.contains("`frontier`")));
    }
}

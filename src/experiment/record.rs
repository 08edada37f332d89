//! The record of one run: everything that tables and figures need, small enough to be committed.

use std::{fs, path::Path, sync::Arc};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use super::{
    claim::HeldOutSet,
    file::{Arm, ExperimentScale, Synthetic},
};
use crate::{
    Error, Result, atomic_file,
    audit::{AuditResult, AuditSettings, LabelFractions},
    config::Config,
    facts::Fact,
    run::{Drift, Environment, EpochRecord, FactResult, Metrics, RunDir, RunResult, Split},
    splits::{LabelledFact, Splits},
};

/// One run: an arm on one relation with one seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The arm.
    pub arm: String,
    /// The relation.
    pub relation: String,
    /// The seed.
    pub seed: u64,
    /// SHA-256 (hex) of everything that determines the results: config, selection of facts, model.
    pub fingerprint: String,
    /// The machine and software.
    pub environment: Environment,
    /// The run's result.
    pub result: RunResult,
    /// One entry per evaluation.
    pub epochs: Vec<EpochRecord>,
    /// Median seconds per step after the snapshot epochs; none if the machine did other work beside the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_seconds: Option<f64>,
    /// Seconds spent on choosing the interpolation factor; 0 without interpolation.
    pub interpolation_seconds: f64,
    /// One character per held-out `HighlyKnown` fact, in order: 1 if correct at the end, else 0.
    pub held: String,
    /// The same after the best epoch.
    pub held_at_peak: String,
    /// The same for the `MaybeKnown` facts, at the end.
    pub maybe_known: String,
    /// The same for the `WeaklyKnown` facts.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub weakly_known: String,
    /// The same for the known facts of other relations.
    pub other_relations: String,
    /// Drift at each held-out fact at the end, if measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drift: Vec<Drift>,
    /// The facts that the characters stand for.
    #[serde(skip)]
    pub facts: Arc<HeldOutFacts>,
}

/// The held-out facts of one model, relation and seed, the same for every arm: relation and subject of each, in the order of the
/// characters in a [`Record`]. The names identify facts that several seeds hold out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldOutFacts {
    /// SHA-256 (hex) of everything that determines them.
    pub fingerprint: String,
    /// `HighlyKnown` facts.
    pub held: Vec<String>,
    /// `MaybeKnown` facts.
    pub maybe_known: Vec<String>,
    /// `WeaklyKnown` facts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weakly_known: Vec<String>,
    /// Known facts of other relations.
    pub other_relations: Vec<String>,
}

impl HeldOutFacts {
    /// Takes the held-out facts of `splits` and the facts of other relations.
    pub(super) fn new(splits: &Splits, other_relations: &[Fact], fingerprint: String) -> Self {
        let name = |fact: &Fact| format!("{} {}", fact.relation, fact.subject);
        let names = |split: &[LabelledFact]| split.iter().map(|f| name(&f.fact)).collect();
        Self {
            fingerprint,
            held: names(&splits.held),
            maybe_known: names(&splits.maybe_known),
            weakly_known: names(&splits.weakly_known),
            other_relations: other_relations.iter().map(name).collect(),
        }
    }
}

/// The records of an experiment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExperimentResults {
    /// One record per run.
    pub runs: Vec<Record>,
    /// One record per relation, for experiments that only audit.
    pub audits: Vec<AuditRecord>,
    /// Examples of synthetic names as a Markdown table, for experiments that show these.
    pub keys: Option<String>,
}

/// Identifies everything that the results of an arm depend on.
pub(super) fn fingerprint(
    config: &Config,
    scale: &ExperimentScale,
    arm: &Arm,
    relation: &str,
    model: &str,
) -> String {
    let facts = toml::to_string(&scale.fact_selection()).expect("a scale can be written as TOML");
    let mut text = format!("{}\n{facts}\n{relation}\n{model}", config.to_toml());
    if let Some(synthetic) = &arm.synthetic {
        let Synthetic { keys, values, .. } = synthetic;
        text += &format!("\n{} {keys:?} {values:?}", scale.num_synthetic(*synthetic));
    }
    format!("{:x}", Sha256::digest(text))
}

/// Identifies everything that the labels of an audit depend on.
pub(super) fn audit_fingerprint(
    settings: &AuditSettings,
    scale: &ExperimentScale,
    relation: &str,
    model: &str,
) -> String {
    let facts = toml::to_string(&scale.fact_selection()).expect("a scale can be written as TOML");
    // A setting that came later, at its default: the records are older.
    let settings = format!("{settings:?}").replace(", rendered: false", "");
    let text = format!("{settings}\n{facts}\n{relation}\n{model}");
    format!("{:x}", Sha256::digest(text))
}

/// Identifies everything that the held-out facts depend on.
pub(super) fn held_out_fingerprint(audit: &str, seed: u64) -> String {
    format!("{:x}", Sha256::digest(format!("{audit}\n{seed}")))
}

/// The audit of a model on one relation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// The model as the user named it.
    pub model: String,
    /// The relation.
    pub relation: String,
    /// SHA-256 (hex) of everything that determines the labels: facts, audit settings, model.
    pub fingerprint: String,
    /// Few-shot prompts per fact.
    pub num_prompts: usize,
    /// Fraction of each label.
    pub label_fractions: LabelFractions,
}

impl AuditRecord {
    /// Takes what is recorded from an audit.
    pub(super) fn new(
        audit: &AuditResult,
        model: &str,
        relation: &str,
        fingerprint: String,
    ) -> Self {
        Self {
            model: model.to_owned(),
            relation: relation.to_owned(),
            fingerprint,
            num_prompts: audit.settings.num_prompts,
            label_fractions: audit.overall(),
        }
    }
}

/// Reads the record at `path`; `None` if the file does not exist.
///
/// # Errors
/// [`Error::Input`] if the file is not such a record.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read(path).map_err(Error::io("read", path))?;
    let record = serde_json::from_slice(&text);
    record.map_err(|e| Error::input(format!("{}: {e}", path.display())))
}

/// Writes a record atomically and creates its folder.
pub(super) fn write(record: &impl Serialize, path: &Path) -> Result<()> {
    let folder = path.parent().expect("a file in a folder");
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let text = serde_json::to_vec_pretty(record).expect("a record can be written as JSON");
    atomic_file::write(path, &text)
}

impl Record {
    /// Reads the record of a finished run from its run directory.
    pub(super) fn from_run(
        run: &RunDir,
        arm: &str,
        relation: &str,
        fingerprint: String,
        other_relations: Vec<bool>,
        is_timed: bool,
    ) -> Result<Self> {
        let result = run.result()?.expect("the run is finished");
        let mut environment: Environment = run.read_json("environment.json")?;
        // The absolute path of the model is private.
        let path = Path::new(&environment.model.path);
        if let Some(name) = path.file_name() {
            environment.model.path = name.to_string_lossy().into_owned();
        }
        let metrics = run.metrics()?;
        let facts = run.facts()?;
        let bits_of = |split: Split, is_correct: fn(&FactResult) -> bool| {
            to_bits(
                facts
                    .iter()
                    .filter(|row| row.split == split)
                    .map(is_correct),
            )
        };
        Ok(Self {
            arm: arm.to_owned(),
            relation: relation.to_owned(),
            seed: environment.seed,
            fingerprint,
            environment,
            result,
            epochs: EpochRecord::from_metrics(&metrics),
            step_seconds: is_timed.then(|| median_step_seconds(&metrics)),
            interpolation_seconds: interpolation_seconds(&metrics),
            held: bits_of(Split::Held, |row| row.correct_after),
            held_at_peak: bits_of(Split::Held, |row| row.correct_at_peak),
            maybe_known: bits_of(Split::MaybeKnown, |row| row.correct_after),
            weakly_known: bits_of(Split::WeaklyKnown, |row| row.correct_after),
            other_relations: to_bits(other_relations.into_iter()),
            drift: facts.iter().filter_map(|row| row.drift).collect(),
            facts: Arc::default(),
        })
    }

    /// Each fact of a held-out set with `b'1'` if it is correct at the end, else `b'0'`.
    pub(super) fn correct(&self, set: HeldOutSet) -> impl Iterator<Item = (&str, u8)> {
        let (names, bits) = match set {
            HeldOutSet::Held => (&self.facts.held, &self.held),
            HeldOutSet::MaybeKnown => (&self.facts.maybe_known, &self.maybe_known),
            HeldOutSet::WeaklyKnown => (&self.facts.weakly_known, &self.weakly_known),
            HeldOutSet::OtherRelations => (&self.facts.other_relations, &self.other_relations),
        };
        names.iter().map(String::as_str).zip(bits.bytes())
    }

    /// Reads the record at `path`; `None` if the file does not exist.
    ///
    /// # Errors
    /// [`Error::Input`] if the file is not a record.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        read(path)
    }

    /// Training time in seconds until this accuracy on new facts: the number of steps until then times the median step time (robust
    /// to other load on the machine), plus the time of the interpolation. `None` if it was never reached or not timed.
    pub fn seconds_until(&self, learned: f64) -> Option<f64> {
        let epoch = self.epoch_that_learned(learned)?;
        Some(epoch.steps as f64 * self.step_seconds? + self.interpolation_seconds)
    }

    /// Prompt and target tokens of all training steps until this accuracy on new facts. `None` if it was never reached, or if the
    /// record is older than this number.
    pub fn tokens_until(&self, learned: f64) -> Option<f64> {
        let tokens = self.epoch_that_learned(learned)?.tokens;
        (tokens > 0).then_some(tokens as f64)
    }

    /// The first epoch with this accuracy on new facts.
    fn epoch_that_learned(&self, learned: f64) -> Option<&EpochRecord> {
        let reached = |accuracy: f64| accuracy >= learned;
        let mut epochs = self.epochs.iter();
        epochs.find(|epoch| epoch.accuracy.unknown.is_some_and(reached))
    }
}

fn to_bits(correct: impl Iterator<Item = bool>) -> String {
    correct.map(|r| if r { '1' } else { '0' }).collect()
}

fn interpolation_seconds(metrics: &[Metrics]) -> f64 {
    let seconds = metrics.iter().map(|row| match row {
        Metrics::Interpolation { seconds, .. } => *seconds,
        _ => 0.0,
    });
    seconds.sum()
}

/// Median seconds per step after the last snapshot.
fn median_step_seconds(metrics: &[Metrics]) -> f64 {
    let after_snapshot = metrics
        .rsplit(|row| matches!(row, Metrics::Snapshot { .. }))
        .next()
        .unwrap_or_default();
    let mut seconds: Vec<f64> = after_snapshot
        .iter()
        .filter_map(|row| match row {
            Metrics::Step { seconds, .. } => Some(*seconds),
            _ => None,
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
impl Record {
    /// An empty record of an arm.
    pub(super) fn for_test(arm: &str) -> Self {
        let record = serde_json::json!({
            "arm": arm, "relation": "P17", "seed": 0, "fingerprint": "",
            "environment": {
                "version": "", "system": "", "cpu": "", "threads": 1, "device": "cpu", "seed": 0,
                "model": { "name": "m", "path": "", "checksum": "", "parameters": 1 }, "data": {},
            },
            "result": {
                "method": arm, "model": "m", "accuracy": {}, "epochs": 1, "steps": 1, "seconds": 1.0,
                "eval_seconds": 0.0, "peak_memory_bytes": 1,
                "counts": {
                    "learned": 0, "not_learned": 0, "kept": 0, "forgotten": 0, "gained": 0, "never_knew": 0,
                },
            },
            "epochs": [], "step_seconds": 1.0, "interpolation_seconds": 0.0,
            "held": "", "held_at_peak": "", "maybe_known": "", "other_relations": "",
        });
        serde_json::from_value(record).expect("a record")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::PerSplit;

    fn step(seconds: f64) -> Metrics {
        Metrics::Step {
            epoch: 1,
            step: 1,
            loss: 1.0,
            ce: 1.0,
            distill: 0.0,
            penalty: 0.0,
            grad_norm: 1.0,
            learning_rate: 1e-4,
            tokens: 10,
            seconds,
            tokens_per_second: 1.0,
        }
    }

    fn eval(epoch: usize, learned: f64) -> Metrics {
        Metrics::Eval {
            epoch,
            step: epoch,
            accuracy: PerSplit {
                unknown: Some(learned),
                ..PerSplit::default()
            },
            learned_paraphrased: None,
            drift: None,
            grad_norms: None,
            behaviour: None,
            validation_loss: None,
            seconds: 100.0,
        }
    }

    #[test]
    fn time_counts_steps_and_snapshots_but_not_evaluations() {
        let snapshot = Metrics::Snapshot {
            epoch: 1,
            step: 1,
            seconds: 4.0,
        };
        let metrics = [
            eval(0, 0.0),
            step(1.0),
            eval(1, 0.5),
            snapshot,
            step(2.0),
            step(3.0),
            eval(2, 1.0),
        ];
        let epochs = EpochRecord::from_metrics(&metrics);
        let seconds: Vec<f64> = epochs.iter().map(|e| e.seconds).collect();
        assert_eq!(seconds, [0.0, 1.0, 10.0]);
        assert_eq!(median_step_seconds(&metrics), 3.0);
    }
}

//! `[method]`: the remedies against forgetting, each a value or a table of its own.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{check::Checks, data::is_text, serde_helpers::is_default};

/// `[method]`: what is added to plain fine-tuning so that knowledge is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MethodConfig {
    /// What the new facts are for. Default `facts`.
    pub goal: Goal,
    /// Default `auto`.
    pub kind: MethodKind,
    /// Weight of the distillation term, or of the L2 penalty. Default 1.
    pub lambda: f64,
    /// Softmax temperature (tau) of teacher and student. Default 0.5.
    pub temperature: f64,
    /// Epochs on `D_Known` alone before the teacher is frozen; 0: the base model is the teacher. More than `num_epochs - 1`
    /// are reduced. Default 1.
    pub snapshot_epochs: usize,
    /// Vocabulary over which teacher and student are compared. Default `full`.
    pub vocab_subset: VocabSubset,
    /// How the teacher's logits are obtained. Default `auto`.
    pub teacher: TeacherMode,
    /// Reduction of the distillation term. Default `example`.
    pub reduction: DistillReduction,
    /// Leave the target token out of the distillation term (decoupled distillation): both distributions are renormalised over
    /// the other tokens and weighted by the teacher's probability of these, and cross-entropy alone decides how likely the
    /// target is. False: the divergence of the whole distributions (eq. 2). Default false.
    pub exclude_target: bool,
    /// Elastic weight consolidation around the snapshot, `{ strength = 1.0 }`, and around the models of earlier runs,
    /// `{ previous_runs = ["runs/first"] }`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ewc: Option<EwcConfig>,
    /// Known facts that are trained again next to the new ones, `{ ratio = 0.2, target = "label" }`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay: Option<ReplayConfig>,
    /// Made-up subjects on which the model is distilled from its snapshot, `{ ratio = 0.5, strength = 1.0 }`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decoys: Option<DecoysConfig>,
    /// Projects every update onto the null space of the known facts' inputs at the snapshot, `{ energy = 0.95 }`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectConfig>,
    /// Scale the change of the weights down after training, `{ min_retained = 0.99 }`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interpolate: Option<InterpolateConfig>,
    /// Forgetting allowed, in percentage points: half of the held-out facts are used to adapt the strength of the method, and the
    /// model that learned most within the budget is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<f64>,
}

impl Default for MethodConfig {
    fn default() -> Self {
        Self {
            goal: Goal::default(),
            kind: MethodKind::default(),
            lambda: 1.0,
            temperature: 0.5,
            snapshot_epochs: 1,
            vocab_subset: VocabSubset::default(),
            teacher: TeacherMode::default(),
            reduction: DistillReduction::default(),
            exclude_target: false,
            ewc: None,
            replay: None,
            decoys: None,
            project: None,
            interpolate: None,
            budget: None,
        }
    }
}

impl MethodConfig {
    /// Whether the distillation term is part of the loss of every row.
    pub fn distills(&self) -> bool {
        self.kind == MethodKind::SelfDistill
    }

    /// Whether the method needs a snapshot.
    pub fn takes_snapshot(&self) -> bool {
        let has_reference_weights = self.ewc.is_some() || self.project.is_some();
        self.has_teacher() || self.kind == MethodKind::L2 || has_reference_weights
    }

    /// Whether the snapshot is a teacher: of every row, or of auxiliary rows alone (decoys, replayed rows).
    pub fn has_teacher(&self) -> bool {
        let replay_target = self.replay.map(|replay| replay.target);
        self.distills() || self.trains_decoys() || replay_target == Some(ReplayTarget::Teacher)
    }

    /// Whether decoys are training rows, and not only inputs of the projection.
    pub fn trains_decoys(&self) -> bool {
        self.decoys.is_some_and(|decoys| decoys.ratio > 0.0)
    }

    /// Epochs on `D_Known` alone before the snapshot; 0 where there is no snapshot.
    pub fn effective_snapshot_epochs(&self) -> usize {
        if self.takes_snapshot() {
            self.snapshot_epochs
        } else {
            0
        }
    }

    /// Checks a resolved section.
    pub(super) fn check(&self, checks: &mut Checks) {
        checks.not_negative("method.lambda", self.lambda);
        checks.positive("method.temperature", self.temperature);
        checks.require(
            !matches!(
                self.vocab_subset,
                VocabSubset::TopK(0) | VocabSubset::Random(0)
            ),
            "method.vocab_subset",
            "must be at least 1 token",
        );
        checks.require(
            self.teacher != TeacherMode::Topk || matches!(self.vocab_subset, VocabSubset::TopK(_)),
            "method.teacher",
            "`topk` stores only the teacher's most likely tokens, which is exact only with `vocab_subset = { top = N }`: use `hidden`",
        );
        checks.require(
            !self.exclude_target || self.distills(),
            "method.exclude_target",
            "is a setting of self-distillation, which this run does not use: leave it out, or set `method.kind = \"self-distill\"`",
        );
        let budget = self.budget.unwrap_or_default();
        checks.require(
            (0.0..=100.0).contains(&budget),
            "method.budget",
            format!("must be from 0 to 100 percentage points, not {budget}"),
        );
        checks.require(
            self.goal == Goal::Facts || self.budget.is_none(),
            "method.budget",
            "keeps the model that learned most new facts, which `method.goal = \"task\"` avoids: leave it out",
        );
        if let Some(ewc) = &self.ewc {
            ewc.check(checks);
        }
        if let Some(replay) = &self.replay {
            replay.check(checks);
        }
        if let Some(decoys) = &self.decoys {
            decoys.check(checks);
            checks.require(
                decoys.ratio > 0.0 || self.project.is_some(),
                "method.decoys.ratio",
                "is 0, which needs `method.project` (it uses the decoys' inputs): set more than 0, or leave decoys out",
            );
        }
        if let Some(project) = &self.project {
            checks.fraction("method.project.energy", project.energy);
            checks.at_least_one("method.project.every", project.every);
        }
        if let Some(interpolate) = &self.interpolate {
            checks.fraction("method.interpolate.min_retained", interpolate.min_retained);
        }
    }
}

/// `method.goal`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Goal {
    /// The new facts should be learned.
    #[default]
    Facts,
    /// The task should be learned from them and the facts should not, for instance because they are private or not reliable.
    /// By default `train.trainable` is then a group that learns few facts (`attn`, or `k` in a model of 3 billion parameters or
    /// more: table 3 and appendix B of the paper), and `method.kind` is `sft`.
    Task,
}

/// `method.kind`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MethodKind {
    /// Plain supervised fine-tuning; `snapshot_epochs` and the distillation settings are ignored.
    Sft,
    /// Cross-entropy plus distillation from the model's own early snapshot (eqs. 1 and 2 of the paper).
    SelfDistill,
    /// Cross-entropy plus an L2 penalty on the distance from the snapshot's weights (eq. 3).
    L2,
    /// A preset: the combination that did best in the project's experiments. [`super::Config::resolve`] replaces it by its settings.
    #[default]
    Auto,
}

/// `method.ewc`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EwcConfig {
    /// Weight of the penalty: half of it times the sum of squared differences, weighted by the Fisher information. Default 1.
    pub strength: f64,
    /// Finished runs with EWC, in order, of which the last one saved `model`: each adds a penalty around its weights from the
    /// first step on. None by default.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub previous_runs: Vec<PathBuf>,
    /// gamma, from 0 to 1 (online EWC): a single penalty; the importance saved by the previous run is multiplied by gamma. Absent by
    /// default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gamma: Option<f64>,
}

impl Default for EwcConfig {
    fn default() -> Self {
        Self {
            strength: 1.0,
            previous_runs: Vec::new(),
            gamma: None,
        }
    }
}

impl EwcConfig {
    fn check(&self, checks: &mut Checks) {
        checks.not_negative("method.ewc.strength", self.strength);
        checks.require(
            self.previous_runs.iter().all(|run| is_text(run)),
            "method.ewc.previous_runs",
            "names a path that is not UTF-8 text",
        );
        let gamma = self.gamma.unwrap_or_default();
        checks.require(
            (0.0..=1.0).contains(&gamma),
            "method.ewc.gamma",
            format!("must be from 0 to 1, not {gamma}"),
        );
        checks.require(
            self.gamma.is_none() || self.previous_runs.len() == 1,
            "method.ewc.gamma",
            format!(
                "needs exactly one run in `previous_runs`, the last one, whose importance includes that of earlier runs; not {} runs",
                self.previous_runs.len()
            ),
        );
    }
}

/// `method.decoys`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DecoysConfig {
    /// Decoys in an epoch for each trained row. Default 0.5. It may be 0 with `method.project`, which also protects the inputs of
    /// all decoys in the pool.
    pub ratio: f64,
    /// Decoys in the pool for each trained row, from which every epoch draws. Absent: `ratio`, the same decoys in every epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool_ratio: Option<f64>,
    /// Weight of the term. Default 1.
    pub strength: f64,
    /// Where the subjects of decoys come from. Default `recombined`.
    #[serde(skip_serializing_if = "is_default")]
    pub subjects: DecoySubjects,
}

impl Default for DecoysConfig {
    fn default() -> Self {
        Self {
            ratio: 0.5,
            pool_ratio: None,
            strength: 1.0,
            subjects: DecoySubjects::default(),
        }
    }
}

/// `method.decoys.subjects`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DecoySubjects {
    /// Tokens of the subjects of the training facts, put together anew (`Berg|amo` and `Pas|adena` make `Bergadena`).
    #[default]
    Recombined,
    /// Names that the model gives: it continues a list of subjects of the training facts.
    Sampled,
}

impl DecoysConfig {
    fn check(&self, checks: &mut Checks) {
        checks.require(
            (0.0..=10.0).contains(&self.ratio),
            "method.decoys.ratio",
            format!(
                "is the number of decoys in an epoch for each row: from 0 to 10, not {}",
                self.ratio
            ),
        );
        let pool_ratio = self.pool_ratio.unwrap_or(self.ratio);
        checks.require(
            pool_ratio > 0.0 && pool_ratio >= self.ratio && pool_ratio <= 10.0,
            "method.decoys.pool_ratio",
            format!(
                "is the number of decoys in the pool for each row: above 0, and from `method.decoys.ratio` ({}) to 10, not {pool_ratio}",
                self.ratio
            ),
        );
        checks.not_negative("method.decoys.strength", self.strength);
    }
}

/// `method.interpolate`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InterpolateConfig {
    /// The fraction that must still be correct of the new facts that were correct before interpolation. Default 0.99.
    pub min_retained: f64,
}

impl Default for InterpolateConfig {
    fn default() -> Self {
        Self { min_retained: 0.99 }
    }
}

/// `method.replay`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReplayConfig {
    /// Replayed rows for each trained row. Default 0.2.
    pub ratio: f64,
    /// Target of a replayed row. Default `label`.
    pub target: ReplayTarget,
    /// Weight of the term under `target = "teacher"`. Default 1.
    pub strength: f64,
    /// How the ratio changes over the epochs. Default `uniform`.
    pub schedule: ReplaySchedule,
    /// Which known facts an epoch replays. Default `hardest`.
    pub selection: ReplaySelection,
}

impl Default for ReplayConfig {
    fn default() -> Self {
        Self {
            ratio: 0.2,
            target: ReplayTarget::default(),
            strength: 1.0,
            schedule: ReplaySchedule::default(),
            selection: ReplaySelection::default(),
        }
    }
}

impl ReplayConfig {
    fn check(&self, checks: &mut Checks) {
        checks.require(
            self.ratio > 0.0 && self.ratio <= 10.0,
            "method.replay.ratio",
            format!(
                "is the number of replayed rows for each row: above 0 and at most 10, not {}",
                self.ratio
            ),
        );
        checks.not_negative("method.replay.strength", self.strength);
        checks.require(
            self.target == ReplayTarget::Teacher || self.strength == 1.0,
            "method.replay.strength",
            "is the weight of the distillation term, which `target = \"label\"` does not have: leave it out, or set `target = \"teacher\"`",
        );
    }
}

/// `method.replay.target`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplayTarget {
    /// The correct answer: replayed rows are part of the step's mean cross-entropy. Needs no snapshot.
    #[default]
    Label,
    /// The snapshot's distribution at the tokens of the correct answer, without cross-entropy.
    Teacher,
}

/// `method.replay.schedule`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplaySchedule {
    /// The same in every epoch.
    #[default]
    Uniform,
    /// Rising linearly from none in the first epoch to twice the ratio in the last one.
    Ramp,
}

/// `method.replay.selection`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplaySelection {
    /// Those with the largest loss at the beginning of the epoch.
    #[default]
    Hardest,
    /// Drawn by seed and epoch.
    Random,
}

/// `method.project`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProjectConfig {
    /// The fraction of the inputs' energy (their squared length, summed over tokens) that the protected subspace must contain. Default
    /// 0.95.
    pub energy: f64,
    /// Steps between projections, each of which undoes the change in the subspace since the last one. More saves time. There is always
    /// a projection at the end of an epoch. Default 1.
    pub every: usize,
}

impl Default for ProjectConfig {
    fn default() -> Self {
        Self {
            energy: 0.95,
            every: 1,
        }
    }
}

/// `method.vocab_subset`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VocabSubset {
    /// The whole vocabulary.
    #[default]
    Full,
    /// `{ top = 76 }`: the teacher's most likely tokens, renormalised (eq. 5).
    #[serde(rename = "top")]
    TopK(usize),
    /// `{ random = 76 }`: random tokens, drawn again for every target of every step.
    Random(usize),
}

/// `method.teacher`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TeacherMode {
    /// A frozen copy of the model, with a forward pass in every step.
    Online,
    /// The model without its adapters (`train.lora`), with a forward pass in every step and no memory of its own. The snapshot is then
    /// that of the base model: `snapshot_epochs = 0`.
    Base,
    /// Its last hidden states at the answer positions, computed once: exact, and no second forward pass.
    Hidden,
    /// The logits of its most likely tokens, computed once and stored on disk: exact under `vocab_subset = { top = N }` only.
    Topk,
    /// `topk` under `vocab_subset = { top = N }`, else `hidden`.
    #[default]
    Auto,
}

/// `method.reduction`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DistillReduction {
    /// Mean over examples of the mean over target tokens (eq. 2).
    #[default]
    Example,
    /// Mean over the target tokens of the batch.
    Token,
}

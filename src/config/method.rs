//! `[method]`: the remedies, each a table or a value of its own, and what they have in common.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `[method]`: what is added to plain fine-tuning so that knowledge is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MethodConfig {
    /// What is wanted of the new facts. Default `facts`.
    pub goal: Goal,
    /// Default `self-distill`.
    pub kind: MethodKind,
    /// Strength of the distillation term. Default 1.
    pub lambda: f64,
    /// tau, which softens teacher and student. Default 0.5.
    pub temperature: f64,
    /// Epochs on `D_Known` alone before the teacher is frozen; 0: the base model is the teacher. Default 1.
    pub snapshot_epochs: usize,
    /// Tokens over which teacher and student are compared. Default `full`.
    pub vocab_subset: VocabSubset,
    /// Where the teacher's side of the loss comes from. Default `auto`.
    pub teacher: TeacherMode,
    /// How the distillation term is averaged. Default `example`.
    pub reduction: DistillReduction,
    /// Whether teacher and student are compared at the target token itself too. Default `kept`.
    pub target_token: TargetToken,
    /// Elastic weight consolidation around the snapshot, `{ strength = 1.0 }`, and around what earlier runs saved,
    /// `{ after = ["runs/first"] }`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ewc: Option<EwcConfig>,
    /// Known facts that are shown again beside what is learned, `{ share = 0.2, target = "label" }`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay: Option<ReplayConfig>,
    /// Made-up subjects about whom the model is held to its snapshot, `{ share = 0.5, strength = 1.0 }`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decoys: Option<DecoysConfig>,
    /// Projection of every update off the known facts' inputs at the snapshot, `{ energy = 0.95 }`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectConfig>,
    /// Scale the change of the weights down when training is done, `{ keep = 0.99 }`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interpolate: Option<InterpolateConfig>,
    /// Forgetting allowed, in percentage points: half of the held-out facts are watched, the strength follows them, and the
    /// model that had learned most within the budget is kept.
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
            target_token: TargetToken::default(),
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
    /// Whether a frozen snapshot teaches.
    pub fn distills(&self) -> bool {
        self.goal == Goal::Facts && self.kind == MethodKind::SelfDistill
    }

    /// Whether anything holds the model to a snapshot.
    pub fn takes_snapshot(&self) -> bool {
        let constrains_weights = self.ewc.is_some() || self.project.is_some();
        self.has_teacher() || self.kind == MethodKind::L2 || constrains_weights
    }

    /// Whether the snapshot is asked: at every row, or at rows beside what is learned alone.
    pub fn has_teacher(&self) -> bool {
        self.distills() || self.distills_aux_rows()
    }

    /// Whether the snapshot is asked at rows beside what is learned: decoys or replayed ones.
    fn distills_aux_rows(&self) -> bool {
        let replay = self.replay.map(|replay| replay.target);
        let auto = self.goal == Goal::Facts && self.kind == MethodKind::Auto;
        auto || self.trains_decoys() || replay == Some(ReplayTarget::Teacher)
    }

    /// Whether decoys are trained on, and not only kept off.
    pub fn trains_decoys(&self) -> bool {
        self.decoys.is_some_and(|decoys| decoys.ratio > 0.0)
    }

    /// Epochs on `D_Known` alone before the snapshot; none where there is no snapshot.
    pub fn effective_snapshot_epochs(&self) -> usize {
        if self.takes_snapshot() {
            self.snapshot_epochs
        } else {
            0
        }
    }
}

/// `method.goal`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Goal {
    /// They are to be learned.
    #[default]
    Facts,
    /// The task is to be learned from them and they are not, as where they are private or not to be trusted. `train.trainable`,
    /// where it is `all`, becomes what learns few facts: `attn`, or `k` in a model of 3 billion parameters or more (table 3 and
    /// appendix B of the paper); any other value is left as it is. Self-distillation, which is for learning facts, is left
    /// out: `kind = "self-distill"` and `"auto"` are plain fine-tuning.
    Task,
}

/// `method.kind`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MethodKind {
    /// Plain supervised fine-tuning; `snapshot_epoch` and the distillation settings are ignored.
    Sft,
    /// Cross-entropy plus distillation from the model's own early snapshot (eqs. 1 and 2 of the paper).
    #[default]
    SelfDistill,
    /// Cross-entropy plus L2 toward the snapshot's weights (eq. 3).
    L2,
    /// What our own experiments found best: [`crate::remedy::auto`] says what it stands for.
    Auto,
}

/// `method.ewc`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EwcConfig {
    /// Twice what multiplies the weighted squares. Default 1.
    pub strength: f64,
    /// Finished runs with EWC, in their order, of which the last saved `model`: each holds its weights from the first step on.
    /// None by default.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub previous_runs: Vec<PathBuf>,
    /// gamma, from 0 to 1: one penalty in place of one a run, in which the importance left by the run in `after` counts so
    /// much. Absent by default.
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

/// `method.decoys`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DecoysConfig {
    /// Decoys that an epoch visits for each row that is trained on. Default 0.5; 0 beside `method.project`, which keeps off
    /// the inputs of those that there are.
    pub ratio: f64,
    /// Decoys that there are for each row that is trained on, of which every epoch draws its share. Absent: `share`, the same
    /// ones in every epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool_ratio: Option<f64>,
    /// What the term weighs. Default 1.
    pub strength: f64,
}

impl Default for DecoysConfig {
    fn default() -> Self {
        Self {
            ratio: 0.5,
            pool_ratio: None,
            strength: 1.0,
        }
    }
}

/// `method.interpolate`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InterpolateConfig {
    /// Share of the new facts that are right when training is done that must be right afterwards. Default 0.99.
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
    /// Replayed rows for each row that is trained on. Default 0.2.
    pub ratio: f64,
    /// What a replayed row is held to. Default `label`.
    pub target: ReplayTarget,
    /// What the term weighs under `target = "teacher"`. Default 1.
    pub strength: f64,
    /// How the share goes over the epochs. Default `uniform`.
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

/// `method.replay.target`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplayTarget {
    /// The right answer: replayed rows join the mean of the step's cross-entropy. Needs no snapshot.
    #[default]
    Label,
    /// The snapshot's distribution at the right answer's tokens, and no cross-entropy.
    Teacher,
}

/// `method.replay.schedule`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplaySchedule {
    /// The same in every epoch.
    #[default]
    Uniform,
    /// Rising evenly from none in the first epoch to twice the share in the last one.
    Ramp,
}

/// `method.replay.selection`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplaySelection {
    /// Those whose loss is largest under the model at the beginning of the epoch.
    #[default]
    Hardest,
    /// Drawn by seed and epoch.
    Random,
}

/// `method.project`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProjectConfig {
    /// Share of the inputs' energy (their squared length, summed over tokens) that lies in the space which is not written to.
    /// Default 0.95.
    pub energy: f64,
    /// Steps after which what they changed in the space is taken back, all at once; the end of an epoch is always one. Default 1.
    #[serde(skip_serializing_if = "is_one")]
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

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it over so")]
fn is_one(n: &usize) -> bool {
    *n == 1
}

/// `method.vocab_subset`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VocabSubset {
    /// The whole vocabulary.
    #[default]
    Full,
    /// `{ top = 76 }`: the teacher's most likely tokens, renormalised (eq. 5).
    Top(usize),
    /// `{ random = 76 }`: random tokens, drawn anew for every target of every step.
    Random(usize),
}

/// `method.teacher`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TeacherMode {
    /// A frozen copy of the model that runs beside the student.
    Online,
    /// Its last hidden states at the answer positions, computed once: exact, and no second forward pass.
    Hidden,
    /// The logits of its most likely tokens, computed once and kept on disk: exact under `tokens = { top = N }`, and only
    /// there.
    Topk,
    /// `topk` under `tokens = { top = N }`, else `hidden`.
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

/// `method.target_token`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TargetToken {
    /// They are: the divergence is that of the whole distributions (eq. 2).
    #[default]
    Kept,
    /// They are not: both sides are renormalised over the other tokens, and what the teacher gives to these is the weight.
    /// Cross-entropy alone says how likely the target is to be (decoupled distillation).
    LeftOut,
}

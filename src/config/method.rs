//! `[method]`: the remedies, each a table or a value of its own, and what they have in common.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `[method]`: what is added to plain fine-tuning so that knowledge is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Method {
    /// What is wanted of the new facts. Default `facts`.
    pub goal: Goal,
    /// Default `self-distill`.
    pub kind: Kind,
    /// Strength of the distillation term. Default 1.
    pub lambda: f64,
    /// tau, which softens teacher and student. Default 0.5.
    pub temperature: f64,
    /// Epochs on `D_Known` alone before the teacher is frozen; 0: the base model is the teacher. Default 1.
    pub snapshot_epoch: usize,
    /// Tokens over which teacher and student are compared. Default `full`.
    pub tokens: Tokens,
    /// Where the teacher's side of the loss comes from. Default `auto`.
    pub teacher: Teacher,
    /// How the distillation term is averaged. Default `example`.
    pub reduction: Reduction,
    /// Whether teacher and student are compared at the target token itself too. Default `kept`.
    pub target_token: TargetToken,
    /// Elastic weight consolidation around the snapshot, `{ strength = 1.0 }`, and around what earlier runs saved,
    /// `{ after = ["runs/first"] }`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ewc: Option<Ewc>,
    /// Known facts that are shown again beside what is learned, `{ share = 0.2, target = "label" }`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay: Option<Replay>,
    /// Made-up subjects about whom the model is held to its snapshot, `{ share = 0.5, strength = 1.0 }`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decoys: Option<Decoys>,
    /// Projection of every update off the known facts' inputs at the snapshot, `{ energy = 0.95 }`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<Project>,
    /// Scale the change of the weights down when training is done, `{ keep = 0.99 }`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interpolate: Option<Interpolate>,
    /// Forgetting allowed, in percentage points: half of the held-out facts are watched, the strength follows them, and the
    /// model that had learned most within the budget is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<f64>,
}

impl Default for Method {
    fn default() -> Self {
        Self {
            goal: Goal::default(),
            kind: Kind::default(),
            lambda: 1.0,
            temperature: 0.5,
            snapshot_epoch: 1,
            tokens: Tokens::default(),
            teacher: Teacher::default(),
            reduction: Reduction::default(),
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

impl Method {
    /// Whether a frozen snapshot teaches.
    pub fn distills(&self) -> bool {
        self.goal == Goal::Facts && self.kind == Kind::SelfDistill
    }

    /// Whether anything holds the model to a snapshot.
    pub fn takes_snapshot(&self) -> bool {
        let beside = self.ewc.is_some() || self.project.is_some();
        self.has_teacher() || self.kind == Kind::L2 || beside
    }

    /// Whether the snapshot is asked: at every row, or at rows beside what is learned alone.
    pub fn has_teacher(&self) -> bool {
        self.distills() || self.asks_beside()
    }

    /// Whether the snapshot is asked at rows beside what is learned: decoys or replayed ones.
    fn asks_beside(&self) -> bool {
        let replay = self.replay.map(|replay| replay.target);
        let auto = self.goal == Goal::Facts && self.kind == Kind::Auto;
        auto || self.visits_decoys() || replay == Some(ReplayTarget::Teacher)
    }

    /// Whether decoys are trained on, and not only kept off.
    pub fn visits_decoys(&self) -> bool {
        self.decoys.is_some_and(|decoys| decoys.share > 0.0)
    }

    /// Epochs on `D_Known` alone before the snapshot; none where there is no snapshot.
    pub fn snapshot_epochs(&self) -> usize {
        if self.takes_snapshot() {
            self.snapshot_epoch
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
pub enum Kind {
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
pub struct Ewc {
    /// Twice what multiplies the weighted squares. Default 1.
    pub strength: f64,
    /// Finished runs with EWC, in their order, of which the last saved `model`: each holds its weights from the first step on.
    /// None by default.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<PathBuf>,
    /// gamma, from 0 to 1: one penalty in place of one a run, in which the importance left by the run in `after` counts so
    /// much. Absent by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decay: Option<f64>,
}

impl Default for Ewc {
    fn default() -> Self {
        Self {
            strength: 1.0,
            after: Vec::new(),
            decay: None,
        }
    }
}

/// `method.decoys`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Decoys {
    /// Decoys that an epoch visits for each row that is trained on. Default 0.5; 0 beside `method.project`, which keeps off
    /// the inputs of those that there are.
    pub share: f64,
    /// Decoys that there are for each row that is trained on, of which every epoch draws its share. Absent: `share`, the same
    /// ones in every epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<f64>,
    /// What the term weighs. Default 1.
    pub strength: f64,
}

impl Default for Decoys {
    fn default() -> Self {
        Self {
            share: 0.5,
            pool: None,
            strength: 1.0,
        }
    }
}

/// `method.interpolate`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Interpolate {
    /// Share of the new facts that are right when training is done that must be right afterwards. Default 0.99.
    pub keep: f64,
}

impl Default for Interpolate {
    fn default() -> Self {
        Self { keep: 0.99 }
    }
}

/// `method.replay`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Replay {
    /// Replayed rows for each row that is trained on. Default 0.2.
    pub share: f64,
    /// What a replayed row is held to. Default `label`.
    pub target: ReplayTarget,
    /// What the term weighs under `target = "teacher"`. Default 1.
    pub strength: f64,
    /// How the share goes over the epochs. Default `uniform`.
    pub schedule: ReplaySchedule,
    /// Which known facts an epoch replays. Default `hardest`.
    pub order: ReplayOrder,
}

impl Default for Replay {
    fn default() -> Self {
        Self {
            share: 0.2,
            target: ReplayTarget::default(),
            strength: 1.0,
            schedule: ReplaySchedule::default(),
            order: ReplayOrder::default(),
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
    End,
}

/// `method.replay.order`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplayOrder {
    /// Those whose loss is largest under the model at the beginning of the epoch.
    #[default]
    Hardest,
    /// Drawn by seed and epoch.
    Random,
}

/// `method.project`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Project {
    /// Share of the inputs' energy (their squared length, summed over tokens) that lies in the space which is not written to.
    /// Default 0.95.
    pub energy: f64,
    /// Steps after which what they changed in the space is taken back, all at once; the end of an epoch is always one. Default 1.
    #[serde(skip_serializing_if = "is_one")]
    pub every: usize,
}

impl Default for Project {
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

/// `method.tokens`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tokens {
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
pub enum Teacher {
    /// A frozen copy of the model that runs beside the student.
    Live,
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
pub enum Reduction {
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

//! The experiment file: one TOML, typed, closed and checked whole.
//!
//! The doc comments here are its reference. Values come from the defaults, then the file, then `--set key=value`.
//! Paths in it are relative to the directory that `unforget` is called from.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Result, facts::Match, prompt::PromptTemplate};

mod read;
mod validate;

/// An experiment: everything that decides what a run computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// A Hugging Face directory, a `.gguf` file, a hub id or a name in the catalogue. Default `smollm2-135m`.
    pub model: String,
    /// The run directory to be written. Default `runs/p17`.
    pub out: PathBuf,
    /// Seed of every draw: splits, few-shot exemplars, order of the rows. Default 0.
    pub seed: u64,
    /// An Only Known run to compare with (`below_only_known_pp`). Absent by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<PathBuf>,
    /// `[data]`.
    pub data: Data,
    /// `[method]`.
    pub method: Method,
    /// `[train]`.
    pub train: Train,
    /// `[measure]`.
    pub measure: Measure,
}

/// `[data]`: the facts, and how they are labelled and asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    /// New facts (`D_Unk`). Absent: nothing new is taught, the control that the paper calls Only Known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub learn: Vec<PathBuf>,
    /// Known facts to train on (`D_Known`). Absent: `HighlyKnown` facts of the same relations, else of `pack:world`, as
    /// many as `learn` has, at most 8,000.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keep: Vec<PathBuf>,
    /// Known facts that are only measured (`D_Held`). Absent: a seeded sample of the known facts that are left,
    /// disjoint by subject.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<PathBuf>,
    /// How the base model is asked for its labels: `{ runs = 20, shots = 3, samples = 16 }`. `false`: the files are taken
    /// as they are, nothing is filtered or labelled.
    #[serde(with = "false_or_table")]
    pub audit: Option<Audit>,
    /// A relation with a smaller share of `HighlyKnown` facts is left out. Default 0; 0.3 in the paper.
    pub min_highly_known: f64,
    /// When an answer is right: `exact` (default) or `contains`.
    #[serde(rename = "match")]
    pub rule: Match,
    /// Text of the prompt, with `{question}` in it. Absent: `Q: {question}\nA:`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Text of the target, with `{object}` in it. Absent: a space, `{object}` and a line break.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Ask through the model's own chat template. Default false.
    pub chat: bool,
    /// Count and list broken rows instead of refusing the file. Default false.
    pub skip_bad_rows: bool,
}

/// `data.audit`: `SLiCK` settings of the labels before and after a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Audit {
    /// Few-shot prompts each fact is asked under. Default 20.
    pub runs: usize,
    /// Exemplars in a prompt. Default 3.
    pub shots: usize,
    /// Samples that a fact gets under each prompt, drawn or computed. Default 16.
    pub samples: usize,
    /// Draw the samples instead of summing the probability of the right answers. Default false.
    pub sampled: bool,
}

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
    /// Decoys that an epoch visits for each row that is trained on. Default 0.5.
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
}

impl Default for Project {
    fn default() -> Self {
        Self { energy: 0.95 }
    }
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

/// `[train]`: what is trained, how long and by which steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Train {
    /// `k`, `q`, `v`, `o`, `attn`, `gate+up`, `down`, `ffn`, `all` (weight, bias and q/k norm of each), or patterns of
    /// tensor names (`model.layers.*.mlp.*`), each in all layers or in some (`ffn@0-9`); one, or a list. Default `all`;
    /// `method.goal = "task"` has its own.
    #[serde(with = "one_or_many")]
    pub trainable: Vec<String>,
    /// All of them, the snapshot epochs included. Default 20.
    pub epochs: usize,
    /// Rows of one forward pass. Default 64.
    pub batch_size: usize,
    /// Learning rate at its highest. Default 5e-5.
    pub lr: f64,
    /// Course of the learning rate after the warm-up. Default `constant`.
    pub schedule: Schedule,
    /// Steps over which the learning rate rises from 0. Default 0.
    pub warmup_steps: usize,
    /// `AdamW`'s decay rates of the first and second moment. Default `[0.9, 0.999]`.
    pub betas: [f64; 2],
    /// `AdamW`'s term against division by zero. Default 1e-8.
    pub eps: f64,
    /// Decoupled weight decay. Default 0.
    pub weight_decay: f64,
    /// Global gradient norm to which a larger one is scaled down; 0 is off. Default 1.
    pub clip: f64,
    /// Batches whose gradients make one step; a step sees `batch_size * accumulate` rows. Default 1.
    pub accumulate: usize,
    /// Shuffle the rows anew each epoch. False: keep, then learn, in the files' order. Default true.
    pub shuffle: bool,
    /// A longer row is an error, unless `truncate`. Default 2048.
    pub max_tokens: usize,
    /// Cut rows that are longer than `max_tokens`. Default false.
    pub truncate: bool,
    /// Epochs between checkpoints. Absent: every epoch, but at most one a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_every: Option<usize>,
    /// Low-rank adapters in the place of whole tensors, `{ rank = 16, alpha = 32, targets = ["q_proj", "v_proj"] }`;
    /// `trainable` is left at `all` then. Absent by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<Lora>,
    /// When to stop before the last epoch, `{ learned = 0.99 }`. Absent by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
    /// What is asked, watched and saved is the moving average of the weights in which every step keeps so much of the one
    /// before. Absent by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub average: Option<f64>,
}

/// `train.schedule`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// `lr` throughout.
    #[default]
    Constant,
    /// From `lr` to 0 along half a cosine.
    Cosine,
    /// From `lr` to 0 along a line.
    Linear,
}

/// `train.lora`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lora {
    /// Rank of a target's change. Default 16.
    pub rank: usize,
    /// What is divided by the rank (by its root under `rslora`) to scale the change. Default 32.
    pub alpha: usize,
    /// The linear layers that are adapted, as PEFT names modules: `q_proj` is one in every layer,
    /// `layers.0.self_attn.q_proj` a single one, `all-linear` all of them. Default `["q_proj", "v_proj"]`.
    #[serde(with = "one_or_many")]
    pub targets: Vec<String>,
    /// Default `lora`.
    pub variant: LoraVariant,
}

impl Default for Lora {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32,
            targets: ["q_proj", "v_proj"].map(String::from).to_vec(),
            variant: LoraVariant::default(),
        }
    }
}

/// `train.lora.variant`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LoraVariant {
    /// The change is scaled by `alpha / rank`.
    #[default]
    Lora,
    /// By `alpha / sqrt(rank)`.
    RsLora,
    /// As `lora`, and every row's length is trained apart from its direction.
    Dora,
}

/// `train.stop`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    /// Share of the new facts that is right at the end of an epoch.
    pub learned: f64,
}

/// `[measure]`: what is measured beside the accuracies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Measure {
    /// Drift of the hidden states after every epoch. Not in this version yet. Default false.
    pub drift: bool,
    /// Ask new facts in other words too, where there are any. Default true.
    pub paraphrase: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            model: "smollm2-135m".into(),
            out: "runs/p17".into(),
            seed: 0,
            baseline: None,
            data: Data::default(),
            method: Method::default(),
            train: Train::default(),
            measure: Measure::default(),
        }
    }
}

impl Default for Data {
    fn default() -> Self {
        Self {
            learn: Vec::new(),
            keep: Vec::new(),
            held: Vec::new(),
            audit: Some(Audit::default()),
            min_highly_known: 0.0,
            rule: Match::Exact,
            prompt: None,
            target: None,
            chat: false,
            skip_bad_rows: false,
        }
    }
}

impl Default for Audit {
    fn default() -> Self {
        Self {
            runs: 20,
            shots: 3,
            samples: 16,
            sampled: false,
        }
    }
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

impl Default for Train {
    fn default() -> Self {
        Self {
            trainable: vec!["all".into()],
            epochs: 20,
            batch_size: 64,
            lr: 5e-5,
            schedule: Schedule::default(),
            warmup_steps: 0,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.0,
            clip: 1.0,
            accumulate: 1,
            shuffle: true,
            max_tokens: 2048,
            truncate: false,
            checkpoint_every: None,
            lora: None,
            stop: None,
            average: None,
        }
    }
}

impl Default for Measure {
    fn default() -> Self {
        Self {
            drift: false,
            paraphrase: true,
        }
    }
}

impl Config {
    /// Reads an experiment file, lays `sets` (`train.lr=5e-5`) over it and validates the whole.
    ///
    /// # Errors
    /// [`crate::Error::Input`] naming file, line and key of what is wrong; every invalid value at once.
    pub fn read(path: &Path, sets: &[String]) -> Result<Self> {
        read::file(path, sets)
    }

    /// This config with `sets` (`train.lr=5e-5`, the value in TOML's syntax or a bare string) laid over it.
    /// Nothing is validated.
    ///
    /// # Errors
    /// [`crate::Error::Input`] for a set without `=`, an unknown key or a value of another type.
    pub fn with_sets(&self, sets: &[String]) -> Result<Self> {
        read::overlay(self, sets)
    }

    /// Checks every value and every combination.
    ///
    /// # Errors
    /// One [`crate::Error::Input`] that lists all faults.
    pub fn validate(&self) -> Result<()> {
        validate::report(&validate::faults(self), "the config", |_| None)
    }

    /// The whole config, defaults included, as TOML: what a run directory keeps.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every field has a form in TOML")
    }

    /// Whether nothing new is taught: the control run.
    pub fn only_known(&self) -> bool {
        self.data.learn.is_empty()
    }
}

impl Data {
    /// How facts are asked.
    pub fn template(&self) -> PromptTemplate {
        let default = PromptTemplate::default();
        PromptTemplate {
            prompt: self.prompt.clone().unwrap_or(default.prompt),
            target: self.target.clone().unwrap_or(default.target),
            next: None,
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
        auto || self.decoys.is_some() || replay == Some(ReplayTarget::Teacher)
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

/// `false`, or a table.
mod false_or_table {
    use serde::{
        Deserialize, Deserializer, Serialize, Serializer,
        de::{Error, MapAccess, Visitor, value::MapAccessDeserializer},
    };
    use std::{fmt, marker::PhantomData};

    #[allow(clippy::ref_option, reason = "serde hands over the field as it is")]
    pub fn serialize<T: Serialize, S: Serializer>(
        value: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(table) => table.serialize(serializer),
            None => serializer.serialize_bool(false),
        }
    }

    pub fn deserialize<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
    where
        T: Deserialize<'de> + Default,
        D: Deserializer<'de>,
    {
        struct FalseOrTable<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de> + Default> Visitor<'de> for FalseOrTable<T> {
            type Value = Option<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`false` or a table")
            }
            fn visit_bool<E: Error>(self, on: bool) -> Result<Self::Value, E> {
                Ok(on.then(T::default))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Some)
            }
        }
        deserializer.deserialize_any(FalseOrTable(PhantomData))
    }
}

/// A string, or a list of strings.
mod one_or_many {
    use serde::{
        Deserialize, Deserializer, Serialize, Serializer,
        de::{Error, SeqAccess, Visitor, value::SeqAccessDeserializer},
    };
    use std::fmt;

    pub fn serialize<S: Serializer>(names: &[String], serializer: S) -> Result<S::Ok, S::Error> {
        match names {
            [one] => one.serialize(serializer),
            many => many.serialize(serializer),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<String>, D::Error> {
        struct OneOrMany;
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Vec<String>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }
            fn visit_str<E: Error>(self, one: &str) -> Result<Self::Value, E> {
                Ok(vec![one.to_owned()])
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq))
            }
        }
        deserializer.deserialize_any(OneOrMany)
    }
}

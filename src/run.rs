//! The run directory: what a run writes and what `report`, `compare` and `resume` read. Everything else about a run follows from it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{config::Goal, measure::Neighbour};

mod directory;
mod environment;
mod history;
mod summary;
mod tensorboard;

pub use directory::{ADAPTER_DIR, EWC_FILE, RunDir, TEACHER_DIR};
pub use environment::{
    Environment, ModelRecord, peak_memory_bytes, reset_peak_memory, total_memory_bytes,
};
pub use history::EpochRecord;

/// A part of the facts that is followed through a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// `D_Known`: trained, known before.
    Known,
    /// `D_Unk`: trained, new.
    Unknown,
    /// `D_Held`: known before, never trained.
    Held,
    /// Held out, `MaybeKnown` before.
    MaybeKnown,
    /// Held out, `WeaklyKnown` before.
    WeaklyKnown,
}

impl Split {
    /// All five, in the order of every table.
    pub const ALL: [Self; 5] = [
        Self::Known,
        Self::Unknown,
        Self::Held,
        Self::MaybeKnown,
        Self::WeaklyKnown,
    ];

    /// Its name in tables and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Known => "known",
            Self::Unknown => "unknown",
            Self::Held => "held",
            Self::MaybeKnown => "maybe_known",
            Self::WeaklyKnown => "weakly_known",
        }
    }
}

/// What became of a fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FactOutcome {
    /// New, and right at the end.
    Learned,
    /// New, and wrong at the end.
    NotLearned,
    /// Known at the audit, right at the end.
    Kept,
    /// Known at the audit, wrong at the end.
    Forgotten,
    /// Not known at the audit, not taught, right at the end.
    Gained,
    /// Not known at the audit, not taught, wrong at the end.
    NeverKnew,
}

/// One value a split that a run has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PerSplit<T> {
    /// `D_Known`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub known: Option<T>,
    /// `D_Unk`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown: Option<T>,
    /// `D_Held`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<T>,
    /// Held `MaybeKnown`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maybe_known: Option<T>,
    /// Held `WeaklyKnown`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weakly_known: Option<T>,
}

impl<T> PerSplit<T> {
    /// The value of `split`.
    pub fn get(&self, split: Split) -> Option<&T> {
        match split {
            Split::Known => self.known.as_ref(),
            Split::Unknown => self.unknown.as_ref(),
            Split::Held => self.held.as_ref(),
            Split::MaybeKnown => self.maybe_known.as_ref(),
            Split::WeaklyKnown => self.weakly_known.as_ref(),
        }
    }

    /// Sets the value of `split`.
    pub fn set(&mut self, split: Split, value: T) {
        let slot = match split {
            Split::Known => &mut self.known,
            Split::Unknown => &mut self.unknown,
            Split::Held => &mut self.held,
            Split::MaybeKnown => &mut self.maybe_known,
            Split::WeaklyKnown => &mut self.weakly_known,
        };
        *slot = Some(value);
    }
}

/// Accuracies (shares, 0 to 1) of one split at four moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AccuracyStages {
    /// Few-shot, before training (mean over the audit's prompts); null without an audit.
    pub audit: Option<f64>,
    /// At the training prompt, before training.
    pub start: f64,
    /// At the training prompt, the best epoch.
    pub peak: f64,
    /// At the training prompt, the end.
    pub after: f64,
}

/// A line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Metrics {
    /// An optimiser step.
    Step {
        /// Epoch, counted from 1.
        epoch: usize,
        /// Step, counted from 1 over the whole run.
        step: usize,
        /// The whole loss (nats).
        loss: f64,
        /// Cross-entropy: mean over the target tokens (nats).
        ce: f64,
        /// Distillation term, lambda included (nats); 0 without a teacher.
        distill: f64,
        /// What the weights themselves are held by (L2, EWC); 0 without.
        #[serde(default)]
        penalty: f64,
        /// Global gradient norm before clipping.
        grad_norm: f64,
        /// Learning rate of this step.
        learning_rate: f64,
        /// Tokens, of prompts and targets.
        tokens: usize,
        /// Seconds that the step took.
        seconds: f64,
        /// Tokens a second.
        tokens_per_second: f64,
    },
    /// A step whose loss or gradient was not finite, and which changed nothing.
    Skipped {
        /// Epoch, counted from 1.
        epoch: usize,
        /// Step, counted from 1 over the whole run.
        step: usize,
        /// What was not finite.
        quantity: String,
    },
    /// The snapshot that teaches from here on.
    Snapshot {
        /// Epochs done.
        epoch: usize,
        /// Steps done.
        step: usize,
        /// Seconds that it took to freeze it, its hidden states included where those are kept.
        seconds: f64,
    },
    /// The change of the weights was scaled down, training being done.
    Interpolation {
        /// By what.
        factor: f64,
        /// Seconds that it took to find out.
        seconds: f64,
    },
    /// An evaluation of every split, at the training prompt.
    Eval {
        /// Epochs done; 0 is before training.
        epoch: usize,
        /// Steps done.
        step: usize,
        /// Share right.
        accuracy: PerSplit<f64>,
        /// Share of the new facts right when asked in other words, where asked.
        #[serde(skip_serializing_if = "Option::is_none")]
        learned_paraphrased: Option<f64>,
        /// How far the model has drifted from the base model, where measured.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        drift: Option<Drift>,
        /// What pulls at the weights, where measured.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        grad_norms: Option<GradNorms>,
        /// Seconds that the evaluation took.
        seconds: f64,
    },
}

/// How far a model has drifted from another, at all held facts or at one, as [`crate::metric::DriftProbe`] measures it; none of
/// what there is no fact or no pair for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Drift {
    /// How far held subjects have moved: 0 to 2.
    pub rd: Option<f64>,
    /// How far they have moved against each other: 0 to 2.
    pub ns: Option<f64>,
    /// How far they have moved toward new subjects (negative: away): -2 to 2.
    pub mtd: Option<f64>,
    /// How alike a new fact's answers and a held fact's old ones are ranked: -1 to 1.
    pub rank_rho: Option<f64>,
    /// Share of the likeliest tokens that a new and a held fact have in common: 0 to 1.
    pub ntr: Option<f64>,
    /// How far a new fact's answers are from a held fact's old ones, in nats: 0 to ln 2.
    pub jsd: Option<f64>,
    /// Pairs of a new and a held fact with the same answer that the last three are means over.
    pub pairs: usize,
}

/// What pulls at the weights: norms of the loss's two gradients over all that is trained, at one step's rows, before clipping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GradNorms {
    /// Of what is learned: cross-entropy.
    pub ce: f64,
    /// Of what holds the model: distillation, decoys, L2, EWC, with their strengths.
    pub retention: f64,
}

impl Drift {
    /// Each measure under the paper's name for it, in the paper's order.
    pub fn named(&self) -> [(&'static str, Option<f64>); 6] {
        [
            ("RD", self.rd),
            ("NS", self.ns),
            ("MTD", self.mtd),
            ("Rank-rho", self.rank_rho),
            ("NTR", self.ntr),
            ("JSD", self.jsd),
        ]
    }
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let formatted = self
            .named()
            .into_iter()
            .filter_map(|(name, value)| Some(format!("{name} {:.4}", value?)));
        f.write_str(&formatted.collect::<Vec<_>>().join(", "))
    }
}

/// A line of a run's `facts.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FactResult {
    /// Which part of the run.
    pub split: Split,
    /// Relation.
    pub relation: String,
    /// Subject.
    pub subject: String,
    /// Question.
    pub question: String,
    /// Right answer, as taught.
    pub object: String,
    /// `SLiCK` label before; null without an audit.
    pub label_before: Option<String>,
    /// `SLiCK` label after; null where the audit was not made again.
    pub label_after: Option<String>,
    /// The model's answer at the training prompt before training.
    pub answer_before: String,
    /// And after.
    pub answer_after: String,
    /// Right at the training prompt before training.
    pub correct_before: bool,
    /// Right at the training prompt after the epoch that was best for its split.
    #[serde(default)]
    pub correct_at_peak: bool,
    /// Right at the training prompt after.
    pub correct_after: bool,
    /// Right after some epoch and wrong after a later one.
    #[serde(default)]
    pub forgotten_once: bool,
    /// Probability of the right answer at the training prompt before training, end marker included, where asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p_before: Option<f64>,
    /// And after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p_after: Option<f64>,
    /// The new facts that lay nearest before training, nearest first; none for a new one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nearest: Vec<Neighbour>,
    /// Where the subject lies on a map of all subjects of the run before training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pca: Option<[f32; 2]>,
    /// How far a held fact's subject has drifted, where that is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<Drift>,
    /// New facts asked in other words: the question, the answer after, and whether it is right.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paraphrases: Vec<ParaphraseResult>,
    /// What became of it.
    pub outcome: FactOutcome,
}

/// A new fact asked in other words, after training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ParaphraseResult {
    /// The question.
    pub question: String,
    /// The answer.
    pub answer: String,
    /// Whether it is right.
    pub correct: bool,
}

/// `result.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// `sft`, `self-distill` ...; `only-known` for a run without new facts.
    pub method: String,
    /// What the user called the model.
    pub model: String,
    /// What was wanted of the new facts.
    #[serde(default)]
    pub goal: Goal,
    /// Share right, by split.
    pub accuracy: PerSplit<AccuracyStages>,
    /// 100 x (peak - after) on held.
    pub forgetting_pp: Option<f64>,
    /// Its 95% interval (paired bootstrap over the held facts).
    pub forgetting_interval: Option<[f64; 2]>,
    /// 100 x (Only Known's end - this one's) on held, where a baseline was given.
    pub gap_to_only_known_pp: Option<f64>,
    /// Share of the new facts right at the end; null without new facts.
    pub learned: Option<f64>,
    /// The same asked in other words.
    pub learned_paraphrased: Option<f64>,
    /// Share of the new facts wrong at the end, where they were not to be learned (`goal = "task"`).
    #[serde(default)]
    pub not_absorbed: Option<f64>,
    /// Facts by state.
    pub counts: Counts,
    /// Forgetting that was allowed, in pp.
    pub budget: Option<f64>,
    /// Within it.
    pub within_budget: Option<bool>,
    /// What the change of the weights was scaled by at the end, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interpolation: Option<f64>,
    /// Epochs done, the snapshot epochs included.
    pub epochs: usize,
    /// Steps done.
    pub steps: usize,
    /// Wall time of training and its evaluations, resumed parts added up.
    pub seconds: f64,
    /// Of these, in evaluations.
    pub eval_seconds: f64,
    /// Peak resident memory of the process.
    pub peak_memory_bytes: u64,
}

/// Facts by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// New and right.
    pub learned: usize,
    /// New and wrong.
    pub not_learned: usize,
    /// Known and right.
    pub kept: usize,
    /// Known and wrong.
    pub forgotten: usize,
    /// Gained without being taught.
    pub gained: usize,
    /// Never known.
    pub never_knew: usize,
}

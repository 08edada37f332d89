//! The run directory: what a run writes and what `report`, `compare` and `resume` read. Everything else about a run follows from it.

use serde::{Deserialize, Serialize};

use crate::{
    config::Goal,
    measure::{ComparedFact, Neighbour},
};

mod directory;
mod environment;
mod history;
mod summary;
mod tensorboard;

pub use directory::{ADAPTER_DIR, EWC_FILE, RunDir, TEACHER_DIR};
pub use environment::{Environment, ModelRecord};
pub use history::EpochRecord;

pub use crate::{
    facts::{PerSplit, Split},
    measure::{Counts, Drift, FactOutcome},
};

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

/// What pulls at the weights: norms of the loss's two gradients over all that is trained, at one step's rows, before clipping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GradNorms {
    /// Of what is learned: cross-entropy.
    pub ce: f64,
    /// Of what holds the model: distillation, decoys, L2, EWC, with their strengths.
    pub retention: f64,
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

impl From<FactResult> for ComparedFact {
    fn from(row: FactResult) -> Self {
        Self {
            split: Some(row.split),
            relation: row.relation,
            subject: row.subject,
            question: row.question,
            object: row.object,
            before: row.answer_before,
            after: row.answer_after,
            correct_before: row.correct_before,
            correct_after: row.correct_after,
            outcome: row.outcome,
        }
    }
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

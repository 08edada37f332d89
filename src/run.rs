//! The run directory: the files that a run writes, and the only code that reads them.

use serde::{Deserialize, Serialize};

use crate::{
    config::Goal,
    measure::{ComparedFact, Forgotten, Neighbour},
};

mod directory;
mod environment;
mod equal_learning;
mod history;
mod reader;
mod recorded;
mod summary;
mod tensorboard;
mod trained_prompt;

pub use directory::{ADAPTER_DIR, EWC_FILE, RunDir, TEACHER_DIR};
pub use environment::{Environment, ModelRecord, RunData, TextKinds};
pub use equal_learning::EqualLearning;
pub use history::{CurvePoint, EpochRecord};
pub use recorded::{RecordedRun, contains_runs, not_a_run};
pub use trained_prompt::{PromptForm, TrainedPrompt};

pub use crate::{
    facts::{PerSplit, Split},
    measure::{Behaviour, BehaviourAnswer, Counts, Drift, FactOutcome},
};

/// Accuracy (0 to 1) of one split at four stages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AccuracyStages {
    /// Few-shot, before training (mean over the audit's prompts); null without an audit.
    pub audit: Option<f64>,
    /// At the training prompt, before training.
    pub start: f64,
    /// At the training prompt, after the best epoch.
    pub peak: f64,
    /// At the training prompt, after training.
    pub after: f64,
}

/// A row of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Metrics {
    /// An optimizer step.
    Step {
        /// Epoch, counted from 1.
        epoch: usize,
        /// Step, counted from 1 over the whole run.
        step: usize,
        /// Total loss (nats).
        loss: f64,
        /// Cross-entropy: mean over the target tokens (nats).
        ce: f64,
        /// Distillation term times lambda (nats); 0 without a teacher.
        distill: f64,
        /// Weight penalty (L2, EWC); 0 without one.
        #[serde(default)]
        penalty: f64,
        /// Global gradient norm before clipping.
        grad_norm: f64,
        /// Learning rate of this step.
        learning_rate: f64,
        /// Number of prompt and target tokens.
        tokens: usize,
        /// Duration of the step in seconds.
        seconds: f64,
        /// Tokens per second.
        tokens_per_second: f64,
    },
    /// A step that was skipped because its loss or gradient was not finite.
    Skipped {
        /// Epoch, counted from 1.
        epoch: usize,
        /// Step, counted from 1 over the whole run.
        step: usize,
        /// The loss, or the name of the tensor, that was not finite.
        quantity: String,
    },
    /// The teacher was frozen: a snapshot of the current weights.
    Snapshot {
        /// Epochs done.
        epoch: usize,
        /// Steps done.
        step: usize,
        /// Duration in seconds, including the teacher forward pass if its outputs are stored.
        seconds: f64,
    },
    /// After training, the weights were interpolated toward the base model.
    Interpolation {
        /// Scale of the weight change: 1 is the trained model, 0 the base model.
        factor: f64,
        /// Duration of the search for the factor in seconds.
        seconds: f64,
    },
    /// An evaluation of every split, at the training prompt.
    Eval {
        /// Epochs done; 0 is before training.
        epoch: usize,
        /// Steps done.
        step: usize,
        /// Accuracy (0 to 1).
        accuracy: PerSplit<f64>,
        /// Accuracy on the paraphrased questions of the new facts, if evaluated.
        #[serde(skip_serializing_if = "Option::is_none")]
        learned_paraphrased: Option<f64>,
        /// Drift from the base model, if measured.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        drift: Option<Drift>,
        /// Gradient norms of the loss terms, if measured.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        grad_norms: Option<GradNorms>,
        /// Distance of the behaviour on general prompts from the base model's, if measured.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        behaviour: Option<Behaviour>,
        /// Cross-entropy of the validation rows: mean over their target tokens (nats), if there are any.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        validation_loss: Option<f64>,
        /// Duration of the evaluation in seconds.
        seconds: f64,
    },
    /// The evaluation of the weights as saved, beside the facts, which are in `facts.jsonl`.
    Final {
        /// Epochs done.
        epoch: usize,
        /// Steps done.
        step: usize,
        /// Distance of the behaviour on general prompts from the base model's, if measured.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        behaviour: Option<Behaviour>,
        /// Cross-entropy of the validation rows: mean over their target tokens (nats), if there are any.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        validation_loss: Option<f64>,
        /// Duration in seconds.
        seconds: f64,
    },
}

/// Gradient norms of the two parts of the loss over all trained parameters, on the rows of one step, before clipping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GradNorms {
    /// Of the cross-entropy.
    pub ce: f64,
    /// Of the terms against forgetting: distillation, decoys, L2, EWC, times their strengths.
    pub retention: f64,
}

/// A row of `facts.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FactResult {
    /// Split.
    pub split: Split,
    /// Relation.
    pub relation: String,
    /// Subject.
    pub subject: String,
    /// Question.
    pub question: String,
    /// Correct answer, as trained.
    pub object: String,
    /// `SLiCK` label before; null without an audit.
    pub label_before: Option<String>,
    /// `SLiCK` label after; null if the audit was not repeated.
    pub label_after: Option<String>,
    /// Few-shot accuracy before training (0 to 1): the fraction of the audit's prompts behind which the fact was answered
    /// correctly; null without an audit.
    #[serde(default)]
    pub few_shot_accuracy: Option<f64>,
    /// Answer before training, under one of the audit's few-shot prompts; without an audit at the training prompt.
    pub answer_before: String,
    /// Answer at the training prompt after training.
    pub answer_after: String,
    /// Whether the fact was known before training: at least half of the few-shot answers were correct. Without an audit, whether
    /// `answer_before` is correct.
    pub correct_before: bool,
    /// Whether the answer at the training prompt before training was correct. A model that does not know the format fails here
    /// with facts that it knows.
    #[serde(default)]
    pub correct_at_start: bool,
    /// Whether the answer after the best epoch of its split was correct.
    #[serde(default)]
    pub correct_at_peak: bool,
    /// Whether `answer_after` is correct.
    pub correct_after: bool,
    /// Whether it was correct after one epoch and wrong after a later one.
    #[serde(default)]
    pub forgotten_once: bool,
    /// Probability of the correct answer with its end marker at the training prompt before training, if evaluated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p_before: Option<f64>,
    /// The same after training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p_after: Option<f64>,
    /// The nearest new facts before training, nearest first; empty for a new fact.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nearest: Vec<Neighbour>,
    /// First two principal components of the subject's hidden state before training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pca: Option<[f32; 2]>,
    /// Drift at this fact, if measured; held-out facts only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<Drift>,
    /// Paraphrased questions of a new fact, with the answers after training.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paraphrases: Vec<ParaphraseResult>,
    /// Outcome.
    pub outcome: FactOutcome,
}

impl FactResult {
    /// Whether this is a fact, other than a new one, that counts as known before training.
    pub fn is_known(&self) -> bool {
        matches!(self.outcome, FactOutcome::Kept | FactOutcome::Forgotten)
    }
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

/// A paraphrased question of a new fact, answered after training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ParaphraseResult {
    /// The question.
    pub question: String,
    /// The answer.
    pub answer: String,
    /// Whether the answer is correct.
    pub correct: bool,
}

/// The validation loss over a run: mean over the target tokens of the validation rows, in nats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValidationResult {
    /// Before training.
    pub start: f64,
    /// After the best epoch.
    pub best: f64,
    /// The epoch with the smallest loss; 0 is before training.
    pub best_epoch: usize,
    /// At the end.
    pub after: f64,
    /// Number of target tokens.
    pub tokens: usize,
}

/// `result.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// `sft`, `self-distill` ...; `only-known` for a run without new facts.
    pub method: String,
    /// The preset that the user named in its place, such as `auto`; null if none.
    #[serde(default)]
    pub preset: Option<String>,
    /// Name or path of the base model, as given.
    pub model: String,
    /// `method.goal`.
    #[serde(default)]
    pub goal: Goal,
    /// Accuracy by split.
    pub accuracy: PerSplit<AccuracyStages>,
    /// The held-out facts that were known before training and are wrong at the end; null without such facts.
    #[serde(default)]
    pub forgotten: Option<Forgotten>,
    /// The same facts at the end of the Only Known run; null without a baseline.
    #[serde(default)]
    pub only_known_forgotten: Option<Forgotten>,
    /// `100 * (after of Only Known - after of this run)` on the held-out facts; null without a baseline.
    pub gap_to_only_known_pp: Option<f64>,
    /// Its 95% interval (paired, [`crate::measure::paired_interval`]).
    #[serde(default)]
    pub gap_to_only_known_interval: Option<[f64; 2]>,
    /// `100 * (peak - after)` on the held-out facts: since the best epoch, which may come after most of the loss.
    pub forgetting_pp: Option<f64>,
    /// Its 95% interval (paired).
    pub forgetting_interval: Option<[f64; 2]>,
    /// Fraction of the new facts correct at the end; null without new facts.
    pub learned: Option<f64>,
    /// Accuracy on the paraphrased questions of the new facts; null if not evaluated.
    pub learned_paraphrased: Option<f64>,
    /// Fraction of the new facts wrong at the end, under `goal = "task"`.
    #[serde(default)]
    pub not_absorbed: Option<f64>,
    /// Distance of the behaviour on general prompts from the base model's; null if not measured.
    #[serde(default)]
    pub behaviour: Option<Behaviour>,
    /// Cross-entropy of the validation rows at the end: mean over their target tokens (nats); null without such rows.
    #[serde(default)]
    pub validation_loss: Option<f64>,
    /// The validation loss over the run; null without validation rows.
    #[serde(default)]
    pub validation: Option<ValidationResult>,
    /// Cross-entropy of the trained chats and texts: mean over the target tokens of at most 128 rows (nats), before training and at
    /// the end; null without texts.
    #[serde(default)]
    pub texts_loss: Option<[f64; 2]>,
    /// Number of facts by outcome.
    pub counts: Counts,
    /// Allowed forgetting in pp.
    pub budget: Option<f64>,
    /// Whether `forgetting_pp` is within the budget.
    pub within_budget: Option<bool>,
    /// Scale of the weight change under `method.interpolate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interpolation: Option<f64>,
    /// Epochs done, including the snapshot epochs.
    pub epochs: usize,
    /// Steps done.
    pub steps: usize,
    /// Wall time of training and evaluations, over all resumed parts.
    pub seconds: f64,
    /// Wall time of the evaluations.
    pub eval_seconds: f64,
    /// Wall time of the audits before and after training, beside `seconds`; 0 where the labels came from the cache.
    #[serde(default)]
    pub audit_seconds: f64,
    /// Peak resident memory of the process.
    pub peak_memory_bytes: u64,
}

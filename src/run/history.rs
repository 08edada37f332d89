//! The epochs of a run, from `metrics.jsonl`.

use serde::{Deserialize, Serialize};

use super::{Behaviour, Drift, GradNorms, Metrics, PerSplit};

/// The evaluation after an epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Epochs done.
    pub epoch: usize,
    /// Steps done.
    pub steps: usize,
    /// Seconds of training until then: steps and snapshots, without evaluations.
    pub seconds: f64,
    /// Prompt and target tokens of all steps until then; 0 in records that are older than this field.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub tokens: usize,
    /// Accuracy (0 to 1).
    pub accuracy: PerSplit<f64>,
    /// Drift from the base model, if measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<Drift>,
    /// Gradient norms of the loss terms, if measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grad_norms: Option<GradNorms>,
    /// Distance of the behaviour on general prompts from the base model's, if measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behaviour: Option<Behaviour>,
    /// Cross-entropy of the validation rows (nats per token), if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
}

// serde hands over a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// An evaluation as a point of the curve of known facts kept over new facts learned (accuracies, 0 to 1).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CurvePoint {
    /// Accuracy on new facts.
    pub learned: f64,
    /// Accuracy on held-out facts.
    pub kept: f64,
}

impl EpochRecord {
    /// The curve of a run: its evaluations after each epoch. The one before training is left out, since the model does not know the
    /// format; without new or held-out facts there is no point.
    pub fn curve(epochs: &[Self]) -> Vec<CurvePoint> {
        let after = epochs.iter().filter(|epoch| epoch.epoch > 0);
        let point = |epoch: &Self| {
            Some(CurvePoint {
                learned: epoch.accuracy.unknown?,
                kept: epoch.accuracy.held?,
            })
        };
        after.filter_map(point).collect()
    }

    /// One record per evaluated epoch, in order. If a resumed run evaluated an epoch twice, the later row counts.
    pub fn from_metrics(metrics: &[Metrics]) -> Vec<Self> {
        let (mut seconds, mut tokens) = (0.0, 0);
        let mut epochs: Vec<Self> = Vec::new();
        for row in metrics {
            match row {
                Metrics::Step {
                    seconds: s,
                    tokens: t,
                    ..
                } => {
                    seconds += s;
                    tokens += t;
                }
                Metrics::Snapshot { seconds: s, .. } => seconds += s,
                Metrics::Interpolation { .. } | Metrics::Skipped { .. } | Metrics::Final { .. } => {
                }
                Metrics::Eval {
                    epoch,
                    step,
                    accuracy,
                    drift,
                    grad_norms: pulls,
                    behaviour,
                    validation_loss,
                    ..
                } => {
                    epochs.retain(|e| e.epoch != *epoch);
                    epochs.push(Self {
                        epoch: *epoch,
                        steps: *step,
                        seconds,
                        tokens,
                        accuracy: *accuracy,
                        drift: *drift,
                        grad_norms: *pulls,
                        behaviour: *behaviour,
                        validation_loss: *validation_loss,
                    });
                }
            }
        }
        epochs.sort_by_key(|e| e.epoch);
        epochs
    }
}

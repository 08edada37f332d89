//! A run that is about to start: its inputs and options.

use std::{path::PathBuf, sync::Arc};

use super::{evaluator::AuditAfter, records::Baseline};
use crate::{
    config::{Config, Device},
    distributed::Comm,
    facts::Text,
    model::Model,
    run::RunDir,
    splits::Splits,
};

/// Options of a run that are no part of the experiment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Leave the checkpoints in place when the run is done.
    pub keep_checkpoints: bool,
    /// Measure accuracies only, and nothing that only a report shows: no probabilities, neighbours and coordinates of facts.
    pub metrics_only: bool,
    /// Print where the time of the steps went.
    pub profile: bool,
    /// Where a resumed run continues, if not on its own device.
    pub device: Option<Device>,
    /// The processes that share the run.
    pub comm: Comm,
}

/// Everything that one run needs.
pub(super) struct Job {
    /// Resolved and validated.
    pub config: Config,
    /// The base model; it becomes the tuned one.
    pub model: Model,
    /// The facts to train on and to measure.
    pub splits: Splits,
    /// Chats and other texts to train on.
    pub texts: Arc<[Text]>,
    /// Chats and other texts whose loss is measured.
    pub validation: Arc<[Text]>,
    pub run_dir: RunDir,
    /// How the facts are audited again after training; none: labels after training are null.
    pub audit_after: Option<AuditAfter>,
    pub options: Options,
    pub start: Start,
}

/// Where a run starts.
pub(super) enum Start {
    /// At the base model.
    BaseModel,
    /// At the prefix in this directory, which runs share whose first steps are the same; the first run writes it.
    SharedPrefix(PathBuf),
    /// At the newest checkpoint. The base model was evaluated before.
    Checkpoint(Vec<Baseline>),
}

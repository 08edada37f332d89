//! The one error type of the library, and the exit code each kind of failure maps to.

use std::path::{Path, PathBuf};

/// An error: its cause, its place, and a hint for fixing it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Wrong usage, configuration or input, found before any computation. Exit code 2.
    #[error("{message}")]
    Input {
        /// The fault and its place (file, line, field).
        message: String,
        /// How to fix it.
        hint: Option<String>,
    },
    /// A model file that is truncated or inconsistent. Exit code 1.
    #[error("broken model file {}: {message}", path.display())]
    BrokenModel {
        /// The file.
        path: PathBuf,
        /// The fault.
        message: String,
    },
    /// Reading or writing a file failed. Exit code 1.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The operation: `read`, `write`, `create`, ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A loss, gradient or weight that is not finite. Exit code 1.
    #[error("step {step}: {quantity} is not finite")]
    NonFinite {
        /// The optimizer step, counted from 1.
        step: usize,
        /// The loss, or the name of the tensor.
        quantity: String,
        /// How to fix it.
        hint: String,
    },
    /// Any other failure. Exit code 1.
    #[error("{message}")]
    Failed {
        /// The failure.
        message: String,
        /// How to fix it.
        hint: Option<String>,
    },
    /// The work is complete, but the model forgot more than the budget allows. Exit code 3.
    #[error(
        "the model forgot {forgotten:.1} pp of the held-out facts{since}, over the budget of {budget} pp"
    )]
    OverBudget {
        /// Forgetting in pp.
        forgotten: f64,
        /// Since when, such as ` since its best epoch`; empty: since the audit.
        since: &'static str,
        /// The budget in pp.
        budget: f64,
        /// How to reduce the forgetting.
        hint: &'static str,
    },
    /// The work is complete, but the model's behaviour is further from the base model's than allowed. Exit code 3.
    #[error(
        "on general prompts the model is {kl:.3} nats per token (KL) from the base model, over the limit of {max_kl}"
    )]
    ChangedBehaviour {
        /// KL divergence from the base model, in nats per token.
        kl: f64,
        /// The largest one allowed.
        max_kl: f64,
        /// How to reduce it.
        hint: &'static str,
    },
    /// Interrupted by the user; the run can be resumed. Exit code 130.
    #[error("interrupted")]
    Interrupted {
        /// How to continue.
        hint: String,
    },
}

/// A result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Input`] without a hint.
    pub fn input(message: impl Into<String>) -> Self {
        Self::Input {
            message: message.into(),
            hint: None,
        }
    }

    /// An [`Error::Input`] with a hint.
    pub fn input_hint(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Input {
            message: message.into(),
            hint: Some(hint.into()),
        }
    }

    /// An [`Error::BrokenModel`].
    pub fn broken(path: &Path, message: impl Into<String>) -> Self {
        Self::BrokenModel {
            path: path.to_owned(),
            message: message.into(),
        }
    }

    /// Converts an I/O error to [`Error::Io`], for `map_err`.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Input { .. } => 2,
            Self::BrokenModel { .. }
            | Self::Io { .. }
            | Self::NonFinite { .. }
            | Self::Failed { .. } => 1,
            Self::OverBudget { .. } | Self::ChangedBehaviour { .. } => 3,
            Self::Interrupted { .. } => 130,
        }
    }

    /// How to fix it, if known.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Input { hint, .. } | Self::Failed { hint, .. } => hint.as_deref(),
            Self::NonFinite { hint, .. } | Self::Interrupted { hint } => Some(hint),
            Self::BrokenModel { .. } => {
                Some("download the file again (`unforget pull`), or check its source")
            }
            Self::OverBudget { hint, .. } | Self::ChangedBehaviour { hint, .. } => Some(hint),
            Self::Io { .. } => None,
        }
    }
}

/// The name of `known` that is closest to `word`, if any is close enough for a "did you mean".
pub fn closest_match<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|k| (strsim::damerau_levenshtein(word, k), k))
        .filter(|(d, k)| *d <= 1 + k.len() / 3)
        .min_by_key(|(d, _)| *d)
        .map(|(_, k)| k)
}

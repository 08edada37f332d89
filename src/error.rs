//! The one error type of the library, and the exit code each kind of failure maps to.

use std::path::{Path, PathBuf};

/// What went wrong: what, where, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Wrong usage, configuration or input, found before any compute. Exit code 2.
    #[error("{message}")]
    Input {
        /// What is wrong and where (file, line, field).
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// A model file that is truncated, lies about itself, or is not what it claims. Exit code 1.
    #[error("broken model file {}: {message}", path.display())]
    BrokenModel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// Reading or writing failed during the work. Exit code 1.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried: `read`, `write`, `create` ...
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A loss, gradient or weight that is not finite. Exit code 1.
    #[error("step {step}: {quantity} is not finite")]
    NonFinite {
        /// The optimiser step, counted from 1.
        step: usize,
        /// Loss, or the name of the tensor.
        quantity: String,
        /// What to do about it.
        hint: String,
    },
    /// The work failed for another reason. Exit code 1.
    #[error("{message}")]
    Failed {
        /// What failed.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// Done, but more was forgotten than the budget allows. Exit code 3.
    #[error(
        "{forgotten:.1} pp of the held-out facts were forgotten, over the budget of {budget} pp"
    )]
    OverBudget {
        /// Forgetting, in pp.
        forgotten: f64,
        /// What was allowed, in pp.
        budget: f64,
        /// What to do.
        hint: &'static str,
    },
    /// Interrupted by the user; the run can be resumed. Exit code 130.
    #[error("interrupted")]
    Interrupted {
        /// How to go on.
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

    /// An [`Error::Io`], for `map_err`.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// The process exit code of this failure (see the table in the README).
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Input { .. } => 2,
            Self::BrokenModel { .. }
            | Self::Io { .. }
            | Self::NonFinite { .. }
            | Self::Failed { .. } => 1,
            Self::OverBudget { .. } => 3,
            Self::Interrupted { .. } => 130,
        }
    }

    /// What the user can do, where we know it.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Input { hint, .. } | Self::Failed { hint, .. } => hint.as_deref(),
            Self::NonFinite { hint, .. } | Self::Interrupted { hint } => Some(hint),
            Self::BrokenModel { .. } => {
                Some("bring the file again (`unforget pull`), or check where it came from")
            }
            Self::OverBudget { hint, .. } => Some(hint),
            Self::Io { .. } => None,
        }
    }
}

/// ` did you mean ...?` for a misspelt word: the nearest of the known ones, if it is near at all.
pub fn closest_match<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|k| (strsim::damerau_levenshtein(word, k), k))
        .filter(|(d, k)| *d <= 1 + k.len() / 3)
        .min_by_key(|(d, _)| *d)
        .map(|(_, k)| k)
}

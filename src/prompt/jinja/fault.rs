//! Why a template cannot be rendered.

/// The kinds of faults, which call for different advice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::prompt) enum FaultKind {
    /// The template is not Jinja.
    Syntax,
    /// Python would raise a `TypeError`, a `ValueError` or an `UndefinedError`.
    Value,
    /// The template called `raise_exception`: it refuses this chat.
    Raised,
    /// Jinja has it, but this program doesn't.
    NotOffered,
    /// The template needs too much time, memory or depth.
    TooLarge,
}

/// A fault and its line in the template, counted from 1; 0 while it is not known.
#[derive(Clone, Debug)]
pub(in crate::prompt) struct Fault {
    pub(in crate::prompt) kind: FaultKind,
    pub(in crate::prompt) message: String,
    pub(in crate::prompt) line: usize,
}

pub(super) type Result<T> = std::result::Result<T, Fault>;

impl Fault {
    fn new(kind: FaultKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            line: 0,
        }
    }

    pub(super) fn syntax(line: usize, message: impl Into<String>) -> Self {
        Self {
            line,
            ..Self::new(FaultKind::Syntax, message)
        }
    }

    pub(super) fn types(message: impl Into<String>) -> Self {
        Self::new(FaultKind::Value, message)
    }

    pub(super) fn undefined(words: &str) -> Self {
        Self::new(FaultKind::Value, words)
    }

    pub(super) fn raised(message: impl Into<String>) -> Self {
        Self::new(FaultKind::Raised, message)
    }

    pub(super) fn not_offered(what: impl std::fmt::Display) -> Self {
        Self::new(
            FaultKind::NotOffered,
            format!("this program's Jinja has no {what}"),
        )
    }

    pub(super) fn too_large(message: impl Into<String>) -> Self {
        Self::new(FaultKind::TooLarge, message)
    }

    pub(super) fn at(mut self, line: usize) -> Self {
        if self.line == 0 {
            self.line = line;
        }
        self
    }
}

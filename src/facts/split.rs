//! The splits of a run's facts.

use serde::{Deserialize, Serialize};

/// A split of the facts of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// `D_Known`: known before training, trained.
    Known,
    /// `D_Unk`: new, trained.
    Unknown,
    /// `D_Held`: known before training, never trained.
    Held,
    /// `MaybeKnown` before training, never trained.
    MaybeKnown,
    /// `WeaklyKnown` before training, never trained.
    WeaklyKnown,
}

impl Split {
    /// All splits, in the order of every table.
    pub const ALL: [Self; 5] = [
        Self::Known,
        Self::Unknown,
        Self::Held,
        Self::MaybeKnown,
        Self::WeaklyKnown,
    ];

    /// The name in tables and records.
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

/// One value per split; `None` for a split that a run does not have.
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
    /// Held-out `MaybeKnown` facts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maybe_known: Option<T>,
    /// Held-out `WeaklyKnown` facts.
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

    /// The values that are set, by the name of their split.
    pub fn named(&self) -> Vec<(&'static str, T)>
    where
        T: Copy,
    {
        let named = |split: Split| Some((split.name(), *self.get(split)?));
        Split::ALL.into_iter().filter_map(named).collect()
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

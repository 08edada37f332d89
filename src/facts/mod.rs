//! Facts: (subject, relation, object) asked as closed-book questions, their readers, and the built-in pack.
//!
//! A fact knows its right answers ([`Fact::accepted_answers`]) and judges a model's text ([`AnswerScorer`]); [`is_read`] brings facts
//! from files, whole or not at all.

mod aliases;
pub mod extract;
mod fact;
mod normalise;
mod read;
mod relations;
mod scorer;
mod split;

pub use fact::{Fact, Location};
pub use normalise::normalise;
pub use read::{
    FactSet, Message, PACK, ReadOptions, ReadSummary, Text, TextKind, TextSet, drop_contradicted,
    is_text_file, read, read_each, read_texts, resolve_files,
};
pub use relations::{Relation, relation};
pub use scorer::{AnswerScorer, AnswerVerdict, MatchRule, WrongKind};
pub use split::{PerSplit, Split};

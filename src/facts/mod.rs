//! Facts: (subject, relation, object) asked as closed-book questions, their readers, and the built-in pack.
//!
//! A fact knows its right answers ([`Fact::accepted`]) and judges a model's text ([`Judge`]); [`read`] brings facts
//! from files, whole or not at all.

mod aliases;
mod fact;
mod judge;
mod normalise;
pub mod propose;
mod read;
mod relations;

pub use fact::{Fact, Location};
pub use judge::{Judge, Match, Verdict, WrongKind};
pub use normalise::normalise;
pub use read::{
    FactSet, Message, PACK, ReadOptions, Reading, Text, TextKind, TextSet, drop_contradicted, each,
    files_of, holds_texts, read, read_texts,
};
pub use relations::{Relation, relation};

//! Facts: (subject, relation, object) with a closed-book question, their readers, and the built-in pack.
//!
//! [`read`] reads facts from files. [`AnswerScorer`] decides whether a model's answer is correct.

mod aliases;
pub mod extract;
mod fact;
mod normalise;
mod read;
mod relations;
mod scorer;
mod split;

pub use crate::config::MatchRule;
pub use fact::{Fact, Location};
pub(crate) use normalise::fold_case;
pub use normalise::normalise;
pub use read::{
    Chat, FactSet, Message, PACK, ReadOptions, ReadSummary, Text, TextKind, TextSet,
    drop_contradicted, is_text_file, read, read_each, read_fields, read_texts, resolve_files,
};
pub use relations::{ObjectKind, Relation, relation, relation_name};
pub use scorer::{AnswerScorer, AnswerVerdict, WrongKind};
pub use split::{PerSplit, Split};

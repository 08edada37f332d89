//! The names of the columns that are read.

/// The columns that every fact has.
pub(super) const REQUIRED_COLUMNS: [&str; 3] = ["subject", "relation", "object"];

/// All columns of a fact.
pub(super) const FACT_COLUMNS: [&str; 7] = [
    "subject",
    "relation",
    "object",
    "aliases",
    "question",
    "split",
    "paraphrases",
];

/// The column of an `EntityQuestions` row that no other row has.
pub(super) const ANSWERS: &str = "answers";

/// The fields of training text.
pub(super) const TEXT_FIELDS: [&str; 10] = [
    "messages",
    "conversations",
    "instruction",
    "input",
    "output",
    "system",
    "history",
    "prompt",
    "completion",
    "text",
];

/// Whether a column of this name is read at all.
pub(super) fn is_read(column: &str) -> bool {
    FACT_COLUMNS.contains(&column) || TEXT_FIELDS.contains(&column) || column == ANSWERS
}

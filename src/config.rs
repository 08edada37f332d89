//! The experiment file: one TOML document, typed; unknown keys are errors.
//!
//! The doc comments here are its reference. Values come from the defaults, then a preset (`method.kind = "auto"`,
//! `method.goal = "task"`), then the file, then flags and `--set key=value`. Paths are relative to the directory that `unforget` is
//! called from.

mod check;
mod data;
mod data_file;
mod deserialize;
mod key_names;
mod method;
mod read;
mod reference;
mod resolve;
mod schema;
mod serde_helpers;
mod set_keys;
mod table;
mod tensor_groups;
mod train;
mod validate;

pub use data::{AuditConfig, DataConfig, MatchRule};
pub use data_file::{DataFile, RowWeight};
pub use key_names::hint_for_flag;
pub use method::{
    DecoySubjects, DecoysConfig, DistillReduction, EwcConfig, Goal, InterpolateConfig,
    MethodConfig, MethodKind, ProjectConfig, ReplayConfig, ReplaySchedule, ReplaySelection,
    ReplayTarget, TeacherMode, VocabSubset,
};
pub use read::Override;
pub use reference::{KeyReference, reference};
pub(crate) use resolve::JobRows;
pub use resolve::{ModelSize, Resolved};
pub use schema::{BehaviourSchedule, Config, Device, MeasureConfig, ModelDtype};
pub(crate) use serde_helpers::is_default;
pub use set_keys::SetKeys;
pub use tensor_groups::{TENSOR_GROUPS, parse_selector};
pub use train::{
    ALL_LINEAR, EarlyStoppingConfig, LoraConfig, LoraVariant, LrScheduler, OnNonFinite,
    TrainConfig, matches_module,
};

#[cfg(test)]
mod tests;

//! Remedies: methods that keep knowledge while new facts are learned.
//!
//! A remedy is one of four small things. Its module says which.
//!
//! | kind | where the training loop uses it | remedies |
//! |---|---|---|
//! | a term of the loss at target positions | `train::objective`, through [`engine::SoftTargets`](crate::engine::SoftTargets) | [`distill`] with [`teacher`] and [`topk_teacher`] |
//! | a change of a tensor's gradient or step | `train::objective` (gradients), after the optimizer step (weights) | [`weight_penalty`] (L2, EWC), [`continual_ewc`], [`null_space`] |
//! | a source of training rows | `train::sampler` | [`replay`], [`pseudo_replay`] ("decoys") |
//! | a view of the parameters | which tensors have a gradient | [`freeze`], [`lora`], [`interpolate`] |
//!
//! Remedies combine freely: a run's config has a list of them. There is one training loop; remedies differ in the objective, the rows
//! and the trained parameters. What is frozen at the snapshot is collected in [`snapshot`]; [`budget`] adjusts the strength of all
//! remedies during training.
//!
//! # Adding a remedy
//! 1. Decide which of the four kinds it is, and write one file here with its equation in the module doc. It may use the engine,
//!    generation, prompts and config types, but neither `train` nor the run directory.
//! 2. Give it a table in `config::MethodConfig`.
//! 3. If it freezes something at the snapshot, add it to [`snapshot::Snapshot`], which also checkpoints it. Otherwise add it where the
//!    table above says.

pub mod budget;
pub mod continual_ewc;
pub mod distill;
pub mod freeze;
pub mod interpolate;
pub mod lora;
pub mod null_space;
pub mod pseudo_replay;
pub mod replay;
pub mod snapshot;
pub mod teacher;
pub mod topk_teacher;
pub mod weight_penalty;

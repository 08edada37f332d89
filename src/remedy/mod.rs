//! Remedies: methods that keep knowledge while new facts are learned.
//!
//! There are four kinds of remedy. The first line of each module names its kind.
//!
//! | kind | where the training loop uses it | remedies |
//! |---|---|---|
//! | a term of the loss at target positions | `train::objective`, through [`engine::SoftTargets`](crate::engine::SoftTargets) | [`distill`] with [`teacher`] and [`topk_teacher`] |
//! | a change of a tensor's gradient or step | `train::objective` (gradients), after the optimizer step (weights) | [`weight_penalty`] (L2, EWC), [`continual_ewc`], [`null_space`] |
//! | a source of training rows | `train::sampler` | [`replay`], [`pseudo_replay`] ("decoys") |
//! | a restriction of the trained parameters | `train::trainable`, `train::student` | [`freeze`], [`lora`] |
//!
//! Two more act outside of the steps: `train.ema_decay` averages the weights over them (`train::adamw`), and [`interpolate`] scales the
//! change of the weights down after training (`train::finish`).
//!
//! Remedies combine: each is a table of `[method]`. What is frozen at the snapshot is collected in [`snapshot`]; [`budget`] adjusts the
//! strength of all remedies during training.
//!
//! To add one, see "Where a new remedy goes" in `docs/ARCHITECTURE.md`. A remedy may use the engine, generation, prompts and config
//! types, but neither `train` nor the run directory.

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

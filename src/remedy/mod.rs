//! Remedies: what keeps knowledge while new facts are learned. Each is small and pure.

pub mod anchor;
pub mod auto;
pub mod budget;
pub mod decoys;
pub mod distill;
pub mod freeze;
pub mod interpolate;
pub mod lora;
pub mod project;
pub mod replay;
pub mod snapshot;
pub mod tasks;
pub mod top_logits;

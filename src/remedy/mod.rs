//! Remedies: what keeps knowledge while new facts are learned. Each is small and pure.

pub mod auto;
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
pub mod topk_teacher;
pub mod weight_penalty;

//! Training: one loop for every method. Methods differ in the objective, the examples and the trained parameters only.
//!
//! `Trainer::train_epochs` in `trainer.rs` is the loop. It joins values with one job each:
//!
//! - `Student`: the model, the trained parameters, the optimizer, and the sink of their gradients;
//! - `Sampler`: the examples that each step trains on;
//! - `Objective`: the loss and its gradient;
//! - `Evaluator`: evaluates the facts of the run before, during and after training;
//! - `RunWriter`: the run directory, its metrics and checkpoints.

mod activation_cache;
pub mod adamw;
pub mod batches;
pub mod checkpoint;
mod data;
mod estimate;
mod evaluator;
mod finish;
#[cfg(feature = "gpu")]
pub mod gpu_adamw;
#[cfg(feature = "gpu")]
mod gpu_penalty;
#[cfg_attr(not(feature = "gpu"), path = "no_gpu.rs")]
mod gpu_student;
mod grad_sink;
mod job;
mod loss_spikes;
mod memory;

pub mod objective;
mod own_answers;
mod plan;
mod prepare;
mod previous_runs;
mod records;
mod sampler;
mod schedule;
mod shared_prefix;
mod state;
mod step;
mod student;
#[cfg(test)]
mod tests;
mod trainable;
mod trainer;
mod workload;
mod writer;

pub use estimate::RunEstimate;
pub use job::Options;
pub use memory::MemoryEstimate;
pub use prepare::{control_dir, estimate, resume, tune, tune_on, tune_with_control};
pub(crate) use records::SPLITS;
pub use records::recorded_facts;
pub use workload::{Workload, flops_per_second};

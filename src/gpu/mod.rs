//! The engine's operations on any GPU: kernels in WGSL, run by `wgpu` on Vulkan, Metal and DX12.
//!
//! All numbers are f32. Every sum has a fixed order: on one device, results are bitwise the same each time.

pub mod adapters;
pub mod attention;
pub mod buffer;
pub mod cache;
pub mod context;
pub mod elementwise;
pub mod embedding;
pub mod error;
pub mod head;
pub mod lm_head;
pub mod logits;
pub mod matmul;
pub mod norms;
pub mod optimizer;
mod pipeline_cache;
pub mod reduce_sums;
pub mod rope;
#[cfg(test)]
pub(crate) mod testing;

pub use adapters::{AdapterKind, AdapterReport};
pub use buffer::{Binding, GpuBuffer};
pub use context::{Gpu, Kernel, grid};
pub use error::GpuError;
pub use logits::MAX_TOP_K;

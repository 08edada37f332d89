//! Keys and values that a GPU keeps in place of the host.

#[cfg(feature = "gpu")]
pub(super) use crate::gpu::cache::KvSlots as DeviceCache;

/// A program that was built without `gpu` has none.
#[cfg(not(feature = "gpu"))]
pub(super) type DeviceCache = std::convert::Infallible;

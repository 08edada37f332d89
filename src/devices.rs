//! The devices that `--device` can name.

use serde::Serialize;

use crate::{config::Device, format, system};

/// What a CPU does.
const ALL: &str = "everything";

/// What a GPU does.
#[cfg(feature = "gpu")]
const PASSES: &str = "training, audits, answers and scores";

/// A device of this machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeviceInfo {
    /// Its name in `--device`: `cpu`, `gpu:0`.
    pub device: String,
    /// The product.
    pub name: String,
    /// `cpu`, `discrete`, `integrated`, `virtual`, `software` or `other`.
    pub kind: &'static str,
    /// Bytes of memory of its own, where the system or the driver tells them.
    pub memory_bytes: Option<u64>,
    /// Vulkan, Metal or DX12; null for the CPU.
    pub backend: Option<String>,
    /// Driver and version; null for the CPU.
    pub driver: Option<String>,
    /// Threads of the CPU; null for a GPU.
    pub threads: Option<usize>,
    /// Bytes of the largest range that a kernel can see; null for the CPU.
    pub max_binding_bytes: Option<u64>,
    /// What is computed there.
    pub runs: &'static str,
}

impl DeviceInfo {
    /// Its memory in words: `16.2 GB`, `unknown`.
    pub fn memory(&self) -> String {
        let bytes = self.memory_bytes;
        bytes.map_or_else(|| "unknown".into(), format::memory)
    }
}

/// All devices of this machine: the CPU, then the GPUs, best first. A program that was built without `gpu` sees the CPU alone.
pub fn devices() -> Vec<DeviceInfo> {
    let mut found = vec![DeviceInfo {
        device: "cpu".into(),
        name: system::cpu_name().unwrap_or_else(|| "unknown".into()),
        kind: "cpu",
        memory_bytes: system::total_memory_bytes(),
        backend: None,
        driver: None,
        threads: Some(rayon::current_num_threads()),
        max_binding_bytes: None,
        runs: ALL,
    }];
    found.extend(gpus());
    found
}

/// The name of a device in the records of a run: `cpu`, or the GPU's with its backend.
pub fn record_name(device: Device) -> String {
    let Device::Gpu(index) = device else {
        return "cpu".into();
    };
    gpu_name(index).map_or_else(|| device.to_string(), |name| format!("{device}: {name}"))
}

#[cfg(not(feature = "gpu"))]
fn gpu_name(_: u32) -> Option<String> {
    None
}

/// The product and its backend.
#[cfg(feature = "gpu")]
fn gpu_name(index: u32) -> Option<String> {
    let gpu = crate::gpu::Gpu::shared(index as usize).ok()?;
    let report = gpu.report();
    Some(format!("{} ({})", report.name, report.backend))
}

#[cfg(not(feature = "gpu"))]
fn gpus() -> Vec<DeviceInfo> {
    Vec::new()
}

#[cfg(feature = "gpu")]
fn gpus() -> Vec<DeviceInfo> {
    use crate::gpu::{AdapterKind, Gpu};

    let adapters = Gpu::adapters().into_iter().enumerate();
    let gpus = adapters.map(|(i, adapter)| DeviceInfo {
        device: format!("gpu:{i}"),
        name: adapter.name,
        kind: match adapter.kind {
            AdapterKind::Discrete => "discrete",
            AdapterKind::Integrated => "integrated",
            AdapterKind::Virtual => "virtual",
            AdapterKind::Software => "software",
            AdapterKind::Other => "other",
        },
        memory_bytes: adapter.memory,
        backend: Some(adapter.backend),
        driver: Some(adapter.driver),
        threads: None,
        max_binding_bytes: Some(adapter.max_binding_bytes),
        runs: PASSES,
    });
    gpus.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_first_and_gpus_are_numbered() {
        let found = devices();
        assert_eq!((&*found[0].device, found[0].runs), ("cpu", "everything"));
        for (i, gpu) in found[1..].iter().enumerate() {
            assert_eq!(gpu.device, format!("gpu:{i}"));
            assert!(gpu.backend.is_some() && gpu.threads.is_none());
        }
        assert_eq!(record_name(Device::Cpu), "cpu");
        assert_eq!(record_name(Device::Gpu(99)), "gpu:99");
    }
}

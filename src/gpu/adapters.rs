//! The devices of this machine that have a driver.

use wgpu::{Backends, Instance, InstanceDescriptor, InstanceFlags};

/// Kinds of devices, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AdapterKind {
    /// A card with memory of its own.
    Discrete,
    /// A part of the processor, which shares its memory.
    Integrated,
    /// A card that a virtual machine sees.
    Virtual,
    /// Unknown.
    Other,
    /// The processor itself: correct, and slower than the CPU engine.
    Software,
}

/// What is known of an adapter before it is opened.
#[derive(Clone, Debug)]
pub struct AdapterReport {
    /// Name of the device.
    pub name: String,
    /// Vulkan, Metal or Dx12.
    pub backend: String,
    /// Driver and version.
    pub driver: String,
    /// Kind of the device.
    pub kind: AdapterKind,
    /// Bytes of the device's own memory, where the driver tells them.
    pub memory: Option<u64>,
    /// Largest buffer, in bytes.
    pub max_buffer_bytes: u64,
    /// Largest range that a kernel can see of a buffer, in bytes.
    pub max_binding_bytes: u64,
    /// Memory shared by a workgroup, in bytes.
    pub max_workgroup_bytes: u32,
    /// Invocations of a workgroup.
    pub max_workgroup_invocations: u32,
    /// Smallest and largest number of lanes of a subgroup.
    pub subgroup_sizes: [u32; 2],
}

/// All of them, best kinds first.
pub(super) fn adapters() -> Vec<(wgpu::Adapter, AdapterReport)> {
    let instance = Instance::new(InstanceDescriptor {
        backends: Backends::VULKAN | Backends::METAL | Backends::DX12,
        flags: InstanceFlags::empty(),
        ..InstanceDescriptor::new_without_display_handle()
    });
    let found = pollster::block_on(instance.enumerate_adapters(Backends::all()));
    let mut adapters: Vec<_> = found
        .into_iter()
        .map(|adapter| {
            let report = report(&adapter);
            (adapter, report)
        })
        .collect();
    adapters.sort_by_key(|(_, report)| report.kind);
    adapters
}

fn report(adapter: &wgpu::Adapter) -> AdapterReport {
    let (info, limits) = (adapter.get_info(), adapter.limits());
    AdapterReport {
        name: info.name.clone(),
        backend: format!("{:?}", info.backend),
        driver: [info.driver.as_str(), info.driver_info.as_str()]
            .join(" ")
            .trim()
            .to_owned(),
        kind: match info.device_type {
            wgpu::DeviceType::DiscreteGpu => AdapterKind::Discrete,
            wgpu::DeviceType::IntegratedGpu => AdapterKind::Integrated,
            wgpu::DeviceType::VirtualGpu => AdapterKind::Virtual,
            wgpu::DeviceType::Cpu => AdapterKind::Software,
            wgpu::DeviceType::Other => AdapterKind::Other,
        },
        memory: memory(adapter),
        max_buffer_bytes: limits.max_buffer_size,
        max_binding_bytes: limits.max_storage_buffer_binding_size,
        max_workgroup_bytes: limits.max_compute_workgroup_storage_size,
        max_workgroup_invocations: limits.max_compute_invocations_per_workgroup,
        subgroup_sizes: [info.subgroup_min_size, info.subgroup_max_size],
    }
}

/// Bytes of the largest heap of device memory, which `wgpu` does not tell.
#[cfg(not(target_vendor = "apple"))]
#[allow(unsafe_code, reason = "only Vulkan itself knows")]
fn memory(adapter: &wgpu::Adapter) -> Option<u64> {
    // SAFETY: The handles are only asked for properties, while `hal` keeps them alive.
    let properties = unsafe {
        let hal = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
        hal.shared_instance()
            .raw_instance()
            .get_physical_device_memory_properties(hal.raw_physical_device())
    };
    let heaps = &properties.memory_heaps[..properties.memory_heap_count as usize];
    // Bit 0 of the flags: memory of the device itself.
    let own = heaps.iter().filter(|heap| heap.flags.as_raw() & 1 != 0);
    own.map(|heap| heap.size).max()
}

#[cfg(target_vendor = "apple")]
fn memory(_: &wgpu::Adapter) -> Option<u64> {
    None
}

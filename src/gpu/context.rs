//! A device, the commands recorded for it, and its compiled kernels.
//!
//! Commands are recorded into one encoder until [`Gpu::submit`] or [`Gpu::download`]. Nothing waits for the device in between.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    num::NonZeroU64,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytemuck::{NoUninit, Pod};
use wgpu::{BufferUsages, ErrorFilter, Features, Limits, ShaderRuntimeChecks};

use crate::gpu::{
    adapters::{AdapterReport, adapters},
    buffer::{Binding, GpuBuffer},
    error::GpuError,
    pipeline_cache::PipelineCache,
};

/// Bytes of an element.
const BYTES: u64 = 4;

/// Largest piece of a transfer, in elements: 64 MiB.
const TRANSFER: usize = 1 << 24;

/// More bind groups than these are forgotten.
const MAX_BIND_GROUPS: usize = 1 << 14;

/// One entry point of a shader.
#[derive(Clone, Copy, Debug)]
pub struct Kernel<'a> {
    /// Name, for messages.
    pub label: &'a str,
    /// WGSL. Bindings are `@group(0) @binding(0..n)`, all of them used by the entry point; parameters are a `var<immediate>`.
    pub source: &'static str,
    /// The entry point.
    pub entry: &'a str,
    /// Override constants.
    pub constants: &'a [(&'a str, f64)],
}

impl Kernel<'_> {
    /// Address and length of the source, which is a constant of the program.
    fn identity(&self) -> (usize, usize) {
        (self.source.as_ptr() as usize, self.source.len())
    }

    fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.identity(), self.entry).hash(&mut hasher);
        for (name, value) in self.constants {
            (name, value.to_bits()).hash(&mut hasher);
        }
        hasher.finish()
    }
}

/// `groups` workgroups as a grid. A kernel numbers them `y * num_workgroups.x + x`, and leaves out those from `groups` on.
pub fn grid(groups: usize) -> [u32; 3] {
    const MAX: usize = 65_535;
    let y = groups.div_ceil(MAX).max(1);
    [groups.div_ceil(y) as u32, y as u32, 1]
}

/// An open device. Clones share it, its recorded commands and its scratch memory: one thread at a time should record an operation.
#[derive(Clone)]
pub struct Gpu {
    inner: Arc<Shared>,
}

struct Shared {
    device: wgpu::Device,
    queue: wgpu::Queue,
    limits: Limits,
    report: AdapterReport,
    subgroups: bool,
    binding_limit: AtomicU64, // bytes
    next_id: AtomicU64,
    dispatches: AtomicU64,
    submissions: AtomicU64,
    freed: Arc<Mutex<Vec<u64>>>,
    failure: Arc<Mutex<Failure>>,
    kernels: Mutex<Option<PipelineCache>>,
    state: Mutex<State>,
}

/// What callbacks of the driver reported.
#[derive(Default)]
struct Failure {
    lost: Option<String>,
    error: Option<wgpu::Error>,
}

#[derive(Default)]
struct State {
    pass: Option<wgpu::ComputePass<'static>>, // open pass of the encoder
    encoder: Option<wgpu::CommandEncoder>,
    modules: HashMap<(usize, usize), wgpu::ShaderModule>, // by address and length of the source
    pipelines: HashMap<u64, Vec<(PipelineKey, Pipeline)>>, // by the hash of their kernel
    num_pipelines: usize,
    bind_groups: HashMap<BindKey, wgpu::BindGroup>,
    staging: Option<wgpu::Buffer>, // for downloads
    scratch: HashMap<&'static str, GpuBuffer>,
}

struct PipelineKey {
    source: (usize, usize),
    entry: String,
    constants: Vec<(String, f64)>,
}

impl PipelineKey {
    fn new(kernel: &Kernel<'_>) -> Self {
        let constants = kernel.constants.iter();
        Self {
            source: kernel.identity(),
            entry: kernel.entry.to_owned(),
            constants: constants
                .map(|(name, value)| ((*name).to_owned(), *value))
                .collect(),
        }
    }

    fn is_of(&self, kernel: &Kernel<'_>) -> bool {
        let constants = self.constants.iter();
        self.source == kernel.identity()
            && self.entry == kernel.entry
            && constants
                .map(|(name, value)| (name.as_str(), value.to_bits()))
                .eq(kernel
                    .constants
                    .iter()
                    .map(|(name, value)| (*name, value.to_bits())))
    }
}

#[derive(Clone)]
struct Pipeline {
    raw: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
    number: usize,
}

/// Number of a pipeline; buffer id, first byte and bytes of each binding.
#[derive(PartialEq, Eq, Hash)]
struct BindKey(usize, Vec<(u64, u64, u64)>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    /// The adapters of this machine, best kinds first.
    pub fn adapters() -> Vec<AdapterReport> {
        adapters().into_iter().map(|(_, report)| report).collect()
    }

    /// As [`Gpu::open`], but a device that this process has opened is used again, with its compiled kernels, unless it was lost.
    ///
    /// # Errors
    /// Those of [`Gpu::open`].
    pub fn shared(index: usize) -> Result<Self, GpuError> {
        static OPENED: Mutex<Vec<(usize, Gpu)>> = Mutex::new(Vec::new());

        let mut opened = lock(&OPENED);
        opened.retain(|(_, gpu)| lock(&gpu.inner.failure).lost.is_none());
        if let Some((_, gpu)) = opened.iter().find(|(known, _)| *known == index) {
            return Ok(gpu.clone());
        }
        let gpu = Self::open(index)?;
        opened.push((index, gpu.clone()));
        Ok(gpu)
    }

    /// Opens the adapter `index` of [`Gpu::adapters`], with all that it allows.
    ///
    /// # Errors
    /// There is no such adapter, it lacks what every kernel needs, or its driver refuses.
    pub fn open(index: usize) -> Result<Self, GpuError> {
        let mut adapters = adapters();
        let count = adapters.len();
        if index >= count {
            return Err(GpuError::NoAdapter { index, count });
        }
        let (adapter, report) = adapters.swap_remove(index);
        let limits = adapter.limits();
        let missing = |feature| GpuError::MissingFeature {
            adapter: report.name.clone(),
            feature,
        };
        if !adapter.features().contains(Features::IMMEDIATES) || limits.max_immediate_size < 128 {
            return Err(missing("immediate data (push constants) of 128 bytes"));
        }
        if limits.max_compute_invocations_per_workgroup < 256 {
            return Err(missing("workgroups of 256 invocations"));
        }
        let subgroups = adapter.features().contains(Features::SUBGROUP);
        let optional = Features::SUBGROUP | Features::PIPELINE_CACHE;
        let wanted = Features::IMMEDIATES | adapter.features() & optional;
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("unforget"),
            required_features: wanted,
            required_limits: limits.clone(),
            ..wgpu::DeviceDescriptor::default()
        };
        let (device, queue) =
            pollster::block_on(adapter.request_device(&descriptor)).map_err(|source| {
                GpuError::Open {
                    adapter: report.name.clone(),
                    source,
                }
            })?;
        let kernels = PipelineCache::open(&device, &adapter.get_info());
        let binding_limit = limits.max_storage_buffer_binding_size;
        let failure = Arc::new(Mutex::new(Failure::default()));
        let of_error = Arc::clone(&failure);
        device.on_uncaptured_error(Arc::new(move |error| {
            lock(&of_error).error.get_or_insert(error);
        }));
        let of_loss = Arc::clone(&failure);
        device.set_device_lost_callback(move |reason, message| {
            let message = if message.is_empty() {
                format!("{reason:?}")
            } else {
                message
            };
            lock(&of_loss).lost.get_or_insert(message);
        });
        Ok(Self {
            inner: Arc::new(Shared {
                device,
                queue,
                limits,
                report,
                subgroups,
                binding_limit: AtomicU64::new(binding_limit),
                next_id: AtomicU64::new(0),
                dispatches: AtomicU64::new(0),
                submissions: AtomicU64::new(0),
                freed: Arc::default(),
                failure,
                kernels: Mutex::new(kernels),
                state: Mutex::default(),
            }),
        })
    }

    /// What was known before the device was opened.
    pub fn report(&self) -> &AdapterReport {
        &self.inner.report
    }

    /// The limits of the device.
    pub fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    /// Whether kernels may use subgroup operations.
    pub fn has_subgroups(&self) -> bool {
        self.inner.subgroups
    }

    /// Elements between the places where a binding can start.
    pub fn alignment(&self) -> usize {
        (self.limits().min_storage_buffer_offset_alignment as usize / BYTES as usize).max(4)
    }

    /// Elements of the largest binding, a multiple of [`Gpu::alignment`].
    pub fn max_binding(&self) -> usize {
        let elements = self.inner.binding_limit.load(Ordering::Relaxed) / BYTES;
        let elements = usize::try_from(elements).unwrap_or(usize::MAX);
        elements / self.alignment() * self.alignment()
    }

    /// Makes bindings smaller than they need to be, for tests of large arrays.
    #[cfg(test)]
    pub(crate) fn limit_bindings(&self, elements: u64) {
        let bytes = elements * BYTES;
        self.inner.binding_limit.store(bytes, Ordering::Relaxed);
    }

    /// Number of dispatches recorded so far.
    pub fn dispatches(&self) -> u64 {
        self.inner.dispatches.load(Ordering::Relaxed)
    }

    /// Number of submissions so far.
    pub fn submissions(&self) -> u64 {
        self.inner.submissions.load(Ordering::Relaxed)
    }

    /// `len` zeros.
    ///
    /// # Errors
    /// The device has too little memory, or no buffer can be so large.
    pub fn zeros(&self, len: usize) -> Result<GpuBuffer, GpuError> {
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        let capacity = len.max(1).next_multiple_of(4);
        let raw = self.create_buffer(capacity as u64 * BYTES, usage, false)?;
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        let freed = Arc::clone(&self.inner.freed);
        Ok(GpuBuffer::new(raw, id, len, freed))
    }

    /// A buffer of at least `len` elements that is kept under `name`, for results between two dispatches. Its contents are undefined.
    ///
    /// # Errors
    /// As [`Gpu::zeros`].
    pub fn scratch(&self, name: &'static str, len: usize) -> Result<GpuBuffer, GpuError> {
        let kept = lock(&self.inner.state).scratch.get(name).cloned();
        if let Some(kept) = kept.filter(|kept| kept.len() >= len) {
            return Ok(kept);
        }
        let most = (self.limits().max_buffer_size / BYTES) as usize;
        let new = self.zeros((len + len / 4).max(1 << 12).min(most).max(len))?;
        let mut state = lock(&self.inner.state);
        state.scratch.insert(name, new.clone());
        Ok(new)
    }

    fn create_buffer(
        &self,
        bytes: u64,
        usage: BufferUsages,
        mapped: bool,
    ) -> Result<wgpu::Buffer, GpuError> {
        let limit = self.limits().max_buffer_size;
        if bytes > limit {
            return Err(GpuError::LimitTooSmall {
                what: "a buffer".to_owned(),
                needed: bytes,
                limit,
            });
        }
        self.check()?;
        let device = &self.inner.device;
        let memory = device.push_error_scope(ErrorFilter::OutOfMemory);
        let validation = device.push_error_scope(ErrorFilter::Validation);
        let raw = device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: bytes,
            usage,
            mapped_at_creation: mapped,
        });
        let invalid = pollster::block_on(validation.pop());
        let full = pollster::block_on(memory.pop());
        if let Some(source) = full {
            return Err(GpuError::OutOfMemory {
                bytes,
                source: Some(source),
            });
        }
        if let Some(source) = invalid {
            return Err(GpuError::Validation { source });
        }
        Ok(raw)
    }

    /// A copy of `data` on the device.
    ///
    /// # Errors
    /// As [`Gpu::zeros`].
    pub fn upload(&self, data: &[f32]) -> Result<GpuBuffer, GpuError> {
        let buffer = self.zeros(data.len())?;
        self.write(&buffer, 0, data)?;
        Ok(buffer)
    }

    /// A copy of `data` on the device.
    ///
    /// # Errors
    /// As [`Gpu::zeros`].
    pub fn upload_u32(&self, data: &[u32]) -> Result<GpuBuffer, GpuError> {
        let buffer = self.zeros(data.len())?;
        self.write_u32(&buffer, 0, data)?;
        Ok(buffer)
    }

    /// Overwrites the elements from `offset` on, after the commands recorded so far.
    ///
    /// # Errors
    /// The range is not in the buffer, or the device is out of memory or lost.
    pub fn write(&self, buffer: &GpuBuffer, offset: usize, data: &[f32]) -> Result<(), GpuError> {
        self.write_elements(buffer, offset, data)
    }

    /// As [`Gpu::write`].
    ///
    /// # Errors
    /// As [`Gpu::write`].
    pub fn write_u32(
        &self,
        buffer: &GpuBuffer,
        offset: usize,
        data: &[u32],
    ) -> Result<(), GpuError> {
        self.write_elements(buffer, offset, data)
    }

    fn write_elements<T: NoUninit>(
        &self,
        buffer: &GpuBuffer,
        offset: usize,
        data: &[T],
    ) -> Result<(), GpuError> {
        check_range(buffer, offset..offset + data.len())?;
        let pieces = data.len().div_ceil(TRANSFER);
        for (i, piece) in data.chunks(TRANSFER).enumerate() {
            let at = (offset + i * TRANSFER) as u64 * BYTES;
            let bytes: &[u8] = bytemuck::cast_slice(piece);
            if lock(&self.inner.state).encoder.is_some() {
                let staging =
                    self.create_buffer(bytes.len() as u64, BufferUsages::COPY_SRC, true)?;
                staging
                    .slice(..)
                    .get_mapped_range_mut()
                    .map_err(|error| read_error(&error))?
                    .copy_from_slice(bytes);
                staging.unmap();
                let mut state = lock(&self.inner.state);
                let encoder = self.encoder(&mut state);
                encoder.copy_buffer_to_buffer(
                    &staging,
                    0,
                    buffer.raw(),
                    at,
                    Some(bytes.len() as u64),
                );
            } else {
                self.inner.queue.write_buffer(buffer.raw(), at, bytes);
            }
            if pieces > 1 {
                // The driver keeps a copy of a piece until it is on the device.
                self.submit_recorded();
                self.wait()?;
            }
        }
        self.check()
    }

    /// Copies `from` to `to`, which are in different buffers, or do not overlap.
    ///
    /// # Errors
    /// A range is not in its buffer, or the lengths differ.
    pub fn copy(&self, to: Binding<'_>, from: Binding<'_>) -> Result<(), GpuError> {
        check_range(to.buffer, to.start..to.end())?;
        check_range(from.buffer, from.start..from.end())?;
        if to.len != from.len {
            return Err(GpuError::Shape {
                what: "copy",
                expected: to.len,
                got: from.len,
            });
        }
        if to.len == 0 {
            return Ok(());
        }
        let mut state = lock(&self.inner.state);
        self.encoder(&mut state).copy_buffer_to_buffer(
            from.buffer.raw(),
            from.start as u64 * BYTES,
            to.buffer.raw(),
            to.start as u64 * BYTES,
            Some(to.len as u64 * BYTES),
        );
        Ok(())
    }

    /// Sets the range to zero.
    ///
    /// # Errors
    /// The range is not in its buffer.
    pub fn clear(&self, to: Binding<'_>) -> Result<(), GpuError> {
        check_range(to.buffer, to.start..to.end())?;
        if to.len == 0 {
            return Ok(());
        }
        let mut state = lock(&self.inner.state);
        self.encoder(&mut state).clear_buffer(
            to.buffer.raw(),
            to.start as u64 * BYTES,
            Some(to.len as u64 * BYTES),
        );
        Ok(())
    }

    /// Submits what is recorded, waits for it, and returns the elements `range`.
    ///
    /// # Errors
    /// The range is not in the buffer, a recorded command was refused, or the device is out of memory or lost.
    pub fn download(&self, buffer: &GpuBuffer, range: Range<usize>) -> Result<Vec<f32>, GpuError> {
        self.download_elements(buffer, range)
    }

    /// As [`Gpu::download`].
    ///
    /// # Errors
    /// As [`Gpu::download`].
    pub fn download_u32(
        &self,
        buffer: &GpuBuffer,
        range: Range<usize>,
    ) -> Result<Vec<u32>, GpuError> {
        self.download_elements(buffer, range)
    }

    fn download_elements<T: Pod>(
        &self,
        buffer: &GpuBuffer,
        range: Range<usize>,
    ) -> Result<Vec<T>, GpuError> {
        check_range(buffer, range.clone())?;
        self.save_kernels();
        let mut data = Vec::with_capacity(range.len());
        if range.is_empty() {
            self.submit()?;
        }
        for start in range.clone().step_by(TRANSFER) {
            let len = (range.end - start).min(TRANSFER);
            let bytes = len as u64 * BYTES;
            let staging = self.staging(bytes)?;
            {
                let mut state = lock(&self.inner.state);
                self.encoder(&mut state).copy_buffer_to_buffer(
                    buffer.raw(),
                    start as u64 * BYTES,
                    &staging,
                    0,
                    Some(bytes),
                );
            }
            self.submit()?;
            let (sender, receiver) = std::sync::mpsc::channel();
            let slice = staging.slice(..bytes);
            slice.map_async(wgpu::MapMode::Read, move |result| {
                // The receiver lives until the result is there, or an error was returned.
                let _ = sender.send(result);
            });
            self.wait()?;
            match receiver.try_recv() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(self.failure_or(read_error(&error))),
                Err(error) => return Err(self.failure_or(read_error(&error))),
            }
            {
                let view = slice
                    .get_mapped_range()
                    .map_err(|error| read_error(&error))?;
                data.extend_from_slice(bytemuck::cast_slice(&view));
            }
            staging.unmap();
        }
        Ok(data)
    }

    /// Writes the kernels that were compiled since the last time to disk.
    fn save_kernels(&self) {
        let compiled = lock(&self.inner.state).num_pipelines;
        if let Some(kernels) = &mut *lock(&self.inner.kernels) {
            kernels.save(compiled);
        }
    }

    /// The kept buffer for downloads, of at least `bytes`.
    fn staging(&self, bytes: u64) -> Result<wgpu::Buffer, GpuError> {
        let kept = lock(&self.inner.state).staging.clone();
        if let Some(kept) = kept.filter(|kept| kept.size() >= bytes) {
            return Ok(kept);
        }
        let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
        let new = self.create_buffer(bytes.next_power_of_two(), usage, false)?;
        lock(&self.inner.state).staging = Some(new.clone());
        Ok(new)
    }

    /// Sends the recorded commands to the device. Does not wait.
    ///
    /// # Errors
    /// A recorded command was refused, or the device is out of memory or lost.
    pub fn submit(&self) -> Result<(), GpuError> {
        self.submit_recorded();
        self.check()
    }

    fn submit_recorded(&self) {
        let mut state = lock(&self.inner.state);
        state.pass = None;
        let Some(encoder) = state.encoder.take() else {
            // Writes wait for a submission.
            self.inner.queue.submit([]);
            return;
        };
        self.inner.submissions.fetch_add(1, Ordering::Relaxed);
        self.inner.queue.submit([encoder.finish()]);
        let freed: Vec<u64> = std::mem::take(&mut lock(&self.inner.freed));
        if !freed.is_empty() {
            state
                .bind_groups
                .retain(|key, _| key.1.iter().all(|(id, ..)| !freed.contains(id)));
        }
    }

    /// Waits for all that was submitted.
    ///
    /// # Errors
    /// The device is lost, or a command failed.
    pub fn wait(&self) -> Result<(), GpuError> {
        let polled = self.inner.device.poll(wgpu::PollType::wait_indefinitely());
        self.check()?;
        polled.map(|_| ()).map_err(|error| read_error(&error))
    }

    /// The first failure that the driver reported.
    fn check(&self) -> Result<(), GpuError> {
        let mut failure = lock(&self.inner.failure);
        if let Some(message) = failure.lost.clone() {
            return Err(GpuError::DeviceLost { message });
        }
        match failure.error.take() {
            None => Ok(()),
            Some(source @ wgpu::Error::OutOfMemory { .. }) => Err(GpuError::OutOfMemory {
                bytes: 0,
                source: Some(source),
            }),
            Some(source) => Err(GpuError::Validation { source }),
        }
    }

    fn failure_or(&self, otherwise: GpuError) -> GpuError {
        self.check().err().unwrap_or(otherwise)
    }

    /// The encoder, outside of any pass.
    fn encoder<'s>(&self, state: &'s mut State) -> &'s mut wgpu::CommandEncoder {
        state.pass = None;
        state.encoder.get_or_insert_with(|| {
            let descriptor = wgpu::CommandEncoderDescriptor::default();
            self.inner.device.create_command_encoder(&descriptor)
        })
    }

    /// Records one run of `kernel` on `groups` workgroups. Nothing is recorded if there are none.
    ///
    /// `bindings` are numbered as in the shader. `params` are its immediate data: at most 128 bytes, without padding.
    ///
    /// # Errors
    /// A binding is empty, misaligned, too large or outside of its buffer; there are too many workgroups; or the kernel does not compile.
    pub fn dispatch<P: NoUninit>(
        &self,
        kernel: &Kernel<'_>,
        bindings: &[Binding<'_>],
        params: &P,
        groups: [u32; 3],
    ) -> Result<(), GpuError> {
        if groups.contains(&0) {
            return Ok(());
        }
        let limit = self.limits().max_compute_workgroups_per_dimension;
        if let Some(&most) = groups.iter().find(|&&n| n > limit) {
            return Err(GpuError::LimitTooSmall {
                what: format!("kernel `{}` (workgroups)", kernel.label),
                needed: most.into(),
                limit: limit.into(),
            });
        }
        let binding_keys = bindings
            .iter()
            .map(|binding| self.checked(kernel, binding))
            .collect::<Result<Vec<_>, _>>()?;
        let params = bytemuck::bytes_of(params);
        let mut state = lock(&self.inner.state);
        let pipeline = self.pipeline(&mut state, kernel)?;
        if state.bind_groups.len() >= MAX_BIND_GROUPS {
            state.bind_groups.clear();
        }
        let bind_group = state
            .bind_groups
            .entry(BindKey(pipeline.number, binding_keys))
            .or_insert_with_key(|key| self.bind_group(&pipeline.layout, bindings, key))
            .clone();
        if state.pass.is_none() {
            let descriptor = wgpu::ComputePassDescriptor::default();
            let pass = self.encoder(&mut state).begin_compute_pass(&descriptor);
            state.pass = Some(pass.forget_lifetime());
        }
        let pass = state.pass.as_mut().expect("it was begun");
        pass.set_pipeline(&pipeline.raw);
        pass.set_bind_group(0, &bind_group, &[]);
        if !params.is_empty() {
            pass.set_immediates(0, params);
        }
        let [x, y, z] = groups;
        pass.dispatch_workgroups(x, y, z);
        self.inner.dispatches.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Buffer id, first byte and bytes of a binding that can be bound.
    fn checked(
        &self,
        kernel: &Kernel<'_>,
        binding: &Binding<'_>,
    ) -> Result<(u64, u64, u64), GpuError> {
        let &Binding { buffer, start, len } = binding;
        if len == 0 || binding.end() > buffer.capacity() {
            return Err(GpuError::Range {
                start,
                end: binding.end(),
                len: buffer.len(),
            });
        }
        if start % self.alignment() != 0 {
            return Err(GpuError::Misaligned {
                kernel: kernel.label.to_owned(),
                start,
                alignment: self.alignment(),
            });
        }
        let limit = self.inner.binding_limit.load(Ordering::Relaxed);
        let bytes = len as u64 * BYTES;
        if bytes > limit {
            return Err(GpuError::LimitTooSmall {
                what: format!("kernel `{}` (bytes of a range)", kernel.label),
                needed: bytes,
                limit,
            });
        }
        Ok((buffer.id(), start as u64 * BYTES, bytes))
    }

    fn bind_group(
        &self,
        layout: &wgpu::BindGroupLayout,
        bindings: &[Binding<'_>],
        key: &BindKey,
    ) -> wgpu::BindGroup {
        let entries: Vec<_> = bindings
            .iter()
            .zip(&key.1)
            .enumerate()
            .map(|(i, (binding, &(_, offset, bytes)))| wgpu::BindGroupEntry {
                binding: i as u32,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: binding.buffer.raw(),
                    offset,
                    size: NonZeroU64::new(bytes),
                }),
            })
            .collect();
        let device = &self.inner.device;
        device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout,
            entries: &entries,
        })
    }

    #[allow(unsafe_code, reason = "kernels check their own bounds")]
    fn pipeline(&self, state: &mut State, kernel: &Kernel<'_>) -> Result<Pipeline, GpuError> {
        let hash = kernel.hash();
        let mut same_hash = state.pipelines.get(&hash).into_iter().flatten();
        if let Some((_, pipeline)) = same_hash.find(|(key, _)| key.is_of(kernel)) {
            return Ok(pipeline.clone());
        }
        let kernels = lock(&self.inner.kernels);
        let device = &self.inner.device;
        let internal = device.push_error_scope(ErrorFilter::Internal);
        let validation = device.push_error_scope(ErrorFilter::Validation);
        let module = state.modules.entry(kernel.identity()).or_insert_with(|| {
            let descriptor = wgpu::ShaderModuleDescriptor {
                label: Some(kernel.label),
                source: wgpu::ShaderSource::Wgsl(kernel.source.into()),
            };
            // SAFETY: Sources are constants of this program. They index within the shapes that the host checks against the bindings,
            // their loops end, and they divide by positive numbers.
            unsafe {
                device.create_shader_module_trusted(descriptor, ShaderRuntimeChecks::unchecked())
            }
        });
        let raw = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.label),
            layout: None,
            module,
            entry_point: Some(kernel.entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: kernel.constants,
                zero_initialize_workgroup_memory: false,
            },
            cache: kernels.as_ref().map(PipelineCache::raw),
        });
        drop(kernels);
        let layout = raw.get_bind_group_layout(0);
        let invalid = pollster::block_on(validation.pop());
        let failed = pollster::block_on(internal.pop());
        if let Some(source) = invalid.or(failed) {
            return Err(GpuError::Shader {
                kernel: kernel.label.to_owned(),
                source,
            });
        }
        let number = state.num_pipelines;
        state.num_pipelines += 1;
        let pipeline = Pipeline {
            raw,
            layout,
            number,
        };
        let same_hash = state.pipelines.entry(hash).or_default();
        same_hash.push((PipelineKey::new(kernel), pipeline.clone()));
        Ok(pipeline)
    }
}

fn check_range(buffer: &GpuBuffer, range: Range<usize>) -> Result<(), GpuError> {
    if range.start > range.end || range.end > buffer.len() {
        return Err(GpuError::Range {
            start: range.start,
            end: range.end,
            len: buffer.len(),
        });
    }
    Ok(())
}

fn read_error(error: &impl std::fmt::Display) -> GpuError {
    GpuError::Read {
        message: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::testing::{gpu, random};

    const DOUBLE: Kernel<'static> = Kernel {
        label: "double",
        source: "
            @group(0) @binding(0) var<storage, read_write> x: array<f32>;
            @compute @workgroup_size(1)
            fn double(@builtin(workgroup_id) group: vec3<u32>) { x[group.x] *= 2.0; }
        ",
        entry: "double",
        constants: &[],
    };

    #[test]
    fn adapters_are_reported_and_others_refused() {
        let adapters = Gpu::adapters();
        let first = adapters.first().expect("a Vulkan device, such as lavapipe");
        assert!(!first.name.is_empty() && first.max_binding_bytes > 0);
        assert!(adapters.is_sorted_by_key(|adapter| adapter.kind));
        let refused = Gpu::open(adapters.len());
        assert!(matches!(refused, Err(GpuError::NoAdapter { .. })));
    }

    #[test]
    fn what_is_uploaded_is_downloaded() {
        let gpu = gpu();
        for len in [1, 3, 1000] {
            let data = random(len, 1);
            let buffer = gpu.upload(&data).expect("memory");
            assert_eq!(gpu.download(&buffer, 0..len).expect("a result"), data);
            assert_eq!(
                gpu.download(&buffer, len - 1..len).expect("a result"),
                data[len - 1..]
            );
            assert!(
                gpu.download(&buffer, len..len)
                    .expect("a result")
                    .is_empty()
            );
        }
        let words = gpu.upload_u32(&[7, u32::MAX]).expect("memory");
        assert_eq!(
            gpu.download_u32(&words, 0..2).expect("a result"),
            [7, u32::MAX]
        );
        assert!(gpu.zeros(0).expect("memory").is_empty());
    }

    #[test]
    fn commands_are_done_in_order() {
        let gpu = gpu();
        let x = gpu.upload(&[1.0, 2.0]).expect("memory");
        let (dispatches, submissions) = (gpu.dispatches(), gpu.submissions());
        gpu.dispatch(&DOUBLE, &[x.all()], &(), [2, 1, 1])
            .expect("a run");
        gpu.dispatch(&DOUBLE, &[x.all()], &(), [1, 1, 1])
            .expect("a run");
        gpu.write(&x, 1, &[10.0]).expect("memory");
        gpu.dispatch(&DOUBLE, &[x.all()], &(), [2, 1, 1])
            .expect("a run");
        assert_eq!(gpu.download(&x, 0..2).expect("a result"), [8.0, 20.0]);
        assert_eq!(gpu.dispatches() - dispatches, 3);
        assert_eq!(gpu.submissions() - submissions, 1);
    }

    #[test]
    fn what_cannot_be_bound_is_refused() {
        let gpu = gpu();
        let x = gpu.zeros(100).expect("memory");
        let run = |binding, groups| gpu.dispatch(&DOUBLE, &[binding], &(), groups);
        let misaligned = run(x.range(1..5), [1, 1, 1]);
        assert!(matches!(misaligned, Err(GpuError::Misaligned { .. })));
        let empty = run(x.range(0..0), [1, 1, 1]);
        assert!(matches!(empty, Err(GpuError::Range { .. })));
        let outside = run(x.range(0..101), [1, 1, 1]);
        assert!(matches!(outside, Err(GpuError::Range { .. })));
        let many = run(x.all(), [1 << 20, 1, 1]);
        assert!(matches!(many, Err(GpuError::LimitTooSmall { .. })));
        let outside = gpu.write(&x, 99, &[1.0, 2.0]);
        assert!(matches!(outside, Err(GpuError::Range { .. })));
        let huge = gpu.zeros(usize::MAX / 8);
        assert!(matches!(huge, Err(GpuError::LimitTooSmall { .. })));
    }

    #[test]
    fn a_kernel_that_does_not_compile_is_an_error_and_the_device_goes_on() {
        let gpu = gpu();
        let x = gpu.upload(&[1.0]).expect("memory");
        let broken = Kernel {
            source: "@compute @workgroup_size(1) fn double() { nonsense; }",
            ..DOUBLE
        };
        let refused = gpu.dispatch(&broken, &[x.all()], &(), [1, 1, 1]);
        assert!(
            matches!(refused, Err(GpuError::Shader { .. })),
            "{refused:?}"
        );
        gpu.dispatch(&DOUBLE, &[x.all()], &(), [1, 1, 1])
            .expect("a run");
        assert_eq!(gpu.download(&x, 0..1).expect("a result"), [2.0]);
    }

    #[test]
    fn a_command_that_is_refused_is_an_error_and_the_device_goes_on() {
        let gpu = gpu();
        let x = gpu.upload(&[1.0]).expect("memory");
        // One binding more than the kernel has.
        gpu.dispatch(&DOUBLE, &[x.all(), x.all()], &(), [1, 1, 1])
            .expect("it is found later");
        let refused = gpu.submit();
        assert!(
            matches!(refused, Err(GpuError::Validation { .. })),
            "{refused:?}"
        );
        gpu.dispatch(&DOUBLE, &[x.all()], &(), [1, 1, 1])
            .expect("a run");
        assert_eq!(gpu.download(&x, 0..1).expect("a result"), [2.0]);
    }

    #[test]
    fn freed_buffers_are_forgotten() {
        let gpu = Gpu::open(0).expect("a device");
        for _ in 0..3 {
            let x = gpu.upload(&[1.0]).expect("memory");
            gpu.dispatch(&DOUBLE, &[x.all()], &(), [1, 1, 1])
                .expect("a run");
        }
        gpu.submit().expect("commands");
        gpu.submit().expect("commands");
        assert!(lock(&gpu.inner.state).bind_groups.is_empty());
    }

    #[test]
    fn a_lost_device_is_an_error() {
        let gpu = Gpu::open(0).expect("a device");
        let x = gpu.upload(&[1.0]).expect("memory");
        gpu.inner.device.destroy();
        let lost = gpu.download(&x, 0..1);
        assert!(lost.is_err(), "{lost:?}");
        let lost = gpu.zeros(1).map(|_| ());
        assert!(matches!(lost, Err(GpuError::DeviceLost { .. })), "{lost:?}");
    }
}

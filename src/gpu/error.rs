//! What can go wrong on a device, and how a user is told.

use crate::Error;

/// What can go wrong on a device.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// There is no adapter of this index.
    #[error("no GPU {index}: this machine has {count}")]
    NoAdapter {
        /// The index asked for.
        index: usize,
        /// Number of adapters.
        count: usize,
    },
    /// The driver lacks something that every kernel needs.
    #[error("the driver of `{adapter}` lacks {feature}")]
    MissingFeature {
        /// Name of the adapter.
        adapter: String,
        /// What is missing.
        feature: &'static str,
    },
    /// The driver refuses to open the device.
    #[error("cannot open `{adapter}`")]
    Open {
        /// Name of the adapter.
        adapter: String,
        /// The driver's reason.
        source: wgpu::RequestDeviceError,
    },
    /// The weights cannot be brought to a device.
    #[error(
        "weights that stay as they lie in a file, and adapters beside weights, are computed with on the CPU alone"
    )]
    NotInMemory,
    /// The device has too little memory.
    #[error("the device is out of memory (asked for {bytes} bytes)")]
    OutOfMemory {
        /// Bytes asked for; 0 if unknown.
        bytes: u64,
        /// The driver's report.
        source: Option<wgpu::Error>,
    },
    /// The device is gone: reset, removed, or its driver crashed.
    #[error("the device was lost: {message}")]
    DeviceLost {
        /// The driver's report.
        message: String,
    },
    /// A kernel does not compile on this driver.
    #[error("kernel `{kernel}` does not compile on this device")]
    Shader {
        /// Label of the kernel.
        kernel: String,
        /// The compiler's report.
        source: wgpu::Error,
    },
    /// A limit of the device is too small.
    #[error("{what} needs {needed}; the limit of this device is {limit}")]
    LimitTooSmall {
        /// What is limited.
        what: String,
        /// The size needed.
        needed: u64,
        /// The size that the device allows.
        limit: u64,
    },
    /// A range starts between the places where the device can bind one.
    #[error("a range of `{kernel}` starts at element {start}, which is no multiple of {alignment}")]
    Misaligned {
        /// Label of the kernel.
        kernel: String,
        /// The first element.
        start: usize,
        /// Elements between possible starts.
        alignment: usize,
    },
    /// A range is not in its buffer, or is empty.
    #[error("elements {start}..{end} asked of a buffer of {len}")]
    Range {
        /// The first element.
        start: usize,
        /// The element after the last.
        end: usize,
        /// Elements of the buffer.
        len: usize,
    },
    /// Shapes that do not fit each other.
    #[error("{what}: {got} elements given, {expected} needed")]
    Shape {
        /// Operation and operand.
        what: &'static str,
        /// Elements needed.
        expected: usize,
        /// Elements given.
        got: usize,
    },
    /// `wgpu` refuses a command: an error in this program.
    #[error("the device refuses a command")]
    Validation {
        /// The report of `wgpu`.
        source: wgpu::Error,
    },
    /// Results cannot be read back.
    #[error("cannot read memory of the device: {message}")]
    Read {
        /// The report of `wgpu`.
        message: String,
    },
}

impl From<GpuError> for Error {
    /// What happened, in words of this program, and what to do. The driver's own report follows in brackets.
    fn from(error: GpuError) -> Self {
        let on_cpu = "`--device cpu` does without it";
        let hint = match &error {
            GpuError::NoAdapter { .. } => {
                return Self::input_hint(
                    error.to_string(),
                    "`unforget devices` lists what there is; `--device cpu` does without a GPU",
                );
            }
            GpuError::OutOfMemory { .. } | GpuError::LimitTooSmall { .. } => format!(
                "a smaller `train.batch_size`, `train.gradient_checkpointing = true` or fewer trained tensors need less; {on_cpu}"
            ),
            GpuError::NotInMemory => "use `--device cpu`".to_owned(),
            GpuError::DeviceLost { .. } | GpuError::Read { .. } => format!(
                "checkpoints are complete: `unforget resume RUN` continues a run from the last one; {on_cpu}"
            ),
            GpuError::MissingFeature { .. } | GpuError::Open { .. } | GpuError::Shader { .. } => {
                format!("update the driver of the device; {on_cpu}")
            }
            GpuError::Misaligned { .. }
            | GpuError::Range { .. }
            | GpuError::Shape { .. }
            | GpuError::Validation { .. } => {
                format!("this is an error in the program: please report it; {on_cpu}")
            }
        };
        let report = std::error::Error::source(&error).map(|source| format!(" ({source})"));
        Self::Failed {
            message: format!("GPU: {error}{}", report.unwrap_or_default()),
            hint: Some(hint),
        }
    }
}

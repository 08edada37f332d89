//! `environment.json`: on what, with what and from what a run was made.

use std::{collections::BTreeMap, fs};

use serde::{Deserialize, Serialize};

use crate::model::Model;

/// What a run's figures may depend on beside its config.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Version of this program.
    pub version: String,
    /// Operating system and architecture.
    pub system: String,
    /// The processor's name.
    pub cpu: String,
    /// Threads that computed.
    pub threads: usize,
    /// Where it was computed.
    pub device: String,
    /// Seed of every draw.
    pub seed: u64,
    /// The base model.
    pub model: ModelRecord,
    /// SHA-256 (hex) of the data's files, by their key in the config.
    pub data: BTreeMap<String, String>,
}

/// Which model it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// What the user called it.
    pub name: String,
    /// Where it was read.
    pub path: String,
    /// SHA-256 (hex) over its files.
    pub checksum: String,
    /// Number of weights.
    pub parameters: usize,
}

impl Environment {
    /// Of a run that starts here and now.
    pub fn capture(model: &Model, seed: u64, data: BTreeMap<String, String>) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            cpu: proc_field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".into()),
            threads: rayon::current_num_threads(),
            device: "cpu".into(),
            seed,
            model: ModelRecord {
                name: model.name.clone(),
                path: model.path.display().to_string(),
                checksum: model.checksum.clone(),
                parameters: model.params.layout.len,
            },
            data,
        }
    }
}

/// Peak resident memory of this process in bytes; 0 where the system doesn't say (it does on Linux).
pub fn peak_memory_bytes() -> u64 {
    kibibytes("/proc/self/status", "VmHWM").unwrap_or_default()
}

/// Memory of this machine in bytes, where the system says so (Linux does).
pub fn total_memory_bytes() -> Option<u64> {
    kibibytes("/proc/meminfo", "MemTotal")
}

/// Counts [`peak_memory_bytes`] from what is in use now on, where the system can (Linux).
pub fn reset_peak_memory() {
    // Elsewhere, and where it is not allowed, the peak is that of the whole process.
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// A number of kibibytes in such a file, in bytes.
fn kibibytes(path: &str, name: &str) -> Option<u64> {
    let text = proc_field(path, name)?;
    let number: u64 = text.split_whitespace().next()?.parse().ok()?;
    Some(number * 1024)
}

/// The first value called `name` in a file of `name: value` lines.
fn proc_field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn peak_memory_grows_with_what_is_touched() {
        let before = peak_memory_bytes();
        let touched = std::hint::black_box(vec![1u8; 64 << 20]);
        assert!(before > 0);
        assert!(peak_memory_bytes() >= touched.len() as u64);
    }
}

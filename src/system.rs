//! The machine: its processor and memory, and the memory of this process.

use std::fs;

/// Peak resident memory of this process in bytes; 0 where the system does not report it (Linux does).
pub fn peak_memory_bytes() -> u64 {
    kibibytes("/proc/self/status", "VmHWM").unwrap_or_default()
}

/// Memory of this machine in bytes, where the system reports it (Linux does).
pub fn total_memory_bytes() -> Option<u64> {
    kibibytes("/proc/meminfo", "MemTotal")
}

/// Resets [`peak_memory_bytes`] to the memory in use, where the system allows it (Linux).
pub fn reset_peak_memory() {
    // Elsewhere the peak is that of the whole process.
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// The name of the processor, where the system reports it.
pub(crate) fn cpu_name() -> Option<String> {
    proc_field("/proc/cpuinfo", "model name")
}

/// A number of kibibytes in a file of `name: value` lines, in bytes.
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
    fn peak_memory_grows_with_touched_memory() {
        let before = peak_memory_bytes();
        assert!(before > 0);
        // More than the process ever had, so that the peak must rise whatever other tests free meanwhile.
        let touched = std::hint::black_box(vec![1u8; before as usize + (64 << 20)]);
        let after = peak_memory_bytes();
        assert!(after >= touched.len() as u64, "{before} -> {after}");
    }
}

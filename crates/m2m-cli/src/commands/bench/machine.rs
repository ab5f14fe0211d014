//! The machine that a bench runs on: its cores, and what a process has used of it.
use std::time::Duration;

/// The cores that this process may run on, the first for the server, the second for the client; none where the system
/// doesn't say.
pub(super) fn cores() -> Vec<usize> {
    #[cfg(target_os = "linux")]
    {
        use rustix::thread::{CpuSet, sched_getaffinity};
        let Ok(allowed) = sched_getaffinity(None) else { return Vec::new() };
        (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect()
    }
    #[cfg(not(target_os = "linux"))]
    Vec::new()
}

/// Keeps this thread, and those that it starts, on one core. False where that can't be had.
pub(super) fn pin(core: usize) -> bool {
    #[cfg(target_os = "linux")]
    {
        use rustix::thread::{CpuSet, sched_setaffinity};
        if core >= CpuSet::MAX_CPU {
            return false;
        }
        let mut only = CpuSet::new();
        only.set(core);
        sched_setaffinity(None, &only).is_ok()
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = core;
        false
    }
}

/// The CPU time that this process has used, the system's work for it included; none where the system doesn't say.
pub(super) fn cpu_time() -> Option<Duration> {
    #[cfg(unix)]
    {
        let reading = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Duration::try_from(reading).ok()
    }
    #[cfg(not(unix))]
    None
}

/// Bytes of memory that this process holds; none where the system doesn't say.
pub(super) fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    kibibytes(&status, "VmRSS:")
}

/// Bytes of memory that the system could give to new programs; none where it doesn't say.
pub(super) fn available() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/meminfo").ok()?;
    kibibytes(&status, "MemAvailable:")
}

/// A line such as `VmRSS:     1234 kB`, in bytes.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(number * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_system_tells() {
        let text = "Name:\tm2m\nVmPeak:\t  900 kB\nVmRSS:\t    123 kB\nThreads:\t1\n";
        assert_eq!(kibibytes(text, "VmRSS:"), Some(123 * 1024));
        assert_eq!(kibibytes(text, "VmSwap:"), None);
        assert_eq!(kibibytes("VmRSS: many kB", "VmRSS:"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_uses_time_and_memory() {
        let before = cpu_time().expect("Linux counts it");
        let mut sum = 0u64;
        while cpu_time().is_some_and(|now| now < before + Duration::from_millis(2)) {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(resident().expect("Linux counts it") > 100_000);
        assert!(!cores().is_empty());
    }
}

//! What must not grow: memory, file descriptors, tasks.
use std::{fmt::Write as _, time::Duration};

/// What was there at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    /// Resident memory of this process, in KiB.
    pub(crate) memory: u64,
    /// That of the host in a process of its own; 0 while it is dead.
    pub(crate) host_memory: u64,
    pub(crate) descriptors: u64,
    pub(crate) tasks: u64,
    /// Sessions, registrations and half-open handshakes of all nets that live throughout.
    pub(crate) sessions: u64,
    pub(crate) registrations: u64,
    pub(crate) half_open: u64,
}

/// A figure of a sample, and by how much the last quarter may exceed the second.
struct Rule {
    name: &'static str,
    of: fn(&Sample) -> u64,
    /// In percent, and beside it.
    share: u64,
    more: u64,
}

/// Memory: the allocator keeps what the busiest moments needed and gives little back, so late peaks show; 5 % and 2 MiB are
/// less than 1 KiB for each net that an hour opens and closes, of which each has a session or more. The others
/// fluctuate with what is broken just now, by no more than a net has.
const RULES: [Rule; 7] = [
    Rule { name: "resident memory, KiB", of: |sample| sample.memory, share: 5, more: 2048 },
    Rule { name: "the host's resident memory, KiB", of: |sample| sample.host_memory, share: 5, more: 2048 },
    Rule { name: "file descriptors", of: |sample| sample.descriptors, share: 5, more: 8 },
    Rule { name: "tasks", of: |sample| sample.tasks, share: 10, more: 32 },
    Rule { name: "sessions", of: |sample| sample.sessions, share: 25, more: 16 },
    Rule { name: "registrations", of: |sample| sample.registrations, share: 25, more: 16 },
    Rule { name: "half-open handshakes", of: |sample| sample.half_open, share: 50, more: 256 },
];

/// A run has to last so long before growth means anything: until then tables fill up to what they always hold.
pub(crate) const WARM: Duration = Duration::from_secs(8 * 60);

/// All samples of a run, with room for them from the start.
pub(crate) struct Watch {
    samples: Vec<Sample>,
    every: Duration,
}

impl Watch {
    pub(crate) fn new(lasts: Duration, every: Duration) -> Watch {
        let samples = Vec::with_capacity((lasts.as_secs() / every.as_secs().max(1) + 16) as usize);
        Watch { samples, every }
    }

    pub(crate) fn add(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    /// The medians of the quarters as a table, and what grew, if the run was long enough to tell. The first quarter is for
    /// warming up.
    pub(crate) fn judge(&self) -> (String, Vec<String>) {
        let (mut table, mut grown) = (String::new(), Vec::new());
        for rule in RULES {
            let quarters: Vec<u64> = (0..4).map(|n| self.median(n, rule.of)).collect();
            let cells: Vec<String> = quarters.iter().map(|median| format!("{median:>9}")).collect();
            let _ = writeln!(table, "  {:32}{}", rule.name, cells.join(""));
            let most = quarters[1] + quarters[1] * rule.share / 100 + rule.more;
            if quarters[3] > most && self.is_long() {
                grown.push(format!(
                    "{} grew from {} in the second quarter to {} in the last; {most} would do",
                    rule.name, quarters[1], quarters[3]
                ));
            }
        }
        (table, grown)
    }

    /// True if growth is judged.
    pub(crate) fn is_long(&self) -> bool {
        self.every * self.samples.len() as u32 >= WARM
    }

    /// Of one quarter, without the moments when there was nothing to look at.
    fn median(&self, quarter: usize, of: fn(&Sample) -> u64) -> u64 {
        let len = self.samples.len();
        let part = self.samples.get(len * quarter / 4..len * (quarter + 1) / 4).unwrap_or_default();
        let mut figures: Vec<u64> = part.iter().map(of).filter(|figure| *figure > 0).collect();
        figures.sort_unstable();
        figures.get(figures.len() / 2).copied().unwrap_or(0)
    }
}

/// A process's resident memory in KiB; none where the system does not say.
pub(crate) fn memory_kib(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

/// Open file descriptors of this process; 0 where the system does not say.
pub(crate) fn descriptors() -> u64 {
    std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64)
}

/// Seconds of CPU that a process has used; 0 where the system does not say.
pub(crate) fn cpu_seconds(process: u32) -> f64 {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{process}/task")) else { return 0.0 };
    let of_task = |task: std::io::Result<std::fs::DirEntry>| {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    };
    tasks.filter_map(of_task).sum::<u64>() as f64 / 1e9
}

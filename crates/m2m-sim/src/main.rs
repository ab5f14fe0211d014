//! `m2m-sim --seeds N [--seed S] [--threads T]`: runs N scenarios, or those from seed S on, and judges each.
//!
//! The last line is `N passed, M failed`; the exit code is 1 if any failed, 2 if the arguments make no sense.
#![forbid(unsafe_code)]

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use m2m_sim::{
    ledger::Totals,
    scenario::{self, Report},
};

const USAGE: &str = "usage: m2m-sim --seeds N [--seed S] [--threads T]";
/// After so many failures the rest tells nothing new.
const ENOUGH_FAILURES: usize = 5;
/// How often it says how far it is.
const PROGRESS: Duration = Duration::from_secs(10);

#[derive(Clone, Copy)]
struct Options {
    seeds: u64,
    first: u64,
    threads: usize,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let options = match parse(&arguments) {
        Ok(options) => options,
        Err(why) => {
            eprintln!("{why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let started = Instant::now();
    let sum = run_all(options);
    let took = started.elapsed().as_secs_f64();
    for failure in &sum.failures {
        explain(failure);
    }
    let failed = sum.failures.len() as u64;
    let Totals { requests, runs, fates } = &sum.totals;
    println!("{requests} requests, {runs} handler runs, {} datagrams", sum.datagrams);
    println!("{}", fates.iter().map(|(fate, n)| format!("{n} {fate}")).collect::<Vec<_>>().join(", "));
    println!("{:.0} seeds/s, {took:.1} s, {} threads", sum.done as f64 / took, options.threads);
    println!("{} passed, {failed} failed", sum.done - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn parse(arguments: &[String]) -> Result<Options, String> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let mut options = Options { seeds: 0, first: 0, threads };
    let mut words = arguments.iter();
    let mut has_first = false;
    while let Some(option) = words.next() {
        let value = words.next().ok_or_else(|| format!("{option} needs a number after it"))?;
        let number: u64 = value.parse().map_err(|_| format!("{option} needs a number, not {value}"))?;
        match option.as_str() {
            "--seeds" => options.seeds = number,
            "--seed" => (options.first, has_first) = (number, true),
            "--threads" => options.threads = usize::try_from(number).unwrap_or(threads).clamp(1, 256),
            other => return Err(format!("unknown option {other}")),
        }
    }
    if options.seeds == 0 && has_first {
        options.seeds = 1;
    }
    if options.seeds == 0 { Err("how many seeds?".into()) } else { Ok(options) }
}

/// What all runs came to.
#[derive(Default)]
struct Sum {
    done: u64,
    datagrams: u64,
    totals: Totals,
    failures: Vec<u64>,
    told: Option<Instant>,
}

fn run_all(options: Options) -> Sum {
    let next = AtomicU64::new(0);
    let sum = Mutex::new(Sum::default());
    let work = || {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= options.seeds {
                return;
            }
            let seed = options.first.wrapping_add(n);
            let report = run(seed, false);
            let mut sum = sum.lock().expect("no thread panics with the lock");
            if sum.failures.len() >= ENOUGH_FAILURES {
                return;
            }
            sum.add(seed, &report, options.seeds);
        }
    };
    thread::scope(|scope| {
        for _ in 0..options.threads {
            scope.spawn(work);
        }
    });
    sum.into_inner().expect("no thread panics with the lock")
}

impl Sum {
    fn add(&mut self, seed: u64, report: &Report, all: u64) {
        self.done += 1;
        self.datagrams += report.datagrams;
        self.totals.add(&report.totals);
        if !report.violations.is_empty() {
            println!("seed {seed}: {}", report.violations.join("; "));
            self.failures.push(seed);
        }
        if self.told.get_or_insert_with(Instant::now).elapsed() >= PROGRESS {
            self.told = Some(Instant::now());
            println!("{} of {all} seeds", self.done);
        }
    }
}

/// Runs a seed; a panic is what must not be, like everything else that must not.
fn run(seed: u64, keeps_lines: bool) -> Report {
    catch_unwind(AssertUnwindSafe(|| scenario::run(seed, keeps_lines))).unwrap_or_else(|_| Report {
        violations: vec!["it panicked".into()],
        totals: Totals::default(),
        datagrams: 0,
        hash: 0,
        lines: Vec::new(),
    })
}

/// Runs a failed seed once more, and shows what led to the failure.
fn explain(seed: &u64) {
    let report = run(*seed, true);
    println!("\nseed {seed}, the last lines (net -> address: what it sends; net <- address: what comes):");
    report.lines.iter().for_each(|line| println!("  {line}"));
    report.violations.iter().for_each(|words| println!("  {words}"));
    println!("once more: cargo xtask sim --seeds 1 --seed {seed}\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &str) -> Result<(u64, u64), String> {
        let words: Vec<String> = words.split_whitespace().map(Into::into).collect();
        parse(&words).map(|options| (options.seeds, options.first))
    }

    #[test]
    fn arguments_say_how_many_seeds_or_which() {
        assert_eq!(parsed("--seeds 20"), Ok((20, 0)));
        assert_eq!(parsed("--seeds 20 --seed 5 --threads 1"), Ok((20, 5)));
        assert_eq!(parsed("--seed 5"), Ok((1, 5)));
        for wrong in ["", "--seeds", "--seeds 0", "--seeds many", "--speed 3", "--threads 2"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_run_counts_and_a_panic_would_fail() {
        let sum = run_all(Options { seeds: 2, first: 0, threads: 2 });
        assert_eq!(sum.done, 2);
        assert!(sum.totals.requests > 0 && sum.datagrams > 0);
    }
}

//! `m2m-sim --seeds N [--seed S]`: runs N scenarios, or those from seed S on, and judges each. The first that fails is made
//! as small as may be and printed as a script, which `m2m-sim --script FILE` runs again.
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
    scenario::{self, Manner, Plan, Report, script},
};

const USAGE: &str = "usage: m2m-sim --seeds N [--seed S] [--threads T] [--shrink S] [--lines L]
       m2m-sim --script FILE [--lines L]
  --seeds N    so many scenarios
  --seed S     from this seed on; alone: this one, with its script and its last lines
  --threads T  as many as there are processors, unless told
  --shrink S   spend so many seconds on making the first failure small; 60 unless told, 0 for not at all
  --lines L    show so many of the last lines of one run; 60 unless told
  --script F   run a scenario that was written to this file";
/// After so many failures the rest tells nothing new.
const ENOUGH_FAILURES: usize = 5;
/// How often it says how far it is.
const PROGRESS: Duration = Duration::from_secs(10);
/// Seconds that a failure is made smaller for.
const SHRINK: u64 = 60;

#[derive(Clone, Debug, PartialEq)]
struct Options {
    seeds: u64,
    first: u64,
    threads: usize,
    shrink: Duration,
    lines: usize,
    script: Option<String>,
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
    match &options.script {
        Some(file) => run_script(file, options.lines),
        None => run_seeds(&options),
    }
}

fn parse(arguments: &[String]) -> Result<Options, String> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let shrink = Duration::from_secs(SHRINK);
    let mut options = Options { seeds: 0, first: 0, threads, shrink, lines: scenario::LINES, script: None };
    let mut words = arguments.iter();
    let mut has_first = false;
    while let Some(option) = words.next() {
        let value = words.next().ok_or_else(|| format!("{option} needs a word after it"))?;
        if option == "--script" {
            options.script = Some(value.clone());
            continue;
        }
        let number: u64 = value.parse().map_err(|_| format!("{option} needs a number, not {value}"))?;
        match option.as_str() {
            "--seeds" => options.seeds = number,
            "--seed" => (options.first, has_first) = (number, true),
            "--threads" => options.threads = usize::try_from(number).unwrap_or(threads).clamp(1, 256),
            "--shrink" => options.shrink = Duration::from_secs(number),
            "--lines" => options.lines = usize::try_from(number).unwrap_or(usize::MAX),
            other => return Err(format!("unknown option {other}")),
        }
    }
    if options.seeds == 0 && has_first {
        options.seeds = 1;
    }
    if options.seeds == 0 && options.script.is_none() { Err("how many seeds?".into()) } else { Ok(options) }
}

fn run_script(file: &str, lines: usize) -> ExitCode {
    let text = std::fs::read_to_string(file).map_err(|why| format!("{file} can't be read: {why}"));
    let plan = match text.and_then(|text| script::parse(&text)) {
        Ok(plan) => plan,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(2);
        }
    };
    let report = run(&plan, lines);
    show(&report);
    tell_totals(&report.totals, report.datagrams);
    let failed = !report.violations.is_empty();
    println!("{} passed, {} failed", u8::from(!failed), u8::from(failed));
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn run_seeds(options: &Options) -> ExitCode {
    let started = Instant::now();
    let sum = run_all(options);
    let took = started.elapsed().as_secs_f64();
    if let Some(first) = sum.failures.iter().min() {
        explain(*first, options);
    } else if options.seeds == 1 {
        let plan = scenario::throw(options.first);
        println!("{}", script::write(&plan));
        show(&run(&plan, options.lines));
    }
    let failed = sum.failures.len() as u64;
    tell_totals(&sum.totals, sum.datagrams);
    println!("{:.0} seeds/s, {took:.1} s, {} threads", sum.done as f64 / took, options.threads);
    println!("{} passed, {failed} failed", sum.done - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn tell_totals(totals: &Totals, datagrams: u64) {
    let Totals { requests, runs, fates, happenings } = totals;
    println!("{requests} requests, {runs} handler runs, {datagrams} datagrams");
    println!("{}", fates.iter().map(|(fate, n)| format!("{n} {fate}")).collect::<Vec<_>>().join(", "));
    println!("{}", happenings.iter().map(|(what, n)| format!("{n} {what}")).collect::<Vec<_>>().join(", "));
}

/// What all runs came to.
#[derive(Default)]
struct Sum {
    done: u64,
    datagrams: u64,
    totals: Totals,
    failures: Vec<u64>,
    started: Option<Instant>,
    told: Option<Instant>,
}

fn run_all(options: &Options) -> Sum {
    let next = AtomicU64::new(0);
    let sum = Mutex::new(Sum::default());
    let work = || {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= options.seeds {
                return;
            }
            let seed = options.first.wrapping_add(n);
            let report = run(&scenario::throw(seed), 0);
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
        let started = *self.started.get_or_insert_with(Instant::now);
        if self.told.get_or_insert(started).elapsed() >= PROGRESS {
            self.told = Some(Instant::now());
            let rate = self.done as f64 / started.elapsed().as_secs_f64();
            println!("{} of {all} seeds, {rate:.0} seeds/s, {} failed", self.done, self.failures.len());
        }
    }
}

/// Runs a plan; a panic is what must not be, like everything else that must not.
fn run(plan: &Plan, lines: usize) -> Report {
    let manner = Manner { lines, ..Manner::default() };
    catch_unwind(AssertUnwindSafe(|| scenario::run_plan(plan, manner)))
        .unwrap_or_else(|_| Report { violations: vec!["it panicked".into()], ..Report::default() })
}

/// Makes a failed seed small, and shows what led to the failure.
fn explain(seed: u64, options: &Options) {
    let plan = scenario::throw(seed);
    let kind = |report: &Report| report.violations.first().map(|words| scenario::kind_of(words));
    let wanted = kind(&run(&plan, 0));
    let (began, mut runs) = (Instant::now(), 0);
    // A failure that panics would say so each time.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let fails = |plan: &Plan| {
        runs += 1;
        kind(&run(plan, 0)) == wanted
    };
    let small = scenario::shrink(&plan, fails, || began.elapsed() < options.shrink);
    std::panic::set_hook(hook);
    println!("\nseed {seed}, made small in {runs} runs; run it again with m2m-sim --script FILE:\n");
    println!("{}", script::write(&small));
    show(&run(&small, options.lines));
    println!("all of it once more: cargo xtask sim --seeds 1 --seed {seed}\n");
}

fn show(report: &Report) {
    println!("the last lines (net -> address: what it sends; net <- address: what comes):");
    report.lines.iter().for_each(|line| println!("  {line}"));
    report.violations.iter().for_each(|words| println!("  {words}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &str) -> Result<Options, String> {
        let words: Vec<String> = words.split_whitespace().map(Into::into).collect();
        parse(&words)
    }

    #[test]
    fn arguments_say_how_many_seeds_or_which() {
        let seeds = |words| parsed(words).map(|options| (options.seeds, options.first));
        assert_eq!(seeds("--seeds 20"), Ok((20, 0)));
        assert_eq!(seeds("--seeds 20 --seed 5 --threads 1"), Ok((20, 5)));
        assert_eq!(seeds("--seed 5"), Ok((1, 5)));
        assert_eq!(parsed("--script a.txt").unwrap().script.as_deref(), Some("a.txt"));
        assert_eq!(parsed("--seed 5 --shrink 0").unwrap().shrink, Duration::ZERO);
        for wrong in ["", "--seeds", "--seeds 0", "--seeds many", "--speed 3", "--threads 2", "--script"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_run_counts_and_a_panic_would_fail() {
        let options = parsed("--seeds 2 --threads 2").unwrap();
        let sum = run_all(&options);
        assert_eq!(sum.done, 2);
        assert!(sum.totals.requests > 0 && sum.datagrams > 0);
    }
}

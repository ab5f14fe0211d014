//! `cargo xtask test`: everything that a change must pass, on a developer's machine as anywhere else.
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use crate::purity;
use crate::shell::{Outcome, cargo, output, run as run_command};

/// A name, what it shows, and how to run it.
type Step = (&'static str, &'static str, fn() -> Outcome);

/// Cheapest first, so that a slip is seen within seconds.
const STEPS: &[Step] = &[
    ("fmt", "the formatting", || cargo(&["fmt", "--all", "--check"])),
    ("purity", "the core does no I/O", purity::check),
    ("clippy", "the lints", clippy),
    ("doc", "the documentation, links included", doc),
    ("test", "all tests and examples", || cargo(&["test", "--workspace"])),
    ("aws-lc", "the core with the cryptography of servers", aws_lc),
    ("sim", "10,000 simulated networks", || {
        cargo(&["run", "--release", "-p", "m2m-sim", "--", "--seeds", "10000"])
    }),
    ("demo", "the demo that the README names", || cargo(&["run", "--release", "--", "demo"])),
    ("no_std", "the core for a microcontroller", no_std),
    ("deny", "licences and advisories", deny),
];

const MICROCONTROLLER: &str = "thumbv7em-none-eabihf";

/// Runs the steps named, or all. Goes on after a failure, so that one run shows all there is to mend.
pub(crate) fn run(only: &[&str]) -> ExitCode {
    if let Some(unknown) = only.iter().find(|name| STEPS.iter().all(|step| step.0 != **name)) {
        let names: Vec<_> = STEPS.iter().map(|step| step.0).collect();
        eprintln!("no step {unknown}; there are: {}", names.join(", "));
        return ExitCode::from(2);
    }
    let (mut failed, mut skipped) = (Vec::new(), Vec::new());
    let start = Instant::now();
    for (name, what, step) in STEPS.iter().filter(|step| only.is_empty() || only.contains(&step.0)) {
        println!("\n== {name}: {what}");
        let began = Instant::now();
        let outcome = step();
        let took = began.elapsed().as_secs_f32();
        match outcome {
            Outcome::Passed => println!("== {name}: passed in {took:.1} s"),
            Outcome::Skipped(why) => {
                println!("== {name}: skipped: {why}");
                skipped.push(*name);
            }
            Outcome::Failed(why) => {
                println!("== {name}: failed in {took:.1} s: {why}");
                failed.push(*name);
            }
        }
    }
    println!("\n== done in {:.1} s", start.elapsed().as_secs_f32());
    if !skipped.is_empty() {
        println!("== skipped: {}", skipped.join(", "));
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("== failed: {}", failed.join(", "));
    ExitCode::FAILURE
}

fn clippy() -> Outcome {
    cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])
}

fn doc() -> Outcome {
    let program = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let words = ["doc", "--workspace", "--no-deps"];
    run_command(Command::new(program).args(words).env("RUSTDOCFLAGS", "-D warnings"))
}

fn no_std() -> Outcome {
    let installed = || {
        let folder = output("rustc", &["--print", "target-libdir", "--target", MICROCONTROLLER]);
        folder.is_some_and(|folder| Path::new(&folder).is_dir())
    };
    if !installed() {
        run_command(Command::new("rustup").args(["target", "add", MICROCONTROLLER]));
    }
    if !installed() {
        return Outcome::Skipped(format!("{MICROCONTROLLER} can't be installed: rustup target add failed"));
    }
    cargo(&["build", "--package", "m2m-proto", "--target", MICROCONTROLLER])
}

/// AWS-LC is built by a C compiler, which a machine without C sources need not have.
fn aws_lc() -> Outcome {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    if output(&compiler, &["--version"]).is_none() {
        return Outcome::Skipped(format!("there is no C compiler {compiler}"));
    }
    let clippy =
        ["clippy", "-p", "m2m-proto", "--features", "aws-lc", "--all-targets", "--", "-D", "warnings"];
    match cargo(&clippy) {
        Outcome::Passed => cargo(&["test", "-p", "m2m-proto", "--features", "aws-lc", "--lib", "session"]),
        outcome => outcome,
    }
}

fn deny() -> Outcome {
    let installed = || output("cargo", &["deny", "--version"]).is_some();
    let may_install = std::env::var_os("M2M_INSTALL_DENY").is_some_and(|value| value == "1");
    if !installed() && may_install {
        let outcome = cargo(&["install", "cargo-deny", "--locked"]);
        if !matches!(outcome, Outcome::Passed) {
            return outcome;
        }
    }
    if !installed() {
        return Outcome::Skipped("cargo-deny is not installed: cargo install cargo-deny".into());
    }
    if matches!(cargo(&["deny", "fetch", "db"]), Outcome::Passed) {
        return cargo(&["deny", "check"]);
    }
    match cargo(&["deny", "check", "bans", "licenses", "sources"]) {
        Outcome::Passed => Outcome::Skipped("the advisories can't be fetched; the rest passed".into()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_have_names_of_their_own() {
        for (index, step) in STEPS.iter().enumerate() {
            assert!(STEPS[..index].iter().all(|other| other.0 != step.0), "{}", step.0);
        }
    }

    #[test]
    fn an_unknown_step_is_a_usage_error_and_runs_nothing() {
        assert_eq!(run(&["fmt", "no-such-step"]), ExitCode::from(2));
    }
}

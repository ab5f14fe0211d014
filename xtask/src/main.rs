//! The project's recipes: what a developer types and what the checks of a change run are the same code.
//!
//! `cargo xtask help` lists them.
#![forbid(unsafe_code)]

mod fuzz;
mod purity;
mod shell;
mod test;

use std::process::{Command, ExitCode};

use shell::{Outcome, cargo, run};

const HELP: &str = "\
cargo xtask test [STEP...]                 everything a change must pass, or only the steps named
cargo xtask sim --seeds N [--seed S]       the simulated network: N seeds, or from seed S on
cargo xtask sim --script FILE              a failure of it that was written down
cargo xtask fuzz [TARGET] [--seconds N]    every fuzz target, or one; 60 s each unless told
cargo xtask bench [aws-lc] [NAME]          the core's benchmarks, those with NAME in theirs; with AWS-LC beside
cargo xtask memory [N]                     what a server keeps of each of N idle sessions; a million unless told
cargo xtask rekey                          10^6 requests across 1,000 changes of keys
cargo xtask flood [KIND...] [--rounds N]   what floods cost those who are served
cargo xtask flood memory                   a million packets of each kind, and what the machine keeps of them
cargo xtask soak --minutes N [--seed S] [--rate N]
                                           everything that can happen to nets, for so long: endurance
cargo xtask model                          the symbolic model of the handshake, if ProVerif is installed
cargo xtask help                           this text

M2M_INSTALL_DENY=1 lets `test` install cargo-deny when it is missing.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments.split_first() {
        Some((&"test", steps)) => return test::run(steps),
        Some((&"sim", options)) => sim(options),
        Some((&"fuzz", options)) => fuzz::run(options),
        Some((&"rekey", [])) => {
            Ok(cargo(&["test", "--release", "--package", "m2m-proto", "--test", "rekeys"]))
        }
        Some((&"memory", sessions)) => memory(sessions),
        Some((&"flood", ["memory"])) => Ok(flood_memory()),
        Some((&"flood", options)) => Ok(flood(options)),
        Some((&"soak", options)) => soak(options),
        Some((&"model", models)) => Ok(run(Command::new("sh").arg("docs/model/run.sh").args(models))),
        Some((&"bench", options)) => Ok(bench(options)),
        Some((&("help" | "--help" | "-h"), _)) | None => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Some((recipe, _)) => Err(format!("no such recipe, or too many words after it: {recipe}")),
    };
    match done {
        Ok(Outcome::Passed) => ExitCode::SUCCESS,
        Ok(Outcome::Skipped(why)) => {
            println!("skipped: {why}");
            ExitCode::SUCCESS
        }
        Ok(Outcome::Failed(why)) => {
            eprintln!("failed: {why}");
            ExitCode::FAILURE
        }
        Err(usage) => {
            eprintln!("{usage}\n\n{HELP}");
            ExitCode::from(2)
        }
    }
}

/// Runs the simulator in release: an unoptimised one takes minutes where this takes seconds.
fn sim(options: &[&str]) -> Result<Outcome, String> {
    let mut command = vec!["run", "--release", "--package", "m2m-sim", "--"];
    let mut has_work = false;
    let mut words = options.iter();
    while let Some(&option) = words.next() {
        let value = match option {
            "--script" => words.next().copied().ok_or("--script needs a file after it")?,
            "--seeds" | "--seed" | "--threads" | "--shrink" | "--lines" => {
                number(option, words.next().copied())?
            }
            other => return Err(format!("sim knows no option {other}")),
        };
        has_work |= matches!(option, "--seeds" | "--seed" | "--script");
        command.extend([option, value]);
    }
    if !has_work {
        return Err("sim needs --seeds N".into());
    }
    Ok(cargo(&command))
}

/// The core's benchmarks; what is not the backend's name is a filter that criterion knows.
fn bench(options: &[&str]) -> Outcome {
    let mut command = vec!["bench", "--package", "m2m-proto", "--bench", "core"];
    let filters = match options.split_first() {
        Some((&"aws-lc", filters)) => {
            command.extend(["--features", "aws-lc"]);
            filters
        }
        _ => options,
    };
    command.push("--");
    command.extend(filters);
    cargo(&command)
}

/// Floods a host on real sockets; the program itself knows its options.
fn flood(options: &[&str]) -> Outcome {
    let mut command = vec!["bench", "--package", "m2m", "--bench", "flood", "--"];
    command.extend(options);
    cargo(&command)
}

/// Nets on real sockets through everything that can happen to them, for so long.
fn soak(options: &[&str]) -> Result<Outcome, String> {
    let mut command = vec!["bench", "--package", "m2m", "--bench", "soak", "--"];
    let mut words = options.iter();
    while let Some(&option) = words.next() {
        if !matches!(option, "--minutes" | "--seed" | "--rate") {
            return Err(format!("soak knows no option {option}"));
        }
        command.extend([option, number(option, words.next().copied())?]);
    }
    Ok(cargo(&command))
}

/// Many idle sessions in one machine, and what each takes.
fn memory(sessions: &[&str]) -> Result<Outcome, String> {
    let sessions = match sessions {
        [] => "1000000",
        [sessions] => number("memory", Some(sessions))?,
        _ => return Err("memory takes one number".into()),
    };
    let program = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let words = ["test", "--release", "--package", "m2m-proto", "--test", "memory", "--", "--ignored"];
    Ok(run(Command::new(program).args(words).arg("--nocapture").env("M2M_SESSIONS", sessions)))
}

/// The test of the machine's memory under floods, at length.
fn flood_memory() -> Outcome {
    let program = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let words = ["test", "--release", "--package", "m2m-proto", "--test", "floods", "--", "--nocapture"];
    run(Command::new(program).args(words).env("M2M_FLOOD_PACKETS", "1000000"))
}

/// The number that an option needs after it, still as text: it goes on to another program.
fn number<'a>(option: &str, value: Option<&'a str>) -> Result<&'a str, String> {
    let value = value.ok_or_else(|| format!("{option} needs a number after it"))?;
    value.parse::<u64>().map_err(|_| format!("{option} needs a number, not {value}"))?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_needs_its_number() {
        assert_eq!(number("--seeds", Some("12")), Ok("12"));
        assert!(number("--seeds", None).unwrap_err().contains("--seeds"));
        assert!(number("--seeds", Some("many")).unwrap_err().contains("many"));
    }

    #[test]
    fn sim_refuses_what_it_does_not_know() {
        assert!(sim(&["--threads", "1"]).is_err());
        assert!(sim(&["--script"]).is_err());
        assert!(sim(&["--speed", "1"]).is_err());
        assert!(sim(&["--seeds"]).is_err());
    }

    #[test]
    fn memory_refuses_what_is_no_number() {
        assert!(memory(&["many"]).is_err());
        assert!(memory(&["1", "2"]).is_err());
    }

    #[test]
    fn soak_refuses_what_it_does_not_know() {
        assert!(soak(&["--minutes"]).is_err());
        assert!(soak(&["--minutes", "long"]).is_err());
        assert!(soak(&["--hours", "1"]).is_err());
    }
}

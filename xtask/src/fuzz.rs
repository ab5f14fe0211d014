//! Fuzzing with cargo-fuzz, which needs the nightly compiler.
use std::fs;
use std::process::Command;

use crate::number;
use crate::shell::{Outcome, output, root, run as run_command};

/// `fuzz [TARGET] [--seconds N]`: every target in turn, until one fails.
pub(crate) fn run(options: &[&str]) -> Result<Outcome, String> {
    let (only, seconds) = parse(options)?;
    if let Some(why) = missing() {
        return Ok(Outcome::Skipped(why));
    }
    let targets = targets();
    if let Some(only) = only.filter(|only| !targets.iter().any(|target| target == only)) {
        return Err(format!("no fuzz target {only}; there are: {}", targets.join(", ")));
    }
    let limit = format!("-max_total_time={seconds}");
    for target in targets.iter().filter(|target| only.is_none_or(|only| only == target.as_str())) {
        // Through rustup, since `cargo +nightly` is not understood by the cargo that runs us. No sanitizer: there is no
        // unsafe code to find at fault, and without one the machines run several times as fast.
        let words = ["run", "nightly", "cargo", "fuzz", "run", "-s", "none", target, "--", &limit];
        let outcome = run_command(Command::new("rustup").args(words));
        if !matches!(outcome, Outcome::Passed) {
            return Ok(outcome);
        }
    }
    Ok(Outcome::Passed)
}

fn parse<'a>(options: &[&'a str]) -> Result<(Option<&'a str>, &'a str), String> {
    let (mut only, mut seconds) = (None, "60");
    let mut words = options.iter().copied();
    while let Some(word) = words.next() {
        match word {
            "--seconds" => seconds = number(word, words.next())?,
            option if option.starts_with('-') => return Err(format!("fuzz knows no option {option}")),
            _ if only.is_some() => return Err("fuzz takes one target, or none for all".into()),
            target => only = Some(target),
        }
    }
    Ok((only, seconds))
}

/// What keeps us from fuzzing here.
fn missing() -> Option<String> {
    if targets().is_empty() {
        return Some("there are no targets in fuzz/fuzz_targets".into());
    }
    if output("rustup", &["run", "nightly", "cargo", "--version"]).is_none() {
        return Some("no nightly compiler: rustup toolchain install nightly".into());
    }
    if output("rustup", &["run", "nightly", "cargo", "fuzz", "--version"]).is_none() {
        return Some("cargo-fuzz is not installed: cargo install cargo-fuzz".into());
    }
    None
}

fn targets() -> Vec<String> {
    let Ok(folder) = fs::read_dir(root().join("fuzz/fuzz_targets")) else { return Vec::new() };
    let files = folder.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut targets: Vec<_> = files.filter_map(|name| Some(name.strip_suffix(".rs")?.to_owned())).collect();
    targets.sort();
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_in_any_order() {
        assert_eq!(parse(&[]), Ok((None, "60")));
        assert_eq!(parse(&["message", "--seconds", "5"]), Ok((Some("message"), "5")));
        assert_eq!(parse(&["--seconds", "5", "message"]), Ok((Some("message"), "5")));
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        for wrong in [&["a", "b"][..], &["--second", "5"], &["--seconds"], &["--seconds", "x"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}

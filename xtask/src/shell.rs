//! Other programs: started at the repository's root, their output passed through.
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How a step ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    Passed,
    /// It could not run here, and why; no failure.
    Skipped(String),
    /// What went wrong, in a few words: the program's own output stands above it.
    Failed(String),
}

/// The repository's root: the folder above this crate.
pub(crate) fn root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let here = Path::new(&here);
    here.parent().unwrap_or(here).to_path_buf()
}

/// Runs cargo with these arguments.
pub(crate) fn cargo(arguments: &[&str]) -> Outcome {
    // Cargo names the very binary that started us: the toolchain stays the same.
    let program = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    run(Command::new(program).args(arguments))
}

/// Runs a command, its output on ours.
pub(crate) fn run(command: &mut Command) -> Outcome {
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
    let name = Path::new(command.get_program()).file_stem().unwrap_or_default().to_string_lossy();
    let shown = format!("{name} {}", words.join(" "));
    println!("$ {shown}");
    match command.current_dir(root()).status() {
        Ok(status) if status.success() => Outcome::Passed,
        Ok(status) => Outcome::Failed(format!("`{shown}` ended with {status}")),
        Err(error) => Outcome::Failed(format!("`{shown}` did not start: {error}")),
    }
}

/// What a command prints, trimmed; nothing if it is missing or fails.
pub(crate) fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    let done = command.args(arguments).current_dir(root()).stderr(Stdio::null()).output().ok()?;
    done.status.success().then(|| String::from_utf8_lossy(&done.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_holds_the_workspace() {
        assert!(root().join("Cargo.toml").is_file());
        assert!(root().join("xtask").is_dir());
    }

    #[test]
    fn a_command_that_fails_or_is_missing_is_named() {
        let mut command = Command::new("cargo");
        command.arg("no-such-subcommand").stderr(Stdio::null());
        let Outcome::Failed(why) = run(&mut command) else { panic!("it passed") };
        assert!(why.contains("no-such-subcommand"), "{why}");
        let Outcome::Failed(why) = run(&mut Command::new("no-such-program")) else { panic!("it passed") };
        assert!(why.contains("did not start"), "{why}");
        assert_eq!(output("no-such-program", &[]), None);
    }
}

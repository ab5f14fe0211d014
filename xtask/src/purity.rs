//! The core sees no clock, no socket, no thread and no randomness of the system.
//!
//! Clippy's `disallowed-methods` says the same where it can resolve a path; this also sees what is behind a
//! feature, in a macro or written in another way.
use std::path::Path;
use std::{fs, io};

use crate::shell::{Outcome, root};

const FORBIDDEN: &[&str] = &[
    "Instant::now",
    "SystemTime::now",
    "std::net::UdpSocket",
    "std::thread",
    "tokio::",
    "OsRng",
    "SysRng",
    "thread_rng",
    "getrandom",
];

/// Reads every source file of the core and names each line that breaks the rule.
pub(crate) fn check() -> Outcome {
    let mut found = Vec::new();
    if let Err(error) = search(&root().join("crates/m2m-proto/src"), &mut found) {
        return Outcome::Failed(format!("the core's sources can't be read: {error}"));
    }
    if found.is_empty() {
        return Outcome::Passed;
    }
    found.iter().for_each(|line| eprintln!("{line}"));
    Outcome::Failed("the core must do no I/O: time and seeds are arguments".into())
}

fn search(folder: &Path, found: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            search(&path, found)?;
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = fs::read_to_string(&path)?;
            found.extend(breaches(&text).map(|(line, word)| format!("{}:{line}: {word}", path.display())));
        }
    }
    Ok(())
}

/// Line numbers and forbidden words of a source text; comments may say what they like.
fn breaches(text: &str) -> impl Iterator<Item = (usize, &'static str)> {
    let code = text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
    code.flat_map(|(index, line)| {
        FORBIDDEN.iter().filter(move |word| line.contains(**word)).map(move |word| (index + 1, *word))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_searched_and_comments_are_not() {
        let text = "// Instant::now is not for us\nlet now = Instant::now();\nuse tokio::net;\n";
        assert_eq!(breaches(text).collect::<Vec<_>>(), [(2, "Instant::now"), (3, "tokio::")]);
    }

    #[test]
    fn an_unreadable_folder_is_an_error_not_a_pass() {
        assert!(search(Path::new("no/such/folder"), &mut Vec::new()).is_err());
    }
}

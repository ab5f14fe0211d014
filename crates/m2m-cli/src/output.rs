//! What a command says: data on stdout, words on stderr, with `--json` one object a line.
mod events;

use std::io::{self, ErrorKind, IsTerminal, Write};

pub(crate) use m2m::names::short;
use serde_json::{Value, json};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub(crate) use events::Events;

use crate::args::Globals;
use crate::exit::{Exit, Failure};

/// Where a command writes.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    json: bool,
    quiet: bool,
    verbose: bool,
}

impl Output {
    /// As the flags say. The configuration may switch JSON on later, once it is read.
    pub(crate) fn new(globals: &Globals) -> Output {
        Output { json: globals.json, quiet: globals.quiet, verbose: globals.verbose > 0 }
    }

    /// Switches to JSON, as the environment or the configuration file asks for.
    pub(crate) fn use_json(&mut self) {
        self.json = true;
    }

    /// Writes a line of data: the words, or with `--json` the object.
    ///
    /// # Errors
    /// [`Failure::ClosedPipe`] if nobody reads any more; other failures in words.
    pub(crate) fn line(&self, words: &str, object: &Value) -> Result<(), Failure> {
        if self.json {
            return write(format!("{object}\n").as_bytes());
        }
        write(format!("{words}\n").as_bytes())
    }

    /// Writes a payload as it is, with a line end if it is text that lacks one; with `--json` the object.
    pub(crate) fn payload(&self, payload: &[u8], object: &Value) -> Result<(), Failure> {
        if self.json {
            return write(format!("{object}\n").as_bytes());
        }
        let mut bytes = payload.to_vec();
        if !bytes.is_empty() && !bytes.ends_with(b"\n") && std::str::from_utf8(payload).is_ok() {
            bytes.push(b'\n');
        }
        write(&bytes)
    }

    /// Writes the object with `--json`, and nothing without.
    pub(crate) fn object(&self, object: &Value) -> Result<(), Failure> {
        if self.json { write(format!("{object}\n").as_bytes()) } else { Ok(()) }
    }

    /// Writes bytes that are no line, such as a manual page.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Result<(), Failure> {
        write(bytes)
    }

    /// Tells what was done besides the data: words to stderr, with `--json` an object to stdout.
    pub(crate) fn event(&self, words: &str, object: &Value) {
        // It is done, whether somebody reads of it or not.
        if self.json {
            let _ = self.object(object);
            return;
        }
        self.say(words);
    }

    /// Data is for a program.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Nothing is to be said but what fails, or it is for a program.
    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet || self.json
    }

    /// Words for a person, unless `-q` was given.
    pub(crate) fn say(&self, words: &str) {
        if !self.quiet {
            warn(words);
        }
    }

    /// Says why a command failed, and gives its exit code.
    pub(crate) fn failure(&self, failure: &Failure) -> Exit {
        let exit = failure.exit();
        if matches!(failure, Failure::ClosedPipe) {
            return exit;
        }
        let message = failure.message();
        warn(&format!("m2m: {message}"));
        if self.json {
            let object = json!({"error": failure.kind(), "message": message, "exit": exit as u8});
            let _ = write(format!("{object}\n").as_bytes());
        }
        exit
    }
}

/// Words that `-q` does not silence. A closed stderr is not worth a panic.
pub(crate) fn warn(words: &str) {
    let _ = writeln!(io::stderr(), "{words}");
}

/// A payload in an object: `"payload"` if it is text, else `"payload_hex"`.
pub(crate) fn with_payload(mut object: Value, payload: &[u8]) -> Value {
    match std::str::from_utf8(payload) {
        Ok(text) => object["payload"] = text.into(),
        Err(_) => {
            object["payload_hex"] = hex(payload).into();
        }
    }
    object
}

/// Bytes as people and scripts read them.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Milliseconds with three digits behind the point.
pub(crate) fn millis(time: std::time::Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// Sends the log of the library to stderr, at the level that `-v` and `-q` ask for. Where trouble is expected, only
/// errors are worth a line.
pub(crate) fn start_log(globals: &Globals, trouble_expected: bool) {
    let level = match (globals.quiet || trouble_expected && globals.verbose == 0, globals.verbose) {
        (true, _) => LevelFilter::ERROR,
        (false, 0) => LevelFilter::WARN,
        (false, 1) => LevelFilter::INFO,
        (false, 2) => LevelFilter::DEBUG,
        (false, _) => LevelFilter::TRACE,
    };
    let mut filter = Targets::new().with_default(level);
    if globals.verbose == 0 {
        // What becomes of the host is an event here, and told as one.
        filter = filter.with_target("m2m::net::shared", LevelFilter::ERROR);
    }
    let stderr = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .log_internal_errors(false);
    // Only a second subscriber in this process could make it fail, and there is none.
    let _ = tracing_subscriber::registry().with(stderr.with_filter(filter)).try_init();
}

fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Failure::ClosedPipe,
        _ => Failure::Other(format!("can't write the output: {error}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_payload_is_text_or_hex() {
        assert_eq!(with_payload(json!({"code": "2.05"}), b"21"), json!({"code": "2.05", "payload": "21"}));
        assert_eq!(with_payload(json!({}), &[0xFF, 0x01]), json!({"payload_hex": "ff01"}));
    }

    #[test]
    fn times_are_short() {
        assert_eq!(millis(Duration::from_nanos(1_234_567)), 1.235);
    }
}

//! The events of a program that runs on, written by a thread of their own: a reader that stops reading must not stop
//! a host, and least of all keep it from ending.
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Output, warn};

/// Lines that wait for a slow reader; beyond it new ones are dropped.
const MAX_WAITING: usize = 1024;
/// What waits at the end has so long to be read.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Takes events and never blocks.
pub(crate) struct Events {
    output: Output,
    lines: SyncSender<String>,
    writer: JoinHandle<()>,
    dropped: u64,
}

impl Events {
    /// Events go where `output` says: objects to stdout, words to stderr.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn new(output: Output) -> io::Result<Events> {
        if output.json { Events::to(output, io::stdout()) } else { Events::to(output, io::stderr()) }
    }

    fn to(output: Output, sink: impl Write + Send + 'static) -> io::Result<Events> {
        let (lines, waiting) = sync_channel(MAX_WAITING);
        let writer = thread::Builder::new().name("events".into()).spawn(move || write_all(&waiting, sink))?;
        Ok(Events { output, lines, writer, dropped: 0 })
    }

    /// True if `-v` was given: events that come by the thousand are told too.
    pub(crate) fn is_verbose(&self) -> bool {
        self.output.verbose
    }

    /// An event: words for a person, unless `-q` was given; with `--json` the object.
    pub(crate) fn tell(&mut self, words: &str, object: &Value) {
        let line = match (self.output.json, self.output.quiet) {
            (true, _) => object.to_string(),
            (false, true) => return,
            (false, false) => words.to_owned(),
        };
        self.queue(line);
    }

    /// What somebody asked for: told even with `-q`.
    pub(crate) fn answer(&mut self, words: &str, object: &Value) {
        self.queue(if self.output.json { object.to_string() } else { words.to_owned() });
    }

    fn queue(&mut self, line: String) {
        let Err(TrySendError::Full(_)) = self.lines.try_send(line) else { return };
        self.dropped += 1;
        if self.dropped == 1 {
            // On a thread of its own: stderr may be what nobody reads.
            thread::spawn(|| warn("m2m: nobody reads the events: some are dropped"));
        }
    }

    /// Ends the writing; what waits is written if somebody reads it now. Tells how many events were dropped.
    pub(crate) fn finish(self) -> u64 {
        let Events { lines, writer, dropped, .. } = self;
        drop(lines);
        let deadline = Instant::now() + LAST_WORDS;
        while !writer.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        dropped
    }
}

/// A reader that went away does not end a host or a device: the lines go nowhere then.
fn write_all(lines: &Receiver<String>, mut sink: impl Write) {
    for line in lines {
        let _ = sink.write_all(format!("{line}\n").as_bytes()).and_then(|()| sink.flush());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const JSON: Output = Output { json: true, quiet: false, verbose: false };

    /// Hands each write to the test, and waits until the test takes it.
    struct Slow(SyncSender<Vec<u8>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stalls_costs_events_and_no_time() {
        let (sink, reader) = sync_channel(0);
        let mut events = Events::to(JSON, Slow(sink)).unwrap();
        for n in 0..3 * MAX_WAITING {
            events.tell("", &json!({"n": n}));
        }
        let dropped = events.finish();
        assert!((2 * MAX_WAITING as u64 - 1..=2 * MAX_WAITING as u64).contains(&dropped), "{dropped}");
        assert_eq!(reader.recv().unwrap(), b"{\"n\":0}\n");
    }

    #[test]
    fn what_is_read_is_all_there() {
        let (sink, reader) = sync_channel(16);
        let mut events = Events::to(JSON, Slow(sink)).unwrap();
        (0..3).for_each(|n| events.tell("", &json!({"n": n})));
        assert_eq!(events.finish(), 0);
        assert_eq!(reader.iter().collect::<Vec<_>>().concat(), b"{\"n\":0}\n{\"n\":1}\n{\"n\":2}\n");
    }
}

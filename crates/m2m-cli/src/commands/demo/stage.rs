//! Where the demo's steps are told: one line each, with its number, its time, and what it showed.
use std::time::{Duration, Instant};

use serde_json::json;

use crate::exit::Failure;
use crate::output::Output;

/// No step takes so long unless something is broken.
const STEP: Duration = Duration::from_secs(10);

/// What a step leaves for the next ones and what it says; or what was expected and what came.
pub(super) type Told<T> = Result<(T, String), String>;

/// Why the story can't go on.
pub(super) enum Stopped {
    /// A step did not hold; it has been told.
    Step,
    /// The lines can't be written.
    Output(Failure),
}

pub(super) struct Stage {
    output: Output,
    steps: u32,
}

impl Stage {
    pub(super) fn new(output: Output) -> Stage {
        Stage { output, steps: 0 }
    }

    /// How many steps held.
    pub(super) fn steps(&self) -> u32 {
        self.steps
    }

    /// Does one step and tells how it went. Later steps stand on it, so that none follows one that failed.
    pub(super) async fn step<T>(
        &mut self,
        title: &str,
        work: impl Future<Output = Told<T>>,
    ) -> Result<T, Stopped> {
        let number = self.steps + 1;
        let start = Instant::now();
        let told = tokio::time::timeout(STEP, work).await;
        let ms = start.elapsed().as_millis() as u64;
        let told =
            told.unwrap_or_else(|_| Err(format!("expected it within {} s, nothing came", STEP.as_secs())));
        match told {
            Ok((left, words)) => {
                self.steps = number;
                let object = json!({"step": title, "ok": true, "ms": ms, "told": words});
                let line = format!("ok   {number:>2}. {title} ({ms} ms): {words}");
                self.output.line(&line, &object).map_err(Stopped::Output)?;
                Ok(left)
            }
            Err(words) => {
                let object = json!({"step": title, "ok": false, "ms": ms, "told": words});
                let line = format!("FAIL {number:>2}. {title} ({ms} ms): {words}");
                self.output.line(&line, &object).map_err(Stopped::Output)?;
                Err(Stopped::Step)
            }
        }
    }
}

/// For `map_err`: what was expected, and the error that came instead.
pub(super) fn expected(what: &str) -> impl FnOnce(m2m::Error) -> String {
    move |error| format!("expected {what}, came: {error}")
}

/// An error unless both are the same.
pub(super) fn same(what: &str, expected: &str, came: &str) -> Result<(), String> {
    if expected == came {
        return Ok(());
    }
    Err(format!("expected {what} to be \"{expected}\", came \"{came}\""))
}

//! The signals that end a program that runs on: Ctrl-C and SIGTERM.
#[cfg(unix)]
use std::io;

use crate::exit::Failure;

/// Waits for the first signal; made before "ready" is said, so that none is missed.
pub(super) struct Stop {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    #[cfg(unix)]
    pub(super) fn new() -> Result<Stop, Failure> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Stop {
            terminate: signal(SignalKind::terminate()).map_err(|error| failed(&error))?,
            interrupt: signal(SignalKind::interrupt()).map_err(|error| failed(&error))?,
        })
    }

    #[cfg(not(unix))]
    pub(super) fn new() -> Result<Stop, Failure> {
        Ok(Stop {})
    }

    /// Returns once somebody wants the program to end.
    #[cfg(unix)]
    pub(super) async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Returns once somebody wants the program to end.
    #[cfg(not(unix))]
    pub(super) async fn asked(&mut self) {
        // Without a handler the system ends the program by itself.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    }
}

#[cfg(unix)]
fn failed(error: &io::Error) -> Failure {
    Failure::Other(format!("can't listen for signals: {error}"))
}

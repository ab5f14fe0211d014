//! What drives a server: so many requests on their way, for so long.
use std::time::{Duration, Instant};

use super::child::{Child, Reading};
use super::figures::quantile;
use crate::exit::Failure;

/// A server that says nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// A client: it has a number of slots, each of which holds one request on its way.
pub(super) trait Load {
    /// Begins a request in this slot. It may wait until [`Load::flush`].
    fn ask(&mut self, slot: u32) -> Result<(), Failure>;
    /// Sends what waits.
    fn flush(&mut self) -> Result<(), Failure>;
    /// Takes what came, and tells the slots that were answered.
    fn take(&mut self, answered: &mut Vec<u32>) -> Result<(), Failure>;
}

/// What came of a round.
pub(super) struct Round {
    /// Requests answered.
    pub(super) count: u64,
    pub(super) seconds: f64,
    /// Nanoseconds of the server's CPU; none where the system doesn't say.
    pub(super) cpu_ns: Option<f64>,
    /// Nanoseconds from a request to its answer.
    latencies: Vec<u32>,
}

impl Round {
    /// Requests a second.
    pub(super) fn rate(&self) -> f64 {
        self.count as f64 / self.seconds
    }

    /// Nanoseconds of the server's CPU for each.
    pub(super) fn cpu_each(&self) -> Option<f64> {
        Some(self.cpu_ns? / self.count.max(1) as f64)
    }

    /// Microseconds within which this part of the requests was answered.
    pub(super) fn latency_us(&mut self, part: f64) -> f64 {
        quantile(&mut self.latencies, part).map_or(0.0, |ns| f64::from(ns) / 1e3)
    }
}

/// When a round is over.
#[derive(Clone, Copy)]
pub(super) enum Until {
    /// After so long.
    Lasted(Duration),
    /// After so many requests.
    Asked(u64),
}

/// Drives a server with so many requests on their way, and waits for the last answers.
pub(super) fn drive(
    load: &mut dyn Load,
    server: &mut Child,
    inflight: u32,
    until: Until,
) -> Result<Round, Failure> {
    let before: Reading = server.read()?;
    let start = Instant::now();
    let inflight = match until {
        Until::Lasted(_) => inflight,
        Until::Asked(count) => inflight.min(u32::try_from(count).unwrap_or(u32::MAX)),
    };
    let mut sent_at = vec![start; inflight as usize];
    for slot in 0..inflight {
        load.ask(slot)?;
    }
    load.flush()?;
    let (mut open, mut answered, mut latencies) = (inflight, Vec::new(), Vec::new());
    let mut heard = start;
    while open > 0 {
        answered.clear();
        load.take(&mut answered)?;
        let now = Instant::now();
        if answered.is_empty() {
            if now - heard > PATIENCE {
                return Err(Failure::TimedOut(format!(
                    "the server has not answered for {} s",
                    PATIENCE.as_secs()
                )));
            }
            std::thread::yield_now();
            continue;
        }
        heard = now;
        for slot in answered.drain(..) {
            let Some(sent) = sent_at.get_mut(slot as usize) else { continue };
            latencies.push(u32::try_from((now - *sent).as_nanos()).unwrap_or(u32::MAX));
            *sent = now;
            let goes_on = match until {
                Until::Lasted(lasts) => now - start < lasts,
                Until::Asked(count) => (latencies.len() as u64 + u64::from(open) - 1) < count,
            };
            match goes_on {
                true => load.ask(slot)?,
                false => open -= 1,
            }
        }
        load.flush()?;
    }
    let seconds = start.elapsed().as_secs_f64();
    let cpu_ns = server.read()?.cpu_since(&before);
    Ok(Round { count: latencies.len() as u64, seconds, cpu_ns, latencies })
}

//! Bytes as scripts for machines on the simulated network: what the targets `net`, `session` and `handshake` run, and what
//! the ordinary tests replay from their corpora.
//!
//! A script is read byte by byte and says zero when it is over, so that any bytes are one, and a longer one begins as a
//! shorter one does.
pub(crate) mod handshake;
pub(crate) mod nets;
pub(crate) mod peer;

use m2m_proto::{
    config::{Config, Rate},
    time::Duration,
};
use m2m_sim::World;

/// More steps than this within one stretch of time mean that the time no longer passes.
const MAX_STEPS: usize = 50_000;
const SECOND: Duration = Duration::from_secs(1);

struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    /// At most so many bytes of it.
    fn new(bytes: &'a [u8], most: usize) -> Script<'a> {
        Script(bytes.get(..most).unwrap_or(bytes))
    }

    fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> usize {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        usize::from(*first)
    }

    fn word(&mut self) -> u16 {
        (self.byte() << 8 | self.byte()) as u16
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.byte() as u8).collect()
    }
}

/// A net whose tables are small enough for a script to fill.
fn small(number: u8) -> Config {
    let mut config = World::config(number);
    config.allow_key_change = true;
    config.limits.sessions = 24;
    config.limits.sessions_per_peer = 8;
    config.limits.half_open = 12;
    config.limits.half_open_per_peer = 4;
    config.limits.dh_rate = Rate::new(20, 4);
    config
}

/// Tables keep to the caps of [`small`].
fn check_caps(net: &m2m_proto::net::Net) {
    let (sessions, half_open) = (net.sessions(), net.half_open());
    assert!(sessions <= 24 && half_open <= 12, "{sessions} sessions, {half_open} of them half-open");
}

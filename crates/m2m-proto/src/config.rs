//! What a net is, and every limit and timer that it keeps to.
use alloc::{vec, vec::Vec};

use sha2::{Digest, Sha256};

use crate::{
    id::Id,
    session::keys::{DeviceKey, NetKey},
    time::Duration,
    wire::packet::Suite,
};

/// A net's configuration: what it cannot do without in [`Config::new`], the rest public with a default.
///
/// ```
/// use m2m_proto::{config::Config, id::Id, session::keys::{DeviceKey, NetKey}};
/// let key = NetKey::new(&[7; 16]).unwrap();
/// let id = Id::from_hex("2").unwrap();
/// let device = DeviceKey::derived_from(&key, id);
/// let mut config = Config::new(id, key, device);
/// config.relay = true;
/// ```
#[derive(Clone)]
pub struct Config {
    /// This net's id.
    pub id: Id,
    /// This net's key: who holds it may open sessions to this net.
    pub key: NetKey,
    /// Which version of the net key this is: one more with each change from afar. Default 0.
    pub key_id: u16,
    /// The key before it, which is honoured for a while yet. Default: none.
    pub previous_key: Option<PreviousKey>,
    /// Let holders of the net key replace it from afar (protocol, section 2). Default false.
    pub allow_key_change: bool,
    /// The secret that proves a claim to the id.
    pub device: DeviceKey,
    /// Suites in the order of preference; the responder's order decides. Default: AES-128-GCM, then AES-256-GCM.
    pub suites: Vec<Suite>,
    /// Take sessions that others open. Default true.
    pub accept: bool,
    /// Keep a registry: take REGISTER and LOOKUP. Default false.
    pub registry: bool,
    /// Forward for registered nets. Default false.
    pub relay: bool,
    /// Longest lease of a registration (the mission's `max_router_tm`). Default 600 s.
    pub max_router_tm: Duration,
    /// Register with the host without claiming the id, for at most 120 s at a time. Default false.
    pub ephemeral: bool,
    /// The last epoch this net registered with, from its storage; 0 if unknown.
    pub last_epoch: u64,
    /// Which shard of how many this machine is. Default: the only one.
    pub shard: Shard,
    /// Caps of every table.
    pub limits: Limits,
    /// Timers of sessions and handshakes.
    pub timers: Timers,
}

impl Config {
    /// A net that opens and takes sessions, and neither registers others nor relays.
    pub fn new(id: Id, key: NetKey, device: DeviceKey) -> Config {
        Config {
            id,
            key,
            key_id: 0,
            previous_key: None,
            allow_key_change: false,
            device,
            suites: vec![Suite::Aes128Gcm, Suite::Aes256Gcm],
            accept: true,
            registry: false,
            relay: false,
            max_router_tm: Duration::from_secs(600),
            ephemeral: false,
            last_epoch: 0,
            shard: Shard::default(),
            limits: Limits::default(),
            timers: Timers::default(),
        }
    }
}

/// A net key that was replaced from afar.
#[derive(Clone)]
pub struct PreviousKey {
    /// The key.
    pub key: NetKey,
    /// For how long handshakes under it are still answered, from the start of the machine.
    pub grace: Duration,
}

/// One of several machines behind one address (protocol, section 11): all that belongs to a peer lives in the shard of
/// its id, and tokens carry their shard in the top bits. What comes to another one is handed over
/// ([`crate::event::Output::Handover`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// This one, below `count`.
    pub index: u8,
    /// How many there are, at most [`Shard::MAX`].
    pub count: u8,
}

impl Default for Shard {
    fn default() -> Shard {
        Shard { index: 0, count: 1 }
    }
}

impl Shard {
    /// The most shards that one net may have.
    pub const MAX: u8 = 128;

    /// True if there are others.
    pub fn has_others(self) -> bool {
        self.count > 1
    }

    /// How many top bits of a token name its shard.
    pub fn bits(self) -> u32 {
        u8::BITS - self.count.saturating_sub(1).leading_zeros()
    }

    /// The shard that a token belongs to. Where the count is no power of two, a token that none of these shards chose
    /// may name one that is not there.
    pub fn of_token(self, token: u32) -> u8 {
        if self.bits() == 0 { 0 } else { (token >> (32 - self.bits())) as u8 }
    }

    /// The shard where all of a peer's sessions live: SHA-256(id), its first four bytes, modulo the count.
    pub fn of_id(self, id: Id) -> u8 {
        let [a, b, c, d, ..]: [u8; 32] = Sha256::digest(id.0).into();
        (u32::from_be_bytes([a, b, c, d]) % u32::from(self.count.max(1))) as u8
    }

    /// Puts this shard's number into the top bits of a random token.
    pub fn mark(self, random: u32) -> u32 {
        if self.bits() == 0 {
            random
        } else {
            random >> self.bits() | u32::from(self.index) << (32 - self.bits())
        }
    }
}

/// Caps (protocol, section 12). When a table is full the new is refused; what is confirmed and recently heard stays.
/// With shards each has these for itself, but for new claims, of which each is to be given its part.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Sessions in all, half-open ones included. Default 65,536.
    pub sessions: usize,
    /// Sessions with one peer id. Default 64: the original's users open 50 between one pair.
    pub sessions_per_peer: usize,
    /// Sessions whose round keys are kept, about 2 kB each; the others make them anew for each packet, which takes as
    /// long as to seal a small one. 0 keeps none. Default 4,096; a device with two sessions needs 2.
    pub warm_sessions: usize,
    /// Emptied buffers that are kept for the next packets, of each of three sizes (128, 512 and 1,232 bytes). Default 256,
    /// at most 480 kB; a small device lives with 4.
    pub spare_buffers: usize,
    /// Half-open handshakes in all; from half of it on, only for those who showed a cookie. Default 4,096.
    pub half_open: usize,
    /// Half-open handshakes of one source id. Default 64.
    pub half_open_per_peer: usize,
    /// INITs per second and source network. Default 50, burst 100.
    pub init_rate: Rate,
    /// X25519 operations for strangers' INITs and for changes of keys per second; beyond it the ones are sent a COOKIE, the
    /// others wait. Fewer beside packets that are served: one less for each 26 a second, but for one in 512 of them and a
    /// 32nd of this. Default 400, burst 400.
    pub dh_rate: Rate,
    /// The same for INITs that showed a cookie; beyond it they are dropped, and sent again. Beside packets that are served one
    /// less for each 51 a second, but for one in 1,024 of them and a 32nd of this. Default 200, burst 200.
    pub proven_dh_rate: Rate,
    /// COOKIEs per second; beyond it INITs that would get one are dropped, and sent again. Beside packets that are served one
    /// less for each 6 a second, but for one in 128 of them and a 32nd of this. Default 500, burst 100.
    pub cookie_rate: Rate,
    /// Registered ids. Default 65,536.
    pub registrations: usize,
    /// Relayed packets per second from one source, and towards one destination. Default 1,000, burst 2,000.
    pub relay_packets: Rate,
    /// Relayed bytes per second from one source, and towards one destination. Default 1 MiB, burst 2 MiB.
    pub relay_bytes: Rate,
    /// REGISTERs and UNREGISTERs per second of one session; beyond it they are ignored. Default 1, burst 10.
    pub register_rate: Rate,
    /// Changes of keys per second that one session's peer may have answered, or that it answers; beyond it they wait, so that
    /// one peer can't use up `dh_rate` for all. Default 1, burst 20.
    pub rekey_rate: Rate,
    /// LOOKUPs per second of one session. Default 10, burst 20.
    pub lookup_rate: Rate,
    /// ERROR frames per second to one neighbour. Default 3, burst 6.
    pub error_rate: Rate,
    /// Requests that wait in one session. Default 256.
    pub queue_messages: usize,
    /// Bytes of them. Default 256 KiB.
    pub queue_bytes: usize,
    /// Requests of one peer that the user has not answered yet; more are answered 4.29. Default 256: as many as
    /// a peer of this kind can have on its way.
    pub open_incoming: usize,
    /// Bytes of cached answers per session. Default 64 KiB.
    pub answer_bytes: usize,
    /// Datagrams that wait to leave. Default 4,096.
    pub outputs: usize,
    /// New claims to ids that one source (/24 for IPv4, /64 for IPv6) may make in an hour. Default 512.
    pub claims_per_hour: u32,
    /// And so many at once: a fleet that is set up behind one address. Default 256.
    pub claims_at_once: u32,
    /// Packets that one key of one direction protects before the session ends. Default and most 2^23 (RFC 9001, 6.6);
    /// 2^21 with AES-128-CCM-8.
    pub packets_per_key: u64,
    /// Packets sent under one generation of keys before new ones are asked for. Default and most 2^22 (2^20 with
    /// AES-128-CCM-8), least 32.
    pub rekey_packets: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            sessions: 65_536,
            sessions_per_peer: 64,
            warm_sessions: 4_096,
            spare_buffers: 256,
            half_open: 4_096,
            half_open_per_peer: 64,
            init_rate: Rate::new(50, 100),
            dh_rate: Rate::new(400, 400),
            proven_dh_rate: Rate::new(200, 200),
            cookie_rate: Rate::new(500, 100),
            registrations: 65_536,
            relay_packets: Rate::new(1_000, 2_000),
            relay_bytes: Rate::new(1 << 20, 2 << 20),
            register_rate: Rate::new(1, 10),
            rekey_rate: Rate::new(1, 20),
            lookup_rate: Rate::new(10, 20),
            error_rate: Rate::new(3, 6),
            queue_messages: 256,
            queue_bytes: 256 << 10,
            open_incoming: crate::coap::line::MID_WINDOW,
            answer_bytes: 64 << 10,
            outputs: 4_096,
            claims_per_hour: 512,
            claims_at_once: 256,
            packets_per_key: crate::session::KEY_LIMIT,
            rekey_packets: 1 << 22,
        }
    }
}

/// So many a second, and so many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Refill per second.
    pub per_second: u32,
    /// Most at once.
    pub burst: u32,
}

impl Rate {
    /// So many a second, and so many at once.
    pub const fn new(per_second: u32, burst: u32) -> Rate {
        Rate { per_second, burst }
    }
}

/// Timers (protocol, sections 4, 6 and 7).
#[derive(Clone, Debug)]
pub struct Timers {
    /// How long a handshake is tried. Default 10 s.
    pub handshake_timeout: Duration,
    /// How long a half-open handshake is kept. Default 5 s.
    pub half_open: Duration,
    /// First keepalive interval. Default 25 s: below the 30 s of the shortest common NAT mapping.
    pub ping_min: Duration,
    /// Longest keepalive interval. Default 110 s: below the 120 s of RFC 4787 REQ-5.
    pub ping_max: Duration,
    /// Longest keepalive interval of the session with a host. Default 45 s, so that a net is back within a minute
    /// after its host restarted without memory; a net on a battery may prefer `ping_max`'s 110 s.
    pub host_ping_max: Duration,
    /// How long a session lives whose peer never pings. Default 24 h.
    pub session_idle: Duration,
    /// First wait before a lost host is tried again; doubles up to `host_retry_max`. Default 1 s.
    pub host_retry_min: Duration,
    /// Longest wait before a lost host is tried again. Default 30 s.
    pub host_retry_max: Duration,
    /// How long a closed session answers with CLOSE. Default 3 s.
    pub closing: Duration,
    /// How long a host may leave a handshake unanswered before the next one is taken, where there is another. Default 8 s; nets
    /// that live for one command take less.
    pub host_patience: Duration,
    /// After how long without an answer by the user a request is acknowledged empty. Default 50 ms.
    pub ack_delay: Duration,
    /// For how long handshakes under the previous net key are answered after a change from afar. Default 24 h.
    pub key_grace: Duration,
    /// New keys are asked for with the first packet after this time, never for their own sake. Default 24 h, least 1 s.
    pub rekey_interval: Duration,
}

impl Default for Timers {
    fn default() -> Timers {
        Timers {
            handshake_timeout: Duration::from_secs(10),
            half_open: Duration::from_secs(5),
            ping_min: Duration::from_secs(25),
            ping_max: Duration::from_secs(110),
            host_ping_max: Duration::from_secs(45),
            session_idle: Duration::from_secs(24 * 3600),
            host_retry_min: Duration::from_secs(1),
            host_retry_max: Duration::from_secs(30),
            closing: Duration::from_secs(3),
            host_patience: Duration::from_secs(8),
            ack_delay: Duration::from_millis(50),
            key_grace: Duration::from_secs(24 * 3600),
            rekey_interval: Duration::from_secs(24 * 3600),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_the_shard_that_chose_it() {
        for count in 1..=Shard::MAX {
            for index in 0..count {
                let shard = Shard { index, count };
                for random in [0, 1, 0x1234_5678, u32::MAX] {
                    assert_eq!(shard.of_token(shard.mark(random)), index, "{shard:?}");
                }
            }
        }
        assert_eq!(Shard::default().mark(0xDEAD_BEEF), 0xDEAD_BEEF, "one shard spends no bits");
    }

    #[test]
    fn ids_are_spread_over_all_shards_as_the_protocol_says() {
        let id = |n: u16| {
            let mut id = Id::ANY;
            id.0[14..].copy_from_slice(&n.to_be_bytes());
            id
        };
        let first = Sha256::digest(id(1).0);
        let number = u32::from_be_bytes([first[0], first[1], first[2], first[3]]);
        for count in [1, 2, 3, 4, 7, 128] {
            let shard = Shard { index: 0, count };
            assert_eq!(u32::from(shard.of_id(id(1))), number % u32::from(count));
            let mut seen = vec![0_u32; usize::from(count)];
            (0..10_000).for_each(|n| seen[usize::from(shard.of_id(id(n)))] += 1);
            let expected = 10_000 / u32::from(count);
            assert!(seen.iter().all(|there| (expected / 2..=expected * 2).contains(there)), "{seen:?}");
        }
    }
}

//! Counters: what came, what went, and why things were dropped.
use crate::wire::packet::PacketError;

/// Why a packet or a frame was dropped (protocol, section 14). One counter each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drop {
    /// Too short, too long, or fields that cannot be.
    Malformed,
    /// Another version of the protocol, the original of 2018 among them.
    Version,
    /// A packet type that is unknown, or of no use here.
    Kind,
    /// For another id.
    NotMine,
    /// A token that no session of ours has.
    UnknownToken,
    /// Seen before, or older than the window.
    Replayed,
    /// It did not open under the session's keys.
    BadSeal,
    /// A handshake message under other keys, or one that fits no handshake.
    BadHandshake,
    /// Its source had no budget left.
    OverBudget,
    /// No room for another session.
    TableFull,
    /// It opened, and held frames that are malformed.
    BadFrame,
    /// A RELAY from one who may not.
    RelayRefused,
    /// A RELAY to an id that is registered nowhere.
    NoRoute,
    /// A RELAY at the end of its hops.
    HopLimit,
    /// Too many datagrams waited to leave.
    OutputFull,
    /// A hint that repeats no packet of ours.
    BadHint,
    /// A frame of a type that is unknown, or of no use here; the rest of its packet acts.
    UnknownFrame,
    /// Another shard handed it over, and it does not belong here either.
    WrongShard,
    /// It belonged to another shard, which had no room for it.
    ShardFull,
}

impl Drop {
    /// Every reason, in the order of the counters.
    pub const ALL: [Drop; 19] = [
        Drop::Malformed,
        Drop::Version,
        Drop::Kind,
        Drop::NotMine,
        Drop::UnknownToken,
        Drop::Replayed,
        Drop::BadSeal,
        Drop::BadHandshake,
        Drop::OverBudget,
        Drop::TableFull,
        Drop::BadFrame,
        Drop::RelayRefused,
        Drop::NoRoute,
        Drop::HopLimit,
        Drop::OutputFull,
        Drop::BadHint,
        Drop::UnknownFrame,
        Drop::WrongShard,
        Drop::ShardFull,
    ];

    /// The reason as the protocol's section 14 names it.
    pub fn words(self) -> &'static str {
        match self {
            Drop::NotMine => "not mine",
            Drop::UnknownToken => "unknown token",
            Drop::BadSeal => "bad seal",
            Drop::BadHandshake => "bad handshake",
            Drop::OverBudget => "over budget",
            Drop::TableFull => "table full",
            Drop::BadFrame => "bad frame",
            Drop::RelayRefused => "relay refused",
            Drop::NoRoute => "no route",
            Drop::HopLimit => "hop limit",
            Drop::OutputFull => "output full",
            Drop::BadHint => "bad hint",
            Drop::UnknownFrame => "unknown frame",
            Drop::WrongShard => "wrong shard",
            Drop::ShardFull => "shard full",
            Drop::Malformed | Drop::Version | Drop::Kind | Drop::Replayed => self.name(),
        }
    }

    /// The counter's name for programs: one word.
    pub fn name(self) -> &'static str {
        match self {
            Drop::Malformed => "malformed",
            Drop::Version => "version",
            Drop::Kind => "kind",
            Drop::NotMine => "not_mine",
            Drop::UnknownToken => "unknown_token",
            Drop::Replayed => "replayed",
            Drop::BadSeal => "bad_seal",
            Drop::BadHandshake => "bad_handshake",
            Drop::OverBudget => "over_budget",
            Drop::TableFull => "table_full",
            Drop::BadFrame => "bad_frame",
            Drop::RelayRefused => "relay_refused",
            Drop::NoRoute => "no_route",
            Drop::HopLimit => "hop_limit",
            Drop::OutputFull => "output_full",
            Drop::BadHint => "bad_hint",
            Drop::UnknownFrame => "unknown_frame",
            Drop::WrongShard => "wrong_shard",
            Drop::ShardFull => "shard_full",
        }
    }

    pub(crate) fn of_packet(why: PacketError) -> Drop {
        match why {
            PacketError::Version(_) => Drop::Version,
            PacketError::Kind(_) => Drop::Kind,
            _ => Drop::Malformed,
        }
    }
}

/// Counters of one net since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Datagrams that came.
    pub datagrams_in: u64,
    /// Datagrams that left.
    pub datagrams_out: u64,
    /// Packets forwarded for others.
    pub relayed: u64,
    /// Bytes of them.
    pub relayed_bytes: u64,
    /// Handshakes answered with RESP.
    pub handshakes: u64,
    /// Handshakes answered with COOKIE.
    pub cookies: u64,
    /// Hints sent to peers whose packets bore a token that is unknown here.
    pub hints_sent: u64,
    /// ERROR frames that came: a neighbour could not pass on something of ours.
    pub errors: u64,
    /// Sessions that were opened anew under their old handle.
    pub recoveries: u64,
    /// Changes of a session's keys.
    pub rekeys: u64,
    /// Sessions whose packets leave for another place since their peer moved.
    pub moves: u64,
    /// Places that a peer seemed to be at, and did not prove to be.
    pub moves_failed: u64,
    /// Packets, questions and answers that were handed over to another shard.
    pub handed_over: u64,
    drops: [u64; Drop::ALL.len()],
}

impl Stats {
    /// How many were dropped for this reason.
    pub fn dropped(&self, why: Drop) -> u64 {
        self.drops.get(why as usize).copied().unwrap_or(0)
    }

    /// Every reason, with how many were dropped for it.
    pub fn drops(&self) -> impl Iterator<Item = (Drop, u64)> {
        Drop::ALL.into_iter().map(|why| (why, self.dropped(why)))
    }

    /// Counts what another machine of the same net has counted, too.
    pub fn add(&mut self, other: &Stats) {
        // Taken apart, so that none is forgotten.
        let Stats {
            datagrams_in,
            datagrams_out,
            relayed,
            relayed_bytes,
            handshakes,
            cookies,
            hints_sent,
            errors,
            recoveries,
            rekeys,
            moves,
            moves_failed,
            handed_over,
            drops,
        } = other;
        let counters = [
            (&mut self.datagrams_in, datagrams_in),
            (&mut self.datagrams_out, datagrams_out),
            (&mut self.relayed, relayed),
            (&mut self.relayed_bytes, relayed_bytes),
            (&mut self.handshakes, handshakes),
            (&mut self.cookies, cookies),
            (&mut self.hints_sent, hints_sent),
            (&mut self.errors, errors),
            (&mut self.recoveries, recoveries),
            (&mut self.rekeys, rekeys),
            (&mut self.moves, moves),
            (&mut self.moves_failed, moves_failed),
            (&mut self.handed_over, handed_over),
        ];
        counters.into_iter().chain(self.drops.iter_mut().zip(drops)).for_each(|(sum, more)| *sum += more);
    }

    pub(crate) fn drop(&mut self, why: Drop) {
        if let Some(count) = self.drops.get_mut(why as usize) {
            *count += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_count_everything() {
        let mut stats = Stats { datagrams_in: 3, handed_over: 4, ..Stats::default() };
        stats.drop(Drop::ShardFull);
        let mut sum = stats.clone();
        sum.add(&stats);
        assert_eq!((sum.datagrams_in, sum.handed_over, sum.dropped(Drop::ShardFull)), (6, 8, 2));
        assert_eq!((sum.relayed, sum.dropped(Drop::Malformed)), (0, 0));
    }

    #[test]
    fn each_reason_has_its_own_counter() {
        let mut stats = Stats::default();
        for (n, why) in Drop::ALL.into_iter().enumerate() {
            assert_eq!(why as usize, n);
            (0..=n).for_each(|_| stats.drop(why));
        }
        for (n, (why, count)) in stats.drops().enumerate() {
            assert_eq!((why as usize, count), (n, n as u64 + 1), "{}", why.name());
            assert_eq!(why.words().replace(' ', "_"), why.name());
        }
    }
}

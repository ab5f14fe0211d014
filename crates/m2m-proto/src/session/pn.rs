//! Packet numbers: 64 bits in mind, two or four on the wire (RFC 9000, appendices A.2 and A.3).
use core::fmt;

use crate::wire::packet::PnLen;

/// The number of a packet. Each direction of a session counts its own from 0, through all changes of keys.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Pn(pub u64);

impl Pn {
    /// The number after this one; none at the end of all numbers, where the session must end too.
    pub const fn next(self) -> Option<Pn> {
        match self.0.checked_add(1) {
            Some(next) => Some(Pn(next)),
            None => None,
        }
    }

    /// How many bytes of this number must travel so that the receiver can't mistake it (RFC 9000, A.2).
    ///
    /// `acknowledged` is the highest of our packets that the peer is known to have. RFC 9000 would use up to four
    /// bytes for 2^31 numbers that nothing was heard about; beyond, four are all there is, and the receiver, who
    /// knows better than we what has arrived, still reads them unless it missed 2^31 packets in a row.
    pub const fn len_on_wire(self, acknowledged: Option<Pn>) -> PnLen {
        let unacknowledged = match acknowledged {
            Some(Pn(acknowledged)) => self.0.saturating_sub(acknowledged),
            None => self.0.saturating_add(1),
        };
        // The span must be twice as large as what is unacknowledged: 16 bits hold up to 2^15.
        if unacknowledged <= 1 << 15 { PnLen::Two } else { PnLen::Four }
    }

    /// The low bytes that travel; of two, they are the first two of the array.
    pub(super) const fn truncate(self, len: PnLen) -> [u8; 4] {
        let [.., a, b, c, d] = self.0.to_be_bytes();
        match len {
            PnLen::Two => [c, d, 0, 0],
            PnLen::Four => [a, b, c, d],
        }
    }

    /// The number nearest to the one expected next that ends in these bits (RFC 9000, A.3).
    ///
    /// `largest` is the highest number that was received and authentic, or 0 if none was.
    pub const fn expand(truncated: u32, len: PnLen, largest: Pn) -> Pn {
        let span = 1u64 << (8 * len.bytes());
        let half = span / 2;
        let expected = largest.0.saturating_add(1);
        let candidate = expected & !(span - 1) | truncated as u64 & (span - 1);
        if candidate.saturating_add(half) <= expected {
            // Above the last of all numbers there is nothing to mean but the candidate.
            return Pn(match candidate.checked_add(span) {
                Some(above) => above,
                None => candidate,
            });
        }
        if candidate > expected.saturating_add(half) && candidate >= span {
            return Pn(candidate - span);
        }
        Pn(candidate)
    }
}

impl fmt::Debug for Pn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pn{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a receiver makes of `pn` when it knows `largest`.
    fn travel(pn: Pn, len: PnLen, largest: Pn) -> Pn {
        let bytes = pn.truncate(len);
        let truncated = match len {
            PnLen::Two => u32::from(u16::from_be_bytes([bytes[0], bytes[1]])),
            PnLen::Four => u32::from_be_bytes(bytes),
        };
        Pn::expand(truncated, len, largest)
    }

    #[test]
    fn agrees_with_the_samples_of_rfc_9000() {
        assert_eq!(Pn(0xac5c02).len_on_wire(Some(Pn(0xabe8b3))), PnLen::Two);
        // The RFC takes three bytes here; we have only four.
        assert_eq!(Pn(0xace8fe).len_on_wire(Some(Pn(0xabe8b3))), PnLen::Four);
        assert_eq!(Pn::expand(0x9b32, PnLen::Two, Pn(0xa82f30ea)), Pn(0xa82f9b32));
    }

    #[test]
    fn takes_two_bytes_up_to_half_their_span() {
        assert_eq!(Pn(0).len_on_wire(None), PnLen::Two);
        assert_eq!(Pn((1 << 15) - 1).len_on_wire(None), PnLen::Two);
        assert_eq!(Pn(1 << 15).len_on_wire(None), PnLen::Four);
        assert_eq!(Pn(1 << 15).len_on_wire(Some(Pn(0))), PnLen::Two);
        assert_eq!(Pn((1 << 15) + 1).len_on_wire(Some(Pn(0))), PnLen::Four);
        assert_eq!(Pn(u64::MAX).len_on_wire(None), PnLen::Four);
    }

    #[test]
    fn reads_numbers_at_both_ends() {
        assert_eq!(travel(Pn(0), PnLen::Two, Pn(0)), Pn(0));
        assert_eq!(travel(Pn(u64::MAX), PnLen::Two, Pn(u64::MAX)), Pn(u64::MAX));
        assert_eq!(travel(Pn(u64::MAX), PnLen::Four, Pn(u64::MAX - 7)), Pn(u64::MAX));
        assert_eq!(Pn(u64::MAX).next(), None);
        assert_eq!(Pn(0).next(), Some(Pn(1)));
    }

    proptest! {
        #[test]
        fn a_receiver_that_knows_what_was_acknowledged_reads_the_number(
            acknowledged in prop_oneof![Just(None), any::<u64>().prop_map(|pn| Some(Pn(pn)))],
            ahead in prop_oneof![0u64..70_000, 0u64..(1 << 31)],
            seen in 0.0..=1.0f64,
        ) {
            let base = acknowledged.map_or(0, |pn| pn.0);
            let pn = Pn(base.saturating_add(ahead));
            // The receiver has seen some of what was sent since, or nothing at all.
            let largest = Pn(base + ((pn.0 - base) as f64 * seen) as u64);
            let len = pn.len_on_wire(acknowledged);
            prop_assert_eq!(travel(pn, len, largest.min(pn)), pn);
        }

        #[test]
        fn a_late_packet_is_read_too(largest: u64, behind in 0u64..32_000) {
            let pn = Pn(largest.saturating_sub(behind));
            prop_assert_eq!(travel(pn, PnLen::Two, Pn(largest)), pn);
        }

        #[test]
        fn the_result_ends_in_what_travelled(truncated: u32, largest: u64) {
            prop_assert_eq!(Pn::expand(truncated, PnLen::Four, Pn(largest)).0 as u32, truncated);
            prop_assert_eq!(Pn::expand(truncated, PnLen::Two, Pn(largest)).0 as u16, truncated as u16);
        }
    }
}

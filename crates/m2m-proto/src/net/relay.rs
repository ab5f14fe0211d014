//! Forwarding (protocol, section 10): each RELAY frame is checked against who sent it, budgeted, and leaves in the
//! session of the one it is for. Nothing is learned from what passes by.
use super::{Net, Origin};
use crate::{
    event::SessionId,
    id::Id,
    relay::budget::neighbour_key,
    stats::Drop,
    time::Time,
    wire::frame::{ErrorCode, Frame, RelayFlags},
};

/// No packet makes more hops, whatever it says (protocol, section 10).
const MAX_HOP_LIMIT: u8 = 20;

/// The body of a RELAY frame.
#[derive(Clone, Copy)]
pub(super) struct Relayed<'a> {
    pub(super) hop_limit: u8,
    pub(super) flags: RelayFlags,
    pub(super) dst: Id,
    pub(super) src: Id,
    pub(super) inner: &'a [u8],
}

/// Where a RELAY goes.
enum Verdict {
    Mine(Id),
    Forward(SessionId),
    Refuse(ErrorCode, Drop),
    Ignore(Drop),
}

impl Net {
    pub(super) fn hash_id(&self, id: Id) -> u64 {
        neighbour_key(&id, self.hash_secret)
    }

    pub(super) fn on_relay(&mut self, now: Time, from: SessionId, relayed: Relayed<'_>) {
        match self.verdict(now, from, &relayed) {
            Verdict::Mine(neighbour) => {
                // Decrypting needs bytes of its own: these belong to the packet around them.
                let mut inner = self.buffer();
                inner.extend_from_slice(relayed.inner);
                self.receive(now, Origin::Through { neighbour, src: relayed.src }, &mut inner);
                self.recycle(inner);
            }
            Verdict::Forward(to) => {
                self.stats.relayed += 1;
                self.stats.relayed_bytes += relayed.inner.len() as u64;
                let hop_limit = relayed.hop_limit.min(MAX_HOP_LIMIT) - 1;
                let Relayed { flags, dst, src, inner, .. } = relayed;
                self.send_hop(now, to, &Frame::Relay { hop_limit, flags, dst, src, inner });
            }
            Verdict::Refuse(code, reason) => {
                self.stats.drop(reason);
                self.answer_error(now, from, code, &relayed);
            }
            Verdict::Ignore(reason) => self.stats.drop(reason),
        }
    }

    fn verdict(&mut self, now: Time, from: SessionId, relayed: &Relayed<'_>) -> Verdict {
        let own = self.config.id;
        let Some(session) = self.table.get_mut(from) else { return Verdict::Ignore(Drop::RelayRefused) };
        if session.host.is_some() {
            // From our host: what is for us, and nothing else, since nobody is behind us.
            return match relayed.dst == own {
                true => Verdict::Mine(session.peer),
                false => Verdict::Ignore(Drop::NotMine),
            };
        }
        let registered_here = session.peer == relayed.src;
        let Some(guest) = session.guest.as_mut().filter(|guest| guest.registered && registered_here) else {
            return match self.config.relay {
                true => Verdict::Refuse(ErrorCode::REFUSED, Drop::RelayRefused),
                false => Verdict::Ignore(Drop::NotMine),
            };
        };
        if relayed.dst == own {
            return Verdict::Mine(relayed.src);
        }
        if !self.config.relay {
            return Verdict::Ignore(Drop::NotMine);
        }
        let len = relayed.inner.len() as u32;
        if !guest.out_packets.take(now, 1) || !guest.out_bytes.take(now, len) {
            return Verdict::Refuse(ErrorCode::REFUSED, Drop::OverBudget);
        }
        if relayed.hop_limit <= 1 {
            return Verdict::Refuse(ErrorCode::HOP_LIMIT, Drop::HopLimit);
        }
        let there = self.registry.get(&relayed.dst).map(|registration| registration.session);
        let Some(to) = there.filter(|to| *to != from) else {
            return Verdict::Refuse(ErrorCode::NO_ROUTE, Drop::NoRoute);
        };
        let Some(guest) = self.table.get_mut(to).and_then(|session| session.guest.as_mut()) else {
            return Verdict::Refuse(ErrorCode::NO_ROUTE, Drop::NoRoute);
        };
        if !guest.in_packets.take(now, 1) || !guest.in_bytes.take(now, len) {
            return Verdict::Refuse(ErrorCode::REFUSED, Drop::OverBudget);
        }
        Verdict::Forward(to)
    }

    /// Tells the neighbour why its packet went no further; seldom, so that errors never become the flood.
    fn answer_error(&mut self, now: Time, to: SessionId, code: ErrorCode, relayed: &Relayed<'_>) {
        let Some(packet) = relayed.inner.last_chunk::<8>().copied() else { return };
        let Some(session) = self.table.get_mut(to) else { return };
        let config = &self.config;
        let guest =
            session.guest.get_or_insert_with(|| alloc::boxed::Box::new(super::session::Guest::new(config)));
        if guest.errors.take(now, 1) {
            session.control.once(Frame::Error { code, dst: relayed.dst, src: relayed.src, packet });
            self.touch(to);
        }
    }
}

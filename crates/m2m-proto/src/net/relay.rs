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

impl<'a> Relayed<'a> {
    /// As it leaves for the next hop.
    fn one_hop_on(self) -> Relayed<'a> {
        Relayed { hop_limit: self.hop_limit.min(MAX_HOP_LIMIT).saturating_sub(1), ..self }
    }

    /// What its sender is told about it; nothing if it is too short to be named.
    pub(super) fn error(&self, code: ErrorCode) -> Option<Frame<'static>> {
        let packet = self.inner.last_chunk::<8>().copied()?;
        Some(Frame::Error { code, dst: self.dst, src: self.src, packet })
    }

    pub(super) fn frame(self) -> Frame<'a> {
        let Relayed { hop_limit, flags, dst, src, inner } = self;
        Frame::Relay { hop_limit, flags, dst, src, inner }
    }
}

/// Where a RELAY goes.
enum Verdict {
    Mine(Id),
    Forward(SessionId),
    /// The destination, if it is registered at all, is so at another shard.
    HandOver(u8),
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
            Verdict::Forward(to) => self.forward(now, to, relayed.one_hop_on()),
            Verdict::HandOver(shard) => self.hand_relay(shard, from, relayed.one_hop_on()),
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
        let (len, limits) = (relayed.inner.len() as u32, &self.guest_limits);
        if !limits.packets.take(&mut guest.out_packets, now, 1)
            || !limits.bytes.take(&mut guest.out_bytes, now, len)
        {
            return Verdict::Refuse(ErrorCode::REFUSED, Drop::OverBudget);
        }
        if relayed.hop_limit <= 1 {
            return Verdict::Refuse(ErrorCode::HOP_LIMIT, Drop::HopLimit);
        }
        let there = self.registry.get(&relayed.dst).map(|registration| registration.session);
        let Some(to) = there.filter(|to| *to != from) else {
            return match self.home_elsewhere(relayed.dst) {
                Some(shard) => Verdict::HandOver(shard),
                None => Verdict::Refuse(ErrorCode::NO_ROUTE, Drop::NoRoute),
            };
        };
        match self.takes(now, to, len) {
            Ok(()) => Verdict::Forward(to),
            Err((code, reason)) => Verdict::Refuse(code, reason),
        }
    }

    /// Whether the destination of a RELAY may get so many bytes more.
    pub(super) fn takes(&mut self, now: Time, to: SessionId, len: u32) -> Result<(), (ErrorCode, Drop)> {
        let Some(guest) = self.table.get_mut(to).and_then(|session| session.guest.as_mut()) else {
            return Err((ErrorCode::NO_ROUTE, Drop::NoRoute));
        };
        let limits = &self.guest_limits;
        if !limits.packets.take(&mut guest.in_packets, now, 1)
            || !limits.bytes.take(&mut guest.in_bytes, now, len)
        {
            return Err((ErrorCode::REFUSED, Drop::OverBudget));
        }
        Ok(())
    }

    /// Sends a RELAY on, in the session of the one that it is for.
    pub(super) fn forward(&mut self, now: Time, to: SessionId, relayed: Relayed<'_>) {
        self.stats.relayed += 1;
        self.stats.relayed_bytes += relayed.inner.len() as u64;
        self.send_hop(now, to, &relayed.frame());
    }

    /// Tells the neighbour why its packet went no further; seldom, so that errors never become the flood.
    fn answer_error(&mut self, now: Time, to: SessionId, code: ErrorCode, relayed: &Relayed<'_>) {
        if let Some(frame) = relayed.error(code) {
            self.send_error(now, to, frame);
        }
    }

    pub(super) fn send_error(&mut self, now: Time, to: SessionId, frame: Frame<'static>) {
        let Some(session) = self.table.get_mut(to) else { return };
        let guest = session.guest.get_or_insert_default();
        if self.guest_limits.errors.take(&mut guest.errors, now, 1) {
            session.control.once(frame);
            self.touch(to);
        }
    }
}

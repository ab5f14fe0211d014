//! One net, several machines (protocol, section 11): each has the peers whose ids fall to it, and hands over what came to
//! it by chance. Nothing is handed over twice: what does not belong where it was handed is dropped.
//!
//! ```text
//!  a packet for a token, or an INIT of an id, of another shard     that shard, as if it had come there
//!  a RELAY to an id of another shard                               that shard, which forwards it;  ERROR comes back
//!  a LOOKUP of an id of another shard                              that shard, which knows;        FOUND comes back
//!  a packet for a peer behind a neighbour of another shard         that shard, which has the hop session
//!  a hint for a session that is not here                           every other shard: only its own knows it
//! ```
use alloc::vec::Vec;

use super::{Net, Origin, relay::Relayed};
use crate::{
    event::{Output, SessionId},
    id::Id,
    relay::budget::address_key,
    stats::Drop,
    time::Time,
    wire::{
        frame::{ErrorCode, FoundStatus, Frame, Req},
        packet::{Packet, ResetHint},
    },
};

/// What one shard hands over to another, as opaque as a datagram: see [`Net::handle_handed`].
#[derive(Debug)]
pub struct Handed {
    what: What,
    bytes: Vec<u8>,
}

#[derive(Debug)]
enum What {
    /// A packet that belongs there.
    Packet(Origin),
    /// A RELAY frame to an id that is registered there, or nowhere; its sender's session is here.
    Relay { sender: Hop },
    /// A RELAY frame that leaves in the session with a neighbour there.
    Leaving { neighbour: Id },
    /// An ERROR frame for that session.
    Error { to: SessionId },
    /// A LOOKUP of an id that is registered there, or nowhere.
    Lookup { asker: Asker, wanted: Id },
    /// The answer to one.
    Found { asker: Asker, status: FoundStatus },
}

/// A session, and the shard that it lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hop {
    shard: u8,
    session: SessionId,
}

/// Who looks a peer up: the question of a session of this shard, or of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asker {
    from: Hop,
    pub(crate) req: Req,
}

impl Net {
    /// Takes what another shard handed over to this one. What it causes comes out of [`Net::poll_output`]; the emptied
    /// buffer goes back to the shard that it came from, or to [`Net::recycle`].
    pub fn handle_handed(&mut self, now: Time, handed: Handed) -> Vec<u8> {
        let Handed { what, mut bytes } = handed;
        match what {
            What::Packet(origin) => self.on_handed_packet(now, origin, &mut bytes),
            What::Relay { sender } => self.on_handed_relay(now, sender, &bytes),
            What::Leaving { neighbour } => self.on_handed_leaving(now, neighbour, &bytes),
            What::Error { to } => self.on_handed_error(now, to, &bytes),
            What::Lookup { asker, wanted } => self.on_handed_lookup(now, asker, wanted),
            What::Found { asker, .. } if self.asker_here(asker).is_none() => {
                self.stats.drop(Drop::WrongShard);
            }
            What::Found { asker, status } => self.answer_lookup(asker, status),
        }
        bytes.clear();
        bytes
    }

    /// What could not be handed over, for the other shard had no room, is lost like a datagram. The emptied buffer goes
    /// to [`Net::recycle`].
    pub fn handover_failed(&mut self, handed: Handed) -> Vec<u8> {
        self.stats.drop(Drop::ShardFull);
        let mut bytes = handed.bytes;
        bytes.clear();
        bytes
    }

    /// The shard that a packet belongs to, if that is another one. A token of a shard that is not there is unknown here
    /// as well as anywhere: its sender gets its hint from here.
    pub(super) fn foreign_shard(&self, packet: &Packet<'_>) -> Option<u8> {
        let shard = self.config.shard;
        if !shard.has_others() {
            return None;
        }
        let owner = match packet {
            Packet::Short(short) => shard.of_token(short.token.value()),
            Packet::Resp(resp) => shard.of_token(resp.stoken.value()),
            Packet::Cookie(cookie) => shard.of_token(cookie.stoken.value()),
            Packet::Init(init) => shard.of_id(init.src),
            _ => return None,
        };
        (owner != shard.index && owner < shard.count).then_some(owner)
    }

    /// The shard that a peer's sessions live in, if that is another one.
    pub(super) fn home_elsewhere(&self, peer: Id) -> Option<u8> {
        let shard = self.config.shard;
        if !shard.has_others() {
            return None;
        }
        Some(shard.of_id(peer)).filter(|home| *home != shard.index)
    }

    fn hand_to(&mut self, shard: u8, what: What, bytes: Vec<u8>) {
        if self.outputs.len() >= self.config.limits.outputs {
            self.stats.drop(Drop::OutputFull);
            return self.recycle(bytes);
        }
        self.stats.handed_over += 1;
        self.outputs.push_back(Output::Handover { shard, handed: Handed { what, bytes } });
    }

    fn hand_frame(&mut self, shard: u8, what: What, frame: &Frame<'_>) {
        let mut bytes = self.buffer();
        frame.encode(&mut bytes);
        self.hand_to(shard, what, bytes);
    }

    pub(super) fn hand_packet(&mut self, shard: u8, origin: Origin, packet: &[u8]) {
        let mut bytes = self.buffer();
        bytes.extend_from_slice(packet);
        self.hand_to(shard, What::Packet(origin), bytes);
    }

    fn on_handed_packet(&mut self, now: Time, origin: Origin, packet: &mut [u8]) {
        match Packet::decode(packet) {
            Ok(decoded) if self.foreign_shard(&decoded).is_some() => self.stats.drop(Drop::WrongShard),
            Ok(Packet::ResetHint(hint)) => self.on_hint(now, origin, &hint),
            _ => self.receive(now, origin, packet),
        }
    }

    /// A hint bears the token that its sender chose, from which no shard can be told.
    pub(super) fn on_hint_for_any(&mut self, now: Time, origin: Origin, hint: &ResetHint<'_>) {
        let shard = self.config.shard;
        if !shard.has_others() || self.table.by_peer_token(hint.token).is_some() {
            return self.on_hint(now, origin, hint);
        }
        let source = match origin {
            Origin::Direct(address) => address_key(address, self.hash_secret),
            Origin::Through { src, .. } => self.hash_id(src),
        };
        // A place of its own in the budget: who forges hints in a peer's name must not use up what tells that peer of a
        // restart. What all together cause is bounded too, and leaves room for what others wait for.
        let has_room = self.outputs.len() < self.config.limits.outputs / 2;
        if !has_room || !self.hint_budget.take(!source, now, 1) || !self.fan_out.take(now, 1) {
            return self.stats.drop(Drop::OverBudget);
        }
        let mut packet = [0; ResetHint::LEN];
        if hint.encode(&mut packet).is_err() {
            return;
        }
        for other in (0..shard.count).filter(|other| *other != shard.index) {
            self.hand_packet(other, origin, &packet);
        }
    }

    pub(super) fn hand_relay(&mut self, shard: u8, from: SessionId, relayed: Relayed<'_>) {
        let sender = Hop { shard: self.config.shard.index, session: from };
        self.hand_frame(shard, What::Relay { sender }, &relayed.frame());
    }

    /// A RELAY whose sender another shard has checked. The budget of the one that it is for is kept here.
    fn on_handed_relay(&mut self, now: Time, sender: Hop, frame: &[u8]) {
        let Ok(Frame::Relay { hop_limit, flags, dst, src, inner }) = Frame::decode(frame) else { return };
        let relayed = Relayed { hop_limit, flags, dst, src, inner };
        let to = self.registry.get(&dst).map(|registration| registration.session);
        let refused = match to {
            Some(to) => match self.takes(now, to, inner.len() as u32) {
                Ok(()) => return self.forward(now, to, relayed),
                Err(refused) => refused,
            },
            None if self.home_elsewhere(dst).is_some() => return self.stats.drop(Drop::WrongShard),
            None => (ErrorCode::NO_ROUTE, Drop::NoRoute),
        };
        self.stats.drop(refused.1);
        if let Some(error) = relayed.error(refused.0) {
            self.hand_frame(sender.shard, What::Error { to: sender.session }, &error);
        }
    }

    fn on_handed_error(&mut self, now: Time, to: SessionId, frame: &[u8]) {
        if let Ok(Frame::Error { code, dst, src, packet }) = Frame::decode(frame) {
            self.send_error(now, to, Frame::Error { code, dst, src, packet });
        }
    }

    /// A packet of ours for one behind a neighbour, whose session is not in this shard.
    pub(super) fn hop_elsewhere(&mut self, neighbour: Id, relay: &Frame<'_>) {
        match self.home_elsewhere(neighbour) {
            Some(shard) => self.hand_frame(shard, What::Leaving { neighbour }, relay),
            None => self.stats.drop(Drop::NoRoute),
        }
    }

    fn on_handed_leaving(&mut self, now: Time, neighbour: Id, frame: &[u8]) {
        let Some(hop) = self.hop_session(neighbour) else { return self.stats.drop(Drop::NoRoute) };
        if let Ok(frame @ Frame::Relay { .. }) = Frame::decode(frame) {
            self.send_hop(now, hop, &frame);
        }
    }

    pub(super) fn asker(&self, session: SessionId, req: Req) -> Asker {
        Asker { from: Hop { shard: self.config.shard.index, session }, req }
    }

    /// The session of an asker that is one of this shard.
    pub(super) fn asker_here(&self, asker: Asker) -> Option<(SessionId, Req)> {
        let Hop { shard, session } = asker.from;
        (shard == self.config.shard.index).then_some((session, asker.req))
    }

    /// Passes a LOOKUP on to the shard of the id; false if that is this one. If it is lost, its asker asks again.
    pub(super) fn ask_elsewhere(&mut self, session: SessionId, req: Req, wanted: Id) -> bool {
        let Some(shard) = self.home_elsewhere(wanted) else { return false };
        let asker = self.asker(session, req);
        self.hand_to(shard, What::Lookup { asker, wanted }, Vec::new());
        true
    }

    fn on_handed_lookup(&mut self, now: Time, asker: Asker, wanted: Id) {
        let status = match self.registry.get(&wanted).map(|there| there.session) {
            Some(there) => self.presence(now, there, asker),
            None if self.home_elsewhere(wanted).is_some() => return self.stats.drop(Drop::WrongShard),
            None => Some(FoundStatus::OFFLINE),
        };
        if let Some(status) = status {
            self.answer_lookup(asker, status);
        }
    }

    pub(super) fn answer_elsewhere(&mut self, asker: Asker, status: FoundStatus) {
        self.hand_to(asker.from.shard, What::Found { asker, status }, Vec::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{Config, Shard},
        net::Route,
        session::keys::{DeviceKey, NetKey, PeerKey},
    };
    use core::net::SocketAddr;

    const HERE: SocketAddr = SocketAddr::new(core::net::IpAddr::V4(core::net::Ipv4Addr::LOCALHOST), 7);
    const COUNT: u8 = 3;

    fn net(n: u8, index: u8) -> Net {
        let id = Id([n; 16]);
        let key = NetKey::new(&[n; 16]).unwrap();
        let mut config = Config::new(id, key, DeviceKey::from_bytes([n; 32]));
        config.shard = Shard { index, count: COUNT };
        Net::new(config, [n ^ index; 32], Time::ZERO)
    }

    /// The INIT of a net that dials net 1.
    fn init(n: u8) -> Vec<u8> {
        let mut dialer = net(n, 0);
        let key = PeerKey::Net(NetKey::new(&[1; 16]).unwrap());
        dialer.connect(Time::ZERO, Id([1; 16]), &key, Route::Direct(HERE)).unwrap();
        match dialer.poll_output(Time::ZERO) {
            Output::Datagram { bytes, .. } => bytes,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_belongs_to_another_shard_is_handed_over_once() {
        let home = Shard { index: 0, count: COUNT }.of_id(Id([2; 16]));
        let [other, third] = [1, 2].map(|step| (home + step) % COUNT);
        let take = |machine: &mut Net| match machine.poll_output(Time::ZERO) {
            Output::Handover { shard, handed } => (shard, handed),
            output => panic!("{output:?}"),
        };
        let mut machine = net(1, other);
        machine.handle_datagram(Time::ZERO, HERE, &mut init(2));
        machine.handle_datagram(Time::ZERO, HERE, &mut init(2));
        let [first, second] = [(); 2].map(|()| take(&mut machine));
        assert_eq!((first.0, second.0, machine.stats().handed_over), (home, home, 2));

        let mut wrong = net(1, third);
        wrong.handle_handed(Time::ZERO, first.1);
        assert!(matches!(wrong.poll_output(Time::ZERO), Output::Timeout(_)), "it is not handed on");
        assert_eq!((wrong.stats().dropped(Drop::WrongShard), wrong.stats().handed_over), (1, 0));

        let mut right = net(1, home);
        assert!(right.handle_handed(Time::ZERO, second.1).is_empty());
        let Output::Datagram { to, bytes } = right.poll_output(Time::ZERO) else { panic!("no RESP") };
        assert_eq!((to, bytes.len(), right.half_open()), (HERE, 104, 1));
    }

    #[test]
    fn what_finds_no_room_is_counted_and_its_buffer_comes_back() {
        let home = Shard { index: 0, count: COUNT }.of_id(Id([2; 16]));
        let mut machine = net(1, (home + 1) % COUNT);
        machine.handle_datagram(Time::ZERO, HERE, &mut init(2));
        let Output::Handover { handed, .. } = machine.poll_output(Time::ZERO) else { panic!("no hand-over") };
        let spent = machine.handover_failed(handed);
        assert!(spent.is_empty() && spent.capacity() >= 104);
        assert_eq!(machine.stats().dropped(Drop::ShardFull), 1);
    }

    #[test]
    fn hand_overs_that_nobody_takes_are_bounded() {
        let home = Shard { index: 0, count: COUNT }.of_id(Id([2; 16]));
        let mut machine = net(1, (home + 1) % COUNT);
        let (most, init) = (machine.config.limits.outputs, init(2));
        for _ in 0..most + 10 {
            machine.handle_datagram(Time::ZERO, HERE, &mut init.clone());
        }
        assert_eq!(
            (machine.stats().handed_over, machine.stats().dropped(Drop::OutputFull)),
            (most as u64, 10)
        );
    }

    #[test]
    fn a_token_of_a_shard_that_is_not_there_is_an_unknown_token() {
        // Two bits name one of three shards; the fourth was chosen by none of them.
        let mut packet = [0x41; 40];
        packet[1..5].copy_from_slice(&[0xFF; 4]);
        let mut machine = net(1, 0);
        machine.handle_datagram(Time::ZERO, HERE, &mut packet);
        assert_eq!((machine.stats().dropped(Drop::UnknownToken), machine.stats().hints_sent), (1, 1));
        assert_eq!(machine.stats().handed_over, 0);
    }

    #[test]
    fn hints_go_to_every_other_shard_but_not_without_end() {
        let mut packet = [0; ResetHint::LEN];
        let token = crate::wire::packet::Token::new(5).unwrap();
        ResetHint { token, tail: &[9; 8] }.encode(&mut packet).unwrap();
        let mut machine = net(1, 0);
        for _ in 0..100 {
            machine.handle_datagram(Time::ZERO, HERE, &mut packet.clone());
        }
        assert_eq!(machine.stats().handed_over, u64::from(COUNT) - 1);
        assert_eq!(machine.stats().dropped(Drop::OverBudget), 99);
        while let Output::Handover { shard, handed } = machine.poll_output(Time::ZERO) {
            let mut other = net(1, shard);
            other.handle_handed(Time::ZERO, handed);
            assert_eq!((other.stats().dropped(Drop::BadHint), other.stats().handed_over), (1, 0));
        }
    }
}

//! The proof that what is up works: once the network is good again, a fresh request goes through each session that both
//! its ends hold, and must be answered.
use m2m_proto::{
    coap::code::Code,
    event::{RequestId, SessionId},
    net::Path,
    time::Duration,
};

use super::{
    Act, Run,
    plan::{Asking, Length, Way},
};
use crate::{NetIndex, ledger::Fate};

/// Requests of the proof have numbers from here on.
const FIRST: u64 = 1 << 24;
/// A request of the proof has so long.
const LIMIT: Duration = Duration::from_secs(30);
/// The responder's requests come so much later: where the initiator moved it has been heard by then.
const TURN: Duration = Duration::from_secs(5);

/// A request that must be answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    net: NetIndex,
    peer: NetIndex,
    session: SessionId,
    request: RequestId,
}

impl Run<'_> {
    /// Tries each session that must work.
    pub(super) fn prove(&mut self) {
        let start = self.world.now;
        for net in self.nets() {
            for known in self.sessions[net.0].clone() {
                if self.is_clean() && self.must_work(net, known) {
                    let is_initiator =
                        self.world.net(net).info(known.session).is_some_and(|info| info.initiator);
                    let turn = if is_initiator { Duration::ZERO } else { TURN };
                    self.schedule(start + turn, Act::Probe { net, session: known.session });
                }
            }
        }
        if self.agenda.is_empty() {
            return;
        }
        self.run_for(TURN + LIMIT + Duration::from_secs(1));
        for Probe { net, peer, session, request } in core::mem::take(&mut self.probes) {
            let fate = self.ledger.fate(request);
            if self.is_clean() && fate != Some(Fate::Answered) {
                self.violation(format!(
                    "session {session:?} of net {} with {} is of no use: {fate:?}",
                    net.0, peer.0
                ));
            }
        }
    }

    /// True if nothing excuses this session from working: the protocol promises it.
    fn must_work(&mut self, net: NetIndex, known: super::Known) -> bool {
        let peer = known.peer;
        if !self.is_alive(net) || !self.is_alive(peer) {
            return false;
        }
        let Some(info) = self.world.net(net).info(known.session) else { return false };
        if !info.up || !self.is_within_reach(net, known, info.path) {
            return false;
        }
        let both_hold = self.held(net, peer, info.initiator) == self.held(peer, net, !info.initiator);
        let forgotten = self.world.member(peer).born > known.since;
        match info.initiator {
            // It opens a session anew that its peer has forgotten, and the request that finds it out is not lost.
            true => both_hold || forgotten,
            // It has nobody's key: a session that its initiator has forgotten is over.
            false => both_hold && !forgotten,
        }
    }

    /// True if packets of this net reach the peer, or the peer's reach this one, so that it can be found.
    fn is_within_reach(&mut self, net: NetIndex, known: super::Known, path: Path) -> bool {
        let peer = known.peer;
        let has_nat = |world: &mut crate::World, net| world.member(net).nat.is_some();
        match path {
            // Whoever moves is followed. Where a peer is that has moved and been silent nobody knows; nor does a NAT let in
            // one who has moved and whom the peer has not written to there.
            Path::Direct(_) => {
                let peer_moved = self.world.member(peer).moved > known.since;
                let moved = self.world.member(net).moved > known.since;
                !(peer_moved || moved && has_nat(&mut self.world, peer))
            }
            // Both are registered with the host that they prefer by now: one host is enough, if it is the same.
            Path::Through(host) => [net, peer].into_iter().all(|net| {
                let preferred = self.plan.net(net).and_then(|plan| plan.hosts.first());
                preferred.is_some_and(|preferred| crate::ledger::id_of(*preferred) == host)
            }),
        }
    }

    /// How many sessions with another a net holds that it opened, or that the other did.
    fn held(&mut self, net: NetIndex, with: NetIndex, opened: bool) -> usize {
        let machine = self.world.net(net);
        let infos = self.sessions[net.0].iter().filter(|known| known.peer == with);
        let infos = infos.filter_map(|known| machine.info(known.session));
        infos.filter(|info| info.initiator == opened).count()
    }

    pub(super) fn probe(&mut self, net: NetIndex, session: SessionId) {
        let known = self.sessions[net.0].iter().find(|known| known.session == session);
        let Some(peer) = known.map(|known| known.peer) else { return };
        let number = FIRST + self.probes.len() as u64;
        self.probes.push(Probe { net, peer, session, request: RequestId(number) });
        let asking = Asking {
            from: net,
            to: peer,
            method: Code::GET,
            len: Length::Bytes(8),
            confirmable: true,
            repeatable: false,
            deadline: LIMIT,
            opens: false,
            way: Way::Host,
            answer: Length::Bytes(8),
            after: Some(Duration::ZERO),
            cancel: None,
        };
        self.world.count("sessions tried at the end");
        self.ask(number, asking, session);
    }
}

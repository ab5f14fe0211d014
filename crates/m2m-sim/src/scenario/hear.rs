//! What nets tell their users, and what a scenario makes of it.
use std::fmt;

use m2m_proto::{
    event::{Event, IncomingId, SessionId},
    id::Id,
    time::Duration,
};

use super::{Act, Known, Run};
use crate::{NetIndex, ledger::id_of};

impl Run<'_> {
    /// Takes in what a net has told.
    pub(super) fn hear(&mut self, net: NetIndex) {
        if net.0 >= self.sessions.len() {
            return;
        }
        while let Some((now, event)) = self.world.member(net).events.pop_front() {
            self.world.watch.trace.line(now, format_args!("{} tells {}", net.0, Brief(&event)));
            self.take_in(net, event);
        }
    }

    fn take_in(&mut self, net: NetIndex, event: Event) {
        match event {
            Event::Connected { session, peer } => self.came_up(net, session, peer),
            Event::Accepted { session, peer } => self.accepted(net, session, peer),
            Event::ConnectFailed { session, .. } | Event::Closed { session, .. } => self.ended(net, session),
            Event::Request { incoming, peer, message } => {
                if let Some(number) = self.ledger.ran(net, peer, &message) {
                    self.handle(net, incoming, number);
                }
                self.recycle(net, message);
            }
            Event::Response { request, message } => {
                self.ledger.answered(net, request, &message);
                self.recycle(net, message);
            }
            Event::RequestFailed { request, why } => self.ledger.failed(net, request, why),
            Event::Pong { request, .. } | Event::Found { request, .. } => self.ledger.told(net, request),
            Event::ControlDone { request, result } => {
                self.world.count(if result.is_ok() { "controls done" } else { "controls failed" });
                self.ledger.told(net, request);
            }
            Event::Recovered { session, peer, resumed } => {
                self.world.count(if resumed { "sessions resumed" } else { "sessions opened anew" });
                // Its peer knows it as of now, whatever that had forgotten before.
                let now = self.world.now;
                if let Some(known) = self.sessions[net.0].iter_mut().find(|known| known.session == session) {
                    known.since = now;
                }
                self.still_up(net, session, peer);
            }
            Event::Moved { session, peer, .. } => {
                self.world.count("sessions moved");
                self.still_up(net, session, peer);
            }
            Event::HostConnected { .. } | Event::HostRecovered { .. } => {
                self.world.count("registrations told");
            }
            Event::HostDisconnected { host, .. } => {
                self.world.count("hosts lost");
                self.resolve(net, host);
            }
            Event::HostRefused { .. } => self.world.count("registrations refused"),
            _ => {}
        }
    }

    /// A driver asks where its host's name leads to now.
    pub(super) fn resolve(&mut self, net: NetIndex, host: Id) {
        let Some(place) = self.hosts().into_iter().find(|known| id_of(*known) == host) else { return };
        let address = self.world.address(place);
        self.world.command(net, |machine, now| machine.set_host_addresses(now, host, &[address]));
    }

    fn ended(&mut self, net: NetIndex, session: SessionId) {
        let known = &mut self.sessions[net.0];
        match known.iter().position(|known| known.session == session) {
            Some(place) => {
                let Known { peer, .. } = known.remove(place);
                self.ledger.ended(net, peer);
            }
            None => self.violation(format!("net {} is told the end of {session:?}, which it has not", net.0)),
        }
    }

    fn accepted(&mut self, net: NetIndex, session: SessionId, peer: Id) {
        let opener = self.nets().into_iter().find(|other| id_of(*other) == peer && *other != net);
        let since = self.world.now;
        match opener {
            Some(peer) => self.sessions[net.0].push(Known { session, peer, since }),
            None => self.violation(format!("net {} takes a session of {peer:?}, who is nobody", net.0)),
        }
    }

    fn came_up(&mut self, net: NetIndex, session: SessionId, peer: Id) {
        let now = self.world.now;
        if let Some(known) = self.sessions[net.0].iter_mut().find(|known| known.session == session) {
            known.since = now;
        }
        self.still_up(net, session, peer);
    }

    fn still_up(&mut self, net: NetIndex, session: SessionId, peer: Id) {
        let expected = self.sessions[net.0].iter().find(|known| known.session == session);
        if expected.is_none_or(|known| id_of(known.peer) != peer) {
            let found = format!("net {} is connected to {peer:?} in {session:?}, not {expected:?}", net.0);
            self.violation(found);
        }
    }

    /// A handler: answers at once, late, or never.
    fn handle(&mut self, net: NetIndex, incoming: IncomingId, number: u64) {
        match self.asked.get(&number).and_then(|asking| asking.after) {
            None => {}
            Some(Duration::ZERO) => self.answer(net, incoming, number),
            Some(late) => {
                let life = self.world.member(net).lives;
                self.schedule(self.world.now + late, Act::Answer { net, life, incoming, number });
            }
        }
    }

    fn recycle(&mut self, net: NetIndex, buffer: Vec<u8>) {
        if self.is_alive(net) {
            self.world.net(net).recycle(buffer);
        }
    }
}

/// An event without the bytes of its message, made only if it is read.
struct Brief<'a>(&'a Event);

impl fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Event::Request { incoming, peer, message } => {
                write!(f, "Request of {peer:?} in {:?}, {} bytes", incoming.session(), message.len())
            }
            Event::Response { request, message } => {
                write!(f, "Response to {}, {} bytes", request.0, message.len())
            }
            other => write!(f, "{other:?}"),
        }
    }
}

//! The user of the net that the peer talks to.
use m2m_proto::{
    coap::{code::Code, option_set::OptionSet},
    event::{Event, RequestId},
    net::Request,
};
use m2m_sim::World;

use super::{OWN, Play, SECOND, Script, address};

impl Play {
    pub(super) fn command(&mut self, script: &mut Script<'_>) {
        let (what, n) = (script.byte(), script.byte());
        match what % 12 {
            0 => self.request(n, 1, script.byte()),
            // As many as wait at most.
            1 => self.request(n, 40, script.byte()),
            2 => self.ask(n, |net, now, session, id| net.ping(now, session, id)),
            3 => self.ask(n, |net, now, session, id| net.rekey(now, session, id, None)),
            4 => self.ask(n, |net, now, session, id| net.rekey(now, session, id, Some(&[n as u8; 32]))),
            5 => self.ask(n, |net, now, session, id| net.refresh_token(now, session, id)),
            6 => self.ask(n, |net, now, session, id| {
                net.set_remote_key(now, session, id, &World::key(OWN), 0, &[n as u8; 16])
            }),
            7 => self
                .ask(n, |net, now, _, id| net.lookup(now, World::id((n % 6) as u8), id, now + 20 * SECOND)),
            8 => self.respond_to_request(n),
            9 => {
                let Some(session) = self.sessions.get(n % self.sessions.len().max(1)).copied() else {
                    return;
                };
                self.world.command(self.net, |net, now| net.close(now, session));
            }
            10 => self.called(n, n >= 128),
            _ => {
                let addresses = [address(n), address(n / 4)];
                addresses.into_iter().for_each(|address| self.prove(address));
                self.world
                    .command(self.net, |net, now| net.set_host_addresses(now, World::id(OWN), &addresses));
            }
        }
        self.look();
    }

    fn request(&mut self, n: usize, count: usize, len: usize) {
        let Some(session) = self.sessions.get(n % self.sessions.len().max(1)).copied() else { return };
        for _ in 0..count {
            self.next += 1;
            let (id, options, payload) = (self.next, OptionSet::default(), vec![7; len]);
            self.world.command(self.net, |net, now| {
                let request = Request {
                    code: if n.is_multiple_of(2) { Code::POST } else { Code::GET },
                    options: &options,
                    payload: &payload,
                    confirmable: n & 16 == 0,
                    repeatable: n & 32 == 0,
                    deadline: now + 20 * SECOND,
                };
                if net.request(now, session, RequestId(id), &request).is_ok() {
                    self.requests.insert(id);
                }
            });
        }
    }

    fn ask(
        &mut self,
        n: usize,
        ask: impl FnOnce(
            &mut m2m_proto::net::Net,
            m2m_proto::time::Time,
            m2m_proto::event::SessionId,
            RequestId,
        ) -> Result<(), m2m_proto::error::CommandError>,
    ) {
        let Some(session) = self.sessions.get(n % self.sessions.len().max(1)).copied() else { return };
        self.next += 1;
        let id = self.next;
        if self.world.command(self.net, |net, now| ask(net, now, session, RequestId(id))).is_ok() {
            self.questions.insert(id);
        }
    }

    fn respond_to_request(&mut self, n: usize) {
        let Some(at) = n.checked_rem(self.open.len()) else { return };
        let incoming = self.open.swap_remove(at);
        self.world.command(self.net, |net, now| {
            let _ = net.respond(now, incoming, Code::CHANGED, &OptionSet::default(), &[1; 100]);
        });
    }

    pub(super) fn listen(&mut self) {
        while let Some((_, event)) = self.world.member(self.net).events.pop_front() {
            match event {
                Event::Request { incoming, .. } => self.open.push(incoming),
                Event::Response { request, .. } | Event::RequestFailed { request, .. } => {
                    assert!(self.requests.remove(&request.0), "request {} ended again", request.0);
                }
                Event::Pong { request, .. }
                | Event::Found { request, .. }
                | Event::ControlDone { request, .. } => {
                    assert!(self.questions.remove(&request.0), "question {} was answered again", request.0);
                }
                Event::Accepted { session, .. } => self.sessions.push(session),
                Event::Closed { session, .. } | Event::ConnectFailed { session, .. } => {
                    self.sessions.retain(|known| *known != session);
                }
                _ => {}
            }
        }
    }
}

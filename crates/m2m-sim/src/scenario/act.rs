//! What a scenario does: each doing of its plan, and what follows from it in time.
use m2m_proto::{
    error::CommandError,
    event::{IncomingId, RequestId, SessionId},
    id::Id,
    net::{Request, Route},
    session::keys::PeerKey,
    time::Duration,
};

use super::{
    Act, Known, Run, attacker,
    plan::{Asking, Doing, Length, Meddling, Planned, Prank, Way},
};
use crate::{
    NetIndex, World,
    ledger::{Sent, filler, id_of, number_of, options_for},
    world::{Meddle, Meddler},
};

/// Bytes of a message beside its payload: header, a token of 8, the number's option, the marker (RFC 7252 section 3).
const AROUND_PAYLOAD: usize = 4 + 8 + 10 + 1;
/// A handler whose net gets no time tries again after this.
const AGAIN: Duration = Duration::from_millis(500);
/// Longest time that a ping or a look-up is waited for.
const QUESTION: Duration = Duration::from_secs(20);

impl Run<'_> {
    pub(super) fn perform(&mut self, act: Act) {
        match act {
            Act::Do(planned) => self.carry_out(planned),
            Act::Answer { net, life, incoming, number } => {
                if self.world.member(net).lives != life {
                } else if self.world.is_awake(net) {
                    self.answer(net, incoming, number);
                } else if self.is_alive(net) {
                    self.schedule(self.world.now + AGAIN, act);
                }
            }
            Act::Cancel { net, life, session, request } => {
                if self.world.member(net).lives == life && self.world.is_awake(net) {
                    self.world.command(net, |machine, now| machine.cancel(now, session, request));
                    self.ledger.cancelled(request);
                    self.hear(net);
                }
            }
            Act::Resume { net, life, datagrams_first } => {
                if self.world.member(net).lives == life {
                    self.line(net, format_args!("goes on"));
                    self.world.resume(net, datagrams_first);
                    self.hear(net);
                }
            }
            Act::Mend { from, to, one_way } => {
                let cuts = if one_way { &mut self.world.cut_one_way } else { &mut self.world.cut };
                if let Some(place) = cuts.iter().position(|cut| *cut == (from, to)) {
                    cuts.remove(place);
                }
            }
            Act::Probe { net, session } => self.probe(net, session),
        }
    }

    fn carry_out(&mut self, planned: Planned) {
        let Planned { number, doing, .. } = planned;
        match doing {
            Doing::Request(asking) => self.request(u64::from(number), asking),
            Doing::Attack(trick) => {
                let (mut dice, nets) = (self.dice(number), self.nets());
                self.world.count("attacks");
                attacker::attack(&mut self.world, &mut dice, trick, &nets);
            }
            Doing::Meddle(meddling) => self.meddle(number, meddling),
            Doing::Cut { from, to, one_way, time } => {
                self.world.count("cuts");
                let cuts = if one_way { &mut self.world.cut_one_way } else { &mut self.world.cut };
                cuts.push((from, to));
                self.schedule(self.world.now + time, Act::Mend { from, to, one_way });
            }
            Doing::Start { net, keeps_disk } => self.start(net, keeps_disk),
            Doing::Disk { net, full } => {
                self.world.count("disks full or free");
                self.world.member(net).disk_full = full;
            }
            Doing::Store { net, delay } => self.world.member(net).store_delay = delay,
            Doing::Rebind { net, moves } => self.rebind(net, moves),
            Doing::Clock { net, ahead_ms } => {
                self.world.count("clock jumps");
                self.line(net, format_args!("has its clock set {ahead_ms} ms ahead"));
                self.world.set_clock(net, ahead_ms);
                self.hear(net);
            }
            Doing::Kill { net } => self.kill(net),
            Doing::Suspend { net, time, clock_stops, datagrams_first } => {
                if self.world.is_awake(net) {
                    self.world.count("suspensions");
                    self.line(net, format_args!("gets no time for {time:?}"));
                    self.world.suspend(net, clock_stops);
                    let life = self.world.member(net).lives;
                    self.schedule(self.world.now + time, Act::Resume { net, life, datagrams_first });
                }
            }
            Doing::Close { net, .. }
            | Doing::Ping { net, .. }
            | Doing::LookUp { net, .. }
            | Doing::Rekey { net, .. }
            | Doing::Refresh { net, .. }
            | Doing::NetKey { net, .. } => {
                if self.world.is_awake(net) {
                    self.command(u64::from(number), doing);
                }
            }
        }
    }

    /// What a net's user says.
    fn command(&mut self, number: u64, doing: Doing) {
        match doing {
            Doing::Close { net, which } => {
                if let Some(session) = self.which(net, which) {
                    self.world.count("sessions closed");
                    self.close(net, session);
                }
            }
            Doing::Ping { net, which } => {
                if let Some(session) = self.which(net, which) {
                    let id = RequestId(number);
                    let taken = self.world.command(net, |machine, now| machine.ping(now, session, id));
                    self.asks(net, id, taken);
                }
            }
            Doing::LookUp { net, about } => {
                let (id, deadline) = (RequestId(number), self.world.local_now(net) + QUESTION);
                let about = id_of(about);
                let taken = self.world.command(net, |machine, now| machine.lookup(now, about, id, deadline));
                self.asks(net, id, taken);
            }
            Doing::Rekey { net, which, secret } => self.rekey(number, net, which, secret),
            Doing::Refresh { net, which } => {
                if let Some(session) = self.which(net, which) {
                    self.world.count("tokens refreshed");
                    let id = RequestId(number);
                    let taken =
                        self.world.command(net, |machine, now| machine.refresh_token(now, session, id));
                    self.asks(net, id, taken);
                }
            }
            Doing::NetKey { net, which } => self.change_net_key(number, net, which),
            _ => {}
        }
    }

    fn rekey(&mut self, number: u64, net: NetIndex, which: u32, secret: bool) {
        let Some(session) = self.which(net, which) else { return };
        self.world.count("rekeys asked for");
        let (id, secret) = (RequestId(number), secret.then(|| filler(number, 16)));
        let taken =
            self.world.command(net, |machine, now| machine.rekey(now, session, id, secret.as_deref()));
        self.asks(net, id, taken);
    }

    /// Gives the peer of a session another net key, once.
    fn change_net_key(&mut self, number: u64, net: NetIndex, which: u32) {
        let known = &self.sessions[net.0];
        let known = known.get(which as usize % known.len().max(1)).copied();
        let Some(Known { session, peer, .. }) = known else { return };
        // A second change would end the grace of the first key, which those who are there opened sessions with.
        if !self.given_keys.insert(peer) {
            return;
        }
        self.world.count("net keys changed");
        let (id, current) = (RequestId(number), World::key(number_of(peer)));
        let new = filler(number, 32);
        let taken = self
            .world
            .command(net, |machine, now| machine.set_remote_key(now, session, id, &current, 0, &new));
        if taken == Err(CommandError::NotUp) {
            // Such a command waits for nothing.
            self.given_keys.remove(&peer);
            return;
        }
        self.asks(net, id, taken);
    }

    /// One of a net's sessions.
    fn which(&self, net: NetIndex, which: u32) -> Option<SessionId> {
        let known = &self.sessions[net.0];
        Some(known.get(which as usize % known.len().max(1))?.session)
    }

    /// A question was taken, or not.
    fn asks(&mut self, net: NetIndex, request: RequestId, taken: Result<(), CommandError>) {
        match taken {
            Ok(()) => self.ledger.asked(net, request),
            // No host to ask, or as many questions under way as may be.
            Err(CommandError::NoHost | CommandError::QueueFull) => {}
            Err(why) => self.violation(format!("net {} can't ask: {why}", net.0)),
        }
        self.hear(net);
    }

    fn meddle(&mut self, number: u32, meddling: Meddling) {
        self.world.count("rules of the attacker");
        let what = match meddling.fate {
            Prank::Drop => Meddle::Drop,
            Prank::Delay(more) => Meddle::Delay(more),
            Prank::Divert => Meddle::Divert(attacker::stranger(&mut self.dice(number))),
        };
        let Meddling { from, to, prey, every, time, .. } = meddling;
        let until = self.world.now + time;
        self.world.meddlers.push(Meddler { until, from, to, prey, every, what, seen: 0 });
    }

    fn rebind(&mut self, net: NetIndex, moves: bool) {
        if moves {
            self.world.count("moves");
            self.world.relocate(net);
        } else {
            self.world.count("rebindings");
            self.world.rebind(net);
        }
        let address = self.world.address(net);
        self.line(net, format_args!("is at {address} now"));
    }

    fn kill(&mut self, net: NetIndex) {
        if !self.is_alive(net) {
            return;
        }
        self.world.count("deaths");
        self.line(net, format_args!("dies"));
        self.world.kill(net);
        self.sessions[net.0].clear();
        self.ledger.died(net);
    }

    pub(super) fn start(&mut self, net: NetIndex, keeps_disk: bool) {
        let Some(plan) = self.plan.net(net) else { return };
        if self.is_alive(net) {
            return;
        }
        self.world.count(if keeps_disk { "restarts with the disk" } else { "restarts without the disk" });
        self.line(net, format_args!("starts"));
        if !keeps_disk {
            self.world.member(net).epoch = 0;
        }
        self.world.start(net, Self::config(plan, net));
        self.join_hosts(net);
        self.hear(net);
    }

    pub(super) fn close(&mut self, net: NetIndex, session: SessionId) {
        if self.is_alive(net) {
            self.line(net, format_args!("closes {session:?}"));
            self.world.command(net, |machine, now| machine.close(now, session));
            self.hear(net);
        }
    }

    fn request(&mut self, number: u64, asking: Asking) {
        let Asking { from, to, .. } = asking;
        if !self.world.is_awake(from) {
            return;
        }
        let there =
            self.sessions[from.0].iter().rev().find(|known| known.peer == to).map(|known| known.session);
        let there = there.filter(|_| !asking.opens);
        if let Some(session) = there.or_else(|| self.connect(from, to, asking.way)) {
            self.ask(number, asking, session);
        }
    }

    /// Sends a request in this session.
    pub(super) fn ask(&mut self, number: u64, asking: Asking, session: SessionId) {
        let Asking { from, to, method, confirmable, repeatable, .. } = asking;
        let Some(max) = self.world.net(from).info(session).map(|info| info.max_message) else {
            return self.violation(format!("net {} has lost {session:?} without a word", from.0));
        };
        let most = max - AROUND_PAYLOAD;
        let len = bytes(asking.len, most);
        let id = RequestId(number);
        let (options, payload) = (options_for(number), filler(number, len));
        let deadline = self.world.local_now(from) + asking.deadline;
        self.line(
            from,
            format_args!("asks {} in {session:?}: request {number}, {method}, {len} bytes", to.0),
        );
        let request =
            Request { code: method, options: &options, payload: &payload, confirmable, repeatable, deadline };
        let taken = self.world.command(from, |machine, now| machine.request(now, session, id, &request));
        match taken {
            Ok(()) if len <= most => {
                self.asked.insert(number, asking);
                self.ledger.sent(id, Sent { from, to, method, confirmable, repeatable, len });
            }
            Err(CommandError::TooLarge { .. }) if len > most => {}
            taken => self.violation(format!("net {} asks with {len} of {most} bytes: {taken:?}", from.0)),
        }
        if let Some(after) = asking.cancel {
            let life = self.world.member(from).lives;
            self.schedule(self.world.now + after, Act::Cancel { net: from, life, session, request: id });
        }
        self.hear(from);
    }

    fn connect(&mut self, from: NetIndex, to: NetIndex, way: Way) -> Option<SessionId> {
        // Whoever changed it has told all others.
        let kept = self.world.member(to).kept_key.clone();
        let key = PeerKey::Net(kept.unwrap_or_else(|| World::key(number_of(to))));
        let address = self.world.address(to);
        let (route, peer) = match way {
            Way::Host => (Route::Host, id_of(to)),
            Way::Direct => (Route::Direct(address), id_of(to)),
            // Whoever is there says its id.
            Way::Anyone => (Route::Direct(address), Id::ANY),
        };
        let opened = self.world.command(from, |machine, now| machine.connect(now, peer, &key, route));
        match opened {
            Ok(session) => {
                self.line(from, format_args!("opens {session:?} to {}, {route:?}", to.0));
                self.world.count("sessions opened");
                let since = self.world.now;
                self.sessions[from.0].push(Known { session, peer: to, since });
                self.hear(from);
                Some(session)
            }
            // A host has no host to ask: it reaches its guests while they are registered.
            Err(CommandError::NoHost) if self.plan.net(from).is_some_and(|plan| plan.hosts.is_empty()) => {
                None
            }
            Err(why) => {
                self.violation(format!("net {} can't open a session: {why}", from.0));
                None
            }
        }
    }

    /// Answers a request.
    pub(super) fn answer(&mut self, net: NetIndex, incoming: IncomingId, number: u64) {
        let Some(info) = self.world.net(net).info(incoming.session()) else { return };
        let Some(asking) = self.asked.get(&number) else { return };
        let most = info.max_message - AROUND_PAYLOAD;
        let len = bytes(asking.answer, most).min(most);
        let payload = self.ledger.answer(number, len);
        self.line(net, format_args!("answers request {number} with {len} bytes"));
        let (options, code) = (options_for(number), m2m_proto::coap::code::Code::CHANGED);
        let taken =
            self.world.command(net, |machine, now| machine.respond(now, incoming, code, &options, &payload));
        if let Err(why) = taken
            && why != CommandError::Stale
        {
            self.violation(format!("net {} can't answer with {len} of {most} bytes: {why}", net.0));
        }
        self.hear(net);
    }
}

fn bytes(length: Length, most: usize) -> usize {
    match length {
        Length::Bytes(n) => (n as usize).min(most),
        Length::Most => most,
        Length::TooLong => most + 1,
    }
}

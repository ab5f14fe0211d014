//! One run from one seed: chaos with requests, then a quiet phase in which everything must settle, then the end, at which
//! nothing may be left over.
//!
//! ```text
//!  0 ─── chaos: faults, requests, deaths, attacks ─── quiet: all are registered again, ─── sessions closed: ─── end
//!        up to 90 s                                   all requests end; 70 s               only hosts' stay; 420 s
//! ```
use std::collections::BTreeMap;

use m2m_proto::{
    coap::code::Code,
    config::Config,
    error::CommandError,
    event::{Event, IncomingId, RequestId, SessionId},
    net::{Request, Route},
    session::keys::PeerKey,
    time::{Duration, Time},
};
use rand_chacha::{ChaCha12Rng, rand_core::SeedableRng};

use crate::{
    Faults, NetIndex, World,
    ledger::{Ledger, Sent, Totals, id_of, number_of, options_for},
    trace::Trace,
};

mod attacker;
mod plan;

use plan::{Dice, Doing, Plan};

/// Within so much time after the network became good every device is registered again, and every request has ended.
const SETTLED: Duration = Duration::from_secs(60);
/// After so much more time nothing is left of a peer that died: 3.5 times the longest that a ping may be awaited here.
const FORGOTTEN: Duration = Duration::from_secs(420);
/// Longest deadline of a request; shorter than [`SETTLED`].
const LONGEST_DEADLINE_MS: u64 = 55_000;
/// Bytes of a message beside its payload: header, a token of 8, the number's option, the marker (RFC 7252 section 3).
const AROUND_PAYLOAD: usize = 4 + 8 + 10 + 1;
/// Sets a scenario's randomness apart from its world's.
const DICE_SALT: u64 = 0x6D32_6D2D_7369_6D21;

/// What one run came to.
#[derive(Debug)]
pub struct Report {
    /// What must not be; empty if all is well.
    pub violations: Vec<String>,
    /// What happened.
    pub totals: Totals,
    /// Datagrams that nets sent.
    pub datagrams: u64,
    /// The same for the same seed.
    pub hash: u64,
    /// The last lines, if they were asked for.
    pub lines: Vec<String>,
}

/// Runs a seed. `keeps_lines` makes it slower and changes nothing else.
pub fn run(seed: u64, keeps_lines: bool) -> Report {
    let mut dice = Dice(ChaCha12Rng::seed_from_u64(seed ^ DICE_SALT));
    let plan = Plan::throw(&mut dice);
    let mut run = Run::new(seed, plan, dice);
    if keeps_lines {
        run.world.watch.trace.keep_lines();
    }
    run.begin();
    run.chaos();
    run.settle();
    run.leave();
    run.report()
}

/// A session that a net knows of.
#[derive(Clone, Copy, Debug)]
struct Known {
    session: SessionId,
    peer: NetIndex,
}

/// What the scenario does on its own time.
#[derive(Clone, Copy, Debug)]
enum Act {
    Do(Doing),
    /// A handler is done; its net may have died since.
    Answer {
        net: NetIndex,
        life: u32,
        incoming: IncomingId,
        number: u64,
    },
    Cancel {
        net: NetIndex,
        life: u32,
        session: SessionId,
        request: RequestId,
    },
}

struct Run {
    world: World,
    ledger: Ledger,
    plan: Plan,
    dice: Dice,
    agenda: BTreeMap<(Time, u64), Act>,
    next_act: u64,
    next_request: u64,
    /// By net.
    sessions: Vec<Vec<Known>>,
}

impl Run {
    fn new(seed: u64, plan: Plan, dice: Dice) -> Run {
        Run {
            world: World::new(seed),
            ledger: Ledger::default(),
            sessions: vec![Vec::new(); plan.suites.len()],
            plan,
            dice,
            agenda: BTreeMap::new(),
            next_act: 0,
            next_request: 0,
        }
    }

    fn nets(&self) -> impl Iterator<Item = NetIndex> + use<> {
        (0..self.plan.suites.len()).map(NetIndex)
    }

    fn host(&self) -> Option<NetIndex> {
        self.plan.has_host.then_some(NetIndex(0))
    }

    fn is_alive(&mut self, net: NetIndex) -> bool {
        self.world.member(net).net.is_some()
    }

    fn config(&self, net: NetIndex) -> Config {
        let mut config = World::config(number_of(net));
        config.suites.clone_from(&self.plan.suites[net.0]);
        config.registry = Some(net) == self.host();
        config.relay = config.registry;
        config
    }

    /// Everybody starts.
    fn begin(&mut self) {
        self.world.faults = self.plan.faults;
        if self.plan.doings.iter().any(|(_, doing)| matches!(doing, Doing::Attack)) {
            self.world.overheard = Some(std::collections::VecDeque::new());
        }
        for net in self.nets() {
            let config = self.config(net);
            self.world.add(config);
            self.join_host(net);
        }
        for (at, doing) in core::mem::take(&mut self.plan.doings) {
            self.schedule(self.world.now + at, Act::Do(doing));
        }
    }

    fn join_host(&mut self, net: NetIndex) {
        if let Some(host) = self.host().filter(|host| *host != net) {
            self.world.join(net, host, number_of(host));
        }
    }

    fn schedule(&mut self, at: Time, act: Act) {
        self.next_act += 1;
        self.agenda.insert((at, self.next_act), act);
    }

    /// Lets time pass; stops early when something must not be.
    fn run_until(&mut self, end: Time) {
        while self.is_clean() {
            let due = self.agenda.first_key_value().map_or(Time::NEVER, |((at, _), _)| *at);
            if let Some(net) = self.world.step(due.min(end)) {
                self.hear(net);
                continue;
            }
            if due > end {
                return;
            }
            if let Some((_, act)) = self.agenda.pop_first() {
                self.perform(act);
            }
        }
    }

    fn is_clean(&self) -> bool {
        self.ledger.violations.is_empty() && self.world.watch.violations.is_empty()
    }

    fn chaos(&mut self) {
        self.run_until(self.world.now + self.plan.chaos);
    }

    /// The network becomes good; within a minute all must be well.
    fn settle(&mut self) {
        self.world.faults = Faults { delay: self.plan.faults.delay, ..Faults::default() };
        for net in self.nets() {
            self.world.member(net).disk_full = false;
        }
        if let Some(host) = self.host()
            && !self.is_alive(host)
        {
            self.start(host, true);
        }
        self.run_until(self.world.now + SETTLED);
        let Some(host) = self.host() else { return };
        let guests: Vec<NetIndex> = self.nets().filter(|net| *net != host && self.is_alive(*net)).collect();
        for guest in guests {
            if self.is_clean() && !self.world.net(guest).is_registered() {
                self.violation(format!(
                    "net {} is not registered {SETTLED:?} after all was well again",
                    guest.0
                ));
            }
        }
    }

    /// Everybody closes what it opened; what is left must be what is alive.
    fn leave(&mut self) {
        self.run_until(self.world.now + Duration::from_secs(1));
        for net in self.nets().take_while(|_| self.is_clean()).collect::<Vec<_>>() {
            for known in self.sessions[net.0].clone() {
                self.close(net, known.session);
            }
        }
        self.run_until(self.world.now + FORGOTTEN);
        if !self.is_clean() {
            return;
        }
        let living: Vec<NetIndex> = self.nets().filter(|net| self.is_alive(*net)).collect();
        for net in &living {
            let expected = match self.host() {
                None => 0,
                Some(host) if host == *net => living.len() - 1,
                Some(_) => 1,
            };
            let (sessions, known) = (self.world.net(*net).sessions(), self.sessions[net.0].len());
            // A host's user is told of the sessions that its guests register through, a guest's is not.
            let told = if Some(*net) == self.host() { expected } else { 0 };
            if sessions != expected || known != told {
                self.violation(format!(
                    "net {} has {sessions} sessions at the end, its user knows {known}; not {expected} and {told}",
                    net.0
                ));
            }
        }
        if let Some(host) = self.host() {
            let registered = self.world.net(host).registrations();
            if registered != living.len() - 1 {
                self.violation(format!(
                    "{registered} registrations at the end, of {} nets",
                    living.len() - 1
                ));
            }
        }
        self.ledger.finish();
    }

    fn report(self) -> Report {
        let Run { world, ledger, .. } = self;
        let trace: &Trace = &world.watch.trace;
        let (hash, lines) = (trace.hash(), trace.lines());
        let mut violations = world.watch.violations;
        violations.extend(ledger.violations.iter().cloned());
        Report { violations, totals: ledger.totals(), datagrams: world.watch.datagrams, hash, lines }
    }

    fn violation(&mut self, words: String) {
        let now = self.world.now;
        self.world.watch.violation(now, words);
    }

    fn perform(&mut self, act: Act) {
        match act {
            Act::Do(doing) => self.carry_out(doing),
            Act::Answer { net, life, incoming, number } => {
                if self.world.member(net).lives == life && self.is_alive(net) {
                    self.answer(net, incoming, number);
                }
            }
            Act::Cancel { net, life, session, request } => {
                if self.world.member(net).lives == life && self.is_alive(net) {
                    self.world.command(net, |machine, now| machine.cancel(now, session, request));
                    self.ledger.cancelled(request);
                    self.hear(net);
                }
            }
        }
    }

    fn carry_out(&mut self, doing: Doing) {
        match doing {
            Doing::Request { from, to } => self.request(from, to),
            Doing::Close(net) => {
                let known = self.sessions[net.0].clone();
                if !known.is_empty() {
                    let session = self.dice.pick(&known).session;
                    self.close(net, session);
                }
            }
            Doing::Question(net) => self.question(net),
            Doing::Kill(net) => {
                self.line(net, format_args!("dies"));
                self.world.kill(net);
                self.sessions[net.0].clear();
                self.ledger.died(net);
            }
            Doing::Start { net, keeps_disk } => self.start(net, keeps_disk),
            Doing::Disk { net, full } => self.world.member(net).disk_full = full,
            Doing::Attack => {
                let nets = self.sessions.len();
                attacker::attack(&mut self.world, &mut self.dice, nets);
            }
        }
    }

    fn start(&mut self, net: NetIndex, keeps_disk: bool) {
        if self.is_alive(net) {
            return;
        }
        self.line(net, format_args!("starts"));
        if !keeps_disk {
            self.world.member(net).epoch = 0;
        }
        let config = self.config(net);
        self.world.start(net, config);
        self.join_host(net);
        self.hear(net);
    }

    fn close(&mut self, net: NetIndex, session: SessionId) {
        if self.is_alive(net) {
            self.line(net, format_args!("closes {session:?}"));
            self.world.command(net, |machine, now| machine.close(now, session));
            self.hear(net);
        }
    }

    fn question(&mut self, net: NetIndex) {
        if !self.is_alive(net) {
            return;
        }
        let request = self.new_request();
        let deadline = self.world.now + Duration::from_secs(self.dice.between(1, 30));
        let about = id_of(*self.dice.pick(&self.nets().collect::<Vec<_>>()));
        let session = self.sessions[net.0].first().map(|known| known.session);
        let taken = self.world.command(net, |machine, now| match session {
            Some(session) => machine.ping(now, session, request),
            None => machine.lookup(now, about, request, deadline),
        });
        match taken {
            Ok(()) => self.ledger.asked(net, request),
            Err(CommandError::NoHost) => {}
            Err(why) => self.violation(format!("net {} can't ask: {why}", net.0)),
        }
        self.hear(net);
    }

    fn new_request(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }

    fn request(&mut self, from: NetIndex, to: NetIndex) {
        if !self.is_alive(from) {
            return;
        }
        let there =
            self.sessions[from.0].iter().rev().find(|known| known.peer == to).map(|known| known.session);
        let again = self.dice.percent(85);
        let Some(session) = there.filter(|_| again).or_else(|| self.connect(from, to)) else { return };
        let Some(max) = self.world.net(from).info(session).map(|info| info.max_message) else {
            return self.violation(format!("net {} has lost {session:?} without a word", from.0));
        };
        let most = max - AROUND_PAYLOAD;
        let len = match self.dice.between(0, 9) {
            0 => 0,
            1 => most,
            2 => most + 1,
            3..=4 => self.dice.between(0, most as u64) as usize,
            _ => self.dice.between(0, 64) as usize,
        };
        let id = self.new_request();
        let (options, payload) = (options_for(id.0), crate::ledger::filler(id.0, len));
        let confirmable = !self.dice.percent(20);
        let deadline = self.world.now + Duration::from_millis(self.dice.between(500, LONGEST_DEADLINE_MS));
        self.line(from, format_args!("asks {} in {session:?}: request {}, {len} bytes", to.0, id.0));
        let taken = self.world.command(from, |machine, now| {
            let request = Request {
                code: Code::POST,
                options: &options,
                payload: &payload,
                confirmable,
                repeatable: false,
                deadline,
            };
            machine.request(now, session, id, &request)
        });
        match taken {
            Ok(()) if len <= most => self.ledger.sent(id, Sent { from, to, len }),
            Err(CommandError::TooLarge { .. }) if len > most => {}
            taken => self.violation(format!("net {} asks with {len} of {most} bytes: {taken:?}", from.0)),
        }
        if self.dice.percent(3) {
            let at = self.world.now + self.dice.within(Duration::from_secs(3));
            let life = self.world.member(from).lives;
            self.schedule(at, Act::Cancel { net: from, life, session, request: id });
        }
        self.hear(from);
    }

    fn connect(&mut self, from: NetIndex, to: NetIndex) -> Option<SessionId> {
        let key = PeerKey::Net(World::key(number_of(to)));
        let direct = self.host().is_none() || self.dice.percent(15);
        let route = if direct { Route::Direct(self.world.address(to)) } else { Route::Host };
        // By its address alone, sometimes: whoever is there says its id.
        let peer = if direct && self.dice.percent(20) { m2m_proto::id::Id::ANY } else { id_of(to) };
        let opened = self.world.command(from, |machine, now| machine.connect(now, peer, &key, route));
        match opened {
            Ok(session) => {
                self.line(from, format_args!("opens {session:?} to {}, {route:?}", to.0));
                self.sessions[from.0].push(Known { session, peer: to });
                self.hear(from);
                Some(session)
            }
            // A host has no host to ask: it reaches its guests while they are registered.
            Err(CommandError::NoHost) if Some(from) == self.host() => None,
            Err(why) => {
                self.violation(format!("net {} can't open a session: {why}", from.0));
                None
            }
        }
    }

    /// Answers a request, as large as may be, or less.
    fn answer(&mut self, net: NetIndex, incoming: IncomingId, number: u64) {
        let Some(info) = self.world.net(net).info(incoming.session()) else { return };
        let most = (info.max_message - AROUND_PAYLOAD) as u64;
        let len = if self.dice.percent(10) { most } else { self.dice.between(0, most.min(80)) };
        let payload = self.ledger.answer(number, len as usize);
        self.line(net, format_args!("answers request {number} with {len} bytes"));
        let options = options_for(number);
        let taken = self
            .world
            .command(net, |machine, now| machine.respond(now, incoming, Code::CHANGED, &options, &payload));
        if let Err(why) = taken
            && why != CommandError::Stale
        {
            self.violation(format!("net {} can't answer with {len} of {most} bytes: {why}", net.0));
        }
        self.hear(net);
    }

    /// Takes in what a net has told.
    fn hear(&mut self, net: NetIndex) {
        if net.0 >= self.sessions.len() {
            return;
        }
        while let Some((now, event)) = self.world.member(net).events.pop_front() {
            self.world.watch.trace.line(now, format_args!("{} tells {}", net.0, brief(&event)));
            self.take_in(net, event);
        }
    }

    fn take_in(&mut self, net: NetIndex, event: Event) {
        match event {
            Event::Connected { session, peer } => self.came_up(net, session, peer),
            Event::Accepted { session, peer } => {
                let opener = self.nets().find(|other| id_of(*other) == peer && *other != net);
                match opener {
                    Some(peer) => self.sessions[net.0].push(Known { session, peer }),
                    None => {
                        self.violation(format!("net {} takes a session of {peer:?}, who is nobody", net.0));
                    }
                }
            }
            Event::ConnectFailed { session, .. } | Event::Closed { session, .. } => {
                let before = self.sessions[net.0].len();
                self.sessions[net.0].retain(|known| known.session != session);
                if self.sessions[net.0].len() != before - usize::from(before > 0) {
                    self.violation(format!("net {} is told the end of {session:?}, which it has not", net.0));
                }
            }
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
            _ => {}
        }
    }

    fn came_up(&mut self, net: NetIndex, session: SessionId, peer: m2m_proto::id::Id) {
        let expected = self.sessions[net.0].iter().find(|known| known.session == session);
        if expected.is_none_or(|known| id_of(known.peer) != peer) {
            self.violation(format!(
                "net {} is connected to {peer:?} in {session:?}, not {expected:?}",
                net.0
            ));
        }
    }

    /// A handler: answers at once, late, or never.
    fn handle(&mut self, net: NetIndex, incoming: IncomingId, number: u64) {
        let late = match self.dice.between(0, 9) {
            0 => return,
            1..=3 => self.dice.within(Duration::from_secs(8)),
            4 => self.dice.within(Duration::from_millis(100)),
            _ => return self.answer(net, incoming, number),
        };
        let life = self.world.member(net).lives;
        let at = self.world.now + late;
        self.schedule(at, Act::Answer { net, life, incoming, number });
    }

    fn recycle(&mut self, net: NetIndex, buffer: Vec<u8>) {
        if self.is_alive(net) {
            self.world.net(net).recycle(buffer);
        }
    }

    fn line(&mut self, net: NetIndex, words: std::fmt::Arguments<'_>) {
        let now = self.world.now;
        self.world.watch.trace.line(now, format_args!("{} {words}", net.0));
    }
}

/// An event without the bytes of its message.
fn brief(event: &Event) -> String {
    match event {
        Event::Request { incoming, peer, message } => {
            format!("Request of {peer:?} in {:?}, {} bytes", incoming.session(), message.len())
        }
        Event::Response { request, message } => format!("Response to {}, {} bytes", request.0, message.len()),
        other => format!("{other:?}"),
    }
}

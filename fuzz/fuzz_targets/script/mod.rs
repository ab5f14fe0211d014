//! Bytes as a script for whole nets on the simulated network: what the targets `net` and `handshake` run, and what the
//! ordinary tests replay from the corpora.
use std::collections::BTreeMap;

use m2m_proto::{
    coap::{code::Code, message::Message, option_set::OptionSet},
    config::Rate,
    event::{Event, IncomingId, RequestId, SessionId},
    net::{Request, Route},
    session::keys::PeerKey,
    time::Duration,
};
use m2m_sim::{NetIndex, World};

/// More steps than this within one stretch of time mean that the time no longer passes.
const MAX_STEPS: usize = 50_000;
/// Datagrams that can be replayed.
const MAX_TAP: usize = 512;
const SECOND: Duration = Duration::from_secs(1);

/// Reads a script; zeros when it is over.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> usize {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        usize::from(*first)
    }
}

/// What became of a request.
#[derive(Default)]
struct Fate {
    ran: u32,
    ended: u32,
    /// Its net was killed: nobody is told of its end.
    orphaned: bool,
}

struct Play {
    world: World,
    /// A host and two guests, numbers 1 to 3.
    nets: [NetIndex; 3],
    sessions: Vec<(usize, SessionId)>,
    open: Vec<(usize, IncomingId)>,
    requests: BTreeMap<u64, (usize, Fate)>,
}

fn config(n: usize) -> m2m_proto::config::Config {
    let mut config = World::config(n as u8 + 1);
    (config.registry, config.relay) = (n == 0, n == 0);
    config.limits.sessions = 24;
    config.limits.sessions_per_peer = 8;
    config.limits.half_open = 12;
    config.limits.half_open_per_peer = 4;
    config.limits.dh_rate = Rate::new(20, 4);
    config
}

/// A host, two nets registered with it, and whatever the script does to them. Panics when a request runs twice, ends
/// twice or never, when a table outgrows its cap, or when time stops.
pub(crate) fn net(bytes: &[u8]) {
    let mut world = World::new(7);
    world.tap = Some(Vec::new());
    let nets = [0, 1, 2].map(|n| world.add(config(n)));
    let mut play = Play { world, nets, sessions: Vec::new(), open: Vec::new(), requests: BTreeMap::new() };
    for n in [1, 2] {
        play.world.join(nets[n], nets[0], 1);
    }
    play.run(SECOND);
    let mut script = Script(bytes.get(..bytes.len().min(600)).unwrap_or_default());
    while !script.0.is_empty() {
        play.act(&mut script);
        play.run(Duration::from_millis(10));
    }
    play.finish();
}

impl Play {
    fn act(&mut self, script: &mut Script<'_>) {
        let action = script.byte() % 20;
        let n = script.byte();
        match action {
            0 => self.run(Duration::from_millis(4 * n as u64)),
            1 => self.run(SECOND * n as u32),
            2 | 3 => self.post(n, script.byte()),
            4 => self.answer(n),
            5 => self.world.faults.loss = (n * 4) as u32,
            6 => self.world.faults.duplicate = (n * 4) as u32,
            7 => self.world.faults.corrupt = (n * 4) as u32,
            8 => self.world.faults.jitter = Duration::from_millis(n as u64),
            9 => self.replay(n, script.byte(), 0, 0),
            10 => {
                let (back, at, flip) = (script.byte(), script.byte(), script.byte());
                self.replay(n, back, at, flip);
            }
            11 | 12 => self.connect(n),
            13 => self.with_session(n, |net, now, session| net.close(now, session)),
            14 => self.with_session(n, |net, now, session| {
                let _ = net.ping(now, session, RequestId(1 << 40));
            }),
            15 => self.restart(n),
            16 => self.cut(n),
            17 => self.lookup(n),
            18 => self.inject(n, script),
            _ => self.with_session(n, |net, now, _| net.handle_timeout(now)),
        }
    }

    fn run(&mut self, time: Duration) {
        let until = self.world.now + time;
        let mut steps = 0;
        while self.world.step(until).is_some() {
            steps += 1;
            assert!(steps < MAX_STEPS, "time stands still at {:?}", self.world.now);
        }
        if let Some(tap) = &mut self.world.tap {
            tap.drain(..tap.len().saturating_sub(MAX_TAP));
        }
        self.listen();
    }

    fn listen(&mut self) {
        for n in 0..self.nets.len() {
            while let Some((_, event)) = self.world.member(self.nets[n]).events.pop_front() {
                self.hear(n, event);
            }
            let Some(net) = &self.world.member(self.nets[n]).net else { continue };
            assert!(net.sessions() <= 24, "{} sessions", net.sessions());
        }
    }

    fn hear(&mut self, n: usize, event: Event) {
        match event {
            Event::Request { incoming, message, .. } => {
                let payload = Message::parse(&message).expect("requests are valid").payload().to_vec();
                // One that a replay or a forgery made would not be in the list.
                let id = u64::from_be_bytes(payload[..8].try_into().expect("eight bytes and more"));
                let (_, fate) = self.requests.get_mut(&id).expect("somebody asked it");
                fate.ran += 1;
                assert_eq!(fate.ran, 1, "request {id} ran again");
                self.open.push((n, incoming));
            }
            Event::Response { request, .. } | Event::RequestFailed { request, .. } => {
                let (_, fate) = self.requests.get_mut(&request.0).expect("somebody asked it");
                fate.ended += 1;
                assert_eq!(fate.ended, 1, "request {} ended again", request.0);
            }
            Event::Connected { session, .. } | Event::Accepted { session, .. }
                if !self.sessions.contains(&(n, session)) =>
            {
                self.sessions.push((n, session));
            }
            Event::Closed { session, .. } | Event::ConnectFailed { session, .. } => {
                self.sessions.retain(|known| *known != (n, session));
            }
            _ => {}
        }
    }

    fn post(&mut self, n: usize, len: usize) {
        let Some((net, session)) = self.sessions.get(n % self.sessions.len().max(1)).copied() else { return };
        let id = self.requests.len() as u64;
        let mut payload = id.to_be_bytes().to_vec();
        payload.resize(8 + 4 * len, 9);
        let deadline = self.world.now + 20 * SECOND;
        let taken = self.world.command(self.nets[net], |machine, now| {
            let options = OptionSet::default();
            let request = Request {
                code: Code::POST,
                options: &options,
                payload: &payload,
                confirmable: !n.is_multiple_of(5),
                repeatable: n.is_multiple_of(3),
                deadline,
            };
            machine.request(now, session, RequestId(id), &request).is_ok()
        });
        // One that was not taken has ended already.
        self.requests.insert(id, (net, Fate { ended: u32::from(!taken), ..Fate::default() }));
    }

    fn answer(&mut self, n: usize) {
        let Some(at) = n.checked_rem(self.open.len()) else { return };
        let (net, incoming) = self.open.swap_remove(at);
        self.world.command(self.nets[net], |machine, now| {
            let _ = machine.respond(now, incoming, Code::CHANGED, &OptionSet::default(), &[1; 20]);
        });
    }

    fn connect(&mut self, n: usize) {
        let (from, to) = (n % 3, n / 3 % 3);
        if self.world.member(self.nets[from]).net.is_none() {
            return;
        }
        let number = to as u8 + 1;
        let route = match n / 9 % 2 {
            0 => Route::Host,
            _ => Route::Direct(self.world.address(self.nets[to])),
        };
        let key = PeerKey::Net(World::key(if n > 240 { 99 } else { number }));
        let started = self
            .world
            .command(self.nets[from], |machine, now| machine.connect(now, World::id(number), &key, route));
        // A handle can be used before the session is up.
        self.sessions.extend(started.ok().map(|session| (from, session)));
    }

    fn with_session(
        &mut self,
        n: usize,
        act: impl FnOnce(&mut m2m_proto::net::Net, m2m_proto::time::Time, SessionId),
    ) {
        let Some((net, session)) = self.sessions.get(n % self.sessions.len().max(1)).copied() else { return };
        self.world.command(self.nets[net], |machine, now| act(machine, now, session));
    }

    fn restart(&mut self, n: usize) {
        let net = n % 3;
        self.world.kill(self.nets[net]);
        self.world.member(self.nets[net]).events.clear();
        self.sessions.retain(|(owner, _)| *owner != net);
        self.open.retain(|(owner, _)| *owner != net);
        for (owner, fate) in self.requests.values_mut() {
            fate.orphaned |= *owner == net;
        }
        self.run(SECOND * (n / 3 % 16) as u32);
        self.world.start(self.nets[net], config(net));
        if net > 0 {
            self.world.join(self.nets[net], self.nets[0], 1);
        }
    }

    fn cut(&mut self, n: usize) {
        let pair = (self.nets[n % 3], self.nets[(n % 3 + 1) % 3]);
        let before = self.world.cut.len();
        self.world.cut.retain(|cut| *cut != pair);
        if self.world.cut.len() == before {
            self.world.cut.push(pair);
        }
    }

    fn lookup(&mut self, n: usize) {
        if self.world.member(self.nets[n % 3]).net.is_some() {
            self.world.command(self.nets[n % 3], |machine, now| {
                let _ = machine.lookup(now, World::id((n / 3 % 5) as u8), RequestId(1 << 41), now + SECOND);
            });
        }
    }

    /// Sends a datagram of the past again, as it was or with some bits flipped, from where it came or from elsewhere.
    fn replay(&mut self, n: usize, back: usize, at: usize, flip: usize) {
        let tap = self.world.tap.as_ref().expect("there is a tap");
        let Some((from, to, mut bytes)) = tap.get(tap.len().wrapping_sub(1 + back)).cloned() else { return };
        if let Some(place) = bytes.get_mut(at) {
            *place ^= flip as u8;
        }
        let from = if n.is_multiple_of(4) { "192.0.2.77:7".parse().expect("an address") } else { from };
        // Not to one that has since been started anew: replays across a restart are the handshake's business.
        self.world.inject(from, to, &bytes);
    }

    fn inject(&mut self, n: usize, script: &mut Script<'_>) {
        let bytes: Vec<u8> = (0..n % 128).map(|_| script.byte() as u8).collect();
        let (from, to) = (self.world.address(self.nets[n % 3]), self.world.address(self.nets[(n + 1) % 3]));
        self.world.inject(from, to, &bytes);
    }

    /// The network is well again: whatever is open ends, and the guests are back with their host.
    fn finish(mut self) {
        self.world.faults = Default::default();
        self.world.cut.clear();
        for _ in 0..30 {
            self.run(10 * SECOND);
        }
        for (id, (_, fate)) in &self.requests {
            assert!(fate.orphaned || fate.ended == 1, "request {id} never ended");
        }
        for n in [1, 2] {
            assert!(self.world.net(self.nets[n]).is_registered(), "net {n} did not find its host again");
        }
        assert_eq!(self.world.net(self.nets[0]).registrations(), 2);
    }
}

/// Two nets that want a session, and forgeries of their handshake from all sides: the session comes up all the same.
pub(crate) fn handshake(bytes: &[u8]) {
    let mut script = Script(bytes.get(..bytes.len().min(400)).unwrap_or_default());
    let mut world = World::new(9);
    let pressed = script.byte();
    let mut responder = World::config(1);
    responder.limits.dh_rate = Rate::new(0, (pressed % 3) as u32);
    responder.limits.half_open_per_peer = 1 + pressed / 3 % 3;
    let (a, b) = (world.add(World::config(2)), world.add(responder));
    world.tap = Some(Vec::new());
    let to = world.address(b);
    let key = PeerKey::Net(World::key(1));
    let session = world.command(a, |net, now| {
        net.connect(now, World::id(1), &key, Route::Direct(to)).expect("there is room")
    });
    let mut forged = 0;
    // Fewer than the budget of one source allows, or the honest ones would wait as well.
    while !script.0.is_empty() && forged < 60 {
        forge(&mut world, &mut script);
        forged += 1;
        if script.byte() % 4 == 0 {
            world.run(Duration::from_millis(3));
        }
    }
    world.run(9 * SECOND);
    assert!(world.net(a).info(session).is_some_and(|info| info.up), "the session did not come up");
    let accepted = world.member(b).events.iter();
    assert_eq!(accepted.filter(|(_, event)| matches!(event, Event::Accepted { .. })).count(), 1);
}

/// A handshake packet that was seen, changed in one to four places, cut or joined with another one.
fn forge(world: &mut World, script: &mut Script<'_>) {
    let tap = world.tap.as_ref().expect("there is a tap");
    let (which, how) = (script.byte(), script.byte());
    let (from, to, mut bytes) = tap[which % tap.len()].clone();
    let other = &tap[script.byte() % tap.len()].2;
    if how & 0x80 != 0 {
        let at = script.byte().min(bytes.len()).min(other.len());
        bytes.truncate(at);
        bytes.extend_from_slice(&other[at..]);
    }
    for _ in 0..how % 4 {
        let (at, flip) = (script.byte(), script.byte());
        if let Some(place) = bytes.get_mut(at) {
            *place ^= flip as u8;
        }
    }
    if how & 0x40 != 0 {
        bytes.truncate(script.byte());
    }
    let (from, to) = if how & 0x20 != 0 { (to, from) } else { (from, to) };
    world.inject(from, to, &bytes);
}

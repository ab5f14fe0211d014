//! Hosts, two nets registered with them and an adversary between them, all led by a script: what the target `net` runs.
use std::collections::{BTreeMap, VecDeque};

use m2m_proto::{
    coap::code::Code,
    error::CommandError,
    event::{Event, IncomingId, RequestId, SessionId},
    net::{ConnectOptions, Net, Request, Route},
    session::keys::{DeviceKey, NetKey, PeerKey},
    time::{Duration, Time},
};
use m2m_sim::{
    NetIndex, World,
    ledger::{Ledger, Sent, filler, id_of, options_for},
};

use super::{MAX_STEPS, SECOND, Script, check_caps, small};

mod adversary;

/// Bytes of a message beside its payload: header, a token of 8, the number's option, the marker (RFC 7252 section 3).
const AROUND_PAYLOAD: usize = 4 + 8 + 10 + 1;
/// The two nets between which most happens.
const GUESTS: [usize; 2] = [1, 2];
const METHODS: [Code; 4] = [Code::POST, Code::GET, Code::PUT, Code::DELETE];

struct Play {
    world: World,
    ledger: Ledger,
    /// Host, guest, guest, and perhaps another host.
    nets: Vec<NetIndex>,
    /// By net: its sessions, and with whom.
    known: Vec<Vec<(SessionId, usize)>>,
    open: Vec<(usize, IncomingId, u64)>,
    /// By request: who asked, and where.
    asked: BTreeMap<u64, (usize, SessionId)>,
    next: u64,
    /// By net: the keys on its disk, the newest last.
    keys: Vec<Vec<Vec<u8>>>,
}

/// Panics when a request runs twice without an excuse, ends twice or never, when a table outgrows its cap, when more goes
/// to an address than came from it, when time stops, or when the nets don't find each other again in the end.
pub(crate) fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes, 600);
    let flags = script.byte();
    let mut play = Play::new(flags & 1 != 0);
    play.run(SECOND);
    while !script.is_over() {
        play.act(&mut script);
        play.run(Duration::from_millis(10));
    }
    play.finish();
}

impl Play {
    fn new(has_two_hosts: bool) -> Play {
        let mut world = World::new(7);
        world.overheard = Some(VecDeque::new());
        let count = if has_two_hosts { 4 } else { 3 };
        let mut play = Play {
            world,
            ledger: Ledger::default(),
            nets: Vec::new(),
            known: vec![Vec::new(); count],
            open: Vec::new(),
            asked: BTreeMap::new(),
            next: 0,
            keys: vec![Vec::new(); count],
        };
        for n in 0..count {
            let config = play.config(n);
            let index = play.world.add(config);
            play.nets.push(index);
        }
        GUESTS.into_iter().for_each(|n| play.join(n));
        play
    }

    fn config(&self, n: usize) -> m2m_proto::config::Config {
        let mut config = small(n as u8 + 1);
        (config.registry, config.relay) = (!GUESTS.contains(&n), !GUESTS.contains(&n));
        // Keys change now and then.
        config.limits.rekey_packets = if n == 2 { 32 } else { config.limits.rekey_packets };
        let stored = self.keys[n].iter().map(|key| NetKey::new(key).expect("a net took it"));
        for key in stored {
            let key = core::mem::replace(&mut config.key, key);
            config.key_id += 1;
            config.previous_key = Some(m2m_proto::config::PreviousKey { key, grace: 3600 * SECOND });
        }
        config
    }

    fn hosts(&self) -> Vec<usize> {
        (0..self.nets.len()).filter(|n| !GUESTS.contains(n)).collect()
    }

    fn join(&mut self, n: usize) {
        for host in self.hosts() {
            self.world.join(self.nets[n], self.nets[host], host as u8 + 1);
        }
    }

    fn act(&mut self, script: &mut Script<'_>) {
        let action = script.byte() % 36;
        let n = script.byte();
        match action {
            0 => self.run(Duration::from_millis(4 * n as u64)),
            1 => self.run(SECOND * (n % 128) as u32),
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
            14 => self.question(n, |net, now, session, id| net.ping(now, session, id)),
            15 => self.restart(n),
            16 => self.cut(n),
            17 => self.look_up(n),
            18 => self.inject(n, script),
            19 => self.with_session(n, |net, now, _| net.handle_timeout(now)),
            20 | 21 => {
                let secret = filler(n as u64, 16 + script.byte() % 49);
                let secret = (n >= 128).then_some(&secret[..]);
                self.question(n, |net, now, session, id| net.rekey(now, session, id, secret));
            }
            22 => self.question(n, |net, now, session, id| net.refresh_token(now, session, id)),
            23 => self.change_key(n, script.byte()),
            24 | 25 => self.meddle(n, script.byte(), script.byte()),
            26 => self.change_address(n),
            27 => self.suspend(n, script.byte()),
            28 => self.set_clock(n, script.byte()),
            29 => {
                let disk_full = n >= 128;
                self.world.member(self.nets[n % self.nets.len()]).disk_full = disk_full;
            }
            30 => self.tell_host_addresses(n, script.byte()),
            31 => self.hint(n, script.byte()),
            32 => self.connect_pinned(n),
            33 => self.cancel(n),
            34 => self.leave(n),
            _ => self.loosen(n),
        }
    }

    fn run(&mut self, time: Duration) {
        let until = self.world.now + time;
        let mut steps = 0;
        while let Some(net) = self.world.step(until) {
            self.listen(net);
            steps += 1;
            assert!(steps < MAX_STEPS, "time stands still at {:?}", self.world.now);
        }
        (0..self.nets.len()).for_each(|n| self.listen(self.nets[n]));
        self.check();
    }

    fn check(&self) {
        let found = self.ledger.violations.iter().chain(&self.world.watch.violations);
        let found: Vec<_> = found.collect();
        assert!(found.is_empty(), "{found:?}");
    }

    /// Takes in what a net has told.
    fn listen(&mut self, net: NetIndex) {
        let Some(n) = self.nets.iter().position(|known| *known == net) else { return };
        while let Some((_, event)) = self.world.member(net).events.pop_front() {
            self.hear(n, event);
        }
        let member = self.world.member(net);
        let keys = core::mem::take(&mut member.keys);
        if !member.disk_full {
            self.keys[n].extend(keys.into_iter().map(|key| key.bytes.to_vec()));
        }
        if let Some(machine) = &member.net {
            check_caps(machine);
        }
    }

    fn hear(&mut self, n: usize, event: Event) {
        let net = self.nets[n];
        match event {
            Event::Request { incoming, peer, message } => {
                if let Some(number) = self.ledger.ran(net, peer, &message) {
                    self.open.push((n, incoming, number));
                }
            }
            Event::Response { request, message } => self.ledger.answered(net, request, &message),
            Event::RequestFailed { request, why } => self.ledger.failed(net, request, why),
            Event::Pong { request, .. }
            | Event::Found { request, .. }
            | Event::ControlDone { request, .. } => self.ledger.told(net, request),
            Event::Accepted { session, peer } => {
                let peer = usize::from(peer.0[15]) - 1;
                self.known[n].push((session, peer));
            }
            Event::Closed { session, .. } | Event::ConnectFailed { session, .. } => {
                let place = self.known[n].iter().position(|(known, _)| *known == session);
                let (_, peer) =
                    self.known[n].remove(place.expect("a net tells the end of what its user knew"));
                self.ledger.ended(net, self.nets[peer]);
            }
            // A driver asks where its host's name leads to now.
            Event::HostDisconnected { host, .. } => {
                let address = self.world.address(self.nets[usize::from(host.0[15]) - 1]);
                self.world.command(net, |machine, now| machine.set_host_addresses(now, host, &[address]));
            }
            _ => {}
        }
    }

    fn is_awake(&self, n: usize) -> bool {
        self.world.is_awake(self.nets[n])
    }

    /// A session of a net that gets time.
    fn session(&self, n: usize) -> Option<(usize, SessionId, usize)> {
        let all = self.known.iter().enumerate();
        let all =
            all.flat_map(|(net, known)| known.iter().map(move |(session, peer)| (net, *session, *peer)));
        let all: Vec<_> = all.filter(|(net, ..)| self.is_awake(*net)).collect();
        all.get(n.checked_rem(all.len())?).copied()
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn post(&mut self, n: usize, len: usize) {
        let Some((from, session, to)) = self.session(n) else { return };
        let number = self.number();
        let (net, id) = (self.nets[from], RequestId(number));
        let Some(info) = self.world.net(net).info(session) else { return };
        let (options, payload) =
            (options_for(number), filler(number, (4 * len).min(info.max_message - AROUND_PAYLOAD)));
        let request = Request {
            code: METHODS[n / 8 % 4],
            options: &options,
            payload: &payload,
            confirmable: !n.is_multiple_of(5),
            repeatable: n.is_multiple_of(3),
            deadline: self.world.local_now(net) + 20 * SECOND,
        };
        let Request { code: method, confirmable, repeatable, .. } = request;
        let len = payload.len();
        if self.world.command(net, |machine, now| machine.request(now, session, id, &request)).is_ok() {
            self.asked.insert(number, (from, session));
            self.ledger.sent(id, Sent { from: net, to: self.nets[to], method, confirmable, repeatable, len });
        }
        self.listen(net);
    }

    fn answer(&mut self, n: usize) {
        let Some(at) = n.checked_rem(self.open.len()) else { return };
        let (net, incoming, number) = self.open.swap_remove(at);
        if !self.is_awake(net) {
            return;
        }
        let payload = self.ledger.answer(number, 20);
        self.world.command(self.nets[net], |machine, now| {
            let _ = machine.respond(now, incoming, Code::CHANGED, &options_for(number), &payload);
        });
    }

    /// One of the last requests is given up.
    fn cancel(&mut self, n: usize) {
        let Some((number, (from, session))) = self.asked.iter().rev().nth(n % 16) else { return };
        let (id, from, session) = (RequestId(*number), *from, *session);
        if !self.is_awake(from) {
            return;
        }
        self.listen(self.nets[from]);
        self.world.command(self.nets[from], |machine, now| machine.cancel(now, session, id));
        self.ledger.cancelled(id);
    }

    fn connect(&mut self, n: usize) {
        self.connect_with(n, &ConnectOptions::default());
    }

    /// The right device key, or another one.
    fn connect_pinned(&mut self, n: usize) {
        let number = (n / 3 % 3) as u8 + 1 + u8::from(n >= 128);
        let device = DeviceKey::from_bytes([number.wrapping_mul(37) ^ 0x5C; 32]);
        self.connect_with(n, &ConnectOptions { pin: Some(*device.public()) });
    }

    fn connect_with(&mut self, n: usize, options: &ConnectOptions) {
        let (from, to) = (n % 3, n / 3 % 3);
        if !self.is_awake(from) {
            return;
        }
        let route = match n / 9 % 2 {
            0 => Route::Host,
            _ => Route::Direct(self.world.address(self.nets[to])),
        };
        let key = match self.keys[to].last() {
            _ if n > 240 => World::key(99),
            Some(key) => NetKey::new(key).expect("a net took it"),
            None => World::key(to as u8 + 1),
        };
        let (net, peer) = (self.nets[from], id_of(self.nets[to]));
        let started = self
            .world
            .command(net, |machine, now| machine.connect_with(now, peer, &PeerKey::Net(key), route, options));
        // A handle can be used before the session is up.
        self.known[from].extend(started.ok().map(|session| (session, to)));
        self.listen(net);
    }

    fn with_session(&mut self, n: usize, act: impl FnOnce(&mut Net, Time, SessionId)) {
        let Some((net, session, _)) = self.session(n) else { return };
        self.world.command(self.nets[net], |machine, now| act(machine, now, session));
        self.listen(self.nets[net]);
    }

    /// What is answered with an event of its own, once.
    fn question(
        &mut self,
        n: usize,
        ask: impl FnOnce(&mut Net, Time, SessionId, RequestId) -> Result<(), CommandError>,
    ) {
        let Some((net, session, _)) = self.session(n) else { return };
        let (net, id) = (self.nets[net], RequestId(self.number()));
        if self.world.command(net, |machine, now| ask(machine, now, session, id)).is_ok() {
            self.ledger.asked(net, id);
        }
        self.listen(net);
    }

    /// A net key is changed from afar, with the right key or the wrong one. Hosts keep theirs: their guests know no other.
    fn change_key(&mut self, n: usize, new: usize) {
        let Some((_, _, peer)) = self.session(n).filter(|(.., peer)| GUESTS.contains(peer)) else { return };
        let current = match self.keys[peer].last() {
            Some(key) if new < 250 => NetKey::new(key).expect("a net took it"),
            _ => World::key(peer as u8 + 1),
        };
        let key = filler(new as u64, 16 + new % 49);
        let key_id = if new.is_multiple_of(7) { new as u16 } else { 0 };
        self.question(n, |net, now, session, id| {
            net.set_remote_key(now, session, id, &current, key_id, &key)
        });
    }

    fn look_up(&mut self, n: usize) {
        let (net, id) = (self.nets[n % 3], RequestId(self.number()));
        if self.is_awake(n % 3) {
            let taken = self.world.command(net, |machine, now| {
                machine.lookup(now, World::id((n / 3 % 5) as u8), id, now + SECOND)
            });
            if taken.is_ok() {
                self.ledger.asked(net, id);
            }
            self.listen(net);
        }
    }

    /// Without a word and without memory; from 128 on without its disk too.
    fn restart(&mut self, n: usize) {
        let net = n % 3;
        self.kill(net);
        self.run(SECOND * (n / 3 % 16) as u32);
        if n >= 128 {
            self.world.member(self.nets[net]).epoch = 0;
        }
        self.start(net);
    }

    /// Everybody is told.
    fn leave(&mut self, n: usize) {
        let net = n % 3;
        if self.is_awake(net) {
            self.world.command(self.nets[net], |machine, now| machine.shutdown(now));
            self.listen(self.nets[net]);
            self.restart(n);
        }
    }

    fn kill(&mut self, n: usize) {
        self.listen(self.nets[n]);
        self.world.kill(self.nets[n]);
        self.known[n].clear();
        self.open.retain(|(owner, ..)| *owner != n);
        self.asked.retain(|_, (owner, _)| *owner != n);
        self.ledger.died(self.nets[n]);
    }

    fn start(&mut self, n: usize) {
        let config = self.config(n);
        self.world.start(self.nets[n], config);
        if GUESTS.contains(&n) {
            self.join(n);
        }
        self.listen(self.nets[n]);
    }

    /// The network is well again: whatever is open ends, and the guests are back with their host.
    fn finish(mut self) {
        self.loosen(0);
        for n in 0..self.nets.len() {
            self.world.member(self.nets[n]).disk_full = false;
            self.world.resume(self.nets[n], true);
            self.listen(self.nets[n]);
        }
        for _ in 0..30 {
            self.run(10 * SECOND);
        }
        self.ledger.finish();
        self.check();
        for n in GUESTS {
            assert!(self.world.net(self.nets[n]).is_registered(), "net {n} did not find its host again");
        }
        if self.nets.len() == 3 {
            assert_eq!(self.world.net(self.nets[0]).registrations(), GUESTS.len());
        }
    }
}

//! A peer with keys that says what a script has it say, in packets that are all authentic: what the target `session` runs.
//!
//! The peer, number 3, opened a session to a host, or was called by a net, or is the host of one. It lives at several
//! addresses, and opens more sessions if the script says so: under other ids, or through the host to the net behind it.
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
};

use m2m_proto::{
    event::{Event, IncomingId, SessionId},
    id::Id,
    net::{ConnectOptions, HostConfig, Route},
    session::{
        Secure,
        handshake::{Established, Initiator},
        keys::{DhSecret, PeerKey},
    },
    time::Duration,
    wire::packet::{KeyId, Packet},
};
use m2m_sim::{NetIndex, World};

use super::{MAX_STEPS, SECOND, Script, check_caps, small};

mod answer;
mod handshake;
mod say;
mod user;

/// A datagram has arrived after this time, and what it causes at once has left.
const BEAT: Duration = Duration::from_millis(6);
/// One packet causes no more datagrams than this at once.
const MAX_REPLIES: usize = 64;
/// An address that has proven nothing is sent at most so many times what came from there (protocol, section 10.2).
const UNPROVEN: usize = 3;
/// The peer's number.
const OWN: u8 = 3;
/// Sessions and packets that the peer keeps.
const MAX_LINKS: usize = 6;
const MAX_KEPT: usize = 32;

/// A session of the peer's.
struct Link {
    secure: Secure,
    established: Established,
    /// Where the net sent its half of the handshake.
    home: SocketAddr,
    /// It goes through another one, to the net behind a host, under this id.
    behind: Option<Id>,
    asked: Option<(u32, DhSecret, Vec<u8>)>,
}

/// What the net said, and where.
struct Heard {
    link: usize,
    plain: Vec<u8>,
}

#[derive(Default)]
struct Account {
    received: usize,
    sent: usize,
    is_proven: bool,
}

struct Play {
    world: World,
    net: NetIndex,
    guest: Option<NetIndex>,
    links: Vec<Link>,
    opening: Vec<(Initiator, SocketAddr, Option<Id>)>,
    /// INITs of the net's own, and where they came.
    inits: VecDeque<(SocketAddr, Vec<u8>)>,
    heard: VecDeque<Heard>,
    /// Short packets of ours, and the net's last one.
    sealed: VecDeque<Vec<u8>>,
    last: Vec<u8>,
    challenges: VecDeque<([u8; 8], SocketAddr)>,
    accounts: BTreeMap<SocketAddr, Account>,
    /// The net's user: its sessions, requests that came, and what it waits for.
    sessions: Vec<SessionId>,
    open: Vec<IncomingId>,
    requests: BTreeSet<u64>,
    questions: BTreeSet<u64>,
    next: u64,
}

/// Panics when the net does, when a packet causes too much, when an address that has proven nothing is sent too much, when
/// a table outgrows its cap, when time stops, when the net's user waits for ever or is told twice, or when somebody else
/// suffers.
pub(crate) fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes, 2000);
    let mut play = Play::new(&mut script);
    while !script.is_over() {
        play.act(&mut script);
    }
    play.finish();
}

/// One of the peer's addresses.
fn address(n: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 3], 4000 + (n % 4) as u16))
}

impl Play {
    fn new(script: &mut Script<'_>) -> Play {
        let cast = script.byte() % 3;
        let mut world = World::new(11);
        world.tap = Some(Vec::new());
        let mut config = small(1);
        (config.registry, config.relay) = (cast == 0, cast == 0);
        config.limits.queue_messages = 32;
        config.limits.open_incoming = 8;
        config.limits.rekey_packets = 32;
        let net = world.add(config);
        let guest = (cast == 0).then(|| world.add_guest(2, net, 1));
        let mut play = Play {
            world,
            net,
            guest,
            links: Vec::new(),
            opening: Vec::new(),
            inits: VecDeque::new(),
            heard: VecDeque::new(),
            sealed: VecDeque::new(),
            last: Vec::new(),
            challenges: VecDeque::new(),
            accounts: BTreeMap::new(),
            sessions: Vec::new(),
            open: Vec::new(),
            requests: BTreeSet::new(),
            questions: BTreeSet::new(),
            next: 0,
        };
        play.run(SECOND);
        // The user leaves the session of the net behind it alone.
        play.sessions.clear();
        match cast {
            0 => play.open(script),
            1 => play.called(0, false),
            _ => play.join(),
        }
        if cast > 0 {
            play.run(BEAT);
            play.respond(script);
        }
        play
    }

    /// The net's user opens a session to the peer; it may insist on the peer's device key.
    fn called(&mut self, n: usize, is_pinned: bool) {
        self.prove(address(n));
        let key = PeerKey::Net(World::key(OWN));
        let started = self.world.command(self.net, |machine, now| {
            let pin = is_pinned.then(|| *say::device(OWN).public());
            let options = ConnectOptions { pin };
            machine.connect_with(now, World::id(OWN), &key, Route::Direct(address(n)), &options)
        });
        self.sessions.extend(started);
    }

    /// The net has the peer for its host.
    fn join(&mut self) {
        let addresses = vec![address(0), address(1)];
        addresses.iter().for_each(|address| self.prove(*address));
        let config = HostConfig { id: World::id(OWN), key: PeerKey::Net(World::key(OWN)), addresses };
        self.world.command(self.net, |machine, now| machine.add_host(now, config).expect("there is room"));
    }

    fn act(&mut self, script: &mut Script<'_>) {
        match script.byte() % 24 {
            0 => _ = self.run(Duration::from_millis(4 * script.byte() as u64)),
            1 => _ = self.run(SECOND * script.byte() as u32),
            2 => self.say_bytes(script),
            3..=6 => self.say_frames(script),
            7 | 8 => self.say_message(script),
            9..=12 => self.answer(script),
            13 => self.rekey(script),
            14 => self.replay(script),
            15 => self.open(script),
            16 => self.open_behind(script),
            17 => self.confirm(script),
            18 => self.respond(script),
            19 => self.hint(script),
            20 => self.register(script),
            _ => self.command(script),
        }
    }

    /// Sends a datagram from one of the peer's addresses, and looks at what it causes.
    fn send(&mut self, from: SocketAddr, bytes: &[u8]) {
        self.accounts.entry(from).or_default().received += bytes.len();
        let to = self.world.address(self.net);
        self.world.inject(from, to, bytes);
        let replies = self.run(BEAT);
        assert!(replies <= MAX_REPLIES, "{replies} datagrams for one");
    }

    /// Lets time pass and says how many datagrams the net sent to the peer.
    fn run(&mut self, time: Duration) -> usize {
        let until = self.world.now + time;
        let (mut steps, mut sent) = (0, 0);
        while self.world.step(until).is_some() {
            steps += 1;
            assert!(steps < MAX_STEPS, "time stands still at {:?}", self.world.now);
            sent += self.look();
        }
        sent + self.look()
    }

    /// Takes in what has left and what was told.
    fn look(&mut self) -> usize {
        let tap = core::mem::take(self.world.tap.as_mut().expect("there is a tap"));
        let net = self.world.address(self.net);
        let mut sent = 0;
        for (from, to, bytes) in tap {
            if from == net && (0..4).any(|n| address(n) == to) {
                sent += 1;
                let account = self.accounts.entry(to).or_default();
                account.sent += bytes.len();
                self.take(to, bytes, None);
                let Account { sent, received, is_proven } = self.accounts[&to];
                assert!(
                    is_proven || sent <= UNPROVEN * received,
                    "{sent} bytes to {to}, from where {received} came"
                );
            }
        }
        self.listen();
        check_caps(self.world.net(self.net));
        let watch = self.world.watch.violations.iter();
        let found: Vec<_> = watch.filter(|words| !words.contains("none of them authentic")).collect();
        assert!(found.is_empty(), "{found:?}");
        sent
    }

    /// What came for the peer, as it is or out of a RELAY.
    fn take(&mut self, to: SocketAddr, mut bytes: Vec<u8>, behind: Option<Id>) {
        match Packet::decode(&bytes) {
            Ok(Packet::Init(_)) => keep(&mut self.inits, (to, bytes)),
            Ok(Packet::Resp(_) | Packet::Cookie(_)) => self.open_further(to, &bytes, behind),
            Ok(Packet::Short(_)) => {
                self.last.clone_from(&bytes);
                let opened = self.links.iter_mut().enumerate().filter(|(_, link)| link.behind == behind);
                let opened =
                    opened.filter_map(|(n, link)| Some((n, link.secure.open(&mut bytes).ok()?))).next();
                if let Some((link, range)) = opened {
                    self.note(to, link, bytes[range].to_vec());
                }
            }
            _ => {}
        }
    }

    /// It may be sent to from now on: it has answered, or the net's user named it.
    fn prove(&mut self, address: SocketAddr) {
        self.accounts.entry(address).or_default().is_proven = true;
    }

    fn link(&self, n: usize) -> Option<usize> {
        n.checked_rem(self.links.len())
    }

    /// The peer falls silent. Whoever waits for it is told, and nobody else has noticed.
    fn finish(mut self) {
        for _ in 0..30 {
            self.run(10 * SECOND);
        }
        assert!(self.requests.is_empty(), "requests {:?} never ended", self.requests);
        assert!(self.questions.is_empty(), "questions {:?} never ended", self.questions);
        if let Some(guest) = self.guest {
            assert!(self.world.net(guest).is_registered(), "the peer has cost another its registration");
            let told = self.world.member(guest).events.iter();
            let lost: Vec<_> =
                told.filter(|(_, event)| matches!(event, Event::HostDisconnected { .. })).collect();
            assert!(lost.is_empty(), "the peer has cost another its session: {lost:?}");
        }
    }
}

fn keep<T>(queue: &mut VecDeque<T>, new: T) {
    if queue.len() >= MAX_KEPT {
        queue.pop_front();
    }
    queue.push_back(new);
}

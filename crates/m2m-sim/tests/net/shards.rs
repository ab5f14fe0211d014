//! A host of several machines behind one address: whichever of its sockets a datagram comes to, nets on all shards find
//! each other, and nobody can tell.
use m2m_proto::{
    coap::{code::Code, option_set::OptionSet},
    config::{Config, Shard},
    error::ConnectError,
    event::{Event, RequestId, SessionId},
    id::Id,
    net::{HostConfig, Request, Route},
    session::keys::PeerKey,
    stats::{Drop, Stats},
    time::Duration,
    wire::frame::FoundStatus,
};
use m2m_sim::{NetIndex, World};

const SECOND: Duration = Duration::from_secs(1);
/// The host's number; its nets count on from the next.
const HOST: u8 = 1;

fn key(n: u8) -> PeerKey {
    PeerKey::Net(World::key(n))
}

fn host_config() -> Config {
    let mut config = World::config(HOST);
    config.registry = true;
    config.relay = true;
    config
}

/// A host of several shards, and nets that are registered with it.
struct Star {
    world: World,
    host: NetIndex,
    shards: u8,
    nets: Vec<(NetIndex, u8)>,
}

impl Star {
    fn new(seed: u64, shards: u8, nets: u8) -> Star {
        let mut world = World::new(seed);
        let host = world.add_host(HOST);
        world.start_shards(host, shards, host_config);
        let mut star = Star { world, host, shards, nets: Vec::new() };
        for number in HOST + 1..=HOST + nets {
            let net = star.world.add_guest(number, host, HOST);
            star.nets.push((net, number));
        }
        star.await_registrations(3 * SECOND);
        star
    }

    fn await_registrations(&mut self, limit: Duration) {
        let until = self.world.now + limit;
        while self.registered() < self.nets.len() {
            assert!(self.world.now < until, "{} nets registered in time", self.registered());
            self.world.step(until);
        }
    }

    fn registered(&mut self) -> usize {
        (0..self.shards).map(|shard| self.world.shard(self.host, shard).registrations()).sum()
    }

    fn home(&self, number: u8) -> u8 {
        Shard { index: 0, count: self.shards }.of_id(World::id(number))
    }

    fn stats(&mut self) -> Vec<Stats> {
        (0..self.shards).map(|shard| self.world.shard(self.host, shard).stats().clone()).collect()
    }

    fn dropped(&mut self, why: Drop) -> u64 {
        self.stats().iter().map(|stats| stats.dropped(why)).sum()
    }

    fn handed_over(&mut self) -> u64 {
        self.stats().iter().map(|stats| stats.handed_over).sum()
    }

    fn connect(&mut self, from: NetIndex, to: u8) -> SessionId {
        self.world.command(from, |net, now| {
            net.connect(now, World::id(to), &key(to), Route::Host).expect("there is room")
        })
    }

    fn post(&mut self, from: NetIndex, session: SessionId, id: u64) {
        let deadline = self.world.now + 100 * SECOND;
        self.world.command(from, |net, now| {
            let request = Request {
                code: Code::POST,
                options: &OptionSet::default(),
                payload: b"x",
                confirmable: true,
                repeatable: false,
                deadline,
            };
            net.request(now, session, RequestId(id), &request).expect("there is room");
        });
    }

    /// Lets all nets answer for a while; says which requests of which net were answered, and how many ran.
    fn serve(&mut self, time: Duration) -> (Vec<(NetIndex, u64)>, usize) {
        let until = self.world.now + time;
        let (mut answered, mut ran) = (Vec::new(), 0);
        loop {
            let stepped = self.world.step(until);
            for (net, _) in self.nets.clone() {
                while let Some((_, event)) = self.world.member(net).events.pop_front() {
                    match event {
                        Event::Request { incoming, .. } => {
                            ran += 1;
                            self.world.command(net, |net, now| {
                                net.respond(now, incoming, Code::CHANGED, &OptionSet::default(), b"y")
                                    .expect("it is taken");
                            });
                        }
                        Event::Response { request, .. } => answered.push((net, request.0)),
                        Event::RequestFailed { request, why } => panic!("{net:?}, {request:?}: {why}"),
                        _ => {}
                    }
                }
            }
            if stepped.is_none() {
                return (answered, ran);
            }
        }
    }

    /// Every net says something to every other one, in a session of its own.
    fn all_pairs_talk(&mut self, time: Duration) {
        let nets = self.nets.clone();
        for (from, number) in &nets {
            for (_, to) in nets.iter().filter(|(_, to)| to != number) {
                let session = self.connect(*from, *to);
                self.post(*from, session, u64::from(*to));
            }
        }
        let (answered, ran) = self.serve(time);
        let pairs = nets.len() * (nets.len() - 1);
        assert_eq!((answered.len(), ran), (pairs, pairs), "answered, and run");
    }
}

fn lookup(star: &mut Star, from: NetIndex, wanted: Id) -> Option<FoundStatus> {
    let deadline = star.world.now + 10 * SECOND;
    star.world
        .command(from, |net, now| net.lookup(now, wanted, RequestId(7), deadline).expect("it has a host"));
    star.world.wait_for(from, 20 * SECOND, |event| match event {
        Event::Found { request: RequestId(7), status } => Some(*status),
        _ => None,
    })
}

#[test]
fn nets_on_all_shards_reach_each_other() {
    for (seed, shards) in [(1, 2), (2, 3), (3, 4), (4, 8)] {
        let mut star = Star::new(seed, shards, 16);
        for shard in 0..shards {
            let expected = star.nets.iter().filter(|(_, number)| star.home(*number) == shard).count();
            assert_eq!(star.world.shard(star.host, shard).registrations(), expected, "shard {shard}");
        }
        star.all_pairs_talk(10 * SECOND);
        assert!(star.handed_over() > 16 * 15, "{} handed over", star.handed_over());
        let nothing =
            [Drop::WrongShard, Drop::ShardFull, Drop::NoRoute, Drop::UnknownToken, Drop::BadHandshake];
        for why in nothing {
            assert_eq!(star.dropped(why), 0, "{}", why.name());
        }
    }
}

#[test]
fn one_shard_hands_nothing_over() {
    let mut star = Star::new(5, 1, 4);
    star.all_pairs_talk(10 * SECOND);
    assert_eq!(star.handed_over(), 0);
}

#[test]
fn look_ups_are_answered_by_the_shard_of_the_id() {
    let mut star = Star::new(6, 4, 12);
    let (asker, own) = star.nets[0];
    for (_, number) in star.nets.clone() {
        assert_eq!(lookup(&mut star, asker, World::id(number)), Some(FoundStatus::ONLINE), "{number}");
    }
    assert_eq!(lookup(&mut star, asker, World::id(HOST)), Some(FoundStatus::ONLINE));
    star.world.run(4 * SECOND);
    for absent in 100..108 {
        assert_eq!(lookup(&mut star, asker, World::id(absent)), Some(FoundStatus::OFFLINE), "{absent}");
    }
    let elsewhere = star.nets.iter().copied().find(|(_, number)| star.home(*number) != star.home(own));
    let (victim, number) = elsewhere.expect("12 nets are on several shards");
    star.world.run(4 * SECOND);
    star.world.kill(victim);
    assert_eq!(lookup(&mut star, asker, World::id(number)), Some(FoundStatus::SILENT));
    assert_eq!(star.dropped(Drop::WrongShard), 0);
}

#[test]
fn an_id_that_is_nowhere_is_told_by_its_shard() {
    let mut star = Star::new(7, 4, 2);
    let from = star.nets[0].0;
    for absent in 100..104 {
        let session = star.connect(from, absent);
        let begun = star.world.now;
        let why = star.world.wait_for(from, 10 * SECOND, |event| match event {
            Event::ConnectFailed { session: failed, why } if *failed == session => Some(*why),
            _ => None,
        });
        assert_eq!(why, ConnectError::UnknownPeer, "{absent}");
        assert!(star.world.now.since(begun) < SECOND, "the ERROR came back at once");
        star.world.run(SECOND);
    }
    assert!(star.dropped(Drop::NoRoute) >= 4);
}

#[test]
fn a_net_that_moves_stays_where_its_id_belongs() {
    let mut star = Star::new(8, 4, 6);
    let ((from, _), (_, to)) = (star.nets[0], star.nets[1]);
    let session = star.connect(from, to);
    for turn in 0..12 {
        // The kernel's hash brings what comes from the new address to any socket.
        match turn % 3 {
            0 => star.world.relocate(from),
            1 => {
                star.world.rebind(star.nets[1].0);
                // It is told nothing of that: its next ping to the host shows it.
                star.world.run(60 * SECOND);
            }
            _ => {}
        }
        star.post(from, session, turn);
        assert_eq!(star.serve(20 * SECOND), (vec![(from, turn)], 1), "turn {turn}");
    }
    assert!(star.stats().iter().map(|stats| stats.moves).sum::<u64>() > 4);
    assert_eq!(star.registered(), 6);
}

#[test]
fn a_host_that_comes_back_with_other_shards_is_found_again() {
    let mut star = Star::new(9, 4, 8);
    let sessions: Vec<_> = (1..8).map(|n| star.connect(star.nets[0].0, star.nets[n].1)).collect();
    let from = star.nets[0].0;
    star.world.run(SECOND);
    for (turn, shards) in [4, 2, 7, 1, 4].into_iter().enumerate() {
        star.world.kill(star.host);
        star.world.run(3 * SECOND);
        star.world.start_shards(star.host, shards, host_config);
        star.shards = shards;
        star.await_registrations(90 * SECOND);
        for (n, session) in sessions.iter().enumerate() {
            star.post(from, *session, (turn * 10 + n) as u64);
        }
        let (answered, ran) = star.serve(90 * SECOND);
        assert_eq!((answered.len(), ran), (7, 7), "with {shards} shards");
    }
}

#[test]
fn what_is_lost_between_shards_is_said_again() {
    let mut star = Star::new(10, 4, 10);
    star.world.member(star.host).handover_loss = 20;
    star.all_pairs_talk(60 * SECOND);
    assert!(star.dropped(Drop::ShardFull) > 0);
    let asker = star.nets[0].0;
    for (_, number) in star.nets.clone() {
        assert_eq!(lookup(&mut star, asker, World::id(number)), Some(FoundStatus::ONLINE), "{number}");
    }
}

#[test]
fn the_hosts_own_sessions_are_found_by_their_tokens() {
    let mut star = Star::new(11, 4, 8);
    let (host, nets) = (star.host, star.nets.clone());
    for (net, number) in nets {
        // From the shard of the peer, who is registered there; and from any other, by address.
        let (home, address) = (star.home(number), star.world.address(net));
        let routes = [(home, Route::Host), ((home + 1) % 4, Route::Direct(address))];
        for (shard, route) in routes {
            let session = star.world.command_shard(host, shard, |net, now| {
                net.connect(now, World::id(number), &key(number), route).expect("there is room")
            });
            star.world.run(SECOND);
            let info = star.world.shard(host, shard).info(session).expect("it lives");
            assert!(info.up, "from shard {shard} to {number} of shard {home}");
        }
    }
    assert_eq!(star.dropped(Drop::WrongShard), 0);
}

#[test]
fn a_hint_finds_the_shard_of_its_session() {
    for shard in 0..4 {
        let mut star = Star::new(12, 4, 1);
        let (host, (net, number)) = (star.host, star.nets[0]);
        let address = star.world.address(net);
        let session = star.world.command_shard(host, shard, |net, now| {
            net.connect(now, World::id(number), &key(number), Route::Direct(address)).expect("there is room")
        });
        star.world.run(SECOND);
        star.world.start(net, World::config(number));
        star.world
            .command_shard(host, shard, |net, now| net.ping(now, session, RequestId(1)).expect("it lives"));
        let begun = star.world.now;
        star.world.wait_for(host, 5 * SECOND, |event| matches!(event, Event::Recovered { .. }).then_some(()));
        assert!(star.world.now.since(begun) < SECOND, "by the hint, not by silence");
    }
}

#[test]
fn a_host_of_several_shards_may_have_a_host_itself() {
    let mut star = Star::new(13, 4, 0);
    let upper = star.world.add_host(200);
    let (host, home) = (star.host, star.home(200));
    let address = star.world.address(upper);
    star.world.command_shard(host, home, |net, now| {
        let upper = HostConfig { id: World::id(200), key: key(200), addresses: vec![address] };
        net.add_host(now, upper).expect("it has none yet");
    });
    star.world.run(SECOND);
    // Their INITs come through the session with the host's host, and belong to all shards; so does what answers them.
    for number in 100..108 {
        let net = star.world.add_guest(number, upper, 200);
        star.world.run(SECOND);
        let session = star.world.command(net, |net, now| {
            net.connect(now, World::id(HOST), &key(HOST), Route::Host).expect("there is room")
        });
        star.world.run(2 * SECOND);
        assert!(star.world.net(net).info(session).is_some_and(|info| info.up), "net {number}");
        let shard = star.home(number);
        assert!(star.world.shard(host, shard).sessions() > 0, "its session is in shard {shard}");
    }
    assert_eq!(star.dropped(Drop::WrongShard), 0);
    assert_eq!(star.dropped(Drop::NoRoute), 0);
}

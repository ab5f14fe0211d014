//! Keys and tokens that change while a session goes on (protocol, sections 4.2 and 4.3).
use std::collections::{BTreeMap, VecDeque};

use m2m_proto::{
    coap::{code::Code, option_set::OptionSet},
    config::Config,
    error::{CloseReason, CommandError, ControlError, RequestError},
    event::{Event, RequestId, SessionId},
    net::{Request, Route},
    session::keys::PeerKey,
    stats::Drop,
    time::Duration,
};
use m2m_sim::{NetIndex, World};

const SECOND: Duration = Duration::from_secs(1);
/// Longer than a packet travels, there and back.
const BEAT: Duration = Duration::from_millis(40);
/// The bit of a short packet's first byte that flips with the keys.
const KEY_PHASE: u8 = 0x20;

/// Two nets and their session.
struct Pair {
    world: World,
    nets: [NetIndex; 2],
    sessions: [SessionId; 2],
    requests: u64,
    answers: BTreeMap<u64, u32>,
    ran: u64,
}

impl Pair {
    fn new(seed: u64, adapt: impl Fn(&mut Config)) -> Pair {
        let mut world = World::new(seed);
        world.tap = Some(Vec::new());
        let nets = [2, 3].map(|n| {
            let mut config = World::config(n);
            adapt(&mut config);
            world.add(config)
        });
        let to = world.address(nets[1]);
        let own = world.command(nets[0], |net, now| {
            let key = PeerKey::Net(World::key(3));
            net.connect(now, World::id(3), &key, Route::Direct(to)).expect("there is room")
        });
        let theirs = world.wait_for(nets[1], SECOND, |event| match event {
            Event::Accepted { session, .. } => Some(*session),
            _ => None,
        });
        world.run(SECOND);
        nets.iter().for_each(|net| world.member(*net).events.clear());
        Pair { world, nets, sessions: [own, theirs], requests: 0, answers: BTreeMap::new(), ran: 0 }
    }

    fn rekey(&mut self, by: usize, id: u64, secret: Option<&[u8]>) -> Result<(), CommandError> {
        let session = self.sessions[by];
        self.world.command(self.nets[by], |net, now| net.rekey(now, session, RequestId(id), secret))
    }

    fn refresh_token(&mut self, by: usize, id: u64) -> Result<(), CommandError> {
        let session = self.sessions[by];
        self.world.command(self.nets[by], |net, now| net.refresh_token(now, session, RequestId(id)))
    }

    fn control_done(&mut self, by: usize, id: u64, limit: Duration) -> Result<(), ControlError> {
        self.world.wait_for(self.nets[by], limit, |event| match event {
            Event::ControlDone { request, result } if *request == RequestId(id) => Some(*result),
            _ => None,
        })
    }

    fn post(&mut self, by: usize) {
        let (session, id) = (self.sessions[by], RequestId(self.requests));
        let deadline = self.world.now + 60 * SECOND;
        self.world.command(self.nets[by], |net, now| {
            let options = OptionSet::default();
            let request = Request {
                code: Code::POST,
                options: &options,
                payload: b"hello",
                confirmable: true,
                repeatable: false,
                deadline,
            };
            net.request(now, session, id, &request).expect("the request is taken");
        });
        self.requests += 1;
    }

    /// Lets time pass, answers what is asked, and says what else the nets told.
    fn run(&mut self, time: Duration) -> Vec<(usize, Event)> {
        let until = self.world.now + time;
        let mut told = Vec::new();
        loop {
            let moved = self.world.step(until).is_some();
            for by in 0..2 {
                while let Some((_, event)) = self.world.member(self.nets[by]).events.pop_front() {
                    told.extend(self.on_event(by, event));
                }
            }
            if !moved {
                return told;
            }
        }
    }

    fn on_event(&mut self, by: usize, event: Event) -> Option<(usize, Event)> {
        match event {
            Event::Request { incoming, .. } => {
                self.ran += 1;
                self.world.command(self.nets[by], |net, now| {
                    net.respond(now, incoming, Code::CHANGED, &OptionSet::default(), b"done").unwrap();
                });
                None
            }
            Event::Response { request, .. } => {
                *self.answers.entry(request.0).or_default() += 1;
                None
            }
            // Losses in a row look like a peer that has gone away; what the session does then is not judged here.
            Event::Recovered { .. } => None,
            event => Some((by, event)),
        }
    }

    /// Every request ran once and was answered once.
    fn assert_exact(&self, seed: u64) {
        let answered = self.answers.values().filter(|count| **count == 1).count() as u64;
        assert_eq!((answered, self.ran), (self.requests, self.requests), "seed {seed}");
    }

    /// Every request ended once, and ran at most once; says how many had no answer, for five losses in a row.
    fn assert_at_most_once(&self, seed: u64, told: &[(usize, Event)]) -> usize {
        let unanswered =
            |event: &Event| matches!(event, Event::RequestFailed { why: RequestError::TimedOut, .. });
        let lost = told.iter().filter(|(_, event)| unanswered(event)).count();
        // Three retransmissions in a row without an answer open a session anew, which is no error.
        let others = told.iter().filter(|(_, event)| {
            matches!(event, Event::ControlDone { .. } | Event::Recovered { resumed: true, .. })
        });
        let answered = self.answers.values().filter(|count| **count == 1).count();
        assert_eq!(lost + others.count(), told.len(), "seed {seed}: {told:?}");
        assert_eq!((answered + lost) as u64, self.requests, "seed {seed}");
        assert!(self.ran <= self.requests && self.ran >= answered as u64, "seed {seed}");
        lost
    }

    /// The phases of keys in the short packets that a net sent since the last time, each change once.
    fn phases(&mut self) -> [Vec<bool>; 2] {
        let tap = self.world.tap.replace(Vec::new()).unwrap();
        [0, 1].map(|by| {
            let own = self.world.address(self.nets[by]);
            let short = tap.iter().filter(|(from, _, bytes)| *from == own && bytes[0] & 0x80 == 0);
            let mut phases: Vec<bool> = short.map(|(_, _, bytes)| bytes[0] & KEY_PHASE != 0).collect();
            phases.dedup();
            phases
        })
    }

    fn dropped(&mut self, by: usize, why: Drop) -> u64 {
        self.world.net(self.nets[by]).stats().dropped(why)
    }
}

fn results(told: &[(usize, Event)]) -> Vec<(usize, u64, Result<(), ControlError>)> {
    let done = told.iter().filter_map(|(by, event)| match event {
        Event::ControlDone { request, result } => Some((*by, request.0, *result)),
        _ => None,
    });
    done.collect()
}

#[test]
fn either_side_changes_the_keys_on_demand() {
    let mut pair = Pair::new(1, |_| {});
    pair.phases();
    for (n, by) in [0, 1, 0, 0, 1].into_iter().enumerate() {
        pair.rekey(by, n as u64, None).unwrap();
        assert_eq!(pair.control_done(by, n as u64, SECOND), Ok(()));
        pair.world.run(BEAT);
        let before = n % 2 == 1;
        assert_eq!(
            pair.phases(),
            [vec![before, !before], vec![before, !before]],
            "both sides switch at once"
        );
        (0..4).for_each(|at| pair.post(at % 2));
        pair.run(SECOND);
    }
    pair.assert_exact(1);
    for by in 0..2 {
        assert_eq!(pair.dropped(by, Drop::BadSeal) + pair.dropped(by, Drop::Replayed), 0);
    }
}

#[test]
fn keys_change_after_so_many_packets() {
    let mut pair = Pair::new(2, |config| config.limits.rekey_packets = 100);
    pair.phases();
    for _ in 0..500 {
        pair.post(0);
        assert!(pair.run(BEAT).is_empty(), "no news for anybody");
    }
    let [a, b] = pair.phases();
    assert!((4..=7).contains(&a.len()) && (4..=7).contains(&b.len()), "{a:?} {b:?}");
    pair.assert_exact(2);
}

#[test]
fn keys_change_with_the_first_packet_after_their_time_and_never_for_their_own_sake() {
    let mut pair = Pair::new(3, |config| {
        config.timers.ping_min = 9_000 * SECOND;
        config.timers.ping_max = 9_000 * SECOND;
        config.timers.rekey_interval = 1_000 * SECOND;
    });
    pair.phases();
    pair.run(5_000 * SECOND);
    assert_eq!(pair.phases(), [vec![], vec![]], "a session at rest stays so");
    pair.post(0);
    pair.run(SECOND);
    assert_eq!(pair.phases(), [vec![false, true], vec![false, true]]);
    pair.post(0);
    pair.run(SECOND);
    assert_eq!(pair.phases(), [vec![true], vec![true]], "once");
}

#[test]
fn both_at_once_on_a_bad_link() {
    let (mut late, mut lost) = (0, 0);
    for seed in 0..60 {
        let mut pair = Pair::new(seed, |_| {});
        pair.world.faults.loss = 200;
        pair.world.faults.duplicate = 200;
        pair.world.faults.jitter = 30 * SECOND / 1000;
        let mut told = Vec::new();
        for round in 0..5 {
            for by in 0..2 {
                let secret = (seed % 3 == by as u64).then_some(&[0x5E; 32][..]);
                pair.rekey(by, 2 * round + by as u64, secret).unwrap();
                (0..4).for_each(|_| pair.post(by));
            }
            told.extend(pair.run(3 * SECOND));
        }
        told.extend(pair.run(60 * SECOND));
        let done = results(&told);
        assert_eq!(done.len(), 10, "seed {seed}: {told:?}");
        late += done.iter().filter(|(_, _, result)| result.is_err()).count();
        lost += pair.assert_at_most_once(seed, &told);
        // Both ended with the same keys.
        pair.phases();
        pair.world.faults = m2m_sim::world::Faults::default();
        (0..2).for_each(|by| pair.post(by));
        pair.run(5 * SECOND);
        let [a, b] = pair.phases();
        assert_eq!((a.len(), &a), (1, &b), "seed {seed}");
    }
    // Of five transmissions in a row each or its answer is lost once in 165 times.
    assert!(late <= 2 && lost <= 48, "of 600 and 2,400: {late} {lost}");
}

/// Without loss, the one change of the initiator is the responder's too.
#[test]
fn both_at_once_is_one_change_unless_the_other_has_a_secret() {
    for (secret, changes) in [(None, 1), (Some(&[7; 16][..]), 2)] {
        let mut pair = Pair::new(5, |_| {});
        pair.phases();
        pair.rekey(0, 1, None).unwrap();
        pair.rekey(1, 2, secret).unwrap();
        let told = pair.run(SECOND);
        assert_eq!(results(&told).len(), 2, "{told:?}");
        let [a, b] = pair.phases();
        assert_eq!((a.len() - 1, b.len() - 1), (changes, changes), "{a:?} {b:?}");
    }
}

#[test]
fn doubled_and_late_packets_of_a_change_do_nothing() {
    let mut pair = Pair::new(6, |_| {});
    pair.world.overheard = Some(VecDeque::new());
    pair.rekey(0, 1, None).unwrap();
    pair.run(SECOND);
    let all: Vec<_> = pair.world.overheard.take().unwrap().into();
    assert!(all.len() >= 4, "REKEY, REKEYED, PING, PONG");
    pair.phases();
    for wait in [Duration::ZERO, 10 * SECOND] {
        pair.run(wait);
        for seen in &all {
            pair.world.replay(seen, seen.from, seen.to, &seen.bytes);
        }
        assert!(pair.run(BEAT).is_empty());
    }
    let refused: u64 =
        (0..2).map(|by| pair.dropped(by, Drop::Replayed) + pair.dropped(by, Drop::BadSeal)).sum();
    assert_eq!(refused, 2 * all.len() as u64, "not one opens a second time");
    pair.post(0);
    pair.run(SECOND);
    let [a, b] = pair.phases();
    assert!(a.iter().chain(&b).all(|phase| *phase), "the keys are still those of generation 1");
    pair.assert_exact(6);
}

#[test]
fn a_secret_has_16_to_64_bytes() {
    let mut pair = Pair::new(7, |_| {});
    assert_eq!(pair.rekey(0, 1, Some(&[1; 15])), Err(CommandError::SecretLength(15)));
    assert_eq!(pair.rekey(0, 1, Some(&[1; 65])), Err(CommandError::SecretLength(65)));
    for len in [16, 64] {
        pair.rekey(1, len as u64, Some(&[1; 64][..len])).unwrap();
        assert_eq!(pair.control_done(1, len as u64, SECOND), Ok(()));
    }
    let too_many = (0..20).map(|n| pair.rekey(0, 100 + n, None)).filter(|taken| taken.is_err()).count();
    assert!(too_many > 0, "no more wait than there is room for");
    let done = results(&pair.run(5 * SECOND));
    assert_eq!(done.len(), 20 - too_many);
}

#[test]
fn who_waits_for_a_silent_peer_is_told_and_the_change_still_comes() {
    let mut pair = Pair::new(8, |config| {
        config.timers.ping_min = 300 * SECOND;
        config.timers.ping_max = 300 * SECOND;
    });
    let cut = (pair.nets[0], pair.nets[1]);
    pair.world.cut.push(cut);
    pair.rekey(1, 1, None).unwrap();
    pair.refresh_token(1, 2).unwrap();
    let done = results(&pair.run(60 * SECOND));
    assert_eq!(done, [(1, 1, Err(ControlError::TimedOut)), (1, 2, Err(ControlError::TimedOut))]);
    pair.phases();
    pair.run(60 * SECOND);
    assert_eq!(pair.phases(), [vec![], vec![]], "nobody is called for hours");
    pair.world.cut.clear();
    pair.post(0);
    pair.run(5 * SECOND);
    let [a, b] = pair.phases();
    assert_eq!((a.last(), b.last()), (Some(&true), Some(&true)), "{a:?} {b:?}");
    pair.assert_exact(8);
}

#[test]
fn the_end_of_a_session_ends_what_was_asked() {
    let mut pair = Pair::new(9, |_| {});
    let cut = (pair.nets[0], pair.nets[1]);
    pair.world.cut.push(cut);
    pair.rekey(0, 1, None).unwrap();
    pair.rekey(0, 2, Some(&[1; 16])).unwrap();
    pair.refresh_token(0, 3).unwrap();
    let session = pair.sessions[0];
    pair.world.command(pair.nets[0], |net, now| net.close(now, session));
    let mut done = results(&pair.run(BEAT));
    done.sort_unstable_by_key(|(_, id, _)| *id);
    let lost = Err(ControlError::SessionLost(CloseReason::Local));
    assert_eq!(done, [(0, 1, lost), (0, 2, lost), (0, 3, lost)]);
    assert_eq!(pair.rekey(0, 4, None), Err(CommandError::Closed));
    pair.run(10 * SECOND);
    assert_eq!(pair.refresh_token(0, 5), Err(CommandError::Stale));
}

/// What is asked before a session is up is asked once it is; it ends with the handshake if that fails.
#[test]
fn what_is_asked_early_waits() {
    let mut world = World::new(10);
    let (a, b) = (world.add(World::config(2)), world.add(World::config(3)));
    let to = world.address(b);
    for number in [3, 4] {
        let done = world.command(a, |net, now| {
            let key = PeerKey::Net(World::key(number));
            let session = net.connect(now, World::id(3), &key, Route::Direct(to)).unwrap();
            net.rekey(now, session, RequestId(u64::from(number)), None).unwrap();
            session
        });
        let result = world.wait_for(a, 20 * SECOND, |event| match event {
            Event::ControlDone { request, result } if request.0 == u64::from(number) => Some(*result),
            _ => None,
        });
        let expected = if number == 3 { Ok(()) } else { Err(ControlError::SessionLost(CloseReason::Lost)) };
        assert_eq!(result, expected, "{done:?}");
    }
}

#[test]
fn a_token_changes_under_load_on_a_bad_link() {
    let (mut late, mut lost) = (0, 0);
    for seed in 0..40 {
        let mut pair = Pair::new(seed, |_| {});
        pair.world.faults.loss = 200;
        pair.world.faults.duplicate = 200;
        pair.world.faults.jitter = 30 * SECOND / 1000;
        let mut told = Vec::new();
        for round in 0..5 {
            for by in 0..2 {
                pair.refresh_token(by, 2 * round + by as u64).unwrap();
                (0..4).for_each(|_| pair.post(by));
            }
            if round == 2 {
                pair.rekey(0, 100, None).unwrap();
            }
            told.extend(pair.run(6 * SECOND));
        }
        told.extend(pair.run(60 * SECOND));
        let done = results(&told);
        assert_eq!(done.len(), 11, "seed {seed}: {told:?}");
        late += done.iter().filter(|(_, _, result)| result.is_err()).count();
        lost += pair.assert_at_most_once(seed, &told);
    }
    assert!(late <= 2 && lost <= 32, "of 440 and 1,600: {late} {lost}");
}

#[test]
fn an_old_token_is_honoured_a_while_and_then_forgotten() {
    let token = |bytes: &[u8]| bytes[1..5].to_vec();
    let mut pair = Pair::new(11, |_| {});
    pair.world.overheard = Some(VecDeque::new());
    pair.post(0);
    pair.run(BEAT);
    let to = pair.world.address(pair.nets[1]);
    let old = pair.world.overheard.take().unwrap().into_iter().find(|seen| seen.to == to).unwrap();

    pair.refresh_token(1, 1).unwrap();
    pair.world.tap = Some(Vec::new());
    let done = results(&pair.run(BEAT));
    assert_eq!(done, [(1, 1, Ok(()))]);
    pair.post(0);
    pair.run(BEAT);
    let tap = pair.world.tap.replace(Vec::new()).unwrap();
    let tokens: Vec<_> = tap.iter().filter(|seen| seen.1 == to).map(|seen| token(&seen.2)).collect();
    assert!(tokens.iter().all(|now| *now != token(&old.bytes)), "even DONE has the new one");
    assert!(!tokens.is_empty());

    let replay = |pair: &mut Pair, why: Drop| {
        let before = pair.dropped(1, why);
        pair.world.replay(&old, old.from, old.to, &old.bytes);
        pair.run(BEAT);
        pair.dropped(1, why) - before
    };
    assert_eq!(replay(&mut pair, Drop::Replayed), 1, "the old token still finds the session");
    // Three times the two seconds of a timeout that nothing was measured for.
    pair.run(6 * SECOND);
    assert_eq!(replay(&mut pair, Drop::UnknownToken), 1, "and then no more");

    // One may wait while another is under way.
    pair.refresh_token(1, 2).unwrap();
    pair.refresh_token(1, 3).unwrap();
    assert_eq!(pair.refresh_token(1, 4), Err(CommandError::QueueFull));
    let done = results(&pair.run(15 * SECOND));
    assert_eq!(done, [(1, 2, Ok(())), (1, 3, Ok(()))]);
}

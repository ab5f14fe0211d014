//! Two lines over a network that loses, repeats and reorders, over many seeds.
use super::*;
use core::cmp::Reverse;

/// A seed to run alone: `M2M_SEED=17 cargo test -p m2m-proto coap::line`.
const SEED_VARIABLE: &str = "M2M_SEED";

#[derive(Clone, Copy, Debug)]
struct Weather {
    /// In 1/256.
    loss: u32,
    repeat: u32,
    /// Milliseconds, at random up to this.
    delay: u64,
    /// Handlers take at random up to this, in milliseconds.
    work: u64,
    requests: u64,
    /// Requests come at random within this, in milliseconds.
    within: u64,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Arrives { to: usize, packet: u64, bytes: Vec<u8> },
    Asks { side: usize, user: u64 },
    Answers { side: usize, work: usize },
}

/// What became of one request.
#[derive(Debug, Default)]
struct Fate {
    runs: u32,
    ends: u32,
    is_answered: bool,
    is_unsent: bool,
    is_confirmable: bool,
}

struct World {
    sides: [Side; 2],
    future: BinaryHeap<Reverse<(Time, u64, Happening)>>,
    sequence: u64,
    now: Time,
    rng: ChaCha12Rng,
    weather: Weather,
    /// By who asks, and their number.
    fates: BTreeMap<(usize, u64), Fate>,
    work: Vec<(IncomingId, Vec<u8>)>,
    /// Packets that came, for the replay protection below the lines.
    heard: [BTreeSet<u64>; 2],
    /// Repeated requests whose answer or mark was gone.
    forgotten: u64,
}

impl World {
    fn new(seed: u64, weather: Weather, config: &LineConfig) -> World {
        let mut rng = ChaCha12Rng::seed_from_u64(seed);
        // Close to the wrap of the Message IDs for half of the seeds.
        let mut mid = || (rng.next_u32() as u16).max(if seed.is_multiple_of(2) { 65_450 } else { 0 });
        let sides = [Side::new(seed ^ 0xA, mid(), config), Side::new(seed ^ 0xB, mid(), config)];
        let mut world = World {
            sides,
            future: BinaryHeap::new(),
            sequence: 0,
            now: Time::ZERO,
            rng,
            weather,
            fates: BTreeMap::new(),
            work: Vec::new(),
            heard: Default::default(),
            forgotten: 0,
        };
        for side in 0..2 {
            for user in 0..weather.requests {
                let when = world.random(weather.within);
                world.plan(when, Happening::Asks { side, user });
            }
        }
        world
    }

    fn random(&mut self, millis: u64) -> Duration {
        Duration::from_micros((u64::from(self.rng.next_u32()) * (millis * 1000)) >> 32)
    }

    fn chance(&mut self, of_256: u32) -> bool {
        self.rng.next_u32() & 255 < of_256
    }

    fn plan(&mut self, after: Duration, happening: Happening) {
        self.sequence += 1;
        self.future.push(Reverse((self.now + after, self.sequence, happening)));
    }

    /// Until nothing is left to happen.
    fn run(&mut self) {
        for _ in 0..1_000_000 {
            let timer = self.sides.iter().map(|side| side.line.next_timeout()).min().unwrap();
            let next = self.future.peek().map_or(Time::NEVER, |Reverse((time, ..))| *time);
            if timer.min(next) == Time::NEVER {
                return;
            }
            self.now = self.now.max(timer.min(next));
            if next <= timer {
                let Reverse((.., happening)) = self.future.pop().unwrap();
                self.happen(happening);
            } else {
                let now = self.now;
                self.sides.iter_mut().for_each(|side| side.tick(now));
            }
            self.settle();
        }
        panic!("it never ends");
    }

    fn happen(&mut self, happening: Happening) {
        let now = self.now;
        match happening {
            Happening::Asks { side, user } => {
                let is_confirmable = user % 8 != 7;
                let deadline = now + Duration::from_secs(60);
                if self.sides[side].request_by(now, user, is_confirmable, deadline).is_err() {
                    self.plan(Duration::from_millis(20), Happening::Asks { side, user });
                    return;
                }
                self.fates.insert((side, user), Fate { is_confirmable, ..Fate::default() });
            }
            Happening::Answers { side, work } => {
                let (id, payload) = self.work[work].clone();
                self.sides[side].respond(now, id, &payload).unwrap();
            }
            Happening::Arrives { to, packet, bytes } => self.arrive(to, packet, &bytes),
        }
    }

    fn arrive(&mut self, to: usize, packet: u64, bytes: &[u8]) {
        let message = Message::parse(bytes).unwrap();
        // Confirmable messages come here twice although the packets' window would stop them: the ring alone must.
        if !self.heard[to].insert(packet) && message.kind() == MessageType::Non {
            return;
        }
        let handled = self.sides[to].receive(self.now, bytes);
        assert!(handled.answered.is_none_or(|packet| packet < self.sides[to].next_packet));
        match handled.outcome {
            Outcome::Request(id) => {
                let user = u64::from_be_bytes(message.payload().try_into().unwrap());
                self.fates.get_mut(&(1 - to, user)).unwrap().runs += 1;
                self.work.push((id, message.payload().to_vec()));
                let work = self.work.len() - 1;
                // Half of the handlers answer at once.
                let after = if self.chance(128) { self.random(self.weather.work) } else { Duration::ZERO };
                self.plan(after, Happening::Answers { side: to, work });
            }
            Outcome::Response { user, is_last, .. } => {
                assert!(is_last);
                let fate = self.fates.get_mut(&(to, user)).unwrap();
                fate.ends += 1;
                fate.is_answered = message.code() == Code::CHANGED;
                fate.is_unsent = message.code() == Code::TOO_MANY_REQUESTS;
                assert!(fate.is_unsent || message.payload() == user.to_be_bytes());
            }
            Outcome::AnswerGone | Outcome::TooOld | Outcome::Reset(_) => self.forgotten += 1,
            Outcome::Overloaded | Outcome::Done | Outcome::Repeated | Outcome::Unmatched => {}
        }
    }

    /// Lets both sides send, and looks at what must hold at any time.
    fn settle(&mut self) {
        for from in 0..2 {
            for (packet, bytes) in self.sides[from].drain(self.now) {
                let copies = 1 + u32::from(self.chance(self.weather.repeat));
                for _ in 0..copies {
                    if self.chance(self.weather.loss) {
                        continue;
                    }
                    let delay = Duration::from_millis(1) + self.random(self.weather.delay);
                    self.plan(delay, Happening::Arrives { to: 1 - from, packet, bytes: bytes.clone() });
                }
            }
            let side = &mut self.sides[from];
            assert!(side.line.in_flight() <= side.config.window);
            assert!(side.span() <= MID_WINDOW);
            for event in side.events() {
                let LineEvent::Failed { user, reason, .. } = event else { panic!("{event:?}") };
                let fate = self.fates.get_mut(&(from, user)).unwrap();
                fate.ends += 1;
                fate.is_unsent = reason == Failure::NotSent;
            }
        }
    }

    /// Confirmable requests: how many, and how many of them failed.
    fn judge(&self) -> (u64, u64) {
        let mut failed = 0;
        for (who, fate) in &self.fates {
            assert_eq!(fate.ends, 1, "{who:?} {fate:?}");
            assert!(fate.runs <= 1, "{who:?} {fate:?}");
            assert!(!fate.is_answered || fate.runs == 1, "{who:?} {fate:?}");
            assert!(!fate.is_unsent || fate.runs == 0, "{who:?} {fate:?}");
            failed += u64::from(fate.is_confirmable && !fate.is_answered);
        }
        assert_eq!(self.fates.len() as u64, 2 * self.weather.requests);
        for side in &self.sides {
            assert!(side.line.is_idle());
            assert!(side.line.busy.is_none(), "all memory is free in the end");
        }
        let confirmable = self.fates.values().filter(|fate| fate.is_confirmable).count() as u64;
        (confirmable, failed)
    }
}

/// What some seeds came to.
#[derive(Debug, Default)]
struct Sums {
    confirmable: u64,
    failed: u64,
    forgotten: u64,
}

fn run_seeds(seeds: core::ops::Range<u64>, weather: Weather, config: &LineConfig) -> Sums {
    let chosen = std::env::var(SEED_VARIABLE).ok().and_then(|seed| seed.parse().ok());
    let seeds = chosen.map_or(seeds, |seed: u64| seed..seed + 1);
    let mut sums = Sums::default();
    for seed in seeds {
        // Shown only if the test fails.
        println!("{SEED_VARIABLE}={seed}");
        let mut world = World::new(seed, weather, config);
        world.run();
        let (confirmable, failed) = world.judge();
        sums.confirmable += confirmable;
        sums.failed += failed;
        sums.forgotten += world.forgotten;
    }
    println!("{sums:?}");
    sums
}

#[test]
fn nothing_fails_in_fair_weather() {
    let weather = Weather { loss: 0, repeat: 0, delay: 40, work: 300, requests: 400, within: 2000 };
    let sums = run_seeds(0..40, weather, &LineConfig::default());
    assert_eq!((sums.failed, sums.forgotten), (0, 0));
}

#[test]
fn once_under_loss_repetition_and_reordering() {
    let weather = Weather { loss: 51, repeat: 26, delay: 150, work: 400, requests: 100, within: 3000 };
    let sums = run_seeds(0..300, weather, &LineConfig::default());
    // Five transmissions, each of which must come through both ways: 0.36^5 = 0.6 %, and as much again for a response
    // of its own.
    assert!(sums.failed * 100 < sums.confirmable * 2, "{sums:?}");
}

#[test]
fn once_through_a_storm() {
    let weather = Weather { loss: 120, repeat: 120, delay: 4000, work: 3000, requests: 60, within: 5000 };
    run_seeds(0..200, weather, &LineConfig::default());
}

#[test]
fn once_with_little_room() {
    let config =
        LineConfig { window: 2, max_waiting: 4, max_incoming: 3, max_requests: 8, ..LineConfig::default() };
    let weather = Weather { loss: 26, repeat: 26, delay: 50, work: 200, requests: 60, within: 1000 };
    run_seeds(0..100, weather, &config);
}

#[test]
fn a_wide_window_never_outruns_the_memory() {
    let config = LineConfig { window: 1000, max_waiting: 1000, max_incoming: 1000, ..LineConfig::default() };
    let weather = Weather { loss: 3, repeat: 26, delay: 60, work: 100, requests: 1000, within: 500 };
    let sums = run_seeds(0..10, weather, &config);
    assert_eq!(sums.failed, 0, "{sums:?}");
}

/// Whatever an authenticated peer sends: no panic, and nothing grows without bound.
#[test]
fn a_peer_that_sends_nonsense_harms_nobody() {
    let config = LineConfig { max_incoming: 8, ..LineConfig::default() };
    for seed in 0..20 {
        println!("{SEED_VARIABLE}={seed}");
        let mut rng = ChaCha12Rng::seed_from_u64(seed);
        let mut side = Side::new(seed, 0, &config);
        let mut ids = Vec::new();
        for step in 0..3000u64 {
            let now = Time::from_micros(step * 7000);
            let random = rng.next_u32();
            let code = [0x00, 0x01, 0x02, 0x45, 0x84][random as usize % 5];
            // Message IDs near those of the line, so that some meet something.
            let mid = Mid((rng.next_u32() % 40) as u16 + (step / 100) as u16);
            let kind = [MessageType::Con, MessageType::Non, MessageType::Ack, MessageType::Rst]
                [random as usize >> 8 & 3];
            let token = if code == 0 { MessageToken::EMPTY } else { MessageToken::from_u32(random >> 28) };
            let mut bytes = Vec::new();
            MessageWriter::new(&mut bytes, kind, Code(code), mid, token);
            if Message::parse(&bytes).is_ok()
                && let Outcome::Request(id) = side.receive(now, &bytes).outcome
            {
                ids.push(id);
            }
            match random >> 16 & 7 {
                0 => drop(side.request(now, step)),
                1 => drop(ids.pop().map(|id| side.respond(now, id, b"x"))),
                2 => drop(side.drain(now)),
                _ => side.tick(now),
            }
            side.events();
            let busy = side.line.busy.as_ref();
            assert!(busy.is_none_or(|busy| busy.incoming.open() <= 8 && busy.ready.len() <= 1100));
        }
    }
}

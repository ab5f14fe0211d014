//! One run of one plan: chaos with requests, then a quiet phase in which everything must settle, then the proof that what
//! is said to be up is, then the end, at which nothing may be left over.
//!
//! ```text
//!  0 ─── chaos: faults, requests, deaths, attacks ─── quiet: all are registered again, ─── proof ─── sessions closed: ─── end
//!        up to 90 s                                   all requests end; 60 s               40 s      only hosts' stay; 420 s
//! ```
use std::collections::{BTreeMap, BTreeSet};

use m2m_proto::{
    coap::code::Code,
    config::Config,
    event::{IncomingId, RequestId, SessionId},
    time::{Duration, Time},
};

use crate::{
    Faults, NetIndex, World,
    ledger::{Ledger, Totals, id_of, number_of},
    world::Nat,
};

mod act;
mod attacker;
mod hear;
mod plan;
mod proof;
pub mod script;
mod shrink;
mod throw;

pub use plan::Plan;
pub use shrink::shrink;
pub use throw::throw;

use plan::{Asking, Dice, Doing, NetPlan, Planned};

/// Within so much time after the network became good every device is registered again, and every request has ended.
const SETTLED: Duration = Duration::from_secs(60);
/// After so much more time nothing is left of a peer that died: 3.5 times the longest that a ping may be awaited here.
const FORGOTTEN: Duration = Duration::from_secs(420);

/// So many lines are enough: what led to a failure is in the last ones.
pub const LINES: usize = 60;

/// What one run came to.
#[derive(Debug, Default)]
pub struct Report {
    /// What must not be; empty if all is well.
    pub violations: Vec<String>,
    /// What happened.
    pub totals: Totals,
    /// Datagrams that nets sent.
    pub datagrams: u64,
    /// The same for the same plan.
    pub hash: u64,
    /// The last lines, if they were asked for.
    pub lines: Vec<String>,
}

/// How a plan is run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner {
    /// Keeps so many of the last lines; slower, and changes nothing else.
    pub lines: usize,
    /// A method that is held against whoever runs it: so that tests have something to find.
    pub objects_to: Option<Code>,
}

/// Runs a seed. `keeps_lines` makes it slower and changes nothing else.
pub fn run(seed: u64, keeps_lines: bool) -> Report {
    let lines = if keeps_lines { LINES } else { 0 };
    run_plan(&throw(seed), Manner { lines, ..Manner::default() })
}

/// Runs a plan.
pub fn run_plan(plan: &Plan, manner: Manner) -> Report {
    let mut run = Run::new(plan);
    run.ledger.objects_to = manner.objects_to;
    if manner.lines > 0 {
        run.world.watch.trace.keep_lines(manner.lines);
    }
    run.begin();
    run.chaos();
    run.settle();
    run.prove();
    run.leave();
    run.report()
}

/// What kind of failure it is, whatever the numbers in it: small plans must fail as the large one did.
pub fn kind_of(violation: &str) -> String {
    violation.chars().filter(|letter| letter.is_ascii_alphabetic() || *letter == ' ').collect()
}

/// A session that a net knows of.
#[derive(Clone, Copy, Debug)]
struct Known {
    session: SessionId,
    peer: NetIndex,
    /// When its user was told of it.
    since: Time,
}

/// What the scenario does on its own time.
#[derive(Clone, Copy, Debug)]
enum Act {
    Do(Planned),
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
    Resume {
        net: NetIndex,
        life: u32,
        datagrams_first: bool,
    },
    Mend {
        from: NetIndex,
        to: NetIndex,
        one_way: bool,
    },
    /// A session is tried.
    Probe {
        net: NetIndex,
        session: SessionId,
    },
}

struct Run<'a> {
    world: World,
    ledger: Ledger,
    plan: &'a Plan,
    agenda: BTreeMap<(Time, u64), Act>,
    next_act: u64,
    /// What handlers do, by request.
    asked: BTreeMap<u64, Asking>,
    /// By net.
    sessions: Vec<Vec<Known>>,
    probes: Vec<proof::Probe>,
    /// Nets whose net key was changed from afar.
    given_keys: BTreeSet<NetIndex>,
    begun: Time,
}

impl<'a> Run<'a> {
    fn new(plan: &'a Plan) -> Run<'a> {
        let world = World::new(plan.seed);
        Run {
            begun: world.now,
            world,
            ledger: Ledger::default(),
            sessions: vec![Vec::new(); plan.nets.len()],
            plan,
            agenda: BTreeMap::new(),
            next_act: 0,
            asked: BTreeMap::new(),
            probes: Vec::new(),
            given_keys: BTreeSet::new(),
        }
    }

    fn nets(&self) -> Vec<NetIndex> {
        self.plan.present().map(|(net, _)| net).collect()
    }

    fn hosts(&self) -> Vec<NetIndex> {
        self.plan.present().filter(|(_, plan)| plan.is_host).map(|(net, _)| net).collect()
    }

    fn is_host(&self, net: NetIndex) -> bool {
        self.plan.net(net).is_some_and(|plan| plan.is_host)
    }

    fn is_alive(&mut self, net: NetIndex) -> bool {
        self.world.member(net).net.is_some()
    }

    fn config(plan: &NetPlan, net: NetIndex) -> Config {
        let mut config = World::config(number_of(net));
        config.suites.clone_from(&plan.suites);
        config.registry = plan.is_host;
        config.relay = config.registry;
        config.allow_key_change = true;
        config
    }

    /// Everybody starts.
    fn begin(&mut self) {
        let plan = self.plan;
        self.world.faults = plan.faults;
        if plan.doings.iter().any(|planned| matches!(planned.doing, Doing::Attack(_))) {
            self.world.overheard = Some(std::collections::VecDeque::new());
        }
        for index in 0..plan.nets.len() {
            let absent =
                NetPlan { suites: vec![m2m_proto::wire::packet::Suite::Aes128Gcm], ..NetPlan::default() };
            let there = plan.nets[index].as_ref();
            // One that was left out has an index still.
            let net = self.world.add(Self::config(there.unwrap_or(&absent), NetIndex(index)));
            let Some(there) = there else {
                self.world.kill(net);
                continue;
            };
            self.world.member(net).nat = there.nat.map(Nat::new);
            if there.clock_ms != 0 {
                self.world.set_clock(net, there.clock_ms);
            }
        }
        for net in self.nets() {
            self.join_hosts(net);
        }
        for planned in &plan.doings {
            self.schedule(self.begun + planned.at, Act::Do(*planned));
        }
    }

    fn join_hosts(&mut self, net: NetIndex) {
        let hosts = self.plan.net(net).map(|plan| plan.hosts.clone()).unwrap_or_default();
        for host in hosts {
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

    fn run_for(&mut self, time: Duration) {
        self.run_until(self.world.now + time);
    }

    fn is_clean(&self) -> bool {
        self.ledger.violations.is_empty() && self.world.watch.violations.is_empty()
    }

    fn chaos(&mut self) {
        self.run_for(self.plan.chaos);
    }

    /// The network becomes good and the attacker leaves; within a minute all must be well.
    fn settle(&mut self) {
        self.world.faults = Faults { delay: self.plan.faults.delay, ..Faults::default() };
        self.world.meddlers.clear();
        self.world.cut.clear();
        self.world.cut_one_way.clear();
        for net in self.nets() {
            self.world.member(net).disk_full = false;
            self.world.member(net).store_delay = Duration::ZERO;
            self.world.resume(net, true);
            self.hear(net);
        }
        for host in self.hosts() {
            self.start(host, true);
            // Names are looked up every now and then, also those of hosts that nobody misses.
            for net in self.nets() {
                if self.is_alive(net) {
                    self.resolve(net, id_of(host));
                }
            }
        }
        self.run_for(SETTLED);
        for guest in self.nets() {
            let has_host = self.plan.net(guest).is_some_and(|plan| !plan.hosts.is_empty());
            if has_host && self.is_clean() && self.is_alive(guest) && !self.world.net(guest).is_registered() {
                let guest = guest.0;
                self.violation(format!("net {guest} is not registered {SETTLED:?} after all was well again"));
            } else if has_host && self.is_clean() && self.is_alive(guest) {
                let preferred = self.plan.net(guest).and_then(|plan| plan.hosts.first()).copied();
                let used = self.world.net(guest).registered_with();
                if used != preferred.map(id_of) {
                    let guest = guest.0;
                    self.violation(format!(
                        "net {guest} is registered with {used:?}, not with the host it prefers"
                    ));
                }
            }
        }
    }

    /// Everybody closes what it opened; what is left must be what is alive.
    fn leave(&mut self) {
        self.run_for(Duration::from_secs(1));
        for net in self.nets() {
            for known in self.sessions[net.0].clone() {
                if self.is_clean() {
                    self.close(net, known.session);
                }
            }
        }
        self.run_for(FORGOTTEN);
        if self.is_clean() {
            self.judge_what_is_left();
        }
        if self.is_clean() {
            self.ledger.finish();
        }
    }

    fn judge_what_is_left(&mut self) {
        let mut registered = 0;
        for host in self.hosts() {
            registered += self.world.net(host).registrations();
        }
        let mut guests = 0;
        for net in self.nets() {
            if !self.is_alive(net) {
                continue;
            }
            let hosts = self.plan.net(net).map_or(0, |plan| plan.hosts.len());
            let has_host = hosts > 0;
            guests += usize::from(has_host);
            // A host's user is told of the sessions that its guests register through, a guest's is not.
            let (sessions, told) = if self.is_host(net) {
                let registered = self.world.net(net).registrations();
                (registered, registered)
            } else {
                (usize::from(has_host), 0)
            };
            let (left, known) = (self.world.net(net).sessions(), self.sessions[net.0].len());
            // A host that is preferred and doesn't answer is tried now and then.
            let tries = if self.is_host(net) { 0 } else { hosts.saturating_sub(1) };
            if !(sessions..=sessions + tries).contains(&left) || known != told {
                self.violation(format!(
                    "net {} has {left} sessions at the end, its user knows {known}; not {sessions} and {told}",
                    net.0
                ));
            }
        }
        if registered != guests {
            self.violation(format!("{registered} registrations at the end, of {guests} nets"));
        }
    }

    fn report(self) -> Report {
        let Run { world, ledger, .. } = self;
        let mut totals = ledger.totals();
        totals.happenings = world.tally;
        let watch = world.watch;
        let (hash, lines) = (watch.trace.hash(), watch.trace.lines());
        let mut violations = watch.violations;
        violations.extend(ledger.violations);
        Report { violations, totals, datagrams: watch.datagrams, hash, lines }
    }

    fn violation(&mut self, words: String) {
        let now = self.world.now;
        self.world.watch.violation(now, words);
    }

    fn line(&mut self, net: NetIndex, words: std::fmt::Arguments<'_>) {
        let now = self.world.now;
        self.world.watch.trace.line(now, format_args!("{} {words}", net.0));
    }

    fn dice(&self, number: u32) -> Dice {
        Dice::of_doing(self.plan.seed, number)
    }
}

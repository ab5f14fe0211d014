//! What happens to the nets: deaths, outages, moves, other keys, visitors, and the weather.
use std::{sync::Arc, time::Duration};

use m2m::Session;
use tokio::{task::JoinSet, time::sleep};

use crate::{
    actor::{Actor, Death, key},
    dice::Dice,
    gate::{Gate, Weather},
    ledger::{Way, Who},
    traffic::{Traffic, Visit},
    world::World,
};

/// Time between two happenings: fast enough for thousands in an hour, slow enough that recoveries come to their end.
const PAUSE: (Duration, Duration) = (Duration::from_millis(400), Duration::from_millis(2000));
/// How long a weather lasts.
const WEATHER: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(40));
/// Members that are dead or cut off at once.
const MOST_AWAY: usize = 4;
/// Visitors that are there at once.
const MOST_VISITORS: usize = 8;

/// Changes the weather until it is stopped.
pub(crate) async fn weather(world: Arc<World>, mut dice: Dice) {
    loop {
        let weather = dice.pick(&Weather::ALL).copied().unwrap_or(Weather::CALM);
        world.network.set_weather(weather);
        world.books.note("changes of weather", None, weather.name);
        sleep(dice.between(WEATHER.0, WEATHER.1)).await;
    }
}

/// Lets the members die, move, change keys.
pub(crate) struct Director {
    world: Arc<World>,
    traffic: Traffic,
    dice: Dice,
    /// Who is away now; who is in it is left alone.
    away: JoinSet<Who>,
    busy: Vec<Who>,
    /// Visitors, and what else goes on by itself.
    visitors: JoinSet<()>,
}

impl Director {
    pub(crate) fn new(world: &Arc<World>, traffic: &Traffic, dice: Dice) -> Director {
        let (world, traffic) = (world.clone(), traffic.clone());
        Director { world, traffic, dice, away: JoinSet::new(), busy: Vec::new(), visitors: JoinSet::new() }
    }

    /// Goes on for so long, then lets everybody come back.
    pub(crate) async fn run(&mut self, lasts: Duration) {
        let act = async {
            loop {
                sleep(self.dice.between(PAUSE.0, PAUSE.1)).await;
                self.happen().await;
            }
        };
        let _ = tokio::time::timeout(lasts, act).await;
        while self.away.join_next().await.is_some() {}
        while self.visitors.join_next().await.is_some() {}
        self.busy.clear();
    }

    async fn happen(&mut self) {
        while let Some(Ok(back)) = self.away.try_join_next() {
            self.busy.retain(|who| *who != back);
        }
        while self.visitors.try_join_next().is_some() {}
        match self.dice.below(100) {
            0..=14 => self.kill_member(),
            15..=24 => self.cut_off(),
            25..=41 => self.rebind(),
            42..=44 => self.unplug(),
            45..=64 => self.change_keys(),
            65..=67 => self.kill_host(),
            68..=70 => self.kill_child(),
            _ => self.visit().await,
        }
    }

    /// A member that nothing happens to now, for something that keeps it busy.
    fn idle_member(&mut self) -> Option<Arc<Actor>> {
        if self.busy.len() >= MOST_AWAY {
            return None;
        }
        let members: Vec<&Arc<Actor>> =
            self.world.members().filter(|actor| !self.busy.contains(&actor.who())).collect();
        let actor = Arc::clone(self.dice.pick(&members)?);
        self.busy.push(actor.who());
        Some(actor)
    }

    fn kill_member(&mut self) {
        let Some(actor) = self.idle_member() else { return };
        let how = self.dice.pick(&Death::ALL).copied().unwrap_or(Death::Silent);
        let is_app = self.world.apps.iter().any(|app| Arc::ptr_eq(app, &actor));
        self.world.books.count(if is_app { "restarts of apps" } else { "restarts of devices" });
        self.restart(actor, how);
    }

    fn kill_host(&mut self) {
        let host = self.world.host.clone();
        if self.busy.contains(&host.who()) {
            return;
        }
        self.busy.push(host.who());
        let how = self.dice.pick(&Death::ALL).copied().unwrap_or(Death::Silent);
        self.world.books.count("restarts of the host");
        self.restart(host, how);
    }

    /// Dies in this way, and comes back a little later.
    fn restart(&mut self, actor: Arc<Actor>, how: Death) {
        let (world, pause) = (self.world.clone(), self.pause());
        // Peers look for a host at its old port; others may come back elsewhere, as after another DHCP lease.
        let same_port = self.dice.chance(0.7) || Arc::ptr_eq(&actor, &world.host);
        self.away.spawn(async move {
            world.forget(&actor);
            actor.die(how).await;
            sleep(pause).await;
            if let Err(why) = actor.open(same_port).await {
                world.books.open().tell(&format!("{} can't be opened again: {why}", actor.who()));
            }
            actor.who()
        });
    }

    fn kill_child(&mut self) {
        let who = self.world.child.who;
        if self.busy.contains(&who) {
            return;
        }
        self.busy.push(who);
        let (world, pause) = (self.world.clone(), self.pause());
        self.away.spawn(async move {
            world.child.kill();
            sleep(pause).await;
            if let Err(why) = world.child.open().await {
                world.books.open().tell(&format!("the host {who} can't be started again: {why}"));
            }
            who
        });
    }

    /// Mostly a moment; now and then long enough that peers give up.
    fn pause(&mut self) -> Duration {
        let most = if self.dice.chance(0.2) { 20 } else { 3 };
        self.dice.between(Duration::from_millis(300), Duration::from_secs(most))
    }

    /// Nothing reaches or leaves it for a while, and it keeps its memory.
    fn cut_off(&mut self) {
        let Some(actor) = self.idle_member() else { return };
        let lasts = self.dice.between(Duration::from_secs(1), Duration::from_secs(15));
        self.world.books.note("outages", Some(actor.who()), format_args!("of {} s", lasts.as_secs()));
        self.away.spawn(async move {
            actor.place.set_dark(true);
            sleep(lasts).await;
            actor.place.set_dark(false);
            actor.who()
        });
    }

    /// Somebody's packets come from another port, or from another network.
    fn rebind(&mut self) {
        let network = self.dice.chance(0.5);
        if let Some(gate) = self.dice.pick(&self.world.gates()) {
            gate.rebind(network);
            self.world.books.count("changes of address");
        }
    }

    /// One way between two nets is closed for a while, and all others are open.
    fn unplug(&mut self) {
        let lasts = self.dice.between(Duration::from_secs(1), Duration::from_secs(30));
        let (world, at) = (self.world.clone(), self.dice.below(self.world.gates().len()));
        self.visitors.spawn(async move {
            world.books.count("ways closed");
            let plug = |plugged| {
                if let Some(gate) = world.gates().get(at) {
                    gate.plug(plugged);
                }
            };
            plug(false);
            sleep(lasts).await;
            plug(true);
        });
    }

    /// New keys, with a secret or without, or a new token, from the one end or the other.
    fn change_keys(&mut self) {
        let links = self.world.links.clone();
        let Some(link) = self.dice.pick(&links) else { return };
        let Some(session) = link.session(&self.world.books) else { return };
        let (kind, books) = (self.dice.below(3), self.world.books.clone());
        let secret = self.dice.bytes(32);
        // In a task, for it waits; ended by the session if not before.
        tokio::spawn(async move {
            let (what, done) = match kind {
                0 => ("changes of keys on demand", session.rekey().await),
                1 => ("changes of keys with a secret", session.rekey_with(&secret).await),
                _ => ("changes of tokens", session.refresh_token().await),
            };
            books.count(if done.is_ok() { what } else { "changes of keys or tokens that failed" });
        });
    }

    /// A net comes, asks a few things, and goes in one way or another.
    async fn visit(&mut self) {
        if self.visitors.len() >= MOST_VISITORS {
            return;
        }
        let (world, traffic, mut dice) = (self.world.clone(), self.traffic.clone(), self.dice.fork());
        let Ok(actor) = world.visitor(&mut dice).await else {
            return world.books.count("visitors without a place");
        };
        self.visitors.spawn(async move {
            if let Err(why) = actor.open(false).await {
                return world.books.open().tell(&format!("{} can't be opened: {why}", actor.who()));
            }
            world.books.count("nets opened for a visit");
            // What it holds goes after it: a death without a word is one for its session, too.
            let held = play_visit(&world, &actor, &traffic, &mut dice).await;
            let how = dice.pick(&Death::ALL).copied().unwrap_or(Death::Silent);
            actor.die(how).await;
            drop(held);
        });
    }
}

async fn play_visit(
    world: &World,
    actor: &Arc<Actor>,
    traffic: &Traffic,
    dice: &mut Dice,
) -> Option<(Gate, Option<Session>)> {
    let direct = dice.chance(0.4);
    let at_hand: Vec<&Arc<Actor>> =
        world.devices.iter().filter(|device| direct || device.hosts()[0] == actor.hosts()[0]).collect();
    let device = dice.pick(&at_hand)?;
    let gate =
        Gate::open(&world.network, actor.place.clone(), device.place.clone(), dice.fork()).await.ok()?;
    let (way, peer) = if direct {
        (Way::Direct, m2m::Peer::addr(device.who().id(), gate.near).key(key(device.who())))
    } else {
        (Way::ThroughHost, m2m::Peer::id(device.who().id()).key(key(device.who())))
    };
    let requests = 1 + dice.below(8);
    let visit = Visit { actor: actor.clone(), to: device.who(), way, peer, requests };
    let session = visit.run(traffic, dice).await;
    Some((gate, session))
}

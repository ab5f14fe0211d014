//! Who plays: two hosts, devices and apps at the one, the other or both, and the ways between them.
use std::{path::Path, sync::Arc, time::Duration};

use m2m::Peer;
use tokio::time::sleep;

use crate::{
    actor::{Actor, Counters, Part, Temper, add, key},
    child::ChildHost,
    dice::Dice,
    gate::{Gate, Network, Place},
    ledger::{Books, Way, Who},
    traffic::Link,
    watch::Sample,
};

/// The host in this process, and the one in a process of its own.
pub(crate) const HOST: Who = Who(1);
pub(crate) const CHILD_HOST: Who = Who(2);
const FIRST_DEVICE: u32 = 10;
const FIRST_APP: u32 = 40;
/// Visitors have numbers from here on.
const FIRST_VISITOR: u32 = 1000;
/// Sets of hosts that devices, and apps, have in turn.
const HOSTS: [&[Who]; 3] = [&[HOST], &[CHILD_HOST], &[HOST, CHILD_HOST]];
const DEVICES: usize = 9;
const APPS: usize = 6;
/// Devices that each app reaches directly.
const DIRECT: usize = 2;

pub(crate) type Failure = Box<dyn std::error::Error>;

pub(crate) struct World {
    pub(crate) network: Arc<Network>,
    pub(crate) books: Books,
    pub(crate) host: Arc<Actor>,
    pub(crate) child: ChildHost,
    pub(crate) devices: Vec<Arc<Actor>>,
    pub(crate) apps: Vec<Arc<Actor>>,
    pub(crate) links: Arc<Vec<Arc<Link>>>,
    /// Those between two nets without a host.
    direct: Vec<Gate>,
    visitors: std::sync::atomic::AtomicU32,
}

impl World {
    pub(crate) async fn open(books: &Books, folder: &Path, dice: &mut Dice) -> Result<World, Failure> {
        let network = Network::new();
        let child = ChildHost::new(CHILD_HOST, folder.join("child"), books);
        let part = Part {
            who: HOST,
            state: Some(folder.join("host")),
            temper: Temper::Patient,
            server: true,
            ephemeral: false,
            hosts: Vec::new(),
        };
        let host = Actor::new(part, &network, books, dice).await?;
        let mut world = World {
            network,
            books: books.clone(),
            host,
            child,
            devices: Vec::new(),
            apps: Vec::new(),
            links: Arc::default(),
            direct: Vec::new(),
            visitors: FIRST_VISITOR.into(),
        };
        world.host.open(false).await?;
        world.child.open().await?;
        for n in 0..DEVICES {
            let device = world.member(FIRST_DEVICE, n, folder, dice).await?;
            world.devices.push(device);
        }
        for n in 0..APPS {
            let app = world.member(FIRST_APP, n, folder, dice).await?;
            world.apps.push(app);
        }
        world.link(dice).await?;
        Ok(world)
    }

    /// A device or an app: of three, two keep their state, and one has the timers that nets have by default.
    async fn member(
        &self,
        first: u32,
        n: usize,
        folder: &Path,
        dice: &mut Dice,
    ) -> Result<Arc<Actor>, Failure> {
        let who = Who(first + n as u32);
        let part = Part {
            who,
            state: (n / HOSTS.len() != 1).then(|| folder.join(who.0.to_string())),
            temper: if n / HOSTS.len() == 0 { Temper::Patient } else { Temper::Hasty },
            server: false,
            ephemeral: false,
            hosts: self.places(HOSTS[n % HOSTS.len()]),
        };
        let actor = Actor::new(part, &self.network, &self.books, dice).await?;
        actor.open(false).await?;
        Ok(actor)
    }

    fn places(&self, hosts: &[Who]) -> Vec<(Who, Arc<Place>)> {
        hosts.iter().map(|host| (*host, self.place_of(*host))).collect()
    }

    pub(crate) fn place_of(&self, host: Who) -> Arc<Place> {
        if host == HOST { self.host.place.clone() } else { self.child.place.clone() }
    }

    /// Each app reaches each device that has the same first host, by id; some directly; and the hosts themselves. Devices
    /// ask back.
    async fn link(&mut self, dice: &mut Dice) -> Result<(), Failure> {
        let mut links = Vec::new();
        for (n, app) in self.apps.iter().enumerate() {
            for device in &self.devices {
                if app.hosts()[0] == device.hosts()[0] {
                    let peer = Peer::id(device.who().id()).key(key(device.who()));
                    links.push(Link::new(app, device.who(), Way::ThroughHost, Some(peer)));
                    links.push(Link::new(device, app.who(), Way::Back, None));
                }
            }
            let mut targets: Vec<(Who, Arc<Place>)> = (0..DIRECT)
                .map(|k| &self.devices[(n * DIRECT + k) % DEVICES])
                .map(|device| (device.who(), device.place.clone()))
                .collect();
            targets.extend(self.places(&[HOST, CHILD_HOST]));
            for (who, place) in targets {
                let gate = Gate::open(&self.network, app.place.clone(), place, dice.fork()).await?;
                let peer = Peer::addr(who.id(), gate.near).key(key(who));
                links.push(Link::new(app, who, Way::Direct, Some(peer)));
                self.direct.push(gate);
            }
        }
        self.links = Arc::new(links);
        Ok(())
    }

    /// A net that is there for a moment only, at one of the hosts.
    pub(crate) async fn visitor(&self, dice: &mut Dice) -> std::io::Result<Arc<Actor>> {
        let number = self.visitors.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let host = if dice.chance(0.5) { HOST } else { CHILD_HOST };
        let part = Part {
            who: Who(number),
            state: None,
            temper: if dice.chance(0.5) { Temper::Hasty } else { Temper::Patient },
            server: false,
            ephemeral: true,
            hosts: self.places(&[host]),
        };
        Actor::new(part, &self.network, &self.books, dice).await
    }

    /// Devices and apps.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Arc<Actor>> {
        self.devices.iter().chain(&self.apps)
    }

    /// All gates but those of visitors.
    pub(crate) fn gates(&self) -> Vec<&Gate> {
        self.members().flat_map(|actor| &actor.gates).chain(&self.direct).collect()
    }

    /// Lets go of the sessions of a net that is about to die.
    pub(crate) fn forget(&self, actor: &Arc<Actor>) {
        self.links.iter().filter(|link| Arc::ptr_eq(&link.from, actor)).for_each(|link| link.forget());
    }

    /// What there is now, but for what the process itself holds.
    pub(crate) fn sample(&self) -> Sample {
        let nets = self.members().chain([&self.host]).filter_map(|actor| actor.net());
        let (mut sample, said) = (Sample::default(), self.child.said());
        (sample.sessions, sample.registrations, sample.half_open) =
            (said.sessions, said.registrations, said.half_open);
        for net in nets {
            sample.sessions += net.sessions() as u64;
            sample.registrations += net.registrations() as u64;
            sample.half_open += net.half_open() as u64;
        }
        sample.host_memory = self.child.memory_kib().unwrap_or(0);
        sample
    }

    /// Counters of all nets that live throughout, in all their lives.
    pub(crate) fn counters(&self) -> Counters {
        let mut sum = self.child.counters();
        self.members().chain([&self.host]).for_each(|actor| add(&mut sum, &actor.counters()));
        sum
    }

    /// Ends everything in good order.
    pub(crate) async fn close(&self) {
        self.child.ask();
        sleep(Duration::from_millis(500)).await;
        for actor in self.members().chain([&self.host]) {
            self.forget(actor);
            actor.die(crate::actor::Death::Shutdown).await;
        }
        self.child.stop();
    }
}

//! The network between the nets: each talks to another through a gate of its own, which is a NAT and a bad line in one.
//!
//! ```text
//!  net ──> near │ gate │ far ──> the other net          one user a gate: whoever sends to `near`
//! ```
//!
//! The gate loses, repeats, delays (and so reorders) and damages what passes, as the weather says; its far port changes
//! when it is told to, as a NAT's mapping does; it passes nothing while it is unplugged or one of its ends is dark.
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{net::UdpSocket, sync::mpsc, task::JoinHandle, time::Instant};

use crate::dice::Dice;

/// Packets that one gate holds back; more are lost, as in a router's queue.
const MOST_LATE: usize = 256;
/// One packet in so many is overheard by the attackers, who remember so many.
const OVERHEARD_EVERY: u64 = 8;
const OVERHEARD: usize = 512;
/// Larger than any packet.
const BUFFER: usize = 2048;

/// What the network does to packets, all of them alike.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    pub(crate) name: &'static str,
    pub(crate) lost: f64,
    pub(crate) doubled: f64,
    /// Share of those that are held back, and for how long at most: so they are overtaken.
    pub(crate) delayed: f64,
    pub(crate) delay: Duration,
    /// Share of those of which a damaged copy arrives, too, and before.
    pub(crate) damaged: f64,
}

impl Weather {
    pub(crate) const CALM: Weather =
        Weather { name: "calm", lost: 0.0, doubled: 0.0, delayed: 0.0, delay: Duration::ZERO, damaged: 0.0 };

    pub(crate) const ALL: [Weather; 5] = [
        Weather::CALM,
        Weather { name: "lossy", lost: 0.1, ..Weather::CALM },
        Weather {
            name: "mobile",
            lost: 0.02,
            doubled: 0.02,
            delayed: 0.9,
            delay: Duration::from_millis(150),
            damaged: 0.01,
        },
        Weather {
            name: "storm",
            lost: 0.2,
            doubled: 0.1,
            delayed: 0.5,
            delay: Duration::from_millis(400),
            damaged: 0.05,
        },
        Weather {
            name: "echoing",
            lost: 0.01,
            doubled: 0.5,
            delayed: 0.2,
            delay: Duration::from_secs(3),
            damaged: 0.02,
        },
    ];
}

/// Where a net is now, and whether anything reaches or leaves it.
#[derive(Debug)]
pub(crate) struct Place {
    address: Mutex<SocketAddr>,
    dark: AtomicBool,
}

impl Place {
    pub(crate) fn nowhere() -> Arc<Place> {
        Arc::new(Place { address: Mutex::new(local(0, 0)), dark: AtomicBool::new(false) })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        *self.address.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_address(&self, address: SocketAddr) {
        *self.address.lock().unwrap_or_else(PoisonError::into_inner) = address;
    }

    pub(crate) fn set_dark(&self, dark: bool) {
        self.dark.store(dark, Ordering::Relaxed);
    }

    fn is_dark(&self) -> bool {
        self.dark.load(Ordering::Relaxed)
    }
}

/// A packet that an attacker has seen, and where it went.
#[derive(Clone)]
pub(crate) struct Overheard {
    pub(crate) to: SocketAddr,
    pub(crate) bytes: Vec<u8>,
}

/// What all gates have in common.
pub(crate) struct Network {
    weather: Mutex<Weather>,
    overheard: Mutex<VecDeque<Overheard>>,
    /// Networks that gates have been in.
    networks: AtomicU64,
    pub(crate) passed: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) doubled: AtomicU64,
    pub(crate) delayed: AtomicU64,
    pub(crate) damaged: AtomicU64,
}

impl Network {
    pub(crate) fn new() -> Arc<Network> {
        Arc::new(Network {
            weather: Mutex::new(Weather::CALM),
            overheard: Mutex::new(VecDeque::with_capacity(OVERHEARD)),
            networks: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            doubled: AtomicU64::new(0),
            delayed: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
        })
    }

    pub(crate) fn weather(&self) -> Weather {
        *self.weather.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        *self.weather.lock().unwrap_or_else(PoisonError::into_inner) = weather;
    }

    /// One of the packets that passed lately.
    pub(crate) fn overheard(&self, dice: &mut Dice) -> Option<Overheard> {
        let overheard = self.overheard.lock().unwrap_or_else(PoisonError::into_inner);
        overheard.get(dice.below(overheard.len())).cloned()
    }

    fn overhear(&self, to: SocketAddr, bytes: &[u8]) {
        let mut overheard = self.overheard.lock().unwrap_or_else(PoisonError::into_inner);
        if overheard.len() == OVERHEARD {
            overheard.pop_front();
        }
        overheard.push_back(Overheard { to, bytes: bytes.to_vec() });
    }

    /// A port in a network that no other gate is in, as far as a /24 goes.
    async fn elsewhere(&self) -> std::io::Result<UdpSocket> {
        let n = self.networks.fetch_add(1, Ordering::Relaxed);
        ready(local(10 + (n / 250 % 100) as u8, (n % 250) as u8)).await
    }
}

/// A socket that takes packets at once.
async fn ready(address: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address).await?;
    socket.writable().await?;
    Ok(socket)
}

/// Any port of a network of this machine.
pub(crate) fn local(a: u8, b: u8) -> SocketAddr {
    SocketAddr::from(([127, a, b, 1], 0))
}

#[derive(Debug)]
enum Order {
    /// Another port, and perhaps another network, for the user's packets.
    Rebind {
        network: bool,
    },
    Plug(bool),
    /// Sends a packet on as if the user, or the other end, had sent it again.
    Repeat {
        there: bool,
        bytes: Vec<u8>,
    },
}

/// A gate; dropped, it is gone.
pub(crate) struct Gate {
    pub(crate) near: SocketAddr,
    orders: mpsc::Sender<Order>,
    task: JoinHandle<()>,
}

impl Gate {
    pub(crate) async fn open(
        network: &Arc<Network>,
        user: Arc<Place>,
        target: Arc<Place>,
        dice: Dice,
    ) -> std::io::Result<Gate> {
        let near = ready(local(0, 0)).await?;
        let far = network.elsewhere().await?;
        let address = near.local_addr()?;
        let (orders, received) = mpsc::channel(16);
        let line = Line {
            network: network.clone(),
            near,
            far,
            last_user: None,
            user,
            target,
            plugged: true,
            late: BinaryHeap::new(),
            count: 0,
            dice,
        };
        let task = tokio::spawn(line.run(received));
        Ok(Gate { near: address, orders, task })
    }

    pub(crate) fn rebind(&self, network: bool) {
        self.order(Order::Rebind { network });
    }

    pub(crate) fn plug(&self, plugged: bool) {
        self.order(Order::Plug(plugged));
    }

    pub(crate) fn repeat(&self, there: bool, bytes: Vec<u8>) {
        self.order(Order::Repeat { there, bytes });
    }

    fn order(&self, order: Order) {
        // Full or gone: then it does not happen.
        let _ = self.orders.try_send(order);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A packet that leaves later.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Late {
    due: Instant,
    count: u64,
    there: bool,
    bytes: Vec<u8>,
}

struct Line {
    network: Arc<Network>,
    near: UdpSocket,
    far: UdpSocket,
    last_user: Option<SocketAddr>,
    user: Arc<Place>,
    target: Arc<Place>,
    plugged: bool,
    late: BinaryHeap<Reverse<Late>>,
    count: u64,
    dice: Dice,
}

impl Line {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        let (mut there, mut back) = (vec![0; BUFFER], vec![0; BUFFER]);
        loop {
            let due = self.late.peek().map(|Reverse(late)| late.due);
            let timer = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => self.obey(order).await,
                    None => return,
                },
                Ok((len, from)) = self.near.recv_from(&mut there) => {
                    // A user at another place gets another mapping, as behind a NAT.
                    if self.last_user.is_some_and(|user| user != from) {
                        self.rebind(false).await;
                    }
                    self.last_user = Some(from);
                    self.pass(true, &there[..len]);
                }
                Ok((len, from)) = self.far.recv_from(&mut back) => {
                    // A NAT that filters by address, or strangers would be the user's problem and not the net's.
                    if from == self.target.address() {
                        self.pass(false, &back[..len]);
                    }
                }
                () = timer => self.release(),
            }
        }
    }

    async fn obey(&mut self, order: Order) {
        match order {
            Order::Rebind { network } => self.rebind(network).await,
            Order::Plug(plugged) => self.plugged = plugged,
            Order::Repeat { there, bytes } => self.send(there, &bytes),
        }
    }

    async fn rebind(&mut self, network: bool) {
        let fresh = match self.far.local_addr() {
            Ok(SocketAddr::V4(old)) if !network => ready((*old.ip(), 0).into()).await,
            _ => self.network.elsewhere().await,
        };
        if let Ok(fresh) = fresh {
            self.far = fresh;
        }
    }

    /// Takes a packet, and does to it what the weather wants.
    fn pass(&mut self, there: bool, bytes: &[u8]) {
        let weather = self.network.weather();
        self.count += 1;
        if self.count.is_multiple_of(OVERHEARD_EVERY) {
            let to = if there { Some(self.target.address()) } else { self.last_user };
            to.into_iter().for_each(|to| self.network.overhear(to, bytes));
        }
        if self.dice.chance(weather.lost) {
            self.network.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if !bytes.is_empty() && self.dice.chance(weather.damaged) {
            self.network.damaged.fetch_add(1, Ordering::Relaxed);
            let damaged = self.damage(bytes);
            self.send(there, &damaged);
        }
        let copies = if self.dice.chance(weather.doubled) { 2 } else { 1 };
        self.network.doubled.fetch_add(copies - 1, Ordering::Relaxed);
        for _ in 0..copies {
            if self.dice.chance(weather.delayed) && self.late.len() < MOST_LATE {
                self.network.delayed.fetch_add(1, Ordering::Relaxed);
                let due = Instant::now() + self.dice.between(Duration::ZERO, weather.delay);
                self.count += 1;
                let late = Late { due, count: self.count, there, bytes: bytes.to_vec() };
                self.late.push(Reverse(late));
            } else {
                self.send(there, bytes);
            }
        }
    }

    /// Some other bytes in it, or fewer.
    fn damage(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut damaged = bytes.to_vec();
        if self.dice.chance(0.2) {
            damaged.truncate(self.dice.below(bytes.len()));
            return damaged;
        }
        for _ in 0..=self.dice.below(3) {
            let at = self.dice.below(damaged.len());
            damaged[at] ^= 1 << self.dice.below(8);
        }
        damaged
    }

    fn release(&mut self) {
        let now = Instant::now();
        while self.late.peek().is_some_and(|Reverse(late)| late.due <= now) {
            if let Some(Reverse(late)) = self.late.pop() {
                self.send(late.there, &late.bytes);
            }
        }
    }

    fn send(&self, there: bool, bytes: &[u8]) {
        if !self.plugged || self.user.is_dark() || self.target.is_dark() {
            return;
        }
        // A full buffer loses it, as a network would.
        let sent = match (there, self.last_user) {
            (true, _) => self.far.try_send_to(bytes, self.target.address()),
            (false, Some(user)) => self.near.try_send_to(bytes, user),
            (false, None) => return,
        };
        if sent.is_ok() {
            self.network.passed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

//! A net with a part in the play: it is opened, answers, dies in one way or another, and is opened again.
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use m2m::{Config, Key, Net, NetEvent, Reply, Request, Router, names::Endpoint};
use tokio::time::{Instant, sleep};

use crate::{
    dice::{Dice, filler, mix},
    gate::{Gate, Network, Place, local},
    ledger::{Books, Who, answer_len},
};

/// A state folder, and a port, may be held for a moment by the life before.
const FREE: Duration = Duration::from_secs(20);

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Death {
    /// In good order: peers are told.
    Shutdown,
    /// The last handle goes: peers are told, nobody waits.
    Dropped,
    /// Cut off first, so that no peer hears of it: as if the power had failed.
    Silent,
}

impl Death {
    pub(crate) const ALL: [Death; 3] = [Death::Shutdown, Death::Dropped, Death::Silent];

    fn name(self) -> &'static str {
        match self {
            Death::Shutdown => "shut down",
            Death::Dropped => "dropped",
            Death::Silent => "died without a word",
        }
    }
}

/// Timers of a net.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Temper {
    /// As they are by default.
    Patient,
    /// Short ones, and new keys all the time: more happens in an hour.
    Hasty,
}

impl Temper {
    pub(crate) fn tune(self, config: &mut Config) {
        if self == Temper::Hasty {
            config.timers.ping_min = Duration::from_secs(5);
            config.timers.ping_max = Duration::from_secs(20);
            config.timers.host_ping_max = Duration::from_secs(10);
            config.timers.host_retry_max = Duration::from_secs(5);
            config.timers.rekey_interval = Duration::from_secs(40);
            config.limits.rekey_packets = 500;
        }
    }
}

/// What a net is made from.
pub(crate) struct Part {
    pub(crate) who: Who,
    /// It keeps this folder through its lives; without one its state is gone with each.
    pub(crate) state: Option<PathBuf>,
    pub(crate) temper: Temper,
    pub(crate) server: bool,
    pub(crate) ephemeral: bool,
    /// It registers with these hosts.
    pub(crate) hosts: Vec<(Who, Arc<Place>)>,
}

pub(crate) struct Actor {
    part: Part,
    pub(crate) place: Arc<Place>,
    /// To its hosts.
    pub(crate) gates: Vec<Gate>,
    net: Mutex<Option<Net>>,
    books: Books,
    /// The counters of its former lives.
    past: Mutex<Counters>,
}

impl Actor {
    pub(crate) async fn new(
        part: Part,
        network: &Arc<Network>,
        books: &Books,
        dice: &mut Dice,
    ) -> std::io::Result<Arc<Actor>> {
        let place = Place::nowhere();
        let mut gates = Vec::new();
        for (_, host) in &part.hosts {
            gates.push(Gate::open(network, place.clone(), host.clone(), dice.fork()).await?);
        }
        let (net, past) = (Mutex::new(None), Mutex::new(Counters::new()));
        Ok(Arc::new(Actor { part, place, gates, net, books: books.clone(), past }))
    }

    pub(crate) fn who(&self) -> Who {
        self.part.who
    }

    /// The hosts in its order.
    pub(crate) fn hosts(&self) -> Vec<Who> {
        self.part.hosts.iter().map(|(who, _)| *who).collect()
    }

    /// The net, while it lives.
    pub(crate) fn net(&self) -> Option<Net> {
        self.net.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Begins a life, on the port of the one before if that is free and wanted.
    pub(crate) async fn open(&self, same_port: bool) -> Result<(), m2m::Error> {
        let began = Instant::now();
        let net = loop {
            let old = self.place.address();
            let is_late = began.elapsed() > FREE / 2;
            let address = if same_port && !is_late { old } else { local(0, 0) };
            match self.builder(address).open().await {
                Ok(net) => break net,
                Err(why) if began.elapsed() > FREE => return Err(why),
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        };
        self.place.set_address(net.local_addr());
        self.place.set_dark(false);
        drop(tokio::spawn(net.serve(router(&self.books, self.who()))));
        drop(tokio::spawn(listen(self.books.clone(), self.who(), net.events())));
        *self.net.lock().unwrap_or_else(PoisonError::into_inner) = Some(net);
        Ok(())
    }

    fn builder(&self, address: SocketAddr) -> m2m::NetBuilder {
        let Part { who, state, temper, server, ephemeral, hosts } = &self.part;
        let temper = *temper;
        let mut builder = Net::builder(who.id(), key(*who))
            .bind(address)
            .server(*server)
            .ephemeral(*ephemeral)
            .max_router_tm(Duration::from_secs(120))
            .tune(move |config| temper.tune(config));
        if let Some(state) = state {
            builder = builder.state_dir(state);
        }
        for ((host, _), gate) in hosts.iter().zip(&self.gates) {
            let endpoint: Endpoint = format!("{}@{}", host.id(), gate.near)
                .parse()
                .expect("an id and an address make an endpoint");
            builder = builder.host(endpoint, key(*host));
        }
        builder
    }

    /// Ends a life. What is open at other nets is left to them.
    pub(crate) async fn die(&self, how: Death) {
        let taken = self.net.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(net) = taken else { return };
        self.books.note("lives ended", Some(self.who()), how.name());
        match how {
            Death::Shutdown => net.shutdown().await,
            Death::Dropped => {}
            Death::Silent => self.place.set_dark(true),
        }
        add(&mut self.past.lock().unwrap_or_else(PoisonError::into_inner), &counters(&net));
        // Sessions do not keep it open, so this is its end, or soon will be.
        drop(net);
        self.books.open().forgot(self.who(), None);
    }

    /// Counters of all its lives.
    pub(crate) fn counters(&self) -> Counters {
        let mut sum = self.past.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.net().iter().for_each(|net| add(&mut sum, &counters(net)));
        sum
    }
}

/// The key of a net: each has its own.
pub(crate) fn key(who: Who) -> Key {
    Key::from_bytes(&key_bytes(who)).expect("32 bytes are a key")
}

pub(crate) fn key_bytes(who: Who) -> [u8; 32] {
    let mut bytes = [0x5A; 32];
    bytes[..4].copy_from_slice(&who.0.to_be_bytes());
    bytes
}

/// Answers what others ask, some at once, some late, and tells the ledger.
pub(crate) fn router(books: &Books, who: Who) -> Router {
    let books = books.clone();
    Router::new().any("/work", move |request: Request| {
        let number = request.argument("n").and_then(|text| u64::from_str_radix(text, 16).ok());
        if let Some(number) = number {
            books.open().ran(who, number, request.peer, request.code, &request.payload);
        }
        answer(number)
    })
}

/// A handler's answer: what it is and when it comes follows from the request's number.
pub(crate) async fn answer(number: Option<u64>) -> Reply {
    let Some(number) = number else { return Reply::new(m2m::Code::BAD_REQUEST) };
    match mix(number ^ 0xA5) % 200 {
        0..=11 => sleep(Duration::from_millis(60 + number % 400)).await,
        12 => sleep(Duration::from_secs(3)).await,
        _ => {}
    }
    Reply::default().payload(filler(!number, answer_len(number)))
}

/// Writes down what a net says of itself.
async fn listen(books: Books, who: Who, mut events: tokio::sync::broadcast::Receiver<NetEvent>) {
    use tokio::sync::broadcast::error::RecvError;
    loop {
        match events.recv().await {
            Ok(event) => write_down(&books, who, &event),
            // It missed some, and one of those may have been an end.
            Err(RecvError::Lagged(_)) => {
                books.count("events missed");
                books.open().forgot(who, None);
            }
            Err(RecvError::Closed) => return,
        }
    }
}

pub(crate) fn write_down(books: &Books, who: Who, event: &NetEvent) {
    match event {
        NetEvent::Closed { peer, why } => {
            books.note("sessions ended", Some(who), format_args!("with {peer}: {why}"));
            if let Some(peer) = Who::of(*peer) {
                books.open().forgot(who, Some(peer));
            }
        }
        NetEvent::Recovered { peer, resumed: true } => {
            books.note("sessions opened anew, remembered", Some(who), format_args!("with {peer}"));
        }
        NetEvent::Recovered { peer, resumed: false } => {
            books.note("sessions opened anew, forgotten", Some(who), format_args!("with {peer}"));
        }
        NetEvent::Moved { peer, .. } => books.note("moves seen", Some(who), format_args!("of {peer}")),
        NetEvent::Registered(_) => books.count("registrations"),
        NetEvent::Unregistered(_) => books.count("registrations ended"),
        NetEvent::Accepted { .. } => books.count("sessions taken"),
        NetEvent::HostConnected { host, .. } => {
            books.note("hosts found", Some(who), format_args!("{host}"));
        }
        NetEvent::HostDisconnected { host, why } => {
            books.note("hosts lost", Some(who), format_args!("{host}: {why}"));
        }
        NetEvent::HostRefused { host, why } => {
            books.note("refusals by hosts", Some(who), format_args!("{host}: {why}"));
        }
        _ => {}
    }
}

/// A net's counters, by name.
pub(crate) type Counters = BTreeMap<String, u64>;

pub(crate) fn counters(net: &Net) -> Counters {
    let stats = net.stats();
    let mut counters = Counters::from([
        ("datagrams in".to_owned(), stats.datagrams_in),
        ("datagrams out".to_owned(), stats.datagrams_out),
        ("relayed".to_owned(), stats.relayed),
        ("handshakes answered".to_owned(), stats.handshakes),
        ("cookies sent".to_owned(), stats.cookies),
        ("hints sent".to_owned(), stats.hints_sent),
        ("recoveries".to_owned(), stats.recoveries),
        ("changes of keys".to_owned(), stats.rekeys),
        ("moves".to_owned(), stats.moves),
        ("moves not proven".to_owned(), stats.moves_failed),
        ("datagrams not sent".to_owned(), net.send_errors()),
    ]);
    counters.extend(stats.drops().map(|(why, count)| (format!("dropped: {}", why.words()), count)));
    counters
}

pub(crate) fn add(sum: &mut Counters, more: &Counters) {
    for (name, count) in more {
        *sum.entry(name.clone()).or_default() += count;
    }
}

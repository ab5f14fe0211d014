//! Those who are served: bare machines on sockets, cheaper than the host, so that it is the host that sets the pace.
use std::{
    collections::VecDeque,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use m2m_proto::{
    coap::{code::Code, option_set::OptionSet},
    config::Config,
    event::{Event, Output, RequestId, SessionId},
    net::{Net, Request, Route},
    session::keys::{DeviceKey, PeerKey},
    time::Time,
};

use crate::names;

/// One packet in so many is kept for the attackers.
const OVERHEARD_EVERY: u64 = 64;
/// So many of them.
const OVERHEARD: usize = 256;

/// What happened to requests so far.
#[derive(Clone, Copy, Default)]
pub(crate) struct Count {
    pub(crate) served: u64,
    pub(crate) failed: u64,
}

#[derive(Default)]
struct Shared {
    served: AtomicU64,
    failed: AtomicU64,
    stop: AtomicBool,
    /// What an eavesdropper has: INITs, and some of the last packets under session keys.
    inits: Mutex<Vec<Vec<u8>>>,
    packets: Mutex<VecDeque<Vec<u8>>>,
}

pub(crate) struct Clients {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

impl Clients {
    pub(crate) fn start(host: SocketAddr, count: usize, in_flight: usize) -> Clients {
        let shared = Arc::new(Shared::default());
        let clients = (0..count).map(|number| Client::new(number, host, shared.clone()));
        let clients: Vec<Client> = clients.collect();
        let stopped = shared.clone();
        // One thread that never sleeps: waking up would cost more than all else that a client does.
        let thread = std::thread::spawn(move || serve(clients, in_flight, &stopped.stop));
        Clients { thread, shared }
    }

    pub(crate) fn count(&self) -> Count {
        Count {
            served: self.shared.served.load(Ordering::Relaxed),
            failed: self.shared.failed.load(Ordering::Relaxed),
        }
    }

    /// The INITs that the clients' sessions began with.
    pub(crate) fn inits(&self) -> Vec<Vec<u8>> {
        self.shared.inits.lock().expect("no client panicked").clone()
    }

    /// Packets that the clients sent lately.
    pub(crate) fn packets(&self) -> Vec<Vec<u8>> {
        self.shared.packets.lock().expect("no client panicked").iter().cloned().collect()
    }

    pub(crate) fn stop(self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no client panicked");
    }
}

/// Drives all clients in turn.
fn serve(mut clients: Vec<Client>, in_flight: usize, stop: &AtomicBool) {
    clients.iter_mut().for_each(|client| client.start(in_flight));
    while !stop.load(Ordering::Relaxed) {
        let mut heard = false;
        clients.iter_mut().for_each(|client| heard |= client.turn());
        if !heard {
            std::thread::yield_now();
        }
    }
}

struct Client {
    net: Net,
    socket: UdpSocket,
    host: SocketAddr,
    started: Instant,
    shared: Arc<Shared>,
    session: Option<SessionId>,
    next_request: u64,
    sent: u64,
    due: Time,
}

impl Client {
    fn new(number: usize, host: SocketAddr, shared: Arc<Shared>) -> Client {
        let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port is free");
        socket.set_nonblocking(true).expect("a socket need not wait");
        let own = names::id(0xC1, number);
        let config = Config::new(own, names::key(), DeviceKey::from_bytes([number as u8; 32]));
        let seed = [number as u8; 32];
        let (started, net) = (Instant::now(), Net::new(config, seed, Time::ZERO));
        Client {
            net,
            socket,
            host,
            started,
            shared,
            session: None,
            next_request: 0,
            sent: 0,
            due: Time::ZERO,
        }
    }

    fn now(&self) -> Time {
        Time::from_micros(self.started.elapsed().as_micros() as u64)
    }

    fn start(&mut self, in_flight: usize) {
        let key = PeerKey::Net(names::key());
        let session = self.net.connect(self.now(), names::HOST, &key, Route::Direct(self.host));
        self.session = session.ok();
        (0..in_flight).for_each(|_| self.ask());
        self.carry_out();
    }

    /// Takes what came; true if anything did. Each packet is answered by itself, as if others' were in between.
    fn turn(&mut self) -> bool {
        let mut buffer = [0; 2048];
        let mut heard = false;
        while let Ok((len, from)) = self.socket.recv_from(&mut buffer) {
            let now = self.now();
            self.net.handle_datagram(now, from, &mut buffer[..len]);
            self.carry_out();
            heard = true;
        }
        let now = self.now();
        if now >= self.due {
            self.net.handle_timeout(now);
            self.carry_out();
        }
        heard
    }

    /// Does what the machine wants done, and notes when it wants to be asked again.
    fn carry_out(&mut self) {
        loop {
            let now = self.now();
            match self.net.poll_output(now) {
                Output::Timeout(at) => {
                    self.due = at;
                    return;
                }
                Output::Datagram { to, bytes } => {
                    self.overhear(&bytes);
                    // A full buffer loses it, as a network would.
                    let _ = self.socket.send_to(&bytes, to);
                    self.net.recycle(bytes);
                }
                Output::Event(Event::Response { message, .. }) => {
                    self.shared.served.fetch_add(1, Ordering::Relaxed);
                    self.net.recycle(message);
                    self.ask();
                }
                Output::Event(Event::RequestFailed { .. }) => {
                    self.shared.failed.fetch_add(1, Ordering::Relaxed);
                    self.ask();
                }
                _ => {}
            }
        }
    }

    fn ask(&mut self) {
        let Some(session) = self.session else { return };
        let (now, options) = (self.now(), OptionSet::default());
        let request = Request {
            code: Code::POST,
            options: &options,
            payload: &[7; 64],
            confirmable: true,
            repeatable: false,
            deadline: now + Duration::from_secs(30),
        };
        self.next_request += 1;
        self.net.request(now, session, RequestId(self.next_request), &request).expect("there is room");
    }

    fn overhear(&mut self, packet: &[u8]) {
        self.sent += 1;
        if packet.first().is_some_and(|first| *first == 0x91) {
            self.shared.inits.lock().expect("no client panicked").push(packet.to_vec());
        } else if self.sent.is_multiple_of(OVERHEARD_EVERY) {
            let mut packets = self.shared.packets.lock().expect("no client panicked");
            packets.push_back(packet.to_vec());
            if packets.len() > OVERHEARD {
                packets.pop_front();
            }
        }
    }
}

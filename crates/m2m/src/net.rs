//! A net: one socket, one id, one key; and the task that drives it.
//!
//! ```text
//!  builder  what a net is made of          shared  the machine, and who waits for what it tells
//!  socket   datagrams, IPv4 and IPv6       driver  the task: receive, time, what could not be sent at once
//!  batched  several of them in one call    egress  datagrams that leave together
//!  events   whom it concerns               waiting who waits for an answer
//!  hosts    names that are looked up       handlers  requests of others
//!  shards   several machines on one port   store   claims and epochs, on the disk
//! ```
#[cfg(target_os = "linux")]
mod batched;
#[cfg(not(target_os = "linux"))]
#[path = "net/unbatched.rs"]
mod batched;
mod builder;
mod clock;
mod driver;
mod egress;
mod events;
mod handlers;
mod hosts;
mod news;
mod remote_key;
mod shards;
pub(crate) mod shared;
mod socket;
mod store;
mod waiting;

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use m2m_proto::{
    error::{CommandError, ConnectError, ErrorKind},
    event::SessionId,
    id::Id,
    net::{ConnectOptions, Route},
    stats::Stats,
    wire::frame::FoundStatus,
};
use tokio::{
    sync::{broadcast, oneshot, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

pub use builder::NetBuilder;
pub use news::{HostState, NetEvent};

use crate::{
    Error, Key, Peer, Router, Session,
    names::short,
    peer::Target,
    session::{Path, Standing},
};
use shards::Shards;
use shared::{Shared, State, Waiter};

/// How long a host may take to say whether a net is online.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Answers that are being made when the net shuts down get so long.
const HANDLER_GRACE: Duration = Duration::from_secs(1);
/// The addresses of one name are tried so long after each other, and so many of them.
const NEXT_ADDRESS: Duration = Duration::from_millis(300);
const MAX_ADDRESSES: usize = 4;

/// An open net. Clones are the same net; when the last is dropped it closes, and so do its sessions.
#[derive(Clone)]
pub struct Net(Arc<Handle>);

struct Handle {
    shards: Shards,
    key: Key,
    address: SocketAddr,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shards.all().iter().for_each(close);
    }
}

impl Net {
    /// Starts to put a net together.
    pub fn builder(id: Id, key: Key) -> NetBuilder {
        NetBuilder::new(id, key)
    }

    fn new(shards: Shards, key: Key, address: SocketAddr) -> Net {
        Net(Arc::new(Handle { shards, key, address }))
    }

    /// The shard that does what one has to do for all: the host's, for instance.
    fn shared(&self) -> &Arc<Shared> {
        self.0.shards.first()
    }

    /// Its id.
    pub fn id(&self) -> Id {
        self.shared().id
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.0.address
    }

    /// Opens a session and waits until it is up. When dropped before, nothing is left of it.
    ///
    /// # Errors
    /// `Unreachable`, `UnknownPeer`, `AuthenticationFailed`, `Refused` (the host does not register this net),
    /// `Configuration`, `Closed`.
    pub async fn connect(&self, peer: Peer) -> Result<Session, Error> {
        if let Target::Name(endpoint) = &peer.target {
            let found = endpoint.resolve().await;
            let found = found.map_err(|why| Error::caused(ErrorKind::Unreachable, why.to_string(), why))?;
            let id = endpoint.id.unwrap_or(Id::ANY);
            return self.connect_first(id, &found, &peer).await;
        }
        let session = self.dial(peer)?;
        session.up().await?;
        Ok(session)
    }

    /// Tries the addresses of a name one after the other, without waiting for a failure: the first that answers wins.
    async fn connect_first(&self, id: Id, addresses: &[SocketAddr], wanted: &Peer) -> Result<Session, Error> {
        let mut attempts = JoinSet::new();
        let mut delay = Duration::ZERO;
        for address in addresses.iter().take(MAX_ADDRESSES) {
            let peer = Peer { target: Target::At(id, *address), ..wanted.clone() };
            // A session does not keep its net open, nor may an attempt.
            let (shards, own_key) = (self.0.shards.clone(), self.0.key.clone());
            attempts.spawn(async move {
                sleep(delay).await;
                let session = dial(&shards, &own_key, peer)?;
                session.up().await.map(|()| session)
            });
            delay += NEXT_ADDRESS;
        }
        let mut failed = Error::new(ErrorKind::Unreachable, "the name has no address");
        while let Some(attempt) = attempts.join_next().await {
            match attempt {
                Ok(Ok(session)) => return Ok(session),
                Ok(Err(why)) => failed = why,
                Err(why) => failed = Error::caused(ErrorKind::Closed, "the attempt was ended", why),
            }
        }
        Err(failed)
    }

    /// Opens a session and returns at once: requests made in it wait, and leave when it is up.
    ///
    /// # Errors
    /// `Configuration`: no host for a peer known by its id only, a name that must be looked up first (use
    /// [`Net::connect`]), a key that does not fit. `Refused`: too many sessions. `Closed`.
    pub fn dial(&self, peer: Peer) -> Result<Session, Error> {
        dial(&self.0.shards, &self.0.key, peer)
    }

    /// The newest session that this peer opened to this net, for requests of our own in it. Dropping it closes nothing.
    pub fn session(&self, peer: Id) -> Option<Session> {
        let shared = self.0.shards.of(peer);
        let session = shared.look().machine.accepted_from(peer)?;
        Session::look_at(shared, session)
    }

    /// Answers requests with this router until the net closes. The router is in use from this call on; dropping the
    /// future ends that. It doesn't keep the net open: `tokio::spawn(net.serve(router))`.
    ///
    /// # Errors
    /// `Configuration`: another router is in use.
    pub fn serve(&self, router: Router) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        let serving = Serving::start(&self.0.shards, router);
        async move {
            serving?.shards.ended().await;
            Ok(())
        }
    }

    /// Asks the host whether a net is registered with it. Waits up to 10 s for a host that is away.
    ///
    /// # Errors
    /// `Unreachable`: no host answered. `Refused`: it does not tell, or not now. `Configuration`: there is no host.
    pub async fn online(&self, id: Id) -> Result<bool, Error> {
        let shared = self.shared();
        let (waiter, found) = oneshot::channel();
        let asked = shared.with(|state, now| {
            state.check_open()?;
            let request = state.wait(Waiter::Found(waiter));
            let asked = state.machine.lookup(now, id, request, now + LOOKUP_TIMEOUT);
            asked.map_err(|why| {
                state.forget(request);
                Error::command(format_args!("asking whether {} is online", short(id)), why)
            })
        });
        asked?;
        let refused = |why: &str| {
            Err(Error::new(ErrorKind::Refused, format!("whether {} is online: {why}", short(id))))
        };
        match found.await {
            Ok(Some(FoundStatus::ONLINE | FoundStatus::ELSEWHERE)) => Ok(true),
            Ok(Some(FoundStatus::OFFLINE | FoundStatus::SILENT)) => Ok(false),
            Ok(Some(FoundStatus::BUSY)) => refused("the host is busy: ask again later"),
            Ok(Some(status)) => refused(&status.to_string()),
            Ok(None) => Err(Error::new(
                ErrorKind::Unreachable,
                format!("whether {} is online is unknown: {}", short(id), ConnectError::HostUnreachable),
            )),
            Err(_) => Err(Error::net_closed()),
        }
    }

    /// How it stands with its host now.
    pub fn host(&self) -> HostState {
        self.shared().host.borrow().clone()
    }

    /// How it stands with its host, from now on.
    pub fn watch_host(&self) -> watch::Receiver<HostState> {
        self.shared().host.subscribe()
    }

    /// Waits until the net is registered with its host, however long that takes.
    ///
    /// # Errors
    /// `Refused`: the host said no. `Configuration`: there is no host. `Closed`.
    pub async fn registered(&self) -> Result<(), Error> {
        let shared = self.shared();
        let mut host = shared.host.subscribe();
        loop {
            // Cloned: the state's lock must not be taken while the watch is.
            let now = host.borrow_and_update().clone();
            match now {
                HostState::Connected { .. } => return Ok(()),
                HostState::Refused { why } => {
                    return Err(Error::new(ErrorKind::Refused, format!("not registered: {why}")));
                }
                HostState::None => {
                    return Err(Error::new(
                        ErrorKind::Configuration,
                        "this net has no host to register with",
                    ));
                }
                _ if shared.look().closed => return Err(Error::net_closed()),
                _ => {}
            }
            if host.changed().await.is_err() {
                return Err(Error::net_closed());
            }
        }
    }

    /// What happens to it from now on. Who falls 256 events behind misses the oldest.
    pub fn events(&self) -> broadcast::Receiver<NetEvent> {
        self.shared().news.subscribe()
    }

    /// Counters since it was opened.
    pub fn stats(&self) -> Stats {
        self.0.shards.stats()
    }

    /// Datagrams that the system refused to send (no route, and the like).
    pub fn send_errors(&self) -> u64 {
        self.0.shards.sum(|shared| shared.look().egress.errors())
    }

    /// Handshakes of others that wait for the first packet of the session.
    pub fn half_open(&self) -> usize {
        self.0.shards.count(|machine| machine.half_open())
    }

    /// Nets registered here.
    pub fn registrations(&self) -> usize {
        self.0.shards.count(|machine| machine.registrations())
    }

    /// Sessions that live here, those being opened and closed included.
    pub fn sessions(&self) -> usize {
        self.0.shards.count(|machine| machine.sessions())
    }

    /// Closes the net in good order: answers that are being made get up to a second, peers are told, the socket is
    /// closed when this returns. Once begun it goes on to its end, even if the future is dropped.
    pub async fn shutdown(&self) {
        self.0.shards.all().iter().for_each(begin_shutdown);
        self.0.shards.ended().await;
    }
}

impl State {
    pub(crate) fn check_open(&self) -> Result<(), Error> {
        if self.draining { Err(Error::net_closed()) } else { Ok(()) }
    }
}

/// Takes no more requests, and closes once those under way are answered. In a task of its own: whoever asked for it
/// may stop waiting, which must not leave a net that is open and takes nothing.
fn begin_shutdown(shared: &Arc<Shared>) {
    let mut state = shared.look();
    if std::mem::replace(&mut state.draining, true) {
        return;
    }
    state.refuse_waiting(shared.now());
    let mut handlers = state.incoming.take_tasks();
    let runtime = state.runtime.clone();
    drop(state);
    let shared = shared.clone();
    runtime.spawn(async move {
        let _ = timeout(HANDLER_GRACE, async { while handlers.join_next().await.is_some() {} }).await;
        drop(handlers);
        close(&shared);
    });
}

fn close(shared: &Arc<Shared>) {
    shared.with(|state, now| state.close(shared, now));
}

fn dial(shards: &Shards, own_key: &Key, peer: Peer) -> Result<Session, Error> {
    let (id, route) = match &peer.target {
        Target::Id(id) => (*id, Route::Host),
        Target::At(id, address) => (*id, Route::Direct(socket::unmapped(*address))),
        Target::Name(endpoint) => {
            let text = format!("{endpoint}: a name has to be looked up: connect, or dial an address");
            return Err(Error::new(ErrorKind::Configuration, text));
        }
    };
    let key = peer.key.as_ref().unwrap_or(own_key);
    let (peer_key, id) = key.to_peer_key(shards.first().id, id)?;
    let shared = shards.of(id);
    let target = peer.target;
    let opened = shared.with(|state, now| -> Result<(SessionId, watch::Receiver<Standing>), Error> {
        state.check_open()?;
        if let (Route::Direct(address), Some(socket)) = (route, &state.socket)
            && !socket.can_reach(address)
        {
            let text = format!("{address}: a socket at {} can't reach it", socket.local_addr());
            return Err(Error::new(ErrorKind::Configuration, text));
        }
        let session = state
            .machine
            .connect_with(now, id, &peer_key, route, &ConnectOptions { pin: peer.pin })
            .map_err(|why| Error::command(format_args!("connecting to {target}"), why))?;
        let path = state.machine.info(session).map(|info| Path::from(info.path));
        let path =
            path.ok_or_else(|| Error::command(format_args!("connecting to {target}"), CommandError::Stale))?;
        let (sender, standing) = watch::channel(Standing::connecting(id, path));
        state.sessions.insert(session, sender);
        Ok((session, standing))
    });
    let (session, standing) = opened?;
    Ok(Session::dialled(shared.clone(), session, standing, target.to_string()))
}

/// A router in use; dropped, it is out of use.
struct Serving {
    shards: Shards,
    router: Arc<Router>,
}

impl Serving {
    fn start(shards: &Shards, router: Router) -> Result<Serving, Error> {
        // Dropped after a failure, it takes the router out of those that have it already.
        let serving = Serving { shards: shards.clone(), router: Arc::new(router) };
        for shared in shards.all() {
            shared.with(|state, _| {
                state.check_open()?;
                if state.router.is_some() {
                    let text = "this net serves a router already";
                    return Err(Error::new(ErrorKind::Configuration, text));
                }
                state.install(&serving.router);
                Ok(())
            })?;
        }
        Ok(serving)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        for shared in self.shards.all() {
            let ours = shared.look().router.take_if(|router| Arc::ptr_eq(router, &self.router));
            // Outside of the lock: handlers may hold handles of this net.
            drop(ours);
        }
    }
}

//! How a net is put together and opened.
use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use m2m_proto::{
    config::{Config, Shard},
    error::ErrorKind,
    id::Id,
    net::{self as proto, HostConfig},
    session::keys::DeviceKey,
    time::Time,
};
use tracing::{info, warn};

use super::{
    Net, driver,
    handlers::MAX_RUNNING,
    hosts::{self, HostName},
    news::HostState,
    remote_key::OwnKey,
    shards::{self, Post, Shards},
    shared::Shared,
    socket::{CAN_SHARE_PORTS, Socket},
    store::{self, Store},
};
use crate::{
    Error, Key,
    names::Endpoint,
    state::{Claims, StateDir, StateError},
};

type Tune = Box<dyn FnOnce(&mut Config) + Send>;

/// A net to be: what it cannot do without was given to [`Net::builder`], the rest has a default.
#[must_use = "a net is there once it is opened"]
pub struct NetBuilder {
    id: Id,
    key: Key,
    bind: Option<SocketAddr>,
    hosts: Vec<(Endpoint, Key)>,
    state_dir: Option<PathBuf>,
    ephemeral: bool,
    server: bool,
    max_router_tm: Option<Duration>,
    accept: bool,
    strict: bool,
    batched: bool,
    max_handlers: usize,
    shards: u8,
    allow_key_change: bool,
    tune: Option<Tune>,
}

/// What a state folder gives to a net.
struct Kept {
    dir: Option<StateDir>,
    device: Option<DeviceKey>,
    epoch: u64,
    claims: Option<Claims>,
    own_key: OwnKey,
}

impl NetBuilder {
    pub(super) fn new(id: Id, key: Key) -> NetBuilder {
        NetBuilder {
            id,
            key,
            bind: None,
            hosts: Vec::new(),
            state_dir: None,
            ephemeral: false,
            server: false,
            max_router_tm: None,
            accept: true,
            strict: false,
            batched: true,
            max_handlers: MAX_RUNNING,
            shards: 1,
            allow_key_change: false,
            tune: None,
        }
    }

    /// Where to listen. Default: any free port, IPv6 and IPv4. `[::]:PORT` listens for both, too.
    pub fn bind(mut self, address: SocketAddr) -> NetBuilder {
        self.bind = Some(address);
        self
    }

    /// A host to register with, and its net key (or a pair key from this net to it). Repeatable, up to 8: the first is
    /// preferred. A host named without its id is whichever net listens there; only one may be.
    pub fn host(mut self, host: Endpoint, key: Key) -> NetBuilder {
        self.hosts.push((host, key));
        self
    }

    /// The folder that keeps the device key, the epoch and a host's claims; made if it is missing. Without one
    /// nothing is kept, and the device key is made from the net key: who has the net key can take the id.
    pub fn state_dir(mut self, path: impl Into<PathBuf>) -> NetBuilder {
        self.state_dir = Some(path.into());
        self
    }

    /// Register without claiming the id. Default: no.
    pub fn ephemeral(mut self, ephemeral: bool) -> NetBuilder {
        self.ephemeral = ephemeral;
        self
    }

    /// Be a host: let others register, and relay for them. Default: no.
    pub fn server(mut self, server: bool) -> NetBuilder {
        self.server = server;
        self
    }

    /// As a host, register only ids that are claimed already, by their devices: claims are made with
    /// [`crate::state::Claims::pin`] or `m2m server claims pin`, and ephemeral registrations are refused. Default: no.
    pub fn strict(mut self, strict: bool) -> NetBuilder {
        self.strict = strict;
        self
    }

    /// Let holders of this net's key replace it by another from afar ([`Net::set_remote_key`]). It needs a state
    /// folder, where the new key is kept: at a later start it counts in the place of the configured one, until another
    /// is configured. Default: no.
    pub fn allow_key_change(mut self, allow: bool) -> NetBuilder {
        self.allow_key_change = allow;
        self
    }

    /// The longest that a registration here lives without a sign of life. Default: 600 s.
    pub fn max_router_tm(mut self, time: Duration) -> NetBuilder {
        self.max_router_tm = Some(time);
        self
    }

    /// Take sessions that others open. Default: yes.
    pub fn accept(mut self, accept: bool) -> NetBuilder {
        self.accept = accept;
        self
    }

    /// Handlers that may be under way at a time; so many requests more wait for one of them to end, and beyond those
    /// they are answered 5.03. Handlers that wait for nothing don't count. Default: 1,024.
    pub fn max_handlers(mut self, count: usize) -> NetBuilder {
        self.max_handlers = count;
        self
    }

    /// Take and give several datagrams in one call to the system, where it can. Default: yes.
    pub fn batched(mut self, batched: bool) -> NetBuilder {
        self.batched = batched;
        self
    }

    /// Be so many machines on one port, 1 to 128: each has a socket and a task of its own, so that a host uses as many
    /// cores, if its runtime has as many threads. A peer is served by the one that its id falls to. Limits are those of
    /// each, but for [`NetBuilder::max_handlers`] and new claims, which they share. Linux only. Default: 1.
    pub fn shards(mut self, count: u8) -> NetBuilder {
        self.shards = count;
        self
    }

    /// Changes what has no method of its own here: limits and timers. Called last; what it sets stands.
    pub fn tune(mut self, tune: impl FnOnce(&mut Config) + Send + 'static) -> NetBuilder {
        self.tune = Some(Box::new(tune));
        self
    }

    /// Opens the net. It is registered with its host a little later ([`Net::registered`]); a host that is away, or
    /// whose name has no address, is tried until it is there.
    ///
    /// # Errors
    /// `Configuration`: keys or ids that can't work, a state folder that another net holds. `Io`: the port is in use,
    /// the disk refuses.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O and time.
    pub async fn open(mut self) -> Result<Net, Error> {
        self.check()?;
        // A pair key is told before the socket and the folder are tried.
        self.key.to_net_key()?;
        let sockets = match self.shards {
            1 => vec![Arc::new(Socket::bind(self.bind, self.batched)?)],
            count => Socket::bind_shared(self.bind, self.batched, count)?,
        };
        let Some(first) = sockets.first().cloned() else { return Err(no_shards()) };
        let kept = read_state(self.key.clone(), self.state_dir.take(), self.server).await?;
        let net_key = kept.own_key.net_key()?;
        let device = kept.device.unwrap_or_else(|| DeviceKey::derived_from(&net_key, self.id));
        let mut config = Config::new(self.id, net_key, device);
        config.accept = self.accept;
        config.registry = self.server;
        config.relay = self.server;
        config.ephemeral = self.ephemeral;
        config.allow_key_change = self.allow_key_change;
        config.last_epoch = kept.epoch;
        config.max_router_tm = self.max_router_tm.unwrap_or(config.max_router_tm);
        if let Some(tune) = self.tune.take() {
            tune(&mut config);
        }
        kept.own_key.configure(&mut config);
        let claims = kept.claims.or_else(|| config.registry.then(Claims::in_memory)).map(Arc::new);
        let dir = kept.dir.map(Arc::new);
        let store = || Store::new(dir.clone(), claims.clone(), kept.own_key.clone(), self.strict);
        let shards = self.start(&config, &sockets, store)?;
        self.add_hosts(shards.first(), &first)?;
        shards.all().iter().for_each(store::watch_edits);
        let address = first.local_addr();
        for (shared, socket) in shards.all().iter().cloned().zip(sockets) {
            let ending = driver::Ending(shared.clone());
            tokio::spawn(async move {
                let _ending = ending;
                driver::run(shared, socket).await;
            });
        }
        info!(id = ?self.id, %address, shards = self.shards, "net open");
        Ok(Net::new(shards, self.key, address))
    }

    /// A machine for each socket, and what belongs to it.
    fn start(
        &self,
        config: &Config,
        sockets: &[Arc<Socket>],
        store: impl Fn() -> Store,
    ) -> Result<Shards, Error> {
        let mut all: Vec<Arc<Shared>> = Vec::new();
        let max_handlers = self.max_handlers.div_ceil(sockets.len().max(1));
        let parts = shards::configs(config, self.shards).into_iter().zip(Post::new(self.shards)).zip(sockets);
        for ((config, post), socket) in parts {
            let mut seed = [0; 32];
            getrandom::fill(&mut seed)
                .map_err(|why| Error::new(ErrorKind::Io, format!("the system has no randomness: {why}")))?;
            let machine = proto::Net::new(config, seed, Time::ZERO);
            let shared = Shared::new(machine, socket.clone(), store(), max_handlers, post);
            let shared = match all.first() {
                Some(first) => shared.beside(first),
                None => shared,
            };
            all.push(Arc::new(shared));
        }
        all.iter().for_each(|shared| shared.with(|state, now| state.set_unix_time(now)));
        Ok(Shards::new(all))
    }

    fn check(&self) -> Result<(), Error> {
        let wrong = |text: String| Err(Error::new(ErrorKind::Configuration, text));
        if self.id.is_reserved() {
            return wrong(format!("{}: that id is reserved: use another", self.id));
        }
        if self.hosts.iter().filter(|(host, _)| host.id.is_none()).count() > 1 {
            return wrong("several hosts without an id can't be told apart: write ID@HOST".to_owned());
        }
        match self.shards {
            1 => Ok(()),
            0 => Err(no_shards()),
            count if count > Shard::MAX => wrong(format!("{count} shards: a net has {} at most", Shard::MAX)),
            _ if !CAN_SHARE_PORTS => wrong(
                "several shards need a port that sockets can share, which this system has not: use one shard"
                    .to_owned(),
            ),
            _ if !self.hosts.is_empty() => {
                wrong("a net that registers with a host has one shard: leave the shards out".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn add_hosts(&self, shared: &Arc<Shared>, socket: &Arc<Socket>) -> Result<(), Error> {
        for (place, (endpoint, key)) in self.hosts.iter().enumerate() {
            let (peer_key, id) = key.to_peer_key(self.id, endpoint.id.unwrap_or(Id::ANY))?;
            let address = hosts::address_of(endpoint);
            if let Some(address) = address
                && !socket.can_reach(address)
            {
                let text = format!("host {endpoint}: a socket at {} can't reach it", socket.local_addr());
                return Err(Error::new(ErrorKind::Configuration, text));
            }
            if key.is_same_net_key(&self.key) {
                info!(
                    "one fleet key: this net and its host {endpoint} have the same key, so each can be the other"
                );
            }
            let host = HostConfig { id, key: peer_key, addresses: address.into_iter().collect() };
            let named = Endpoint { id: (id != Id::ANY).then_some(id), ..endpoint.clone() };
            shared.host.send_replace(HostState::Connecting);
            shared
                .with(|state, now| {
                    state.hosts.push(HostName::new(&named));
                    state.machine.add_host(now, host)
                })
                .map_err(|why| Error::command(format_args!("host {endpoint}"), why))?;
            hosts::keep(shared, socket, place, named);
        }
        if self.hosts.is_empty() && self.ephemeral {
            warn!("an ephemeral registration was asked for, and there is no host to register with");
        }
        Ok(())
    }
}

fn no_shards() -> Error {
    Error::new(ErrorKind::Configuration, "a net has one shard at least")
}

/// Reads the state folder, off the event loop.
async fn read_state(key: Key, path: Option<PathBuf>, server: bool) -> Result<Kept, Error> {
    let Some(path) = path else {
        let own_key = OwnKey::read(&key, None)?;
        return Ok(Kept { dir: None, device: None, epoch: 0, claims: None, own_key });
    };
    let read = move || -> Result<Kept, StateError> {
        let dir = StateDir::open(&path)?;
        let device = Some(DeviceKey::from_bytes(*dir.device_key()?));
        let epoch = dir.epoch()?;
        let claims = if server { Some(dir.claims()?) } else { None };
        let own_key = OwnKey::read(&key, Some(&dir))?;
        Ok(Kept { dir: Some(dir), device, epoch, claims, own_key })
    };
    match tokio::task::spawn_blocking(read).await {
        Ok(kept) => Ok(kept?),
        Err(why) => Err(Error::caused(ErrorKind::Io, format!("reading the state failed: {why}"), why)),
    }
}

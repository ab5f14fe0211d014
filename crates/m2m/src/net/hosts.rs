//! Where the hosts' names lead to: looked up when the net opens, again whenever a host is lost, and every few minutes.
use std::{net::SocketAddr, sync::Arc, time::Duration};

use m2m_proto::id::Id;
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::{
    shared::{Shared, State},
    socket::Socket,
};
use crate::names::Endpoint;

/// A resolver that takes longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// A failed look-up is tried again after this, doubling up to the longest wait.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// A name is looked up anew after this, whatever happens.
const REFRESH: Duration = Duration::from_secs(300);

/// A host as its user named it.
pub(super) struct HostName {
    /// As the machine knows it: all-zero until an unnamed host has told its id.
    pub(super) id: Id,
    /// Asks for another look-up; none for an address, which leads where it leads.
    again: Option<Arc<Notify>>,
}

impl HostName {
    pub(super) fn new(endpoint: &Endpoint) -> HostName {
        let is_name = address_of(endpoint).is_none();
        HostName { id: endpoint.id.unwrap_or(Id::ANY), again: is_name.then(Arc::default) }
    }
}

/// The address, where the endpoint is one.
pub(super) fn address_of(endpoint: &Endpoint) -> Option<SocketAddr> {
    Some(SocketAddr::new(endpoint.host.parse().ok()?, endpoint.port))
}

impl State {
    /// A host that was named by its address alone has an id now.
    pub(super) fn learn_host_id(&mut self, id: Id) {
        if self.hosts.iter().any(|host| host.id == id) {
            return;
        }
        if let Some(host) = self.hosts.iter_mut().find(|host| host.id == Id::ANY) {
            host.id = id;
        }
    }

    pub(super) fn resolve_again(&self, id: Id) {
        if let Some(again) = self.hosts.iter().find(|host| host.id == id).and_then(|host| host.again.as_ref())
        {
            again.notify_one();
        }
    }
}

/// Starts a task that keeps the address of one host's name. Nothing to do for an address.
pub(super) fn keep(shared: &Arc<Shared>, socket: &Arc<Socket>, place: usize, endpoint: Endpoint) {
    let mut state = shared.look();
    let Some(again) = state.hosts.get(place).and_then(|host| host.again.clone()) else { return };
    let task = follow(shared.clone(), socket.clone(), place, endpoint, again);
    let runtime = state.runtime.clone();
    state.background.spawn_on(task, &runtime);
}

async fn follow(
    shared: Arc<Shared>,
    socket: Arc<Socket>,
    place: usize,
    endpoint: Endpoint,
    again: Arc<Notify>,
) {
    let mut wait = RETRY_MIN;
    loop {
        match look_up(&socket, &endpoint).await {
            Ok(addresses) => {
                debug!(%endpoint, ?addresses, "the host's name was looked up");
                shared.with(|state, now| {
                    let Some(id) = state.hosts.get(place).map(|host| host.id) else { return };
                    state.machine.set_host_addresses(now, id, &addresses);
                });
                wait = RETRY_MIN;
                // Also now and then: nobody is told when a host that stands by, or a better one, is tried in vain.
                let _ = timeout(REFRESH, again.notified()).await;
            }
            Err(why) => {
                warn!("{why}; trying again in {} s", wait.as_secs());
                sleep(wait).await;
                wait = (wait * 2).min(RETRY_MAX);
            }
        }
    }
}

/// The addresses of a name that this socket can reach.
async fn look_up(socket: &Socket, endpoint: &Endpoint) -> Result<Vec<SocketAddr>, String> {
    let found = match timeout(PATIENCE, endpoint.resolve()).await {
        Ok(found) => found.map_err(|why| why.to_string())?,
        Err(_) => return Err(format!("no address for {}: the resolver does not answer", endpoint.host)),
    };
    let usable: Vec<_> = found.into_iter().filter(|address| socket.can_reach(*address)).collect();
    if usable.is_empty() {
        return Err(format!("{} has only addresses that this net's socket can't reach", endpoint.host));
    }
    Ok(usable)
}

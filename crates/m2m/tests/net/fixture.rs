//! Nets for tests: on the loopback interface, with timers that fit a test's patience.
use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use m2m::{
    Config, HostState, Id, Key, Net, NetBuilder, Peer, Reply, Request, Router, Session, names::Endpoint,
};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn id(n: u128) -> Id {
    Id(n.to_be_bytes())
}

/// The key of the net with this number: each has its own.
pub(crate) fn key(n: u128) -> Key {
    Key::from_bytes(&key_bytes(n)).unwrap()
}

pub(crate) fn key_bytes(n: u128) -> [u8; 32] {
    let mut bytes = [0x5a; 32];
    bytes[..16].copy_from_slice(&n.to_be_bytes());
    bytes
}

pub(crate) fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

pub(crate) fn builder(n: u128) -> NetBuilder {
    Net::builder(id(n), key(n)).bind(local(0)).tune(quick)
}

/// Timers for tests that wait for failures.
pub(crate) fn quick(config: &mut Config) {
    config.timers.handshake_timeout = Duration::from_secs(4);
    config.timers.ping_min = Duration::from_secs(1);
    config.timers.host_retry_max = Duration::from_secs(2);
}

pub(crate) async fn net(n: u128) -> Net {
    builder(n).open().await.unwrap()
}

pub(crate) async fn server(n: u128) -> Net {
    builder(n).server(true).open().await.unwrap()
}

pub(crate) fn at(host: &Net) -> Endpoint {
    format!("{}@{}", host.id(), host.local_addr()).parse().unwrap()
}

/// A net that is registered with this host, whose number is 1.
pub(crate) async fn device(n: u128, host: &Net) -> Net {
    let net = builder(n).host(at(host), key(1)).open().await.unwrap();
    soon(net.registered()).await.unwrap();
    net
}

pub(crate) fn serve(net: &Net, router: Router) {
    drop(tokio::spawn(net.serve(router)));
}

/// Echoes data, tells a temperature, and says who asks.
pub(crate) fn echo() -> Router {
    Router::new()
        .data(async |request: Request| request.payload)
        .get("/temp", async |_: Request| Reply::text("21.5"))
        .get("/who", async |request: Request| request.peer.to_string())
}

pub(crate) fn direct(net: &Net, n: u128) -> Peer {
    Peer::addr(id(n), net.local_addr()).key(key(n))
}

pub(crate) fn by_id(n: u128) -> Peer {
    Peer::id(id(n)).key(key(n))
}

/// Two nets, of which the second echoes, and a session from the first to it.
pub(crate) async fn pair() -> (Net, Net, Session) {
    let (a, b) = (net(1).await, net(2).await);
    serve(&b, echo());
    let session = soon(a.connect(direct(&b, 2))).await.unwrap();
    (a, b, session)
}

/// What must happen within a test's patience.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("it did not happen in time")
}

pub(crate) async fn until(net: &Net, wanted: impl FnMut(&HostState) -> bool) {
    soon(net.watch_host().wait_for(wanted)).await.unwrap();
}

pub(crate) async fn eventually(mut is_so: impl FnMut() -> bool) {
    soon(async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// A cable to a net, with one other end: it carries datagrams while it is plugged in.
pub(crate) async fn cable(to: &Net) -> (SocketAddr, Arc<AtomicBool>) {
    let near = tokio::net::UdpSocket::bind(local(0)).await.unwrap();
    let far = tokio::net::UdpSocket::bind(local(0)).await.unwrap();
    far.connect(to.local_addr()).await.unwrap();
    let (address, plugged) = (near.local_addr().unwrap(), Arc::new(AtomicBool::new(true)));
    let carries = plugged.clone();
    tokio::spawn(async move {
        let (mut there, mut back) = ([0; 2048], [0; 2048]);
        let mut user = None;
        loop {
            tokio::select! {
                Ok((len, from)) = near.recv_from(&mut there) => {
                    user = Some(from);
                    if carries.load(Ordering::SeqCst) {
                        far.send(&there[..len]).await.unwrap();
                    }
                }
                Ok(len) = far.recv(&mut back) => {
                    if let Some(user) = user && carries.load(Ordering::SeqCst) {
                        near.send_to(&back[..len], user).await.unwrap();
                    }
                }
            }
        }
    });
    (address, plugged)
}

//! How often a server and a host ask for memory once they are warm. Not timed: what their thread asks for is counted.
use std::{
    future::IntoFuture,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use m2m::{Net, Peer, Session};
use tokio::runtime::{Builder, Runtime};

use crate::fixture::{at, builder, by_id, direct, echo, id, key, serve};

/// Requests under way at a time.
const IN_FLIGHT: usize = 16;
/// Datagrams until everything has been done that is done once.
const WARM_UP: u64 = 1_000;
/// Datagrams of a window, and windows.
const MEASURED: u64 = 200;
const WINDOWS: usize = 10;

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Others that keep a net busy, on a thread of their own, until this is dropped.
struct Busy(Arc<AtomicBool>, Option<thread::JoinHandle<()>>);

impl Busy {
    fn with<F: Future<Output = (Vec<Net>, Session)>>(open: impl FnOnce() -> F + Send + 'static) -> Busy {
        let goes_on = Arc::new(AtomicBool::new(true));
        let asks = goes_on.clone();
        let others = thread::spawn(move || {
            runtime().block_on(async {
                let (_nets, session) = open().await;
                let tasks: Vec<_> =
                    (0..IN_FLIGHT).map(|_| tokio::spawn(ask(session.clone(), asks.clone()))).collect();
                for task in tasks {
                    task.await.unwrap();
                }
            });
        });
        Busy(goes_on, Some(others))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

async fn ask(session: Session, goes_on: Arc<AtomicBool>) {
    while goes_on.load(Ordering::Relaxed) {
        // One that the other side has given up on is not what is measured.
        let _ = session.send(&[7; 64][..]).into_future().await;
    }
}

/// How often a net's thread asks for memory in each window, up to the first in which it does not. On a busy machine a queue
/// still grows now and then to a length that it never had, but not in each: what a request asks for shows in all.
fn measure(runtime: &Runtime, net: &Net) -> Vec<u64> {
    runtime.block_on(takes(net, WARM_UP));
    let mut asked = Vec::with_capacity(WINDOWS);
    while asked.len() < WINDOWS && !asked.contains(&0) {
        let window = allocation_counter::measure(|| runtime.block_on(takes(net, MEASURED)));
        asked.push(window.count_total);
    }
    asked
}

async fn takes(net: &Net, datagrams: u64) {
    let enough = net.stats().datagrams_in + datagrams;
    while net.stats().datagrams_in < enough {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn a_server_asks_for_no_memory_with_a_request() {
    for batched in [true, false] {
        let runtime = runtime();
        let server = runtime.block_on(builder(2).batched(batched).open()).unwrap();
        runtime.block_on(async { serve(&server, echo()) });
        let peer: Peer = direct(&server, 2);
        let mut busy = Busy::with(async || {
            let net = builder(1).open().await.unwrap();
            let session = net.connect(peer).await.unwrap();
            (vec![net], session)
        });
        let asked = measure(&runtime, &server);
        assert!(asked.contains(&0), "{asked:?} times in {MEASURED} datagrams each, batched: {batched}");
        busy.0.store(false, Ordering::Relaxed);
        runtime.block_on(server.shutdown());
        busy.1.take().unwrap().join().unwrap();
    }
}

#[test]
fn a_host_asks_for_no_memory_with_what_it_relays() {
    let runtime = runtime();
    let host = runtime.block_on(builder(1).server(true).tune(relays_much).open()).unwrap();
    let host_at = at(&host);
    let mut busy = Busy::with(async move || {
        let [device, app] = [2, 3].map(|n| builder(n).host(host_at.clone(), key(1)));
        let (device, app) = (device.open().await.unwrap(), app.open().await.unwrap());
        device.registered().await.unwrap();
        app.registered().await.unwrap();
        serve(&device, echo());
        assert_eq!(device.id(), id(2));
        let session = app.connect(by_id(2)).await.unwrap();
        (vec![device, app], session)
    });
    let asked = measure(&runtime, &host);
    assert!(asked.contains(&0), "{asked:?} times in {MEASURED} datagrams each");
    busy.0.store(false, Ordering::Relaxed);
    runtime.block_on(host.shutdown());
    busy.1.take().unwrap().join().unwrap();
}

fn relays_much(config: &mut m2m::Config) {
    config.limits.relay_packets.per_second = 1_000_000;
    config.limits.relay_packets.burst = 1_000_000;
    config.limits.relay_bytes.per_second = 1 << 30;
    config.limits.relay_bytes.burst = 1 << 30;
}

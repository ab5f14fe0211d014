//! Bad neighbours: what one of them can do takes nothing from the others, stays within its bounds, and is counted.
use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use m2m::{Code, ErrorKind, Net, Reply, Request, Session};
use m2m_proto::{
    config::Rate,
    stats::Drop as Reason,
    wire::frame::{Frame, RelayFlags},
};
use tokio::{net::UdpSocket, task::JoinHandle, time::sleep};

use crate::{
    fixture::{
        at, builder, by_id, cable, device, direct, echo, eventually, id, key, local, net, quick, serve,
        server, soon,
    },
    guest::{Guest, initiator},
};

/// Packets of a flood, and how many of them leave together: 500 each 10 ms would be a flood of the test's own thread.
const FLOOD: u32 = 5000;
const BUNCH: u32 = 50;
/// A request takes no longer, whatever the neighbours do.
const IN_TIME: Duration = Duration::from_secs(10);

/// Sends packets, a bunch each 10 ms, until it is told to stop.
fn flood(to: &Net, mut packet: impl FnMut(u32) -> Vec<u8> + Send + 'static) -> JoinHandle<()> {
    let to = to.local_addr();
    tokio::spawn(async move {
        let socket = UdpSocket::bind(local(0)).await.unwrap();
        for n in 0..FLOOD {
            // A full buffer loses it, as a network would.
            let _ = socket.send_to(&packet(n), to).await;
            if n % BUNCH == 0 {
                sleep(Duration::from_millis(10)).await;
            }
        }
    })
}

/// Asks until the flood is over, and a little longer; each request is answered in its time.
async fn ask_until(session: &Session, over: &JoinHandle<()>) {
    let mut rest = 10;
    while rest > 0 {
        let answer = session.get("/temp").timeout(IN_TIME).await.unwrap();
        assert_eq!(answer.text(), Some("21.5"));
        rest -= u32::from(over.is_finished());
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn valid_inits_of_one_key_holder() {
    let host = server(1).await;
    serve(&host, echo());
    let early = device(2, &host).await;
    let before = soon(early.connect(direct(&host, 1))).await.unwrap();
    let flood = flood(&host, |n| initiator(66, 1, n + 1).init().to_vec());
    eventually(|| host.half_open() > 10).await;
    // Who comes meanwhile is served as well as who was there.
    let app = builder(3).host(at(&host), key(1)).open().await.unwrap();
    soon(app.registered()).await.unwrap();
    let session = soon(app.connect(direct(&host, 1))).await.unwrap();
    tokio::join!(ask_until(&session, &flood), ask_until(&before, &flood));
    let stats = host.stats();
    assert!(host.half_open() <= 64, "{}", host.half_open());
    assert!(stats.cookies > 0, "{stats:?}");
    // Half-open handshakes go by themselves; nothing else came of them.
    eventually(|| host.half_open() == 0).await;
    assert!(host.sessions() <= 5, "{}", host.sessions());
}

#[tokio::test]
async fn relayed_packets_to_one_victim() {
    let host = builder(1).server(true).tune(|config| {
        quick(config);
        // Less than even a busy machine can send.
        config.limits.relay_packets = Rate::new(200, 400);
    });
    let host = host.open().await.unwrap();
    let (victim, other) = (device(2, &host).await, device(3, &host).await);
    serve(&victim, echo());
    serve(&other, echo());
    let app = device(4, &host).await;
    let to_victim = soon(app.connect(by_id(2))).await.unwrap();
    let to_other = soon(app.connect(by_id(3))).await.unwrap();
    let mut guest = Guest::open(66, &host, 1).await;
    guest.register(&host).await;
    let sessions = victim.sessions();
    let flood = tokio::spawn(async move {
        for n in 0..FLOOD {
            let (src, mut inner) = (guest.id, [0x41; 600]);
            inner[1..5].copy_from_slice(&n.to_be_bytes());
            let relay = Frame::Relay { hop_limit: 16, flags: RelayFlags(0), dst: id(2), src, inner: &inner };
            guest.say(&[relay]).await;
            if n % BUNCH == 0 {
                sleep(Duration::from_millis(10)).await;
            }
        }
    });
    tokio::join!(ask_until(&to_victim, &flood), ask_until(&to_other, &flood));
    assert!(host.stats().dropped(Reason::OverBudget) > 0, "{:?}", host.stats());
    assert!(victim.stats().dropped(Reason::UnknownToken) > 0, "{:?}", victim.stats());
    assert_eq!((victim.sessions(), victim.half_open()), (sessions, 0));
}

#[tokio::test]
async fn unknown_tokens() {
    let host = server(1).await;
    serve(&host, echo());
    let app = net(2).await;
    let session = soon(app.connect(direct(&host, 1))).await.unwrap();
    let flood = flood(&host, |n| {
        let mut packet = vec![0x41; 64];
        packet[1..5].copy_from_slice(&(n + 1).to_be_bytes());
        packet
    });
    ask_until(&session, &flood).await;
    let stats = host.stats();
    let unknown = stats.dropped(Reason::UnknownToken);
    assert!(unknown > u64::from(FLOOD) / 2, "{stats:?}");
    assert!(stats.hints_sent < unknown / 4, "{stats:?}");
    assert_eq!((host.sessions(), host.half_open()), (1, 0));
}

/// A confirmable GET with this MID, for a path of one segment.
fn get(mid: u16, path: &str) -> Vec<u8> {
    let mut message = vec![0x44, Code::GET.0];
    message.extend(mid.to_be_bytes());
    message.extend(u32::from(mid).to_be_bytes());
    message.push(0xB0 | path.len() as u8);
    message.extend(path.as_bytes());
    message
}

/// A peer asks and never reads an answer: those that come with acknowledgements are given up, those in messages of their
/// own wait for it until their time is over, and no more of them than a session may have.
#[tokio::test]
async fn a_slow_reader() {
    let host = server(1).await;
    let handlers = Arc::new(AtomicUsize::new(0));
    let counter = handlers.clone();
    let router = echo().get("/large", async |_: Request| Reply::content(vec![7; 1000])).get(
        "/late",
        move |_: Request| {
            counter.fetch_add(1, Ordering::SeqCst);
            async {
                sleep(Duration::from_millis(100)).await;
                Reply::content(vec![7; 1000])
            }
        },
    );
    serve(&host, router);
    let app = net(2).await;
    let session = soon(app.connect(direct(&host, 1))).await.unwrap();
    let mut guest = Guest::open(66, &host, 1).await;
    let flood = tokio::spawn(async move {
        for n in 0..FLOOD / 2 {
            let path = if n % 2 == 0 { "large" } else { "late" };
            guest.send(&get(n as u16, path)).await;
            if n % BUNCH == 0 {
                sleep(Duration::from_millis(10)).await;
            }
        }
        guest
    });
    let done = Arc::new(AtomicUsize::new(0));
    let over = done.clone();
    let waiting = tokio::spawn(async move {
        let guest = flood.await.unwrap();
        over.store(1, Ordering::SeqCst);
        // It stays, so that its session is not given up for another reason.
        sleep(Duration::from_secs(1)).await;
        drop(guest);
    });
    ask_until(&session, &waiting).await;
    assert_eq!(done.load(Ordering::SeqCst), 1);
    // 64 KiB of answers wait, and the handlers that were at work when that was reached; the rest is told that it is too many.
    let handlers = handlers.load(Ordering::SeqCst);
    assert!((50..400).contains(&handlers), "{handlers}");
    assert_eq!(host.sessions(), 2);
}

/// Handlers that never end are the user's; but one peer has no more of them than it may, and is told so.
#[tokio::test]
async fn handlers_that_never_end() {
    let host = server(1).await;
    let running = Arc::new(AtomicUsize::new(0));
    let counter = running.clone();
    serve(
        &host,
        echo().get("/never", move |_: Request| {
            counter.fetch_add(1, Ordering::SeqCst);
            pending::<Reply>()
        }),
    );
    let (greedy, app) = (net(2).await, net(3).await);
    let at_greedy = soon(greedy.connect(direct(&host, 1))).await.unwrap();
    let session = soon(app.connect(direct(&host, 1))).await.unwrap();
    let asked: Vec<JoinHandle<_>> = (0..400)
        .map(|_| tokio::spawn(at_greedy.get("/never").timeout(Duration::from_secs(4)).into_future()))
        .collect();
    eventually(|| running.load(Ordering::SeqCst) >= 200).await;
    for _ in 0..50 {
        let answer = session.get("/temp").timeout(IN_TIME).await.unwrap();
        assert_eq!(answer.text(), Some("21.5"));
    }
    let (mut refused, mut timed_out) = (0, 0);
    for request in asked {
        match soon(request).await.unwrap() {
            Ok(answer) => {
                assert_eq!(answer.code, Code::TOO_MANY_REQUESTS);
                refused += 1;
            }
            Err(why) if why.kind() == ErrorKind::Timeout => timed_out += 1,
            Err(why) => {
                assert_eq!(why.kind(), ErrorKind::Refused, "{why}");
                refused += 1;
            }
        }
    }
    assert!(running.load(Ordering::SeqCst) <= 256, "{running:?}");
    assert!(timed_out > 0 && refused > 0, "{timed_out} {refused}");
}

/// A peer that is gone fills the queue to it, which is an error at once; the queues to others are theirs.
#[tokio::test]
async fn a_full_queue() {
    let (app, gone, other) = (net(1).await, net(2).await, net(3).await);
    serve(&gone, echo());
    serve(&other, echo());
    let (address, plugged) = cable(&gone).await;
    let to_gone = soon(app.connect(m2m::Peer::addr(id(2), address).key(key(2)))).await.unwrap();
    let to_other = soon(app.connect(direct(&other, 3))).await.unwrap();
    plugged.store(false, Ordering::SeqCst);
    let waiting: Vec<JoinHandle<_>> =
        (0..1000).map(|_| tokio::spawn(to_gone.get("/temp").into_future())).collect();
    eventually(|| waiting.iter().filter(|request| request.is_finished()).count() >= 400).await;
    let full = soon(to_gone.get("/temp").into_future()).await.unwrap_err();
    assert_eq!(full.kind(), ErrorKind::Refused);
    assert!(full.to_string().contains("queue is full"), "{full}");
    for _ in 0..50 {
        let answer = to_other.get("/temp").timeout(IN_TIME).await.unwrap();
        assert_eq!(answer.text(), Some("21.5"));
    }
    // Back again it gets what waited.
    plugged.store(true, Ordering::SeqCst);
    let mut answered = 0;
    for request in waiting {
        answered += usize::from(soon(request).await.unwrap().is_ok());
    }
    assert!((200..=600).contains(&answered), "{answered}");
}

//! What is dropped ends, and takes nothing else with it.
use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use m2m::{CloseReason, Code, ErrorKind, NetEvent, Request, Router, SessionState};

use crate::fixture::{direct, echo, eventually, id, key, local, net, pair, serve, soon};

#[tokio::test]
async fn the_last_handle_closes_a_session() {
    let (_a, b, session) = pair().await;
    let mut news = b.events();
    let other = session.clone();
    drop(session);
    assert_eq!(soon(other.get("/temp").into_future()).await.unwrap().text(), Some("21.5"));
    drop(other);
    let closed = NetEvent::Closed { peer: id(1), why: CloseReason::Peer(0) };
    soon(async { while news.recv().await.unwrap() != closed {} }).await;
}

#[tokio::test]
async fn a_closed_session_says_so() {
    let (_a, _b, session) = pair().await;
    session.close().await;
    assert_eq!(soon(session.closed()).await, CloseReason::Local);
    assert_eq!(session.state(), SessionState::Closed(CloseReason::Local));
    let error = session.get("/temp").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    assert_eq!(session.ping().await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(session.up().await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn a_peer_that_leaves_ends_the_session() {
    let (_a, b, session) = pair().await;
    // Its first packet has arrived, so the peer knows whom to tell.
    soon(session.ping()).await.unwrap();
    let asked = {
        let session = session.clone();
        tokio::spawn(async move { session.closed().await })
    };
    b.shutdown().await;
    assert_eq!(soon(asked).await.unwrap(), CloseReason::Peer(2));
    let error = session.get("/temp").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SessionLost);
}

#[tokio::test]
async fn a_connect_that_is_dropped_leaves_nothing() {
    let (a, b) = (net(1).await, net(2).await);
    {
        // Polled once: the first packet is out, its answer can't be here yet.
        let mut connecting = pin!(a.connect(direct(&b, 2)));
        poll_fn(|cx| {
            assert!(connecting.as_mut().poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
        assert_eq!(a.sessions(), 1);
    }
    eventually(|| a.sessions() == 0).await;
    // And another one works.
    soon(a.connect(direct(&b, 2))).await.unwrap();
}

#[tokio::test]
async fn a_request_that_is_dropped_harms_no_other() {
    let (a, b) = (net(1).await, net(2).await);
    serve(&b, echo().get("/slow", async |_: Request| tokio::time::sleep(Duration::from_millis(200)).await));
    let session = soon(a.connect(direct(&b, 2))).await.unwrap();
    for _ in 0..300 {
        let slow = session.get("/slow").into_future();
        // Most are given up under way; some learn before that there are too many.
        let _ = tokio::time::timeout(Duration::from_micros(100), slow).await;
    }
    // More of them than the peer takes at once, or the queue: given up means given up.
    let answer = soon(async {
        loop {
            let answer = session.get("/temp").await.unwrap();
            if answer.code != Code::TOO_MANY_REQUESTS {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!((answer.code, answer.text()), (Code::CONTENT, Some("21.5")), "{answer:?}");
}

#[tokio::test]
async fn b18_the_last_handle_closes_a_net_and_frees_its_port() {
    let (a, b, session) = pair().await;
    let address = a.local_addr();
    let clone = a.clone();
    drop(a);
    assert_eq!(soon(session.get("/temp").into_future()).await.unwrap().code, Code::CONTENT);
    drop(clone);
    assert_eq!(soon(session.closed()).await, CloseReason::Local);
    assert_eq!(session.get("/temp").await.unwrap_err().kind(), ErrorKind::Closed);
    // The session that is still held does not hold the port.
    eventually(|| std::net::UdpSocket::bind(address).is_ok()).await;
    drop(b);
}

#[tokio::test]
async fn serving_ends_with_the_net_and_does_not_keep_it() {
    let net = net(1).await;
    let serving = tokio::spawn(net.serve(echo()));
    assert_eq!(net.serve(echo()).await.unwrap_err().kind(), ErrorKind::Configuration);
    drop(net);
    soon(serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_router_can_be_taken_out_of_use() {
    let net = net(1).await;
    drop(net.serve(echo()));
    drop(net.serve(echo()));
    soon(net.shutdown()).await;
    assert_eq!(net.serve(echo()).await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn a_shutdown_lets_answers_leave() {
    let (a, b) = (net(1).await, net(2).await);
    let started = Arc::new(AtomicBool::new(false));
    let flag = started.clone();
    let slow = move |_: Request| {
        flag.store(true, Ordering::SeqCst);
        async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            "late"
        }
    };
    serve(
        &b,
        Router::new().get("/slow", slow).get("/never", async |_: Request| std::future::pending::<()>().await),
    );
    let session = soon(a.connect(direct(&b, 2))).await.unwrap();
    let (slow, never) =
        (tokio::spawn(session.get("/slow").into_future()), tokio::spawn(session.get("/never").into_future()));
    eventually(|| started.load(Ordering::SeqCst)).await;
    soon(b.shutdown()).await;
    assert_eq!(soon(slow).await.unwrap().unwrap().text(), Some("late"));
    assert_eq!(soon(never).await.unwrap().unwrap_err().kind(), ErrorKind::SessionLost);
    // Twice is as good as once.
    soon(b.shutdown()).await;
}

#[tokio::test]
async fn a_shutdown_goes_on_when_nobody_waits_for_it() {
    let (a, b, session) = pair().await;
    let address = b.local_addr();
    // Polled once, then dropped.
    assert!(poll_fn(|cx| Poll::Ready(pin!(b.shutdown()).poll(cx).is_pending())).await);
    soon(session.closed()).await;
    soon(b.shutdown()).await;
    std::net::UdpSocket::bind(address).expect("the socket is closed when a shutdown returns");
    drop(a);
}

#[test]
fn a_net_whose_runtime_is_gone_says_so() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (first, second) = (runtime(), runtime());
    let net = first.block_on(net(1));
    // Nobody is there, so that this waits.
    let session = first.block_on(async { net.dial(m2m::Peer::addr(id(2), local(9)).key(key(2))).unwrap() });
    drop(first);
    second.block_on(async {
        assert_eq!(soon(session.up()).await.unwrap_err().kind(), ErrorKind::Closed);
        assert_eq!(soon(session.get("/temp").into_future()).await.unwrap_err().kind(), ErrorKind::Closed);
        soon(net.shutdown()).await;
    });
}

#[tokio::test]
async fn an_older_session_of_a_peer_is_found_when_its_newest_closes() {
    let (a, b, older) = pair().await;
    let newer = soon(a.connect(direct(&b, 2))).await.unwrap();
    eventually(|| b.sessions() == 2).await;
    drop(newer);
    eventually(|| b.sessions() == 1).await;
    let back = b.session(id(1)).expect("the older one lives");
    assert!(soon(back.ping()).await.is_ok());
    drop(older);
}

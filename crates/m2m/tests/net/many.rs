//! Many at once: nets in one process, sessions between one pair, requests in one session.
use tokio::task::JoinSet;

use crate::fixture::{by_id, device, direct, echo, eventually, net, pair, serve, server, soon};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_nets_in_one_process() {
    let host = server(1).await;
    let mut opening = JoinSet::new();
    for n in 2..21 {
        let host = host.clone();
        opening.spawn(async move { (n, device(n, &host).await) });
    }
    let mut nets = soon(opening.join_all()).await;
    nets.sort_by_key(|(n, _)| *n);
    assert_eq!(host.registrations(), 19);
    nets.iter().for_each(|(_, net)| serve(net, echo()));
    // Each asks the next.
    let mut asking = JoinSet::new();
    for (at, (_, net)) in nets.iter().enumerate() {
        let (next, net) = (nets[(at + 1) % nets.len()].0, net.clone());
        asking.spawn(async move {
            let session = net.connect(by_id(next)).await.unwrap();
            session.get("/temp").await.unwrap().text().map(str::to_owned)
        });
    }
    for answer in soon(asking.join_all()).await {
        assert_eq!(answer.as_deref(), Some("21.5"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_sessions_between_one_pair() {
    let (a, b) = (net(1).await, net(2).await);
    serve(&b, echo());
    let mut opening = JoinSet::new();
    for _ in 0..50 {
        let (a, peer) = (a.clone(), direct(&b, 2));
        opening.spawn(async move { a.connect(peer).await.unwrap() });
    }
    let sessions = soon(opening.join_all()).await;
    for (n, session) in sessions.iter().enumerate() {
        let data = n.to_string();
        assert_eq!(&soon(session.send(data.clone()).into_future()).await.unwrap()[..], data.as_bytes());
    }
    assert_eq!(b.sessions(), 50);
    drop(sessions);
    eventually(|| b.sessions() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b21_two_hundred_requests_at_once() {
    let (_a, _b, session) = pair().await;
    let mut asking = JoinSet::new();
    for n in 0..200 {
        let session = session.clone();
        asking.spawn(async move { session.send(n.to_string()).await.map(|answer| answer == n.to_string()) });
    }
    for answer in soon(asking.join_all()).await {
        assert!(answer.unwrap());
    }
}

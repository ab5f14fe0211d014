//! Sessions that go on: new keys, new tokens, peers that restart.
use std::{sync::atomic::Ordering, time::Duration};

use m2m::{ErrorKind, NetEvent, Peer, SessionState};

use crate::fixture::{builder, cable, direct, echo, id, key, net, pair, serve, soon};

#[tokio::test]
async fn keys_and_tokens_change_while_requests_run() {
    let (a, b, session) = pair().await;
    let talk = async {
        for n in 0..200_u32 {
            let sent = n.to_be_bytes().to_vec();
            assert_eq!(session.send(sent.clone()).await.unwrap()[..], sent[..]);
        }
    };
    let change = async {
        session.rekey().await.unwrap();
        session.rekey_with([0x5A; 32]).await.unwrap();
        session.refresh_token().await.unwrap();
        // The other end may, too.
        let back = b.session(id(1)).unwrap();
        back.rekey().await.unwrap();
        back.refresh_token().await.unwrap();
    };
    soon(async { tokio::join!(talk, change) }).await;
    assert!(a.stats().rekeys >= 3 && b.stats().rekeys >= 3, "{:?} {:?}", a.stats(), b.stats());
    let short = soon(session.rekey_with([1; 15])).await.unwrap_err();
    assert_eq!(short.kind(), ErrorKind::Configuration, "{short}");
    let status = session.watch().status();
    assert_eq!((status.state, status.recoveries), (SessionState::Up, 0));
}

/// The device is cut off, dies without a word, and comes back on its port: the app's session goes on.
#[tokio::test]
async fn a_session_outlives_a_restart_of_its_peer() {
    let (app, device) = (net(1).await, net(2).await);
    serve(&device, echo());
    let (address, plugged) = cable(&device).await;
    let session = soon(app.connect(Peer::addr(id(2), address).key(key(2)))).await.unwrap();
    assert_eq!(&soon(session.send("one").into_future()).await.unwrap()[..], b"one");
    let (mut watch, mut news) = (session.watch(), app.events());

    let port = device.local_addr();
    plugged.store(false, Ordering::SeqCst);
    device.shutdown().await;
    let device = builder(2).bind(port).open().await.unwrap();
    serve(&device, echo());
    let repeated = tokio::spawn(session.get("/temp").into_future());
    tokio::time::sleep(Duration::from_millis(100)).await;
    plugged.store(true, Ordering::SeqCst);

    assert_eq!(soon(repeated).await.unwrap().unwrap().text(), Some("21.5"));
    let status = soon(watch.wait_for(|status| status.recoveries > 0)).await.unwrap();
    assert_eq!((status.state, status.resumed, status.recoveries), (SessionState::Up, false, 1));
    assert_eq!(&soon(session.send("two").into_future()).await.unwrap()[..], b"two");
    assert_eq!(app.stats().recoveries, 1);
    let told = soon(async {
        loop {
            if let NetEvent::Recovered { peer, resumed } = news.recv().await.unwrap() {
                return (peer, resumed);
            }
        }
    });
    assert_eq!(told.await, (id(2), false));
}

#[tokio::test]
async fn a_watch_ends_with_its_session() {
    let (_a, b, session) = pair().await;
    let mut watch = session.watch();
    b.shutdown().await;
    let ended = soon(watch.wait_for(|status| matches!(status.state, SessionState::Closed(_)))).await;
    assert!(ended.is_some());
    assert_eq!(soon(watch.wait_for(|status| status.state == SessionState::Up)).await, None);
}

#[tokio::test]
async fn a_session_that_never_came_up_changes_no_keys() {
    let app = net(1).await;
    let nobody = net(2).await;
    let peer = direct(&nobody, 2);
    nobody.shutdown().await;
    let session = app.dial(peer).unwrap();
    assert_eq!(soon(session.rekey()).await.unwrap_err().kind(), ErrorKind::Unreachable);
}

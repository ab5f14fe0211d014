//! Nets that find each other by id, through a host.
use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use m2m::{ErrorKind, HostState, Net, NetEvent, Path};

use crate::fixture::{
    at, builder, by_id, cable, device, echo, eventually, id, key, local, quick, serve, server, soon, until,
};

#[tokio::test]
async fn two_devices_meet_by_id() {
    let host = server(1).await;
    let (a, b) = (device(2, &host).await, device(3, &host).await);
    serve(&b, echo());
    let session = soon(a.connect(by_id(3))).await.unwrap();
    assert_eq!(session.path(), Path::Relay(id(1)));
    assert_eq!(soon(session.get("/temp").into_future()).await.unwrap().text(), Some("21.5"));
    assert_eq!(&soon(session.send(vec![7; 900]).into_future()).await.unwrap()[..], &[7; 900][..]);
    assert_eq!(host.registrations(), 2);
    assert!(host.stats().relayed > 0);
}

#[tokio::test]
async fn a_host_knows_who_is_online() {
    let host = server(1).await;
    let mut news = host.events();
    let (a, b) = (device(2, &host).await, device(3, &host).await);
    assert!(soon(a.online(id(3))).await.unwrap());
    assert!(!soon(a.online(id(4))).await.unwrap());
    b.shutdown().await;
    eventually(|| host.registrations() == 1).await;
    assert!(!soon(a.online(id(3))).await.unwrap());
    let mut seen = Vec::new();
    while let Ok(event) = news.try_recv() {
        seen.push(event);
    }
    assert!(seen.contains(&NetEvent::Registered(id(3))), "{seen:?}");
    assert!(seen.contains(&NetEvent::Unregistered(id(3))), "{seen:?}");
}

#[tokio::test]
async fn a_dial_before_the_registration_waits_for_it() {
    let host = server(1).await;
    let b = device(3, &host).await;
    serve(&b, echo());
    let a = builder(2).host(at(&host), key(1)).open().await.unwrap();
    let session = a.dial(by_id(3)).unwrap();
    assert_eq!(soon(session.get("/temp").into_future()).await.unwrap().text(), Some("21.5"));
}

#[tokio::test]
async fn a_host_is_known_by_its_address_alone() {
    let host = server(1).await;
    let b = device(3, &host).await;
    serve(&b, echo());
    let nameless = host.local_addr().to_string().parse().unwrap();
    let a = builder(2).host(nameless, key(1)).open().await.unwrap();
    let session = a.dial(by_id(3)).unwrap();
    assert_eq!(soon(session.get("/temp").into_future()).await.unwrap().text(), Some("21.5"));
    assert!(matches!(a.host(), HostState::Connected { host, .. } if host == id(1)));
}

#[tokio::test]
async fn b25_a_host_s_name_is_looked_up() {
    let host = server(1).await;
    let named = format!("1@localhost:{}", host.local_addr().port()).parse().unwrap();
    let a = builder(2).host(named, key(1)).open().await.unwrap();
    soon(a.registered()).await.unwrap();
}

#[tokio::test]
async fn b25_an_unknown_name_does_not_keep_a_net_from_opening() {
    let named = "1@no-such-host.invalid".parse().unwrap();
    let a = soon(builder(2).host(named, key(1)).open()).await.unwrap();
    assert!(!matches!(a.host(), HostState::Connected { .. } | HostState::None));
    soon(a.shutdown()).await;
}

#[tokio::test]
async fn an_unknown_id_is_said_to_be_unknown() {
    let host = server(1).await;
    let a = device(2, &host).await;
    let start = Instant::now();
    let error = soon(a.connect(by_id(9))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownPeer, "{error}");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test]
async fn the_wrong_key_is_said_to_be_wrong() {
    let host = server(1).await;
    let (a, _b) = (device(2, &host).await, device(3, &host).await);
    let error = soon(a.connect(by_id(3).key(key(99)))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AuthenticationFailed, "{error}");
}

#[tokio::test]
async fn a_dead_host_is_said_to_be_unreachable() {
    let nobody = std::net::UdpSocket::bind(local(0)).unwrap();
    let dead = format!("1@{}", nobody.local_addr().unwrap()).parse().unwrap();
    let a = builder(2).host(dead, key(1)).open().await.unwrap();
    let error = soon(a.connect(by_id(3))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(error.to_string().contains("host"), "{error}");
    until(&a, |state| matches!(state, HostState::Disconnected { .. })).await;
}

#[tokio::test]
async fn an_impostor_is_refused() {
    let host = server(1).await;
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let with_state = async |path: &std::path::Path| {
        builder(2).host(at(&host), key(1)).state_dir(path).open().await.unwrap()
    };
    let first = with_state(folder.path()).await;
    soon(first.registered()).await.unwrap();
    // The same id, the same net key, another device.
    let impostor = with_state(other.path()).await;
    let error = soon(impostor.registered()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("claimed by another key since 20"), "{error}");
    assert!(matches!(impostor.host(), HostState::Refused { .. }));
    assert_eq!(host.registrations(), 1);
    // The true one comes back, also after a restart.
    soon(first.shutdown()).await;
    let again = with_state(folder.path()).await;
    soon(again.registered()).await.unwrap();
}

#[tokio::test]
async fn claims_outlive_the_host() {
    let folder = tempfile::tempdir().unwrap();
    let open = async |port: u16| {
        let host = Net::builder(id(1), key(1)).bind(local(port)).tune(quick).server(true);
        host.state_dir(folder.path()).open().await.unwrap()
    };
    let host = open(0).await;
    let port = host.local_addr().port();
    device(2, &host).await.shutdown().await;
    host.shutdown().await;

    let host = open(port).await;
    let other = tempfile::tempdir().unwrap();
    let impostor = builder(2).host(at(&host), key(1)).state_dir(other.path()).open().await.unwrap();
    assert_eq!(soon(impostor.registered()).await.unwrap_err().kind(), ErrorKind::Refused);
}

#[tokio::test]
async fn an_ephemeral_net_claims_nothing() {
    let host = server(1).await;
    let guest = builder(2).host(at(&host), key(1)).ephemeral(true).open().await.unwrap();
    soon(guest.registered()).await.unwrap();
    guest.shutdown().await;
    eventually(|| host.registrations() == 0).await;
    // Somebody else may have the id now, and then no guest.
    let folder = tempfile::tempdir().unwrap();
    let owner = builder(2).host(at(&host), key(1)).state_dir(folder.path()).open().await.unwrap();
    soon(owner.registered()).await.unwrap();
    let guest = builder(2).host(at(&host), key(1)).ephemeral(true).open().await.unwrap();
    assert_eq!(soon(guest.registered()).await.unwrap_err().kind(), ErrorKind::Refused);
}

#[tokio::test]
async fn a_device_comes_back_when_its_host_does() {
    let host = server(1).await;
    let address = host.local_addr();
    let (a, b) = (device(2, &host).await, device(3, &host).await);
    serve(&b, echo());
    let mut news = a.events();
    drop(host);
    until(&a, |state| matches!(state, HostState::Disconnected { .. })).await;
    until(&b, |state| matches!(state, HostState::Disconnected { .. })).await;
    let reopen = || async { Net::builder(id(1), key(1)).bind(address).tune(quick).server(true).open().await };
    // The old net's socket closes a moment after its last handle.
    let _host = soon(async {
        loop {
            match reopen().await {
                Ok(host) => return host,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Io, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    soon(a.registered()).await.unwrap();
    soon(b.registered()).await.unwrap();
    let mut seen = Vec::new();
    while let Ok(event) = news.try_recv() {
        seen.push(event);
    }
    let lost = seen.iter().position(|event| matches!(event, NetEvent::HostDisconnected { .. }));
    let back = seen.iter().rposition(|event| matches!(event, NetEvent::HostConnected { .. }));
    assert!(lost.is_some() && lost < back, "{seen:?}");
    let session = soon(a.connect(by_id(3))).await.unwrap();
    assert_eq!(soon(session.get("/temp").into_future()).await.unwrap().text(), Some("21.5"));
}

#[tokio::test]
async fn a_host_that_falls_silent_is_noticed_and_found_again() {
    let host = server(1).await;
    let (address, plugged) = cable(&host).await;
    let through_cable = format!("1@{address}").parse().unwrap();
    let a = builder(2).host(through_cable, key(1)).open().await.unwrap();
    soon(a.registered()).await.unwrap();
    plugged.store(false, Ordering::SeqCst);
    until(&a, |state| matches!(state, HostState::Disconnected { .. })).await;
    plugged.store(true, Ordering::SeqCst);
    soon(a.registered()).await.unwrap();
    eventually(|| host.registrations() == 1).await;
}

#[tokio::test]
async fn a_net_without_a_host_says_what_is_missing() {
    let a = crate::fixture::net(1).await;
    let error = a.connect(by_id(3)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration);
    assert!(error.to_string().contains("host"), "{error}");
    assert_eq!(a.registered().await.unwrap_err().kind(), ErrorKind::Configuration);
    assert_eq!(a.online(id(3)).await.unwrap_err().kind(), ErrorKind::Configuration);
    assert_eq!(a.host(), HostState::None);
}

//! Keys that change from afar, sessions pinned to one device, hosts that take listed devices only.
use std::time::Duration;

use m2m::{ErrorKind, HostState, Key, Net, NetBuilder, Peer, state::StateDir};

use crate::fixture::{at, builder, by_id, direct, echo, id, key, local, net, quick, serve, server, soon};

fn new_key() -> Key {
    Key::from_bytes(&[0x4E; 32]).unwrap()
}

/// Net 2, which keeps its state in that folder and lets its key be changed.
fn changeable(folder: &tempfile::TempDir) -> NetBuilder {
    builder(2).state_dir(folder.path()).allow_key_change(true)
}

fn with(key: Key, device: &Net) -> Peer {
    Peer::addr(id(2), device.local_addr()).key(key)
}

async fn opens(app: &Net, peer: Peer) -> bool {
    match soon(app.connect(peer)).await {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::Unreachable => false,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn a_changed_key_outlives_the_net_and_the_old_one_its_grace() {
    let folder = tempfile::tempdir().unwrap();
    let (app, device) = (net(1).await, changeable(&folder).open().await.unwrap());
    serve(&device, echo());
    let session = soon(app.connect(direct(&device, 2))).await.unwrap();
    soon(app.set_remote_key(direct(&device, 2), &new_key())).await.unwrap();
    assert_eq!(&soon(session.send("still up").into_future()).await.unwrap()[..], b"still up");
    assert!(opens(&app, with(new_key(), &device)).await && opens(&app, direct(&device, 2)).await);
    device.shutdown().await;

    // Configured as before, it still has the new key, and honours the old one.
    let device = changeable(&folder).open().await.unwrap();
    assert!(opens(&app, with(new_key(), &device)).await && opens(&app, direct(&device, 2)).await);
    device.shutdown().await;

    let short = |config: &mut m2m::Config| {
        quick(config);
        config.timers.key_grace = Duration::ZERO;
    };
    let device = changeable(&folder).tune(short).open().await.unwrap();
    assert!(opens(&app, with(new_key(), &device)).await && !opens(&app, direct(&device, 2)).await);
    // The next change is one of the new key.
    let newest = Key::from_bytes(&[0x5F; 16]).unwrap();
    let stale = soon(app.set_remote_key(direct(&device, 2), &newest)).await.unwrap_err();
    assert_eq!(stale.kind(), ErrorKind::Unreachable, "{stale}");
    soon(app.set_remote_key(with(new_key(), &device), &newest)).await.unwrap();
    assert!(opens(&app, with(newest, &device)).await);
}

#[tokio::test]
async fn a_key_that_is_configured_by_hand_wins() {
    let folder = tempfile::tempdir().unwrap();
    let (app, device) = (net(1).await, changeable(&folder).open().await.unwrap());
    soon(app.set_remote_key(direct(&device, 2), &new_key())).await.unwrap();
    device.shutdown().await;
    let by_hand = Key::from_bytes(&[0x77; 32]).unwrap();
    let device = Net::builder(id(2), by_hand.clone()).bind(local(0)).tune(quick).state_dir(folder.path());
    let device = device.open().await.unwrap();
    assert!(opens(&app, with(by_hand, &device)).await);
    assert!(!opens(&app, with(new_key(), &device)).await);
}

#[tokio::test]
async fn a_change_is_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let app = net(1).await;
    let forbidden = builder(2).state_dir(folder.path()).open().await.unwrap();
    let error = soon(app.set_remote_key(direct(&forbidden, 2), &new_key())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("--allow-key-change"), "{error}");

    let stateless = builder(2).allow_key_change(true).open().await.unwrap();
    let error = soon(app.set_remote_key(direct(&stateless, 2), &new_key())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("state folder"), "{error}");
    assert!(opens(&app, direct(&stateless, 2)).await, "the old key stays");

    let pair = format!("m2m-pair v1 {} {} {}", id(1), id(2), "ab".repeat(32));
    let pair = Key::from_hex(&pair).unwrap();
    for (peer, new) in [(with(pair.clone(), &stateless), new_key()), (direct(&stateless, 2), pair)] {
        let error = soon(app.set_remote_key(peer, &new)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration);
        assert!(error.to_string().contains("pair key"), "{error}");
    }
}

fn public(folder: &tempfile::TempDir) -> [u8; 32] {
    let secret = StateDir::open(folder.path()).unwrap().device_key().unwrap();
    *m2m_proto::session::keys::DeviceKey::from_bytes(*secret).public()
}

#[tokio::test]
async fn a_pinned_session_is_one_with_that_device() {
    let folder = tempfile::tempdir().unwrap();
    let public = public(&folder);
    let host = server(1).await;
    let device = builder(2).state_dir(folder.path()).host(at(&host), key(1)).open().await.unwrap();
    serve(&device, echo());
    soon(device.registered()).await.unwrap();
    let app = builder(3).host(at(&host), key(1)).open().await.unwrap();
    for peer in [by_id(2), direct(&device, 2)] {
        let session = soon(app.connect(peer.clone().pin(public))).await.unwrap();
        assert_eq!(&soon(session.send("hi").into_future()).await.unwrap()[..], b"hi");

        let mut other = public;
        other[7] ^= 1;
        let error = soon(app.connect(peer.pin(other))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AuthenticationFailed);
        assert!(error.to_string().contains("pinned device key"), "{error}");
    }
}

#[tokio::test]
async fn a_strict_host_takes_listed_devices_only() {
    let (folder, other, claims) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let listed = public(&folder);
    let host = builder(1).server(true).strict(true).state_dir(claims.path()).open().await.unwrap();
    let device = |folder: &tempfile::TempDir| {
        builder(2).state_dir(folder.path()).host(at(&host), key(1)).tune(quick).open()
    };
    let refused = |net: Net| async move {
        let error = soon(net.registered()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        net.shutdown().await;
        error.to_string()
    };
    let why = refused(device(&folder).await.unwrap()).await;
    assert!(why.contains("claims pin"), "{why}");
    // Nor is a registration that claims nothing.
    let ephemeral = builder(3).ephemeral(true).host(at(&host), key(1)).open().await.unwrap();
    refused(ephemeral).await;

    let beside = m2m::state::Claims::open(&StateDir::claims_path(claims.path())).unwrap();
    assert!(beside.list().unwrap().is_empty(), "nothing was claimed by being refused");
    beside.pin(id(2), &listed, 1_795_000_000).unwrap();
    let registered = device(&folder).await.unwrap();
    soon(registered.registered()).await.unwrap();
    assert!(matches!(registered.host(), HostState::Connected { .. }));
    registered.shutdown().await;
    let why = refused(device(&other).await.unwrap()).await;
    assert!(why.contains("claimed by another key"), "{why}");
}

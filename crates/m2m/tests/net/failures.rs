//! What can't work, and how it is said.
use std::net::SocketAddr;

use m2m::{ErrorKind, Id, Key, Net, Peer};

use crate::fixture::{builder, direct, echo, id, key, local, net, serve, soon};

#[tokio::test]
async fn a_port_in_use_is_named() {
    let first = net(1).await;
    let error =
        Net::builder(id(2), key(2)).bind(first.local_addr()).open().await.err().expect("the port is taken");
    assert_eq!(error.kind(), ErrorKind::Io);
    let text = error.to_string();
    assert!(text.contains(&first.local_addr().port().to_string()) && text.contains("in use"), "{text}");
}

#[tokio::test]
async fn a_state_folder_in_use_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let first = builder(1).state_dir(folder.path()).open().await.unwrap();
    let error = builder(1).state_dir(folder.path()).open().await.err().expect("the folder is taken");
    assert_eq!(error.kind(), ErrorKind::Configuration);
    assert!(error.to_string().contains("in use"), "{error}");
    // A session that somebody still holds does not hold the folder.
    let other = net(2).await;
    let session = soon(first.connect(direct(&other, 2))).await.unwrap();
    first.shutdown().await;
    builder(1).state_dir(folder.path()).open().await.unwrap();
    drop(session);
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let nobody = std::net::UdpSocket::bind(local(0)).unwrap();
    let a = net(1).await;
    let peer = Peer::addr(id(2), nobody.local_addr().unwrap()).key(key(2));
    let error = soon(a.connect(peer)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.to_string().contains("wrong key"), "{error}");
    // A request that waited says that it never left.
    let closed_port = { std::net::UdpSocket::bind(local(0)).unwrap().local_addr().unwrap() };
    let session = a.dial(Peer::addr(id(2), closed_port).key(key(2))).unwrap();
    let error = soon(session.get("/x").into_future()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.to_string().contains("not sent"), "{error}");
}

#[tokio::test]
async fn configurations_that_cannot_work_are_refused() {
    let kind = async |builder: m2m::NetBuilder| builder.open().await.err().map(|error| error.kind());
    let pair = Key::from_hex(&format!("m2m-pair v1 1 2 {}", "ab".repeat(32))).unwrap();
    assert_eq!(kind(Net::builder(id(1), pair.clone())).await, Some(ErrorKind::Configuration));
    assert_eq!(kind(Net::builder(Id::ANY, key(1))).await, Some(ErrorKind::Configuration));
    let (one, other) = ("192.0.2.1:1".parse().unwrap(), "192.0.2.2:1".parse().unwrap());
    assert_eq!(kind(builder(1).host(one, key(2)).host(other, key(2))).await, Some(ErrorKind::Configuration));
    let own = "1@192.0.2.1:1".parse().unwrap();
    assert_eq!(kind(builder(1).host(own, key(1))).await, Some(ErrorKind::Configuration));
    let v6 = "2@[2001:db8::1]:1".parse().unwrap();
    assert_eq!(kind(builder(1).host(v6, key(1))).await, Some(ErrorKind::Configuration));

    let a = net(1).await;
    let error = a.dial(Peer::addr(id(3), local(9)).key(pair)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration, "the pair key is for id 2");
    let error = a.dial(Peer::addr(id(1), local(9)).key(key(1))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration, "that is its own id");
    let v6: SocketAddr = "[2001:db8::1]:9".parse().unwrap();
    assert_eq!(a.dial(Peer::any(v6).key(key(2))).unwrap_err().kind(), ErrorKind::Configuration);
    let name = "2@somewhere.example".parse::<Peer>().unwrap();
    assert_eq!(a.dial(name).unwrap_err().kind(), ErrorKind::Configuration);
}

#[tokio::test]
async fn b25_ipv6_works_where_it_is() {
    let loopback = "[::1]:0".parse().unwrap();
    let b = match Net::builder(id(2), key(2)).bind(loopback).open().await {
        Ok(net) => net,
        Err(error) => return println!("skipped: this machine has no IPv6 ({error})"),
    };
    serve(&b, echo());
    // One socket for both families.
    let a = Net::builder(id(1), key(1)).open().await.unwrap();
    let session = soon(a.connect(direct(&b, 2))).await.unwrap();
    assert_eq!(soon(session.get("/temp").into_future()).await.unwrap().text(), Some("21.5"));
    let c = net(3).await;
    serve(&c, echo());
    let session = soon(a.connect(direct(&c, 3))).await.unwrap();
    assert_eq!(session.path(), m2m::Path::Direct(c.local_addr()));
    assert_eq!(soon(session.get("/temp").into_future()).await.unwrap().text(), Some("21.5"));
}

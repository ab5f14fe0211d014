//! Hosts of several shards, on real sockets: the kernel decides which socket a datagram comes to.
use std::{collections::HashSet, net::SocketAddr, time::Duration};

use m2m::{ErrorKind, Id, Key, Net, Peer, state::StateDir};
use m2m_proto::stats::Drop;
use tokio::task::JoinSet;

use crate::fixture::{at, builder, by_id, device, echo, eventually, id, key, local, net, serve, soon};

/// Ids that fall to all shards: as good as random ones, and the same in every run.
fn number(n: u128) -> u128 {
    (n + 2).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835) >> 1
}

async fn sharded(count: u8, bind: SocketAddr) -> Net {
    builder(1).server(true).shards(count).bind(bind).open().await.unwrap()
}

async fn devices(host: &Net, count: u128) -> Vec<(u128, Net)> {
    let mut opening = JoinSet::new();
    for n in 0..count {
        let host = host.clone();
        opening.spawn(async move {
            let net = device(number(n), &host).await;
            serve(&net, echo());
            (number(n), net)
        });
    }
    soon(opening.join_all()).await
}

/// Every net says something to every other one, by its id: so many sentences were answered rightly.
async fn all_pairs_talk(nets: &[(u128, Net)]) -> usize {
    let mut talking = JoinSet::new();
    for (own, net) in nets {
        let (own, net) = (*own, net.clone());
        let others: Vec<u128> = nets.iter().map(|(n, _)| *n).filter(|n| *n != own).collect();
        talking.spawn(async move {
            let mut answered = 0;
            for to in others {
                let session = net.connect(by_id(to)).await.unwrap();
                let said = format!("{own} to {to}");
                answered += usize::from(session.send(said.clone()).await.unwrap() == said);
            }
            answered
        });
    }
    let talked = tokio::time::timeout(Duration::from_secs(240), talking.join_all());
    talked.await.expect("they talk in time").into_iter().sum()
}

async fn all_talk_through(shards: u8, count: u128) {
    let host = sharded(shards, local(0)).await;
    let nets = devices(&host, count).await;
    assert_eq!(host.registrations(), nets.len());
    assert_eq!(all_pairs_talk(&nets).await, nets.len() * (nets.len() - 1));
    let stats = host.stats();
    assert!(stats.handed_over > 0 && stats.relayed > 0, "{stats:?}");
    assert_eq!((stats.dropped(Drop::WrongShard), stats.dropped(Drop::NoRoute)), (0, 0), "{stats:?}");
    host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn all_devices_talk_through_two_shards() {
    all_talk_through(2, 16).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn fifty_devices_talk_through_four_shards() {
    all_talk_through(4, 50).await;
}

/// On one thread too: nothing waits for another shard's lock while it holds its own.
#[tokio::test]
async fn shards_need_no_threads() {
    let host = sharded(3, local(0)).await;
    let (a, b) = (device(number(0), &host).await, device(number(1), &host).await);
    serve(&b, echo());
    let session = soon(a.connect(by_id(number(1)))).await.unwrap();
    assert_eq!(&soon(session.send("x").into_future()).await.unwrap()[..], b"x");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_host_of_shards_has_handlers_sessions_and_events_like_any_other() {
    let host = sharded(4, local(0)).await;
    serve(&host, echo());
    let mut news = host.events();
    let mut nets = Vec::new();
    for n in 0..12 {
        nets.push((number(n), device(number(n), &host).await));
    }
    let mut told = HashSet::new();
    while told.len() < nets.len() {
        if let m2m::NetEvent::Registered(id) = soon(news.recv()).await.unwrap() {
            told.insert(id);
        }
    }
    for (n, net) in &nets {
        serve(net, echo());
        // Its own session with the host, in which the host asks; a new one to the host; and one by the host.
        let back = host.session(id(*n)).expect("it is registered");
        assert_eq!(&soon(back.send("back").into_future()).await.unwrap()[..], b"back");
        let session = soon(net.connect(Peer::addr(id(1), host.local_addr()).key(key(1)))).await.unwrap();
        assert_eq!(&soon(session.send("to").into_future()).await.unwrap()[..], b"to");
        for peer in [Peer::addr(id(*n), net.local_addr()), Peer::any(net.local_addr()), Peer::id(id(*n))] {
            let session = soon(host.connect(peer.key(key(*n)))).await.unwrap();
            assert_eq!(session.peer(), id(*n));
            assert_eq!(&soon(session.send("from").into_future()).await.unwrap()[..], b"from");
        }
        let is_there = soon(nets[0].1.online(id(*n))).await.unwrap();
        assert!(is_there, "{n:x}");
    }
    assert!(!soon(nets[0].1.online(id(number(99)))).await.unwrap());
    let unknown = soon(nets[0].1.connect(by_id(number(99)))).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::UnknownPeer, "{unknown}");
    let another = host.serve(echo()).await.unwrap_err();
    assert_eq!(another.kind(), ErrorKind::Configuration, "{another}");
    drop(nets);
    eventually(|| host.registrations() == 0).await;
    host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_shards_share_one_store_of_claims() {
    let folder = tempfile::tempdir().unwrap();
    let open = async |count| {
        let host = builder(1).server(true).shards(count).state_dir(folder.path());
        host.open().await.unwrap()
    };
    let host = open(4).await;
    for n in 0..8 {
        device(number(n), &host).await.shutdown().await;
    }
    host.shutdown().await;
    let claims = StateDir::open(folder.path()).unwrap().claims().unwrap();
    assert_eq!(claims.list().unwrap().len(), 8);
    drop(claims);
    // Whoever else has the net key of one has not its device key, whichever shard is asked.
    let host = open(2).await;
    for n in 0..8 {
        let thief = tempfile::tempdir().unwrap();
        let thief = builder(number(n)).state_dir(thief.path()).host(at(&host), key(1));
        let refused = soon(thief.open().await.unwrap().registered()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Refused, "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_changed_from_afar_is_that_of_all_shards() {
    let folder = tempfile::tempdir().unwrap();
    let host = builder(1).server(true).shards(4).state_dir(folder.path()).allow_key_change(true);
    let host = host.open().await.unwrap();
    let new_key = Key::from_bytes(&[0x4E; 32]).unwrap();
    let at_host = |key: Key| Peer::addr(id(1), host.local_addr()).key(key);
    let admin = net(number(0)).await;
    soon(admin.set_remote_key(at_host(key(1)), &new_key)).await.unwrap();
    for n in 1..9 {
        let net = net(number(n)).await;
        soon(net.connect(at_host(new_key.clone()))).await.unwrap();
        soon(net.connect(at_host(key(1)))).await.expect("the old one is honoured for a while");
    }
    // The next change goes to another shard, and is one of the new key.
    let newest = Key::from_bytes(&[0x5F; 32]).unwrap();
    for n in 9..14 {
        let other = net(number(n)).await;
        soon(other.set_remote_key(at_host(new_key.clone()), &newest)).await.unwrap();
        soon(other.set_remote_key(at_host(newest.clone()), &new_key)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn devices_return_to_a_host_that_has_other_shards_now() {
    let host = sharded(4, local(0)).await;
    let (a, b) = (device(number(0), &host).await, device(number(1), &host).await);
    serve(&b, echo());
    let session = soon(a.connect(by_id(number(1)))).await.unwrap();
    let address = host.local_addr();
    let mut host = host;
    for shards in [2, 5, 1] {
        host.shutdown().await;
        host = sharded(shards, address).await;
        // Its ping, or what is said, shows each that the host has forgotten it.
        eventually(|| host.registrations() == 2).await;
        let said = shards.to_string();
        assert_eq!(soon(session.send(said.clone()).into_future()).await.unwrap(), said);
    }
}

#[tokio::test]
async fn says_what_shards_can_not_do() {
    let refused = async |builder: m2m::NetBuilder| {
        let error = builder.open().await.err().expect("it is refused");
        assert_eq!(error.kind(), ErrorKind::Configuration, "{error}");
        error.to_string()
    };
    assert!(refused(builder(2).shards(0)).await.contains("one shard at least"));
    assert!(refused(builder(2).shards(129)).await.contains("128 at most"));
    let host = net(1).await;
    let words = refused(builder(2).shards(2).host(at(&host), key(1))).await;
    assert!(words.contains("registers with a host"), "{words}");
}

#[tokio::test]
async fn a_port_that_shards_have_is_nobody_elses() {
    let host = sharded(2, local(0)).await;
    for count in [1, 2] {
        let second = Net::builder(Id::from_hex("77").unwrap(), key(7)).shards(count).bind(host.local_addr());
        let error = second.open().await.err().expect("the port is taken");
        assert!(error.to_string().contains("in use"), "{error}");
    }
    let address = host.local_addr();
    host.shutdown().await;
    sharded(2, address).await.shutdown().await;
}

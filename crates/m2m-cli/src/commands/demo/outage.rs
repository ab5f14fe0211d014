//! The demo's end: the host goes away and returns, and everybody leaves.
use std::time::{Duration, Instant};

use m2m::names::Endpoint;
use m2m::{HostState, Net, Peer, Router, Session};

use super::stage::{Stage, Stopped, Told, expected, same};
use super::{Cast, id, lamp_router, say, start_device, start_host};

pub(super) async fn tell(stage: &mut Stage, mut cast: Cast) -> Result<(), Stopped> {
    let pair = stage.step("two nets know a second host (id 8)", second_host(&cast)).await?;
    stage.step("the host goes away", lose_host(&cast)).await?;
    stage.step("the second host takes over", take_over(&cast, pair)).await?;
    cast.host = stage.step("the host returns", return_host(&cast)).await?;
    stage.step("the lamp registers again, untouched", back_again(&cast)).await?;
    stage.step("everybody leaves", leave(&cast)).await
}

/// Two nets that name a second host, that host, and their session.
struct Pair {
    standby: Net,
    asker: Net,
    answerer: Net,
    session: Session,
}

async fn second_host(cast: &Cast) -> Told<Pair> {
    let standby = cast.keys.net(8, &cast.keys.host).server(true).open().await.map_err(expected("a host"))?;
    let at_standby = Endpoint {
        id: Some(id(8)),
        host: standby.local_addr().ip().to_string(),
        port: standby.local_addr().port(),
    };
    let net = |number| {
        let net = cast.keys.net(number, &cast.keys.lamp).host(cast.at_host.clone(), cast.keys.host.clone());
        net.host(at_standby.clone(), cast.keys.host.clone())
    };
    let (asker, _) = start_device(net(9), Router::new()).await?;
    let (answerer, _) = start_device(net(10), lamp_router()).await?;
    let session = asker.connect(second(cast)).await.map_err(expected("a session"))?;
    same("the answer", "lamp heard hello", &say(&session, "hello").await?)?;
    Ok((
        Pair { standby, asker, answerer, session },
        "9 and a register with the first, host 1, and talk through it".into(),
    ))
}

async fn lose_host(cast: &Cast) -> Told<()> {
    cast.host.shutdown().await;
    let is_lost = |state: &HostState| matches!(state, HostState::Disconnected { .. });
    match wait_for(&cast.lamp, is_lost).await? {
        HostState::Disconnected { why } => Ok(((), format!("the lamp knows it ({why}), and keeps trying"))),
        state => Err(format!("expected the lamp to miss its host, came {state:?}")),
    }
}

fn second(cast: &Cast) -> Peer {
    Peer::id(id(10)).key(cast.keys.lamp.clone())
}

async fn take_over(cast: &Cast, pair: Pair) -> Told<()> {
    let Pair { standby, asker, answerer, session } = pair;
    let start = Instant::now();
    let is_there = |state: &HostState| matches!(state, HostState::Connected { host, .. } if *host == id(8));
    wait_for(&asker, is_there).await?;
    wait_for(&answerer, is_there).await?;
    let fresh = asker.connect(second(cast)).await.map_err(expected("a session"))?;
    same("the answer", "lamp heard new here?", &say(&fresh, "new here?").await?)?;
    same("the answer", "lamp heard still you?", &say(&session, "still you?").await?)?;
    let ms = start.elapsed().as_millis();
    asker.shutdown().await;
    answerer.shutdown().await;
    standby.shutdown().await;
    Ok((
        (),
        format!(
            "within {ms} ms both are registered there; a new session and the one from before go through it"
        ),
    ))
}

async fn return_host(cast: &Cast) -> Told<Net> {
    let address = cast.host.local_addr();
    let (host, _) = start_host(&cast.keys, address).await?;
    Ok((host, format!("on the same address, {address}, with the claims that it kept")))
}

async fn back_again(cast: &Cast) -> Told<()> {
    let is_back = |state: &HostState| matches!(state, HostState::Connected { .. });
    wait_for(&cast.lamp, is_back).await?;
    wait_for(&cast.app, is_back).await?;
    let session = cast.app.connect(cast.lamp()).await.map_err(expected("a session"))?;
    let heard = say(&session, "hello again").await?;
    same("the answer", "lamp heard hello again", &heard)?;
    Ok(((), format!("nobody touched it, and the app has its answer: \"{heard}\"")))
}

async fn leave(cast: &Cast) -> Told<()> {
    let lamp = Peer::addr(cast.lamp.id(), cast.lamp.local_addr()).key(cast.keys.lamp.clone());
    let session = cast.app.connect(lamp).await.map_err(expected("a session"))?;
    say(&session, "good night").await?;
    cast.lamp.shutdown().await;
    let why = tokio::time::timeout(Duration::from_secs(3), session.closed()).await;
    let why = why.map_err(|_| "expected the app to learn that the lamp left, nothing came".to_owned())?;
    cast.app.shutdown().await;
    cast.host.shutdown().await;
    Ok(((), format!("the app is told of the lamp's session: {why}")))
}

async fn wait_for(net: &Net, wanted: impl Fn(&HostState) -> bool) -> Result<HostState, String> {
    let mut watch = net.watch_host();
    let state = watch.wait_for(|state| wanted(state)).await;
    state.map(|state| state.clone()).map_err(|_| "expected news of the host, came the end of the net".into())
}

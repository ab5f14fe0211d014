//! The demo's end: the host goes away and returns, and everybody leaves.
use std::time::Duration;

use m2m::{HostState, Net, Peer};

use super::stage::{Stage, Stopped, Told, expected, same};
use super::{Cast, say, start_host};

pub(super) async fn tell(stage: &mut Stage, mut cast: Cast) -> Result<(), Stopped> {
    stage.step("the host goes away", lose_host(&cast)).await?;
    cast.host = stage.step("the host returns", return_host(&cast)).await?;
    stage.step("the lamp registers again, untouched", back_again(&cast)).await?;
    stage.step("everybody leaves", leave(&cast)).await
}

async fn lose_host(cast: &Cast) -> Told<()> {
    cast.host.shutdown().await;
    let is_lost = |state: &HostState| matches!(state, HostState::Disconnected { .. });
    match wait_for(&cast.lamp, is_lost).await? {
        HostState::Disconnected { why } => Ok(((), format!("the lamp knows it ({why}), and keeps trying"))),
        state => Err(format!("expected the lamp to miss its host, came {state:?}")),
    }
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

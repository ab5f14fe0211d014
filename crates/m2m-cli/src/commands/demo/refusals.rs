//! The demo's strangers: an impostor, a wrong key, an id that nobody has.
use std::time::{Duration, Instant};

use m2m::{ErrorKind, HostState, Key, Net, Peer};

use super::stage::{Stage, Stopped, Told, expected, same};
use super::{Cast, any_port, id, say};

/// Long enough for three tries, which the verdict needs.
const HANDSHAKE: Duration = Duration::from_secs(4);

pub(super) async fn tell(stage: &mut Stage, cast: &Cast) -> Result<(), Stopped> {
    stage.step("an impostor claims the lamp's id", impostor(cast)).await?;
    stage.step("a wrong key is told as such", wrong_key(cast)).await?;
    stage.step("an id that nobody has ends the wait at once", unknown_id(cast)).await
}

/// It has every key of the lamp, but not the device key that the lamp made at its first start.
async fn impostor(cast: &Cast) -> Told<()> {
    let builder = Net::builder(id(2), cast.keys.lamp.clone()).bind(any_port());
    let builder = builder.state_dir(cast.keys.folder.join("impostor"));
    let builder = builder.host(cast.at_host.clone(), cast.keys.host.clone());
    let impostor = builder.open().await.map_err(expected("a net"))?;
    if impostor.registered().await.is_ok() {
        return Err("expected the host to refuse it, came a registration".into());
    }
    let why = match impostor.host() {
        HostState::Refused { why } => why,
        state => return Err(format!("expected the host to refuse it, came {state:?}")),
    };
    impostor.shutdown().await;
    let session = cast.app.connect(cast.lamp()).await.map_err(expected("the lamp to be reachable still"))?;
    same("the answer", "lamp heard still you?", &say(&session, "still you?").await?)?;
    Ok(((), format!("refused, though it has the lamp's key: {why}")))
}

async fn wrong_key(cast: &Cast) -> Told<()> {
    let builder = cast.keys.net(5, &cast.keys.app).host(cast.at_host.clone(), cast.keys.host.clone());
    let stranger = builder.tune(|config| config.timers.handshake_timeout = HANDSHAKE);
    let stranger = stranger.open().await.map_err(expected("a net"))?;
    stranger.registered().await.map_err(expected("a registration"))?;
    let guess = Key::generate().map_err(expected("a random key"))?;
    let outcome = stranger.connect(Peer::id(id(2)).key(guess)).await;
    stranger.shutdown().await;
    match outcome {
        Err(error) if error.kind() == ErrorKind::AuthenticationFailed => Ok(((), error.to_string())),
        Err(error) => Err(format!("expected \"authentication failed\", came {}: {error}", error.kind())),
        Ok(_) => Err("expected no session, came one".into()),
    }
}

async fn unknown_id(cast: &Cast) -> Told<()> {
    let start = Instant::now();
    let outcome = cast.app.connect(Peer::id(id(0x63)).key(cast.keys.lamp.clone())).await;
    match outcome {
        Err(error) if error.kind() == ErrorKind::UnknownPeer && start.elapsed() < Duration::from_secs(2) => {
            Ok(((), error.to_string()))
        }
        Err(error) => Err(format!("expected \"unknown peer\" at once, came {}: {error}", error.kind())),
        Ok(_) => Err("expected no session, came one".into()),
    }
}

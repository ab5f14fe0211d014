//! `m2m online`: asks the host whether a peer is registered and answers.
use m2m::ErrorKind;
use m2m::names::PeerName;
use serde_json::json;

use crate::args::Online;
use crate::config::Settings;
use crate::exit::{Exit, Failure};
use crate::nets;
use crate::output::Output;

pub(super) async fn run(settings: &Settings, output: Output, args: &Online) -> Result<Exit, Failure> {
    let id = match settings.peer(&args.peer)? {
        PeerName::Id(id) => Some(id),
        PeerName::At(endpoint) => endpoint.id,
        PeerName::Alias(_) => None,
    };
    let id =
        id.ok_or_else(|| Failure::Configuration("the host knows ids only: name the peer by its id".into()))?;
    let net = nets::open_one_shot(settings, output, true).await?;
    let work = async {
        net.registered().await?;
        net.online(id).await
    };
    let asked = nets::within(settings, "the host", work).await;
    nets::close(&net).await;
    let online = match asked {
        Err(Failure::Net { error, .. }) if error.kind() == ErrorKind::UnknownPeer => false,
        asked => asked?,
    };
    let words = if online { "online" } else { "offline" };
    output.line(words, &json!({"id": id.to_string(), "online": online}))?;
    Ok(if online { Exit::Ok } else { Exit::Unreachable })
}

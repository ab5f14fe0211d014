//! `m2m online`: asks the host whether a peer is registered and answers.
use m2m::names::PeerName;
use m2m::{Error, ErrorKind, Id, Net};
use serde_json::json;

use crate::args::Online;
use crate::config::Settings;
use crate::exit::{Exit, Failure};
use crate::nets;
use crate::output::{Output, short};

pub(super) async fn run(settings: &Settings, output: Output, args: &Online) -> Result<Exit, Failure> {
    let id = match settings.peer(&args.peer)? {
        PeerName::Id(id) => Some(id),
        PeerName::At(endpoint) => endpoint.id,
        PeerName::Alias(_) => None,
    };
    let id =
        id.ok_or_else(|| Failure::Configuration("the host knows ids only: name the peer by its id".into()))?;
    if settings.hosts.is_empty() {
        return Err(Failure::Configuration(format!(
            "only a host knows who is online: give --host ID@NAME:PORT. Without one, `m2m ping {}@ADDRESS:PORT` \
             asks the peer itself",
            short(id)
        )));
    }
    let net = nets::open_one_shot(settings, output, true).await?;
    let asked = nets::within(settings, "the host", ask(&net, id)).await;
    nets::close(&net).await;
    let asked = asked.map_err(|failure| match failure.exit() {
        Exit::Unreachable => {
            let hosts: Vec<_> = settings.hosts.iter().map(nets::host_words).collect();
            failure.during(format!("host {}", hosts.join(", ")))
        }
        _ => failure,
    });
    let online = match asked {
        Err(Failure::Net { error, .. }) if error.kind() == ErrorKind::UnknownPeer => false,
        asked => asked?,
    };
    let words = if online { "online" } else { "offline" };
    output.line(words, &json!({"id": id.to_string(), "online": online}))?;
    Ok(if online { Exit::Ok } else { Exit::Unreachable })
}

/// The question waits for the registration by itself, and gives a host up that is away; a refusal ends the wait.
async fn ask(net: &Net, id: Id) -> Result<bool, Error> {
    let online = net.online(id);
    tokio::pin!(online);
    tokio::select! {
        answer = &mut online => return answer,
        registered = net.registered() => registered?,
    }
    online.await
}

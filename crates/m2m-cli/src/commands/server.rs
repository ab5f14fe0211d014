//! `m2m server`: a host. Nets register with it, and it forwards between them.
use std::collections::HashSet;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use m2m::names::{DEFAULT_PORT, Endpoint};
use m2m::{Id, Net, NetEvent, Router};
use serde_json::json;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::counters::{self, Asked};
use super::stop::Stop;
use crate::args::Server;
use crate::config::Settings;
use crate::exit::{Exit, Failure};
use crate::nets;
use crate::output::{Events, Output, short};

pub(super) async fn run(settings: &Settings, output: Output, args: &Server) -> Result<Exit, Failure> {
    let everywhere = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), DEFAULT_PORT);
    let mut builder = nets::builder(settings).await?.server(true).bind(args.bind.unwrap_or(everywhere));
    if let Some(seconds) = args.max_router_tm {
        builder = builder.max_router_tm(Duration::from_secs_f64(seconds));
    }
    let builder = builder.shards(args.shards.or(settings.shards).unwrap_or(1));
    let builder = builder.strict(args.strict).allow_key_change(args.allow_key_change);
    let net = builder.open().await?;
    // It has no resources, and says so at once.
    tokio::spawn(net.serve(Router::new()));
    run_until_stopped(&net, output, "server", &[]).await
}

/// Says "ready", tells what happens to the net, and closes it when a signal comes. `hosts` are the net's hosts as
/// their user named them.
pub(super) async fn run_until_stopped(
    net: &Net,
    output: Output,
    role: &str,
    hosts: &[Endpoint],
) -> Result<Exit, Failure> {
    let mut stop = Stop::new()?;
    let mut asked = Asked::new()?;
    let events = net.events();
    let start = |error| Failure::Other(format!("can't start a thread for the events: {error}"));
    let told = Events::new(output).map_err(start)?;
    let mut teller = Teller { told, hosts: hosts.to_vec(), reached: HashSet::new() };
    tokio::select! {
        () = stop.asked() => {}
        failure = tell_all(net, output, role, events, &mut teller, &mut asked) => return Err(failure),
    }
    output.say("m2m: stopping");
    nets::close(net).await;
    let dropped = teller.told.finish();
    if dropped > 0 {
        output.say(&format!("m2m: {dropped} events were dropped, for nobody read them in time"));
    }
    Ok(Exit::Ok)
}

/// Tells what happens, for as long as the net lives; what it returns is why no more can be told.
async fn tell_all(
    net: &Net,
    output: Output,
    role: &str,
    mut events: Receiver<NetEvent>,
    teller: &mut Teller,
    asked: &mut Asked,
) -> Failure {
    if let Err(failure) = say_ready(net, output, role).await {
        return failure;
    }
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = asked.again() => {
                let (words, object) = counters::of(net);
                teller.told.answer(&words, &object);
                continue;
            }
        };
        match event {
            Ok(event) => teller.tell(&event),
            Err(RecvError::Lagged(missed)) => tracing::warn!(missed, "too many events to tell all"),
            Err(RecvError::Closed) => {
                return Failure::Other("the net closed by itself: the log says why (-v)".into());
            }
        }
    }
}

/// Says that the net is ready, off the event loop: somebody may start it without reading that.
async fn say_ready(net: &Net, output: Output, role: &str) -> Result<(), Failure> {
    let (id, address) = (net.id(), net.local_addr());
    let words = format!("m2m {role} {} ready on {address}", short(id));
    let object = json!({"event": "ready", "id": id.to_string(), "addr": address.to_string()});
    match tokio::task::spawn_blocking(move || output.line(&words, &object)).await {
        // Its work isn't to print: it goes on when nobody reads that.
        Ok(Err(Failure::ClosedPipe)) => Ok(()),
        Ok(said) => said,
        Err(error) => Err(Failure::Other(format!("can't say that it is ready: {error}"))),
    }
}

/// Tells events in the light of those before.
struct Teller {
    told: Events,
    /// The hosts as their user named them.
    hosts: Vec<Endpoint>,
    /// The hosts that this net was connected with.
    reached: HashSet<Id>,
}

impl Teller {
    fn tell(&mut self, event: &NetEvent) {
        match event {
            NetEvent::HostConnected { host, public } => {
                self.reached.insert(*host);
                let seen = public.map(|address| format!(", which sees us at {address}")).unwrap_or_default();
                self.told.tell(
                    &format!("m2m: host {} connected{seen}", short(*host)),
                    &json!({"event": "host_connected", "host": host.to_string(), "public": public.map(|address| address.to_string())}),
                );
            }
            NetEvent::HostDisconnected { host, why } => self.tell_disconnected(*host, why),
            NetEvent::KeyChanged { key_id } => self.told.tell(
                "m2m: the net key was changed from afar; the new one is kept in the state folder",
                &json!({"event": "key_changed", "version": key_id}),
            ),
            NetEvent::HostRefused { host, why } => self.told.tell(
                &format!("m2m: host {} refused us: {why}", short(*host)),
                &json!({"event": "host_refused", "host": host.to_string(), "why": why.to_string()}),
            ),
            // These come by the thousand: a reader that stops reading must not stop a host.
            NetEvent::Registered(id) if self.told.is_verbose() => self.told.tell(
                &format!("m2m: {} registered", short(*id)),
                &json!({"event": "registered", "id": id.to_string()}),
            ),
            NetEvent::Recovered { peer, resumed } if self.told.is_verbose() => {
                let how = if *resumed { "and goes on where it was" } else { "after a restart" };
                self.told.tell(
                    &format!("m2m: the session with {} was opened anew, {how}", short(*peer)),
                    &json!({"event": "recovered", "peer": peer.to_string(), "resumed": resumed}),
                );
            }
            NetEvent::Moved { peer, path } if self.told.is_verbose() => self.told.tell(
                &format!("m2m: {} has moved: {path}", short(*peer)),
                &json!({"event": "moved", "peer": peer.to_string(), "path": path.to_string()}),
            ),
            NetEvent::Unregistered(id) if self.told.is_verbose() => self.told.tell(
                &format!("m2m: {} left", short(*id)),
                &json!({"event": "unregistered", "id": id.to_string()}),
            ),
            _ => {}
        }
    }

    /// A host that was never reached can't have been disconnected.
    fn tell_disconnected(&mut self, host: Id, why: &str) {
        let was_connected = self.reached.contains(&host);
        let name = || {
            let by_id = |id| self.hosts.iter().find(|named| named.id == id);
            // One that was named without its id has none that is known before it answers.
            by_id(Some(host)).or_else(|| by_id(None)).map_or_else(|| short(host), nets::host_words)
        };
        let words = match was_connected {
            true => format!("m2m: host {} disconnected: {why}; trying again", short(host)),
            false => format!("m2m: host {} does not answer yet ({why}): trying on", name()),
        };
        let object = json!({
            "event": "host_disconnected",
            "host": host.to_string(),
            "why": why,
            "was_connected": was_connected,
        });
        self.told.tell(&words, &object);
    }
}

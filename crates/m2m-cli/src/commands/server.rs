//! `m2m server`: a host. Nets register with it, and it forwards between them.
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use m2m::names::DEFAULT_PORT;
use m2m::{Net, NetEvent};
use serde_json::json;
use tokio::sync::broadcast::{Receiver, error::RecvError};

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
    let net = builder.open().await?;
    run_until_stopped(&net, output, "server").await
}

/// Says "ready", tells what happens to the net, and closes it when a signal comes.
pub(super) async fn run_until_stopped(net: &Net, output: Output, role: &str) -> Result<Exit, Failure> {
    let mut stop = Stop::new()?;
    let events = net.events();
    let start = |error| Failure::Other(format!("can't start a thread for the events: {error}"));
    let mut told = Events::new(output).map_err(start)?;
    tokio::select! {
        () = stop.asked() => {}
        failure = tell_all(net, output, role, events, &mut told) => return Err(failure),
    }
    output.say("m2m: stopping");
    nets::close(net).await;
    let dropped = told.finish();
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
    told: &mut Events,
) -> Failure {
    if let Err(failure) = say_ready(net, output, role).await {
        return failure;
    }
    loop {
        match events.recv().await {
            Ok(event) => tell(told, &event),
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

fn tell(told: &mut Events, event: &NetEvent) {
    match event {
        NetEvent::HostConnected { host, public } => {
            let seen = public.map(|address| format!(", which sees us at {address}")).unwrap_or_default();
            told.tell(
                &format!("m2m: host {} connected{seen}", short(*host)),
                &json!({"event": "host_connected", "host": host.to_string(), "public": public.map(|address| address.to_string())}),
            );
        }
        NetEvent::HostDisconnected { host, why } => told.tell(
            &format!("m2m: host {} disconnected: {why}; trying again", short(*host)),
            &json!({"event": "host_disconnected", "host": host.to_string(), "why": why.to_string()}),
        ),
        NetEvent::HostRefused { host, why } => told.tell(
            &format!("m2m: host {} refused us: {why}", short(*host)),
            &json!({"event": "host_refused", "host": host.to_string(), "why": why.to_string()}),
        ),
        // These come by the thousand: a reader that stops reading must not stop a host.
        NetEvent::Registered(id) if told.is_verbose() => told.tell(
            &format!("m2m: {} registered", short(*id)),
            &json!({"event": "registered", "id": id.to_string()}),
        ),
        NetEvent::Unregistered(id) if told.is_verbose() => told.tell(
            &format!("m2m: {} left", short(*id)),
            &json!({"event": "unregistered", "id": id.to_string()}),
        ),
        _ => {}
    }
}

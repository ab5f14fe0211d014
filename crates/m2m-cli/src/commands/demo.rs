//! `m2m demo`: hosts, devices and an app in one process, on real loopback sockets.
//!
//! ```text
//!  app (id 4) ──── host (id 1) ──┬── lamp (id 2)
//!                                └── thermometer (id 3)
//! ```
mod outage;
mod refusals;
mod stage;
mod survival;
mod talks;
mod wire;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Instant;

use m2m::names::Endpoint;
use m2m::{Id, Key, Net, NetBuilder, Peer, Reply, Request, Response, Router, Session};

use crate::exit::{Exit, Failure};
use crate::output::Output;
use stage::{Stage, Stopped, Told, expected};

pub(super) async fn run(output: Output) -> Result<Exit, Failure> {
    let start = Instant::now();
    let folder = tempfile::tempdir().map_err(|error| {
        Failure::Configuration(format!(
            "can't make a folder for the demo's states: {error}. Is TMPDIR writable?"
        ))
    })?;
    let mut stage = Stage::new(output);
    let told = tell(&mut stage, folder.path()).await;
    let (steps, seconds) = (stage.steps(), start.elapsed().as_secs_f32());
    match told {
        Ok(()) => {
            output.say(&format!("all {steps} steps hold ({seconds:.1} s)"));
            Ok(Exit::Ok)
        }
        Err(Stopped::Step) => {
            output.say(&format!("stopped after {steps} steps: the one that failed says what came"));
            Ok(Exit::Other)
        }
        Err(Stopped::Output(failure)) => Err(failure),
    }
}

async fn tell(stage: &mut Stage, folder: &Path) -> Result<(), Stopped> {
    let keys = stage.step("four keys are made", make_keys(folder)).await?;
    let mut cast = gather(stage, keys).await?;
    talks::tell(stage, &mut cast).await?;
    refusals::tell(stage, &cast).await?;
    survival::tell(stage, &cast).await?;
    outage::tell(stage, cast).await
}

/// Who has which key, and where states are kept.
struct Keys {
    host: Key,
    lamp: Key,
    thermometer: Key,
    app: Key,
    folder: PathBuf,
}

/// Everybody who is on the stage.
struct Cast {
    keys: Keys,
    at_host: Endpoint,
    host: Net,
    lamp: Net,
    thermometer: Net,
    app: Net,
}

async fn make_keys(folder: &Path) -> Told<Keys> {
    let key = || Key::generate().map_err(expected("a random key"));
    let keys = Keys { host: key()?, lamp: key()?, thermometer: key()?, app: key()?, folder: folder.into() };
    Ok((keys, "whoever has a net's key may talk to it, nobody else".into()))
}

async fn gather(stage: &mut Stage, keys: Keys) -> Result<Cast, Stopped> {
    let host = stage.step("the host starts", start_host(&keys, any_port())).await?;
    let at_host = Endpoint {
        id: Some(id(1)),
        host: host.local_addr().ip().to_string(),
        port: host.local_addr().port(),
    };
    let lamp = keys.net(2, &keys.lamp).host(at_host.clone(), keys.host.clone());
    let lamp = stage.step("a lamp (id 2) registers with the host", start_device(lamp, lamp_router())).await?;
    let thermometer = keys.net(3, &keys.thermometer).host(at_host.clone(), keys.host.clone());
    let thermometer = start_device(thermometer, thermometer_router());
    let thermometer = stage.step("a thermometer (id 3) registers too", thermometer).await?;
    let app = keys.net(4, &keys.app).host(at_host.clone(), keys.host.clone());
    let app = stage.step("an app (id 4) registers", start_device(app, app_router())).await?;
    Ok(Cast { keys, at_host, host, lamp, thermometer, app })
}

impl Keys {
    /// A net on a free port of its own, with its state in the demo's folder.
    fn net(&self, number: u8, key: &Key) -> NetBuilder {
        let folder = self.folder.join(number.to_string());
        Net::builder(id(number), key.clone()).bind(any_port()).state_dir(folder)
    }
}

impl Cast {
    fn lamp(&self) -> Peer {
        Peer::id(id(2)).key(self.keys.lamp.clone())
    }
}

async fn start_host(keys: &Keys, address: SocketAddr) -> Told<Net> {
    let builder = keys.net(1, &keys.host).bind(address).server(true);
    let host = builder.open().await.map_err(expected("a host"))?;
    let words =
        format!("it listens on UDP port {}, remembers who is where, and forwards", host.local_addr().port());
    Ok((host, words))
}

async fn start_device(builder: NetBuilder, router: Router) -> Told<Net> {
    let net = builder.open().await.map_err(expected("a net"))?;
    tokio::spawn(net.serve(router));
    net.registered().await.map_err(expected("the host to take the registration"))?;
    let words = format!("from port {}; from now on it is reached by its id alone", net.local_addr().port());
    Ok((net, words))
}

fn lamp_router() -> Router {
    let state = std::sync::Arc::new(std::sync::Mutex::new(String::from("off")));
    let read = state.clone();
    // Each change is one assignment: the text is whole whenever the lock is free.
    let lock = |state: &std::sync::Mutex<String>, new: Option<String>| {
        let mut state = state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(new) = new {
            *state = new;
        }
        state.clone()
    };
    Router::new()
        .get("/led", move |_: Request| {
            let led = lock(&read, None);
            async move { Reply::text(led) }
        })
        .put("/led", move |request: Request| {
            lock(&state, Some(String::from_utf8_lossy(&request.payload).into_owned()));
            async { Reply::changed() }
        })
        .data(|request: Request| async move { answer("lamp", &request) })
}

fn thermometer_router() -> Router {
    Router::new()
        .get("/temp", |_: Request| async { Reply::text("21.5") })
        .data(|request: Request| async move { answer("thermometer", &request) })
}

fn app_router() -> Router {
    Router::new().data(|request: Request| async move { answer("app", &request) })
}

fn answer(who: &str, request: &Request) -> Reply {
    Reply::text(format!("{who} heard {}", String::from_utf8_lossy(&request.payload)))
}

/// Sends opaque data and gives the answer as text.
async fn say(session: &Session, words: &str) -> Result<String, String> {
    let answer = session.send(words.to_owned()).await.map_err(expected("an answer"))?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn text(response: &Response) -> String {
    String::from_utf8_lossy(&response.payload).into_owned()
}

fn id(number: u8) -> Id {
    let mut id = Id::ANY;
    id.0[15] = number;
    id
}

fn any_port() -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)
}

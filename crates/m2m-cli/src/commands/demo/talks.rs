//! The demo's middle: sessions by id and by address, data, resources, presence.
use futures_util::future::{join_all, try_join_all};
use m2m::{Key, Net, Path, Peer, Session, SessionState};

use super::stage::{Stage, Stopped, Told, expected, same};
use super::{Cast, any_port, id, say, text};

/// Nets that run beside each other in this process.
const NETS: u8 = 20;
/// Messages that are sent before their session is up.
const EARLY: usize = 5;

pub(super) async fn tell(stage: &mut Stage, cast: &mut Cast) -> Result<(), Stopped> {
    let session = stage.step("the app reaches the lamp by its id", by_id(cast)).await?;
    stage.step("the lamp asks back in the same session", both_ways(cast, &session)).await?;
    stage.step("messages wait until a session is up", early(cast)).await?;
    stage.step("the app reads the thermometer", read_resource(cast)).await?;
    stage.step("the app switches the lamp on", write_resource(&session)).await?;
    stage.step("the app asks the host who is online", presence(cast)).await?;
    stage.step("the thermometer leaves", leave(cast)).await?;
    stage.step("the app talks to the lamp without the host", direct(cast)).await?;
    stage.step("twenty more nets run in this process", many_nets(cast)).await
}

async fn by_id(cast: &Cast) -> Told<Session> {
    let session = cast.app.connect(cast.lamp()).await.map_err(expected("a session"))?;
    let heard = say(&session, "hello").await?;
    same("the answer", "lamp heard hello", &heard)?;
    match session.path() {
        Path::Relay(host) if host == id(1) => {
            Ok((session, format!("\"{heard}\"; through the host, which can't read it")))
        }
        path => Err(format!("expected the way to lead through host 1, came {path:?}")),
    }
}

async fn both_ways(cast: &Cast, session: &Session) -> Told<()> {
    let back =
        cast.lamp.session(cast.app.id()).ok_or("expected the lamp to have the app's session, came none")?;
    let (asked, answered) = tokio::join!(say(&back, "are you there?"), say(session, "on my way"));
    same("the app's answer", "app heard are you there?", &asked?)?;
    same("the lamp's answer", "lamp heard on my way", &answered?)?;
    Ok(((), "either end may ask, whoever opened the session".into()))
}

async fn early(cast: &Cast) -> Told<()> {
    let peer = Peer::id(cast.thermometer.id()).key(cast.keys.thermometer.clone());
    // A busy machine may let the handshake pass before this task goes on: then there is nothing to see, and another tells.
    let mut tries = 0;
    let session = loop {
        let session = cast.app.dial(peer.clone()).map_err(expected("a session"))?;
        if session.state() != SessionState::Up {
            break session;
        }
        session.close().await;
        tries += 1;
        if tries == 20 {
            return Err("expected a session to need a moment, came 20 that were up at once".into());
        }
    };
    let words: Vec<String> = (1..=EARLY).map(|number| format!("message {number}")).collect();
    let answers = join_all(words.iter().map(|words| say(&session, words))).await;
    for (words, heard) in words.iter().zip(answers) {
        same("the answer", &format!("thermometer heard {words}"), &heard?)?;
    }
    Ok(((), format!("{EARLY} were sent at once, left with its first packets, and were all answered")))
}

async fn read_resource(cast: &Cast) -> Told<()> {
    let peer = Peer::id(cast.thermometer.id()).key(cast.keys.thermometer.clone());
    let session = cast.app.connect(peer).await.map_err(expected("a session"))?;
    let temp = session.get("/temp").await.and_then(|answer| answer.ok()).map_err(expected("2.05 Content"))?;
    same("/temp", "21.5", &text(&temp))?;
    let none = session.get("/nothing").await.map_err(expected("an answer"))?;
    same("the code of what isn't there", "Not Found", none.code.name().unwrap_or("none"))?;
    Ok(((), "GET /temp is 21.5, GET /nothing is 4.04 Not Found; this is CoAP (RFC 7252)".into()))
}

async fn write_resource(session: &Session) -> Told<()> {
    let read = || async {
        let led = session.get("/led").await.and_then(|answer| answer.ok());
        led.map(|led| text(&led)).map_err(expected("2.05 Content"))
    };
    same("/led", "off", &read().await?)?;
    let put = session.put("/led").payload("on").await.and_then(|answer| answer.ok());
    put.map_err(expected("2.04 Changed"))?;
    same("/led", "on", &read().await?)?;
    Ok(((), "GET /led was off, PUT /led on, GET /led is on".into()))
}

async fn presence(cast: &Cast) -> Told<()> {
    let lamp = cast.app.online(cast.lamp.id()).await.map_err(expected("the host to answer"))?;
    let nobody = cast.app.online(id(0x63)).await.map_err(expected("the host to answer"))?;
    same("2 and 63 online", "true and false", &format!("{lamp} and {nobody}"))?;
    Ok(((), "id 2 is online, id 63 is not".into()))
}

async fn leave(cast: &Cast) -> Told<()> {
    cast.thermometer.shutdown().await;
    let online = cast.app.online(id(3)).await.map_err(expected("the host to answer"))?;
    same("3 online", "false", &online.to_string())?;
    Ok(((), "it said goodbye, and the host says at once that it is offline".into()))
}

async fn direct(cast: &Cast) -> Told<()> {
    let peer = Peer::addr(cast.lamp.id(), cast.lamp.local_addr()).key(cast.keys.lamp.clone());
    let session = cast.app.connect(peer).await.map_err(expected("a session"))?;
    let heard = say(&session, "hello").await?;
    same("the answer", "lamp heard hello", &heard)?;
    match session.path() {
        Path::Direct(address) => Ok(((), format!("straight to {address}; an address needs no host"))),
        path => Err(format!("expected a direct way, came {path:?}")),
    }
}

async fn many_nets(cast: &Cast) -> Told<()> {
    let lamp = || Peer::addr(cast.lamp.id(), cast.lamp.local_addr()).key(cast.keys.lamp.clone());
    let talks = (0..NETS).map(|number| one_of_many(100 + number, lamp()));
    try_join_all(talks).await?;
    Ok(((), format!("{NETS} nets with sockets, ids and keys of their own each had an answer from the lamp")))
}

async fn one_of_many(number: u8, lamp: Peer) -> Result<(), String> {
    let key = Key::generate().map_err(expected("a random key"))?;
    let net = Net::builder(id(number), key).bind(any_port()).open().await.map_err(expected("a net"))?;
    let session = net.connect(lamp).await.map_err(expected("a session"))?;
    let heard = say(&session, &format!("net {number}")).await?;
    same("the answer", &format!("lamp heard net {number}"), &heard)?;
    net.shutdown().await;
    Ok(())
}

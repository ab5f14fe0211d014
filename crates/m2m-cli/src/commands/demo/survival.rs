//! The demo's hard times: a device restarts, a NAT changes its mind, keys and tokens change, garbage rains.
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use m2m::{Net, Peer, Reply, Request, Response, Router, Session};
use tokio::net::UdpSocket;

use super::stage::{Stage, Stopped, Told, expected, same};
use super::wire::Wire;
use super::{Cast, any_port, id, say, start_device, text};

/// Messages that are under way while keys change.
const MESSAGES: usize = 300;
/// Datagrams of garbage, and how many at once.
const GARBAGE: usize = 2_000;
const BURST: usize = 50;
/// So many of the garbage must have arrived: a busy machine's socket may overflow.
const COUNTED: u64 = GARBAGE as u64 / 2;

/// A pump whose way to the app leads over a wire, and the app's session with it.
struct Scene {
    pump: Net,
    wire: Wire,
    session: Session,
}

pub(super) async fn tell(stage: &mut Stage, cast: &Cast) -> Result<(), Stopped> {
    let scene = stage.step("a pump (id 6) is reached over a wire that we can cut", set(cast)).await?;
    stage.step("its keys change three times in mid-traffic", rekey(cast, &scene)).await?;
    stage.step("the session gets another token", refresh_token(&scene)).await?;
    stage.step("garbage rains on the pump while it talks", flood(&scene)).await?;
    let scene = stage.step("the pump loses power with requests open", reboot(cast, scene)).await?;
    stage.step("a device's address changes behind its NAT", roam(cast)).await?;
    scene.pump.shutdown().await;
    Ok(())
}

fn pump_router() -> Router {
    Router::new()
        .get("/level", |_: Request| async { Reply::text("80 %") })
        .post("/stroke", |_: Request| async { Reply::changed() })
        .data(|request: Request| async move { super::answer("pump", &request) })
}

async fn start_pump(cast: &Cast, address: SocketAddr) -> Result<Net, String> {
    let pump = cast.keys.net(6, &cast.keys.lamp).bind(address).open().await.map_err(expected("a net"))?;
    tokio::spawn(pump.serve(pump_router()));
    Ok(pump)
}

async fn set(cast: &Cast) -> Told<Scene> {
    let pump = start_pump(cast, any_port()).await?;
    let wire = Wire::to(pump.local_addr()).await?;
    let peer = Peer::addr(id(6), wire.address()).key(cast.keys.lamp.clone());
    let session = cast.app.connect(peer).await.map_err(expected("a session"))?;
    same("the answer", "pump heard hello", &say(&session, "hello").await?)?;
    let words = format!(
        "the app sends to port {}, the wire to the pump's {}",
        wire.address().port(),
        pump.local_addr().port()
    );
    Ok((Scene { pump, wire, session }, words))
}

async fn rekey(cast: &Cast, scene: &Scene) -> Told<()> {
    let session = &scene.session;
    let talk = async {
        for number in 0..MESSAGES {
            let heard = say(session, &number.to_string()).await?;
            same("the answer", &format!("pump heard {number}"), &heard)?;
        }
        Ok::<_, String>(())
    };
    let change = async {
        session.rekey().await.map_err(expected("new keys"))?;
        session.rekey_with(*b"a secret that both ends are told").await.map_err(expected("new keys"))?;
        let back = scene.pump.session(cast.app.id()).ok_or("expected the app's session, came none")?;
        back.rekey().await.map_err(expected("new keys"))
    };
    tokio::try_join!(talk, change)?;
    let rekeys = scene.pump.stats().rekeys;
    if rekeys < 3 {
        return Err(format!("expected 3 changes of keys, came {rekeys}"));
    }
    let words =
        format!("{MESSAGES} messages were answered in order meanwhile; one change mixed a given secret in");
    Ok(((), words))
}

async fn refresh_token(scene: &Scene) -> Told<()> {
    let before = scene.wire.last_token();
    scene.session.refresh_token().await.map_err(expected("another token"))?;
    same("the answer", "pump heard who am I?", &say(&scene.session, "who am I?").await?)?;
    let after = scene.wire.last_token();
    let (Some(before), Some(after)) = (before, after) else {
        return Err("expected packets on the wire, came none".into());
    };
    if before == after {
        return Err("expected another label on the packets, came the same".into());
    }
    let hex = crate::output::hex;
    Ok(((), format!("packets to the app were labelled {}, now {}", hex(&before), hex(&after))))
}

async fn flood(scene: &Scene) -> Told<()> {
    let before = dropped(&scene.pump);
    let (talked, thrown) = tokio::join!(talk_until(scene), throw_garbage(scene.pump.local_addr()));
    let answered = talked?;
    thrown?;
    // What was thrown last may still be in the pump's socket.
    let start = Instant::now();
    while dropped(&scene.pump) - before < COUNTED && start.elapsed() < Duration::from_secs(2) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let counted = dropped(&scene.pump) - before;
    if counted < COUNTED {
        return Err(format!("expected {COUNTED} of {GARBAGE} datagrams counted, came {counted}"));
    }
    let stats = scene.pump.stats();
    let reasons = stats.drops().filter(|(_, count)| *count > 0);
    let reasons: Vec<_> = reasons.map(|(why, count)| format!("{} {count}", why.words())).collect();
    Ok(((), format!("{answered} messages answered; dropped: {}", reasons.join(", "))))
}

fn dropped(net: &Net) -> u64 {
    net.stats().drops().map(|(_, count)| count).sum()
}

async fn talk_until(scene: &Scene) -> Result<usize, String> {
    for number in 0..MESSAGES {
        let heard = say(&scene.session, &number.to_string()).await?;
        same("the answer", &format!("pump heard {number}"), &heard)?;
    }
    Ok(MESSAGES)
}

/// Noise of every kind: the original's packets, unknown tokens, false first packets for the pump, nothing at all.
async fn throw_garbage(to: SocketAddr) -> Result<(), String> {
    let failed = |error| format!("expected a socket, came: {error}");
    let socket = UdpSocket::bind(any_port()).await.map_err(failed)?;
    let mut init = [0; 104];
    (init[0], init[2]) = (0x91, 1);
    init[4..20].copy_from_slice(&id(6).0);
    init[20..36].copy_from_slice(&id(0x66).0);
    init[42] = 1;
    for number in 0..GARBAGE {
        let noise = (number as u32).wrapping_mul(0x9E37_79B9).to_be_bytes();
        init[36..40].copy_from_slice(&noise);
        let mut short = [0x41; 40];
        short[1..5].copy_from_slice(&noise);
        let datagram: &[u8] = match number % 4 {
            0 => &[0x51; 30],
            1 => &short,
            2 => &init,
            _ => &noise[..1],
        };
        // A full socket drops it, which is what the network would do.
        let _ = socket.send_to(datagram, to).await;
        if number % BURST == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    Ok(())
}

/// It is cut off, so that nobody hears it go; three requests are sent into the void; a new process takes its place.
async fn reboot(cast: &Cast, scene: Scene) -> Told<Scene> {
    let Scene { pump, wire, session } = scene;
    let address = pump.local_addr();
    wire.cut(true);
    let get = tokio::spawn(session.get("/level").into_future());
    let once = tokio::spawn(session.post("/stroke").into_future());
    let repeatable = tokio::spawn(session.post("/stroke").repeatable().into_future());
    tokio::time::sleep(Duration::from_millis(50)).await;
    pump.shutdown().await;
    let pump = start_pump(cast, address).await?;
    wire.cut(false);

    let start = Instant::now();
    let level = answered(get.await)?.and_then(Response::ok).map_err(expected("2.05 Content"))?;
    same("/level", "80 %", &text(&level))?;
    answered(repeatable.await)?.and_then(Response::ok).map_err(expected("2.04 Changed"))?;
    match answered(once.await)? {
        Err(error) if error.to_string().contains("may have run") => {}
        other => return Err(format!("expected \"may have run\", came {other:?}")),
    }
    same("the answer", "pump heard again", &say(&session, "again").await?)?;
    let recoveries = session.watch().status().recoveries;
    if recoveries != 1 {
        return Err(format!("expected one session opened anew, came {recoveries}"));
    }
    let words = format!(
        "the same session went on after {} ms: the GET and the repeatable POST ran, the other POST \"may have run\"",
        start.elapsed().as_millis()
    );
    Ok((Scene { pump, wire, session }, words))
}

fn answered(
    request: Result<Result<Response, m2m::Error>, tokio::task::JoinError>,
) -> Result<Result<Response, m2m::Error>, String> {
    request.map_err(|error| format!("expected an answer, came a crash: {error}"))
}

/// A device behind a NAT that forgets: the host sees it come from another port, asks whether it is there, and follows.
async fn roam(cast: &Cast) -> Told<()> {
    let wire = Wire::to(cast.host.local_addr()).await?;
    let mut at_host = cast.at_host.clone();
    (at_host.host, at_host.port) = (wire.address().ip().to_string(), wire.address().port());
    let builder = cast.keys.net(7, &cast.keys.lamp).host(at_host, cast.keys.host.clone());
    let (device, _) = start_device(builder, pump_router()).await?;
    let peer = || Peer::id(id(7)).key(cast.keys.lamp.clone());
    let session = cast.app.connect(peer()).await.map_err(expected("a session"))?;
    same("the answer", "pump heard hello", &say(&session, "hello").await?)?;

    let moves = cast.host.stats().moves;
    let (before, after) = wire.change_port().await?;
    let start = Instant::now();
    // Its next word shows where it is now; until then nobody could know.
    let app = Peer::id(cast.app.id()).key(cast.keys.app.clone());
    let back = device.connect(app).await.map_err(expected("a session"))?;
    same("the answer", "app heard I moved", &say(&back, "I moved").await?)?;
    same("the answer", "pump heard still there?", &say(&session, "still there?").await?)?;
    if cast.host.stats().moves == moves {
        return Err("expected the host to follow the device, came no move".into());
    }
    let ms = start.elapsed().as_millis();
    device.shutdown().await;
    Ok((
        (),
        format!("port {before} became {after}; the host followed within {ms} ms, and both sessions go on"),
    ))
}

//! Opens nets as the settings say: those of commands that end by themselves, and those that run on.
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use m2m::keyfile::KeyFile;
use m2m::names::{Endpoint, PeerName};
use m2m::state::{StateDir, StateError};
use m2m::{ErrorKind, HostState, Id, Key, Net, NetBuilder, Peer, Session};

use crate::config::Settings;
use crate::exit::Failure;
use crate::output::{Output, short};

/// How often a state folder is tried that another command holds.
const FOLDER_RETRY: Duration = Duration::from_millis(50);
/// After how long somebody who waits for it is told so.
const FOLDER_PATIENCE: Duration = Duration::from_secs(1);
/// The first host may leave a command's net without an answer for so long: a person waits, and there is another host.
const HOST_PATIENCE: Duration = Duration::from_secs(3);
/// A handshake needs this at least to tell a wrong key from a peer that is away (three INITs, and the host's answer).
const VERDICT: Duration = Duration::from_secs(4);
/// How long a net may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(3);

/// A session with a peer, and the net that it belongs to.
pub(crate) struct Link {
    pub(crate) net: Net,
    pub(crate) session: Session,
}

/// Opens a net and begins a session with the peer; requests wait in it until it is up.
pub(crate) async fn dial(settings: &Settings, output: Output, name: &PeerName) -> Result<Link, Failure> {
    let must_resolve = must_resolve(&settings.peer(name)?);
    let (net, peer) = net_for(settings, output, name).await?;
    let session =
        if must_resolve { within(settings, "the peer", net.connect(peer)).await? } else { net.dial(peer)? };
    Ok(Link { net, session })
}

/// Opens the net that a command needs to talk to a peer, and says how that one is reached.
pub(crate) async fn net_for(
    settings: &Settings,
    output: Output,
    name: &PeerName,
) -> Result<(Net, Peer), Failure> {
    let peer = peer(settings, name)?;
    let by_id = matches!(settings.peer(name)?, PeerName::Id(_));
    Ok((open_one_shot(settings, output, by_id).await?, peer))
}

fn must_resolve(name: &PeerName) -> bool {
    matches!(name, PeerName::At(endpoint) if endpoint.host.parse::<IpAddr>().is_err())
}

fn peer(settings: &Settings, name: &PeerName) -> Result<Peer, Failure> {
    let key = settings.peer_key()?;
    let peer = match settings.peer(name)? {
        PeerName::At(endpoint) => Peer::endpoint(endpoint).key(key),
        PeerName::Id(id) => Peer::id(id).key(key),
        PeerName::Alias(alias) => {
            return Err(Failure::Configuration(format!("{alias} is an alias of an alias")));
        }
    };
    Ok(match settings.pin(name) {
        Some(public) => peer.pin(public),
        None => peer,
    })
}

/// Opens the net of a command that ends by itself: with `--id` that id and its device key, else a random id that is
/// registered without a claim. A host is needed only for a peer that is to be found by its id.
pub(crate) async fn open_one_shot(settings: &Settings, output: Output, by_id: bool) -> Result<Net, Failure> {
    let key = match (&settings.key, settings.id) {
        (Some(source), _) => source.read()?,
        // A random key would have an empty state folder, whose device key claims the id against all later ones.
        (None, Some(id)) if by_id && settings.state_dir.is_none() => {
            let id = short(id);
            return Err(Failure::Configuration(format!(
                "a host registers id {id} for one device key, which is found by this net's id and key: give \
                 --key-file FILE with the key of {id} (or --state-dir DIR); or leave --id {id} out for a random id"
            )));
        }
        (None, _) => KeyFile::generate()?,
    };
    let folder = match settings.id {
        // Without a host nothing is registered, so that no device key is needed.
        Some(id) if by_id => Some(state_folder(settings, id, &key)?),
        _ => settings.state_dir.clone(),
    };
    let id = settings.id.map_or_else(random_id, Ok)?;
    let key = Key::from(key);
    let deadline = Instant::now() + settings.timeout;
    loop {
        let timeout = settings.timeout;
        let mut builder = Net::builder(id, key.clone()).accept(false).tune(move |config| {
            let timers = &mut config.timers;
            timers.host_patience = HOST_PATIENCE;
            // A handshake that fails says why; a command whose time is over does not. So it ends first, where there is
            // time enough to find out.
            if timeout >= VERDICT {
                timers.handshake_timeout = timers.handshake_timeout.min(timeout.mul_f32(0.9));
            }
        });
        if by_id {
            builder = with_hosts(builder, settings)?.ephemeral(settings.id.is_none());
        }
        let Some(folder) = &folder else { return Ok(builder.open().await?) };
        wait_for_folder(folder, deadline, output).await?;
        match builder.state_dir(folder.clone()).open().await {
            // Another command was quicker.
            Err(error) if is_in_use(&error) && Instant::now() < deadline => continue,
            opened => return Ok(opened?),
        }
    }
}

/// A net that runs on: it has an id, a key and a state folder of its own.
///
/// The folder is tried first, for its failures are the configuration's.
pub(crate) async fn builder(settings: &Settings) -> Result<NetBuilder, Failure> {
    let id = settings.need_id()?;
    let key = settings.need_key()?;
    let folder = state_folder(settings, id, &key)?;
    try_folder(&folder).await?;
    Ok(Net::builder(id, Key::from(key)).state_dir(folder))
}

/// Names the hosts that peers are found through, the preferred one first.
///
/// # Errors
/// There is none, or no key for one.
pub(crate) fn with_hosts(builder: NetBuilder, settings: &Settings) -> Result<NetBuilder, Failure> {
    if settings.hosts.is_empty() {
        return Err(Failure::Configuration(
            "an id alone is found through a host: give --host ID@NAME:PORT, or write the peer as ID@ADDRESS:PORT".into(),
        ));
    }
    let hosts = settings.hosts_and_keys()?;
    Ok(hosts.into_iter().fold(builder, |builder, (host, key)| builder.host(host, key)))
}

/// A host as its user named it, its id short.
pub(crate) fn host_words(host: &Endpoint) -> String {
    let at = Endpoint { id: None, ..host.clone() };
    host.id.map_or_else(|| at.to_string(), |id| format!("{}@{at}", short(id)))
}

/// Tells why the host refused to register this net, where that is what made a request fail.
pub(crate) fn with_refusal(net: &Net, failure: Failure) -> Failure {
    let Failure::Net { error, during } = failure else { return failure };
    match net.host() {
        HostState::Refused { why } if error.kind() == ErrorKind::Refused && error.code().is_none() => {
            let during = during.map(|during| format!("{during}: ")).unwrap_or_default();
            Failure::Net { error, during: Some(format!("{during}not registered ({why})")) }
        }
        _ => Failure::Net { error, during },
    }
}

/// Where this net's state is: where `--state-dir` says, or by id and key below the XDG state folder.
pub(crate) fn state_folder(settings: &Settings, id: Id, key: &KeyFile) -> Result<PathBuf, Failure> {
    match &settings.state_dir {
        Some(folder) => Ok(folder.clone()),
        None => Ok(StateDir::default_path(id, key.bytes())?),
    }
}

/// [`state_folder`] of the net that the settings name; with `--state-dir` they need name nothing else.
pub(crate) fn own_folder(settings: &Settings) -> Result<PathBuf, Failure> {
    match &settings.state_dir {
        Some(folder) => Ok(folder.clone()),
        None => state_folder(settings, settings.need_id()?, &settings.need_key()?),
    }
}

/// Waits for a future at most as long as `--timeout` says.
pub(crate) async fn within<T>(
    settings: &Settings,
    what: &str,
    work: impl IntoFuture<Output = Result<T, m2m::Error>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(settings.timeout, work.into_future()).await {
        Ok(done) => Ok(done?),
        Err(_) => {
            let seconds = settings.timeout.as_secs_f64();
            let advice =
                "Is it running and reachable, and is its key the right one? --timeout SECONDS waits longer";
            Err(Failure::TimedOut(format!("{what}: no answer within {seconds} s. {advice}")))
        }
    }
}

/// Closes a net: its peers are told, so that they need not find out.
pub(crate) async fn close(net: &Net) {
    // Whoever isn't told within that time will notice by himself.
    let _ = tokio::time::timeout(GOODBYE, net.shutdown()).await;
}

/// Waits until no other command holds the folder: two nets of one id would take each other's place at the host.
async fn wait_for_folder(folder: &Path, deadline: Instant, output: Output) -> Result<(), Failure> {
    let mut patience = Some(Instant::now() + FOLDER_PATIENCE);
    loop {
        let error = match try_folder(folder).await {
            Err(error @ StateError::InUse { .. }) if Instant::now() < deadline => error,
            tried => return Ok(tried?),
        };
        if patience.is_some_and(|patience| Instant::now() >= patience) {
            output.say(&format!("m2m: waiting: {error}"));
            patience = None;
        }
        tokio::time::sleep(FOLDER_RETRY).await;
    }
}

async fn try_folder(folder: &Path) -> Result<(), StateError> {
    let folder = folder.to_owned();
    let tried = tokio::task::spawn_blocking(move || StateDir::open(&folder).map(drop)).await;
    // The closure doesn't panic, and nobody aborts it.
    tried.unwrap_or(Ok(()))
}

fn is_in_use(error: &m2m::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref());
    matches!(source, Some(StateError::InUse { .. }))
}

/// An id that nobody else has, for a net that nobody needs to find.
fn random_id() -> Result<Id, Failure> {
    loop {
        let random = KeyFile::generate()?;
        let mut id = Id::ANY;
        id.0.iter_mut().zip(random.bytes()).for_each(|(byte, random)| *byte = *random);
        if !id.is_reserved() {
            return Ok(id);
        }
    }
}

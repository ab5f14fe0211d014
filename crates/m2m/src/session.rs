//! A session as its user holds it.
use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use m2m_proto::{
    coap::code::Code,
    error::{CloseReason, ConnectError, ErrorKind},
    event::SessionId,
    id::Id,
    net,
};
use tokio::sync::{oneshot, watch};

use crate::{
    DataBuilder, Error, RequestBuilder,
    names::short,
    net::shared::{Shared, Waiter},
};

/// How a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionState {
    /// The handshake is under way; requests wait.
    Connecting,
    /// Requests leave at once.
    Up,
    /// It never came up.
    Failed(ConnectError),
    /// It ended.
    Closed(CloseReason),
}

/// Where a session's packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Path {
    /// Straight to this address.
    Direct(SocketAddr),
    /// Through this host.
    Relay(Id),
}

impl From<net::Path> for Path {
    fn from(path: net::Path) -> Path {
        match path {
            net::Path::Direct(address) => Path::Direct(address),
            net::Path::Through(host) => Path::Relay(host),
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Direct(address) => write!(f, "direct, {address}"),
            Path::Relay(host) => write!(f, "through host {}", short(*host)),
        }
    }
}

/// What is told of a session as it changes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    pub(crate) peer: Id,
    pub(crate) path: Path,
    pub(crate) state: SessionState,
    pub(crate) recoveries: u32,
    pub(crate) resumed: bool,
}

impl Standing {
    pub(crate) fn connecting(peer: Id, path: Path) -> Standing {
        Standing { peer, path, state: SessionState::Connecting, recoveries: 0, resumed: true }
    }
}

/// How a session stands, as it was when this was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionStatus {
    /// With whom.
    pub peer: Id,
    /// Where its packets go, or went last.
    pub path: Path,
    /// Connecting, up, failed or closed.
    pub state: SessionState,
    /// How often it was opened anew under this handle: the peer had restarted, or was out of reach.
    pub recoveries: u32,
    /// After the last of those the peer still knew what was said before.
    pub resumed: bool,
}

/// Tells how a session stands whenever that changes ([`Session::watch`]). It doesn't keep the session open.
#[derive(Clone)]
pub struct SessionWatch(watch::Receiver<Standing>);

impl SessionWatch {
    /// How it stands now.
    pub fn status(&self) -> SessionStatus {
        let Standing { peer, path, state, recoveries, resumed } = *self.0.borrow();
        SessionStatus { peer, path, state, recoveries, resumed }
    }

    /// Waits for the next change and says how it stands then; nothing once it has ended and that was told.
    pub async fn changed(&mut self) -> Option<SessionStatus> {
        self.0.changed().await.ok()?;
        Some(self.status())
    }

    /// Waits until it stands as wanted; nothing if it ended before.
    pub async fn wait_for(
        &mut self,
        mut wanted: impl FnMut(&SessionStatus) -> bool,
    ) -> Option<SessionStatus> {
        loop {
            let status = self.status();
            if wanted(&status) {
                return Some(status);
            }
            self.changed().await?;
        }
    }
}

/// A session with one peer. Clones are the same session; when the last is dropped, a session that this net opened
/// closes.
#[derive(Clone)]
pub struct Session(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    id: SessionId,
    standing: watch::Receiver<Standing>,
    /// As the user named the peer.
    name: Arc<str>,
    /// This net opened it, so it ends with its last handle.
    is_ours: bool,
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.is_ours {
            close(&self.shared, self.id);
        }
    }
}

impl Session {
    pub(crate) fn dialled(
        shared: Arc<Shared>,
        id: SessionId,
        standing: watch::Receiver<Standing>,
        name: String,
    ) -> Session {
        let name = name.into();
        Session(Arc::new(Handle { shared, id, standing, name, is_ours: true }))
    }

    /// A handle of a session that a peer opened.
    pub(crate) fn look_at(shared: &Arc<Shared>, id: SessionId) -> Option<Session> {
        let mut state = shared.look();
        let info = state.machine.info(id)?;
        let standing = Standing {
            peer: info.peer,
            path: info.path.into(),
            state: if info.up { SessionState::Up } else { SessionState::Connecting },
            recoveries: 0,
            resumed: true,
        };
        let entry = state.sessions.entry(id).or_insert_with(|| watch::Sender::new(standing));
        let standing = entry.subscribe();
        drop(state);
        let name = short(info.peer).into();
        Some(Session(Arc::new(Handle { shared: shared.clone(), id, standing, name, is_ours: false })))
    }

    /// With whom. Before a session to "whichever net is at that address" is up, this is the zero id.
    pub fn peer(&self) -> Id {
        self.0.standing.borrow().peer
    }

    /// How it stands now.
    pub fn state(&self) -> SessionState {
        self.0.standing.borrow().state
    }

    /// Where its packets go, or went last.
    pub fn path(&self) -> Path {
        let info = self.0.shared.look().machine.info(self.0.id);
        info.map_or(self.0.standing.borrow().path, |info| info.path.into())
    }

    /// The smoothed round trip, once measured.
    pub fn rtt(&self) -> Option<Duration> {
        self.0.shared.look().machine.info(self.0.id)?.rtt
    }

    /// Waits until it is up.
    ///
    /// # Errors
    /// `Unreachable`, `UnknownPeer`, `AuthenticationFailed`, `Refused`; `SessionLost` or `Closed` if it ended.
    pub async fn up(&self) -> Result<(), Error> {
        let mut standing = self.0.standing.clone();
        let state = match standing.wait_for(|standing| standing.state != SessionState::Connecting).await {
            Ok(standing) => standing.state,
            // The sender went with the net.
            Err(_) => return Err(Error::net_closed()),
        };
        match state {
            SessionState::Up => Ok(()),
            _ => Err(self.ended()),
        }
    }

    /// Sends opaque bytes; the answer is what the peer's data handler returned.
    pub fn send(&self, data: impl Into<Bytes>) -> DataBuilder {
        DataBuilder::new(self.request(Code::POST, "").payload(data))
    }

    /// A GET request.
    pub fn get(&self, path: impl AsRef<str>) -> RequestBuilder {
        self.request(Code::GET, path)
    }

    /// A POST request.
    pub fn post(&self, path: impl AsRef<str>) -> RequestBuilder {
        self.request(Code::POST, path)
    }

    /// A PUT request.
    pub fn put(&self, path: impl AsRef<str>) -> RequestBuilder {
        self.request(Code::PUT, path)
    }

    /// A DELETE request.
    pub fn delete(&self, path: impl AsRef<str>) -> RequestBuilder {
        self.request(Code::DELETE, path)
    }

    /// A FETCH request.
    pub fn fetch(&self, path: impl AsRef<str>) -> RequestBuilder {
        self.request(Code::FETCH, path)
    }

    /// A PATCH request.
    pub fn patch(&self, path: impl AsRef<str>) -> RequestBuilder {
        self.request(Code::PATCH, path)
    }

    /// A request with any method. `path` may hold a query: `/temp?unit=C`.
    pub fn request(&self, method: Code, path: impl AsRef<str>) -> RequestBuilder {
        RequestBuilder::new(self.clone(), method, path.as_ref())
    }

    /// Measures a round trip, without the peer's handlers.
    ///
    /// # Errors
    /// `Timeout`: no answer came; those of [`Session::up`].
    pub async fn ping(&self) -> Result<Duration, Error> {
        self.up().await?;
        let (waiter, pong) = oneshot::channel();
        let asked = self.shared().with(|state, now| {
            let request = state.wait(Waiter::Pong(waiter));
            let asked = state.machine.ping(now, self.id(), request);
            asked.inspect_err(|_| {
                state.forget(request);
            })
        });
        asked.map_err(|why| self.command_error("ping", why))?;
        match pong.await {
            Ok(Some(rtt)) => Ok(rtt),
            Ok(None) if self.state() == SessionState::Up => {
                Err(Error::new(ErrorKind::Timeout, format!("ping to {}: no answer", self.0.name)))
            }
            Ok(None) => Err(self.ended()),
            Err(_) => Err(Error::net_closed()),
        }
    }

    /// Changes its keys now, as it does by itself from time to time: what was recorded before can't be read with keys
    /// that are stolen later. Requests go on meanwhile.
    ///
    /// # Errors
    /// `Timeout`: the peer does not answer; it happens once it does. Those of [`Session::up`].
    pub async fn rekey(&self) -> Result<(), Error> {
        self.control("changing the keys", |machine, now, id, request| machine.rekey(now, id, request, None))
            .await
    }

    /// [`Session::rekey`], with a secret of 16 to 64 bytes mixed in, which the peer is told inside the session (the
    /// mission's `secret_set`). It can only add: a weak or known one makes nothing worse.
    ///
    /// # Errors
    /// `Configuration`: too short or too long. Those of [`Session::rekey`].
    pub async fn rekey_with(&self, secret: impl AsRef<[u8]>) -> Result<(), Error> {
        let secret = secret.as_ref();
        self.control("changing the keys", |machine, now, id, request| {
            machine.rekey(now, id, request, Some(secret))
        })
        .await
    }

    /// Gives the session another token: who watches the path can't tell by it that it is the same session.
    ///
    /// # Errors
    /// `Timeout`: the peer does not answer; it happens once it does. Those of [`Session::up`].
    pub async fn refresh_token(&self) -> Result<(), Error> {
        self.control("changing the token", |machine, now, id, request| {
            machine.refresh_token(now, id, request)
        })
        .await
    }

    /// How it stands, from now on: whether it is up, where its packets go, how often it was opened anew because its
    /// peer had restarted or was out of reach.
    pub fn watch(&self) -> SessionWatch {
        SessionWatch(self.0.standing.clone())
    }

    /// Waits until it ends, and says why. One that never comes up ends too: closed here, or nobody answered.
    pub async fn closed(&self) -> CloseReason {
        let mut standing = self.0.standing.clone();
        let over =
            |standing: &Standing| !matches!(standing.state, SessionState::Connecting | SessionState::Up);
        match standing.wait_for(over).await.map(|standing| standing.state) {
            Ok(SessionState::Closed(why)) => why,
            Ok(SessionState::Failed(why)) if why != ConnectError::Closed => CloseReason::Lost,
            _ => CloseReason::Local,
        }
    }

    /// Closes it: open requests fail, the peer is told. What was ready to leave leaves first.
    pub async fn close(&self) {
        close(self.shared(), self.id());
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    pub(crate) fn id(&self) -> SessionId {
        self.0.id
    }

    /// The peer as its user named it.
    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }

    /// The same, for what outlives the session.
    pub(crate) fn shared_name(&self) -> Arc<str> {
        self.0.name.clone()
    }

    /// Why nothing can be done in this session any more.
    pub(crate) fn ended(&self) -> Error {
        let name = &self.0.name;
        match self.state() {
            // The handshake names both ids: a net of another id takes it for somebody else's.
            SessionState::Failed(why @ ConnectError::Unreachable) if name.contains('@') => {
                let text = format!("no session with {name}: {why}, or another id there");
                Error::caused(why.kind(), text, why)
            }
            SessionState::Failed(why) => {
                Error::caused(why.kind(), format!("no session with {name}: {why}"), why)
            }
            SessionState::Closed(why) => {
                Error::new(why.kind(), format!("the session with {name} ended ({why}): connect again"))
            }
            SessionState::Connecting | SessionState::Up => Error::net_closed(),
        }
    }

    pub(crate) fn command_error(&self, tried: &str, why: m2m_proto::error::CommandError) -> Error {
        use m2m_proto::error::CommandError;
        match why {
            CommandError::Stale | CommandError::Closed => self.ended(),
            why => Error::command(format_args!("{tried} to {}", self.0.name), why),
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({} {:?})", self.0.name, self.state())
    }
}

fn close(shared: &Arc<Shared>, id: SessionId) {
    shared.with(|state, now| state.machine.close(now, id));
}

//! What the driver and all handles of one net share: the machine behind a mutex, and those who wait for its events.
//!
//! Whoever has something for the machine locks the state, gives it over, *pumps* what comes out, and unlocks; the
//! mutex is never held across an await, and nothing that belongs to the user is dropped or called under it.
use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use m2m_proto::{
    error::{ControlError, RequestError},
    event::{Event, IncomingId, Output, RequestId, SessionId},
    id::Id,
    net,
    time::{Duration, Time},
    wire::frame::FoundStatus,
};
use tokio::{
    runtime::Handle,
    sync::{Notify, broadcast, oneshot, watch},
    task::JoinSet,
};
use tracing::{debug, info, trace, warn};

use super::{
    clock::Clock,
    hosts::HostName,
    news::{self, HostState, NetEvent},
    socket::{self, Socket},
    store::{self, Store},
};
use crate::{
    router::{Answer, Router},
    session::{Path, SessionState, Standing},
};

/// Datagrams that wait until the socket takes more; beyond it the newest are dropped, as a full network would.
const MAX_BACKLOG: usize = 1024;
/// Requests that wait for a router.
const MAX_EARLY: usize = 64;
/// For so long a request waits for a router; then it is answered 5.01.
const EARLY_WAIT: Duration = Duration::from_secs(5);

pub(crate) struct Shared {
    pub(crate) id: Id,
    state: Mutex<State>,
    clock: Clock,
    /// The driver has something to do earlier than it thinks.
    pub(super) wake: Notify,
    /// The disk finished something.
    pub(super) idle: Notify,
    pub(super) host: watch::Sender<HostState>,
    pub(super) news: broadcast::Sender<NetEvent>,
    /// True once the driver is gone and the socket closed.
    pub(super) ended: watch::Sender<bool>,
}

pub(crate) struct State {
    pub(crate) machine: net::Net,
    pub(super) socket: Option<Arc<Socket>>,
    pub(super) store: Store,
    pub(super) runtime: Handle,
    pub(super) hosts: Vec<HostName>,
    pub(super) timeout: Time,
    /// What the driver's timer is set to.
    pub(super) armed: Time,
    pub(super) backlog: VecDeque<(SocketAddr, Vec<u8>)>,
    pub(super) send_errors: u64,
    /// No new requests, neither ours nor others'.
    pub(super) draining: bool,
    pub(super) closed: bool,
    next_request: u64,
    requests: HashMap<RequestId, Waiter>,
    /// Sessions that a handle looks at.
    pub(crate) sessions: HashMap<SessionId, watch::Sender<Standing>>,
    /// The sessions that each peer opened to us, the newest last.
    pub(crate) accepted: HashMap<Id, Vec<SessionId>>,
    pub(super) router: Option<Arc<Router>>,
    early: VecDeque<Early>,
    pub(super) handlers: JoinSet<()>,
    pub(super) background: JoinSet<()>,
}

/// A request that came before there was a router.
struct Early {
    incoming: IncomingId,
    peer: Id,
    message: Vec<u8>,
}

/// Who waits for an answer, and of which kind.
pub(crate) enum Waiter {
    Response(oneshot::Sender<Result<Vec<u8>, RequestError>>),
    Pong(oneshot::Sender<Option<Duration>>),
    Found(oneshot::Sender<Option<FoundStatus>>),
    Control(oneshot::Sender<Result<(), ControlError>>),
}

impl Shared {
    pub(super) fn new(machine: net::Net, socket: Arc<Socket>, store: Store) -> Shared {
        Shared {
            id: machine.id(),
            state: Mutex::new(State {
                machine,
                socket: Some(socket),
                store,
                runtime: Handle::current(),
                hosts: Vec::new(),
                timeout: Time::NEVER,
                armed: Time::ZERO,
                backlog: VecDeque::new(),
                send_errors: 0,
                draining: false,
                closed: false,
                next_request: 0,
                requests: HashMap::new(),
                sessions: HashMap::new(),
                accepted: HashMap::new(),
                router: None,
                early: VecDeque::new(),
                handlers: JoinSet::new(),
                background: JoinSet::new(),
            }),
            clock: Clock::new(),
            wake: Notify::new(),
            idle: Notify::new(),
            host: watch::Sender::new(HostState::None),
            news: broadcast::Sender::new(256),
            ended: watch::Sender::new(false),
        }
    }

    pub(crate) fn now(&self) -> Time {
        self.clock.now()
    }

    /// When the machine's clock shows `time`.
    pub(super) fn instant(&self, time: Time) -> Option<Instant> {
        self.clock.instant(time)
    }

    /// The state as it is; the machine must not be changed through it, for nothing pumps afterwards.
    pub(crate) fn look(&self) -> MutexGuard<'_, State> {
        // A panic under the lock is a bug; the machine is whole between its commands all the same.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the machine something to do, carries out what comes of it, and tells the driver if that concerns it.
    pub(crate) fn with<R>(self: &Arc<Shared>, act: impl FnOnce(&mut State, Time) -> R) -> R {
        let (result, wake) = self.carry_out(act);
        if wake {
            self.wake.notify_one();
        }
        result
    }

    /// [`Shared::with`] for the driver, which looks at the state afterwards anyway. The second value says that another
    /// would have had to wake it.
    pub(super) fn carry_out<R>(self: &Arc<Shared>, act: impl FnOnce(&mut State, Time) -> R) -> (R, bool) {
        let mut state = self.look();
        // Read under the lock: whoever waits for it must not take the machine back in time.
        let now = self.now();
        let result = act(&mut state, now);
        state.pump(self, now);
        let wake = state.timeout < state.armed || !state.backlog.is_empty() || state.closed;
        (result, wake)
    }

    pub(super) fn tell(&self, news: NetEvent) {
        // Nobody listens: then nobody misses it.
        let _ = self.news.send(news);
    }
}

impl State {
    /// Empties the machine: datagrams leave, events go to whom they concern.
    fn pump(&mut self, shared: &Arc<Shared>, now: Time) {
        loop {
            match self.machine.poll_output(now) {
                Output::Datagram { to, bytes } => self.transmit(to, bytes),
                Output::Event(event) => self.on_event(shared, now, event),
                Output::Claim(claim) => self.store.check(claim),
                Output::SaveEpoch(epoch) => self.store.keep_epoch(epoch),
                Output::StoreKey(key) => store::keep_key(self, now, key),
                // There is one machine to a net here: nothing belongs to another shard.
                Output::Handover { bytes, .. } => self.machine.recycle(bytes),
                Output::Timeout(at) => {
                    self.timeout = at;
                    break;
                }
            }
        }
        store::start(shared, self);
    }

    fn transmit(&mut self, to: SocketAddr, bytes: Vec<u8>) {
        // What waits goes first: order is not promised, but there is no reason to break it.
        let left = if self.backlog.is_empty() { self.try_send(to, bytes) } else { Some(bytes) };
        let Some(bytes) = left else { return };
        if self.backlog.len() < MAX_BACKLOG {
            self.backlog.push_back((to, bytes));
        } else {
            self.machine.recycle(bytes);
        }
    }

    /// Sends, or gives the datagram back if the socket takes no more now.
    fn try_send(&mut self, to: SocketAddr, bytes: Vec<u8>) -> Option<Vec<u8>> {
        let sent = match &self.socket {
            Some(socket) => socket.try_send(to, &bytes),
            None => Ok(()),
        };
        match sent {
            Ok(()) => trace!(%to, len = bytes.len(), "sent"),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Some(bytes),
            Err(error) => {
                // Unreachable networks come and go; the protocol repeats what matters.
                self.send_errors += 1;
                trace!(%to, %error, "not sent");
            }
        }
        self.machine.recycle(bytes);
        None
    }

    /// Sends what waited for the socket.
    pub(super) fn drain_backlog(&mut self) {
        while let Some((to, bytes)) = self.backlog.pop_front() {
            if let Some(bytes) = self.try_send(to, bytes) {
                return self.backlog.push_front((to, bytes));
            }
        }
    }

    pub(super) fn set_unix_time(&mut self, now: Time) {
        if let Ok(unix) = SystemTime::now().duration_since(UNIX_EPOCH) {
            self.machine.set_unix_time(now, u64::try_from(unix.as_millis()).unwrap_or(u64::MAX));
        }
    }

    fn on_event(&mut self, shared: &Arc<Shared>, now: Time, event: Event) {
        match event {
            Event::Connected { session, peer } => {
                debug!(?session, ?peer, "session up");
                let path = self.machine.info(session).map(|info| Path::from(info.path));
                self.stand(session, |standing| {
                    standing.peer = peer;
                    standing.path = path.unwrap_or(standing.path);
                    standing.state = SessionState::Up;
                });
            }
            Event::ConnectFailed { session, why } => {
                debug!(?session, %why, "no session");
                self.stand(session, |standing| standing.state = SessionState::Failed(why));
                self.sessions.remove(&session);
            }
            Event::Accepted { session, peer } => {
                debug!(?session, ?peer, "session accepted");
                self.accepted.entry(peer).or_default().push(session);
                shared.tell(NetEvent::Accepted { peer });
            }
            Event::Closed { session, peer, why } => {
                debug!(?session, ?peer, %why, "session closed");
                self.stand(session, |standing| standing.state = SessionState::Closed(why));
                self.sessions.remove(&session);
                self.forget_accepted(peer, session);
                shared.tell(NetEvent::Closed { peer, why });
            }
            Event::Request { incoming, peer, message } => {
                self.on_request(shared, now, Early { incoming, peer, message });
            }
            Event::Response { request, message } => self.on_response(request, message),
            Event::RequestFailed { request, why } => {
                if let Some(Waiter::Response(waiter)) = self.requests.remove(&request) {
                    let _ = waiter.send(Err(why));
                }
            }
            Event::Pong { request, rtt } => {
                if let Some(Waiter::Pong(waiter)) = self.requests.remove(&request) {
                    let _ = waiter.send(rtt);
                }
            }
            Event::Found { request, status } => {
                if let Some(Waiter::Found(waiter)) = self.requests.remove(&request) {
                    let _ = waiter.send(status);
                }
            }
            Event::Recovered { session, peer, resumed } => {
                debug!(?session, ?peer, resumed, "session opened anew");
                let path = self.machine.info(session).map(|info| Path::from(info.path));
                self.stand(session, |standing| {
                    standing.path = path.unwrap_or(standing.path);
                    standing.recoveries = standing.recoveries.saturating_add(1);
                    standing.resumed = resumed;
                });
                shared.tell(NetEvent::Recovered { peer, resumed });
            }
            Event::Moved { session, peer, path } => {
                debug!(?session, ?peer, ?path, "session moved");
                let path = Path::from(path);
                self.stand(session, |standing| standing.path = path);
                shared.tell(NetEvent::Moved { peer, path });
            }
            Event::ControlDone { request, result } => {
                if let Some(Waiter::Control(waiter)) = self.requests.remove(&request) {
                    let _ = waiter.send(result);
                }
            }
            Event::Registered { id } => {
                info!(?id, "registered");
                shared.tell(NetEvent::Registered(id));
            }
            Event::Unregistered { id } => {
                info!(?id, "registration ended");
                shared.tell(NetEvent::Unregistered(id));
            }
            other => self.on_host_event(shared, other),
        }
    }

    fn on_host_event(&mut self, shared: &Arc<Shared>, event: Event) {
        match event {
            Event::HostConnected { host, public } => {
                self.learn_host_id(host);
                let public = public.map(socket::unmapped);
                let was = shared.host.send_replace(HostState::Connected { host, public });
                if !matches!(was, HostState::Connected { .. }) {
                    info!(?host, "registered with the host");
                    shared.tell(NetEvent::HostConnected { host, public });
                }
            }
            Event::HostRecovered { host, public } => {
                let public = public.map(socket::unmapped);
                info!(?host, "registered with the host again");
                shared.host.send_replace(HostState::Connected { host, public });
                shared.tell(NetEvent::HostConnected { host, public });
            }
            Event::HostDisconnected { host, why } => {
                self.learn_host_id(host);
                warn!(?host, %why, "no connection with the host; trying again");
                let why = why.to_string();
                shared.host.send_replace(HostState::Disconnected { why: why.clone() });
                shared.tell(NetEvent::HostDisconnected { host, why });
                self.resolve_again(host);
            }
            Event::HostRefused { host, status, since } => {
                self.learn_host_id(host);
                let why = news::refusal(status, since, self.machine.is_ephemeral());
                warn!(?host, "the host refused to register this net: {why}");
                shared.host.send_replace(HostState::Refused { why: why.clone() });
                shared.tell(NetEvent::HostRefused { host, why });
            }
            other => debug!(?other, "an event that this version has no use for"),
        }
    }

    fn stand(&self, session: SessionId, change: impl FnOnce(&mut Standing)) {
        if let Some(standing) = self.sessions.get(&session) {
            standing.send_modify(change);
        }
    }

    fn forget_accepted(&mut self, peer: Id, session: SessionId) {
        let Some(sessions) = self.accepted.get_mut(&peer) else { return };
        sessions.retain(|other| *other != session);
        if sessions.is_empty() {
            self.accepted.remove(&peer);
        }
    }

    fn on_response(&mut self, request: RequestId, message: Vec<u8>) {
        match self.requests.remove(&request) {
            Some(Waiter::Response(waiter)) => {
                let _ = waiter.send(Ok(message));
            }
            _ => self.machine.recycle(message),
        }
    }

    /// A fresh number for something that will be answered, and who waits for it.
    pub(crate) fn wait(&mut self, waiter: Waiter) -> RequestId {
        self.next_request += 1;
        let request = RequestId(self.next_request);
        self.requests.insert(request, waiter);
        request
    }

    /// Nobody waits any more; false if the answer came already.
    pub(crate) fn forget(&mut self, request: RequestId) -> bool {
        self.requests.remove(&request).is_some()
    }

    fn on_request(&mut self, shared: &Arc<Shared>, now: Time, request: Early) {
        let router = self.router.clone();
        match router {
            _ if self.draining => {
                let answer = Answer::words(m2m_proto::coap::code::Code::SERVICE_UNAVAILABLE, "going down");
                self.answer(now, request.incoming, &answer);
            }
            Some(router) => self.handle(shared, router, request),
            None if self.early.len() >= MAX_EARLY => {
                let answer =
                    Answer::words(m2m_proto::coap::code::Code::SERVICE_UNAVAILABLE, "not serving yet");
                self.answer(now, request.incoming, &answer);
            }
            None => {
                let (shared, incoming) = (shared.clone(), request.incoming);
                self.early.push_back(request);
                self.background.spawn_on(
                    async move {
                        tokio::time::sleep(EARLY_WAIT).await;
                        shared.with(|state, now| state.give_up_early(now, incoming));
                    },
                    &self.runtime,
                );
            }
        }
        while self.background.try_join_next().is_some() {}
    }

    fn give_up_early(&mut self, now: Time, incoming: IncomingId) {
        let Some(at) = self.early.iter().position(|early| early.incoming == incoming) else { return };
        self.early.remove(at);
        let answer = Answer::words(m2m_proto::coap::code::Code::NOT_IMPLEMENTED, "this net serves nothing");
        self.answer(now, incoming, &answer);
    }

    /// Takes a router into use, and gives it what waited for one.
    pub(super) fn install(&mut self, shared: &Arc<Shared>, router: &Arc<Router>) {
        self.router = Some(router.clone());
        for request in std::mem::take(&mut self.early) {
            self.handle(shared, router.clone(), request);
        }
    }

    /// Runs one request in a task of its own. The machine bounds how many one peer can have open.
    fn handle(&mut self, shared: &Arc<Shared>, router: Arc<Router>, request: Early) {
        while self.handlers.try_join_next().is_some() {}
        let shared = shared.clone();
        let Early { incoming, peer, message } = request;
        self.handlers.spawn_on(
            async move {
                let answer = router.answer(&shared, incoming.session(), peer, message).await;
                shared.with(|state, now| state.answer(now, incoming, &answer));
            },
            &self.runtime,
        );
    }

    fn answer(&mut self, now: Time, incoming: IncomingId, answer: &Answer) {
        let respond = |machine: &mut net::Net, answer: &Answer| {
            machine.respond(now, incoming, answer.code, &answer.options, &answer.payload)
        };
        let Err(why) = respond(&mut self.machine, answer) else { return };
        match why {
            m2m_proto::error::CommandError::Stale | m2m_proto::error::CommandError::Closed => {
                debug!("an answer came after its session had ended");
            }
            why => {
                warn!(%why, "an answer could not be sent");
                let _ = respond(&mut self.machine, &Answer::internal(&why.to_string()));
            }
        }
    }

    /// Those who still wait when the net is gone; dropping them tells them so.
    pub(super) fn take_requests(&mut self) -> HashMap<RequestId, Waiter> {
        std::mem::take(&mut self.requests)
    }

    /// Ends everything at once; peers are told.
    pub(super) fn close(&mut self, shared: &Arc<Shared>, now: Time) {
        if self.closed {
            return;
        }
        self.machine.shutdown(now);
        self.pump(shared, now);
        self.draining = true;
        self.closed = true;
    }
}

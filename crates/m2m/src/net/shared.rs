//! What the driver and all handles of one net share: the machine behind a mutex, and those who wait for its events.
//!
//! Whoever has something for the machine locks the state, gives it over, *pumps* what comes out, and unlocks; the
//! mutex is never held across an await, and nothing that belongs to the user is dropped or called under it.
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use m2m_proto::{
    event::{Output, RequestId, SessionId},
    id::Id,
    net,
    time::Time,
};
use tokio::{
    runtime::Handle,
    sync::{Notify, broadcast, watch},
    task::JoinSet,
};

pub(crate) use super::waiting::{Awaited, Outcome, Waiter};
use super::{
    clock::Clock,
    egress::Egress,
    handlers::Incoming,
    hosts::HostName,
    news::{HostState, NetEvent},
    shards::{Post, Siblings},
    socket::Socket,
    store::{self, Store},
    waiting::Waiting,
};
use crate::{arena::Arena, router::Router, session::Standing};

/// When so many things were said, they leave: the queues of the sessions are not for what could be on its way.
const BUNDLE: usize = 64;

pub(crate) struct Shared {
    pub(crate) id: Id,
    state: Mutex<State>,
    clock: Clock,
    /// The disk finished something.
    pub(super) idle: Notify,
    pub(super) host: watch::Sender<HostState>,
    pub(super) news: broadcast::Sender<NetEvent>,
    /// True once the driver is gone and the socket closed.
    pub(super) ended: watch::Sender<bool>,
    pub(super) siblings: Siblings,
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
    /// The driver's task, once it has slept.
    driver: Option<Waker>,
    /// It was woken, and has not looked yet.
    is_rung: bool,
    pub(super) egress: Egress,
    /// The way to the net's other shards, if it has any.
    pub(super) post: Option<Post>,
    /// No new requests, neither ours nor others'.
    pub(super) draining: bool,
    pub(super) closed: bool,
    pub(super) waiting: Waiting,
    /// Tasks to wake once the lock is released.
    pub(super) wakers: Vec<Waker>,
    /// Requests of ours that were answered since the driver looked last.
    pub(super) answered: usize,
    /// What was said since the driver looked last ([`Shared::say`]).
    said: usize,
    /// The driver will pump soon: nobody else needs to.
    is_gathering: bool,
    /// The bodies of answers.
    pub(super) bodies: Arena,
    /// Sessions that a handle looks at.
    pub(crate) sessions: HashMap<SessionId, watch::Sender<Standing>>,
    pub(super) router: Option<Arc<Router>>,
    pub(super) incoming: Incoming,
    pub(super) background: JoinSet<()>,
}

impl Shared {
    pub(super) fn new(
        machine: net::Net,
        socket: Arc<Socket>,
        store: Store,
        max_handlers: usize,
        post: Option<Post>,
    ) -> Shared {
        Shared {
            id: machine.id(),
            state: Mutex::new(State {
                machine,
                socket: Some(socket),
                store,
                runtime: Handle::current(),
                hosts: Vec::new(),
                timeout: Time::NEVER,
                armed: Time::NEVER,
                driver: None,
                is_rung: false,
                egress: Egress::default(),
                post,
                draining: false,
                closed: false,
                waiting: Waiting::default(),
                wakers: Vec::new(),
                answered: 0,
                said: 0,
                is_gathering: false,
                bodies: Arena::default(),
                sessions: HashMap::new(),
                router: None,
                incoming: Incoming::new(max_handlers),
                background: JoinSet::new(),
            }),
            clock: Clock::new(),
            idle: Notify::new(),
            host: watch::Sender::new(HostState::None),
            news: broadcast::Sender::new(256),
            ended: watch::Sender::new(false),
            siblings: Siblings::new(),
        }
    }

    /// A shard tells what happens to its net where the first one does.
    pub(super) fn beside(self, first: &Shared) -> Shared {
        Shared { news: first.news.clone(), host: first.host.clone(), ..self }
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
        let mut state = self.look();
        // Read under the lock: whoever waits for it must not take the machine back in time.
        let now = self.now();
        let result = act(&mut state, now);
        state.pump(self, now);
        let must_ring = state.concerns_driver();
        release(state, must_ring);
        result
    }

    /// Gives the machine something to say to a peer. One who is alone has it sent at once; what several say before the
    /// driver looks again leaves together, when it does.
    pub(crate) fn say<R>(self: &Arc<Shared>, act: impl FnOnce(&mut State, Time) -> R) -> R {
        let mut state = self.look();
        let now = self.now();
        let result = act(&mut state, now);
        state.said += 1;
        let is_alone = state.said == 1 && !state.is_gathering;
        let must_ring = if is_alone || state.said.is_multiple_of(BUNDLE) {
            state.pump(self, now);
            state.concerns_driver()
        } else {
            !state.is_gathering
        };
        release(state, must_ring);
        result
    }

    /// [`Shared::with`] for the driver, which looks at the state afterwards anyway.
    pub(super) fn carry_out<R>(self: &Arc<Shared>, act: impl FnOnce(&mut State, Time) -> R) -> R {
        let mut state = self.look();
        let now = self.now();
        let result = act(&mut state, now);
        state.pump(self, now);
        release(state, false);
        result
    }

    pub(super) fn tell(&self, news: NetEvent) {
        // Nobody listens: then nobody misses it.
        let _ = self.news.send(news);
    }
}

impl State {
    /// Empties the machine: datagrams leave, events go to whom they concern. While the socket takes no more, the rest
    /// stays with the machine.
    pub(super) fn pump(&mut self, shared: &Arc<Shared>, now: Time) {
        self.bodies.reuse();
        if self.egress.is_blocked() {
            self.send();
        }
        while !self.egress.is_blocked() {
            match self.machine.poll_output(now) {
                Output::Timeout(at) => {
                    self.timeout = at;
                    self.send();
                    break;
                }
                output => self.carry_out(shared, now, output),
            }
        }
        if self.egress.is_blocked() {
            // The driver pumps again when the socket is free.
            self.timeout = Time::NEVER;
        }
        if let Some(post) = &mut self.post {
            post.deliver(&mut self.machine, &mut self.wakers);
        }
        store::start(shared, self);
    }

    /// Carries out what the machine has ready, and leaves the sessions alone: they have more to say once requests are
    /// answered.
    pub(super) fn carry_out_ready(&mut self, shared: &Arc<Shared>, now: Time) {
        while !self.egress.is_blocked()
            && let Some(output) = self.machine.poll_ready()
        {
            self.carry_out(shared, now, output);
        }
    }

    fn carry_out(&mut self, shared: &Arc<Shared>, now: Time, output: Output) {
        match output {
            Output::Datagram { to, bytes } => {
                self.egress.push(to, bytes);
                if self.egress.is_full() {
                    self.send();
                }
            }
            Output::Event(event) => self.on_event(shared, now, event),
            Output::Claim(claim) => self.store.check(claim),
            Output::SaveEpoch(epoch) => self.store.keep_epoch(epoch),
            Output::StoreKey(key) => store::keep_key(self, now, key),
            Output::Handover { shard, handed } => {
                if let Some(post) = &mut self.post {
                    post.push(shard, handed);
                }
            }
            // Told again by whoever asks again.
            Output::Timeout(_) => {}
        }
    }

    fn send(&mut self) {
        let machine = &mut self.machine;
        self.egress.send(self.socket.as_deref(), |bytes| machine.recycle(bytes));
    }

    /// True if the driver has to do something earlier than it thinks.
    fn concerns_driver(&self) -> bool {
        self.timeout < self.armed || self.egress.is_blocked() || self.incoming.has_arrived() || self.closed
    }

    /// The driver looks: true if it was woken for a reason. Otherwise it is woken when there is one.
    pub(super) fn look_for_driver(&mut self, cx: &Context<'_>) -> bool {
        self.said = 0;
        if std::mem::take(&mut self.is_rung) {
            return true;
        }
        match &mut self.driver {
            Some(driver) => driver.clone_from(cx.waker()),
            None => self.driver = Some(cx.waker().clone()),
        }
        false
    }

    /// True if several were answered at once, who may all have something to say again: the driver comes back after
    /// them, and nobody needs to pump until then.
    pub(super) fn gathers(&mut self) -> bool {
        self.is_gathering = std::mem::take(&mut self.answered) > 1;
        self.is_gathering
    }

    pub(super) fn end_gathering(&mut self) {
        self.is_gathering = false;
    }

    pub(super) fn set_unix_time(&mut self, now: Time) {
        if let Ok(unix) = SystemTime::now().duration_since(UNIX_EPOCH) {
            self.machine.set_unix_time(now, u64::try_from(unix.as_millis()).unwrap_or(u64::MAX));
        }
    }

    /// A fresh number for something that will be answered, and who waits for it.
    pub(crate) fn wait(&mut self, waiter: Waiter) -> RequestId {
        self.waiting.insert(waiter)
    }

    /// What came of a request ([`Waiting::poll`]).
    pub(crate) fn poll_outcome(&mut self, request: RequestId, cx: &mut Context<'_>) -> Poll<Option<Outcome>> {
        self.waiting.poll(request, cx)
    }

    /// Nobody waits any more; true if the answer had not come yet.
    pub(crate) fn forget(&mut self, request: RequestId) -> bool {
        let waiter = self.waiting.take(request);
        !matches!(waiter, None | Some(Waiter::Response(Awaited::Done(_))))
    }

    /// Those who still wait when the net is gone; dropping them tells them so.
    pub(super) fn take_requests(&mut self) -> Waiting {
        std::mem::take(&mut self.waiting)
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

/// Releases the lock, and wakes those who have something to do now.
fn release(mut state: MutexGuard<'_, State>, must_ring: bool) {
    let driver =
        (must_ring && !std::mem::replace(&mut state.is_rung, true)).then(|| state.driver.clone()).flatten();
    // Mostly none: what a pump on a user's thread answers is rare.
    let wakers = std::mem::take(&mut state.wakers);
    drop(state);
    wakers.into_iter().chain(driver).for_each(Waker::wake);
}

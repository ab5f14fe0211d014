//! Requests of others: collected while the machine speaks, run without its lock, answered together.
//!
//! A handler is polled where its request came in. Most are done with that, and their answers leave with one another; the
//! others go on in tasks of their own, of which there are so many at most. Beyond them requests wait, and beyond those
//! they are refused with 5.03.
use std::{collections::VecDeque, sync::Arc, time::Instant};

use m2m_proto::{
    coap::{code::Code, option::OptionNumber},
    error::CommandError,
    event::IncomingId,
    id::Id,
    net,
    time::{Duration, Time},
};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::shared::{Shared, State};
use crate::{
    arena::Arena,
    router::{Answer, Router, Running, Started},
};

/// Handlers that may be under way, if the user says nothing else; and requests that wait for one of them to end.
pub(super) const MAX_RUNNING: usize = 1024;
/// Requests that wait for a router.
const MAX_EARLY: usize = 64;
/// For so long a request waits for a router; then it is answered 5.01.
const EARLY_WAIT: Duration = Duration::from_secs(5);
/// A handler that takes longer than this before it first waits for something holds up all others.
const SLOW: Duration = Duration::from_millis(1);
/// All handlers of a batch together hold up the others for so long; those that are left run in tasks.
const PATIENCE: Duration = Duration::from_millis(2);

/// A request as it came.
pub(super) struct Received {
    incoming: IncomingId,
    peer: Id,
    message: Vec<u8>,
}

/// What others ask for, and how far it is.
pub(super) struct Incoming {
    /// For the driver to begin with.
    arrived: VecDeque<Received>,
    /// For whichever handler ends next.
    waiting: VecDeque<Received>,
    /// Before there was a router.
    early: VecDeque<Received>,
    running: usize,
    max_running: usize,
    tasks: JoinSet<()>,
}

impl Incoming {
    pub(super) fn new(max_running: usize) -> Incoming {
        Incoming {
            arrived: VecDeque::new(),
            waiting: VecDeque::new(),
            early: VecDeque::new(),
            running: 0,
            max_running: max_running.max(1),
            tasks: JoinSet::new(),
        }
    }

    /// True if the driver has to begin something.
    pub(super) fn has_arrived(&self) -> bool {
        !self.arrived.is_empty()
    }

    /// The handlers that are under way.
    pub(super) fn take_tasks(&mut self) -> JoinSet<()> {
        std::mem::take(&mut self.tasks)
    }
}

impl State {
    pub(super) fn on_request(
        &mut self,
        shared: &Arc<Shared>,
        now: Time,
        incoming: IncomingId,
        peer: Id,
        message: Vec<u8>,
    ) {
        let request = Received { incoming, peer, message };
        if self.draining {
            return self.refuse(now, request, "going down");
        }
        if self.router.is_some() {
            return self.incoming.arrived.push_back(request);
        }
        if self.incoming.early.len() >= MAX_EARLY {
            return self.refuse(now, request, "not serving yet");
        }
        self.incoming.early.push_back(request);
        while self.background.try_join_next().is_some() {}
        let shared = shared.clone();
        let give_up = async move {
            tokio::time::sleep(EARLY_WAIT).await;
            shared.with(|state, now| state.give_up_early(now, incoming));
        };
        self.background.spawn_on(give_up, &self.runtime);
    }

    /// 5.03: try again in a second.
    fn refuse(&mut self, now: Time, request: Received, why: &str) {
        let mut answer = Answer::words(Code::SERVICE_UNAVAILABLE, why);
        // One byte is always allowed.
        let _ = answer.options.set_uint(OptionNumber::MAX_AGE, 1);
        self.answer(now, request.incoming, &answer);
        self.machine.recycle(request.message);
    }

    fn give_up_early(&mut self, now: Time, incoming: IncomingId) {
        let early = &mut self.incoming.early;
        let Some(at) = early.iter().position(|early| early.incoming == incoming) else { return };
        early.remove(at);
        self.answer(now, incoming, &Answer::words(Code::NOT_IMPLEMENTED, "this net serves nothing"));
    }

    /// Takes a router into use, and gives it what waited for one.
    pub(super) fn install(&mut self, router: &Arc<Router>) {
        self.router = Some(router.clone());
        let Incoming { arrived, waiting, early, .. } = &mut self.incoming;
        arrived.extend(waiting.drain(..).chain(early.drain(..)));
    }

    /// Nothing that waits will run any more.
    pub(super) fn refuse_waiting(&mut self, now: Time) {
        let Incoming { arrived, waiting, early, .. } = &mut self.incoming;
        let left: Vec<Received> = arrived.drain(..).chain(waiting.drain(..)).chain(early.drain(..)).collect();
        left.into_iter().for_each(|request| self.refuse(now, request, "going down"));
    }

    /// What runs in the place of a handler that ended, if something waits.
    fn next_request(&mut self) -> Option<(Arc<Router>, Received)> {
        let next = self.router.clone().and_then(|router| Some((router, self.incoming.waiting.pop_front()?)));
        if next.is_none() {
            self.incoming.running = self.incoming.running.saturating_sub(1);
        }
        next
    }

    fn answer(&mut self, now: Time, incoming: IncomingId, answer: &Answer) {
        let respond = |machine: &mut net::Net, answer: &Answer| {
            machine.respond(now, incoming, answer.code, &answer.options, &answer.payload)
        };
        let Err(why) = respond(&mut self.machine, answer) else { return };
        match why {
            CommandError::Stale | CommandError::Closed => {
                debug!("an answer came after its session had ended");
            }
            why => {
                warn!(%why, "an answer could not be sent");
                let _ = respond(&mut self.machine, &Answer::internal(&why.to_string()));
            }
        }
    }
}

/// The driver's part: handlers are polled once where their requests came in.
#[derive(Default)]
pub(super) struct Inline {
    router: Option<Arc<Router>>,
    /// So many handlers may go on in tasks.
    free: usize,
    requests: VecDeque<Received>,
    answers: Vec<(IncomingId, Answer)>,
    unfinished: Vec<(IncomingId, Running)>,
    spent: Vec<Vec<u8>>,
    bodies: Arena,
    /// Handlers took long, all in all: next time each is measured.
    is_wary: bool,
}

impl Inline {
    /// Takes what has arrived over, with the lock.
    pub(super) fn take(&mut self, state: &mut State) {
        std::mem::swap(&mut state.incoming.arrived, &mut self.requests);
        self.free = state.incoming.max_running.saturating_sub(state.incoming.running);
        self.router.clone_from(&state.router);
    }

    /// Runs what was taken over, without the lock, and gives the answers to the machine. It is `now`, or was when the
    /// requests came.
    pub(super) fn run(&mut self, shared: &Arc<Shared>, now: Time) {
        if let Some(router) = self.router.take() {
            self.begin(shared, &router);
        }
        shared.carry_out(|state, after| {
            self.finish(shared, state, after);
            self.is_wary = after.since(now) > SLOW;
        });
        // What belongs to users is dropped without the lock.
        self.answers.clear();
    }

    fn begin(&mut self, shared: &Arc<Shared>, router: &Arc<Router>) {
        self.bodies.reuse();
        let began = Instant::now();
        while self.unfinished.len() < self.free
            && let Some(Received { incoming, peer, message }) = self.requests.pop_front()
        {
            let begun = self.is_wary.then(Instant::now);
            // Others wait for this thread: what has come to light late goes on elsewhere.
            let here = began.elapsed() < PATIENCE;
            let from = (incoming.session(), peer);
            let started = router.start(shared, from, &message, &mut self.bodies, here);
            self.spent.push(message);
            let handler = match started {
                Started::Done(answer, handler) => {
                    self.answers.push((incoming, answer));
                    handler
                }
                Started::Running(running) => {
                    let handler = running.was_polled().then(|| running.handler().clone());
                    self.unfinished.push((incoming, running));
                    handler
                }
            };
            if let (Some(begun), Some(handler)) = (begun, handler) {
                handler.took_long(begun.elapsed() > SLOW);
            }
        }
    }

    fn finish(&mut self, shared: &Arc<Shared>, state: &mut State, now: Time) {
        for (incoming, answer) in &self.answers {
            state.answer(now, *incoming, answer);
        }
        self.spent.drain(..).for_each(|message| state.machine.recycle(message));
        while state.incoming.tasks.try_join_next().is_some() {}
        for (incoming, running) in self.unfinished.drain(..) {
            let task = go_on(shared.clone(), incoming, running);
            state.incoming.running += 1;
            let runtime = state.runtime.clone();
            state.incoming.tasks.spawn_on(task, &runtime);
        }
        for request in self.requests.drain(..) {
            // Without a router nothing would ever take it from there.
            if state.router.is_some() && state.incoming.waiting.len() < state.incoming.max_running {
                state.incoming.waiting.push_back(request);
            } else {
                state.refuse(now, request, "busy");
            }
        }
    }
}

/// A handler that waits for something, and after it whatever waits for a handler to end.
async fn go_on(shared: Arc<Shared>, incoming: IncomingId, running: Running) {
    let mut incoming = incoming;
    let mut answer = running.finish().await;
    loop {
        let next = shared.say(|state, now| {
            state.answer(now, incoming, &answer);
            state.next_request()
        });
        let Some((router, request)) = next else { return };
        incoming = request.incoming;
        let from = (incoming.session(), request.peer);
        answer = match router.start(&shared, from, &request.message, &mut Arena::default(), true) {
            Started::Done(answer, _) => answer,
            Started::Running(running) => running.finish().await,
        };
        shared.look().machine.recycle(request.message);
    }
}

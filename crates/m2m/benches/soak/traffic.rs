//! Requests: who asks whom on which way, at a steady pace, each written into the ledger.
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use m2m::{Code, Net, Peer, Session, SessionState};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{
    actor::Actor,
    dice::{Dice, filler},
    ledger::{Books, Sent, Way, Who},
};

/// Requests that are open at once: beyond it none is sent, so that a machine with better things to do is not overrun.
const MOST_OPEN: usize = 512;
/// Requests are sent in bunches, so often.
const BEAT: Duration = Duration::from_millis(20);
const METHODS: [Code; 7] =
    [Code::GET, Code::POST, Code::PUT, Code::DELETE, Code::FETCH, Code::PATCH, Code::IPATCH];

/// One net asks another on one way, in a session that is kept.
pub(crate) struct Link {
    pub(crate) from: Arc<Actor>,
    pub(crate) to: Who,
    pub(crate) way: Way,
    /// How it is reached, unless the peer has to come.
    peer: Option<Peer>,
    session: Mutex<Option<Session>>,
    /// Answers that came.
    pub(crate) answers: AtomicU64,
}

impl Link {
    pub(crate) fn new(from: &Arc<Actor>, to: Who, way: Way, peer: Option<Peer>) -> Arc<Link> {
        let (from, session, answers) = (from.clone(), Mutex::new(None), AtomicU64::new(0));
        Arc::new(Link { from, to, way, peer, session, answers })
    }

    /// The session as it is, or a new one in the place of one that is over.
    pub(crate) fn session(&self, books: &Books) -> Option<Session> {
        let net = self.from.net()?;
        let Some(peer) = &self.peer else { return net.session(self.to.id()) };
        let mut kept = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let is_alive =
            |session: &&Session| matches!(session.state(), SessionState::Up | SessionState::Connecting);
        if let Some(session) = kept.as_ref().filter(is_alive) {
            return Some(session.clone());
        }
        *kept = net.dial(peer.clone()).ok();
        books.count(if kept.is_some() { "sessions dialled" } else { "sessions not dialled" });
        kept.clone()
    }

    /// Lets go of the session, as its net is about to die.
    pub(crate) fn forget(&self) {
        // Dropped without the lock: that closes it.
        let kept = self.session.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(kept);
    }
}

/// All requests of a run.
#[derive(Clone)]
pub(crate) struct Traffic {
    pub(crate) books: Books,
    open: Arc<AtomicUsize>,
}

impl Traffic {
    pub(crate) fn new(books: &Books) -> Traffic {
        Traffic { books: books.clone(), open: Arc::new(AtomicUsize::new(0)) }
    }

    /// Sends so many a second over these links, until it is stopped.
    pub(crate) async fn run(self, links: Arc<Vec<Arc<Link>>>, rate: u64, mut dice: Dice) {
        let mut beat = interval(BEAT);
        // What a busy machine missed is not made good.
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut due = 0.0;
        loop {
            beat.tick().await;
            due += rate as f64 * BEAT.as_secs_f64();
            while due >= 1.0 {
                due -= 1.0;
                if self.open.load(Ordering::Relaxed) >= MOST_OPEN {
                    self.books.count("requests not sent: too many open");
                    continue;
                }
                let Some(link) = dice.pick(&links).cloned() else { continue };
                let Some(session) = link.session(&self.books) else { continue };
                let (this, dice) = (self.clone(), dice.fork());
                tokio::spawn(async move {
                    if this.ask(&session, link.from.who(), link.to, link.way, dice).await {
                        link.answers.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        }
    }

    /// One request, and what becomes of it; true if it is answered.
    pub(crate) async fn ask(&self, session: &Session, from: Who, to: Who, way: Way, mut dice: Dice) -> bool {
        let sent = Sent {
            from,
            to,
            method: dice.pick(&METHODS).copied().unwrap_or(Code::POST),
            confirmable: !dice.chance(0.1),
            repeatable: dice.chance(0.2),
            len: dice.below(900),
            way,
            timeout: Duration::from_secs(5 + dice.below(26) as u64),
        };
        self.open.fetch_add(1, Ordering::Relaxed);
        let number = self.books.open().send(sent);
        let mut request = session
            .request(sent.method, format!("/work?n={number:x}"))
            .payload(filler(number, sent.len))
            .timeout(sent.timeout);
        if sent.repeatable {
            request = request.repeatable();
        }
        if !sent.confirmable {
            request = request.non_confirmable();
        }
        let told = request.await;
        let is_answered = told.as_ref().is_ok_and(|response| response.code.class() == 2);
        self.books.open().ended(number, told);
        self.open.fetch_sub(1, Ordering::Relaxed);
        is_answered
    }

    /// Asks each link until it answers. Those that did not in time.
    pub(crate) async fn reach_all(
        &self,
        links: &[Arc<Link>],
        patience: Duration,
        dice: &mut Dice,
    ) -> Vec<String> {
        let before: Vec<u64> = links.iter().map(|link| link.answers.load(Ordering::Relaxed)).collect();
        let began = Instant::now();
        let mut silent: Vec<usize> = (0..links.len()).collect();
        while !silent.is_empty() && began.elapsed() < patience {
            for link in silent.iter().map(|at| links[*at].clone()) {
                let Some(session) = link.session(&self.books) else { continue };
                let (this, dice) = (self.clone(), dice.fork());
                tokio::spawn(async move {
                    if this.ask(&session, link.from.who(), link.to, link.way, dice).await {
                        link.answers.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
            silent.retain(|at| links[*at].answers.load(Ordering::Relaxed) == before[*at]);
        }
        let words = |at: usize| {
            let Link { from, to, way, .. } = &*links[at];
            let session = links[at].session(&self.books);
            let session = session.map_or("no session".to_owned(), |session| {
                format!("{:?}, {}", session.state(), session.path())
            });
            let host = from.net().map_or("no net".to_owned(), |net| format!("{:?}", net.host()));
            format!(
                "{to} did not answer {} {way} for {} s of fair weather: {session}; host: {host}",
                from.who(),
                patience.as_secs()
            )
        };
        silent.into_iter().map(words).collect()
    }
}

/// A visitor: a net that opens, asks a few things, and goes.
pub(crate) struct Visit {
    pub(crate) actor: Arc<Actor>,
    pub(crate) to: Who,
    pub(crate) way: Way,
    pub(crate) peer: Peer,
    pub(crate) requests: usize,
}

impl Visit {
    /// From the registration to the last answer. The net is still open then.
    pub(crate) async fn run(&self, traffic: &Traffic, dice: &mut Dice) -> Option<Session> {
        let net = self.actor.net()?;
        let Some(session) = self.session(&net).await else {
            traffic.books.note("visits in vain", Some(self.actor.who()), self.to);
            return None;
        };
        drop(net);
        traffic.books.count("visits");
        for _ in 0..self.requests {
            traffic.ask(&session, self.actor.who(), self.to, self.way, dice.fork()).await;
        }
        Some(session)
    }

    async fn session(&self, net: &Net) -> Option<Session> {
        let patience = Duration::from_secs(20);
        if self.way == Way::ThroughHost {
            tokio::time::timeout(patience, net.registered()).await.ok()?.ok()?;
        }
        net.connect(self.peer.clone()).await.ok()
    }
}

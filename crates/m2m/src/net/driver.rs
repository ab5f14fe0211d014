//! The task that moves bytes and time: datagrams in, timeouts, what the socket did not take at once.
use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use m2m_proto::time::Time;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tracing::{debug, error, trace};

use super::{
    handlers::Inline,
    news::HostState,
    shards::{Inbound, Post},
    shared::{Shared, State},
    socket::{Inbox, Socket},
};

/// The wall clock may be set anew: it is looked at so often.
const CLOCK_INTERVAL: Duration = Duration::from_secs(60);
/// For so long the last datagrams of a closed net may wait for the socket.
const LINGER: Duration = Duration::from_millis(200);
/// A socket that only fails is not asked in a loop.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// What the driver has to do next.
enum Turn {
    Receive(io::Result<()>),
    /// Time has passed, the socket takes more, or somebody asks.
    Pump,
    Timer,
    End,
}

struct Driver {
    shared: Arc<Shared>,
    socket: Arc<Socket>,
    inbox: Inbox,
    /// What the net's other shards hand over.
    inbound: Option<Inbound>,
    inline: Inline,
    timer: Pin<Box<Sleep>>,
    /// The timer is to be set anew.
    has_fired: bool,
    clock_due: Instant,
}

pub(super) async fn run(shared: Arc<Shared>, socket: Arc<Socket>) {
    let clock_due = Instant::now() + CLOCK_INTERVAL;
    let inbound = shared.look().post.as_ref().map(Post::inbound);
    let mut driver = Driver {
        inbox: socket.inbox(),
        inbound,
        inline: Inline::default(),
        timer: Box::pin(sleep_until(clock_due)),
        has_fired: false,
        clock_due,
        shared,
        socket,
    };
    loop {
        match poll_fn(|cx| driver.poll_turn(cx)).await {
            Turn::Receive(ready) => {
                if ready.and_then(|()| driver.receive()).is_err() {
                    sleep(ERROR_PAUSE).await;
                }
                // Their callers run before the driver does.
                if driver.shared.look().gathers() {
                    behind_the_others().await;
                    driver.shared.carry_out(|state, _| state.end_gathering());
                }
            }
            Turn::Pump => {
                driver.shared.carry_out(|_, _| ());
                driver.run_handlers();
            }
            Turn::Timer => driver.on_timer(),
            Turn::End => break,
        }
        // What other shards hand over may never end; others of this thread want their turn.
        tokio::task::consume_budget().await;
    }
    leave(&driver.shared, &driver.socket).await;
}

/// Lets the tasks run that can run now, once.
async fn behind_the_others() {
    let mut has_waited = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut has_waited, true) {
            return Poll::Ready(());
        }
        // Unlike tokio's own yielding, without asking the system for news in between.
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl Driver {
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        let is_blocked = {
            let mut state = self.shared.look();
            if state.closed {
                return Poll::Ready(Turn::End);
            }
            if state.look_for_driver(cx) || state.incoming.has_arrived() {
                return Poll::Ready(Turn::Pump);
            }
            // A timer that is set too early costs one look; to set it anew with every packet costs more.
            if state.timeout < state.armed || self.has_fired {
                self.has_fired = false;
                state.armed = state.timeout;
                let due = self.shared.instant(state.timeout);
                let due = due.map_or(self.clock_due, |due| self.clock_due.min(due.into()));
                self.timer.as_mut().reset(due);
            }
            state.egress.is_blocked()
        };
        if self.timer.as_mut().poll(cx).is_ready() {
            self.has_fired = true;
            return Poll::Ready(Turn::Timer);
        }
        if is_blocked {
            // What came would only be answered by more that can't leave: the system's queue is the place to wait.
            return self.socket.poll_writable(cx).map(|_| Turn::Pump);
        }
        if self.inbound.as_ref().is_some_and(|inbound| inbound.poll(cx).is_ready()) {
            return Poll::Ready(Turn::Receive(Ok(())));
        }
        self.socket.poll_readable(cx).map(Turn::Receive)
    }

    /// Begins the requests that came to light while another than the driver pumped, or that waited for a router.
    fn run_handlers(&mut self) {
        let mut state = self.shared.look();
        if state.incoming.has_arrived() {
            self.inline.take(&mut state);
            drop(state);
            self.inline.run(&self.shared, self.shared.now());
        }
    }

    fn on_timer(&mut self) {
        let now = Instant::now();
        let set_clock = now >= self.clock_due;
        if set_clock {
            self.clock_due = now + CLOCK_INTERVAL;
        }
        self.shared.carry_out(|state, now| on_timer(state, now, set_clock));
    }

    /// Takes what came: all of it goes to the machine before the machine is asked what is to leave, so that what answers
    /// a bundle is a bundle. An error is one of the socket itself.
    fn receive(&mut self) -> io::Result<()> {
        let is_handed = self.inbound.as_mut().is_some_and(Inbound::fetch);
        match self.socket.receive(&mut self.inbox) {
            Ok(()) => {}
            // The inbox is empty.
            Err(_) if is_handed => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => {
                // ICMP's word on an earlier datagram (port unreachable, say): the next may be fine.
                trace!(%error, "receiving");
                return Err(error);
            }
        }
        let mut state = self.shared.look();
        let now = self.shared.now();
        self.inbox.each(|from, datagram| {
            trace!(%from, len = datagram.len(), "received");
            state.machine.handle_datagram(now, from, datagram);
        });
        if let Some(inbound) = &mut self.inbound {
            inbound.feed(now, &mut state.machine);
        }
        state.carry_out_ready(&self.shared, now);
        if state.incoming.has_arrived() {
            self.inline.take(&mut state);
            drop(state);
            self.inline.run(&self.shared, now);
        } else {
            drop(state);
            self.shared.carry_out(|_, _| ());
        }
        Ok(())
    }
}

fn on_timer(state: &mut State, now: Time, set_clock: bool) {
    if set_clock {
        state.set_unix_time(now);
    }
    state.machine.handle_timeout(now);
}

/// The last datagrams leave, the disk finishes, and nobody but the driver has the socket.
async fn leave(shared: &Arc<Shared>, socket: &Socket) {
    let flush = async {
        loop {
            shared.carry_out(|_, _| ());
            if !shared.look().egress.is_blocked() || poll_fn(|cx| socket.poll_writable(cx)).await.is_err() {
                return;
            }
        }
    };
    if tokio::time::timeout(LINGER, flush).await.is_err() {
        debug!("some last datagrams did not leave");
    }
    wait_for_disk(shared).await;
    let mut background = {
        let mut state = shared.look();
        state.store.close();
        std::mem::take(&mut state.background)
    };
    // They hold the socket too: it is closed only once they are gone.
    background.shutdown().await;
}

/// Lets go of everything when the driver ends, however it ends: closed in good order, by a panic, or with its runtime.
/// Whoever still waits then learns that the net is closed.
pub(super) struct Ending(pub(super) Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        let shared = &self.0;
        let left = {
            let mut state = shared.look();
            if !state.closed {
                error!("the driver of {:?} ended before its net was closed", shared.id);
            }
            // After a panic the machine is asked nothing more: peers find out by themselves.
            state.draining = true;
            state.closed = true;
            state.socket = None;
            state.store.close();
            let tasks = (state.incoming.take_tasks(), std::mem::take(&mut state.background));
            (tasks, state.router.take(), state.take_requests(), std::mem::take(&mut state.sessions))
        };
        // What belongs to users is dropped without the lock: it may hold handles of this net.
        drop(left);
        shared.host.send_replace(HostState::Disconnected { why: "the net is closed".to_owned() });
        shared.ended.send_replace(true);
    }
}

/// What is being written is finished, so that the state folder is free for whoever comes next.
async fn wait_for_disk(shared: &Shared) {
    let idle = async {
        loop {
            let idle = shared.idle.notified();
            if !shared.look().store.is_busy() {
                return;
            }
            idle.await;
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), idle).await;
}

#[cfg(test)]
mod tests {
    use std::{future::IntoFuture, sync::atomic::Ordering, time::Duration};

    use crate::{Code, Id, Key, Net, Peer, Request, Router};

    /// Together their windows take more than one batch of packets.
    const SESSIONS: usize = 8;
    const REQUESTS: usize = 200;

    #[tokio::test]
    async fn a_full_socket_loses_nothing() {
        let key = Key::from_bytes(&[7; 32]).unwrap();
        let open = |n: u8| Net::builder(Id([n; 16]), key.clone()).bind("127.0.0.1:0".parse().unwrap()).open();
        let (a, b) = (open(1).await.unwrap(), open(2).await.unwrap());
        drop(tokio::spawn(b.serve(Router::new().data(async |request: Request| request.payload))));
        let mut sessions = Vec::new();
        for _ in 0..SESSIONS {
            let session = a.connect(Peer::addr(b.id(), b.local_addr())).await.unwrap();
            session.send("warm").await.unwrap();
            sessions.push(session);
        }
        let shared = a.0.shards.first();
        let socket = shared.look().socket.clone().unwrap();
        socket.is_full.store(true, Ordering::Relaxed);
        let before = a.stats().datagrams_out;
        let ask = |n: usize| {
            // Nobody repeats it: that would hide a loss.
            let request = sessions[n % SESSIONS].request(Code::POST, "").payload(vec![n as u8; 900]);
            tokio::spawn(request.non_confirmable().into_future())
        };
        let asked: Vec<_> = (0..REQUESTS).map(ask).collect();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(shared.look().egress.is_blocked());
        let held = a.stats().datagrams_out - before;
        assert!(held <= 64, "{held} left the machine, which is to keep them");
        socket.is_full.store(false, Ordering::Relaxed);
        shared.carry_out(|_, _| ());
        for (n, asked) in asked.into_iter().enumerate() {
            assert_eq!(asked.await.unwrap().unwrap().payload, vec![n as u8; 900]);
        }
        assert_eq!(a.send_errors(), 0);
    }
}

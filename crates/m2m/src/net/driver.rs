//! The task that moves bytes and time: datagrams in, timeouts, what the socket did not take at once.
use std::{io, sync::Arc, time::Duration};

use m2m_proto::time::Time;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, error, trace};

use super::{
    news::HostState,
    shared::{Shared, State},
    socket::Socket,
};

/// Datagrams that are taken under one lock.
const BATCH: usize = 64;
/// Larger than any packet; what is longer is none.
const BUFFER: usize = 2048;
/// The wall clock may be set anew: it is looked at so often.
const CLOCK_INTERVAL: Duration = Duration::from_secs(60);
/// For so long the last datagrams of a closed net may wait for the socket.
const LINGER: Duration = Duration::from_millis(200);
/// A socket that only fails is not asked in a loop.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

pub(super) async fn run(shared: Arc<Shared>, socket: Arc<Socket>) {
    let mut buffer = vec![0; BUFFER];
    let mut clock_due = Instant::now() + CLOCK_INTERVAL;
    let timer = sleep_until(clock_due);
    tokio::pin!(timer);
    loop {
        let (timeout, backlog) = {
            let mut state = shared.look();
            if state.closed {
                break;
            }
            state.armed = state.timeout;
            (state.timeout, !state.backlog.is_empty())
        };
        let due = shared.instant(timeout).map_or(clock_due, |due| clock_due.min(due.into()));
        if timer.deadline() != due {
            timer.as_mut().reset(due);
        }
        tokio::select! {
            ready = socket.readable() => {
                if ready.is_err() || receive(&shared, &socket, &mut buffer).is_err() {
                    sleep(ERROR_PAUSE).await;
                }
            }
            _ = socket.writable(), if backlog => {
                shared.carry_out(|state, _| state.drain_backlog());
            }
            () = &mut timer => {
                let mut set_clock = false;
                if Instant::now() >= clock_due {
                    clock_due = Instant::now() + CLOCK_INTERVAL;
                    set_clock = true;
                }
                shared.carry_out(|state, now| on_timer(state, now, set_clock));
            }
            () = shared.wake.notified() => {}
        }
    }
    leave(&shared, &socket).await;
}

fn on_timer(state: &mut State, now: Time, set_clock: bool) {
    if set_clock {
        state.set_unix_time(now);
    }
    state.machine.handle_timeout(now);
}

/// Takes what came, up to a batch. An error is one of the socket itself, several times in a row.
fn receive(shared: &Arc<Shared>, socket: &Socket, buffer: &mut [u8]) -> io::Result<()> {
    let received = shared.carry_out(|state, now| {
        let mut last = Ok(());
        for _ in 0..BATCH {
            match socket.try_receive(buffer) {
                Ok((len, from)) => {
                    trace!(%from, len, "received");
                    last = Ok(());
                    state.machine.handle_datagram(now, from, buffer.get_mut(..len).unwrap_or_default());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => {
                    // ICMP's word on an earlier datagram (port unreachable, say): the next may be fine.
                    trace!(%error, "receiving");
                    last = Err(error);
                }
            }
        }
        last
    });
    received.0
}

/// The last datagrams leave, the disk finishes, and nobody but the driver has the socket.
async fn leave(shared: &Arc<Shared>, socket: &Socket) {
    let flush = async {
        loop {
            {
                let mut state = shared.look();
                state.drain_backlog();
                if state.backlog.is_empty() {
                    return;
                }
            }
            if socket.writable().await.is_err() {
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
            let tasks = (std::mem::take(&mut state.handlers), std::mem::take(&mut state.background));
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

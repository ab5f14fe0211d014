//! One handler, and a request that it answers.
use std::{
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Waker},
};

use m2m_proto::coap::{code::Code, content_format::ContentFormat};
use tokio_util::sync::ReusableBoxFuture;
use tracing::error;

use super::{Answer, IntoReply, Reply, Request};

type Replying = ReusableBoxFuture<'static, Reply>;
type Call = dyn Fn(Request, Option<Replying>) -> Replying + Send + Sync;

/// Memory of handlers that have ended, kept for the next ones.
const MAX_SPARE: usize = 64;

const STRIKES: u8 = 3;

/// What a user gave to answer some requests.
pub(crate) struct Handler {
    call: Box<Call>,
    spare: Mutex<Vec<Replying>>,
    /// How much more often than not it took long before it first waited for something.
    strikes: AtomicU8,
}

impl Handler {
    pub(super) fn new<F, R>(handler: F) -> Handler
    where
        F: Fn(Request) -> R + Send + Sync + 'static,
        R: Future<Output: IntoReply> + Send + 'static,
    {
        let call = move |request, spare: Option<Replying>| {
            let future = handler(request);
            let replying = async move { future.await.into_reply() };
            match spare {
                Some(mut spare) => {
                    spare.set(replying);
                    spare
                }
                None => ReusableBoxFuture::new(replying),
            }
        };
        Handler { call: Box::new(call), spare: Mutex::default(), strikes: AtomicU8::new(0) }
    }

    /// Tells how it was. One that took long three times more often than not runs in tasks only from then on; once may be
    /// the system's doing, which ran something else meanwhile.
    pub(crate) fn took_long(&self, long: bool) {
        let strikes = self.strikes.load(Ordering::Relaxed);
        let after = match long {
            _ if strikes >= STRIKES => return,
            true => strikes + 1,
            false => strikes.saturating_sub(1),
        };
        self.strikes.store(after, Ordering::Relaxed);
    }

    fn is_slow(&self) -> bool {
        self.strikes.load(Ordering::Relaxed) >= STRIKES
    }

    fn take_spare(&self) -> Option<Replying> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Keeps the memory of one that has ended. What it held is gone: an async block drops that when it returns.
    fn give_spare(&self, ended: Replying) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < MAX_SPARE {
            spare.push(ended);
        }
    }
}

/// What came of beginning a request.
pub(crate) enum Started {
    /// It is answered, by this handler if by any.
    Done(Answer, Option<Arc<Handler>>),
    /// Its handler waits for something.
    Running(Running),
}

/// A request whose handler is under way.
pub(crate) struct Running {
    handler: Arc<Handler>,
    replying: Replying,
    method: Code,
    accept: Option<ContentFormat>,
    /// Where its request came in.
    was_polled: bool,
}

impl Running {
    /// Calls a handler, and polls it once. A task that goes on with it polls it again at once, so nothing is lost if it
    /// wakes nobody now.
    pub(super) fn start(handler: &Arc<Handler>, request: Request, here: bool) -> Started {
        let (method, accept) = (request.code, request.accept());
        let spare = handler.take_spare();
        // What a panic may leave half done is the handler's own: nothing of ours is looked at again.
        let Ok(replying) = catch_unwind(AssertUnwindSafe(|| (handler.call)(request, spare))) else {
            return Started::Done(failed(method), Some(handler.clone()));
        };
        let was_polled = here && !handler.is_slow();
        let mut running = Running { handler: handler.clone(), replying, method, accept, was_polled };
        if !was_polled {
            return Started::Running(running);
        }
        match running.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answer) => Started::Done(answer, Some(running.end())),
            Poll::Pending => Started::Running(running),
        }
    }

    /// False if a task is the first to poll it.
    pub(crate) fn was_polled(&self) -> bool {
        self.was_polled
    }

    pub(crate) fn handler(&self) -> &Arc<Handler> {
        &self.handler
    }

    /// Its answer, whatever the handler does.
    pub(crate) async fn finish(mut self) -> Answer {
        let answer = poll_fn(|cx| self.poll(cx)).await;
        self.end();
        answer
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Answer> {
        let replying = &mut self.replying;
        match catch_unwind(AssertUnwindSafe(|| replying.poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(reply)) => Poll::Ready(reply.into_answer(self.method, self.accept)),
            Err(_) => Poll::Ready(failed(self.method)),
        }
    }

    fn end(self) -> Arc<Handler> {
        self.handler.give_spare(self.replying);
        self.handler
    }
}

fn failed(method: Code) -> Answer {
    error!("a handler of {method} panicked");
    Answer::internal("the handler failed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_that_holds_others_up_is_not_forgiven() {
        let handler = Handler::new(async |_: Request| "");
        // The system's doing, now and then.
        for long in [true, false, true, true, false] {
            handler.took_long(long);
        }
        assert!(!handler.is_slow());
        (0..3).for_each(|_| handler.took_long(true));
        (0..9).for_each(|_| handler.took_long(false));
        assert!(handler.is_slow());
    }
}

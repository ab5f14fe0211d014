//! Who waits for an answer from the machine. A request's number is its place here, so that nothing is searched.
use std::task::{Context, Poll, Waker};

use m2m_proto::{
    error::{ControlError, RequestError},
    event::RequestId,
    time::Duration,
    wire::frame::FoundStatus,
};
use tokio::sync::oneshot;

use crate::request::Answered;

/// What came of a request.
pub(crate) type Outcome = Result<Answered, RequestError>;

/// Who waits, and for what.
pub(crate) enum Waiter {
    Response(Awaited),
    Pong(oneshot::Sender<Option<Duration>>),
    Found(oneshot::Sender<Option<FoundStatus>>),
    Control(oneshot::Sender<Result<(), ControlError>>),
}

/// A request's answer, before and after it came.
pub(crate) enum Awaited {
    /// With the task to wake, once it has asked.
    Open(Option<Waker>),
    Done(Outcome),
}

/// Those who wait, by the number of their request: place, and how often it was used before.
#[derive(Default)]
pub(crate) struct Waiting {
    places: Vec<(u32, Option<Waiter>)>,
    free: Vec<u32>,
}

impl Waiting {
    /// A fresh number for something that will be answered.
    pub(crate) fn insert(&mut self, waiter: Waiter) -> RequestId {
        if let Some(place) = self.free.pop()
            && let Some((uses, empty)) = self.places.get_mut(place as usize)
        {
            *empty = Some(waiter);
            return number(place, *uses);
        }
        let place = u32::try_from(self.places.len()).expect("so many requests fit no memory");
        self.places.push((0, Some(waiter)));
        number(place, 0)
    }

    /// Takes whoever waits under this number, which means nothing from now on.
    pub(crate) fn take(&mut self, request: RequestId) -> Option<Waiter> {
        let place = self.place(request)?;
        let waiter = place.1.take();
        if waiter.is_some() {
            place.0 = place.0.wrapping_add(1);
            self.free.push(request.0 as u32);
        }
        waiter
    }

    /// Keeps the answer to a request for whoever asks for it; the task to wake, if it waits. The answer comes back if
    /// nobody does.
    pub(crate) fn answer(&mut self, request: RequestId, outcome: Outcome) -> Result<Option<Waker>, Outcome> {
        match self.place(request) {
            Some((_, Some(Waiter::Response(awaited @ Awaited::Open(_))))) => {
                match std::mem::replace(awaited, Awaited::Done(outcome)) {
                    Awaited::Open(waker) => Ok(waker),
                    Awaited::Done(_) => Ok(None),
                }
            }
            _ => Err(outcome),
        }
    }

    /// The answer to a request, if it is there; none if nobody will ever answer it.
    pub(crate) fn poll(&mut self, request: RequestId, cx: &mut Context<'_>) -> Poll<Option<Outcome>> {
        match self.place(request) {
            Some((_, Some(Waiter::Response(Awaited::Open(waker))))) => {
                match waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    None => *waker = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
            _ => match self.take(request) {
                Some(Waiter::Response(Awaited::Done(outcome))) => Poll::Ready(Some(outcome)),
                _ => Poll::Ready(None),
            },
        }
    }

    fn place(&mut self, request: RequestId) -> Option<&mut (u32, Option<Waiter>)> {
        let place = self.places.get_mut(request.0 as u32 as usize)?;
        (place.0 == (request.0 >> 32) as u32).then_some(place)
    }
}

/// Whoever waits when nobody answers any more learns it.
impl Drop for Waiting {
    fn drop(&mut self) {
        for (_, waiter) in self.places.drain(..) {
            if let Some(Waiter::Response(Awaited::Open(Some(waker)))) = waiter {
                waker.wake();
            }
        }
    }
}

fn number(place: u32, uses: u32) -> RequestId {
    RequestId(u64::from(uses) << 32 | u64::from(place))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> Waiter {
        Waiter::Response(Awaited::Open(None))
    }

    #[test]
    fn a_number_means_one_request_only() {
        let mut waiting = Waiting::default();
        let first = waiting.insert(open());
        assert!(waiting.take(first).is_some());
        let second = waiting.insert(open());
        assert_ne!(first, second);
        assert!(waiting.take(first).is_none(), "its place is another's");
        assert!(waiting.answer(first, Err(RequestError::TimedOut)).is_err());
        assert!(waiting.take(second).is_some());
        assert_eq!(waiting.places.len(), 1, "places are used again");
    }

    #[test]
    fn an_answer_waits_for_whoever_asks() {
        let mut waiting = Waiting::default();
        let request = waiting.insert(open());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(waiting.poll(request, &mut cx).is_pending());
        assert!(matches!(waiting.answer(request, Err(RequestError::TimedOut)), Ok(Some(_))));
        assert!(waiting.answer(request, Err(RequestError::TimedOut)).is_err(), "one answer is enough");
        assert!(matches!(waiting.poll(request, &mut cx), Poll::Ready(Some(Err(RequestError::TimedOut)))));
        assert!(matches!(waiting.poll(request, &mut cx), Poll::Ready(None)), "it was taken");
    }
}

//! What the machine tells, and whom it concerns.
use std::sync::Arc;

use m2m_proto::{
    error::RequestError,
    event::{Event, RequestId, SessionId},
    time::Time,
};
use tracing::{debug, info, warn};

use super::{
    news::{self, HostState, NetEvent},
    shared::{Shared, State},
    socket,
    waiting::Waiter,
};
use crate::{
    request::Answered,
    session::{Path, SessionState, Standing},
};

impl State {
    pub(super) fn on_event(&mut self, shared: &Arc<Shared>, now: Time, event: Event) {
        match event {
            Event::Request { incoming, peer, message } => {
                self.on_request(shared, now, incoming, peer, message);
            }
            Event::Response { request, message } => self.on_response(request, message),
            Event::RequestFailed { request, why } => self.on_outcome(request, Err(why)),
            Event::Pong { request, rtt } => {
                if let Some(Waiter::Pong(waiter)) = self.waiting.take(request) {
                    let _ = waiter.send(rtt);
                }
            }
            Event::Found { request, status } => {
                if let Some(Waiter::Found(waiter)) = self.waiting.take(request) {
                    let _ = waiter.send(status);
                }
            }
            Event::ControlDone { request, result } => {
                if let Some(Waiter::Control(waiter)) = self.waiting.take(request) {
                    let _ = waiter.send(result);
                }
            }
            other => self.on_session_event(shared, other),
        }
    }

    fn on_response(&mut self, request: RequestId, message: Vec<u8>) {
        let answered = Answered::read(&message, &mut self.bodies);
        self.machine.recycle(message);
        self.on_outcome(request, Ok(answered));
    }

    fn on_outcome(&mut self, request: RequestId, outcome: Result<Answered, RequestError>) {
        if let Ok(waker) = self.waiting.answer(request, outcome) {
            self.answered += 1;
            self.wakers.extend(waker);
        }
    }

    fn on_session_event(&mut self, shared: &Arc<Shared>, event: Event) {
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
                shared.tell(NetEvent::Accepted { peer });
            }
            Event::Closed { session, peer, why } => {
                debug!(?session, ?peer, %why, "session closed");
                self.stand(session, |standing| standing.state = SessionState::Closed(why));
                self.sessions.remove(&session);
                shared.tell(NetEvent::Closed { peer, why });
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
            Event::Registered { id } => {
                info!(?id, "registered");
                shared.tell(NetEvent::Registered(id));
            }
            Event::Unregistered { id } => {
                info!(?id, "registration ended");
                shared.tell(NetEvent::Unregistered(id));
            }
            other => debug!(?other, "an event that this version has no use for"),
        }
    }

    fn stand(&self, session: SessionId, change: impl FnOnce(&mut Standing)) {
        if let Some(standing) = self.sessions.get(&session) {
            standing.send_modify(change);
        }
    }
}

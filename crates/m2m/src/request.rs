//! Requests of ours: built, sent, awaited.
use std::{
    future::{Future, IntoFuture, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use m2m_proto::{
    coap::{
        code::Code,
        content_format::ContentFormat,
        message::{FormatError, Message},
        option::OptionNumber,
        option_set::OptionSet,
        uri,
    },
    error::{CommandError, ConnectError, ErrorKind, RequestError},
    event::{RequestId, SessionId},
    net,
};

use crate::{
    Error, Session,
    arena::Arena,
    net::shared::{Awaited, Outcome, Shared, Waiter},
};

/// How long a request may take in all, if nothing else is said.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A request to be sent when it is awaited. Dropped while it is under way, it is given up; it may have run.
///
/// Made before the session is up, it waits until then and leaves with the first packet.
#[must_use = "a request is sent when it is awaited"]
pub struct RequestBuilder {
    session: Session,
    method: Code,
    target: String,
    options: OptionSet,
    payload: Bytes,
    timeout: Duration,
    confirmable: bool,
    repeatable: bool,
    /// Opaque data: its user knows of no method and no path.
    is_data: bool,
    /// The first thing that was wrong with what it was given.
    invalid: Option<Error>,
}

impl RequestBuilder {
    pub(crate) fn new(session: Session, method: Code, path: &str) -> RequestBuilder {
        let mut options = OptionSet::new();
        let invalid = uri::split_target(&mut options, path)
            .err()
            .map(|why| Error::caused(ErrorKind::Configuration, format!("{path}: {why}"), why));
        RequestBuilder {
            session,
            method,
            target: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
            options,
            payload: Bytes::new(),
            timeout: TIMEOUT,
            confirmable: true,
            repeatable: false,
            is_data: false,
            invalid,
        }
    }

    /// The body.
    pub fn payload(mut self, payload: impl Into<Bytes>) -> RequestBuilder {
        self.payload = payload.into();
        self
    }

    /// What the body is: the number of a Content-Format.
    pub fn format(self, format: u16) -> RequestBuilder {
        let format = u32::from(format);
        self.add(|options| options.set_uint(OptionNumber::CONTENT_FORMAT, format).map(|_| ()))
    }

    /// Another CoAP option.
    pub fn option(self, number: OptionNumber, value: impl AsRef<[u8]>) -> RequestBuilder {
        self.add(|options| options.add(number, value.as_ref()).map(|_| ()))
    }

    /// How long it may take from now to the answer, waiting for the session included. Default 30 s.
    pub fn timeout(mut self, timeout: Duration) -> RequestBuilder {
        self.timeout = timeout;
        self
    }

    /// Says that it may run twice: should the peer restart while it is open, it is sent again. GET, PUT, DELETE, FETCH
    /// and iPATCH are repeated anyway, for they do the same however often they run.
    pub fn repeatable(mut self) -> RequestBuilder {
        self.repeatable = true;
        self
    }

    /// Sends it once, without repetition: it may get lost (RFC 7252 section 4.3).
    pub fn non_confirmable(mut self) -> RequestBuilder {
        self.confirmable = false;
        self
    }

    fn add<E: std::error::Error + Send + Sync + 'static>(
        mut self,
        change: impl FnOnce(&mut OptionSet) -> Result<(), E>,
    ) -> RequestBuilder {
        if let Err(why) = change(&mut self.options) {
            let error = Error::caused(ErrorKind::Configuration, format!("{}: {why}", self.target), why);
            self.invalid.get_or_insert(error);
        }
        self
    }

    /// What is asked, as an error names it.
    fn name(&self) -> String {
        name(self.is_data, self.method, &self.target)
    }

    async fn send(self) -> Result<Response, Error> {
        if let Some(why) = &self.invalid {
            return Err(why.clone());
        }
        let mut pending = self.submit()?;
        let outcome = poll_fn(|cx| pending.poll(cx)).await;
        let asked = Asked {
            method: self.method,
            target: self.target,
            is_data: self.is_data,
            of: self.session.shared_name(),
        };
        match outcome {
            Some(Ok(Answered(Ok(parts)))) => Ok(Response::new(parts, asked)),
            Some(Ok(Answered(Err(why)))) => {
                let text = format!("{asked}: the answer is malformed: {why}");
                Err(Error::caused(ErrorKind::Refused, text, why))
            }
            Some(Err(why)) => {
                // A net of another id takes a handshake with a named one for somebody else's.
                let unanswered = why == RequestError::NotSent(ConnectError::Unreachable);
                let guess = if unanswered && asked.of.contains('@') { ", or another id there" } else { "" };
                Err(Error::caused(why.kind(), format!("{asked}: {why}{guess}"), why))
            }
            None => Err(Error::net_closed()),
        }
    }

    /// Gives the request to the machine.
    fn submit(&self) -> Result<Pending, Error> {
        let session = &self.session;
        let sent = session.shared().say(|state, now| {
            if state.check_open().is_err() {
                return Err(CommandError::Closed);
            }
            let id = state.wait(Waiter::Response(Awaited::Open(None)));
            let request = net::Request {
                code: self.method,
                options: &self.options,
                payload: &self.payload,
                confirmable: self.confirmable,
                repeatable: self.repeatable,
                deadline: now + self.timeout,
            };
            let sent = state.machine.request(now, session.id(), id, &request);
            sent.map(|()| id).inspect_err(|_| {
                state.forget(id);
            })
        });
        match sent {
            Ok(id) => {
                let shared = session.shared().clone();
                Ok(Pending { shared, session: session.id(), id, is_over: false })
            }
            Err(why) => Err(session.command_error(&self.name(), why)),
        }
    }
}

impl IntoFuture for RequestBuilder {
    type Output = Result<Response, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

/// Opaque data to be sent when it is awaited ([`Session::send`]).
#[must_use = "data is sent when it is awaited"]
pub struct DataBuilder(RequestBuilder);

impl DataBuilder {
    pub(crate) fn new(request: RequestBuilder) -> DataBuilder {
        DataBuilder(RequestBuilder { is_data: true, ..request })
    }

    /// How long it may take from now to the answer. Default 30 s.
    pub fn timeout(self, timeout: Duration) -> DataBuilder {
        DataBuilder(self.0.timeout(timeout))
    }
}

impl IntoFuture for DataBuilder {
    type Output = Result<Bytes, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async { Ok(self.0.await?.ok()?.payload) })
    }
}

/// A request under way; dropped before its answer, it is given up.
struct Pending {
    shared: Arc<Shared>,
    session: SessionId,
    id: RequestId,
    is_over: bool,
}

impl Pending {
    /// What came of it; none if the net is closed.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Outcome>> {
        let outcome = self.shared.look().poll_outcome(self.id, cx);
        self.is_over = outcome.is_ready();
        outcome
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        self.shared.with(|state, now| {
            if state.forget(self.id) {
                state.machine.cancel(now, self.session, self.id);
            }
        });
    }
}

/// What was asked, and of whom, for an error that may come of it.
#[derive(Clone)]
struct Asked {
    method: Code,
    target: String,
    is_data: bool,
    /// The peer as its user named it.
    of: Arc<str>,
}

impl std::fmt::Display for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} to {}", name(self.is_data, self.method, &self.target), self.of)
    }
}

fn name(is_data: bool, method: Code, target: &str) -> String {
    if is_data {
        return "data".to_owned();
    }
    let method = method.name().map_or_else(|| method.to_string(), str::to_owned);
    format!("{method} {target}")
}

/// An answer as it came, or why it can't be read.
pub(crate) struct Answered(Result<Parts, FormatError>);

struct Parts {
    code: Code,
    options: OptionSet,
    payload: Bytes,
}

impl Answered {
    pub(crate) fn read(message: &[u8], bodies: &mut Arena) -> Answered {
        Answered(Message::parse(message).map(|view| {
            let mut options = OptionSet::new();
            options.extend(view.options());
            Parts { code: view.code(), options, payload: bodies.keep(view.payload()) }
        }))
    }
}

/// The peer's answer, whatever its code.
#[derive(Clone)]
pub struct Response {
    /// 2.05 and the like; 4.xx and 5.xx are refusals.
    pub code: Code,
    /// The body.
    pub payload: Bytes,
    /// All options.
    pub options: OptionSet,
    /// To what it is the answer, for [`Response::ok`].
    asked: Asked,
}

impl Response {
    fn new(parts: Parts, asked: Asked) -> Response {
        let Parts { code, options, payload } = parts;
        Response { code, payload, options, asked }
    }

    /// Itself, or an error if the peer answered 4.xx or 5.xx.
    ///
    /// # Errors
    /// `Refused`, with the code, and the peer's words where it sent some.
    pub fn ok(self) -> Result<Response, Error> {
        if !m2m_proto::error::is_refusal(self.code) {
            return Ok(self);
        }
        let words =
            self.text().filter(|text| !text.is_empty()).map(|text| format!(": {text}")).unwrap_or_default();
        Err(Error::refused(self.code, format!("{}: {}{words}", self.asked, self.code)))
    }

    /// What the body is, where the peer said.
    pub fn format(&self) -> Option<ContentFormat> {
        format_of(&self.options)
    }

    /// The body as text, if it is UTF-8.
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.payload).ok()
    }
}

impl std::fmt::Debug for Response {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Response({:?}, {:?}, {} B)", self.code, self.options, self.payload.len())
    }
}

pub(crate) fn format_of(options: &OptionSet) -> Option<ContentFormat> {
    let value = m2m_proto::coap::option::decode_uint(options.get(OptionNumber::CONTENT_FORMAT)?)?;
    u16::try_from(value).ok().map(ContentFormat)
}

//! Requests of others: which handler answers which.
use std::{collections::HashMap, fmt, future::Future, sync::Arc};

use bytes::Bytes;
use m2m_proto::{
    coap::{
        code::Code,
        content_format::ContentFormat,
        message::Message,
        option::{OptionNumber, unknown_critical},
        option_set::OptionSet,
    },
    event::SessionId,
    id::Id,
};

use crate::{Session, arena::Arena, net::shared::Shared, request::format_of};

mod handler;
mod reply;

use handler::Handler;
pub(crate) use handler::{Running, Started};
pub(crate) use reply::Answer;
pub use reply::{IntoReply, Reply};

/// Critical options that are understood here. All others are refused with 4.02 (RFC 7252 section 5.4.1).
const KNOWN: &[OptionNumber] = &[
    OptionNumber::URI_HOST,
    OptionNumber::URI_PORT,
    OptionNumber::URI_PATH,
    OptionNumber::URI_QUERY,
    OptionNumber::ACCEPT,
];

/// Which handler answers which request. Handlers are async functions from a [`Request`] to an [`IntoReply`]; one that
/// panics is answered 5.00.
///
/// A handler runs where its request came in until it first waits for something, and goes on in a task of its own: so
/// it should not compute for long, nor block. One that took over a millisecond
/// several times in a row runs in tasks from then on.
///
/// ```
/// use m2m::{Request, Router};
/// let router = Router::new()
///     .get("/led", async |_: Request| "on")
///     .post("/led", async |request: Request| println!("{:?}", request.text()))
///     .data(async |request: Request| request.payload);
/// ```
#[derive(Default)]
pub struct Router {
    exact: HashMap<Vec<String>, Resource>,
    /// Those that were given with `/*` at the end, the longest first.
    below: Vec<(Vec<String>, Resource)>,
    data: Option<Arc<Handler>>,
}

#[derive(Default)]
struct Resource {
    methods: Vec<(Code, Arc<Handler>)>,
    any: Option<Arc<Handler>>,
}

impl Router {
    /// A router that answers everything with 4.04.
    pub fn new() -> Router {
        Router::default()
    }

    /// Answers GET of this path. A path that ends in `/*` stands for all below it.
    pub fn get<F, R>(self, path: &str, handler: F) -> Router
    where
        F: Fn(Request) -> R + Send + Sync + 'static,
        R: Future<Output: IntoReply> + Send + 'static,
    {
        self.method(Code::GET, path, handler)
    }

    /// Answers POST of this path.
    pub fn post<F, R>(self, path: &str, handler: F) -> Router
    where
        F: Fn(Request) -> R + Send + Sync + 'static,
        R: Future<Output: IntoReply> + Send + 'static,
    {
        self.method(Code::POST, path, handler)
    }

    /// Answers PUT of this path.
    pub fn put<F, R>(self, path: &str, handler: F) -> Router
    where
        F: Fn(Request) -> R + Send + Sync + 'static,
        R: Future<Output: IntoReply> + Send + 'static,
    {
        self.method(Code::PUT, path, handler)
    }

    /// Answers DELETE of this path.
    pub fn delete<F, R>(self, path: &str, handler: F) -> Router
    where
        F: Fn(Request) -> R + Send + Sync + 'static,
        R: Future<Output: IntoReply> + Send + 'static,
    {
        self.method(Code::DELETE, path, handler)
    }

    /// Answers FETCH of this path.
    pub fn fetch<F, R>(self, path: &str, handler: F) -> Router
    where
        F: Fn(Request) -> R + Send + Sync + 'static,
        R: Future<Output: IntoReply> + Send + 'static,
    {
        self.method(Code::FETCH, path, handler)
    }

    /// Answers PATCH of this path.
    pub fn patch<F, R>(self, path: &str, handler: F) -> Router
    where
        F: Fn(Request) -> R + Send + Sync + 'static,
        R: Future<Output: IntoReply> + Send + 'static,
    {
        self.method(Code::PATCH, path, handler)
    }

    /// Answers one method of this path, whichever it is. A second handler for the same replaces the first.
    pub fn method<F, R>(mut self, method: Code, path: &str, handler: F) -> Router
    where
        F: Fn(Request) -> R + Send + Sync + 'static,
        R: Future<Output: IntoReply> + Send + 'static,
    {
        let methods = &mut self.resource(path).methods;
        methods.retain(|(other, _)| *other != method);
        methods.push((method, Arc::new(Handler::new(handler))));
        self
    }

    /// Answers all methods of this path that have no handler of their own.
    pub fn any<F, R>(mut self, path: &str, handler: F) -> Router
    where
        F: Fn(Request) -> R + Send + Sync + 'static,
        R: Future<Output: IntoReply> + Send + 'static,
    {
        self.resource(path).any = Some(Arc::new(Handler::new(handler)));
        self
    }

    /// Answers opaque data: POST without a path.
    pub fn data<F, R>(mut self, handler: F) -> Router
    where
        F: Fn(Request) -> R + Send + Sync + 'static,
        R: Future<Output: IntoReply> + Send + 'static,
    {
        self.data = Some(Arc::new(Handler::new(handler)));
        self
    }

    fn resource(&mut self, path: &str) -> &mut Resource {
        let mut segments = segments(path);
        if segments.last().is_none_or(|last| last != "*") {
            return self.exact.entry(segments).or_default();
        }
        segments.pop();
        let at = match self.below.iter().position(|(prefix, _)| *prefix == segments) {
            Some(at) => at,
            None => {
                let at = self.below.partition_point(|(prefix, _)| prefix.len() > segments.len());
                self.below.insert(at, (segments, Resource::default()));
                at
            }
        };
        &mut self.below[at].1
    }

    fn handler(&self, method: Code, path: &[String]) -> Result<&Arc<Handler>, Code> {
        if method == Code::POST
            && path.is_empty()
            && let Some(data) = &self.data
        {
            return Ok(data);
        }
        let below =
            || self.below.iter().find(|(prefix, _)| path.starts_with(prefix)).map(|(_, resource)| resource);
        let resource = self.exact.get(path).or_else(below).ok_or(Code::NOT_FOUND)?;
        let named = resource.methods.iter().find(|(code, _)| *code == method).map(|(_, handler)| handler);
        named.or(resource.any.as_ref()).ok_or(Code::METHOD_NOT_ALLOWED)
    }

    /// Begins to answer one request, and ends that too if its handler waits for nothing. `from` is the session it came
    /// in, and its peer. Unless it may run `here`, its handler is left for a task.
    pub(crate) fn start(
        &self,
        shared: &Arc<Shared>,
        (session, peer): (SessionId, Id),
        message: &[u8],
        bodies: &mut Arena,
        here: bool,
    ) -> Started {
        let request = match Request::read(shared, session, peer, message, bodies) {
            Ok(request) => request,
            Err(answer) => return Started::Done(answer, None),
        };
        match self.handler(request.code, &request.path) {
            Ok(handler) => Running::start(handler, request, here),
            Err(code) => Started::Done(Answer::code(code), None),
        }
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.exact.keys().map(|path| path.join("/"))).finish()
    }
}

fn segments(path: &str) -> Vec<String> {
    let path = path.strip_prefix('/').unwrap_or(path);
    if path.is_empty() { Vec::new() } else { path.split('/').map(str::to_owned).collect() }
}

/// A request that came in.
#[derive(Clone)]
#[non_exhaustive]
pub struct Request {
    /// Who asks: the id that the peer claims. It proved to hold a key of this net, no more: whoever has the net key
    /// can claim any id. Only a pair key, which is good for one id, narrows it to one net.
    pub peer: Id,
    /// The method.
    pub code: Code,
    /// The path's segments, without escapes; none for the root.
    pub path: Vec<String>,
    /// The query's arguments, without escapes.
    pub query: Vec<String>,
    /// The body.
    pub payload: Bytes,
    /// What the body is, where the peer said.
    pub format: Option<ContentFormat>,
    /// All options.
    pub options: OptionSet,
    session: SessionId,
    shared: Arc<Shared>,
}

impl Request {
    fn read(
        shared: &Arc<Shared>,
        session: SessionId,
        peer: Id,
        message: &[u8],
        bodies: &mut Arena,
    ) -> Result<Request, Answer> {
        let view = Message::parse(message).map_err(|_| Answer::code(Code::BAD_REQUEST))?;
        if let Some(option) = unknown_critical(view.options(), KNOWN) {
            let proxy = matches!(option, OptionNumber::PROXY_URI | OptionNumber::PROXY_SCHEME);
            let code = if proxy { Code::PROXYING_NOT_SUPPORTED } else { Code::BAD_OPTION };
            return Err(Answer::words(code, &format!("{option} is not understood")));
        }
        let texts = |number: OptionNumber| -> Result<Vec<String>, Answer> {
            let values = view.options().filter(|option| option.number == number);
            values
                .map(|option| option.as_str().map(str::to_owned).ok_or(Answer::code(Code::BAD_OPTION)))
                .collect()
        };
        let (path, query) = (texts(OptionNumber::URI_PATH)?, texts(OptionNumber::URI_QUERY)?);
        let mut options = OptionSet::new();
        options.extend(view.options());
        Ok(Request {
            peer,
            code: view.code(),
            path,
            query,
            payload: bodies.keep(view.payload()),
            format: format_of(&options),
            options,
            session,
            shared: shared.clone(),
        })
    }

    /// The body as text, if it is UTF-8.
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.payload).ok()
    }

    /// The value of a query argument: `C` of `unit` in `?unit=C`.
    pub fn argument(&self, name: &str) -> Option<&str> {
        self.query.iter().find_map(|argument| argument.strip_prefix(name)?.strip_prefix('='))
    }

    /// The session that it came in, for requests to the one who asks; none if it has ended. Dropping it closes nothing.
    pub fn session(&self) -> Option<Session> {
        Session::look_at(&self.shared, self.session)
    }

    fn accept(&self) -> Option<ContentFormat> {
        let value = m2m_proto::coap::option::decode_uint(self.options.get(OptionNumber::ACCEPT)?)?;
        u16::try_from(value).ok().map(ContentFormat)
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} /{} from {:?}", self.code, self.path.join("/"), self.peer)
    }
}

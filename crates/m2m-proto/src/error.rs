//! The one list of error kinds that every face shows, and the three small families that raise them.
use core::fmt;

use crate::{
    coap::{code::Code, exchange::LineError},
    wire::frame::DoneStatus,
};

/// What went wrong, for every face: Rust kinds, C codes, Python exceptions, exit codes of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// No answer within the time given. The request ran at most once.
    Timeout,
    /// Nobody answered there: not running, unreachable, or another key.
    Unreachable,
    /// The host does not know the id: never registered, or not any more.
    UnknownPeer,
    /// The peer is there, but not with this key.
    AuthenticationFailed,
    /// The session ended while a request was open: it may have run.
    SessionLost,
    /// The peer or the host said no.
    Refused,
    /// Larger than what one message may carry.
    TooLarge,
    /// The caller's configuration or arguments cannot work.
    Configuration,
    /// The operating system said no.
    Io,
    /// The net or the session was closed on this side.
    Closed,
}

impl ErrorKind {
    /// One or two words, as the documents name the kind.
    pub fn name(self) -> &'static str {
        match self {
            ErrorKind::Timeout => "timeout",
            ErrorKind::Unreachable => "unreachable",
            ErrorKind::UnknownPeer => "unknown peer",
            ErrorKind::AuthenticationFailed => "authentication failed",
            ErrorKind::SessionLost => "session lost",
            ErrorKind::Refused => "refused",
            ErrorKind::TooLarge => "too large",
            ErrorKind::Configuration => "configuration",
            ErrorKind::Io => "io",
            ErrorKind::Closed => "closed",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A command that the machine cannot take. Nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandError {
    /// The handle names nothing that lives.
    Stale,
    /// The session is closing.
    Closed,
    /// The session's queue is full.
    QueueFull,
    /// The message is larger than one packet on this path takes.
    TooLarge {
        /// Bytes that the message has.
        len: usize,
        /// Bytes that it may have.
        max: usize,
    },
    /// The table of sessions is full.
    TableFull,
    /// The peer is to be reached by id, and no host is configured.
    NoHost,
    /// A net cannot open a session to itself.
    OwnId,
    /// A response's code in a request, or the other way round.
    WrongCode,
    /// The session is not up yet.
    NotUp,
    /// A net key that is too short or too long.
    BadKey,
    /// A secret for new keys has 16 to 64 bytes, not this many.
    SecretLength(usize),
}

impl CommandError {
    /// The kind that faces show.
    pub fn kind(self) -> ErrorKind {
        match self {
            CommandError::Stale | CommandError::Closed => ErrorKind::Closed,
            CommandError::TooLarge { .. } => ErrorKind::TooLarge,
            CommandError::QueueFull | CommandError::TableFull => ErrorKind::Refused,
            CommandError::NoHost
            | CommandError::OwnId
            | CommandError::WrongCode
            | CommandError::NotUp
            | CommandError::BadKey
            | CommandError::SecretLength(_) => ErrorKind::Configuration,
        }
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CommandError::Stale => write!(f, "that session or request has ended"),
            CommandError::Closed => write!(f, "the session is closed"),
            CommandError::QueueFull => {
                write!(f, "the session's queue is full: wait for answers before sending more")
            }
            CommandError::TooLarge { len, max } => {
                write!(f, "the message has {len} bytes, one packet on this path takes {max}")
            }
            CommandError::TableFull => {
                write!(f, "the table of sessions is full: close some, or raise the limit")
            }
            CommandError::NoHost => {
                write!(f, "to reach a peer by id a host is needed: configure one, or give the peer's address")
            }
            CommandError::OwnId => write!(f, "that is this net's own id"),
            CommandError::NotUp => write!(f, "the session is not up yet: wait until it is"),
            CommandError::BadKey => write!(f, "a net key has 16 to 64 bytes"),
            CommandError::WrongCode => write!(f, "that code belongs to another kind of message"),
            CommandError::SecretLength(len) => {
                write!(f, "a secret for new keys has 16 to 64 bytes, this has {len}")
            }
        }
    }
}

impl core::error::Error for CommandError {}

/// Why a handshake ended without a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectError {
    /// No answer, and nothing known about why.
    Unreachable,
    /// It is registered with the host, and answers neither us nor the host.
    Silent,
    /// The host is not reachable, so the peer's id cannot be found.
    HostUnreachable,
    /// The host knows no net of that id.
    UnknownPeer,
    /// The host says that the peer is online, and it leaves our handshakes unanswered.
    AuthenticationFailed,
    /// The peer did not prove to be the device that this net was told to expect.
    WrongDevice,
    /// The host refused to register this net, so it may not send through it.
    HostRefused,
    /// Closed from this side before it was up.
    Closed,
}

impl ConnectError {
    /// The kind that faces show.
    pub fn kind(self) -> ErrorKind {
        match self {
            ConnectError::Unreachable | ConnectError::Silent | ConnectError::HostUnreachable => {
                ErrorKind::Unreachable
            }
            ConnectError::UnknownPeer => ErrorKind::UnknownPeer,
            ConnectError::AuthenticationFailed | ConnectError::WrongDevice => ErrorKind::AuthenticationFailed,
            ConnectError::HostRefused => ErrorKind::Refused,
            ConnectError::Closed => ErrorKind::Closed,
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ConnectError::Unreachable => "no answer: not running, unreachable, or wrong key",
            ConnectError::Silent => {
                "the peer is registered but answers neither us nor its host: asleep, or just gone; try again later"
            }
            ConnectError::HostUnreachable => {
                "the host does not answer: not running, unreachable, or wrong host key"
            }
            ConnectError::UnknownPeer => {
                "the host knows no net of that id: is it running, and registered with this host?"
            }
            ConnectError::AuthenticationFailed => {
                "the peer is online but does not accept our key: check the peer's key"
            }
            ConnectError::WrongDevice => {
                "the peer did not prove that it has the pinned device key: another device has its net key, or it lost its \
                 state; compare the pin with the key that the device itself shows"
            }
            ConnectError::HostRefused => {
                "the host refused to register this net, so nothing can be sent through it"
            }
            ConnectError::Closed => "closed before the session was up",
        })
    }
}

impl core::error::Error for ConnectError {}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// This side closed it.
    Local,
    /// The peer closed it, with this code of `CLOSE`.
    Peer(u8),
    /// Pings stayed unanswered.
    Lost,
    /// The peer has been silent for longer than it said it would be.
    Idle,
    /// As many packets as one key may protect have gone.
    KeyLimit,
    /// It was to be opened anew, and the peer did not prove again to be the pinned device.
    WrongDevice,
    /// It was opened anew, and the peer answers, but does not say whether it remembers.
    NoVerdict,
    /// Its peer was registered here with a claim to its id that was taken from it.
    Unclaimed,
    /// The table was full and this session the longest silent.
    Evicted,
}

impl CloseReason {
    /// The kind that faces show to a request that was open when the session ended.
    pub fn kind(self) -> ErrorKind {
        match self {
            CloseReason::Local => ErrorKind::Closed,
            _ => ErrorKind::SessionLost,
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CloseReason::Local => write!(f, "closed here"),
            CloseReason::Peer(code) => {
                write!(f, "closed by the peer: {}", crate::wire::frame::CloseCode(*code))
            }
            CloseReason::Lost => write!(f, "the peer stopped answering"),
            CloseReason::Idle => write!(f, "nothing heard for too long"),
            CloseReason::KeyLimit => write!(f, "the keys have protected as many packets as they may"),
            CloseReason::WrongDevice => {
                write!(f, "the peer did not prove again that it has the pinned device key")
            }
            CloseReason::NoVerdict => {
                write!(f, "opened anew, and the peer does not say whether it remembers what was asked before")
            }
            CloseReason::Unclaimed => write!(f, "its id belongs to another device, or to none"),
            CloseReason::Evicted => write!(f, "made room for a newer session of the same net"),
        }
    }
}

impl From<LineError> for CommandError {
    fn from(why: LineError) -> CommandError {
        match why {
            LineError::QueueFull => CommandError::QueueFull,
            LineError::TooLarge => CommandError::TooLarge { len: 0, max: 0 },
            LineError::WrongCode => CommandError::WrongCode,
            LineError::UnknownRequest => CommandError::Stale,
        }
    }
}

/// Why a request got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// No answer in time; it ran at most once.
    TimedOut,
    /// The peer refused the message itself (RST).
    Reset,
    /// It never left: the session never came up.
    NotSent(ConnectError),
    /// The peer takes smaller packets than the request needs, which was not known when it was made. It did not run.
    TooLarge,
    /// The session ended before the request left: it did not run.
    NeverLeft(CloseReason),
    /// The session ended first; the request may have run.
    SessionLost(CloseReason),
    /// The peer lost its memory, and the request may have run before: its method is not idempotent, and it was not
    /// marked repeatable.
    PeerForgot,
    /// Its user gave it up.
    Cancelled,
}

impl RequestError {
    /// The kind that faces show.
    pub fn kind(self) -> ErrorKind {
        match self {
            RequestError::TimedOut => ErrorKind::Timeout,
            RequestError::Reset => ErrorKind::Refused,
            RequestError::TooLarge => ErrorKind::TooLarge,
            RequestError::NotSent(why) => why.kind(),
            RequestError::NeverLeft(why) | RequestError::SessionLost(why) => why.kind(),
            RequestError::PeerForgot => ErrorKind::SessionLost,
            RequestError::Cancelled => ErrorKind::Closed,
        }
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RequestError::TimedOut => write!(f, "no answer in time; it ran at most once"),
            RequestError::Reset => write!(f, "the peer could not process the message (RST)"),
            RequestError::NotSent(why) => write!(f, "not sent: {why}"),
            RequestError::TooLarge => {
                write!(f, "not sent: the peer takes smaller packets than this message needs")
            }
            RequestError::NeverLeft(why) => write!(f, "session lost: {why}; the request was not sent"),
            RequestError::SessionLost(why) => write!(f, "session lost: {why}; the request may have run"),
            RequestError::PeerForgot => {
                write!(f, "session lost: the peer restarted; the request may have run")
            }
            RequestError::Cancelled => write!(f, "given up by its user"),
        }
    }
}

impl core::error::Error for RequestError {}

/// Why a change of keys or tokens did not come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlError {
    /// The session never came up; nothing was sent.
    NotSent(ConnectError),
    /// The peer said no, with this status of `DONE`.
    Refused(u8),
    /// No answer in time; it may have happened.
    TimedOut,
    /// The session ended first; it may have happened.
    SessionLost(CloseReason),
}

impl ControlError {
    /// The kind that faces show.
    pub fn kind(self) -> ErrorKind {
        match self {
            ControlError::NotSent(why) => why.kind(),
            ControlError::Refused(status) if DoneStatus(status) == DoneStatus::WRONG_MAC => {
                ErrorKind::AuthenticationFailed
            }
            ControlError::Refused(_) => ErrorKind::Refused,
            ControlError::TimedOut => ErrorKind::Timeout,
            ControlError::SessionLost(why) => why.kind(),
        }
    }
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ControlError::NotSent(why) => write!(f, "not sent: {why}"),
            ControlError::Refused(status) => write!(f, "refused by the peer: {}", DoneStatus(*status)),
            ControlError::TimedOut => write!(f, "no answer in time; it may have happened"),
            ControlError::SessionLost(why) => write!(f, "session lost: {why}; it may have happened"),
        }
    }
}

impl core::error::Error for ControlError {}

/// True for codes that a face reports as a refusal by the peer (4.xx and 5.xx).
pub fn is_refusal(code: Code) -> bool {
    matches!(code.class(), 4 | 5)
}

//! What comes out of the machine: datagrams, events, questions to the store, the next timeout.
use alloc::vec::Vec;
use core::{fmt, net::SocketAddr};

use zeroize::Zeroizing;

use crate::{
    error::{CloseReason, ConnectError, ControlError, RequestError},
    id::Id,
    net::{Handed, Path},
    time::{Duration, Time},
    wire::frame::{FoundStatus, RegisterStatus},
};

/// A session of one net: slot and generation, so that a stale one names nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}.{}", self.slot, self.generation)
    }
}

/// A request that this net sent: chosen by the caller, given back with the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// A request that came in, to be answered with `Net::respond`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IncomingId {
    pub(crate) session: SessionId,
    pub(crate) exchange: crate::coap::exchange::IncomingId,
}

impl IncomingId {
    /// The session it came in.
    pub fn session(&self) -> SessionId {
        self.session
    }
}

/// What the driver has to do next. [`Output::Timeout`] is always the last one. Exhaustive on purpose: a driver that
/// overlooks a new kind should not compile.
#[derive(Debug)]
pub enum Output {
    /// Send these bytes there. Give the buffer back with `Net::recycle`.
    Datagram {
        /// Where to.
        to: SocketAddr,
        /// One UDP payload.
        bytes: Vec<u8>,
    },
    /// Tell the user.
    Event(Event),
    /// Ask the store of claims, durably, and bring the outcome back with `Net::claim_checked`.
    Claim(ClaimRequest),
    /// Keep this as the epoch that this net registered with last. No answer is waited for.
    SaveEpoch(u64),
    /// Keep this as the net's own key, durably, and bring the outcome back with `Net::key_stored`. A driver that can't
    /// answers with a failure.
    StoreKey(KeyToStore),
    /// This belongs to another shard of the same net: hand it there, to `Net::handle_handed`. Only a net of several
    /// shards ([`crate::config::Shard`]) gives any. One that can't be delivered goes back to `Net::handover_failed`.
    Handover {
        /// Which one; below `Shard::count`.
        shard: u8,
        /// What.
        handed: Handed,
    },
    /// Nothing left: come back at this instant, or earlier with a datagram or a command.
    Timeout(Time),
}

/// A net key that a holder of the one before sent (protocol, section 2).
pub struct KeyToStore {
    /// The session that it came in; goes back with the outcome.
    pub session: SessionId,
    /// The version of the new key.
    pub key_id: u16,
    /// The new key, 16 to 64 bytes.
    pub bytes: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for KeyToStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyToStore({:?}, version {}, {} bytes)", self.session, self.key_id, self.bytes.len())
    }
}

/// A claim to an id, to be checked against the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimRequest {
    /// The session that registers; goes back with the outcome.
    pub session: SessionId,
    /// The id that it claims.
    pub id: Id,
    /// The device key's public half; `None` for an ephemeral registration, which claims nothing and only asks whether the id is free.
    pub public: Option<[u8; 32]>,
    /// If nobody has claimed the id, this claim may be kept. Otherwise its source has made too many lately, and only a
    /// claim that is known already counts.
    pub may_be_new: bool,
}

/// What the store said of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimOutcome {
    /// It is theirs already. For an ephemeral one: nobody claimed the id.
    Held,
    /// Nobody had it: it is theirs from now on.
    New,
    /// Nobody has it, and it may not be kept now ([`ClaimRequest::may_be_new`]).
    NotNow,
    /// It belongs to another key.
    Taken {
        /// Since when, in unix seconds.
        since: u32,
    },
    /// Only listed keys may register here, and this is none of them.
    NotListed,
    /// The store could not keep it.
    Failed,
}

/// What the user learns.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A session that this net opened is up.
    Connected {
        /// Which one.
        session: SessionId,
        /// With whom: the id that the peer proved to hold the key of.
        peer: Id,
    },
    /// A session that this net tried to open did not come up. The handle is stale now.
    ConnectFailed {
        /// Which one.
        session: SessionId,
        /// Why.
        why: ConnectError,
    },
    /// A peer opened a session.
    Accepted {
        /// Which one.
        session: SessionId,
        /// Who.
        peer: Id,
    },
    /// A session was opened anew under its old handle: its peer had lost its memory, or was out of reach.
    Recovered {
        /// Which one.
        session: SessionId,
        /// With whom.
        peer: Id,
        /// The peer remembers what was said before: open requests went on where they were. Otherwise those that may
        /// not be repeated have failed, and requests of the peer that waited for an answer are gone.
        resumed: bool,
    },
    /// A session's packets leave for another place now: the peer has moved, and proved that it is there.
    Moved {
        /// Which one.
        session: SessionId,
        /// With whom.
        peer: Id,
        /// Where to.
        path: Path,
    },
    /// What came of `Net::rekey`, `Net::refresh_token` or `Net::set_remote_key`.
    ControlDone {
        /// The request that the command was given.
        request: RequestId,
        /// Done, or why not.
        result: Result<(), ControlError>,
    },
    /// A session ended. The handle is stale now.
    Closed {
        /// Which one.
        session: SessionId,
        /// With whom it was.
        peer: Id,
        /// Why.
        why: CloseReason,
    },
    /// A peer asks for something: answer with `Net::respond`.
    Request {
        /// What to answer to.
        incoming: IncomingId,
        /// Who asks.
        peer: Id,
        /// The CoAP message, valid by construction; give the buffer back with `Net::recycle`.
        message: Vec<u8>,
    },
    /// The answer to a request of ours.
    Response {
        /// Which request.
        request: RequestId,
        /// The CoAP message, valid by construction; give the buffer back with `Net::recycle`.
        message: Vec<u8>,
    },
    /// A request of ours got no answer.
    RequestFailed {
        /// Which request.
        request: RequestId,
        /// Why.
        why: RequestError,
    },
    /// The answer to `Net::ping`, or its absence.
    Pong {
        /// The request that `Net::ping` was given.
        request: RequestId,
        /// The round trip; `None` when none came in time.
        rtt: Option<Duration>,
    },
    /// The answer to `Net::lookup`.
    Found {
        /// The request that `Net::lookup` was given.
        request: RequestId,
        /// What the host said; `None` when no host answered in time.
        status: Option<FoundStatus>,
    },
    /// The net is registered with its host.
    HostConnected {
        /// The host.
        host: Id,
        /// This net's own address as the host sees it, once a pong told it.
        public: Option<SocketAddr>,
    },
    /// The session with the host was opened anew, under its old handle, and the net is registered again: the host had lost
    /// its memory, or was out of reach for a moment.
    HostRecovered {
        /// The host.
        host: Id,
        /// This net's own address as the host sees it, if it told that yet.
        public: Option<SocketAddr>,
    },
    /// The host stopped answering; the net tries again by itself. A driver should resolve the host's name anew now.
    HostDisconnected {
        /// The host.
        host: Id,
        /// What ended it.
        why: HostLoss,
    },
    /// The host refused to register this net.
    HostRefused {
        /// The host.
        host: Id,
        /// Its reason.
        status: RegisterStatus,
        /// For a claimed id: since when, in unix seconds.
        since: u32,
    },
    /// A registration with this host was made or renewed by a new session.
    Registered {
        /// Who.
        id: Id,
    },
    /// A registration with this host ended.
    Unregistered {
        /// Who.
        id: Id,
    },
}

/// What ended the session with a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostLoss {
    /// The handshake failed.
    Connect(ConnectError),
    /// The session ended.
    Session(CloseReason),
}

impl fmt::Display for HostLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostLoss::Connect(why) => why.fmt(f),
            HostLoss::Session(why) => why.fmt(f),
        }
    }
}

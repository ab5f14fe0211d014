//! What a net tells its user by itself: how it stands with its host, and what happens to sessions and registrations.
use std::{
    net::SocketAddr,
    time::{Duration, UNIX_EPOCH},
};

use m2m_proto::{error::CloseReason, id::Id, wire::frame::RegisterStatus};

use crate::session::Path;

/// How a net stands with its host.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostState {
    /// It has none.
    None,
    /// The first handshake or registration is under way.
    Connecting,
    /// Registered: peers find this net by its id.
    Connected {
        /// The host's id.
        host: Id,
        /// This net's own address as the host sees it, once known.
        public: Option<SocketAddr>,
    },
    /// The host does not answer. The net tries again by itself.
    Disconnected {
        /// What ended it.
        why: String,
    },
    /// The host refused the registration. The net tries again after a while, in case that changes.
    Refused {
        /// The host's reason, and what to do.
        why: String,
    },
}

/// Something that happened to a net.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NetEvent {
    /// A net registered here.
    Registered(Id),
    /// A registration here ended.
    Unregistered(Id),
    /// A peer opened a session.
    Accepted {
        /// Who.
        peer: Id,
    },
    /// A session ended.
    Closed {
        /// With whom it was.
        peer: Id,
        /// Why.
        why: CloseReason,
    },
    /// A session was opened anew: its peer had restarted, or was out of reach.
    Recovered {
        /// With whom.
        peer: Id,
        /// The peer still knew what was said before.
        resumed: bool,
    },
    /// A peer has moved: a session's packets leave for another place.
    Moved {
        /// With whom.
        peer: Id,
        /// Where to.
        path: Path,
    },
    /// This net is registered with its host; again, if the host had forgotten it and their session was opened anew.
    HostConnected {
        /// The host.
        host: Id,
        /// This net's own address as the host sees it, if it told that yet.
        public: Option<SocketAddr>,
    },
    /// The host stopped answering, or does not answer at all.
    HostDisconnected {
        /// The host.
        host: Id,
        /// What ended it.
        why: String,
    },
    /// A holder of this net's key has replaced it by another. The one before is honoured for a while.
    KeyChanged {
        /// The version of the new key.
        key_id: u16,
    },
    /// The host refused to register this net.
    HostRefused {
        /// The host.
        host: Id,
        /// Its reason, and what to do.
        why: String,
    },
}

/// A time of the host's in the form that people and machines read.
pub(super) fn date(unix: u32) -> impl std::fmt::Display {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(unix.into()))
}

/// A refusal in words, and what to do about it; `ephemeral` is a net whose id nobody knows.
pub(super) fn refusal(status: RegisterStatus, since: u32, ephemeral: bool) -> String {
    match status {
        RegisterStatus::CLAIMED => format!(
            "claimed by another key since {}: use the state folder of the device that holds this id, or another id; \
             or free it on the host with `m2m server claims forget ID`",
            date(since)
        ),
        RegisterStatus::STALE => {
            "another net keeps registering the same id: stop it, or give this one its own id".to_owned()
        }
        RegisterStatus::NO_REGISTRY => {
            "that net is no host: it keeps no registry. Is the host's address right?".to_owned()
        }
        RegisterStatus::FULL | RegisterStatus::STORE => format!("{status}: have its operator look at it"),
        RegisterStatus::REFUSED if ephemeral => format!(
            "{status}: that host takes listed devices only, and a random id is none: give --id with the id of a listed one, \
             and its key and state folder"
        ),
        RegisterStatus::REFUSED => format!(
            "{status}: the id is reserved, or that host takes listed devices only: have its operator list this one with \
             `m2m server claims pin ID DEVICE` (`m2m id` shows both)"
        ),
        _ => format!("{status}: have the host's operator look at it"),
    }
}

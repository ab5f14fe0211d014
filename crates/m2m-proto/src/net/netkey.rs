//! Changing a net key from afar (protocol, section 2): NETKEY, its mac, the store's word, and the grace of the old key.
//!
//! ```text
//!  holder of K_B                           net B
//!  set_remote_key ── NETKEY ──> on_netkey: allowed? mac? version? ── StoreKey ──> driver's disk
//!  ControlDone    <── DONE ──── answer     <── the key switches ──── key_stored <──┘
//! ```
//! Sessions that live have keys of their own and stay. New handshakes are tried under the new key and, for
//! `Timers::key_grace`, under the one before, so that whoever was not told yet is not locked out at once.
use alloc::{boxed::Box, vec::Vec};

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{Net, control::Ask};
use crate::{
    config::Config,
    error::{CommandError, ControlError},
    event::{Event, KeyToStore, Output, RequestId, SessionId},
    session::{
        handshake::{self, OpenedInit},
        keys::{NetKey, PairKey},
        pn::Pn,
    },
    time::Time,
    wire::{
        frame::{DoneStatus, Frame, KeyBytes, Req},
        packet::Init,
    },
};

/// After so many wrong macs in one session its NETKEYs are ignored.
const MAX_WRONG_MACS: u8 = 3;

/// Where a change of this net's own key stands.
pub(super) struct KeyChange {
    /// The key before this one, and until when it is honoured.
    previous: Option<(NetKey, Time)>,
    /// The one that is on its way to the disk.
    storing: Option<Storing>,
}

struct Storing {
    session: SessionId,
    req: Req,
    key_id: u16,
    key: NetKey,
}

/// What a NETKEY asks for.
pub(super) struct Change<'a> {
    pub(super) req: Req,
    /// The new version; 0 is whichever comes next.
    pub(super) key_id: u16,
    pub(super) mac: &'a [u8; 16],
    pub(super) key: &'a [u8],
}

/// A NETKEY of ours that waits for its answer.
pub(crate) struct Offer {
    key_id: u16,
    mac: [u8; 16],
    key: Zeroizing<Vec<u8>>,
}

impl Offer {
    pub(super) fn frame(&self, req: Req) -> Frame<'_> {
        let key = KeyBytes::new(&self.key).unwrap_or(KeyBytes::NONE);
        Frame::NetKey { req, key_id: self.key_id, mac: &self.mac, key }
    }
}

enum Verdict {
    Ignore,
    Answer(DoneStatus),
    Store(NetKey),
}

impl KeyChange {
    pub(super) fn new(config: &mut Config, now: Time) -> KeyChange {
        let previous = config.previous_key.take().map(|previous| (previous.key, now + previous.grace));
        KeyChange { previous, storing: None }
    }

    /// The key before this one, as long as it is honoured.
    fn previous(&mut self, now: Time) -> Option<&NetKey> {
        if self.previous.as_ref().is_some_and(|(_, until)| *until <= now) {
            self.previous = None;
        }
        self.previous.as_ref().map(|(key, _)| key)
    }
}

impl Net {
    /// Gives the peer of a session that is up a new net key. `current` is its key now, from which the mac is made;
    /// `key_id` the version of the new one, 0 for whichever comes next; `new_key` has 16 to 64 bytes of full entropy.
    /// What came of it is [`Event::ControlDone`]. This net's own key is untouched.
    pub fn set_remote_key(
        &mut self,
        now: Time,
        session: SessionId,
        id: RequestId,
        current: &NetKey,
        key_id: u16,
        new_key: &[u8],
    ) -> Result<(), CommandError> {
        if NetKey::new(new_key).is_err() {
            return Err(CommandError::BadKey);
        }
        let state = self.table.get_mut(session).ok_or(CommandError::Stale)?;
        if !state.is_open() {
            // Its peer may be another than the one that the key is meant for.
            return Err(CommandError::NotUp);
        }
        if state.control.queues.offer.is_some() || !state.control.ask(Ask::NetKey { user: id }, now) {
            return Err(CommandError::QueueFull);
        }
        let mac = current.change_mac(state.peer, key_id, new_key);
        let key = Zeroizing::new(Vec::from(new_key));
        state.control.queues.begin().offer = Some(Box::new(Offer { key_id, mac, key }));
        self.touch(session);
        Ok(())
    }

    /// The driver's answer to [`Output::StoreKey`]: if `ok`, the key is on the disk, and is this net's from now on.
    pub fn key_stored(&mut self, now: Time, session: SessionId, ok: bool) {
        let Some(storing) = self.key_change.storing.take_if(|storing| storing.session == session) else {
            return;
        };
        let status = if ok { DoneStatus::DONE } else { DoneStatus::NOT_STORED };
        if ok {
            let old = core::mem::replace(&mut self.config.key, storing.key);
            self.config.key_id = storing.key_id;
            self.key_change.previous = Some((old, now + self.config.timers.key_grace));
        }
        self.answer_netkey(session, storing.req, status);
    }

    /// Another shard of this net has taken a new key, which is on the disk: it is this one's too from now on. What was
    /// being stored here is void; whoever sent it sends it again.
    pub fn take_key(&mut self, now: Time, key_id: u16, key: NetKey) {
        self.key_change.storing = None;
        let old = core::mem::replace(&mut self.config.key, key);
        self.config.key_id = key_id;
        self.key_change.previous = Some((old, now + self.config.timers.key_grace));
    }

    pub(super) fn on_netkey(&mut self, now: Time, id: SessionId, change: &Change<'_>) {
        match self.judge_netkey(now, id, change) {
            Verdict::Ignore => {}
            Verdict::Answer(status) => self.answer_netkey(id, change.req, status),
            Verdict::Store(key) => {
                let key_id = match change.key_id {
                    0 => self.next_key_id(),
                    key_id => key_id,
                };
                let bytes = Zeroizing::new(Vec::from(change.key));
                self.key_change.storing = Some(Storing { session: id, req: change.req, key_id, key });
                self.outputs.push_back(Output::StoreKey(KeyToStore { session: id, key_id, bytes }));
            }
        }
    }

    fn judge_netkey(&mut self, now: Time, id: SessionId, change: &Change<'_>) -> Verdict {
        let Some(session) = self.table.get_mut(id) else { return Verdict::Ignore };
        if session.control.wrong_macs >= MAX_WRONG_MACS {
            return Verdict::Ignore;
        }
        if !self.config.allow_key_change {
            return Verdict::Answer(DoneStatus::NOT_ALLOWED);
        }
        let storing = self.key_change.storing.as_ref();
        if storing.is_some_and(|storing| storing.session == id && storing.req == change.req) {
            // The same question once more; the store has not answered yet.
            return Verdict::Ignore;
        }
        let is_busy = storing.is_some();
        if self.was_just_made(now, change) {
            return Verdict::Answer(DoneStatus::DONE);
        }
        let mac = self.config.key.change_mac(self.config.id, change.key_id, change.key);
        if !bool::from(mac.ct_eq(change.mac)) {
            if let Some(session) = self.table.get_mut(id) {
                session.control.wrong_macs += 1;
            }
            return Verdict::Answer(DoneStatus::WRONG_MAC);
        }
        if is_busy {
            return Verdict::Answer(DoneStatus::BUSY);
        }
        if change.key_id != 0 && change.key_id != self.next_key_id() {
            return Verdict::Answer(DoneStatus::WRONG_KEY_ID);
        }
        NetKey::new(change.key).map_or(Verdict::Answer(DoneStatus::BAD_KEY), Verdict::Store)
    }

    /// The answer to the change that was made last got lost, and its question comes again.
    fn was_just_made(&mut self, now: Time, change: &Change<'_>) -> bool {
        let (id, key_id) = (self.config.id, self.config.key_id);
        let Some(previous) = self.key_change.previous(now) else { return false };
        let mac = previous.change_mac(id, change.key_id, change.key);
        let is_current = NetKey::new(change.key).is_ok_and(|key| key.is_same(&self.config.key));
        (change.key_id == 0 || change.key_id == key_id) && is_current && bool::from(mac.ct_eq(change.mac))
    }

    /// Versions count from 1 once the first key was changed; 0 is left out when they wrap.
    fn next_key_id(&self) -> u16 {
        self.config.key_id.wrapping_add(1).max(1)
    }

    fn answer_netkey(&mut self, id: SessionId, req: Req, status: DoneStatus) {
        if let Some(session) = self.table.get_mut(id) {
            session.control.once(Frame::Done { req, status: status.0 });
        }
        self.touch(id);
    }

    pub(super) fn on_done(&mut self, now: Time, id: SessionId, req: Req, status: u8) {
        let Some(session) = self.table.get_mut(id) else { return };
        let Some(asked) = session.control.answered(req, |ask| matches!(ask, Ask::NetKey { .. })) else {
            return;
        };
        if let Some(secure) = session.secure.as_mut() {
            secure.answered(Pn(asked.first_pn));
        }
        session.was_answered(now);
        if let Ask::NetKey { user } = asked.what {
            session.control.withdraw_offer();
            let result =
                if status == DoneStatus::DONE.0 { Ok(()) } else { Err(ControlError::Refused(status)) };
            self.event(Event::ControlDone { request: user, result });
        }
    }

    /// Opens an INIT under this net's key, or under the one before while that is honoured. Its `key_id` decides
    /// nothing: an initiator need not know which version it holds.
    pub(super) fn open_init(&mut self, now: Time, init: &Init<'_>) -> Option<(OpenedInit, PairKey)> {
        let open = |key: &NetKey| {
            let pair = key.pair(init.src, init.dst);
            handshake::open_init(init, &pair).ok().map(|opened| (opened, pair))
        };
        open(&self.config.key).or_else(|| open(self.key_change.previous(now)?))
    }
}

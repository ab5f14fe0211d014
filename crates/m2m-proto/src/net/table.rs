//! Every session of a net: by slot, by token, by peer. Nothing here walks more than one peer's sessions.
use alloc::{boxed::Box, collections::BTreeMap, vec::Vec};

use hashbrown::HashMap;

use super::session::{Session, State};
use crate::{event::SessionId, id::Id, wire::packet::Token};

/// Tokens are our own random numbers, so the plainest hash will do: nobody else can choose them to collide.
#[derive(Clone, Copy, Default)]
pub(crate) struct TokenHash(u64);

impl core::hash::Hasher for TokenHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        }
    }

    fn write_u32(&mut self, n: u32) {
        self.0 = u64::from(n).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

#[derive(Default)]
struct Slot {
    generation: u32,
    session: Option<Box<Session>>,
}

/// The sessions of one net.
#[derive(Default)]
pub(crate) struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    tokens: HashMap<u32, u32, core::hash::BuildHasherDefault<TokenHash>>,
    /// The first session of each peer; the rest hang on `Session::next_of_peer`.
    peers: BTreeMap<Id, u32>,
    /// By the token that the peer chose, for hints. Peers could choose theirs to collide in a hash, or to be another's:
    /// of two with the same one the earlier is found.
    peer_tokens: BTreeMap<u32, u32>,
    half_open: usize,
    live: usize,
}

impl Table {
    pub(crate) fn len(&self) -> usize {
        self.live
    }

    pub(crate) fn half_open(&self) -> usize {
        self.half_open
    }

    /// A half-open one came up.
    pub(crate) fn confirmed(&mut self) {
        self.half_open = self.half_open.saturating_sub(1);
    }

    pub(crate) fn token_is_free(&self, token: Token) -> bool {
        !self.tokens.contains_key(&token.value())
    }

    pub(crate) fn by_token(&self, token: Token) -> Option<SessionId> {
        let slot = *self.tokens.get(&token.value())?;
        Some(SessionId { slot, generation: self.slots.get(slot as usize)?.generation })
    }

    /// The session whose packets bear this token.
    pub(crate) fn by_peer_token(&self, token: Token) -> Option<SessionId> {
        let slot = *self.peer_tokens.get(&token.value())?;
        Some(SessionId { slot, generation: self.slots.get(slot as usize)?.generation })
    }

    /// Notes which token the peer of a session chose, once that is known or new.
    pub(crate) fn index_peer_token(&mut self, id: SessionId) {
        if let Some(token) = self.get(id).and_then(|session| Some(session.secure.as_ref()?.peer_token())) {
            self.peer_tokens.entry(token.value()).or_insert(id.slot);
        }
    }

    /// Forgets it, before it changes.
    pub(crate) fn unindex_peer_token(&mut self, id: SessionId) {
        if let Some(token) = self.get(id).and_then(|session| Some(session.secure.as_ref()?.peer_token())) {
            self.forget_peer_token(token, id.slot);
        }
    }

    fn forget_peer_token(&mut self, token: Token, slot: u32) {
        if self.peer_tokens.get(&token.value()) == Some(&slot) {
            self.peer_tokens.remove(&token.value());
        }
    }

    /// Lets packets for a further token find a session; false if it has as many as it may.
    pub(crate) fn add_token(&mut self, id: SessionId, token: Token) -> bool {
        let Some(session) = self.get_mut(id) else { return false };
        let Some(place) = session.more_tokens.iter_mut().find(|place| place.is_none()) else { return false };
        *place = Some(token);
        self.tokens.insert(token.value(), id.slot);
        true
    }

    /// Forgets a token that [`Table::add_token`] made known, or that was the session's own before.
    pub(crate) fn drop_token(&mut self, id: SessionId, token: Token) {
        let Some(session) = self.get_mut(id) else { return };
        let Some(place) = session.more_tokens.iter_mut().find(|place| **place == Some(token)) else { return };
        *place = None;
        self.tokens.remove(&token.value());
    }

    /// Makes one of a session's further tokens its own; the one that it had becomes a further one.
    pub(crate) fn swap_token(&mut self, id: SessionId, token: Token) {
        let Some(session) = self.get_mut(id) else { return };
        if let Some(place) = session.more_tokens.iter_mut().find(|place| **place == Some(token)) {
            *place = Some(core::mem::replace(&mut session.own_token, token));
        }
    }

    /// As [`Table::swap_token`], and the one that it had means nothing any more.
    pub(crate) fn replace_token(&mut self, id: SessionId, token: Token) {
        let Some(old) = self.get(id).map(|session| session.own_token) else { return };
        self.swap_token(id, token);
        self.drop_token(id, old);
    }

    pub(crate) fn insert(&mut self, session: Session) -> SessionId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        self.tokens.insert(session.own_token.value(), slot);
        self.live += 1;
        self.half_open += usize::from(matches!(session.state, State::HalfOpen(_)));
        let mut session = Box::new(session);
        session.next_of_peer = self.peers.insert(session.peer, slot);
        let place = &mut self.slots[slot as usize];
        place.session = Some(session);
        SessionId { slot, generation: place.generation }
    }

    pub(crate) fn remove(&mut self, id: SessionId) -> Option<Box<Session>> {
        let place = self.slots.get_mut(id.slot as usize).filter(|place| place.generation == id.generation)?;
        let session = place.session.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(id.slot);
        for token in session.more_tokens.iter().flatten().chain([&session.own_token]) {
            self.tokens.remove(&token.value());
        }
        if let Some(token) = session.secure.as_ref().map(|secure| secure.peer_token()) {
            self.forget_peer_token(token, id.slot);
        }
        self.live -= 1;
        self.half_open -= usize::from(matches!(session.state, State::HalfOpen(_)));
        self.unlink(session.peer, id.slot, session.next_of_peer);
        Some(session)
    }

    /// The peer of a session turned out to be another (a handshake with "the net at this address").
    pub(crate) fn rename(&mut self, id: SessionId, peer: Id) {
        let Some(session) = self.get(id) else { return };
        let (old, next) = (session.peer, session.next_of_peer);
        self.unlink(old, id.slot, next);
        let first = self.peers.insert(peer, id.slot);
        if let Some(session) = self.get_mut(id) {
            session.peer = peer;
            session.next_of_peer = first;
        }
    }

    fn unlink(&mut self, peer: Id, slot: u32, next: Option<u32>) {
        let Some(first) = self.peers.get(&peer).copied() else { return };
        if first == slot {
            match next {
                Some(next) => self.peers.insert(peer, next),
                None => self.peers.remove(&peer),
            };
            return;
        }
        let mut at = first;
        while let Some(session) = self.slots.get_mut(at as usize).and_then(|place| place.session.as_mut()) {
            match session.next_of_peer {
                Some(after) if after == slot => {
                    session.next_of_peer = next;
                    return;
                }
                Some(after) => at = after,
                None => return,
            }
        }
    }

    pub(crate) fn get(&self, id: SessionId) -> Option<&Session> {
        let place = self.slots.get(id.slot as usize)?;
        place.session.as_deref().filter(|_| place.generation == id.generation)
    }

    pub(crate) fn get_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        let place = self.slots.get_mut(id.slot as usize)?;
        if place.generation == id.generation { place.session.as_deref_mut() } else { None }
    }

    /// The sessions with one peer, the newest first.
    pub(crate) fn of_peer(&self, peer: Id) -> impl Iterator<Item = (SessionId, &Session)> {
        let mut at = self.peers.get(&peer).copied();
        core::iter::from_fn(move || {
            let place = self.slots.get(at? as usize)?;
            let session = place.session.as_deref()?;
            let id = SessionId { slot: at?, generation: place.generation };
            at = session.next_of_peer;
            Some((id, session))
        })
    }

    /// Every session, for shutting down.
    pub(crate) fn all(&self) -> impl Iterator<Item = SessionId> {
        self.slots
            .iter()
            .enumerate()
            .filter(|(_, place)| place.session.is_some())
            .map(|(slot, place)| SessionId { slot: slot as u32, generation: place.generation })
    }
}

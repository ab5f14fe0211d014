//! Every session of a net: by slot, by token, by peer. Nothing here walks more than one peer's sessions.
//!
//! The indexes hold slots and no keys, which the sessions have themselves, and grow by an eighth where they can: a million
//! sessions take 45 bytes each here.
use alloc::{boxed::Box, vec::Vec};
use core::num::NonZeroU32;

use hashbrown::{HashMap, HashTable};

use super::{
    deadlines::{Deadlines, grow},
    session::{Session, SpareParts, State},
};
use crate::{
    event::SessionId,
    id::Id,
    relay::budget::{neighbour_key, token_key},
    wire::packet::Token,
};

/// A place in the table. Kept as one more than its index, so that none takes no more than one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot(NonZeroU32);

impl Slot {
    fn new(index: u32) -> Option<Slot> {
        NonZeroU32::new(index.wrapping_add(1)).map(Slot)
    }

    fn index(self) -> u32 {
        self.0.get() - 1
    }
}

/// The sessions of one net.
pub(crate) struct Table {
    sessions: Vec<Option<Box<Session>>>,
    free: Vec<u32>,
    /// By the token that is the session's own: a random number of ours, so the plainest hash will do, for nobody else can
    /// choose them to collide.
    tokens: HashTable<u32>,
    /// By the further tokens that few sessions have.
    more_tokens: HashMap<u32, u32, core::hash::BuildHasherDefault<TokenHash>>,
    /// The first session of each peer, by a hash with a secret; the rest hang on `Session::next_of_peer`.
    peers: HashTable<u32>,
    hash_secret: u64,
    /// By a hash with the secret of the token that the peer chose, for hints; only of those that a hint may come for. Peers
    /// could choose theirs to be another's: of two with the same one the earlier is found.
    peer_tokens: HashTable<u32>,
    /// What tells the next session from those that had its slot before.
    generation: u32,
    pub(crate) deadlines: Deadlines,
    half_open: usize,
    live: usize,
}

impl Table {
    /// An empty table. With the secret peers are told apart that would choose their ids to collide.
    pub(crate) fn new(hash_secret: u64) -> Table {
        Table {
            sessions: Vec::new(),
            free: Vec::new(),
            tokens: HashTable::new(),
            more_tokens: HashMap::default(),
            peers: HashTable::new(),
            hash_secret,
            peer_tokens: HashTable::new(),
            generation: 0,
            deadlines: Deadlines::default(),
            half_open: 0,
            live: 0,
        }
    }

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
        self.by_token(token).is_none()
    }

    pub(crate) fn by_token(&self, token: Token) -> Option<SessionId> {
        let is_it = |slot: &u32| at(&self.sessions, *slot).is_some_and(|session| session.own_token == token);
        let slot = self.tokens.find(token_hash(token), is_it);
        self.at(*slot.or_else(|| self.more_tokens.get(&token.value()))?).map(|(id, _)| id)
    }

    /// The session whose packets bear this token.
    pub(crate) fn by_peer_token(&self, token: Token) -> Option<SessionId> {
        let is_it = |slot: &u32| peer_token(&self.sessions, *slot) == Some(token);
        let slot = self.peer_tokens.find(token_key(token.value(), self.hash_secret), is_it)?;
        self.at(*slot).map(|(id, _)| id)
    }

    /// Notes which token the peer of a session chose, once that is known or new, if a hint may come for it.
    pub(crate) fn index_peer_token(&mut self, id: SessionId) {
        if self.get(id).is_none_or(|session| !session.rare.tails.is_there()) {
            return;
        }
        let Some(token) = peer_token(&self.sessions, id.slot) else { return };
        if self.by_peer_token(token).is_none() {
            let (sessions, secret) = (&self.sessions, self.hash_secret);
            self.peer_tokens.insert_unique(token_key(token.value(), secret), id.slot, |slot| {
                peer_token(sessions, *slot).map_or(0, |token| token_key(token.value(), secret))
            });
        }
    }

    /// Forgets it, before it changes.
    pub(crate) fn unindex_peer_token(&mut self, id: SessionId) {
        let Some(token) = self.get(id).and_then(|_| peer_token(&self.sessions, id.slot)) else { return };
        let hash = token_key(token.value(), self.hash_secret);
        if let Ok(place) = self.peer_tokens.find_entry(hash, |it| *it == id.slot) {
            place.remove();
        }
    }

    /// No hint can come any more for what left in a session.
    pub(super) fn forget_tails(&mut self, id: SessionId, spare: &mut SpareParts) {
        if self.get(id).is_some_and(|session| session.rare.tails.is_there()) {
            self.unindex_peer_token(id);
            if let Some(rare) = self.get_mut(id).and_then(|session| session.rare.get_mut()) {
                rare.tails.end(&mut spare.tails);
            }
        }
    }

    /// Lets packets for a further token find a session; false if it has as many as it may.
    pub(crate) fn add_token(&mut self, id: SessionId, token: Token) -> bool {
        let Some(session) = self.get_mut(id) else { return false };
        let Some(place) = session.rare.begin().more_tokens.iter_mut().find(|place| place.is_none()) else {
            return false;
        };
        *place = Some(token);
        self.more_tokens.insert(token.value(), id.slot);
        true
    }

    /// Forgets a token that [`Table::add_token`] made known, or that was the session's own before.
    pub(crate) fn drop_token(&mut self, id: SessionId, token: Token) {
        let Some(place) = self.get_mut(id).and_then(|session| session.further_token(token)) else { return };
        *place = None;
        self.more_tokens.remove(&token.value());
    }

    /// Makes one of a session's further tokens its own; the one that it had becomes a further one.
    pub(crate) fn swap_token(&mut self, id: SessionId, token: Token) {
        let Some(session) = self.get_mut(id) else { return };
        let old = session.own_token;
        let Some(place) = session.further_token(token) else { return };
        *place = Some(old);
        self.remove_own_token(old, id.slot);
        self.more_tokens.remove(&token.value());
        self.more_tokens.insert(old.value(), id.slot);
        if let Some(session) = self.get_mut(id) {
            session.own_token = token;
        }
        self.insert_own_token(token, id.slot);
    }

    /// As [`Table::swap_token`], and the one that it had means nothing any more.
    pub(crate) fn replace_token(&mut self, id: SessionId, token: Token) {
        let Some(old) = self.get(id).map(|session| session.own_token) else { return };
        self.swap_token(id, token);
        self.drop_token(id, old);
    }

    fn insert_own_token(&mut self, token: Token, slot: u32) {
        let sessions = &self.sessions;
        self.tokens.insert_unique(token_hash(token), slot, |slot| {
            at(sessions, *slot).map_or(0, |session| token_hash(session.own_token))
        });
    }

    fn remove_own_token(&mut self, token: Token, slot: u32) {
        if let Ok(place) = self.tokens.find_entry(token_hash(token), |it| *it == slot) {
            place.remove();
        }
    }

    pub(crate) fn insert(&mut self, mut session: Session) -> SessionId {
        let slot = self.free.pop().unwrap_or_else(|| {
            grow(&mut self.sessions, 1);
            self.sessions.push(None);
            (self.sessions.len() - 1) as u32
        });
        self.live += 1;
        self.half_open += usize::from(matches!(session.state, State::HalfOpen(_)));
        self.generation = self.generation.wrapping_add(1);
        session.generation = self.generation;
        let (token, peer, id) =
            (session.own_token, session.peer, SessionId { slot, generation: self.generation });
        if let Some(place) = self.sessions.get_mut(slot as usize) {
            *place = Some(Box::new(session));
        }
        self.insert_own_token(token, slot);
        self.link(peer, id);
        id
    }

    /// Takes a session out; what is secret in it stays where it lies until it is dropped.
    pub(crate) fn remove(&mut self, id: SessionId) -> Option<Box<Session>> {
        self.get(id)?;
        self.unindex_peer_token(id);
        let (token, peer, next) = self.get(id).map(|it| (it.own_token, it.peer, it.next_of_peer))?;
        self.deadlines.remove(id.slot);
        self.remove_own_token(token, id.slot);
        self.unlink(peer, id.slot, next);
        let session = self.sessions.get_mut(id.slot as usize)?.take()?;
        for token in session.rare.more_tokens.iter().flatten() {
            self.more_tokens.remove(&token.value());
        }
        self.free.push(id.slot);
        self.live -= 1;
        self.half_open -= usize::from(matches!(session.state, State::HalfOpen(_)));
        Some(session)
    }

    /// The peer of a session turned out to be another (a handshake with "the net at this address").
    pub(crate) fn rename(&mut self, id: SessionId, peer: Id) {
        let Some((old, next)) = self.get(id).map(|session| (session.peer, session.next_of_peer)) else {
            return;
        };
        self.unlink(old, id.slot, next);
        if let Some(session) = self.get_mut(id) {
            session.peer = peer;
        }
        self.link(peer, id);
    }

    fn first_of(&self, peer: Id) -> Option<u32> {
        let is_it = |slot: &u32| at(&self.sessions, *slot).is_some_and(|session| session.peer == peer);
        self.peers.find(neighbour_key(&peer, self.hash_secret), is_it).copied()
    }

    /// Makes a session the first of its peer's.
    fn link(&mut self, peer: Id, id: SessionId) {
        let first = self.first_of(peer);
        match first {
            Some(first) => self.replace_first(peer, first, id.slot),
            None => {
                let (sessions, secret) = (&self.sessions, self.hash_secret);
                self.peers.insert_unique(neighbour_key(&peer, secret), id.slot, |slot| {
                    at(sessions, *slot).map_or(0, |session| neighbour_key(&session.peer, secret))
                });
            }
        }
        if let Some(session) = self.get_mut(id) {
            session.next_of_peer = first.and_then(Slot::new);
        }
    }

    fn replace_first(&mut self, peer: Id, first: u32, new: u32) {
        let hash = neighbour_key(&peer, self.hash_secret);
        if let Some(place) = self.peers.find_mut(hash, |slot| *slot == first) {
            *place = new;
        }
    }

    fn unlink(&mut self, peer: Id, slot: u32, next: Option<Slot>) {
        let Some(first) = self.first_of(peer) else { return };
        if first == slot {
            match next {
                Some(next) => self.replace_first(peer, first, next.index()),
                None => {
                    let hash = neighbour_key(&peer, self.hash_secret);
                    if let Ok(place) = self.peers.find_entry(hash, |it| *it == slot) {
                        place.remove();
                    }
                }
            }
            return;
        }
        let mut at = first;
        while let Some(Some(session)) = self.sessions.get_mut(at as usize) {
            match session.next_of_peer.map(Slot::index) {
                Some(after) if after == slot => {
                    session.next_of_peer = next;
                    return;
                }
                Some(after) => at = after,
                None => return,
            }
        }
    }

    /// What is in a slot now.
    pub(crate) fn at(&self, slot: u32) -> Option<(SessionId, &Session)> {
        let session = at(&self.sessions, slot)?;
        Some((SessionId { slot, generation: session.generation }, session))
    }

    pub(crate) fn get(&self, id: SessionId) -> Option<&Session> {
        at(&self.sessions, id.slot).filter(|session| session.generation == id.generation)
    }

    pub(crate) fn get_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        let session = self.sessions.get_mut(id.slot as usize)?.as_deref_mut()?;
        if session.generation == id.generation { Some(session) } else { None }
    }

    /// The sessions with one peer, the newest first.
    pub(crate) fn of_peer(&self, peer: Id) -> impl Iterator<Item = (SessionId, &Session)> {
        let mut next = self.first_of(peer);
        core::iter::from_fn(move || {
            let (id, session) = self.at(next?)?;
            next = session.next_of_peer.map(Slot::index);
            Some((id, session))
        })
    }

    /// Every session, for shutting down.
    pub(crate) fn all(&self) -> impl Iterator<Item = SessionId> {
        (0..).zip(&self.sessions).filter_map(|(slot, session)| {
            Some(SessionId { slot, generation: session.as_deref()?.generation })
        })
    }
}

fn at(sessions: &[Option<Box<Session>>], slot: u32) -> Option<&Session> {
    sessions.get(slot as usize)?.as_deref()
}

fn peer_token(sessions: &[Option<Box<Session>>], slot: u32) -> Option<Token> {
    Some(at(sessions, slot)?.secure.as_ref()?.peer_token())
}

fn token_hash(token: Token) -> u64 {
    // The index comes from the low bits, a tag from the topmost: the product fills both.
    let product = u64::from(token.value()).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    product ^ product >> 32
}

/// As [`token_hash`] for a map.
#[derive(Clone, Copy, Default)]
pub(crate) struct TokenHash(u64);

impl core::hash::Hasher for TokenHash {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
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

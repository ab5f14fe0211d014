//! Which sessions keep their round keys: those that packets came in lately, by the clock algorithm. Round keys belong to
//! their session, so they are gone with it; what stands here is only whose turn it is to give them up.
use alloc::{boxed::Box, vec::Vec};

use super::{Net, table::Table};
use crate::{event::SessionId, session::Ciphers};

/// So many that were used since the hand came by are passed over before one has to go all the same.
const SECOND_CHANCES: usize = 8;

/// The warm sessions, in the order in which they became so.
pub(super) struct Warm {
    places: Vec<SessionId>,
    hand: usize,
    limit: usize,
}

impl Warm {
    pub(super) fn new(limit: usize) -> Warm {
        Warm { places: Vec::new(), hand: 0, limit }
    }

    /// A place for the round keys of `id`: a new one, or that of a session that didn't need its own lately.
    fn place(&mut self, table: &mut Table, id: SessionId) -> Option<Box<Ciphers>> {
        if self.places.len() < self.limit {
            self.places.push(id);
            return Some(Box::default());
        }
        for chance in 0..=SECOND_CHANCES {
            let at = self.hand;
            let place = self.places.get_mut(at)?;
            self.hand = (at + 1) % self.limit;
            // One that ended, or was opened anew, took its round keys along.
            let secure = table.get_mut(*place).and_then(|session| session.secure.as_mut());
            let Some(secure) = secure.filter(|secure| secure.has_ciphers()) else {
                *place = id;
                return Some(Box::default());
            };
            if let Some(ciphers) = secure.cool_down(chance < SECOND_CHANCES) {
                *place = id;
                return Some(ciphers);
            }
        }
        None
    }
}

impl Net {
    /// An authentic packet came in this session: its round keys are kept.
    pub(super) fn warm_up(&mut self, id: SessionId) {
        let secure = self.table.get_mut(id).and_then(|session| session.secure.as_mut());
        if secure.is_none_or(|secure| secure.is_warm()) {
            return;
        }
        let Some(place) = self.warm.place(&mut self.table, id) else { return };
        if let Some(secure) = self.table.get_mut(id).and_then(|session| session.secure.as_mut()) {
            secure.warm_up(place);
        }
    }
}

#[cfg(test)]
mod tests;

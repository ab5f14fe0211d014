//! What a session does without while it is at rest, in a box that goes round: a net with a million sessions at rest keeps
//! a few of them, and one that is busy asks for no memory.
use alloc::{boxed::Box, vec::Vec};
use core::ops::Deref;

/// Boxes kept for the next sessions that need one.
const SPARE: usize = 64;

/// Something that is empty most of the time.
pub(crate) trait Rest: Default + 'static {
    /// An empty one to look at.
    fn at_rest() -> &'static Self;

    /// True if nothing would be lost with it.
    fn is_at_rest(&self) -> bool;
}

/// Reads as empty while there is no memory for it.
pub(crate) struct Lazy<T>(Option<Box<T>>);

/// Boxes of those that came to rest.
pub(super) struct Spare<T>(Vec<Box<T>>);

impl<T> Lazy<T> {
    /// An empty one.
    pub(crate) const NONE: Lazy<T> = Lazy(None);
}

impl<T: Rest> Lazy<T> {
    /// To be changed, if there is anything in it.
    pub(crate) fn get_mut(&mut self) -> Option<&mut T> {
        self.0.as_deref_mut()
    }

    /// To be written to, which may take memory.
    pub(crate) fn begin(&mut self) -> &mut T {
        self.0.get_or_insert_default()
    }

    /// As [`Lazy::begin`], where packets in steady state come by.
    pub(super) fn begin_with(&mut self, spare: &mut Spare<T>) -> &mut T {
        self.0.get_or_insert_with(|| spare.0.pop().unwrap_or_default())
    }

    /// True while there is memory for it.
    pub(super) fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// Empties it and gives the memory back.
    pub(super) fn end(&mut self, spare: &mut Spare<T>) {
        if let Some(there) = self.get_mut() {
            *there = T::default();
        }
        self.settle(spare);
    }

    /// Gives the memory back if nothing is in it.
    pub(super) fn settle(&mut self, spare: &mut Spare<T>) {
        if let Some(rested) = self.0.take_if(|it| it.is_at_rest())
            && spare.0.len() < SPARE
        {
            spare.0.push(rested);
        }
    }
}

impl<T: Rest> Deref for Lazy<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.0 {
            Some(there) => there,
            None => T::at_rest(),
        }
    }
}

impl<T> Default for Lazy<T> {
    fn default() -> Lazy<T> {
        Lazy(None)
    }
}

impl<T> Default for Spare<T> {
    fn default() -> Spare<T> {
        Spare(Vec::new())
    }
}

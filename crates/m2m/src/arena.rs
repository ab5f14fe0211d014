//! Where the bodies of messages live while their users hold them: many in one piece of memory, which is used again
//! once all of them are gone.
use bytes::{Bytes, BytesMut};

/// One piece of memory. A body that is kept keeps all of it.
const CHUNK: usize = 8 << 10;

/// Makes [`Bytes`] of borrowed bytes, without asking for memory each time.
#[derive(Default)]
pub(crate) struct Arena(BytesMut);

impl Arena {
    /// Begins anew with the present piece, if nobody holds anything of it.
    pub(crate) fn reuse(&mut self) {
        if self.0.capacity() < CHUNK {
            // Otherwise the rest is used first.
            let _ = self.0.try_reclaim(CHUNK);
        }
    }

    pub(crate) fn keep(&mut self, bytes: &[u8]) -> Bytes {
        if bytes.is_empty() {
            return Bytes::new();
        }
        if self.0.capacity() < bytes.len() {
            self.0.reserve(bytes.len().max(CHUNK));
        }
        self.0.extend_from_slice(bytes);
        self.0.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_same_memory_again() {
        let mut arena = Arena::default();
        let first = arena.keep(b"one");
        let place = first.as_ptr();
        assert_eq!(&arena.keep(b"two")[..], b"two");
        drop(first);
        arena.reuse();
        assert_eq!(arena.keep(b"three").as_ptr(), place);
    }

    #[test]
    fn what_is_held_stays_as_it_is() {
        let mut arena = Arena::default();
        let held = arena.keep(&[1; 100]);
        for _ in 0..1000 {
            arena.reuse();
            arena.keep(&[2; 100]);
        }
        assert_eq!(held, [1; 100][..]);
    }
}

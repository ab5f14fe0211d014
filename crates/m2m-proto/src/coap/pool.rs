//! Buffers that go round, so that a line in steady use allocates nothing.
use alloc::vec::Vec;

/// Sizes of buffers in bytes: small messages, of which a busy session keeps hundreds, larger ones, and whole packets.
const SIZES: [usize; 3] = [128, 512, 1232];

/// Emptied buffers to take again, by their size. One serves all lines of a net: an idle line then holds none.
#[derive(Debug)]
pub struct Pool {
    free: [Vec<Vec<u8>>; SIZES.len()],
    limit: usize,
}

impl Pool {
    /// Buffers with a larger capacity than this, in bytes, are freed instead of kept: one large message must not
    /// leave its size behind in each of them.
    pub const MAX_CAPACITY: usize = 2048;

    /// A pool that keeps at most `limit` buffers of each size.
    pub const fn new(limit: usize) -> Pool {
        Pool { free: [const { Vec::new() }; SIZES.len()], limit }
    }

    /// An empty buffer with room for `len` bytes, and for up to four times as many: who keeps it for long keeps little
    /// more than it needs.
    pub fn take(&mut self, len: usize) -> Vec<u8> {
        for (free, size) in self.free.iter_mut().zip(SIZES) {
            if len <= size {
                return free.pop().unwrap_or_else(|| Vec::with_capacity(size));
            }
        }
        Vec::with_capacity(len)
    }

    /// Gives a buffer back.
    pub fn give(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() > Pool::MAX_CAPACITY {
            return;
        }
        for (free, size) in self.free.iter_mut().zip(SIZES).rev() {
            if buffer.capacity() >= size {
                if free.len() < self.limit {
                    buffer.clear();
                    free.push(buffer);
                }
                return;
            }
        }
    }

    /// Buffers that wait to be taken.
    pub fn len(&self) -> usize {
        self.free.iter().map(Vec::len).sum()
    }

    /// True if the next buffer will be a new one.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    #[test]
    fn gives_the_same_memory_again() {
        let mut pool = Pool::new(2);
        let mut buffer = pool.take(3);
        buffer.extend_from_slice(&[1, 2, 3]);
        let place = buffer.as_ptr();
        pool.give(buffer);
        let again = pool.take(100);
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
        assert!(pool.is_empty());
    }

    #[test]
    fn keeps_few_and_small_ones() {
        let mut pool = Pool::new(2);
        (0..3).for_each(|_| pool.give(vec![0; 130]));
        assert_eq!(pool.len(), 2);
        let mut pool = Pool::new(2);
        pool.give(vec![0; Pool::MAX_CAPACITY + 1]);
        pool.give(vec![0; 100]);
        assert!(pool.is_empty());
    }

    #[test]
    fn who_takes_little_gets_little() {
        let mut pool = Pool::new(2);
        let whole = pool.take(1200);
        pool.give(whole);
        assert!(pool.take(60).capacity() < 512);
        assert_eq!(pool.len(), 1);
        assert!(pool.take(600).capacity() >= 1200);
        assert!(pool.take(5000).capacity() >= 5000);
    }
}

//! Buffers that go round, so that a line in steady use allocates nothing.
use alloc::vec::Vec;

/// Emptied buffers to take again. One serves all lines of a net: an idle line then holds none.
#[derive(Debug)]
pub struct Pool {
    free: Vec<Vec<u8>>,
    limit: usize,
}

impl Pool {
    /// Buffers with a larger capacity than this, in bytes, are freed instead of kept: one large message must not
    /// leave its size behind in each of them.
    pub const MAX_CAPACITY: usize = 2048;

    /// A pool that keeps at most `limit` buffers.
    pub const fn new(limit: usize) -> Pool {
        Pool { free: Vec::new(), limit }
    }

    /// An empty buffer.
    pub fn take(&mut self) -> Vec<u8> {
        self.free.pop().unwrap_or_default()
    }

    /// Gives a buffer back.
    pub fn give(&mut self, mut buffer: Vec<u8>) {
        if self.free.len() >= self.limit || buffer.capacity() == 0 || buffer.capacity() > Pool::MAX_CAPACITY {
            return;
        }
        buffer.clear();
        self.free.push(buffer);
    }

    /// Buffers that wait to be taken.
    pub fn len(&self) -> usize {
        self.free.len()
    }

    /// True if the next buffer will be a new one.
    pub fn is_empty(&self) -> bool {
        self.free.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    #[test]
    fn gives_the_same_memory_again() {
        let mut pool = Pool::new(2);
        let buffer = vec![1, 2, 3];
        let place = buffer.as_ptr();
        pool.give(buffer);
        let again = pool.take();
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
        assert!(pool.is_empty());
    }

    #[test]
    fn keeps_few_and_small_ones() {
        let mut pool = Pool::new(2);
        (0..3).for_each(|_| pool.give(vec![0; 10]));
        assert_eq!(pool.len(), 2);
        let mut pool = Pool::new(2);
        pool.give(vec![0; Pool::MAX_CAPACITY + 1]);
        pool.give(Vec::new());
        assert!(pool.is_empty());
    }
}

//! What happened in a run: always as one number, and as lines if someone is going to read them.
use std::{collections::VecDeque, fmt};

use m2m_proto::time::Time;

/// The record of a run.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    lines: Option<VecDeque<String>>,
    most: usize,
}

impl Default for Trace {
    fn default() -> Trace {
        // FNV-1a's offset basis and, below, its prime: any mixing does that depends on every byte and on the order.
        Trace { hash: 0xCBF2_9CE4_8422_2325, lines: None, most: 0 }
    }
}

impl Trace {
    /// Keeps the last so many lines from now on. Without it a line costs nothing.
    pub fn keep_lines(&mut self, most: usize) {
        (self.lines, self.most) = (Some(VecDeque::new()), most);
    }

    /// Two runs with the same hash did the same, byte for byte.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Takes bytes into the hash.
    pub fn mix(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix_number(u64::from_le_bytes(word));
        }
        self.mix_number(bytes.len() as u64);
    }

    /// Takes a number into the hash.
    pub fn mix_number(&mut self, number: u64) {
        self.hash = (self.hash ^ number).wrapping_mul(0x0000_0100_0000_01B3).rotate_left(23);
    }

    /// Adds a line, if lines are kept.
    pub fn line(&mut self, now: Time, words: fmt::Arguments<'_>) {
        let Some(lines) = &mut self.lines else { return };
        if lines.len() >= self.most {
            lines.pop_front();
        }
        lines.push_back(format!("{now:?} {words}"));
    }

    /// The last lines, oldest first.
    pub fn lines(&self) -> Vec<String> {
        self.lines.iter().flatten().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_depends_on_bytes_and_on_their_order() {
        let hash = |parts: &[&[u8]]| {
            let mut trace = Trace::default();
            parts.iter().for_each(|part| trace.mix(part));
            trace.hash()
        };
        let whole = hash(&[b"ab", b"cd"]);
        assert_eq!(whole, hash(&[b"ab", b"cd"]));
        for other in [hash(&[b"cd", b"ab"]), hash(&[b"abcd"]), hash(&[b"ab", b"ce"]), hash(&[])] {
            assert_ne!(whole, other);
        }
    }

    #[test]
    fn only_the_last_lines_stay_and_none_unless_asked_for() {
        let mut trace = Trace::default();
        trace.line(Time::ZERO, format_args!("unheard"));
        assert!(trace.lines().is_empty());
        trace.keep_lines(60);
        (0..65).for_each(|n| trace.line(Time::ZERO, format_args!("line {n}")));
        let lines = trace.lines();
        assert_eq!(lines.len(), 60);
        assert!(lines[0].ends_with("line 5"), "{}", lines[0]);
    }
}

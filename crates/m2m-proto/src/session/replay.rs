//! The replay window (RFC 6479's idea on one word): which packet numbers have been opened already.
//!
//! Read before a packet is opened, moved only after it proved authentic, so that a forger can't move it.
use super::pn::Pn;

/// The last [`Window::LEN`] packet numbers of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Window {
    newest: u64,
    /// Bit n stands for `newest - n`; two words, because a `u128` would align the session to 16 bytes. No bit is
    /// set until the first packet.
    seen: [u64; 2],
}

/// Whether a number may still be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is inside the window, or ahead of it, and was not marked.
    Fresh,
    /// It was marked.
    Duplicate,
    /// It fell out of the window: it may have been marked or not.
    TooOld,
}

impl Window {
    /// How far behind the newest a packet may come in.
    pub const LEN: u64 = 128;

    /// Judges a number and changes nothing. Ask before opening the packet.
    pub fn check(&self, pn: Pn) -> Verdict {
        let seen = self.bits();
        if pn.0 > self.newest || seen == 0 {
            return Verdict::Fresh;
        }
        match self.newest - pn.0 {
            behind if behind >= Self::LEN => Verdict::TooOld,
            behind if seen >> behind & 1 == 1 => Verdict::Duplicate,
            _ => Verdict::Fresh,
        }
    }

    /// Remembers the number of a packet that was opened. A number that is no longer in the window changes nothing.
    pub fn mark(&mut self, pn: Pn) {
        let seen = self.bits();
        if pn.0 > self.newest {
            let ahead = pn.0 - self.newest;
            let kept = if ahead < Self::LEN { seen << ahead } else { 0 };
            self.newest = pn.0;
            self.set_bits(kept | 1);
        } else if self.newest - pn.0 < Self::LEN {
            self.set_bits(seen | 1 << (self.newest - pn.0));
        }
    }

    /// The highest number marked; none before the first.
    pub fn newest(&self) -> Option<Pn> {
        (self.bits() != 0).then_some(Pn(self.newest))
    }

    fn bits(&self) -> u128 {
        u128::from(self.seen[1]) << 64 | u128::from(self.seen[0])
    }

    fn set_bits(&mut self, bits: u128) {
        self.seen = [bits as u64, (bits >> 64) as u64];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn starts_with_nothing_seen() {
        let mut window = Window::default();
        assert_eq!(window.newest(), None);
        assert_eq!(window.check(Pn(0)), Verdict::Fresh);
        window.mark(Pn(0));
        assert_eq!(window.newest(), Some(Pn(0)));
        assert_eq!(window.check(Pn(0)), Verdict::Duplicate);
    }

    #[test]
    fn holds_128_numbers() {
        let mut window = Window::default();
        window.mark(Pn(1000));
        assert_eq!(window.check(Pn(873)), Verdict::Fresh);
        assert_eq!(window.check(Pn(872)), Verdict::TooOld);
        window.mark(Pn(873));
        assert_eq!(window.check(Pn(873)), Verdict::Duplicate);
        window.mark(Pn(1001));
        assert_eq!(window.check(Pn(873)), Verdict::TooOld);
        window.mark(Pn(5));
        assert_eq!(window.newest(), Some(Pn(1001)), "what is too old moves nothing");
    }

    #[test]
    fn jumps_to_the_last_number() {
        let mut window = Window::default();
        window.mark(Pn(3));
        window.mark(Pn(u64::MAX));
        assert_eq!(window.check(Pn(u64::MAX)), Verdict::Duplicate);
        assert_eq!(window.check(Pn(u64::MAX - 1)), Verdict::Fresh);
        assert_eq!(window.check(Pn(3)), Verdict::TooOld);
    }

    proptest! {
        /// Against a model that forgets nothing.
        #[test]
        fn agrees_with_a_set(start: u64, steps in prop::collection::vec(-150i64..150, 1..400)) {
            let mut window = Window::default();
            let mut model = BTreeSet::new();
            let mut at = start;
            for step in steps {
                at = at.saturating_add_signed(step);
                let newest = model.last().copied().unwrap_or(0);
                let expected = match () {
                    () if model.contains(&at) && newest - at < Window::LEN => Verdict::Duplicate,
                    () if !model.is_empty() && newest.saturating_sub(at) >= Window::LEN => Verdict::TooOld,
                    () => Verdict::Fresh,
                };
                prop_assert_eq!(window.check(Pn(at)), expected);
                if expected == Verdict::Fresh {
                    window.mark(Pn(at));
                    model.insert(at);
                }
            }
        }
    }
}

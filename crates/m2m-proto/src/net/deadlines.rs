//! When each session has something to do: one entry each in a binary heap that knows where every session's entry stands, so
//! that a deadline that comes nearer moves its entry instead of leaving an old one behind.
use alloc::vec::Vec;

use crate::time::Time;

/// 12 bytes, since every session has one: in the order of times, then of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    micros: [u32; 2],
    slot: u32,
}

impl Entry {
    fn new(time: Time, slot: u32) -> Entry {
        let micros = time.as_micros();
        Entry { micros: [(micros >> 32) as u32, micros as u32], slot }
    }

    fn time(self) -> Time {
        let [high, low] = self.micros;
        Time::from_micros(u64::from(high) << 32 | u64::from(low))
    }
}

/// Deadlines of the sessions of a table, by slot.
#[derive(Default)]
pub(crate) struct Deadlines {
    /// No entry is smaller than the one above it: those below entry n are 2n + 1 and 2n + 2.
    heap: Vec<Entry>,
    /// By slot: one more than the index in the heap; 0 for none.
    places: Vec<u32>,
}

impl Deadlines {
    /// The nearest of all; [`Time::NEVER`] without any.
    pub(crate) fn first(&self) -> Time {
        self.heap.first().map_or(Time::NEVER, |entry| entry.time())
    }

    /// Has a slot's turn come at `time`, unless it comes earlier already.
    pub(crate) fn bring_forward(&mut self, slot: u32, time: Time) {
        match self.index(slot) {
            Some(index) if self.heap.get(index).is_some_and(|entry| time < entry.time()) => {
                self.rise(index, Entry::new(time, slot));
            }
            Some(_) => {}
            None if time == Time::NEVER => {}
            None => {
                let missing = (slot as usize + 1).saturating_sub(self.places.len());
                grow(&mut self.places, missing);
                self.places.extend((0..missing).map(|_| 0));
                grow(&mut self.heap, 1);
                self.heap.push(Entry::new(time, slot));
                self.rise(self.heap.len() - 1, Entry::new(time, slot));
            }
        }
    }

    /// The next slot whose time has come, which has none any more then.
    pub(crate) fn pop_due(&mut self, now: Time) -> Option<u32> {
        let first = self.heap.first().filter(|entry| entry.time() <= now)?.slot;
        self.remove(first);
        Some(first)
    }

    /// A slot has nothing to do any more.
    pub(crate) fn remove(&mut self, slot: u32) {
        let Some(index) = self.index(slot) else { return };
        self.places[slot as usize] = 0;
        let Some(last) = self.heap.pop() else { return };
        if last.slot == slot {
            return;
        }
        // The last entry takes the place that became free, and goes on from there to where it belongs.
        if index > 0 && self.heap.get((index - 1) / 2).is_some_and(|above| last < *above) {
            self.rise(index, last);
        } else {
            self.sink(index, last);
        }
    }

    fn index(&self, slot: u32) -> Option<usize> {
        (*self.places.get(slot as usize)? as usize).checked_sub(1)
    }

    fn put(&mut self, index: usize, entry: Entry) {
        self.heap[index] = entry;
        self.places[entry.slot as usize] = index as u32 + 1;
    }

    fn rise(&mut self, mut index: usize, entry: Entry) {
        while index > 0 {
            let above = (index - 1) / 2;
            let other = self.heap[above];
            if other <= entry {
                break;
            }
            self.put(index, other);
            index = above;
        }
        self.put(index, entry);
    }

    fn sink(&mut self, mut index: usize, entry: Entry) {
        loop {
            let (left, right) = (2 * index + 1, 2 * index + 2);
            let Some(mut other) = self.heap.get(left).copied() else { break };
            let mut below = left;
            if let Some(more) = self.heap.get(right).filter(|more| **more < other) {
                (below, other) = (right, *more);
            }
            if entry <= other {
                break;
            }
            self.put(index, other);
            index = below;
        }
        self.put(index, entry);
    }
}

/// Makes room for so many more, by an eighth at least: a million sessions must not take twice what they need.
pub(super) fn grow<T>(list: &mut Vec<T>, more: usize) {
    if list.capacity() - list.len() < more {
        list.reserve_exact(more.max(list.len() / 8 + 4));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// Against a map that is searched through each time.
        #[test]
        fn agrees_with_a_map(steps in prop::collection::vec((0u8..8, 0u32..40, 0u64..1 << 40), 1..400)) {
            let (mut deadlines, mut model) = (Deadlines::default(), BTreeMap::new());
            for (kind, slot, micros) in steps {
                let time = Time::from_micros(micros);
                match kind {
                    0 => {
                        deadlines.remove(slot);
                        model.remove(&slot);
                    }
                    1 => {
                        let first = model.iter().map(|(slot, at)| (*at, *slot)).min();
                        let due = first.filter(|(at, _)| *at <= time).map(|(_, slot)| slot);
                        prop_assert_eq!(deadlines.pop_due(time), due);
                        due.map(|slot| model.remove(&slot));
                    }
                    _ => {
                        deadlines.bring_forward(slot, time);
                        let at = model.entry(slot).or_insert(time);
                        *at = time.min(*at);
                    }
                }
                prop_assert_eq!(deadlines.first(), model.values().min().copied().unwrap_or(Time::NEVER));
                prop_assert_eq!(deadlines.heap.len(), model.len());
            }
            for (index, entry) in deadlines.heap.iter().enumerate() {
                prop_assert_eq!(deadlines.index(entry.slot), Some(index));
            }
        }
    }

    #[test]
    fn never_is_no_deadline() {
        let mut deadlines = Deadlines::default();
        deadlines.bring_forward(7, Time::NEVER);
        assert_eq!((deadlines.first(), deadlines.pop_due(Time::NEVER)), (Time::NEVER, None));
    }

    #[test]
    fn grows_by_an_eighth() {
        let mut list = Vec::new();
        for n in 0..100_000u32 {
            grow(&mut list, 1);
            list.push(n);
            assert!(list.capacity() <= list.len() + list.len() / 8 + 4);
        }
    }
}

//! An attacker on the path, without keys: it sees every datagram, keeps the last ones, sends them again later, from
//! wherever it likes, and damaged; and it makes up its own. What it withholds are its rules in [`World::meddlers`].
use std::net::SocketAddr;

use m2m_proto::time::Duration;
use rand_chacha::rand_core::Rng;

use super::plan::{Dice, Trick};
use crate::{NetIndex, World, world::Seen};

/// Longest datagram that it makes up: longer than any that is legal.
const LONGEST: u64 = 1500;
/// Byte 0 of RESET-HINT.
const HINT: u8 = 0x95;
/// The tail of a packet that a RESET-HINT shows.
const TAIL: usize = 8;

/// An address that is nobody's.
pub(super) fn stranger(dice: &mut Dice) -> SocketAddr {
    SocketAddr::from(([10, 250, 0, dice.between(1, 9) as u8], 4000 + dice.between(0, 9) as u16))
}

/// Does one thing.
pub(super) fn attack(world: &mut World, dice: &mut Dice, trick: Trick, neighbours: &[NetIndex]) {
    let Some(seen) = overheard(world, dice, |_| true) else { return };
    let stranger = stranger(dice);
    let neighbour = world.address(*dice.pick(neighbours));
    let (from, to, bytes) = (seen.from, seen.to, &seen.bytes[..]);
    match trick {
        Trick::Repeat => world.replay(&seen, from, to, bytes),
        Trick::FromElsewhere => world.replay(&seen, stranger, to, bytes),
        Trick::FromNeighbour => world.replay(&seen, neighbour, to, bytes),
        // The nearer it is the more it can do.
        Trick::Overtake => {
            let faults = world.faults;
            (world.faults.delay, world.faults.jitter) = (Duration::ZERO, Duration::ZERO);
            let from = if dice.percent(50) { stranger } else { from };
            world.replay(&seen, from, to, bytes);
            world.faults = faults;
        }
        Trick::Reflect => world.replay(&seen, to, from, bytes),
        Trick::Misdeliver => world.replay(&seen, from, neighbour, bytes),
        Trick::Truncate => {
            let len = dice.between(0, bytes.len() as u64) as usize;
            world.replay(&seen, from, to, &bytes[..len]);
        }
        Trick::Flip => {
            let bytes = flipped(dice, bytes, 0);
            world.replay(&seen, from, to, &bytes);
        }
        Trick::Garbage => {
            let bytes = garbage(dice, bytes);
            let from = if dice.percent(50) { stranger } else { neighbour };
            world.replay(&seen, from, to, &bytes);
        }
        Trick::Hint | Trick::WrongHint => hint(world, dice, trick == Trick::Hint),
        Trick::Handshake => {
            let Some(seen) = overheard(world, dice, |seen| seen.bytes[0] & 0x80 != 0) else { return };
            // Byte 0 and the ids stay: what differs is deeper in.
            let bytes = flipped(dice, &seen.bytes, 36);
            let from = if dice.percent(50) { stranger } else { seen.from };
            world.replay(&seen, from, seen.to, &bytes);
        }
    }
}

/// Says that a token is unknown, to whoever used it.
fn hint(world: &mut World, dice: &mut Dice, is_right: bool) {
    let is_short = |seen: &Seen| seen.bytes[0] & 0x80 == 0 && seen.bytes.len() >= 5 + TAIL;
    let Some(seen) = overheard(world, dice, is_short) else { return };
    let Some(other) = overheard(world, dice, is_short) else { return };
    let tail = if is_right { &seen } else { &other };
    let mut bytes = vec![HINT];
    bytes.extend_from_slice(&seen.bytes[1..5]);
    bytes.extend_from_slice(&tail.bytes[tail.bytes.len() - TAIL..]);
    let stranger = stranger(dice);
    let from = if dice.percent(80) { seen.to } else { stranger };
    world.inject(from, seen.from, &bytes);
}

fn flipped(dice: &mut Dice, bytes: &[u8], first: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let first = first.min(bytes.len() - 1) as u64;
    for _ in 0..dice.between(1, 4) {
        let at = dice.between(first, bytes.len() as u64 - 1) as usize;
        bytes[at] ^= 1 << dice.between(0, 7);
    }
    bytes
}

fn garbage(dice: &mut Dice, like: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; dice.between(0, LONGEST) as usize];
    dice.0.fill_bytes(&mut bytes);
    if let (Some(first), Some(known), true) = (bytes.first_mut(), like.first(), dice.percent(50)) {
        *first = *known;
    }
    bytes
}

fn overheard(world: &World, dice: &mut Dice, fits: impl Fn(&Seen) -> bool) -> Option<Seen> {
    let fits = |seen: &&Seen| !seen.bytes.is_empty() && fits(seen);
    let all = world.overheard.iter().flatten().filter(fits);
    // As often the very last one as any other.
    let newest = dice.percent(50);
    let count = if newest { 1 } else { all.clone().count().max(1) as u64 };
    all.clone().nth(dice.between(0, count - 1) as usize).cloned()
}

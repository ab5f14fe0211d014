//! An attacker on the path, without keys: it sees every datagram, keeps the last ones, sends them again later, from
//! wherever it likes, and damaged; and it makes up its own.
use std::net::SocketAddr;

use m2m_proto::time::Duration;
use rand_chacha::rand_core::Rng;

use super::plan::Dice;
use crate::{NetIndex, World, world::Seen};

/// Longest datagram that it makes up: longer than any that is legal.
const LONGEST: u64 = 1500;

/// Does one thing at random.
pub(super) fn attack(world: &mut World, dice: &mut Dice, nets: usize) {
    let Some(seen) = overheard(world, dice) else { return };
    let stranger =
        SocketAddr::from(([10, 250, 0, dice.between(1, 9) as u8], 4000 + dice.between(0, 9) as u16));
    let neighbour = world.address(NetIndex(dice.between(0, nets as u64 - 1) as usize));
    match dice.between(0, 9) {
        0..=1 => world.replay(&seen, seen.from, seen.to, &seen.bytes),
        2 => world.replay(&seen, stranger, seen.to, &seen.bytes),
        3 => world.replay(&seen, neighbour, seen.to, &seen.bytes),
        // A copy that overtakes the original: the nearer it is the more it can do.
        4 => {
            let faults = world.faults;
            (world.faults.delay, world.faults.jitter) = (Duration::ZERO, Duration::ZERO);
            let from = if dice.percent(50) { stranger } else { seen.from };
            world.replay(&seen, from, seen.to, &seen.bytes);
            world.faults = faults;
        }
        // Back to where it came from, and to somebody whom it never was for.
        5 => world.replay(&seen, seen.to, seen.from, &seen.bytes),
        6 => world.replay(&seen, seen.from, neighbour, &seen.bytes),
        7 => {
            let len = dice.between(0, seen.bytes.len() as u64) as usize;
            world.replay(&seen, seen.from, seen.to, &seen.bytes[..len]);
        }
        8 => {
            let mut bytes = seen.bytes.clone();
            for _ in 0..dice.between(1, 4) {
                let at = dice.between(0, bytes.len() as u64 - 1) as usize;
                bytes[at] ^= 1 << dice.between(0, 7);
            }
            world.replay(&seen, seen.from, seen.to, &bytes);
        }
        _ => {
            let mut bytes = vec![0; dice.between(0, LONGEST) as usize];
            dice.0.fill_bytes(&mut bytes);
            if let (Some(first), Some(known), true) =
                (bytes.first_mut(), seen.bytes.first(), dice.percent(50))
            {
                *first = *known;
            }
            let from = if dice.percent(50) { stranger } else { neighbour };
            world.replay(&seen, from, seen.to, &bytes);
        }
    }
}

fn overheard(world: &World, dice: &mut Dice) -> Option<Seen> {
    let overheard = world.overheard.as_ref()?;
    // As often the very last one as any other.
    let newest = dice.percent(50);
    let at = if newest { 0 } else { dice.between(0, overheard.len().max(1) as u64 - 1) as usize };
    overheard.get(at).filter(|seen| !seen.bytes.is_empty()).cloned()
}

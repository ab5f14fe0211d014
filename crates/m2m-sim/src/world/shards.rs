//! Nets of several machines behind one address, as a host with a socket for each core is.
use std::net::SocketAddr;

use m2m_proto::{
    config::{Config, Shard},
    net::Net,
    time::Time,
};

use super::{Member, NetIndex, World};

impl World {
    /// Starts a net of so many shards, anew if it ran. `config` makes one machine's configuration.
    pub fn start_shards(&mut self, index: NetIndex, count: u8, config: impl Fn() -> Config) {
        let make = |shard| Config { shard: Shard { index: shard, count }, ..config() };
        self.start(index, make(0));
        let now = self.now;
        let member = &mut self.members[index.0];
        let unix_ms = member.unix_ms(now);
        for shard in 1..count {
            let mut seed = [0; 32];
            seed[..8].copy_from_slice(&self.seed.to_le_bytes());
            seed[8..16].copy_from_slice(&(index.0 as u64).to_le_bytes());
            seed[16..20].copy_from_slice(&member.lives.to_le_bytes());
            seed[31] = shard;
            let mut net = Net::new(make(shard), seed, now);
            net.set_unix_time(now, unix_ms);
            member.others.push(net);
        }
        self.pump(index);
    }

    /// One machine of a net, which must be running. Call [`World::pump`] after a command.
    pub fn shard(&mut self, index: NetIndex, shard: u8) -> &mut Net {
        self.members[index.0].machine(shard).expect("the shard is running")
    }

    /// Gives a command to one shard of a net, and carries out what comes of it.
    pub fn command_shard<T>(
        &mut self,
        index: NetIndex,
        shard: u8,
        command: impl FnOnce(&mut Net, Time) -> T,
    ) -> T {
        let now = self.local_now(index);
        let result = command(self.shard(index, shard), now);
        self.pump(index);
        result
    }

    /// Delivers what the shards of a net have handed over to each other; false if there was nothing.
    pub(super) fn hand_over(&mut self, index: NetIndex) -> bool {
        let now = self.now;
        let member = &mut self.members[index.0];
        let local = member.local(now);
        let waiting = core::mem::take(&mut member.handed);
        let any = !waiting.is_empty();
        for (shard, handed) in waiting {
            member.handovers += 1;
            let is_lost = member.handover_loss > 0 && member.handovers.is_multiple_of(member.handover_loss);
            let Some(machine) = member.machine(shard) else { panic!("the net has no shard {shard}") };
            let spent = match is_lost {
                true => machine.handover_failed(handed),
                false => machine.handle_handed(local, handed),
            };
            machine.recycle(spent);
        }
        any
    }
}

impl Member {
    /// How many machines it has, running or not.
    pub(super) fn shards(&self) -> u8 {
        1 + u8::try_from(self.others.len()).expect("a net has at most 128 shards")
    }

    pub(super) fn machine(&mut self, shard: u8) -> Option<&mut Net> {
        match shard {
            0 => self.net.as_mut(),
            other => self.others.get_mut(usize::from(other) - 1),
        }
    }

    /// Every machine that runs.
    pub(super) fn machines(&mut self) -> impl Iterator<Item = &mut Net> {
        self.net.iter_mut().chain(&mut self.others)
    }

    /// Which of its sockets gets what comes from there: any, but always the same, as the kernel's hash has it.
    pub(super) fn socket_of(&self, from: SocketAddr) -> u8 {
        let text = from.to_string();
        let hash = text.bytes().fold(0_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        ((hash >> 3) % u32::from(self.shards())) as u8
    }
}

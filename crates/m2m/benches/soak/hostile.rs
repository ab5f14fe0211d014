//! Strangers, eavesdroppers, and guests who turn against their hosts: all the while, a few dozen packets a second.
use std::{net::SocketAddr, sync::Arc, time::Duration};

use m2m_proto::{
    id::Id,
    session::{
        handshake::Initiator,
        keys::{DhSecret, NetKey, PairKey},
    },
    wire::frame::{CloseCode, Epoch, Frame, KeyBytes, RelayFlags, Req},
};
use tokio::{net::UdpSocket, time::sleep};

use crate::{
    actor::{Actor, key_bytes},
    dice::Dice,
    gate::local,
    insider::{Insider, init_fields},
    ledger::Who,
    world::{CHILD_HOST, HOST, World},
};

/// Packets come in bunches, so often.
const BEAT: Duration = Duration::from_millis(100);
/// Packets of a bunch.
const BUNCH: usize = 4;
/// Networks that strangers send from.
const SOURCES: u8 = 20;
/// Guests that turn against their host, or against a device, have numbers from here on.
const FIRST_GUEST: u32 = 500;
/// One guest lasts so long, if it is not shown the door before.
const GUEST: Duration = Duration::from_secs(15);
/// And says so many things a second.
const GUEST_BEAT: Duration = Duration::from_millis(100);

/// One who has no key: bytes, INITs, tokens, and what was overheard.
pub(crate) struct Stranger {
    world: Arc<World>,
    dice: Dice,
    sockets: Vec<UdpSocket>,
}

impl Stranger {
    pub(crate) async fn new(world: &Arc<World>, dice: Dice) -> std::io::Result<Stranger> {
        let mut sockets = Vec::new();
        for n in 0..SOURCES {
            sockets.push(UdpSocket::bind(local(200, n)).await?);
        }
        Ok(Stranger { world: world.clone(), dice, sockets })
    }

    pub(crate) async fn run(mut self) {
        loop {
            sleep(BEAT).await;
            (0..BUNCH).for_each(|_| self.fire());
        }
    }

    fn fire(&mut self) {
        match self.dice.below(7) {
            0 => self.garbage(),
            1 => self.forged_init(),
            2 => self.unknown_token(),
            3 => self.replay(),
            4 => self.replay_on_the_path(),
            5 => self.damaged(),
            _ => self.unconfirmed_init(),
        }
    }

    fn garbage(&mut self) {
        let len = 1 + self.dice.below(1400);
        let bytes = self.dice.bytes(len);
        self.send("hostile: random bytes", None, &bytes);
    }

    fn forged_init(&mut self) {
        let (_, address, id) = self.target();
        let wrong = PairKey::from_bytes([0xEE; 32]);
        let fields = init_fields(Who(FIRST_GUEST).id(), id, self.dice.next() as u32 | 1);
        let initiator = Initiator::start(&fields, &wrong, self.ephemeral());
        self.send("hostile: forged INITs", Some(address), initiator.init());
    }

    /// From one who has the key, and never goes on.
    fn unconfirmed_init(&mut self) {
        let (who, address, id) = self.target();
        let src = Who(FIRST_GUEST + 50 + self.dice.below(8) as u32).id();
        let key = NetKey::new(&key_bytes(who)).expect("32 bytes are a key");
        let fields = init_fields(src, id, self.dice.next() as u32 | 1);
        let initiator = Initiator::start(&fields, &key.pair(src, id), self.ephemeral());
        self.send("hostile: valid INITs, never confirmed", Some(address), initiator.init());
    }

    fn unknown_token(&mut self) {
        let mut bytes = self.dice.bytes(64);
        bytes[0] = 0x41;
        self.send("hostile: unknown tokens", None, &bytes);
    }

    /// What was overheard, from elsewhere.
    fn replay(&mut self) {
        if let Some(heard) = self.world.network.overheard(&mut self.dice) {
            self.send("hostile: replays from elsewhere", Some(heard.to), &heard.bytes);
        }
    }

    /// What was overheard, from where it came first, or from somebody else's place.
    fn replay_on_the_path(&mut self) {
        let Some(heard) = self.world.network.overheard(&mut self.dice) else { return };
        let there = self.dice.chance(0.5);
        if let Some(gate) = self.dice.pick(&self.world.gates()) {
            gate.repeat(there, heard.bytes);
            self.world.books.count("hostile: replays on the path");
        }
    }

    fn damaged(&mut self) {
        let Some(mut heard) = self.world.network.overheard(&mut self.dice) else { return };
        let at = self.dice.below(heard.bytes.len());
        if let Some(byte) = heard.bytes.get_mut(at) {
            *byte ^= 1 << self.dice.below(8);
        }
        self.send("hostile: damaged copies", Some(heard.to), &heard.bytes);
    }

    /// One of the nets, where it is, and its id.
    fn target(&mut self) -> (Who, SocketAddr, Id) {
        let members: Vec<&Arc<Actor>> = self.world.members().chain([&self.world.host]).collect();
        let at = self.dice.below(members.len() + 1);
        let (who, place) = match members.get(at) {
            Some(actor) => (actor.who(), &actor.place),
            None => (CHILD_HOST, &self.world.child.place),
        };
        (who, place.address(), who.id())
    }

    fn ephemeral(&mut self) -> DhSecret {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(&self.dice.bytes(32));
        DhSecret::from_bytes(bytes)
    }

    fn send(&mut self, kind: &'static str, to: Option<SocketAddr>, bytes: &[u8]) {
        let to = to.unwrap_or_else(|| self.target().1);
        if let Some(socket) = self.dice.pick(&self.sockets) {
            // A full buffer loses it, as a network would.
            let _ = socket.try_send_to(bytes, to);
            self.world.books.count(kind);
        }
    }
}

/// One who has the key of a net and an id of its own: shakes hands as is right, and then says what no honest net would.
pub(crate) async fn guests(world: Arc<World>, mut dice: Dice) {
    let mut number = 0;
    loop {
        number = (number + 1) % 8;
        let who = Who(FIRST_GUEST + number);
        let (target, address) = match dice.below(3) {
            0 => (HOST, world.host.place.address()),
            1 => (CHILD_HOST, world.child.place.address()),
            _ => {
                let device = dice.pick(&world.devices).expect("there are devices");
                (device.who(), device.place.address())
            }
        };
        let guest = Insider::open(who.id(), target, address, number as u8, &mut dice).await;
        match guest {
            Ok(mut guest) => {
                world.books.count("hostile: guests");
                let _ = tokio::time::timeout(GUEST, misbehave(&world, &mut guest, &mut dice)).await;
            }
            Err(_) => sleep(Duration::from_secs(1)).await,
        }
    }
}

async fn misbehave(world: &World, guest: &mut Insider, dice: &mut Dice) {
    loop {
        sleep(GUEST_BEAT).await;
        guest.listen();
        world.books.count("hostile: packets of guests");
        if dice.chance(0.1) {
            let len = 1 + dice.below(300);
            guest.say_bytes(&dice.bytes(len));
            continue;
        }
        if dice.chance(0.1) {
            guest.say_bytes(&odd_message(dice));
            continue;
        }
        let (a, b) = (dice.bytes(120), dice.bytes(32));
        let ephemeral: &[u8; 32] = b[..].try_into().expect("they are 32");
        let frame = odd_frame(world, guest.id, dice, &a, ephemeral);
        guest.say(&[frame]);
    }
}

/// A frame that is well formed and out of place.
fn odd_frame<'a>(
    world: &World,
    own: Id,
    dice: &mut Dice,
    inner: &'a [u8],
    ephemeral: &'a [u8; 32],
) -> Frame<'a> {
    let (req, value) = (Req(dice.next() as u16), dice.next());
    let victim = dice.pick(&world.devices).map_or(Id([7; 16]), |device| device.who().id());
    match dice.below(12) {
        0 => Frame::Relay { hop_limit: value as u8, flags: RelayFlags(0), dst: victim, src: own, inner },
        // In another's name.
        1 => Frame::Relay { hop_limit: 16, flags: RelayFlags(0), dst: victim, src: HOST.id(), inner },
        2 => Frame::Lookup { req, id: victim },
        3 => Frame::Lookup { req, id: Id(u128::from(value).to_be_bytes()) },
        4 => Frame::Register { req, ephemeral: dice.chance(0.5), epoch: Epoch(value), lease_s: value as u32 },
        5 => Frame::Unregister { req, epoch: Epoch(value) },
        6 => Frame::Rekey { req, generation: dice.below(3) as u32, ephemeral, key: KeyBytes::NONE },
        7 => Frame::Rekeyed { req, generation: dice.below(3) as u32, ephemeral },
        8 => Frame::NewToken { req, token: value as u32 },
        9 => Frame::PathChallenge(value.to_be_bytes()),
        10 => Frame::Ping { req, next_s: value as u16 },
        _ if dice.chance(0.05) => Frame::Close { code: CloseCode(value as u8), text: "for no reason" },
        _ => Frame::Confirm { mem: value as u32, resume: Some(value.to_be_bytes()) },
    }
}

/// A CoAP message's beginning, and anything after it.
fn odd_message(dice: &mut Dice) -> Vec<u8> {
    let len = 4 + dice.below(60);
    let mut bytes = dice.bytes(len);
    bytes[0] = 0x40 | (bytes[0] & 0x3F);
    bytes
}

//! What the tests of this binary share: a peer driven by hand, which says what no honest net would.
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use m2m_proto::{
    coap::{code::Code, option_set::OptionSet},
    error::CommandError,
    event::{Event, RequestId, SessionId},
    id::Id,
    net::{Request, Route},
    session::{
        Secure,
        handshake::{Established, InitFields, Initiator, open_init},
        keys::{DeviceKey, DhSecret, PeerKey, Role, Suite, SuiteSet},
    },
    stats::Drop,
    time::Duration,
    wire::{
        bundle::{Element, PlainWriter, elements},
        frame::{Epoch, Frame, Req},
        packet::{Caps, KeyId, Packet, RespPayload, Token},
    },
};
use m2m_sim::{NetIndex, World};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
/// Longer than there and back takes in these worlds.
pub(crate) const BEAT: Duration = Duration::from_millis(40);

/// The key that opens sessions to the net of that number.
pub(crate) fn key(n: u8) -> PeerKey {
    PeerKey::Net(World::key(n))
}

/// A peer without a machine: each of its packets is made here, byte by byte if need be.
pub(crate) struct Hand {
    pub(crate) number: u8,
    pub(crate) address: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) peer: Id,
    pub(crate) established: Option<Established>,
    pub(crate) secure: Option<Secure>,
    seen: usize,
}

impl Hand {
    /// A peer with the id of `number`, beside the net `peer`, whose number is `peer_number`.
    pub(crate) fn new(world: &mut World, number: u8, peer: NetIndex, peer_number: u8) -> Hand {
        let seen = world.tap.get_or_insert_default().len();
        Hand {
            number,
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, number)), 4000),
            to: world.address(peer),
            peer: World::id(peer_number),
            established: None,
            secure: None,
            seen,
        }
    }

    pub(crate) fn id(&self) -> Id {
        World::id(self.number)
    }

    /// What an honest INIT would say.
    pub(crate) fn fields(&self, stoken: u32) -> InitFields {
        InitFields {
            dst: self.peer,
            src: self.id(),
            stoken: Token::new(stoken).unwrap(),
            key_id: KeyId(0),
            suites: SuiteSet::of(&[Suite::Aes128Gcm, Suite::Aes256Gcm]),
            caps: Caps(0),
            max_udp: 1200,
        }
    }

    /// Begins a handshake under the right key; nothing is sent yet.
    pub(crate) fn start(&self, fields: &InitFields, ephemeral: u8) -> Initiator {
        let responder = World::key(self.peer.0[15]);
        let pair = responder.pair(fields.src, fields.dst);
        Initiator::start(fields, &pair, DhSecret::from_bytes([ephemeral; 32]))
    }

    pub(crate) fn send(&self, world: &mut World, bytes: &[u8]) {
        world.inject(self.address, self.to, bytes);
    }

    /// What came to this address since the last time, once all that is on its way has arrived.
    pub(crate) fn inbox(&mut self, world: &mut World) -> Vec<Vec<u8>> {
        world.run(BEAT);
        let tap = world.tap.as_ref().expect("there is a tap");
        let came = tap[self.seen..].iter().filter(|(_, to, _)| *to == self.address);
        let came = came.map(|(_, _, bytes)| bytes.clone()).collect();
        self.seen = tap.len();
        came
    }

    /// Sends what it is given and says what came back for it.
    pub(crate) fn ask(&mut self, world: &mut World, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.inbox(world);
        self.send(world, bytes);
        self.inbox(world)
    }

    /// The keys are known; nothing was said under them.
    pub(crate) fn half_open(&mut self, world: &mut World, fields: &InitFields, ephemeral: u8) {
        let initiator = self.start(fields, ephemeral);
        let answers = self.ask(world, initiator.init());
        let [resp] = &answers[..] else { panic!("one RESP, not {answers:?}") };
        let Ok(Packet::Resp(resp)) = Packet::decode(resp) else { panic!("a RESP, not {resp:?}") };
        let established = initiator.read_resp(&resp).expect("the net's RESP is right");
        self.secure = Some(Secure::new(&established));
        self.established = Some(established);
    }

    /// A whole session, with CONFIRM said.
    pub(crate) fn up(world: &mut World, number: u8, peer: NetIndex, peer_number: u8) -> Hand {
        let mut hand = Hand::new(world, number, peer, peer_number);
        let fields = hand.fields(0x1000 + u32::from(number));
        hand.half_open(world, &fields, number);
        hand.say(world, &[Frame::Confirm { mem: 0, resume: None }]);
        hand.hear(world);
        hand
    }

    /// A short packet with this plaintext, whatever it is.
    pub(crate) fn seal(&mut self, plain: &[u8]) -> Vec<u8> {
        let secure = self.secure.as_mut().expect("the session is up");
        let mut packet = Vec::new();
        secure.begin(&mut packet);
        packet.extend_from_slice(plain);
        secure.seal(&mut packet);
        packet
    }

    pub(crate) fn packet(&mut self, frames: &[Frame<'_>]) -> Vec<u8> {
        let mut plain = Vec::new();
        let mut writer = PlainWriter::new(&mut plain, 1200);
        frames.iter().for_each(|frame| assert!(writer.push_frame(frame), "there is room for {frame:?}"));
        self.seal(&plain)
    }

    pub(crate) fn say(&mut self, world: &mut World, frames: &[Frame<'_>]) {
        let packet = self.packet(frames);
        self.send(world, &packet);
    }

    /// The plaintexts that came since the last time.
    pub(crate) fn hear(&mut self, world: &mut World) -> Vec<Vec<u8>> {
        let packets = self.inbox(world);
        let secure = self.secure.as_mut().expect("the session is up");
        let opened = packets.into_iter().filter_map(|mut packet| {
            let range = secure.open(&mut packet).ok()?;
            Some(packet[range].to_vec())
        });
        opened.collect()
    }

    /// Says frames and gives what `wanted` makes of each frame that comes back.
    pub(crate) fn talk<T>(
        &mut self,
        world: &mut World,
        frames: &[Frame<'_>],
        wanted: impl Fn(&Frame<'_>) -> Option<T>,
    ) -> Vec<T> {
        self.hear(world);
        self.say(world, frames);
        pick(&self.hear(world), wanted)
    }

    /// PROVE of this peer's device key.
    pub(crate) fn proof(&self) -> m2m_proto::session::keys::Proof {
        let established = self.established.as_ref().expect("the session is up");
        device(self.number)
            .prove(&established.peer_ephemeral, established.hash(), Role::Initiator)
            .expect("the net's ephemeral is none of the weak ones")
    }
}

/// True for a RESET-HINT.
pub(crate) fn is_hint(bytes: &[u8]) -> bool {
    matches!(Packet::decode(bytes), Ok(Packet::ResetHint(_)))
}

/// The device key that `World::config` gives to a number.
pub(crate) fn device(n: u8) -> DeviceKey {
    DeviceKey::from_bytes([n.wrapping_mul(37) ^ 0x5C; 32])
}

/// What `wanted` makes of the frames in these plaintexts.
pub(crate) fn pick<T>(plains: &[Vec<u8>], wanted: impl Fn(&Frame<'_>) -> Option<T>) -> Vec<T> {
    let mut found = Vec::new();
    for plain in plains {
        for element in elements(plain).expect("a net's packets are well formed") {
            if let Element::Frame(frame) = element {
                found.extend(wanted(&frame));
            }
        }
    }
    found
}

/// Answers an INIT of a net by hand: RESP, and the keys.
pub(crate) fn respond(init: &[u8], responder: u8, fields: &RespPayload) -> (Vec<u8>, Established) {
    let Ok(Packet::Init(init)) = Packet::decode(init) else { panic!("an INIT, not {init:?}") };
    let pair = World::key(responder).pair(init.src, init.dst);
    let opened = open_init(&init, &pair).expect("made with the pair key");
    let ephemeral = DhSecret::from_bytes([0x77; 32]);
    let (resp, established) = opened.respond(World::id(responder), ephemeral, fields).unwrap();
    (resp.to_vec(), established)
}

pub(crate) fn resp_fields(suite: Suite) -> RespPayload {
    let ctoken = Token::new(0x0BAD_CAFE).unwrap();
    RespPayload { ctoken, suite, caps: Caps(0), max_udp: 1200, mem_s: 0, unix_s: 1_800_000_000 }
}

pub(crate) fn register(req: u16, epoch: u64) -> Frame<'static> {
    Frame::Register { req: Req(req), ephemeral: false, epoch: Epoch(epoch), lease_s: 600 }
}

pub(crate) fn connect(world: &mut World, from: NetIndex, to: NetIndex, number: u8) -> SessionId {
    let address = world.address(to);
    world.command(from, |net, now| {
        net.connect(now, World::id(number), &key(number), Route::Direct(address)).expect("there is room")
    })
}

/// A session that is up on both sides; its handles there.
pub(crate) fn connected(
    world: &mut World,
    from: NetIndex,
    to: NetIndex,
    number: u8,
) -> (SessionId, SessionId) {
    let session = connect(world, from, to, number);
    let there = world.wait_for(to, SECOND, |event| match event {
        Event::Accepted { session, .. } => Some(*session),
        _ => None,
    });
    world.run(BEAT);
    (session, there)
}

pub(crate) fn registered(world: &mut World, net: NetIndex) {
    world.wait_for(net, 2 * SECOND, |event| matches!(event, Event::HostConnected { .. }).then_some(()));
    world.run(BEAT);
}

pub(crate) fn post(
    world: &mut World,
    net: NetIndex,
    session: SessionId,
    id: u64,
    payload: &[u8],
) -> Result<(), CommandError> {
    let deadline = world.now + 30 * SECOND;
    world.command(net, |machine, now| {
        let options = OptionSet::default();
        let request = Request {
            code: Code::POST,
            options: &options,
            payload,
            confirmable: true,
            repeatable: false,
            deadline,
        };
        machine.request(now, session, RequestId(id), &request)
    })
}

pub(crate) fn dropped(world: &mut World, net: NetIndex, why: Drop) -> u64 {
    world.net(net).stats().dropped(why)
}

/// All drops of a net, by name, for messages.
pub(crate) fn drops(world: &mut World, net: NetIndex) -> Vec<(&'static str, u64)> {
    let stats = world.net(net).stats();
    let counts = Drop::ALL.into_iter().map(|why| (why.name(), stats.dropped(why)));
    counts.filter(|(_, count)| *count > 0).collect()
}

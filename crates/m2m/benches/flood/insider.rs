//! A guest of the host, registered as is right, and driven by hand: it says what no honest net would.
use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use m2m_proto::{
    id::Id,
    session::{
        Secure,
        handshake::{Established, InitFields, Initiator},
        keys::{DeviceKey, DhSecret, Role, Suite, SuiteSet},
    },
    wire::{
        bundle::PlainWriter,
        frame::{Epoch, Frame, Req},
        packet::{Caps, KeyId, Packet, Token},
    },
};

use crate::names;

pub(crate) struct Insider {
    pub(crate) id: Id,
    socket: UdpSocket,
    host: SocketAddr,
    secure: Secure,
    packet: Vec<u8>,
}

/// What an honest INIT of this id says.
pub(crate) fn init_fields(src: Id, stoken: u32) -> InitFields {
    InitFields {
        dst: names::HOST,
        src,
        stoken: Token::new(stoken).expect("it is not zero"),
        key_id: KeyId(0),
        suites: SuiteSet::of(&[Suite::Aes128Gcm]),
        caps: Caps(0),
        max_udp: 1200,
    }
}

impl Insider {
    /// A registered guest of this number.
    pub(crate) fn register(number: usize, host: SocketAddr) -> Insider {
        let socket = UdpSocket::bind(crate::local(number)).expect("a port is free");
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a socket can wait");
        let id = names::id(0x1D, number);
        // Time makes it another handshake for each kind of flood: the host remembers the sessions of the last one.
        let mut ephemeral = [number as u8 ^ 0x3C; 32];
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        ephemeral[..16].copy_from_slice(&now.as_nanos().to_be_bytes());
        let fields = init_fields(id, now.subsec_nanos() | 1);
        let initiator =
            Initiator::start(&fields, &names::key().pair(id, names::HOST), DhSecret::from_bytes(ephemeral));
        let established = shake_hands(&socket, host, &initiator);
        let secure = Secure::new(&established);
        let mut insider = Insider { id, socket, host, secure, packet: Vec::new() };
        let device = DeviceKey::from_bytes([number as u8 ^ 0x77; 32]);
        let proof = device.prove(&established.peer_ephemeral, established.hash(), Role::Initiator);
        let proof = proof.expect("the host's ephemeral is a good one");
        let epoch = Epoch(now.as_millis() as u64);
        insider.say(&[
            Frame::Confirm { mem: 0, resume: None },
            Frame::Prove { public: &proof.public, mac: &proof.mac },
            Frame::Register { req: Req(1), ephemeral: false, epoch, lease_s: 600 },
        ]);
        // The claim is stored before it is answered.
        insider.socket.recv(&mut [0; 2048]).expect("the host answers REGISTER");
        insider.socket.set_nonblocking(true).expect("a socket need not wait");
        insider
    }

    /// Says these frames in one packet; what comes back is not read.
    pub(crate) fn say(&mut self, frames: &[Frame<'_>]) {
        self.secure.begin(&mut self.packet);
        let mut plain = PlainWriter::new(&mut self.packet, 1200);
        frames.iter().for_each(|frame| assert!(plain.push_frame(frame), "it fits"));
        self.secure.seal(&mut self.packet);
        let _ = self.socket.send_to(&self.packet, self.host);
    }
}

fn shake_hands(socket: &UdpSocket, host: SocketAddr, initiator: &Initiator) -> Established {
    let mut init = initiator.init().to_vec();
    let mut buffer = [0; 2048];
    for _ in 0..10 {
        let _ = socket.send_to(&init, host);
        let Ok(len) = socket.recv(&mut buffer) else { continue };
        match Packet::decode(&buffer[..len]) {
            Ok(Packet::Resp(resp)) => return initiator.read_resp(&resp).expect("it is for this INIT"),
            Ok(Packet::Cookie(reply)) => {
                let cookie = initiator.read_cookie(&reply).expect("it is for this INIT");
                init = initiator.init_with_cookie(&cookie).to_vec();
            }
            _ => {}
        }
    }
    panic!("the host does not answer a guest")
}

//! A peer driven by hand: it has the key and shakes hands as is right, and says from there what a test wants it to.
use std::{net::SocketAddr, time::Duration};

use m2m::{Id, Net};
use m2m_proto::{
    session::{
        Secure,
        handshake::{Established, InitFields, Initiator},
        keys::{DeviceKey, DhSecret, NetKey, Role, Suite, SuiteSet},
    },
    wire::{
        bundle::PlainWriter,
        frame::{Epoch, Frame, Req},
        packet::{Caps, KeyId, Packet, Token},
    },
};
use tokio::net::UdpSocket;

use crate::fixture::{eventually, id, key_bytes, local, soon};

pub(crate) struct Guest {
    pub(crate) id: Id,
    socket: UdpSocket,
    peer: SocketAddr,
    secure: Secure,
    established: Established,
    packet: Vec<u8>,
}

/// What net `src` says to net `dst` at first; another handshake with each `token`.
pub(crate) fn initiator(src: u128, dst: u128, token: u32) -> Initiator {
    let fields = InitFields {
        dst: id(dst),
        src: id(src),
        stoken: Token::new(token).unwrap(),
        key_id: KeyId(0),
        suites: SuiteSet::of(&[Suite::Aes128Gcm]),
        caps: Caps(0),
        max_udp: 1200,
    };
    let mut ephemeral = [0x42; 32];
    ephemeral[..4].copy_from_slice(&token.to_be_bytes());
    let pair = NetKey::new(&key_bytes(dst)).unwrap().pair(id(src), id(dst));
    Initiator::start(&fields, &pair, DhSecret::from_bytes(ephemeral))
}

impl Guest {
    /// A session of net `n` with this net, whose number is `dst`.
    pub(crate) async fn open(n: u128, net: &Net, dst: u128) -> Guest {
        let (socket, initiator) = (UdpSocket::bind(local(0)).await.unwrap(), initiator(n, dst, 7));
        let peer = net.local_addr();
        let established = soon(shake_hands(&socket, peer, &initiator)).await;
        let secure = Secure::new(&established);
        let mut guest = Guest { id: id(n), socket, peer, secure, established, packet: Vec::new() };
        guest.say(&[Frame::Confirm { mem: 0, resume: None }]).await;
        guest
    }

    /// Registers it with the host that it has its session with.
    pub(crate) async fn register(&mut self, host: &Net) {
        let before = host.registrations();
        let device = DeviceKey::from_bytes([0x77; 32]);
        let (ephemeral, hash) = (self.established.peer_ephemeral, *self.established.hash());
        let proof = device.prove(&ephemeral, &hash, Role::Initiator).unwrap();
        let register = Frame::Register { req: Req(1), ephemeral: false, epoch: Epoch(1), lease_s: 600 };
        self.say(&[Frame::Prove { public: &proof.public, mac: &proof.mac }, register]).await;
        eventually(|| host.registrations() > before).await;
    }

    /// Says these frames in one packet.
    pub(crate) async fn say(&mut self, frames: &[Frame<'_>]) {
        self.secure.begin(&mut self.packet);
        let mut plain = PlainWriter::new(&mut self.packet, 1200);
        frames.iter().for_each(|frame| assert!(plain.push_frame(frame)));
        self.leave().await;
    }

    /// Sends a CoAP message.
    pub(crate) async fn send(&mut self, message: &[u8]) {
        self.secure.begin(&mut self.packet);
        assert!(PlainWriter::new(&mut self.packet, 1200).push_message(message));
        self.leave().await;
    }

    async fn leave(&mut self) {
        self.secure.seal(&mut self.packet);
        self.socket.send_to(&self.packet, self.peer).await.unwrap();
    }
}

async fn shake_hands(socket: &UdpSocket, peer: SocketAddr, initiator: &Initiator) -> Established {
    let mut init = initiator.init().to_vec();
    let mut buffer = [0; 2048];
    loop {
        socket.send_to(&init, peer).await.unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(1), socket.recv(&mut buffer)).await;
        let Ok(Ok(len)) = answer else { continue };
        match Packet::decode(&buffer[..len]) {
            Ok(Packet::Resp(resp)) => return initiator.read_resp(&resp).unwrap(),
            Ok(Packet::Cookie(reply)) => {
                let cookie = initiator.read_cookie(&reply).unwrap();
                init = initiator.init_with_cookie(&cookie).to_vec();
            }
            _ => {}
        }
    }
}

//! A guest that is let in as is right, and driven by hand from there.
use std::{net::SocketAddr, time::Duration};

use m2m_proto::{
    id::Id,
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
use tokio::{net::UdpSocket, time::timeout};

use crate::{actor::key_bytes, dice::Dice, gate::local, ledger::Who};

/// Guests come from networks of their own.
const NETWORK: u8 = 210;
/// How often INIT is sent, and how long an answer is waited for.
const TRIES: usize = 4;
const PATIENCE: Duration = Duration::from_secs(1);

pub(crate) struct Insider {
    pub(crate) id: Id,
    socket: UdpSocket,
    peer: SocketAddr,
    secure: Secure,
    packet: Vec<u8>,
}

/// What an honest INIT says.
pub(crate) fn init_fields(src: Id, dst: Id, stoken: u32) -> InitFields {
    InitFields {
        dst,
        src,
        stoken: Token::new(stoken).expect("it is not zero"),
        key_id: KeyId(0),
        suites: SuiteSet::of(&[Suite::Aes128Gcm]),
        caps: Caps(0),
        max_udp: 1200,
    }
}

impl Insider {
    /// A session with this net, in which the guest asks to be registered.
    pub(crate) async fn open(
        id: Id,
        target: Who,
        peer: SocketAddr,
        number: u8,
        dice: &mut Dice,
    ) -> std::io::Result<Insider> {
        let socket = UdpSocket::bind(local(NETWORK, number)).await?;
        let mut ephemeral = [0; 32];
        ephemeral.copy_from_slice(&dice.bytes(32));
        let fields = init_fields(id, target.id(), dice.next() as u32 | 1);
        let key = NetKey::new(&key_bytes(target)).expect("32 bytes are a key");
        let initiator =
            Initiator::start(&fields, &key.pair(id, target.id()), DhSecret::from_bytes(ephemeral));
        let established = shake_hands(&socket, peer, &initiator).await?;
        let secure = Secure::new(&established);
        let mut insider = Insider { id, socket, peer, secure, packet: Vec::new() };
        let device = DeviceKey::from_bytes([number ^ 0x77; 32]);
        let proof = device.prove(&established.peer_ephemeral, established.hash(), Role::Initiator);
        let proof = proof.map_err(|_| std::io::Error::other("the peer's ephemeral is no good one"))?;
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        insider.say(&[
            Frame::Confirm { mem: 0, resume: None },
            Frame::Prove { public: &proof.public, mac: &proof.mac },
            Frame::Register {
                req: Req(1),
                ephemeral: false,
                epoch: Epoch(now.as_millis() as u64),
                lease_s: 600,
            },
        ]);
        Ok(insider)
    }

    /// Says these frames in one packet, as far as they fit.
    pub(crate) fn say(&mut self, frames: &[Frame<'_>]) {
        self.secure.begin(&mut self.packet);
        let mut plain = PlainWriter::new(&mut self.packet, 1200);
        frames.iter().for_each(|frame| {
            plain.push_frame(frame);
        });
        self.leave();
    }

    /// The same with any bytes in the place of frames.
    pub(crate) fn say_bytes(&mut self, bytes: &[u8]) {
        self.secure.begin(&mut self.packet);
        self.packet.extend_from_slice(bytes);
        self.leave();
    }

    fn leave(&mut self) {
        self.secure.seal(&mut self.packet);
        // A full buffer loses it, as a network would.
        let _ = self.socket.try_send_to(&self.packet, self.peer);
    }

    /// Takes what came, so that packet numbers and keys stay in step, and answers nothing.
    pub(crate) fn listen(&mut self) {
        let mut buffer = [0; 2048];
        while let Ok((len, _)) = self.socket.try_recv_from(&mut buffer) {
            let _ = self.secure.open(&mut buffer[..len]);
        }
    }
}

async fn shake_hands(
    socket: &UdpSocket,
    peer: SocketAddr,
    initiator: &Initiator,
) -> std::io::Result<Established> {
    let mut init = initiator.init().to_vec();
    let mut buffer = [0; 2048];
    for _ in 0..TRIES {
        socket.send_to(&init, peer).await?;
        let Ok(Ok(len)) = timeout(PATIENCE, socket.recv(&mut buffer)).await else { continue };
        match Packet::decode(&buffer[..len]) {
            Ok(Packet::Resp(resp)) => {
                return initiator.read_resp(&resp).map_err(|_| std::io::Error::other("not for this INIT"));
            }
            Ok(Packet::Cookie(reply)) => {
                if let Ok(cookie) = initiator.read_cookie(&reply) {
                    init = initiator.init_with_cookie(&cookie).to_vec();
                }
            }
            _ => {}
        }
    }
    Err(std::io::ErrorKind::TimedOut.into())
}

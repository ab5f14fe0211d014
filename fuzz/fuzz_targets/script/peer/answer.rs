//! How the peer answers what the net said: as it should, or nearly.
use m2m_proto::{
    coap::{
        code::Code,
        message::{Message, MessageType},
        writer::MessageWriter,
    },
    session::keys::DhSecret,
    wire::{
        bundle::{Element, PlainWriter, elements},
        frame::{FoundStatus, Frame, KeyBytes, Memory, RegisterStatus, Req},
        packet::Token,
    },
};
use m2m_sim::World;

use super::{Heard, Link, OWN, Play, Script, address, say::device};

impl Play {
    /// Answers one packet of the net's, the oldest or the newest, all elements of it in one packet.
    pub(super) fn answer(&mut self, script: &mut Script<'_>) {
        let (how, status) = (script.byte(), script.byte());
        let heard = if how & 1 == 0 { self.heard.pop_front() } else { self.heard.pop_back() };
        let Some(Heard { link, plain }) = heard.filter(|heard| heard.link < self.links.len()) else { return };
        let mut reply = Vec::new();
        let mut writer = PlainWriter::new(&mut reply, 1100);
        for element in elements(&plain).expect("a net's packets are well formed") {
            match element {
                Element::Frame(frame) => _ = self.answer_frame(link, &frame, status, &mut writer),
                Element::Message(message) => answer_message(message, status, &mut writer),
            }
        }
        let from = if how & 2 == 0 { self.links[link].home } else { address(how / 16) };
        self.say(link, from, &reply);
    }

    fn answer_frame(
        &mut self,
        link: usize,
        frame: &Frame<'_>,
        status: usize,
        writer: &mut PlainWriter<'_>,
    ) -> bool {
        let code = Self::status(status);
        let Link { secure, established, asked, .. } = &mut self.links[link];
        let role = established.role;
        match *frame {
            Frame::Ping { req, .. } => {
                let observed = (status & 16 == 0).then(|| address(status));
                writer.push_frame(&Frame::Pong { req, draining: status & 32 != 0, observed })
            }
            Frame::PathChallenge(data) => writer.push_frame(&Frame::PathResponse(data)),
            Frame::Confirm { resume: Some(_), .. } => {
                let memory = Memory((status / 16 % 4) as u8);
                writer.push_frame(&Frame::Resumed { memory, mem: status as u32 })
            }
            Frame::Rekey { req, generation, ephemeral, key } => {
                let ours = DhSecret::from_bytes([status as u8 ^ 0x11; 32]);
                if generation == secure.next_generation()
                    && let Ok(shared) = ours.agree(ephemeral)
                {
                    secure.prepare(role, &shared, Some(key.expose()));
                }
                writer.push_frame(&Frame::Rekeyed { req, generation, ephemeral: ours.public() })
            }
            Frame::Rekeyed { generation, ephemeral, .. } => {
                let asked = asked.take_if(|(wanted, ..)| *wanted == generation);
                if let Some((_, ours, key)) = asked
                    && generation == secure.next_generation()
                    && let Ok(shared) = ours.agree(ephemeral)
                {
                    secure.switch(role, &shared, KeyBytes::new(&key).map(|key| key.expose()));
                }
                writer.push_frame(&Frame::Ping { req: Req(status as u16), next_s: 30 })
            }
            Frame::NewToken { req, token } => {
                if code == 0 {
                    Token::new(token).into_iter().for_each(|token| secure.label_with(token));
                }
                writer.push_frame(&Frame::Done { req, status: code })
            }
            Frame::ProveAsk { .. } => {
                let device = device(if status < 192 { OWN } else { 1 });
                let proof = device.prove(&established.peer_ephemeral, established.hash(), role);
                proof.is_ok_and(|proof| {
                    writer.push_frame(&Frame::Prove { public: &proof.public, mac: &proof.mac })
                })
            }
            Frame::Unregister { req, .. } | Frame::NetKey { req, .. } => {
                writer.push_frame(&Frame::Done { req, status: code })
            }
            Frame::Register { req, epoch, lease_s, .. } => writer.push_frame(&Frame::Registered {
                req,
                status: RegisterStatus(code),
                epoch,
                lease_s: if status & 64 == 0 { lease_s } else { status as u32 % 4 },
                since: 7,
                path: &[],
            }),
            Frame::Lookup { req, .. } => {
                let status = FoundStatus((status % 8) as u8);
                writer.push_frame(&Frame::Found { req, status, home: World::id(3) })
            }
            _ => true,
        }
    }
}

/// A request is answered in its acknowledgement or apart from it, a response is acknowledged; or all is refused.
fn answer_message(bytes: &[u8], status: usize, writer: &mut PlainWriter<'_>) {
    let Ok(message) = Message::parse(bytes) else { return };
    let mut reply = Vec::new();
    let is_request = message.code().class() == 0 && message.code() != Code::EMPTY;
    let kind = match status / 16 % 8 {
        7 => MessageType::Rst,
        6 if is_request => MessageType::Con,
        5 if is_request => MessageType::Non,
        _ => MessageType::Ack,
    };
    let code =
        if is_request && kind != MessageType::Rst && status % 8 != 7 { Code::CHANGED } else { Code::EMPTY };
    let token = if code == Code::EMPTY { Default::default() } else { message.token() };
    let message_writer = MessageWriter::new(&mut reply, kind, code, message.mid(), token);
    if code != Code::EMPTY && status & 8 != 0 {
        message_writer.payload(&[5; 40]);
    }
    writer.push_message(&reply);
}

//! Two lines and a network between them: step by step where a rule is to be seen, and at random with a virtual clock.
use super::*;
use crate::coap::{
    code::Code,
    exchange::{Handled, Outcome},
    message::Message,
    option::OptionNumber,
    option_set::OptionSet,
    pool::Pool,
};
use alloc::vec::Vec;
use rand_chacha::rand_core::SeedableRng;
use std::{
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    format, println,
    string::String,
    vec,
};

mod bounds;
mod flow;
mod pipe;
mod rules;

/// A line with what its owner lends it.
struct Side {
    line: Line,
    rng: ChaCha12Rng,
    pool: Pool,
    config: LineConfig,
    next_packet: u64,
}

impl Side {
    fn new(seed: u64, first_mid: u16, config: &LineConfig) -> Side {
        Side {
            line: Line::new(Mid(first_mid)),
            rng: ChaCha12Rng::seed_from_u64(seed),
            pool: Pool::new(64),
            config: config.clone(),
            next_packet: 0,
        }
    }

    fn with<R>(&mut self, now: Time, action: impl FnOnce(&mut Line, &mut Context<'_>) -> R) -> R {
        let Side { line, rng, pool, config, .. } = self;
        action(line, &mut Context { now, rng, pool, config })
    }

    /// Sends all that is to be sent: packet numbers with messages.
    fn drain(&mut self, now: Time) -> Vec<(u64, Vec<u8>)> {
        let mut sent = Vec::new();
        loop {
            let packet = self.next_packet;
            let message = self.with(now, |line, cx| {
                let bytes = line.poll_message(cx).map(|outbound| outbound.bytes.to_vec())?;
                line.sent_in(cx, packet);
                Some(bytes)
            });
            let Some(message) = message else { return sent };
            sent.push((packet, message));
            self.next_packet += 1;
        }
    }

    fn request(&mut self, now: Time, user: u64) -> Result<RequestId, LineError> {
        self.request_by(now, user, true, now + Duration::from_secs(30))
    }

    fn request_by(
        &mut self,
        now: Time,
        user: u64,
        is_confirmable: bool,
        deadline: Time,
    ) -> Result<RequestId, LineError> {
        let options = OptionSet::new();
        let payload = user.to_be_bytes();
        let parts = RequestParts {
            code: Code::POST,
            options: &options,
            payload: &payload,
            is_confirmable,
            is_repeatable: false,
            is_observe: false,
            deadline,
            user,
        };
        self.with(now, |line, cx| line.request(cx, &parts))
    }

    fn respond(&mut self, now: Time, id: IncomingId, payload: &[u8]) -> Result<(), LineError> {
        let options = OptionSet::new();
        let response = ResponseParts { code: Code::CHANGED, options: &options, payload };
        self.with(now, |line, cx| line.respond(cx, id, &response))
    }

    fn receive(&mut self, now: Time, bytes: &[u8]) -> Handled {
        let message = Message::parse(bytes).unwrap();
        self.with(now, |line, cx| line.handle_message(cx, &message))
    }

    fn tick(&mut self, now: Time) {
        self.with(now, |line, cx| line.handle_timeout(cx));
    }

    fn span(&self) -> usize {
        self.line.busy.as_ref().map_or(0, |busy| busy.outgoing.span())
    }

    fn events(&mut self) -> Vec<LineEvent> {
        core::iter::from_fn(|| self.line.poll_event()).collect()
    }
}

/// What a message is, in few words.
fn show(bytes: &[u8]) -> String {
    let message = Message::parse(bytes).unwrap();
    format!("{:?} {} {}", message.kind(), message.code(), message.mid().0)
}

fn shown(sent: &[(u64, Vec<u8>)]) -> Vec<String> {
    sent.iter().map(|(_, bytes)| show(bytes)).collect()
}

fn at(millis: u64) -> Time {
    Time::from_micros(millis * 1000)
}

//! One net: one machine, one socket's worth of sessions.
//!
//! A datagram comes in through [`Net::handle_datagram`], visits the packet decoder, the one session that it belongs to,
//! and what that holds (frames to this module's children, messages to the session's line), and leaves its traces as
//! [`Output`]s. Nothing is visited twice, nothing is scanned: sessions are found by token, deadlines lie in a heap.
//!
//! ```text
//!  handle_datagram ─ receive ─┬─ accept   INIT, COOKIE (responder)          table     sessions by slot, token, peer
//!                             ├─ connect  RESP, COOKIE (initiator)          session   what is kept of one
//!                             └─ deliver  short ─┬─ frames  ─┬─ host        our session with a host
//!  handle_timeout ─ timers                       │           ├─ registrar   others' registrations with us
//!  poll_output ─ transmit                        └─ messages ├─ relay       forwarding
//!                                                            ├─ rekey, renew_token   other keys, other tokens
//!  hints, silence ─ recover   a session opened anew          └─ path        a peer that moves
//!  handle_handed ─ shard      what another shard of the same net took for this one
//! ```
use alloc::{boxed::Box, collections::VecDeque, vec::Vec};
use core::net::SocketAddr;

use rand_chacha::{
    ChaCha12Rng,
    rand_core::{Rng, SeedableRng},
};

use crate::{
    coap::{
        code::Code,
        exchange::{Context, LineConfig, RequestParts, ResponseParts},
        line::Line,
        message::Mid,
        option_set::OptionSet,
        pool::Pool,
    },
    config::Config,
    error::{CloseReason, CommandError, ConnectError, ControlError},
    event::{ClaimOutcome, Event, IncomingId, Output, RequestId, SessionId},
    id::Id,
    relay::{
        budget::{BucketTable, TokenBucket},
        registry::Registry,
    },
    session::{
        handshake::CookieSecret,
        keys::{DhSecret, EphemeralSeed, PeerKey, Role},
    },
    stats::{Drop, Stats},
    time::{Duration, Time},
    wire::packet::{Packet, Token},
};

mod accept;
mod connect;
mod contents;
mod control;
mod deadlines;
mod deliver;
mod host;
mod lazy;
mod netkey;
mod path;
mod pinning;
mod recover;
mod registrar;
mod rekey;
mod relay;
mod renew_token;
mod session;
mod shard;
mod standby;
mod table;
mod timers;
mod transmit;
mod warm;
mod yielding;

pub use host::{HostConfig, MAX_HOSTS};

pub use session::Path;
pub use shard::Handed;

use control::Ask;
use session::State;
use yielding::YieldingBudget;

/// The largest UDP payload (protocol, section 3).
pub const MAX_DATAGRAM: usize = 1200;
/// Nobody may take less than this (protocol, section 3.1); one who says so is refused.
const MIN_MAX_UDP: u16 = 256;
/// Sources that are told apart when INITs are budgeted.
const INIT_BUCKETS: usize = 4096;
/// Addresses that are told apart when hints are budgeted, and hints for one of them (protocol, section 3.5).
const HINT_BUCKETS: usize = 4096;
const HINTS_PER_SECOND: u32 = 5;
/// Hints for any shard that go to all of them (protocol, section 11).
const FANNED_OUT_PER_SECOND: u32 = 100;
/// Beside so many served packets a busy net does one key exchange for those who come, and half of one for those who
/// showed a cookie (protocol, section 12).
const DH_PACKETS: u32 = 512;
/// The same for COOKIEs.
const COOKIE_PACKETS: u32 = 128;
/// A message's fixed header and the 4-byte token of ours, or the up to 8 of a peer's.
const MESSAGE_HEAD: usize = 4 + 8;
/// Requests beyond the queue that may be on their way or waiting for separate responses.
const MAX_IN_FLIGHT: usize = 768;

/// Where a packet came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Direct(SocketAddr),
    /// In a RELAY frame, in the session with `neighbour`, which says that `src` sent it.
    Through {
        neighbour: Id,
        src: Id,
    },
}

impl Origin {
    /// What came through a relay is from the one that the relay names, and from nobody else.
    fn may_speak_for(self, peer: Id) -> bool {
        match self {
            Origin::Direct(_) => true,
            Origin::Through { src, .. } => src == peer || peer == Id::ANY,
        }
    }

    fn path(self) -> Path {
        match self {
            Origin::Direct(address) => Path::Direct(address),
            Origin::Through { neighbour, .. } => Path::Through(neighbour),
        }
    }
}

/// How a peer is to be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// It listens at this address.
    Direct(SocketAddr),
    /// The host knows where it is.
    Host,
}

/// What a session may be opened with.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConnectOptions {
    /// The public device key that the peer has to prove to hold: its net key alone is not enough then. Default: none.
    pub pin: Option<[u8; 32]>,
}

/// A request to send.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The method.
    pub code: Code,
    /// Uri-Path, Content-Format and so on.
    pub options: &'a OptionSet,
    /// The body; one packet's worth at most.
    pub payload: &'a [u8],
    /// Acknowledged and repeated until it is (CON), or sent once (NON).
    pub confirmable: bool,
    /// May run twice: if the peer loses its memory it is sent again, even if its method is not idempotent
    /// (RFC 7252, section 5.1).
    pub repeatable: bool,
    /// When the caller gives up.
    pub deadline: Time,
}

/// What is known of a session.
#[derive(Clone, Copy, Debug)]
pub struct SessionInfo {
    /// With whom.
    pub peer: Id,
    /// This net opened it.
    pub initiator: bool,
    /// Requests leave at once; before that they wait.
    pub up: bool,
    /// Where its packets go.
    pub path: Path,
    /// Smoothed round trip, once measured.
    pub rtt: Option<Duration>,
    /// The largest CoAP message that one packet of it takes.
    pub max_message: usize,
}

/// The machine. See the module for its shape, [`crate`] for the loop around it.
pub struct Net {
    config: Config,
    rng: ChaCha12Rng,
    /// Apart from the generator, whose state may be read back to its beginning.
    ephemerals: EphemeralSeed,
    cookie_secrets: [CookieSecret; 2],
    cookie_rotated: Time,
    hash_secret: u64,
    /// Unix time in milliseconds when the machine's clock was zero; none if nobody said.
    unix_origin_ms: Option<u64>,
    table: table::Table,
    warm: warm::Warm,
    spare: session::SpareParts,
    dirty: VecDeque<SessionId>,
    outputs: VecDeque<Output>,
    pool: Pool,
    line_config: LineConfig,
    hosts: Vec<host::Host>,
    active_host: usize,
    last_epoch: u64,
    registry: Registry,
    guest_limits: session::GuestLimits,
    init_budget: BucketTable,
    claim_budget: BucketTable,
    dh_budget: YieldingBudget,
    proven_dh_budget: YieldingBudget,
    cookie_budget: YieldingBudget,
    hint_budget: BucketTable,
    /// Hints that go to all other shards.
    fan_out: TokenBucket,
    /// Requests that came since are remembered, all of them.
    memory_since: Time,
    key_change: netkey::KeyChange,
    stats: Stats,
}

impl Net {
    /// A net at rest. `seed` is the only randomness that the machine ever sees: the same seed and the same inputs give
    /// the same outputs, so in earnest it must come from the operating system, and never twice the same.
    pub fn new(mut config: Config, seed: [u8; 32], now: Time) -> Net {
        let ephemerals = EphemeralSeed::from_bytes(seed);
        let mut rng = ChaCha12Rng::from_seed(ephemerals.derive(b"m2m/1 generator"));
        let cookie_secrets = [fresh_secret(&mut rng), fresh_secret(&mut rng)].map(CookieSecret::from_bytes);
        let hash_secret = rng.next_u64();
        let init = config.limits.init_rate;
        Net {
            hash_secret,
            cookie_secrets,
            cookie_rotated: now,
            rng,
            ephemerals,
            unix_origin_ms: None,
            table: table::Table::new(hash_secret),
            spare: session::SpareParts::default(),
            warm: warm::Warm::new(config.limits.warm_sessions),
            dirty: VecDeque::new(),
            outputs: VecDeque::new(),
            pool: Pool::new(config.limits.spare_buffers),
            line_config: line_config(&config),
            hosts: Vec::new(),
            active_host: 0,
            last_epoch: config.last_epoch,
            registry: Registry::new(config.limits.registrations),
            guest_limits: session::GuestLimits::new(&config.limits),
            claim_budget: registrar::claim_budget(&config.limits),
            init_budget: BucketTable::new(INIT_BUCKETS, init.per_second, init.burst),
            dh_budget: YieldingBudget::new(config.limits.dh_rate, DH_PACKETS),
            proven_dh_budget: YieldingBudget::new(config.limits.proven_dh_rate, 2 * DH_PACKETS),
            cookie_budget: YieldingBudget::new(config.limits.cookie_rate, COOKIE_PACKETS),
            hint_budget: BucketTable::new(HINT_BUCKETS, HINTS_PER_SECOND, 1),
            fan_out: TokenBucket::new(FANNED_OUT_PER_SECOND, FANNED_OUT_PER_SECOND),
            memory_since: now,
            key_change: netkey::KeyChange::new(&mut config, now),
            stats: Stats::default(),
            config,
        }
    }

    /// This net's id.
    pub fn id(&self) -> Id {
        self.config.id
    }

    /// Counters since the start.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Sessions that live, half-open and closing ones included.
    pub fn sessions(&self) -> usize {
        self.table.len()
    }

    /// Those of them that wait for the first packet of their initiator.
    pub fn half_open(&self) -> usize {
        self.table.half_open()
    }

    /// Ids registered here.
    pub fn registrations(&self) -> usize {
        self.registry.len()
    }

    /// Tells the wall clock, in unix milliseconds. Hosts need it: registrations' epochs start from it.
    pub fn set_unix_time(&mut self, now: Time, unix_ms: u64) {
        self.unix_origin_ms = Some(unix_ms.saturating_sub(now.as_micros() / 1000));
    }

    fn unix_ms(&self, now: Time) -> Option<u64> {
        Some(self.unix_origin_ms?.saturating_add(now.as_micros() / 1000))
    }

    fn unix_s(&self, now: Time) -> u32 {
        self.unix_ms(now).map_or(0, |ms| u32::try_from(ms / 1000).unwrap_or(u32::MAX))
    }

    /// For how many seconds this net remembers every request: since it began, or since the last one of a session that
    /// it gave up by itself.
    fn mem(&self, now: Time) -> u32 {
        u32::try_from(now.since(self.memory_since).as_secs()).unwrap_or(u32::MAX)
    }

    /// One datagram, decrypted in place; its bytes are worthless afterwards. What it causes comes out of [`Net::poll_output`].
    pub fn handle_datagram(&mut self, now: Time, from: SocketAddr, datagram: &mut [u8]) {
        self.stats.datagrams_in += 1;
        self.receive(now, Origin::Direct(from), datagram);
    }

    fn receive(&mut self, now: Time, origin: Origin, datagram: &mut [u8]) {
        // The largest that anybody sends; all that is kept of a packet, or handed on, is bounded by it.
        if datagram.len() > MAX_DATAGRAM {
            return self.stats.drop(Drop::Malformed);
        }
        let packet = match Packet::decode(datagram) {
            Ok(packet) => packet,
            Err(why) => return self.stats.drop(Drop::of_packet(why)),
        };
        if let Some(shard) = self.foreign_shard(&packet) {
            return self.hand_packet(shard, origin, datagram);
        }
        match packet {
            Packet::Short(short) => {
                let token = short.token;
                self.on_short(now, origin, token, datagram);
            }
            Packet::Init(init) => self.on_init(now, origin, &init),
            Packet::Resp(resp) => self.on_resp(now, origin, &resp),
            Packet::Cookie(cookie) => self.on_cookie(now, origin, &cookie),
            Packet::ResetHint(hint) => self.on_hint_for_any(now, origin, &hint),
            _ => self.stats.drop(Drop::Kind),
        }
    }

    /// Time has passed: what was due by `now` happens.
    pub fn handle_timeout(&mut self, now: Time) {
        self.run_timers(now);
    }

    /// What is to be done next; [`Output::Timeout`] when there is nothing more.
    pub fn poll_output(&mut self, now: Time) -> Output {
        loop {
            if let Some(output) = self.outputs.pop_front() {
                return output;
            }
            let Some(session) = self.dirty.pop_front() else { break };
            self.take_turn(now, session);
        }
        Output::Timeout(self.next_timeout())
    }

    /// What is there to be done already, without asking the sessions what else is ready to leave: for a driver that
    /// gives answers first, so that they leave together. [`Net::poll_output`] has to follow.
    pub fn poll_ready(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Gives a buffer back, so that the next packet needs no allocation.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        self.pool.give(buffer);
    }

    /// A buffer for a whole packet.
    fn buffer(&mut self) -> Vec<u8> {
        self.pool.take(MAX_DATAGRAM)
    }

    /// Opens a session. It exists at once: requests made in it wait until it is up.
    pub fn connect(
        &mut self,
        now: Time,
        peer: Id,
        key: &PeerKey,
        route: Route,
    ) -> Result<SessionId, CommandError> {
        self.connect_with(now, peer, key, route, &ConnectOptions::default())
    }

    /// [`Net::connect`], with options.
    pub fn connect_with(
        &mut self,
        now: Time,
        peer: Id,
        key: &PeerKey,
        route: Route,
        options: &ConnectOptions,
    ) -> Result<SessionId, CommandError> {
        if peer == self.config.id {
            return Err(CommandError::OwnId);
        }
        let path = match route {
            Route::Direct(address) => Path::Direct(address),
            Route::Host => self.path_by_id(peer)?,
        };
        let session = self.start_handshake(now, peer, key, path, None)?;
        if let (Some(public), Some(state)) = (options.pin, self.table.get_mut(session)) {
            state.rare.begin().pin = Some(Box::new(pinning::Pin::new(public)));
        }
        Ok(session)
    }

    /// Sends a request; its answer comes as an event with `id`.
    pub fn request(
        &mut self,
        now: Time,
        session: SessionId,
        id: RequestId,
        request: &Request<'_>,
    ) -> Result<(), CommandError> {
        self.check_size(session, request.options, request.payload)?;
        let parts = RequestParts {
            code: request.code,
            options: request.options,
            payload: request.payload,
            is_confirmable: request.confirmable,
            is_repeatable: request.repeatable || request.code.is_idempotent(),
            is_observe: false,
            deadline: request.deadline,
            user: id.0,
        };
        let (state, mut cx) = self.line_of(now, session).ok_or(CommandError::Stale)?;
        if matches!(state.state, State::Closing { .. }) {
            return Err(CommandError::Closed);
        }
        state.line.request(&mut cx, &parts)?;
        self.touch(session);
        Ok(())
    }

    /// Gives a request up: no answer to it will be told.
    pub fn cancel(&mut self, now: Time, session: SessionId, id: RequestId) {
        if let Some((state, mut cx)) = self.line_of(now, session) {
            state.line.forget_user(&mut cx, id.0);
            // What waited behind it may leave.
            self.touch(session);
        }
    }

    /// Answers a request that came in. After an error it still waits for its answer.
    pub fn respond(
        &mut self,
        now: Time,
        incoming: IncomingId,
        code: Code,
        options: &OptionSet,
        payload: &[u8],
    ) -> Result<(), CommandError> {
        self.check_size(incoming.session, options, payload)?;
        let (state, mut cx) = self.line_of(now, incoming.session).ok_or(CommandError::Stale)?;
        state.line.respond(&mut cx, incoming.exchange, &ResponseParts { code, options, payload })?;
        self.touch(incoming.session);
        Ok(())
    }

    fn check_size(
        &self,
        session: SessionId,
        options: &OptionSet,
        payload: &[u8],
    ) -> Result<(), CommandError> {
        let max = self.max_message(session).ok_or(CommandError::Stale)?;
        let marker = usize::from(!payload.is_empty());
        let len = MESSAGE_HEAD + options_len(options) + marker + payload.len();
        if len > max { Err(CommandError::TooLarge { len, max }) } else { Ok(()) }
    }

    /// A session, and what its line needs of the net for a call.
    fn line_of(&mut self, now: Time, id: SessionId) -> Option<(&mut session::Session, Context<'_>)> {
        let session = self.table.get_mut(id)?;
        Some((session, Context { now, rng: &mut self.rng, pool: &mut self.pool, config: &self.line_config }))
    }

    /// Measures the round trip to a peer; the answer is [`Event::Pong`].
    pub fn ping(&mut self, now: Time, session: SessionId, id: RequestId) -> Result<(), CommandError> {
        let state = self.table.get_mut(session).ok_or(CommandError::Stale)?;
        if matches!(state.state, State::Closing { .. }) {
            return Err(CommandError::Closed);
        }
        let next_s = timers::next_s(state);
        state.control.queues.begin_with(&mut self.spare.queues);
        if !state.control.ask(Ask::Ping { user: Some(id), next_s }, now) {
            return Err(CommandError::QueueFull);
        }
        self.touch(session);
        Ok(())
    }

    /// Closes a session; open requests fail, the peer is told.
    pub fn close(&mut self, now: Time, session: SessionId) {
        self.end(now, session, CloseReason::Local, Some(crate::wire::frame::CloseCode::DONE));
    }

    /// Closes every session, so that peers and hosts know at once. Poll the outputs once more before leaving.
    pub fn shutdown(&mut self, now: Time) {
        // What goes through a host has to be told while the session with that host still stands.
        let (through, rest): (Vec<SessionId>, Vec<SessionId>) = self.table.all().partition(|id| {
            self.table.get(*id).is_some_and(|session| matches!(session.path, Path::Through(_)))
        });
        for session in through {
            self.end(now, session, CloseReason::Local, Some(crate::wire::frame::CloseCode::SHUTTING_DOWN));
        }
        for request in self.hosts.drain(..).flat_map(|host| host.waiting_lookups()) {
            self.outputs.push_back(Output::Event(Event::Found { request, status: None }));
        }
        for session in rest {
            self.end(now, session, CloseReason::Local, Some(crate::wire::frame::CloseCode::SHUTTING_DOWN));
        }
    }

    /// What is known of a session; `None` once it ended.
    pub fn info(&self, session: SessionId) -> Option<SessionInfo> {
        let state = self.table.get(session).filter(|state| !matches!(state.state, State::Closing { .. }))?;
        Some(SessionInfo {
            peer: state.peer,
            initiator: state.role == Role::Initiator,
            up: state.is_open(),
            path: state.path,
            rtt: state.line.round_trip(),
            max_message: self.max_message(session)?,
        })
    }

    /// The newest session that this peer opened, for requests of our own in it.
    pub fn accepted_from(&self, peer: Id) -> Option<SessionId> {
        let is_accepted = |session: &session::Session| session.role == Role::Responder && session.is_open();
        self.table.of_peer(peer).find(|(_, session)| is_accepted(session)).map(|(id, _)| id)
    }

    /// The store's answer to [`Output::Claim`].
    pub fn claim_checked(&mut self, now: Time, session: SessionId, outcome: ClaimOutcome) {
        self.finish_registration(now, session, outcome);
    }

    /// A fresh ephemeral secret.
    fn ephemeral(&mut self) -> DhSecret {
        self.ephemerals.next(&self.config.key)
    }

    /// A token that no session of this net has, marked with its shard.
    fn token(&mut self) -> Token {
        loop {
            if let Some(token) = Token::new(self.config.shard.mark(self.rng.next_u32()))
                && self.table.token_is_free(token)
            {
                return token;
            }
        }
    }

    /// A line that starts at a random message id.
    fn new_line(&mut self) -> Line {
        Line::new(Mid(self.rng.next_u32() as u16))
    }

    fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    /// Ends a handshake of ours that did not become a session.
    fn fail(&mut self, now: Time, id: SessionId, why: ConnectError) {
        let Some(mut session) = self.table.remove(id) else { return };
        self.fail_line(now, &mut session.line, crate::error::RequestError::NotSent(why));
        for ask in session.control.take_asks() {
            self.ask_failed(ask.what, ControlError::NotSent(why));
        }
        let is_local = why == ConnectError::Closed;
        let lost = if is_local { CloseReason::Local } else { CloseReason::Lost };
        self.renewal_failed(session.take_renewal(), lost);
        match session.host_place() {
            Some(host) => self.host_failed(now, host, why),
            None => self.event(Event::ConnectFailed { session: id, why }),
        }
    }
}

/// Bytes that options take in a message (RFC 7252, section 3.1).
fn options_len(options: &OptionSet) -> usize {
    let extended = |n: usize| usize::from(n >= 13) + usize::from(n >= 269);
    let mut before = 0;
    options.iter().fold(0, |len, option| {
        let delta = usize::from(option.number.0 - core::mem::replace(&mut before, option.number.0));
        len + 1 + extended(delta) + extended(option.value.len()) + option.value.len()
    })
}

/// What a peer says that it takes, within what the protocol allows (section 3.1).
fn max_udp(said: u16) -> u16 {
    said.clamp(256, MAX_DATAGRAM as u16)
}

fn fresh_secret(rng: &mut ChaCha12Rng) -> [u8; 32] {
    let mut secret = [0; 32];
    rng.fill_bytes(&mut secret);
    secret
}

fn line_config(config: &Config) -> LineConfig {
    let limits = &config.limits;
    LineConfig {
        max_message: MAX_DATAGRAM,
        max_waiting: limits.queue_messages,
        max_waiting_bytes: limits.queue_bytes,
        max_requests: limits.queue_messages + MAX_IN_FLIGHT,
        max_incoming: limits.open_incoming,
        max_answer_bytes: limits.answer_bytes,
        ack_delay: config.timers.ack_delay,
        ..LineConfig::default()
    }
}

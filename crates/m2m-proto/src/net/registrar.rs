//! Others' registrations with this net (protocol, section 8): PROVE, REGISTER, claims, epochs, leases, LOOKUP.
use super::{
    Net,
    control::Ask,
    session::{GuestLimits, Proof, Registering},
    shard::Asker,
};
use crate::{
    config::{Limits, Rate},
    error::CloseReason,
    event::{ClaimOutcome, ClaimRequest, Event, Output, SessionId},
    id::Id,
    relay::{
        budget::{BucketTable, Gauge, source_key},
        registry::{Bound, Registration},
    },
    session::keys::{self, Role},
    stats::Drop,
    time::{Duration, Time},
    wire::frame::{CloseCode, Epoch, FoundStatus, Frame, RegisterStatus, Req},
};

/// An epoch may be ahead of the host's clock by so much (protocol, section 8).
const EPOCH_SLACK_MS: u64 = 5 * 60 * 1000;
/// A net heard so lately need not be asked whether it is there.
const JUST_HEARD: Duration = Duration::from_secs(2);
/// Look-ups of one id that wait for it at once.
const MAX_ASKERS: usize = 16;
/// Longest lease of an ephemeral registration.
const EPHEMERAL_LEASE: Duration = Duration::from_secs(120);

/// Sources that are told apart when new claims are budgeted.
const CLAIM_BUCKETS: usize = 1024;
/// A bucket gets a token a second; a claim costs as many as there are seconds between two.
const SECONDS_PER_HOUR: u32 = 3600;

/// What one new claim costs.
fn claim_cost(limits: &Limits) -> u32 {
    (SECONDS_PER_HOUR / limits.claims_per_hour.max(1)).max(1)
}

/// New claims of each source: a claim is kept for good, so whoever has the host's key could fill the store.
pub(super) fn claim_budget(limits: &Limits) -> BucketTable {
    BucketTable::new(CLAIM_BUCKETS, 1, limits.claims_at_once.saturating_mul(claim_cost(limits)))
}

impl GuestLimits {
    pub(super) fn new(limits: &Limits) -> GuestLimits {
        let gauge = |rate: Rate| Gauge::new(rate.per_second, rate.burst);
        GuestLimits {
            registers: gauge(limits.register_rate),
            lookups: gauge(limits.lookup_rate),
            errors: gauge(limits.error_rate),
            packets: gauge(limits.relay_packets),
            bytes: gauge(limits.relay_bytes),
        }
    }
}

impl Net {
    pub(super) fn on_prove(&mut self, now: Time, id: SessionId, public: &[u8; 32], mac: &[u8; 16]) {
        let Some(session) = self.table.get_mut(id) else { return };
        let shown = keys::Proof { public: *public, mac: *mac };
        if session.is_unproven() {
            return self.on_device_proof(now, id, &shown);
        }
        // One try: who proves nothing costs one DH and has to make a new session for another.
        let Some(proof) = session.take_proof() else { return };
        if let Proof::Expected { ephemeral, hash, .. } = *proof
            && shown.verify(&ephemeral, &hash, Role::Initiator).is_ok()
        {
            session.guest.get_or_insert_default().proven = Some(*public);
        } else {
            self.stats.drop(Drop::BadHandshake);
        }
    }

    pub(super) fn on_register(&mut self, now: Time, id: SessionId, mut asked: Registering) {
        if !self.config.registry {
            return self.answer_register(id, asked.req, RegisterStatus::NO_REGISTRY, asked.epoch, 0);
        }
        let Some(session) = self.table.get_mut(id) else { return };
        let peer = session.peer;
        let guest = session.guest.get_or_insert_default();
        if guest.waiting.is_some() {
            // The store has not answered yet; this is the same question once more.
            return;
        }
        if !self.guest_limits.registers.take(&mut guest.registers, now, 1) {
            return self.stats.drop(Drop::OverBudget);
        }
        let mesh = self.hosts.iter().any(|host| host.id == peer);
        let session_path = session.path;
        let is_neighbour = matches!(session_path, super::Path::Direct(_));
        let allowed = is_neighbour
            && session.role == Role::Responder
            && !peer.is_reserved()
            && peer != self.config.id
            && !mesh;
        if !allowed || (guest.proven.is_none() && !asked.ephemeral) {
            return self.answer_register(id, asked.req, RegisterStatus::REFUSED, asked.epoch, 0);
        }
        if !self.registry.has_room(&peer) {
            return self.answer_register(id, asked.req, RegisterStatus::FULL, asked.epoch, 0);
        }
        let source = match session_path {
            super::Path::Direct(address) => source_key(address, self.hash_secret),
            super::Path::Through(_) => return,
        };
        let cost = claim_cost(&self.config.limits);
        let Some(guest) = self.table.get_mut(id).and_then(|session| session.guest.as_mut()) else { return };
        if guest.registered && (guest.claimed || asked.ephemeral) {
            // The store was asked when this session registered first.
            return self.bind(now, id, asked);
        }
        let public = if asked.ephemeral { None } else { guest.proven };
        // Charged before it is known whether the claim is new, and given back if it is not.
        asked.is_charged = public.is_some() && self.claim_budget.take(source, now, cost);
        guest.waiting = Some(asked);
        let may_be_new = asked.is_charged;
        self.outputs.push_back(Output::Claim(ClaimRequest { session: id, id: peer, public, may_be_new }));
    }

    pub(super) fn finish_registration(&mut self, now: Time, id: SessionId, outcome: ClaimOutcome) {
        let Some(session) = self.table.get_mut(id) else { return };
        let path = session.path;
        let Some(guest) = session.guest.as_mut() else { return };
        let Some(asked) = guest.waiting.take() else { return };
        let holds = matches!(outcome, ClaimOutcome::Held | ClaimOutcome::New);
        guest.claimed |= holds && !asked.ephemeral;
        if let (super::Path::Direct(address), true) = (path, asked.is_charged && outcome != ClaimOutcome::New)
        {
            let (source, cost) = (source_key(address, self.hash_secret), claim_cost(&self.config.limits));
            self.claim_budget.give_back(source, cost);
        }
        match outcome {
            ClaimOutcome::Held | ClaimOutcome::New => self.bind(now, id, asked),
            ClaimOutcome::NotNow => {
                self.answer_register(id, asked.req, RegisterStatus::BUSY, asked.epoch, 0);
            }
            ClaimOutcome::Taken { since } => {
                self.answer_register(id, asked.req, RegisterStatus::CLAIMED, asked.epoch, since);
            }
            ClaimOutcome::NotListed => {
                self.answer_register(id, asked.req, RegisterStatus::REFUSED, asked.epoch, 0);
            }
            ClaimOutcome::Failed => {
                self.answer_register(id, asked.req, RegisterStatus::STORE, asked.epoch, 0);
            }
        }
        self.touch(id);
    }

    /// Somebody has changed the claims beside the machine: the id belongs to this device key now, or to nobody. A
    /// registration that does not rest on that ends with its session, whose device asks anew and is told how it stands.
    pub fn claim_changed(&mut self, now: Time, id: Id, public: Option<[u8; 32]>) {
        let Some(there) = self.registry.get(&id).map(|there| there.session) else { return };
        let guest = self.table.get(there).and_then(|session| session.guest.as_ref());
        let proven = guest.filter(|guest| guest.claimed).and_then(|guest| guest.proven);
        if proven != public {
            self.end(now, there, CloseReason::Unclaimed, Some(CloseCode::REFUSED));
        }
    }

    fn bind(&mut self, now: Time, id: SessionId, asked: Registering) {
        let Some(peer) = self.table.get(id).map(|session| session.peer) else { return };
        let cap = if asked.ephemeral { EPHEMERAL_LEASE } else { Duration::MAX };
        let lease =
            Duration::from_secs(u64::from(asked.lease_s.max(1))).min(self.config.max_router_tm).min(cap);
        let claimed =
            self.table.get(id).and_then(|session| session.guest.as_ref()).is_some_and(|guest| guest.claimed);
        if let Some(unix) = self.unix_ms(now)
            && asked.epoch.0 > unix.saturating_add(EPOCH_SLACK_MS)
        {
            if self.registry.get(&peer).is_some_and(|there| there.claimed && !claimed) {
                return self.answer_register(id, asked.req, RegisterStatus::REFUSED, asked.epoch, 0);
            }
            // One that was made while our clock ran ahead would otherwise stand in the way until then. Whose id it is
            // was asked before: a stranger's word changes nothing of another's registration.
            self.registry.lower_epoch(&peer, Epoch(unix.saturating_sub(1)));
            return self.answer_register(id, asked.req, RegisterStatus::AHEAD, Epoch(unix), 0);
        }
        match self.registry.bind(peer, Registration { session: id, epoch: asked.epoch, claimed }) {
            Bound::Stale(epoch) => {
                return self.answer_register(id, asked.req, RegisterStatus::STALE, epoch, 0);
            }
            Bound::Claimed => {
                return self.answer_register(id, asked.req, RegisterStatus::REFUSED, asked.epoch, 0);
            }
            Bound::Full => return self.answer_register(id, asked.req, RegisterStatus::FULL, asked.epoch, 0),
            Bound::Replaced(older) => {
                self.end(now, older, CloseReason::Peer(CloseCode::REPLACED.0), Some(CloseCode::REPLACED));
            }
            Bound::New | Bound::Refreshed => {}
        }
        let Some(guest) = self.table.get_mut(id).and_then(|session| session.guest.as_mut()) else { return };
        let news = !core::mem::replace(&mut guest.registered, true);
        guest.lease = lease.into();
        let lease_s = u32::try_from(guest.lease.get().as_secs().max(1)).unwrap_or(u32::MAX);
        let frame = Frame::Registered {
            req: asked.req,
            status: RegisterStatus::OK,
            epoch: asked.epoch,
            lease_s,
            since: 0,
            path: &[],
        };
        self.answer(id, frame);
        if news {
            self.event(Event::Registered { id: peer });
        }
        self.arm(id);
    }

    fn answer_register(&mut self, id: SessionId, req: Req, status: RegisterStatus, epoch: Epoch, since: u32) {
        self.answer(id, Frame::Registered { req, status, epoch, lease_s: 0, since, path: &[] });
    }

    fn answer(&mut self, id: SessionId, frame: Frame<'static>) {
        if let Some(session) = self.table.get_mut(id) {
            session.control.once(frame);
        }
        self.touch(id);
    }

    pub(super) fn on_unregister(&mut self, now: Time, id: SessionId, req: Req, epoch: Epoch) {
        let Some(session) = self.table.get_mut(id) else { return };
        let peer = session.peer;
        if session
            .guest
            .as_mut()
            .is_some_and(|guest| !self.guest_limits.registers.take(&mut guest.registers, now, 1))
        {
            return self.stats.drop(Drop::OverBudget);
        }
        let ours = self.registry.get(&peer).is_some_and(|there| there.session == id && there.epoch <= epoch);
        if ours {
            self.unregister_session(peer, id);
        }
        self.answer(id, Frame::Done { req, status: 0 });
    }

    /// Ends the registration that hangs on this session, if it is still the one that counts.
    pub(super) fn unregister_session(&mut self, peer: Id, id: SessionId) {
        if let Some(guest) = self.table.get_mut(id).and_then(|session| session.guest.as_mut()) {
            guest.registered = false;
        }
        if self.registry.unbind(&peer, id) {
            self.event(Event::Unregistered { id: peer });
        }
    }

    /// LOOKUP is answered to those who are registered here, and says where, never an address.
    pub(super) fn on_lookup(&mut self, now: Time, id: SessionId, req: Req, wanted: Id) {
        let own = self.config.id;
        let Some(session) = self.table.get_mut(id) else { return };
        let in_budget = session
            .guest
            .as_mut()
            .filter(|guest| guest.registered)
            .map(|guest| self.guest_limits.lookups.take(&mut guest.lookups, now, 1));
        let status = match in_budget {
            None => FoundStatus::REFUSED,
            Some(false) => FoundStatus::BUSY,
            Some(true) if wanted == own => FoundStatus::ONLINE,
            Some(true) => match self.registry.get(&wanted).map(|there| there.session) {
                None if self.ask_elsewhere(id, req, wanted) => return,
                None => FoundStatus::OFFLINE,
                Some(there) => match self.presence(now, there, self.asker(id, req)) {
                    Some(status) => status,
                    None => return,
                },
            },
        };
        self.answer_lookup(self.asker(id, req), status);
    }

    /// Whether a registered net is there: at once if it was heard just now. Else it is asked, and the answer follows.
    pub(super) fn presence(&mut self, now: Time, there: SessionId, asker: Asker) -> Option<FoundStatus> {
        let is_itself = asker == self.asker(there, asker.req);
        let session = self.table.get_mut(there)?;
        let Some(guest) = session.guest.as_mut() else { return Some(FoundStatus::OFFLINE) };
        if now.since(session.last_heard) < JUST_HEARD || is_itself {
            return Some(FoundStatus::ONLINE);
        }
        if guest.askers.contains(&asker) {
            return None;
        }
        if guest.askers.len() >= MAX_ASKERS {
            return Some(FoundStatus::BUSY);
        }
        if guest.askers.is_empty() {
            guest.probed = now;
            session.control.ask(Ask::Probe, now);
        }
        guest.askers.push(asker);
        self.touch(there);
        None
    }

    /// Tells those who look a peer up how it is.
    pub(super) fn answer_askers(&mut self, there: SessionId, status: FoundStatus) {
        let askers = self
            .table
            .get_mut(there)
            .and_then(|session| session.guest.as_mut())
            .map(|guest| core::mem::take(&mut guest.askers));
        for asker in askers.unwrap_or_default() {
            self.answer_lookup(asker, status);
        }
    }

    pub(super) fn answer_lookup(&mut self, asker: Asker, status: FoundStatus) {
        let Some((id, req)) = self.asker_here(asker) else { return self.answer_elsewhere(asker, status) };
        let is_here = matches!(status, FoundStatus::ONLINE | FoundStatus::SILENT);
        let home = if is_here { self.config.id } else { Id::ANY };
        self.answer(id, Frame::Found { req, status, home });
    }
}

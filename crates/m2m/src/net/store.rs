//! The disk, off the event loop: claims in batches, the last epoch, a net key that was changed from afar.
use std::{
    sync::{Arc, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use m2m_proto::{
    event::{ClaimOutcome, ClaimRequest, KeyToStore},
    time::Time,
};
use tracing::{error, warn};

use super::{
    news::{NetEvent, date},
    remote_key::OwnKey,
    shards,
    shared::{Shared, State},
};
use crate::state::{self, Claims, StateDir, StateError};

/// A running host looks so often whether somebody has pinned or forgotten claims.
const EDITS_INTERVAL: Duration = Duration::from_secs(1);

/// What a net has to keep, and what is on its way to the disk. One write of each kind at a time.
pub(super) struct Store {
    dir: Option<Arc<StateDir>>,
    claims: Option<Arc<Claims>>,
    waiting: Vec<ClaimRequest>,
    /// A look at the claims is under way, or at what was edited: one at a time, so that the machine is told in the
    /// order in which the claims were read.
    checking: bool,
    /// It is time to look for edits.
    edits_due: bool,
    /// The number of the last edit that the machine was told.
    last_edit: u64,
    epoch: Option<u64>,
    keeping: bool,
    own_key: OwnKey,
    new_key: Option<KeyToStore>,
    changing: bool,
    /// Only claims that are there already count.
    strict: bool,
}

impl Store {
    pub(super) fn new(
        dir: Option<Arc<StateDir>>,
        claims: Option<Arc<Claims>>,
        own_key: OwnKey,
        strict: bool,
    ) -> Store {
        Store {
            dir,
            claims,
            waiting: Vec::new(),
            checking: false,
            edits_due: false,
            last_edit: 0,
            epoch: None,
            keeping: false,
            own_key,
            new_key: None,
            changing: false,
            strict,
        }
    }

    /// The net key that another shard has kept.
    pub(super) fn set_own_key(&mut self, own_key: OwnKey) {
        self.own_key = own_key;
    }

    pub(super) fn own_key(&self) -> OwnKey {
        self.own_key.clone()
    }

    pub(super) fn check(&mut self, claim: ClaimRequest) {
        self.waiting.push(claim);
    }

    /// The newest epoch is the one that counts.
    pub(super) fn keep_epoch(&mut self, epoch: u64) {
        if self.dir.is_some() {
            self.epoch = Some(epoch);
        }
    }

    /// True while something is on its way to the disk.
    pub(super) fn is_busy(&self) -> bool {
        self.checking || self.keeping || self.changing
    }

    /// Lets go of the files; what is being written is finished first.
    pub(super) fn close(&mut self) {
        self.dir = None;
        self.claims = None;
        self.waiting.clear();
        self.new_key = None;
    }
}

/// Looks for claims that others edit, for as long as the net lives.
pub(super) fn watch_edits(shared: &Arc<Shared>) {
    if shared.look().store.claims.is_none() {
        return;
    }
    let watched = Arc::downgrade(shared);
    // It ends by itself, within an interval of the net's end.
    drop(tokio::spawn(async move {
        let mut interval = tokio::time::interval(EDITS_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let Some(shared) = watched.upgrade() else { return };
            let mut state = shared.look();
            if state.store.claims.is_none() {
                return;
            }
            state.store.edits_due = true;
            start_claims(&shared, &mut state);
        }
    }));
}

/// Sends what waits to the disk, if nothing of its kind is under way.
pub(super) fn start(shared: &Arc<Shared>, state: &mut State) {
    start_key_change(shared, state);
    start_claims(shared, state);
    let store = &mut state.store;
    if !store.keeping
        && let (Some(epoch), Some(dir)) = (store.epoch.take(), store.dir.clone())
    {
        store.keeping = true;
        let shared = shared.clone();
        drop(state.runtime.spawn_blocking(move || {
            if let Err(why) = dir.keep_epoch(epoch) {
                warn!("the registration's epoch was not kept: {why}");
            }
            // The folder is free before anyone learns that the writing is over.
            drop(dir);
            shared.with(|state, _| state.store.keeping = false);
            shared.idle.notify_waiters();
        }));
    }
}

fn start_claims(shared: &Arc<Shared>, state: &mut State) {
    let store = &mut state.store;
    let is_due = store.edits_due || !store.waiting.is_empty();
    let Some(claims) = store.claims.clone().filter(|_| is_due && !store.checking) else { return };
    store.checking = true;
    let batch = std::mem::take(&mut store.waiting);
    let edits_after = std::mem::take(&mut store.edits_due).then_some(store.last_edit);
    let shared = shared.clone();
    // Dropping the handle leaves the task running; nobody waits for it but the machine.
    drop(state.runtime.spawn_blocking(move || {
        if let Some(last) = edits_after {
            tell_edits(&shared, &claims, last);
        }
        check_batch(&shared, &claims, &batch);
    }));
}

/// Tells the machine whose claims are others' now.
fn tell_edits(shared: &Arc<Shared>, claims: &Claims, last: u64) {
    match claims.edits_since(last) {
        Ok(edits) if edits.latest != last => shared.with(|state, now| {
            state.store.last_edit = edits.latest;
            for (id, claim) in edits.ids {
                state.machine.claim_changed(now, id, claim.map(|claim| claim.public));
            }
        }),
        Ok(_) => {}
        Err(why) => warn!("what was pinned or forgotten can't be read: {why}"),
    }
}

/// Takes a key that is to become the net's own; a net that can keep none says so at once.
pub(super) fn keep_key(state: &mut State, now: Time, key: KeyToStore) {
    if state.store.dir.is_some() {
        // The machine gives the next one only after this one's answer.
        state.store.new_key = Some(key);
        return;
    }
    warn!("the net key was to be changed from afar, but this net has no state folder to keep it in");
    state.machine.key_stored(now, key.session, false);
}

fn start_key_change(shared: &Arc<Shared>, state: &mut State) {
    let store = &mut state.store;
    let (Some(dir), Some(key)) = (store.dir.clone(), store.new_key.take()) else { return };
    store.changing = true;
    let shared = shared.clone();
    drop(state.runtime.spawn_blocking(move || {
        change_key(&shared, &dir, &key);
        drop(dir);
        shared.with(|state, _| state.store.changing = false);
        shared.idle.notify_waiters();
    }));
}

/// Writes a new net key down and takes it, in all shards of the net; one change at a time.
fn change_key(shared: &Arc<Shared>, dir: &StateDir, key: &KeyToStore) {
    let turn = shared.look().store.own_key.turn();
    let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
    let own_key = shared.look().store.own_key.clone();
    if !own_key.is_followed_by(key.key_id) {
        // Another shard has taken another key meanwhile, and told the machine: whoever sent this one asks again.
        return;
    }
    let kept = own_key.change(key);
    let written = dir.keep_net_key(&kept);
    shared.with(|state, now| {
        match &written {
            Ok(()) => state.store.own_key.changed_to(kept),
            Err(why) => error!("the net key was not changed: {why}"),
        }
        state.machine.key_stored(now, key.session, written.is_ok());
        if written.is_ok() {
            warn!(key_id = key.key_id, "the net key was changed from afar, by a holder of the one before");
            shared.tell(NetEvent::KeyChanged { key_id: key.key_id });
        }
    });
    if written.is_ok() {
        shards::tell_key(shared, key);
    }
}

fn check_batch(shared: &Arc<Shared>, claims: &Claims, batch: &[ClaimRequest]) {
    let strict = shared.look().store.strict;
    // Without a claim there is nothing to ask the disk.
    let outcomes = if batch.is_empty() { Ok(Vec::new()) } else { outcomes(claims, batch, strict) };
    let outcomes = outcomes.unwrap_or_else(|why| {
        error!("no registration can be accepted: {why}");
        vec![ClaimOutcome::Failed; batch.len()]
    });
    shared.with(|state, now| {
        state.store.checking = false;
        for (claim, outcome) in batch.iter().zip(outcomes) {
            if let ClaimOutcome::Taken { since } = outcome {
                warn!(id = ?claim.id, "claim refused: the id is claimed by another key since {}", date(since));
            }
            if outcome == ClaimOutcome::NotListed {
                match claim.public.map(hex) {
                    Some(device) => {
                        warn!(id = ?claim.id, %device, "registration refused: this host takes listed device keys only");
                    }
                    None => warn!(id = ?claim.id, "registration refused: it shows no device key, and this host takes listed ones only"),
                }
            }
            state.machine.claim_checked(now, claim.session, outcome);
        }
    });
    shared.idle.notify_waiters();
}

/// One outcome a claim. All that claim go in one transaction; the ephemeral ones only look.
fn outcomes(claims: &Claims, batch: &[ClaimRequest], strict: bool) -> Result<Vec<ClaimOutcome>, StateError> {
    if strict {
        return batch.iter().map(|claim| listed(claims, claim)).collect();
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let may_be_kept = |claim: &ClaimRequest| claim.public.filter(|_| claim.may_be_new);
    let durable: Vec<_> = batch.iter().filter_map(|claim| Some((claim.id, may_be_kept(claim)?))).collect();
    let mut durable = claims.check_or_insert_all(&durable, now)?.into_iter();
    let outcome = |claim: &ClaimRequest| match claim.public {
        Some(public) if !claim.may_be_new => Ok(match claims.get(claim.id)? {
            Some(held) if held.public == public => ClaimOutcome::Held,
            Some(held) => taken(held.since),
            None => ClaimOutcome::NotNow,
        }),
        Some(_) => Ok(durable.next().map_or(ClaimOutcome::Failed, outcome_of)),
        None => Ok(claims.get(claim.id)?.map_or(ClaimOutcome::Held, |held| taken(held.since))),
    };
    batch.iter().map(outcome).collect()
}

/// Whether a claim is listed, without keeping any; an ephemeral registration is none that could be.
fn listed(claims: &Claims, claim: &ClaimRequest) -> Result<ClaimOutcome, StateError> {
    Ok(match (claims.get(claim.id)?, claim.public) {
        (Some(held), Some(public)) if held.public == public => ClaimOutcome::Held,
        (Some(held), _) => taken(held.since),
        (None, _) => ClaimOutcome::NotListed,
    })
}

fn hex(public: [u8; 32]) -> String {
    let mut text = String::with_capacity(64);
    crate::keyfile::push_hex(&mut text, &public);
    text
}

fn outcome_of(outcome: state::ClaimOutcome) -> ClaimOutcome {
    match outcome {
        state::ClaimOutcome::Held => ClaimOutcome::Held,
        state::ClaimOutcome::New => ClaimOutcome::New,
        state::ClaimOutcome::Taken { since } => taken(since),
    }
}

fn taken(since: u64) -> ClaimOutcome {
    ClaimOutcome::Taken { since: u32::try_from(since).unwrap_or(u32::MAX) }
}

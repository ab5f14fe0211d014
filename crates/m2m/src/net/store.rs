//! The disk, off the event loop: claims in batches, and the last epoch.
use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use m2m_proto::event::{ClaimOutcome, ClaimRequest};
use tracing::{error, warn};

use super::{
    news::date,
    shared::{Shared, State},
};
use crate::state::{self, Claims, StateDir, StateError};

/// What a net has to keep, and what is on its way to the disk. One write of each kind at a time.
pub(super) struct Store {
    dir: Option<Arc<StateDir>>,
    claims: Option<Arc<Claims>>,
    waiting: Vec<ClaimRequest>,
    checking: bool,
    epoch: Option<u64>,
    keeping: bool,
}

impl Store {
    pub(super) fn new(dir: Option<StateDir>, claims: Option<Claims>) -> Store {
        Store {
            dir: dir.map(Arc::new),
            claims: claims.map(Arc::new),
            waiting: Vec::new(),
            checking: false,
            epoch: None,
            keeping: false,
        }
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
        self.checking || self.keeping
    }

    /// Lets go of the files; what is being written is finished first.
    pub(super) fn close(&mut self) {
        self.dir = None;
        self.claims = None;
        self.waiting.clear();
    }
}

/// Sends what waits to the disk, if nothing of its kind is under way.
pub(super) fn start(shared: &Arc<Shared>, state: &mut State) {
    let store = &mut state.store;
    if !store.checking
        && !store.waiting.is_empty()
        && let Some(claims) = store.claims.clone()
    {
        store.checking = true;
        let batch = std::mem::take(&mut store.waiting);
        let shared = shared.clone();
        // Dropping the handle leaves the task running; nobody waits for it but the machine.
        drop(state.runtime.spawn_blocking(move || check_batch(&shared, &claims, &batch)));
    }
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

fn check_batch(shared: &Arc<Shared>, claims: &Claims, batch: &[ClaimRequest]) {
    let outcomes = outcomes(claims, batch).unwrap_or_else(|why| {
        error!("no registration can be accepted: {why}");
        vec![ClaimOutcome::Failed; batch.len()]
    });
    shared.with(|state, now| {
        state.store.checking = false;
        for (claim, outcome) in batch.iter().zip(outcomes) {
            if let ClaimOutcome::Taken { since } = outcome {
                warn!(id = ?claim.id, "claim refused: the id is claimed by another key since {}", date(since));
            }
            state.machine.claim_checked(now, claim.session, outcome);
        }
    });
    shared.idle.notify_waiters();
}

/// One outcome a claim. All that claim go in one transaction; the ephemeral ones only look.
fn outcomes(claims: &Claims, batch: &[ClaimRequest]) -> Result<Vec<ClaimOutcome>, StateError> {
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

//! The shards of one net: a machine, a socket and a driver each, all on one port. The system brings what comes to any of
//! them; what belongs to another is handed over, in batches, through bounded boxes.
//!
//! A net of one shard has no boxes, and does nothing of this.
use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    task::{Context, Poll, Waker},
};

use m2m_proto::{
    config::{Config, Shard},
    event::KeyToStore,
    id::Id,
    net::{self, Handed},
    session::keys::NetKey,
    stats::Stats,
    time::Time,
};

use super::shared::Shared;

/// What may wait for one shard; what is more is lost and counted, as in a socket's buffer that is full.
const MAX_WAITING: usize = 1024;

/// All shards of a net, in order; one at least.
#[derive(Clone)]
pub(super) struct Shards {
    all: Arc<[Arc<Shared>]>,
    shard: Shard,
}

impl Shards {
    pub(super) fn new(all: Vec<Arc<Shared>>) -> Shards {
        let count = u8::try_from(all.len()).unwrap_or(Shard::MAX);
        let siblings: Vec<Weak<Shared>> = all.iter().map(Arc::downgrade).collect();
        for shared in &all {
            // They are introduced to each other once, here.
            let _ = shared.siblings.set(siblings.clone().into());
        }
        Shards { all: all.into(), shard: Shard { index: 0, count } }
    }

    pub(super) fn all(&self) -> &[Arc<Shared>] {
        &self.all
    }

    /// The one that does what one has to do for all.
    pub(super) fn first(&self) -> &Arc<Shared> {
        &self.all[0]
    }

    /// The one where a peer's sessions live. One whose id is not known yet may be anywhere.
    pub(super) fn of(&self, peer: Id) -> &Arc<Shared> {
        if !self.shard.has_others() || peer == Id::ANY {
            return self.first();
        }
        self.all.get(usize::from(self.shard.of_id(peer))).unwrap_or(self.first())
    }

    /// How many of something all machines have.
    pub(super) fn count(&self, count: impl Fn(&net::Net) -> usize) -> usize {
        self.all.iter().map(|shared| count(&shared.look().machine)).sum()
    }

    /// The sum of what each shard has counted.
    pub(super) fn sum(&self, count: impl Fn(&Shared) -> u64) -> u64 {
        self.all.iter().map(|shared| count(shared)).sum()
    }

    pub(super) fn stats(&self) -> Stats {
        let mut sum = Stats::default();
        self.all.iter().for_each(|shared| sum.add(shared.look().machine.stats()));
        sum
    }

    /// Waits until the driver of each is gone, and its socket closed.
    pub(super) async fn ended(&self) {
        for shared in self.all.iter() {
            let mut ended = shared.ended.subscribe();
            // It can't fail: we hold the sender.
            let _ = ended.wait_for(|ended| *ended).await;
        }
    }
}

/// The configuration of each shard of a net of so many. What a source may claim of ids in all is shared among them:
/// claims are kept for good.
pub(super) fn configs(config: &Config, count: u8) -> Vec<Config> {
    (0..count)
        .map(|index| {
            let mut config = config.clone();
            config.shard = Shard { index, count };
            let limits = &mut config.limits;
            limits.claims_per_hour = limits.claims_per_hour.div_ceil(count.into());
            limits.claims_at_once = limits.claims_at_once.div_ceil(count.into());
            config
        })
        .collect()
}

/// The other machines of the net that a shard belongs to.
pub(super) type Siblings = OnceLock<Box<[Weak<Shared>]>>;

/// Tells the other shards of a net key that one of them has taken, and that is on the disk.
pub(super) fn tell_key(taker: &Shared, new: &KeyToStore) {
    let Ok(key) = NetKey::new(&new.bytes) else { return };
    let own_key = taker.look().store.own_key();
    for sibling in taker.siblings.get().into_iter().flatten().filter_map(Weak::upgrade) {
        if !std::ptr::eq(&*sibling, taker) {
            sibling.with(|state, now| {
                state.machine.take_key(now, new.key_id, key.clone());
                state.store.set_own_key(own_key.clone());
            });
        }
    }
}

/// A shard's way to the others, and theirs to it.
pub(super) struct Post {
    own: usize,
    boxes: Arc<[LetterBox]>,
    /// What is to be handed over, to each shard.
    leaving: Box<[Vec<Handed>]>,
}

#[derive(Default)]
pub(super) struct LetterBox(Mutex<Letters>);

#[derive(Default)]
struct Letters {
    waiting: Vec<Handed>,
    /// Emptied buffers, for whoever hands over next.
    spent: Vec<Vec<u8>>,
    /// The driver, while it sleeps.
    driver: Option<Waker>,
}

impl LetterBox {
    fn open(&self) -> MutexGuard<'_, Letters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Post {
    /// One for each of so many shards; none for one alone.
    pub(super) fn new(count: u8) -> Vec<Option<Post>> {
        if count <= 1 {
            return vec![None];
        }
        let boxes: Arc<[LetterBox]> = (0..count).map(|_| LetterBox::default()).collect();
        let post =
            |own| Post { own, boxes: boxes.clone(), leaving: boxes.iter().map(|_| Vec::new()).collect() };
        (0..usize::from(count)).map(|own| Some(post(own))).collect()
    }

    /// What the driver looks into.
    pub(super) fn inbound(&self) -> Inbound {
        Inbound { own: self.own, boxes: self.boxes.clone(), taken: Vec::new(), spent: Vec::new() }
    }

    pub(super) fn push(&mut self, shard: u8, handed: Handed) {
        if let Some(leaving) = self.leaving.get_mut(usize::from(shard)) {
            leaving.push(handed);
        }
    }

    /// Puts what was pushed into the boxes of the others, as far as there is room; their drivers are to be woken once no
    /// lock is held.
    pub(super) fn deliver(&mut self, machine: &mut net::Net, wakers: &mut Vec<Waker>) {
        for (leaving, place) in self.leaving.iter_mut().zip(self.boxes.iter()) {
            if leaving.is_empty() {
                continue;
            }
            let mut letters = place.open();
            let room = MAX_WAITING.saturating_sub(letters.waiting.len()).min(leaving.len());
            letters.waiting.extend(leaving.drain(..room));
            let returned = letters.spent.len().saturating_sub(room);
            letters.spent.drain(returned..).for_each(|buffer| machine.recycle(buffer));
            wakers.extend(letters.driver.take());
            drop(letters);
            for lost in leaving.drain(..) {
                let buffer = machine.handover_failed(lost);
                machine.recycle(buffer);
            }
        }
    }
}

/// What the others have handed over to a shard.
pub(super) struct Inbound {
    own: usize,
    boxes: Arc<[LetterBox]>,
    taken: Vec<Handed>,
    spent: Vec<Vec<u8>>,
}

impl Inbound {
    /// Ready when something waits; otherwise the task is woken then.
    pub(super) fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        let Some(place) = self.boxes.get(self.own) else { return Poll::Pending };
        let mut letters = place.open();
        if !letters.waiting.is_empty() {
            return Poll::Ready(());
        }
        match &mut letters.driver {
            Some(driver) => driver.clone_from(cx.waker()),
            None => letters.driver = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Takes out what waits; true if there is anything.
    pub(super) fn fetch(&mut self) -> bool {
        let Some(place) = self.boxes.get(self.own) else { return false };
        let mut letters = place.open();
        std::mem::swap(&mut self.taken, &mut letters.waiting);
        let most = MAX_WAITING.saturating_sub(letters.spent.len()).min(self.spent.len());
        letters.spent.extend(self.spent.drain(..most));
        self.spent.clear();
        !self.taken.is_empty()
    }

    /// Gives the machine what was taken out.
    pub(super) fn feed(&mut self, now: Time, machine: &mut net::Net) {
        self.spent.extend(self.taken.drain(..).map(|handed| machine.handle_handed(now, handed)));
    }
}

//! Who is registered here, and through which session. Addresses are not kept: the session has them.
use alloc::collections::BTreeMap;

use crate::{event::SessionId, id::Id, wire::frame::Epoch};

/// One id's registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The session that it was made in, and that its packets leave through.
    pub session: SessionId,
    /// Which of the device's registrations this is: the highest counts.
    pub epoch: Epoch,
    /// It was made with a proven claim to the id. One without never stands in the way of one with.
    pub claimed: bool,
}

/// What became of a REGISTER.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// The id was not registered.
    New,
    /// The same registration again.
    Refreshed,
    /// It replaces that of an older session.
    Replaced(SessionId),
    /// A newer one stands, with this epoch.
    Stale(Epoch),
    /// One that rests on a claim stands, and this one does not.
    Claimed,
    /// The table is full.
    Full,
}

/// The ids registered with a host.
#[derive(Debug, Default)]
pub struct Registry {
    bindings: BTreeMap<Id, Registration>,
    capacity: usize,
}

impl Registry {
    /// An empty registry for at most so many ids.
    pub fn new(capacity: usize) -> Registry {
        Registry { bindings: BTreeMap::new(), capacity }
    }

    /// How many ids are registered.
    pub fn len(&self) -> usize {
        self.bindings.len()
    }

    /// True when no id is registered.
    pub fn is_empty(&self) -> bool {
        self.bindings.is_empty()
    }

    /// The registration of an id.
    pub fn get(&self, id: &Id) -> Option<&Registration> {
        self.bindings.get(id)
    }

    /// Registers, if no registration stands that is newer (protocol, section 8). The highest epoch wins whatever the
    /// order in which registrations arrive.
    pub fn bind(&mut self, id: Id, new: Registration) -> Bound {
        let full = self.bindings.len() >= self.capacity;
        match self.bindings.get_mut(&id) {
            None if full => Bound::Full,
            None => {
                self.bindings.insert(id, new);
                Bound::New
            }
            Some(there) if there.session == new.session && new.epoch >= there.epoch => {
                *there = Registration { claimed: there.claimed || new.claimed, ..new };
                Bound::Refreshed
            }
            Some(there) if there.claimed && !new.claimed => Bound::Claimed,
            Some(there) if new.claimed && !there.claimed => {
                Bound::Replaced(core::mem::replace(there, new).session)
            }
            Some(there) if new.epoch > there.epoch => Bound::Replaced(core::mem::replace(there, new).session),
            Some(there) => Bound::Stale(there.epoch),
        }
    }

    /// An epoch that lies in the future of a clock that was set back since counts as this one.
    pub fn lower_epoch(&mut self, id: &Id, most: Epoch) {
        if let Some(there) = self.bindings.get_mut(id) {
            there.epoch = there.epoch.min(most);
        }
    }

    /// True if this id is registered, or could be.
    pub fn has_room(&self, id: &Id) -> bool {
        self.bindings.len() < self.capacity || self.bindings.contains_key(id)
    }

    /// Ends the registration of an id if it hangs on this session; a newer one stays.
    pub fn unbind(&mut self, id: &Id, session: SessionId) -> bool {
        let ours = self.bindings.get(id).is_some_and(|there| there.session == session);
        if ours {
            self.bindings.remove(id);
        }
        ours
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: Id = Id([2; 16]);

    fn registration(slot: u32, epoch: u64) -> Registration {
        Registration { session: SessionId { slot, generation: 0 }, epoch: Epoch(epoch), claimed: true }
    }

    #[test]
    fn a_newer_registration_replaces_an_older_one_and_not_the_other_way_round() {
        let mut registry = Registry::new(8);
        assert_eq!(registry.bind(ID, registration(1, 10)), Bound::New);
        assert_eq!(registry.bind(ID, registration(1, 10)), Bound::Refreshed);
        assert_eq!(registry.bind(ID, registration(2, 10)), Bound::Stale(Epoch(10)));
        assert_eq!(registry.bind(ID, registration(2, 11)), Bound::Replaced(registration(1, 0).session));
        assert_eq!(registry.bind(ID, registration(1, 10)), Bound::Stale(Epoch(11)));
    }

    #[test]
    fn a_claimed_registration_replaces_one_without_a_claim_whatever_the_epochs_and_never_the_other_way_round()
    {
        let squatter = Registration { claimed: false, ..registration(1, 1_000) };
        let mut registry = Registry::new(8);
        registry.bind(ID, squatter);
        assert_eq!(registry.bind(ID, registration(2, 10)), Bound::Replaced(squatter.session));
        assert_eq!(registry.bind(ID, squatter), Bound::Claimed);
    }

    #[test]
    fn the_end_of_a_replaced_session_leaves_the_newer_registration_alone() {
        let mut registry = Registry::new(8);
        registry.bind(ID, registration(1, 1));
        registry.bind(ID, registration(2, 2));
        assert!(!registry.unbind(&ID, registration(1, 0).session));
        assert!(registry.unbind(&ID, registration(2, 0).session));
        assert!(registry.is_empty());
    }

    #[test]
    fn a_full_registry_refuses_the_new_and_keeps_the_known() {
        let mut registry = Registry::new(1);
        registry.bind(ID, registration(1, 1));
        assert_eq!(registry.bind(Id([3; 16]), registration(2, 1)), Bound::Full);
        assert_eq!(registry.bind(ID, registration(3, 2)), Bound::Replaced(registration(1, 0).session));
    }

    proptest! {
        #[test]
        fn whatever_the_order_the_highest_epoch_is_bound(epochs in proptest::collection::vec(0u64..50, 1..20)) {
            let mut registry = Registry::new(8);
            for (session, epoch) in epochs.iter().enumerate() {
                registry.bind(ID, registration(session as u32, *epoch));
            }
            prop_assert_eq!(registry.get(&ID).unwrap().epoch.0, *epochs.iter().max().unwrap());
        }
    }
}

//! Device-key pinning (protocol, section 8.1): a session that its initiator opened to one device, not to whoever holds
//! the peer's net key. PROVE_ASK goes with the first packet; until PROVE was checked nothing of the user's leaves, in
//! either direction, and the session counts as not up.
use alloc::boxed::Box;

use super::{Net, control::Ask, session::Session};
use crate::{
    error::{CloseReason, ConnectError},
    event::{Event, SessionId},
    session::{
        handshake::Established,
        keys::{self, DhSecret, Role},
    },
    stats::Drop,
    time::Time,
    wire::frame::{CloseCode, Frame},
};

/// The device that a session's peer has to be.
pub(crate) struct Pin {
    public: [u8; 32],
    /// What its proof will be checked against; none before the handshake is done, and none once it is proved.
    awaiting: Option<Awaiting>,
    /// It was proved once: the user knows of the session, and a later handshake in it has to be proved as well.
    is_known: bool,
}

struct Awaiting {
    ephemeral: DhSecret,
    hash: [u8; 32],
}

impl Pin {
    pub(super) fn new(public: [u8; 32]) -> Pin {
        Pin { public, awaiting: None, is_known: false }
    }
}

/// The responder's side of a pinned session.
pub(crate) enum Proving {
    /// It was asked in the first packet, when there was no budget for the curve: it will be asked again.
    Asked(Prover),
    /// Sent again whenever it is asked for again.
    Made(keys::Proof),
}

/// What a proof is made from: known until the first packet has acted.
#[derive(Clone, Copy)]
pub(crate) struct Prover {
    pub(crate) peer_ephemeral: [u8; 32],
    pub(crate) hash: [u8; 32],
}

impl Session {
    /// True between the handshake and the proof that the peer is the pinned device.
    pub(crate) fn is_unproven(&self) -> bool {
        self.rare.pin.as_ref().is_some_and(|pin| pin.awaiting.is_some())
    }

    /// Up, and its peer is who it has to be: the user's words may leave.
    pub(crate) fn is_open(&self) -> bool {
        self.is_up() && !self.is_unproven()
    }
}

impl Net {
    /// A handshake of ours is done: asks for the proof, if the session is pinned. True if it has to be waited for.
    pub(super) fn ask_for_proof(&mut self, now: Time, id: SessionId, established: &Established) -> bool {
        let Some(session) = self.table.get_mut(id) else { return false };
        let Some(pin) = session.pin_mut() else { return false };
        let (ephemeral, hash) = (established.ephemeral.clone(), *established.hash());
        pin.awaiting = Some(Awaiting { ephemeral, hash });
        session.control.ask(Ask::Prove, now);
        session.control.hold_back();
        true
    }

    /// PROVE came to the initiator: the session is up now, or over.
    pub(super) fn on_device_proof(&mut self, now: Time, id: SessionId, shown: &keys::Proof) {
        let Some(session) = self.table.get_mut(id) else { return };
        let Some(pin) = session.pin_mut() else { return };
        let Some(awaiting) = pin.awaiting.as_ref() else { return };
        // Another device's proof costs no key exchange.
        let holds = shown.public == pin.public
            && shown.verify(&awaiting.ephemeral, &awaiting.hash, Role::Responder).is_ok();
        if !holds {
            self.stats.drop(Drop::BadHandshake);
            return self.end_unproven(now, id, CloseReason::WrongDevice);
        }
        pin.awaiting = None;
        let was_known = core::mem::replace(&mut pin.is_known, true);
        session.control.withdraw(|ask| *ask == Ask::Prove);
        session.control.let_go(now);
        let peer = session.peer;
        if !was_known {
            self.event(Event::Connected { session: id, peer });
        }
    }

    /// Ends a session whose peer is not proved. What waits in it does not leave first, as it would otherwise.
    pub(super) fn end_unproven(&mut self, now: Time, id: SessionId, why: CloseReason) {
        let Some(session) = self.table.get(id) else { return };
        let (path, is_known) = (session.path, session.rare.pin.as_ref().is_some_and(|pin| pin.is_known));
        let (code, failure) = match why {
            CloseReason::Local => (CloseCode::DONE, ConnectError::Closed),
            _ => (CloseCode::REFUSED, ConnectError::WrongDevice),
        };
        if !matches!(why, CloseReason::Peer(_)) {
            self.send_frame(now, id, path, &Frame::Close { code, text: "" });
        }
        if is_known {
            self.leave(now, id, why);
            self.table.remove(id);
        } else {
            self.fail(now, id, failure);
        }
    }

    /// PROVE_ASK came to the responder. `prover` is there in the first packet of a session only.
    pub(super) fn on_prove_ask(&mut self, now: Time, id: SessionId, prover: Option<Prover>) {
        let Some(session) = self.table.get_mut(id).filter(|session| session.role == Role::Responder) else {
            return;
        };
        if let Some(prover) = prover {
            session.control.queues.begin().proving = Some(Box::new(Proving::Asked(prover)));
        }
        let Some(proving) = session.control.queues.get_mut().map(|queues| &mut queues.proving) else {
            return self.stats.drop(Drop::BadHandshake);
        };
        let Some(proving_now) = proving.as_deref_mut() else { return self.stats.drop(Drop::BadHandshake) };
        if let Proving::Asked(prover) = proving_now {
            if !self.dh_budget.take(now) {
                return self.stats.drop(Drop::OverBudget);
            }
            let Ok(proof) = self.config.device.prove(&prover.peer_ephemeral, &prover.hash, Role::Responder)
            else {
                *proving = None;
                return;
            };
            *proving_now = Proving::Made(proof);
        }
        session.control.proof_due = true;
    }
}

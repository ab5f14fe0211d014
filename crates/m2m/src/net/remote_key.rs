//! Net keys that are changed from afar: ours by others, and others' by us.
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use m2m_proto::{
    config::{Config, PreviousKey},
    error::{CommandError, ControlError, ErrorKind},
    event::KeyToStore,
    session::keys::NetKey,
    time::Duration,
    wire::frame::DoneStatus,
};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::{Net, shared::Waiter};
use crate::{
    Error, Key, Peer, Session,
    keyfile::KeyFile,
    state::{KeptKey, StateDir, StateError},
};

/// This net's key: as it was configured, and as it is now.
#[derive(Clone)]
pub(super) struct OwnKey {
    configured: Zeroizing<Vec<u8>>,
    current: Zeroizing<Vec<u8>>,
    kept: Option<Kept>,
    /// Whoever changes it, in whichever shard of the net, holds this.
    turn: Arc<Mutex<()>>,
}

#[derive(Clone)]
struct Kept {
    key_id: u16,
    changed: u64,
    previous: Zeroizing<Vec<u8>>,
}

impl OwnKey {
    /// The key that a net was configured with, or the one that took its place.
    pub(super) fn read(key: &Key, dir: Option<&StateDir>) -> Result<OwnKey, StateError> {
        let configured = Zeroizing::new(key.as_file().bytes().to_vec());
        let kept = dir.map(|dir| dir.net_key(&configured)).transpose()?.flatten();
        let Some(KeptKey { key_id, changed, current, previous, .. }) = kept else {
            return Ok(OwnKey { current: configured.clone(), configured, kept: None, turn: Arc::default() });
        };
        Ok(OwnKey {
            configured,
            current,
            kept: Some(Kept { key_id, changed, previous }),
            turn: Arc::default(),
        })
    }

    /// The key as the machine needs it.
    pub(super) fn net_key(&self) -> Result<NetKey, Error> {
        NetKey::new(&self.current)
            .map_err(|why| Error::caused(ErrorKind::Configuration, why.to_string(), why))
    }

    /// Tells the machine of the change, and for how long the key before it is honoured yet.
    pub(super) fn configure(&self, config: &mut Config) {
        let Some(kept) = &self.kept else { return };
        config.key_id = kept.key_id;
        let grace = config.timers.key_grace.saturating_sub(Duration::from_secs(
            // A clock that went back shortens nothing.
            unix_now().saturating_sub(kept.changed),
        ));
        if let (false, Ok(key)) = (grace.is_zero(), NetKey::new(&kept.previous)) {
            config.previous_key = Some(PreviousKey { key, grace });
        }
    }

    pub(super) fn turn(&self) -> Arc<Mutex<()>> {
        self.turn.clone()
    }

    /// Whether a key of this version comes next.
    pub(super) fn is_followed_by(&self, key_id: u16) -> bool {
        let current = self.kept.as_ref().map_or(0, |kept| kept.key_id);
        key_id == current.wrapping_add(1).max(1)
    }

    /// The record of a change to this key.
    pub(super) fn change(&self, new: &KeyToStore) -> KeptKey {
        KeptKey::new(&self.configured, new.key_id, unix_now(), new.bytes.clone(), self.current.clone())
    }

    /// The change is kept: the next one is one of this key.
    pub(super) fn changed_to(&mut self, kept: KeptKey) {
        let KeptKey { key_id, changed, current, previous, .. } = kept;
        self.current = current;
        self.kept = Some(Kept { key_id, changed, previous });
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Net {
    /// Gives a peer a new net key, in a session that is opened for it. [`Peer::key`] is the peer's net key now, a pair
    /// key is not enough; the peer has to allow it ([`super::NetBuilder::allow_key_change`]). Its key before is
    /// honoured for a day. The new key travels to whoever holds the one before: [`Peer::pin`] makes sure of the device.
    ///
    /// # Errors
    /// `Configuration`: a pair key. `AuthenticationFailed`: the peer's key is another by now. `Refused`: it does not
    /// allow it, or could not keep it. `Timeout`, `SessionLost`: it may have happened. Those of [`Net::connect`].
    pub async fn set_remote_key(&self, peer: Peer, new_key: &Key) -> Result<(), Error> {
        let current = peer.key.clone().unwrap_or_else(|| self.0.key.clone());
        let name = peer.target.to_string();
        for (key, whose) in [(&current, "the peer's key"), (new_key, "the new key")] {
            if matches!(key.as_file(), KeyFile::Pair { .. }) {
                let text = format!(
                    "changing the net key of {name}: {whose} is a pair key, and a net key is needed: only who holds \
                     the net key itself may change it"
                );
                return Err(Error::new(ErrorKind::Configuration, text));
            }
        }
        let current = current.to_net_key()?;
        let session = self.connect(peer).await?;
        let done = session
            .control("changing the net key", |machine, now, id, request| {
                // Whichever version comes next: the mac says which key is meant to be replaced.
                machine.set_remote_key(now, id, request, &current, 0, new_key.as_file().bytes())
            })
            .await;
        session.close().await;
        done
    }
}

impl Session {
    /// Gives the machine something to do in this session that the peer has to answer, and waits for that.
    pub(crate) async fn control(
        &self,
        what: &str,
        command: impl FnOnce(
            &mut m2m_proto::net::Net,
            m2m_proto::time::Time,
            m2m_proto::event::SessionId,
            m2m_proto::event::RequestId,
        ) -> Result<(), CommandError>,
    ) -> Result<(), Error> {
        self.up().await?;
        let (waiter, done) = oneshot::channel();
        let asked = self.shared().with(|state, now| {
            let request = state.wait(Waiter::Control(waiter));
            command(&mut state.machine, now, self.id(), request).inspect_err(|_| {
                state.forget(request);
            })
        });
        asked.map_err(|why| self.command_error(what, why))?;
        match done.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(why)) => {
                let text = format!("{what} of {}: {why}{}", self.name(), advice(why));
                Err(Error::caused(why.kind(), text, why))
            }
            Err(_) => Err(Error::net_closed()),
        }
    }
}

/// What to try, where the machine's own words do not say it.
fn advice(why: ControlError) -> &'static str {
    let ControlError::Refused(status) = why else { return "" };
    match DoneStatus(status) {
        DoneStatus::NOT_ALLOWED => ". Start it with --allow-key-change",
        DoneStatus::WRONG_MAC => ". Give the newest one",
        DoneStatus::NOT_STORED => ". It needs a state folder, on a disk that takes it",
        _ => "",
    }
}

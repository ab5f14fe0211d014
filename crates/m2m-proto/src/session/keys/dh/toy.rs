//! A key exchange that anyone can read, in the shape of X25519: for the simulator's longest runs, of which the curve
//! would take three quarters. Built by `--cfg m2m_toy_dh` in RUSTFLAGS alone, which no recipe for anything that talks to a
//! network does; a net built so says another key exchange than any other, so the two never understand each other.
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop};

#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(super) struct StaticSecret([u8; 32]);

pub(super) struct PublicKey([u8; 32]);

#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct SharedSecret([u8; 32]);

impl From<[u8; 32]> for StaticSecret {
    fn from(bytes: [u8; 32]) -> StaticSecret {
        StaticSecret(bytes)
    }
}

impl From<[u8; 32]> for PublicKey {
    fn from(bytes: [u8; 32]) -> PublicKey {
        PublicKey(bytes)
    }
}

impl From<&StaticSecret> for PublicKey {
    fn from(secret: &StaticSecret) -> PublicKey {
        PublicKey(Sha256::new().chain_update(b"toy").chain_update(secret.0).finalize().into())
    }
}

impl PublicKey {
    pub(super) fn to_bytes(&self) -> [u8; 32] {
        self.0
    }
}

impl StaticSecret {
    /// The same for both sides, as both know both public keys.
    pub(super) fn diffie_hellman(&self, peer: &PublicKey) -> SharedSecret {
        let own = PublicKey::from(self);
        let (low, high) = (own.0.min(peer.0), own.0.max(peer.0));
        let shared = Sha256::new().chain_update(low).chain_update(high).finalize();
        SharedSecret(if peer.0 == [0; 32] { [0; 32] } else { shared.into() })
    }
}

impl SharedSecret {
    pub(super) fn was_contributory(&self) -> bool {
        self.0 != [0; 32]
    }

    pub(super) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

//! AWS-LC's X25519 and AES-GCM: assembly, in constant time, and faster than ours in Rust: the curve by half.
//!
//! What it keeps lies on the C heap. Its allocator wipes every block that it frees (`OPENSSL_free` calls
//! `OPENSSL_cleanse`), and with it secrets and round keys; shared secrets are handed over in buffers that are wiped.
use alloc::sync::Arc;

use aws_lc_rs::{
    aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, LessSafeKey, Nonce, Tag, UnboundKey},
    agreement::{PrivateKey, UnparsedPublicKey, X25519, agree},
};
use zeroize::Zeroizing;

use super::dh::WeakKey;

/// What AWS-LC says only when memory has run out: keys have the right length, as their types say.
const NO_MEMORY: &str = "AWS-LC found no memory";

/// An X25519 secret. Clones share it.
#[derive(Clone)]
pub(super) struct Secret(Arc<PrivateKey>);

impl Secret {
    /// The secret and its public key.
    pub(super) fn from_bytes(bytes: &[u8; 32]) -> (Secret, [u8; 32]) {
        let secret = PrivateKey::from_private_key(&X25519, bytes).expect(NO_MEMORY);
        let public = secret.compute_public_key().expect(NO_MEMORY);
        let public = public.as_ref().try_into().expect("a public key has 32 bytes");
        (Secret(Arc::new(secret)), public)
    }

    /// The shared secret, unless it is all-zero.
    pub(super) fn agree(&self, peer: &[u8; 32]) -> Result<Zeroizing<[u8; 32]>, WeakKey> {
        agree(&self.0, UnparsedPublicKey::new(&X25519, peer), WeakKey, |shared| {
            shared.try_into().map(Zeroizing::new).map_err(|_| WeakKey)
        })
    }
}

/// AES-GCM with its round keys made.
pub(in crate::session) struct Gcm(LessSafeKey);

impl Gcm {
    pub(super) fn aes_128(key: &[u8; 16]) -> Gcm {
        Gcm::new(&AES_128_GCM, key)
    }

    pub(super) fn aes_256(key: &[u8; 32]) -> Gcm {
        Gcm::new(&AES_256_GCM, key)
    }

    fn new(algorithm: &'static Algorithm, key: &[u8]) -> Gcm {
        Gcm(LessSafeKey::new(UnboundKey::new(algorithm, key).expect(NO_MEMORY)))
    }

    /// Encrypts `text` where it lies.
    pub(super) fn seal(&self, nonce: &[u8; 12], aad: &[u8], text: &mut [u8]) -> Option<Tag> {
        let nonce = Nonce::assume_unique_for_key(*nonce);
        self.0.seal_in_place_separate_tag(nonce, Aad::from(aad), text).ok()
    }

    /// Decrypts ciphertext and tag where they lie, if the tag is right.
    pub(super) fn open(&self, nonce: &[u8; 12], aad: &[u8], body: &mut [u8]) -> Option<()> {
        let nonce = Nonce::assume_unique_for_key(*nonce);
        self.0.open_in_place(nonce, Aad::from(aad), body).ok().map(|_| ())
    }
}

//! Noise_NNpsk0_25519_AESGCM_SHA256 (Noise Protocol Framework, revision 34): `-> psk, e` and `<- e, ee`.
//!
//! Each message has one payload, and before each a new key is mixed in: so every nonce here is the first, zero.
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::session::keys::{Aead, Crypto, DhShared, HmacKey, sha256};

/// The protocol's name: just as long as a hash, so that it is the first hash itself (section 5.2, InitializeSymmetric).
const NAME: &[u8; 32] = b"Noise_NNpsk0_25519_AESGCM_SHA256";
/// The name as a key of HMAC, which is what the first chaining key is to every handshake.
static NAME_AS_KEY: HmacKey = HmacKey::from_states(
    [0xB602_CB0B, 0x081E_CE00, 0x7700_0BA1, 0xDB05_BE06, 0x12CD_9F97, 0x4E11_836D, 0x7CD6_9500, 0xBFAC_FD14],
    [0x14AA_60B8, 0xD346_DE71, 0xA086_5B38, 0xB655_A9C3, 0x75BF_5C90, 0x7BC8_6D5A, 0x751C_AB72, 0x5DC6_775A],
);
/// Nonce 0 (section 12.4): four zero bytes and a big-endian counter.
const FIRST_NONCE: [u8; 12] = [0; 12];
const TAG_LEN: usize = 16;

/// Noise's SymmetricState (section 5.2), without the counter that is always zero.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(super) struct Symmetric {
    chaining_key: [u8; 32],
    hash: [u8; 32],
    key: [u8; 32],
}

/// The payload was not sealed by one who knows what we know.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Forged;

impl Symmetric {
    /// Both sides' start: the prologue, given in parts, and the tokens `psk`, and `e` of the first message.
    pub(super) fn first_message(prologue: &[&[u8]], psk: &[u8; 32], ephemeral: &[u8; 32]) -> Symmetric {
        let mut state = Symmetric { chaining_key: *NAME, hash: *NAME, key: [0; 32] };
        state.mix_hash(prologue);
        state.mix_psk(psk);
        state.mix_ephemeral(ephemeral);
        state
    }

    /// The tokens `e, ee` of the second message.
    pub(super) fn second_message(&mut self, ephemeral: &[u8; 32], shared: &DhShared) {
        self.mix_ephemeral(ephemeral);
        self.mix_key(shared.as_bytes());
    }

    /// MixHash over the parts one after the other.
    pub(super) fn mix_hash(&mut self, parts: &[&[u8]]) {
        self.hash = *sha256(core::iter::once(&self.hash[..]).chain(parts.iter().copied()));
    }

    /// EncryptAndHash. `sealed` takes the payload and 16 bytes more.
    pub(super) fn seal(&mut self, payload: &[u8], sealed: &mut [u8]) {
        sealed[..payload.len()].copy_from_slice(payload);
        self.aead()
            .seal(&FIRST_NONCE, &self.hash, sealed)
            .expect("a payload of a handshake is far below GCM's limit");
        self.mix_hash(&[sealed]);
    }

    /// DecryptAndHash. `payload` takes what is sealed without its last 16 bytes. On an error drop the state.
    pub(super) fn open<const N: usize>(
        &mut self,
        sealed: &[u8; N],
        payload: &mut [u8],
    ) -> Result<(), Forged> {
        const { assert!(N >= TAG_LEN) };
        let mut body = *sealed;
        self.aead().open(&FIRST_NONCE, &self.hash, &mut body).ok_or(Forged)?;
        payload.copy_from_slice(&body[..N - TAG_LEN]);
        self.mix_hash(&[sealed]);
        Ok(())
    }

    /// Split: the key from initiator to responder and the one back; and the handshake's final hash.
    pub(super) fn split(&self) -> (Zeroizing<[u8; 32]>, Zeroizing<[u8; 32]>, [u8; 32]) {
        let [forth, back] = chained(&HmacKey::new(&self.chaining_key), &[]);
        (forth, back, self.hash)
    }

    fn aead(&self) -> Aead {
        Aead::aes_256_gcm(Crypto::FASTEST, &self.key)
    }

    /// MixHash and, because a PSK is in play, MixKey (section 9.2).
    fn mix_ephemeral(&mut self, ephemeral: &[u8; 32]) {
        self.mix_hash(&[ephemeral]);
        self.mix_key(ephemeral);
    }

    fn mix_key(&mut self, material: &[u8; 32]) {
        let [chaining_key, key] = chained(&HmacKey::new(&self.chaining_key), material);
        self.chaining_key = *chaining_key;
        self.key = *key;
    }

    /// MixKeyAndHash of the PSK, which is the first key to be mixed.
    fn mix_psk(&mut self, psk: &[u8; 32]) {
        // The third output, the key, gives way to that of the token `e` before anything is sealed with it.
        let [chaining_key, into_hash] = chained(&NAME_AS_KEY, psk);
        self.chaining_key = *chaining_key;
        self.mix_hash(&[into_hash.as_ref()]);
    }
}

/// Noise's HKDF (section 4.3): that of RFC 5869 without info.
fn chained<const N: usize>(chaining_key: &HmacKey, material: &[u8]) -> [Zeroizing<[u8; 32]>; N] {
    HmacKey::new(&*chaining_key.mac(&[material])).expand_blocks()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::keys::DhSecret;
    use std::{collections::BTreeMap, vec, vec::Vec};

    const VECTOR: &str = include_str!("../../../../../docs/vectors/noise_nnpsk0.txt");

    fn unhex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    /// The published vector: both messages, the hash, and the first packet under each key of the split.
    #[test]
    fn agrees_with_cacophony() {
        let lines = VECTOR.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let vector: BTreeMap<&str, Vec<u8>> =
            lines.map(|line| line.split_once(" = ").unwrap()).map(|(name, hex)| (name, unhex(hex))).collect();
        let array = |name: &str| -> [u8; 32] { vector[name][..].try_into().unwrap() };
        let initiator = DhSecret::from_bytes(array("initiator_ephemeral"));
        let responder = DhSecret::from_bytes(array("responder_ephemeral"));

        let message = |public: &[u8; 32], state: &mut Symmetric, payload: &[u8]| {
            let mut sealed = vec![0; payload.len() + TAG_LEN];
            state.seal(payload, &mut sealed);
            [&public[..], &sealed[..]].concat()
        };
        let mut state = Symmetric::first_message(&[&vector["prologue"]], &array("psk"), initiator.public());
        let mut mirror = state.clone();
        assert_eq!(message(initiator.public(), &mut state, &vector["payload_1"]), vector["message_1"]);
        let mut payload = vec![0; vector["payload_1"].len()];
        let sealed: &[u8; 32] = vector["message_1"][32..].try_into().unwrap();
        mirror.open(sealed, &mut payload).unwrap();
        assert_eq!((&payload, mirror.hash), (&vector["payload_1"], state.hash));

        let shared = responder.agree(initiator.public()).unwrap();
        state.second_message(responder.public(), &shared);
        assert_eq!(message(responder.public(), &mut state, &vector["payload_2"]), vector["message_2"]);
        let (forth, back, hash) = state.split();
        assert_eq!(hash, array("handshake_hash"));

        for (key, payload, expected) in [(forth, "payload_3", "message_3"), (back, "payload_4", "message_4")]
        {
            let mut body = [&vector[payload][..], &[0; TAG_LEN]].concat();
            Aead::aes_256_gcm(Crypto::FASTEST, &key).seal(&FIRST_NONCE, &[], &mut body).unwrap();
            assert_eq!(body, vector[expected]);
        }
    }

    #[test]
    fn the_name_is_kept_as_the_key_that_it_makes() {
        assert!(NAME_AS_KEY.is_same(&HmacKey::new(NAME)));
    }

    #[test]
    fn a_forged_payload_is_refused() {
        let mut state = Symmetric::first_message(&[b"prologue"], &[1; 32], &[2; 32]);
        let mut other = Symmetric::first_message(&[b"prologue"], &[9; 32], &[2; 32]);
        let mut sealed = [0; 20];
        state.clone().seal(b"text", &mut sealed);
        assert_eq!(other.open(&sealed, &mut [0; 4]), Err(Forged));
        assert_eq!(state.open(&sealed, &mut [0; 4]), Ok(()));
    }
}

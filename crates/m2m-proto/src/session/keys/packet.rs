//! Sealing and opening of short packets: AES-GCM (RFC 5116) or AES-CCM-8 (RFC 6655) with the header as associated
//! data, the packet number in the nonce as in TLS 1.3 (RFC 8446, 5.3) and masked as in DTLS 1.3 (RFC 9147, 4.2.3).
use alloc::boxed::Box;
use core::{fmt, ops::Range};

use aes::{
    Aes128Enc, Aes256Enc,
    cipher::{BlockCipherEncrypt, KeyInit, array::Array},
};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::{Crypto, HmacKey, Suite, aead::Aead};
use crate::{
    session::pn::Pn,
    wire::packet::{PnLen, Short, Token},
};

/// Bytes of ciphertext and tag that the number's mask is made from (RFC 9147, 4.2.3).
const SAMPLE_LEN: usize = 16;

/// The key of packets that we send, raw and small; AES's round keys are made from it at use.
#[derive(Clone)]
pub struct SealKey(PacketKey);

/// The key of packets that we receive, raw and small; AES's round keys are made from it at use.
#[derive(Clone)]
pub struct OpenKey(PacketKey);

/// A [`SealKey`] with its round keys made: worth keeping for a session that is busy. It has at most 900 bytes where it
/// lies; under AWS-LC about 300, and 600 on the heap.
pub struct SealCipher(Cipher);

/// An [`OpenKey`] with its round keys made: worth keeping for a session that is busy. As large as a [`SealCipher`].
pub struct OpenCipher(Cipher);

/// What a short packet says in front of its ciphertext.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShortHeader {
    /// Flips with each change of keys.
    pub key_phase: bool,
    /// The receiver's token.
    pub token: Token,
    /// The packet's number. None may be used twice with one key.
    pub pn: Pn,
    /// How many bytes of it travel.
    pub pn_len: PnLen,
}

impl SealKey {
    /// The key of one direction from its traffic secret.
    pub(super) fn derive(suite: Suite, traffic_secret: &[u8; 32]) -> SealKey {
        SealKey(PacketKey::derive(suite, traffic_secret))
    }

    /// The suite that this is a key of.
    pub fn suite(&self) -> Suite {
        self.0.suite()
    }

    /// Key, IV and mask key, for the published vectors.
    #[cfg(test)]
    pub(in crate::session) fn raw(&self) -> [alloc::vec::Vec<u8>; 3] {
        match &self.0 {
            PacketKey::Aes128Gcm(raw) | PacketKey::Aes128Ccm8(raw) => {
                [raw.key.into(), raw.iv.into(), raw.hp.into()]
            }
            PacketKey::Aes256Gcm(raw) => [raw.key.into(), raw.iv.into(), raw.hp.into()],
        }
    }

    /// Makes the round keys.
    pub fn expand(&self) -> SealCipher {
        self.expand_with(Crypto::FASTEST)
    }

    /// Makes the round keys for one implementation.
    pub fn expand_with(&self, crypto: Crypto) -> SealCipher {
        SealCipher(self.0.expand(crypto))
    }

    /// As [`SealCipher::seal_in_place`], round keys made and dropped on the way.
    pub fn seal_in_place(&self, header: &ShortHeader, packet: &mut [u8]) -> Result<(), SealError> {
        self.expand().seal_in_place(header, packet)
    }
}

impl OpenKey {
    /// The key of one direction from its traffic secret.
    pub(super) fn derive(suite: Suite, traffic_secret: &[u8; 32]) -> OpenKey {
        OpenKey(PacketKey::derive(suite, traffic_secret))
    }

    /// The suite that this is a key of.
    pub fn suite(&self) -> Suite {
        self.0.suite()
    }

    /// Makes the round keys.
    pub fn expand(&self) -> OpenCipher {
        self.expand_with(Crypto::FASTEST)
    }

    /// Makes the round keys for one implementation.
    pub fn expand_with(&self, crypto: Crypto) -> OpenCipher {
        OpenCipher(self.0.expand(crypto))
    }

    /// As [`OpenCipher::open_in_place`], round keys made and dropped on the way.
    pub fn open_in_place(&self, packet: &mut [u8], largest: Pn) -> Result<(Pn, Range<usize>), OpenError> {
        self.expand().open_in_place(packet, largest)
    }

    /// As [`OpenCipher::open_if`], round keys made and dropped on the way.
    pub fn open_if(
        &self,
        packet: &mut [u8],
        largest: Pn,
        is_fresh: impl FnOnce(Pn) -> bool,
    ) -> Result<(Pn, Range<usize>), OpenError> {
        self.expand().open_if(packet, largest, is_fresh)
    }
}

impl SealCipher {
    /// Makes `packet` a whole short packet. It holds, in this order, room for the header
    /// ([`PnLen::header_len`]), at least one byte of plaintext, and room for the tag ([`Suite::tag_len`]).
    pub fn seal_in_place(&self, header: &ShortHeader, packet: &mut [u8]) -> Result<(), SealError> {
        let cipher = &self.0;
        let (head, body) = packet.split_at_mut_checked(header.pn_len.header_len()).ok_or(SealError)?;
        if body.len() <= cipher.suite.tag_len() {
            return Err(SealError);
        }

        let (before_pn, pn) = head.split_first_chunk_mut::<{ Short::PN_AT }>().ok_or(SealError)?;
        let [a, b, c, d] = header.token.value().to_be_bytes();
        *before_pn = [Short::first_byte(header.key_phase, header.pn_len), a, b, c, d];
        pn.iter_mut().zip(header.pn.truncate(header.pn_len)).for_each(|(place, byte)| *place = byte);

        cipher.aead.seal(&cipher.nonce(header.pn), head, body).ok_or(SealError)?;
        cipher.mask_pn(packet, header.pn_len);
        Ok(())
    }
}

impl OpenCipher {
    /// Opens a short packet where it lies. `largest` is the highest number that was opened before, or 0.
    ///
    /// Gives the packet's number and where in `packet` its plaintext is. On an error `packet` holds garbage, and
    /// nothing else has changed.
    pub fn open_in_place(&self, packet: &mut [u8], largest: Pn) -> Result<(Pn, Range<usize>), OpenError> {
        self.open_if(packet, largest, |_| true)
    }

    /// As [`open_in_place`](Self::open_in_place), if the caller's replay window says that the number is fresh: a
    /// repeated packet costs no decryption. The number is not authentic yet, so nothing may be kept of it.
    pub fn open_if(
        &self,
        packet: &mut [u8],
        largest: Pn,
        is_fresh: impl FnOnce(Pn) -> bool,
    ) -> Result<(Pn, Range<usize>), OpenError> {
        let cipher = &self.0;
        let pn_len = Short::decode(packet).map_err(|_| OpenError::Shape)?.pn_len;
        let text_range = pn_len.header_len()..packet.len().saturating_sub(cipher.suite.tag_len());
        if text_range.is_empty() {
            return Err(OpenError::Shape);
        }

        cipher.mask_pn(packet, pn_len);
        let (head, body) = packet.split_at_mut_checked(pn_len.header_len()).ok_or(OpenError::Shape)?;
        let truncated = head.iter().skip(Short::PN_AT).fold(0, |pn, byte| pn << 8 | u32::from(*byte));
        let pn = Pn::expand(truncated, pn_len, largest);
        if !is_fresh(pn) {
            return Err(OpenError::Replayed);
        }
        cipher.aead.open(&cipher.nonce(pn), head, body).ok_or(OpenError::Forged)?;
        Ok((pn, text_range))
    }
}

/// The buffer of a packet to seal has no room for header, one byte of plaintext and tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealError;

impl fmt::Display for SealError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the buffer is too short for header, one byte of plaintext and tag")
    }
}

impl core::error::Error for SealError {}

/// Why a packet was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// It is no short packet, or too short for this suite.
    Shape,
    /// Its number was seen before, or is too old to tell.
    Replayed,
    /// It was not sealed with this key.
    Forged,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OpenError::Shape => "not a short packet of this suite",
            OpenError::Replayed => "the packet was seen before, or is too old to tell",
            OpenError::Forged => "the packet was not sealed with this key",
        })
    }
}

impl core::error::Error for OpenError {}

/// One direction's secrets as HKDF gave them. The longer ones of AES-256 are boxed, so that the other sessions, which
/// are most, need 48 bytes a direction.
#[derive(Clone)]
enum PacketKey {
    Aes128Gcm(Raw<16>),
    Aes256Gcm(Box<Raw<32>>),
    Aes128Ccm8(Raw<16>),
}

#[derive(Clone, Zeroize, ZeroizeOnDrop)]
struct Raw<const N: usize> {
    key: [u8; N],
    iv: [u8; 12],
    /// Makes the mask of packet numbers; unused by suite 4.
    hp: [u8; N],
}

impl<const N: usize> Raw<N> {
    fn derive(suite: Suite, traffic_secret: &[u8; 32]) -> Raw<N> {
        let prk = HmacKey::new(traffic_secret);
        Raw {
            key: *prk.expand(&[b"m2m/1 key", &[suite.number()]]),
            iv: *prk.expand(&[b"m2m/1 iv"]),
            hp: *prk.expand(&[b"m2m/1 hp"]),
        }
    }
}

impl PacketKey {
    fn derive(suite: Suite, traffic_secret: &[u8; 32]) -> PacketKey {
        match suite {
            Suite::Aes128Gcm => PacketKey::Aes128Gcm(Raw::derive(suite, traffic_secret)),
            Suite::Aes256Gcm => PacketKey::Aes256Gcm(Box::new(Raw::derive(suite, traffic_secret))),
            Suite::Aes128Ccm8 => PacketKey::Aes128Ccm8(Raw::derive(suite, traffic_secret)),
        }
    }

    fn suite(&self) -> Suite {
        match self {
            PacketKey::Aes128Gcm(_) => Suite::Aes128Gcm,
            PacketKey::Aes256Gcm(_) => Suite::Aes256Gcm,
            PacketKey::Aes128Ccm8(_) => Suite::Aes128Ccm8,
        }
    }

    fn expand(&self, crypto: Crypto) -> Cipher {
        let (iv, aead, mask) = match self {
            PacketKey::Aes128Gcm(raw) => {
                let mask = Mask::Aes128(Aes128Enc::new(&raw.hp.into()));
                (raw.iv, Aead::aes_128_gcm(crypto, &raw.key), mask)
            }
            PacketKey::Aes256Gcm(raw) => {
                let mask = Mask::Aes256(Aes256Enc::new(&raw.hp.into()));
                (raw.iv, Aead::aes_256_gcm(crypto, &raw.key), mask)
            }
            PacketKey::Aes128Ccm8(raw) => (raw.iv, Aead::aes_128_ccm_8(&raw.key), Mask::None),
        };
        Cipher { iv, suite: self.suite(), aead, mask }
    }
}

/// One direction's secrets with round keys made.
struct Cipher {
    iv: [u8; 12],
    suite: Suite,
    aead: Aead,
    mask: Mask,
}

/// What hides packet numbers.
enum Mask {
    Aes128(Aes128Enc),
    Aes256(Aes256Enc),
    /// Not in suite 4, where tag and one byte are too short for a sample.
    None,
}

impl Drop for Cipher {
    fn drop(&mut self) {
        // The schedules clear themselves.
        self.iv.zeroize();
    }
}

impl Cipher {
    /// The IV with the number added into its end (RFC 8446, 5.3).
    fn nonce(&self, pn: Pn) -> [u8; 12] {
        let mut nonce = self.iv;
        nonce.iter_mut().skip(4).zip(pn.0.to_be_bytes()).for_each(|(place, byte)| *place ^= byte);
        nonce
    }

    /// Masks or unmasks the packet number.
    fn mask_pn(&self, packet: &mut [u8], pn_len: PnLen) {
        let Some((head, sealed)) = packet.split_at_mut_checked(pn_len.header_len()) else { return };
        let Some(sample) = sealed.first_chunk::<SAMPLE_LEN>() else { return };
        let mut block = Array::from(*sample);
        match &self.mask {
            Mask::Aes128(hp) => hp.encrypt_block(&mut block),
            Mask::Aes256(hp) => hp.encrypt_block(&mut block),
            Mask::None => return,
        }
        head.iter_mut().skip(Short::PN_AT).zip(block).for_each(|(place, mask)| *place ^= mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{vec, vec::Vec};

    const SUITES: [Suite; 3] = [Suite::Aes128Gcm, Suite::Aes256Gcm, Suite::Aes128Ccm8];

    fn keys(suite: Suite) -> (SealKey, OpenKey) {
        (SealKey::derive(suite, &[0x11; 32]), OpenKey::derive(suite, &[0x11; 32]))
    }

    fn header(pn: u64, pn_len: PnLen) -> ShortHeader {
        ShortHeader { key_phase: false, token: Token::new(0x0102_0304).unwrap(), pn: Pn(pn), pn_len }
    }

    fn seal(key: &SealKey, header: &ShortHeader, text: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; header.pn_len.header_len()];
        packet.extend_from_slice(text);
        packet.resize(packet.len() + key.suite().tag_len(), 0);
        key.seal_in_place(header, &mut packet).unwrap();
        packet
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        for suite in SUITES {
            let (sealing, opening) = keys(suite);
            let packet = seal(&sealing, &header(70_000, PnLen::Two), b"hello");
            for bit in 0..packet.len() * 8 {
                let mut forged = packet.clone();
                forged[bit / 8] ^= 1 << (bit % 8);
                assert!(opening.open_in_place(&mut forged, Pn(69_999)).is_err(), "{suite:?}, bit {bit}");
            }
            assert!(opening.open_in_place(&mut packet.clone(), Pn(69_999)).is_ok());
        }
    }

    #[test]
    fn costs_as_many_bytes_as_promised() {
        let overhead = |suite, pn_len| seal(&keys(suite).0, &header(1, pn_len), b"x").len() - 1;
        assert_eq!(overhead(Suite::Aes128Gcm, PnLen::Two), 23);
        assert_eq!(overhead(Suite::Aes256Gcm, PnLen::Four), 25);
        assert_eq!(overhead(Suite::Aes128Ccm8, PnLen::Two), 15);
        assert!(size_of::<SealKey>() <= 48, "{}", size_of::<SealKey>());
    }

    #[test]
    fn hides_the_number_except_in_suite_4() {
        let numbers = |suite: Suite| {
            let (sealing, _) = keys(suite);
            (0..64)
                .filter(|pn| seal(&sealing, &header(*pn, PnLen::Two), b"x")[5..7] == [0, *pn as u8])
                .count()
        };
        assert!(numbers(Suite::Aes128Gcm) < 4);
        assert!(numbers(Suite::Aes256Gcm) < 4);
        assert_eq!(numbers(Suite::Aes128Ccm8), 64);
    }

    #[test]
    fn refuses_buffers_and_packets_that_are_too_short() {
        let (sealing, opening) = keys(Suite::Aes128Gcm);
        assert_eq!(sealing.seal_in_place(&header(1, PnLen::Two), &mut [0; 23]), Err(SealError));
        assert_eq!(sealing.seal_in_place(&header(1, PnLen::Two), &mut []), Err(SealError));
        let packet = seal(&sealing, &header(1, PnLen::Two), b"x");
        for len in 0..packet.len() {
            assert_eq!(opening.open_in_place(&mut packet[..len].to_vec(), Pn(0)), Err(OpenError::Shape));
        }
        let mut packet = packet;
        packet.push(0);
        assert_eq!(opening.open_in_place(&mut packet, Pn(0)), Err(OpenError::Forged));
    }

    #[test]
    fn a_key_of_another_suite_opens_nothing() {
        for (ours, theirs) in SUITES.into_iter().flat_map(|a| SUITES.map(|b| (a, b))).filter(|(a, b)| a != b)
        {
            let mut packet = seal(&keys(ours).0, &header(1, PnLen::Two), b"sixteen bytes do");
            assert_eq!(keys(theirs).1.open_in_place(&mut packet, Pn(0)), Err(OpenError::Forged));
        }
    }

    #[test]
    fn the_number_is_expanded_near_the_largest() {
        let (sealing, opening) = keys(Suite::Aes128Gcm);
        let mut packet = seal(&sealing, &header(1 << 40, PnLen::Four), b"x");
        assert!(opening.open_in_place(&mut packet.clone(), Pn((1 << 40) - 9)).is_ok());
        assert_eq!(opening.open_in_place(&mut packet, Pn(0)), Err(OpenError::Forged));
    }

    proptest! {
        #[test]
        fn opens_what_was_sealed(
            suite in prop::sample::select(&SUITES[..]), key_phase: bool, token in 1u32.., pn: u64, four: bool,
            text in prop::collection::vec(any::<u8>(), 1..200),
        ) {
            let (sealing, opening) = keys(suite);
            let pn_len = if four { PnLen::Four } else { PnLen::Two };
            let header = ShortHeader { key_phase, token: Token::new(token).unwrap(), pn: Pn(pn), pn_len };
            let mut packet = seal(&sealing, &header, &text);
            let short = Short::decode(&packet).unwrap();
            prop_assert_eq!((short.key_phase, short.token, short.pn_len), (key_phase, header.token, pn_len));
            let (opened, range) = opening.open_in_place(&mut packet, Pn(pn.saturating_sub(1))).unwrap();
            prop_assert_eq!(opened, Pn(pn));
            prop_assert_eq!(&packet[range], &text[..]);
        }
    }
}

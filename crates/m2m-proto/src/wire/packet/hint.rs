//! RESET-HINT: "the token of your packet means nothing here", most often after a restart.
use super::{PacketError, Token, expect_len, kind};
use crate::wire::cursor::{BufferFull, Reader, Writer};

//   0       1               5                       13
//   +-------+---------------+-- // ------------------+
//   | 0x95  |    token      |  last 8 bytes          |
//   +-------+---------------+-- // ------------------+

/// A hint, not a proof: it shows that its sender saw the packet, and at most starts a handshake beside the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetHint<'a> {
    /// The token that the offending packet was sent to.
    pub token: Token,
    /// The last bytes of the offending packet, which only one on its path can know.
    pub tail: &'a [u8; ResetHint::TAIL_LEN],
}

impl<'a> ResetHint<'a> {
    /// Bytes of a RESET-HINT: less than any short packet, so that two nets can't keep each other busy with them.
    pub const LEN: usize = 13;
    /// How many bytes of the offending packet it repeats.
    pub const TAIL_LEN: usize = 8;

    pub(super) fn decode(datagram: &'a [u8]) -> Result<ResetHint<'a>, PacketError> {
        expect_len(datagram, Self::LEN)?;
        let mut r = Reader::new(datagram);
        r.u8()?;
        Ok(ResetHint { token: Token::decode(r.u32()?)?, tail: r.array()? })
    }

    /// Writes the packet and returns its length.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, BufferFull> {
        Writer::new(out).u8(kind::RESET_HINT).u32(self.token.value()).bytes(self.tail).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Packet, *};
    use proptest::prelude::*;

    #[test]
    fn looks_like_this() {
        let bytes = [0x95, 1, 2, 3, 4, 8, 7, 6, 5, 4, 3, 2, 1];
        let hint = ResetHint { token: Token::new(0x0102_0304).unwrap(), tail: &[8, 7, 6, 5, 4, 3, 2, 1] };
        assert_eq!(Packet::decode(&bytes), Ok(Packet::ResetHint(hint)));
        assert_eq!(Packet::decode(&bytes[..12]), Err(PacketError::Length));
        assert_eq!(Packet::decode(&[0x95, 0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1]), Err(PacketError::ZeroToken));
    }

    proptest! {
        #[test]
        fn round_trips(token in 1u32.., tail: [u8; 8]) {
            let hint = ResetHint { token: Token::new(token).unwrap(), tail: &tail };
            let mut bytes = [0; ResetHint::LEN];
            prop_assert_eq!(hint.encode(&mut bytes), Ok(ResetHint::LEN));
            prop_assert_eq!(Packet::decode(&bytes), Ok(Packet::ResetHint(hint)));
        }
    }
}

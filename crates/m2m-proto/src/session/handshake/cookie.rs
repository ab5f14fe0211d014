//! Cookies: how a responder under pressure makes an initiator show its address before it spends memory or a key
//! exchange on it (the idea of RFC 9147, 5.1).
use core::net::{IpAddr, SocketAddr};

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::{
    id::Id,
    session::keys::{PairKey, mac16},
    wire::packet::{Cookie, CookieReply, Init},
};

/// What a responder makes its cookies with. Its owner replaces it every two minutes and honours the one before.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct CookieSecret([u8; 32]);

impl CookieSecret {
    /// Takes 32 random bytes.
    pub fn from_bytes(random: [u8; 32]) -> CookieSecret {
        CookieSecret(random)
    }

    /// The COOKIE that answers this INIT from this address: only to an INIT that [`open_init`](super::open_init)
    /// has opened. `own_id` is the id that INIT was for, or any if it was for none.
    pub fn reply(
        &self,
        from: SocketAddr,
        init: &Init<'_>,
        own_id: Id,
        pair: &PairKey,
    ) -> [u8; CookieReply::LEN] {
        let cookie = self.cookie(from, init);
        let mac = reply_mac(pair, &cookie, init.ephemeral);
        let mut bytes = [0; CookieReply::LEN];
        CookieReply { dst: init.src, src: own_id, stoken: init.stoken, cookie, mac: &mac }
            .encode(&mut bytes)
            .expect("the array has a COOKIE's length");
        bytes
    }

    /// Whether this INIT brings the cookie that was given to it at this address.
    pub fn verify(&self, from: SocketAddr, init: &Init<'_>) -> bool {
        init.cookie.is_some_and(|cookie| self.cookie(from, init).0.ct_eq(&cookie.0).into())
    }

    fn cookie(&self, from: SocketAddr, init: &Init<'_>) -> Cookie {
        // A socket of both families sees IPv4 as mapped, one of IPv4 does not: both must make the same cookie.
        let ip = match from.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        let (port, stoken) = (from.port().to_be_bytes(), init.stoken.value().to_be_bytes());
        Cookie(mac16(&self.0, &[&ip, &port, &init.dst.0, &init.src.0, &stoken, init.ephemeral]))
    }
}

/// Shows the initiator that a COOKIE is from a holder of the pair key who saw this INIT.
pub(super) fn reply_mac(pair: &PairKey, cookie: &Cookie, ephemeral: &[u8; 32]) -> [u8; 16] {
    mac16(pair.cookie_key().as_ref(), &[&cookie.0, ephemeral])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::packet::{KeyId, SuiteSet, Token};

    #[test]
    fn a_cookie_holds_for_one_init_from_one_address() {
        let secret = CookieSecret::from_bytes([5; 32]);
        let from: SocketAddr = "192.0.2.1:5683".parse().unwrap();
        let plain = Init {
            dst: Id([1; 16]),
            src: Id([2; 16]),
            stoken: Token::new(3).unwrap(),
            key_id: KeyId(0),
            suites: SuiteSet(1),
            ephemeral: &[4; 32],
            sealed: &[0; 28],
            cookie: None,
        };
        let init = Init { cookie: Some(secret.cookie(from, &plain)), ..plain };
        assert!(secret.verify(from, &init));
        assert!(secret.verify("[::ffff:192.0.2.1]:5683".parse().unwrap(), &init));

        assert!(!secret.verify(from, &plain), "no cookie");
        assert!(!secret.verify("192.0.2.1:5684".parse().unwrap(), &init));
        assert!(!secret.verify("192.0.2.2:5683".parse().unwrap(), &init));
        assert!(!CookieSecret::from_bytes([6; 32]).verify(from, &init));
        assert!(!secret.verify(from, &Init { dst: Id([9; 16]), ..init }));
        assert!(!secret.verify(from, &Init { src: Id([9; 16]), ..init }));
        assert!(!secret.verify(from, &Init { stoken: Token::new(9).unwrap(), ..init }));
        assert!(!secret.verify(from, &Init { ephemeral: &[9; 32], ..init }));
    }
}

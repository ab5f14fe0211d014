//! Message codes: methods and response codes (RFC 7252 sections 3 and 12.1, and what later documents added).
use core::fmt;

/// The code byte of a message: three bits of class, five of detail, written `2.05`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code(pub u8);

impl Code {
    /// 0.00: neither a request nor a response (RFC 7252 section 4.1).
    pub const EMPTY: Code = Code::new(0, 0);

    /// 0.01 (RFC 7252 section 5.8.1).
    pub const GET: Code = Code::new(0, 1);
    /// 0.02 (RFC 7252 section 5.8.2).
    pub const POST: Code = Code::new(0, 2);
    /// 0.03 (RFC 7252 section 5.8.3).
    pub const PUT: Code = Code::new(0, 3);
    /// 0.04 (RFC 7252 section 5.8.4).
    pub const DELETE: Code = Code::new(0, 4);
    /// 0.05 (RFC 8132 section 2).
    pub const FETCH: Code = Code::new(0, 5);
    /// 0.06 (RFC 8132 section 3).
    pub const PATCH: Code = Code::new(0, 6);
    /// 0.07: a PATCH that may be repeated (RFC 8132 section 3).
    pub const IPATCH: Code = Code::new(0, 7);

    /// 2.01 (RFC 7252 section 5.9.1.1).
    pub const CREATED: Code = Code::new(2, 1);
    /// 2.02 (RFC 7252 section 5.9.1.2).
    pub const DELETED: Code = Code::new(2, 2);
    /// 2.03 (RFC 7252 section 5.9.1.3).
    pub const VALID: Code = Code::new(2, 3);
    /// 2.04 (RFC 7252 section 5.9.1.4).
    pub const CHANGED: Code = Code::new(2, 4);
    /// 2.05 (RFC 7252 section 5.9.1.5).
    pub const CONTENT: Code = Code::new(2, 5);
    /// 2.31: this block arrived, send the next (RFC 7959 section 2.9.1).
    pub const CONTINUE: Code = Code::new(2, 31);

    /// 4.00 (RFC 7252 section 5.9.2.1).
    pub const BAD_REQUEST: Code = Code::new(4, 0);
    /// 4.01 (RFC 7252 section 5.9.2.2).
    pub const UNAUTHORIZED: Code = Code::new(4, 1);
    /// 4.02: a critical option wasn't understood (RFC 7252 section 5.9.2.3).
    pub const BAD_OPTION: Code = Code::new(4, 2);
    /// 4.03 (RFC 7252 section 5.9.2.4).
    pub const FORBIDDEN: Code = Code::new(4, 3);
    /// 4.04 (RFC 7252 section 5.9.2.5).
    pub const NOT_FOUND: Code = Code::new(4, 4);
    /// 4.05 (RFC 7252 section 5.9.2.6).
    pub const METHOD_NOT_ALLOWED: Code = Code::new(4, 5);
    /// 4.06 (RFC 7252 section 5.9.2.7).
    pub const NOT_ACCEPTABLE: Code = Code::new(4, 6);
    /// 4.08: blocks are missing (RFC 7959 section 2.9.2).
    pub const REQUEST_ENTITY_INCOMPLETE: Code = Code::new(4, 8);
    /// 4.09 (RFC 8132 section 3.4).
    pub const CONFLICT: Code = Code::new(4, 9);
    /// 4.12 (RFC 7252 section 5.9.2.8).
    pub const PRECONDITION_FAILED: Code = Code::new(4, 12);
    /// 4.13 (RFC 7252 section 5.9.2.9, RFC 7959 section 2.9.3).
    pub const REQUEST_ENTITY_TOO_LARGE: Code = Code::new(4, 13);
    /// 4.15 (RFC 7252 section 5.9.2.10).
    pub const UNSUPPORTED_CONTENT_FORMAT: Code = Code::new(4, 15);
    /// 4.22 (RFC 8132 section 3.4).
    pub const UNPROCESSABLE_ENTITY: Code = Code::new(4, 22);
    /// 4.29: too many requests of this client; Max-Age says when to come back (RFC 8516).
    pub const TOO_MANY_REQUESTS: Code = Code::new(4, 29);

    /// 5.00 (RFC 7252 section 5.9.3.1).
    pub const INTERNAL_SERVER_ERROR: Code = Code::new(5, 0);
    /// 5.01 (RFC 7252 section 5.9.3.2).
    pub const NOT_IMPLEMENTED: Code = Code::new(5, 1);
    /// 5.02 (RFC 7252 section 5.9.3.3).
    pub const BAD_GATEWAY: Code = Code::new(5, 2);
    /// 5.03: Max-Age says when to come back (RFC 7252 section 5.9.3.4).
    pub const SERVICE_UNAVAILABLE: Code = Code::new(5, 3);
    /// 5.04 (RFC 7252 section 5.9.3.5).
    pub const GATEWAY_TIMEOUT: Code = Code::new(5, 4);
    /// 5.05 (RFC 7252 section 5.9.3.6).
    pub const PROXYING_NOT_SUPPORTED: Code = Code::new(5, 5);
    /// 5.08: a request went in circles (RFC 8768 section 3).
    pub const HOP_LIMIT_REACHED: Code = Code::new(5, 8);

    /// The code `class.detail`. Only the low three and five bits count.
    pub const fn new(class: u8, detail: u8) -> Code {
        Code((class & 7) << 5 | (detail & 31))
    }

    /// The digit before the dot, 0..=7.
    pub const fn class(self) -> u8 {
        self.0 >> 5
    }

    /// The number after the dot, 0..=31.
    pub const fn detail(self) -> u8 {
        self.0 & 31
    }

    /// True for 0.01 to 0.31, also for methods that nobody has registered yet.
    pub const fn is_request(self) -> bool {
        self.class() == 0 && self.detail() != 0
    }

    /// True for 2.00 to 5.31, the range RFC 7252 section 12.1 sets aside for responses.
    pub const fn is_response(self) -> bool {
        matches!(self.class(), 2..=5)
    }

    /// True for 2.xx.
    pub const fn is_success(self) -> bool {
        self.class() == 2
    }

    /// True for the classes 1, 6 and 7, which a datagram must not carry (RFC 7252 section 4.2; 7.xx is CoAP
    /// over TCP's).
    pub const fn is_reserved(self) -> bool {
        matches!(self.class(), 1 | 6 | 7)
    }

    /// True for methods that may run twice with the effect of once (RFC 7252 section 5.1, RFC 8132 section 1).
    /// An unknown method isn't.
    pub const fn is_idempotent(self) -> bool {
        matches!(self, Code::GET | Code::PUT | Code::DELETE | Code::FETCH | Code::IPATCH)
    }

    /// The registered name, such as `Content`.
    pub fn name(self) -> Option<&'static str> {
        NAMES.iter().find(|(code, _)| *code == self).map(|(_, name)| *name)
    }
}

/// The registry's names, in order of the codes.
const NAMES: &[(Code, &str)] = &[
    (Code::EMPTY, "Empty"),
    (Code::GET, "GET"),
    (Code::POST, "POST"),
    (Code::PUT, "PUT"),
    (Code::DELETE, "DELETE"),
    (Code::FETCH, "FETCH"),
    (Code::PATCH, "PATCH"),
    (Code::IPATCH, "iPATCH"),
    (Code::CREATED, "Created"),
    (Code::DELETED, "Deleted"),
    (Code::VALID, "Valid"),
    (Code::CHANGED, "Changed"),
    (Code::CONTENT, "Content"),
    (Code::CONTINUE, "Continue"),
    (Code::BAD_REQUEST, "Bad Request"),
    (Code::UNAUTHORIZED, "Unauthorized"),
    (Code::BAD_OPTION, "Bad Option"),
    (Code::FORBIDDEN, "Forbidden"),
    (Code::NOT_FOUND, "Not Found"),
    (Code::METHOD_NOT_ALLOWED, "Method Not Allowed"),
    (Code::NOT_ACCEPTABLE, "Not Acceptable"),
    (Code::REQUEST_ENTITY_INCOMPLETE, "Request Entity Incomplete"),
    (Code::CONFLICT, "Conflict"),
    (Code::PRECONDITION_FAILED, "Precondition Failed"),
    (Code::REQUEST_ENTITY_TOO_LARGE, "Request Entity Too Large"),
    (Code::UNSUPPORTED_CONTENT_FORMAT, "Unsupported Content-Format"),
    (Code::UNPROCESSABLE_ENTITY, "Unprocessable Entity"),
    (Code::TOO_MANY_REQUESTS, "Too Many Requests"),
    (Code::INTERNAL_SERVER_ERROR, "Internal Server Error"),
    (Code::NOT_IMPLEMENTED, "Not Implemented"),
    (Code::BAD_GATEWAY, "Bad Gateway"),
    (Code::SERVICE_UNAVAILABLE, "Service Unavailable"),
    (Code::GATEWAY_TIMEOUT, "Gateway Timeout"),
    (Code::PROXYING_NOT_SUPPORTED, "Proxying Not Supported"),
    (Code::HOP_LIMIT_REACHED, "Hop Limit Reached"),
];

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.class(), self.detail())
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{self} {name}"),
            None => write!(f, "{self}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeSet, format};

    #[test]
    fn is_written_with_a_dot_and_two_digits() {
        assert_eq!(format!("{}", Code::CONTENT), "2.05");
        assert_eq!(format!("{:?}", Code::CONTINUE), "2.31 Continue");
        assert_eq!(format!("{:?}", Code::new(3, 1)), "3.01");
        assert_eq!(Code::CONTENT.0, 0x45);
        assert_eq!(Code::HOP_LIMIT_REACHED.0, 0xA8);
    }

    #[test]
    fn every_byte_belongs_to_one_group() {
        for byte in 0..=255u8 {
            let code = Code(byte);
            assert_eq!(Code::new(code.class(), code.detail()), code);
            let groups = [code == Code::EMPTY, code.is_request(), code.is_response(), code.is_reserved()];
            assert_eq!(groups.iter().filter(|group| **group).count(), 1, "{code}");
            assert!(!code.is_idempotent() || code.is_request(), "{code}");
        }
    }

    #[test]
    fn names_are_ordered_and_unique() {
        assert!(NAMES.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!(NAMES.iter().map(|(_, name)| name).collect::<BTreeSet<_>>().len(), NAMES.len());
        assert!(NAMES.iter().all(|(code, _)| !code.is_reserved()));
    }

    #[test]
    fn post_and_patch_may_not_be_repeated() {
        let repeatable =
            (1..=7).filter(|detail| Code::new(0, *detail).is_idempotent()).collect::<std::vec::Vec<_>>();
        assert_eq!(repeatable, [1, 3, 4, 5, 7]);
    }
}

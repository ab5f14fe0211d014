//! What a handler answers.
use bytes::Bytes;
use m2m_proto::coap::{
    code::Code, content_format::ContentFormat, option::OptionNumber, option_set::OptionSet,
};

/// An answer in the making. Without a code it is the method's own success: 2.05 for GET and FETCH, 2.02 for DELETE,
/// 2.04 for the others.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    code: Option<Code>,
    payload: Bytes,
    options: OptionSet,
}

impl Reply {
    /// An answer with this code.
    pub fn new(code: Code) -> Reply {
        Reply { code: Some(code), ..Reply::default() }
    }

    /// 2.05 with a body.
    pub fn content(payload: impl Into<Bytes>) -> Reply {
        Reply::new(Code::CONTENT).payload(payload)
    }

    /// 2.05 with a text.
    pub fn text(text: impl Into<String>) -> Reply {
        Reply::content(text.into()).format(ContentFormat::TEXT.0)
    }

    /// 2.04 without a body.
    pub fn changed() -> Reply {
        Reply::new(Code::CHANGED)
    }

    /// The body.
    pub fn payload(mut self, payload: impl Into<Bytes>) -> Reply {
        self.payload = payload.into();
        self
    }

    /// What the body is: the number of a Content-Format.
    pub fn format(mut self, format: u16) -> Reply {
        // Two bytes are always allowed.
        let _ = self.options.set_uint(OptionNumber::CONTENT_FORMAT, u32::from(format));
        self
    }

    /// Another CoAP option; left out if its value is longer or shorter than the registry allows.
    pub fn option(mut self, number: OptionNumber, value: impl AsRef<[u8]>) -> Reply {
        let _ = self.options.add(number, value.as_ref());
        self
    }

    /// The answer to a request with this method and Accept.
    pub(super) fn into_answer(self, method: Code, accept: Option<ContentFormat>) -> Answer {
        let code = self.code.unwrap_or(match method {
            Code::GET | Code::FETCH => Code::CONTENT,
            Code::DELETE => Code::DELETED,
            _ => Code::CHANGED,
        });
        let format = crate::request::format_of(&self.options);
        if code.is_success() && accept.is_some_and(|wanted| format.is_some_and(|format| format != wanted)) {
            return Answer::code(Code::NOT_ACCEPTABLE);
        }
        Answer { code, options: self.options, payload: self.payload }
    }
}

/// What a handler may return: a [`Reply`], a [`Code`], a body, nothing (success), or a `Result` of two of them.
pub trait IntoReply {
    /// The answer.
    fn into_reply(self) -> Reply;
}

impl IntoReply for Reply {
    fn into_reply(self) -> Reply {
        self
    }
}

impl IntoReply for Code {
    fn into_reply(self) -> Reply {
        Reply::new(self)
    }
}

impl IntoReply for () {
    fn into_reply(self) -> Reply {
        Reply::default()
    }
}

impl IntoReply for Bytes {
    fn into_reply(self) -> Reply {
        Reply::default().payload(self)
    }
}

impl IntoReply for Vec<u8> {
    fn into_reply(self) -> Reply {
        Reply::default().payload(self)
    }
}

impl IntoReply for String {
    fn into_reply(self) -> Reply {
        Reply::default().payload(self).format(ContentFormat::TEXT.0)
    }
}

impl IntoReply for &'static str {
    fn into_reply(self) -> Reply {
        Reply::default().payload(self).format(ContentFormat::TEXT.0)
    }
}

impl<T: IntoReply, E: IntoReply> IntoReply for Result<T, E> {
    fn into_reply(self) -> Reply {
        match self {
            Ok(value) => value.into_reply(),
            Err(why) => why.into_reply(),
        }
    }
}

/// An answer as it goes to the machine.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: Code,
    pub(crate) options: OptionSet,
    pub(crate) payload: Bytes,
}

impl Answer {
    pub(crate) fn code(code: Code) -> Answer {
        Answer { code, options: OptionSet::new(), payload: Bytes::new() }
    }

    /// A refusal with words for whoever looks at it (RFC 7252 section 5.5.2).
    pub(crate) fn words(code: Code, words: &str) -> Answer {
        Answer { payload: Bytes::copy_from_slice(words.as_bytes()), ..Answer::code(code) }
    }

    /// 5.00 with words.
    pub(crate) fn internal(words: &str) -> Answer {
        Answer::words(Code::INTERNAL_SERVER_ERROR, words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code_of(reply: impl IntoReply, method: Code) -> Code {
        reply.into_reply().into_answer(method, None).code
    }

    #[test]
    fn success_depends_on_the_method() {
        let rows = [
            (Code::GET, Code::CONTENT),
            (Code::FETCH, Code::CONTENT),
            (Code::POST, Code::CHANGED),
            (Code::PUT, Code::CHANGED),
            (Code::PATCH, Code::CHANGED),
            (Code::DELETE, Code::DELETED),
        ];
        for (method, expected) in rows {
            assert_eq!(code_of((), method), expected);
            assert_eq!(code_of("text", method), expected);
            assert_eq!(code_of(Code::CONFLICT, method), Code::CONFLICT);
        }
        assert_eq!(code_of(Ok::<_, Code>(Reply::changed()), Code::GET), Code::CHANGED);
        assert_eq!(code_of(Err::<(), _>(Code::FORBIDDEN), Code::GET), Code::FORBIDDEN);
    }

    #[test]
    fn text_is_marked_as_text() {
        let answer = Reply::text("21").into_answer(Code::GET, Some(ContentFormat::TEXT));
        assert_eq!(crate::request::format_of(&answer.options), Some(ContentFormat::TEXT));
        assert_eq!(&answer.payload[..], b"21");
    }

    #[test]
    fn what_was_not_asked_for_is_not_sent() {
        let answer = Reply::text("21").into_answer(Code::GET, Some(ContentFormat::CBOR));
        assert_eq!((answer.code, answer.payload.len()), (Code::NOT_ACCEPTABLE, 0));
        // Who says nothing of its format may be understood all the same.
        let answer = Reply::content("x").into_answer(Code::GET, Some(ContentFormat::CBOR));
        assert_eq!(answer.code, Code::CONTENT);
    }
}

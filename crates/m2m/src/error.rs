//! The one error of this crate: a kind for programs, a sentence for people.
use std::{fmt, sync::Arc};

use m2m_proto::{
    coap::code::Code,
    error::{CommandError, ErrorKind},
};

use crate::{keyfile::KeyError, names::NameError, state::StateError};

/// What went wrong. Its text says what happened, to whom, and what to try; it never holds a key.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    text: String,
    code: Option<Code>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, text: impl Into<String>) -> Error {
        Error(Arc::new(Inner { kind, text: text.into(), code: None, source: None }))
    }

    pub(crate) fn caused(
        kind: ErrorKind,
        text: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Error {
        Error(Arc::new(Inner { kind, text: text.into(), code: None, source: Some(Box::new(source)) }))
    }

    /// The peer answered 4.xx or 5.xx.
    pub(crate) fn refused(code: Code, text: impl Into<String>) -> Error {
        Error(Arc::new(Inner { kind: ErrorKind::Refused, text: text.into(), code: Some(code), source: None }))
    }

    /// A command that the machine did not take, in a sentence that starts with what was tried.
    pub(crate) fn command(tried: impl fmt::Display, why: CommandError) -> Error {
        let text = match why {
            // Found while it was written: nobody knows by how much.
            CommandError::TooLarge { max: 0, .. } => {
                format!("{tried}: the message doesn't fit into one packet")
            }
            why => format!("{tried}: {why}"),
        };
        Error::new(why.kind(), text)
    }

    pub(crate) fn net_closed() -> Error {
        Error::new(ErrorKind::Closed, "the net is closed")
    }

    /// What kind of thing went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The peer's code, if it answered with 4.xx or 5.xx.
    pub fn code(&self) -> Option<Code> {
        self.0.code
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({}: {})", self.0.kind, self.0.text)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

impl From<KeyError> for Error {
    fn from(why: KeyError) -> Error {
        Error::caused(ErrorKind::Configuration, why.to_string(), why)
    }
}

impl From<NameError> for Error {
    fn from(why: NameError) -> Error {
        Error::caused(ErrorKind::Configuration, why.to_string(), why)
    }
}

impl From<StateError> for Error {
    fn from(why: StateError) -> Error {
        let kind = match why {
            StateError::NoHome | StateError::InUse { .. } | StateError::Damaged { .. } => {
                ErrorKind::Configuration
            }
            _ => ErrorKind::Io,
        };
        Error::caused(kind, why.to_string(), why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    #[test]
    fn keeps_kind_code_and_cause() {
        let refused = Error::refused(Code::NOT_FOUND, "GET /x: 4.04 Not Found");
        assert_eq!((refused.kind(), refused.code()), (ErrorKind::Refused, Some(Code::NOT_FOUND)));
        assert!(refused.source().is_none());
        let io = Error::caused(ErrorKind::Io, "no socket", std::io::Error::other("full"));
        assert_eq!(io.source().map(ToString::to_string).as_deref(), Some("full"));
        assert_eq!(io.to_string(), "no socket");
        assert_eq!(format!("{io:?}"), "Error(io: no socket)");
    }

    #[test]
    fn a_command_error_names_what_was_tried() {
        let error = Error::command("GET /x", CommandError::TooLarge { len: 2000, max: 1100 });
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert!(error.to_string().starts_with("GET /x: the message has 2000 bytes"), "{error}");
        let unknown = Error::command("GET /x", CommandError::TooLarge { len: 0, max: 0 });
        assert_eq!(unknown.to_string(), "GET /x: the message doesn't fit into one packet");
    }
}

//! Why a command ends: the failure in words, and the exit code of each kind of error.
use std::process::ExitCode;

use m2m::ErrorKind;
use m2m::keyfile::KeyError;
use m2m::state::StateError;
use m2m_proto::coap::code::Code;

/// The exit codes, the same for every verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It is done.
    Ok = 0,
    /// Whatever has no code of its own.
    Other = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// No answer in time, nobody there, or nobody of that id.
    Unreachable = 3,
    /// The peer answered 4.xx.
    ClientError = 4,
    /// The peer answered 5.xx.
    ServerError = 5,
    /// The peer is there, but not with this key.
    Authentication = 6,
    /// A key, a file, the environment or a setting cannot work.
    Configuration = 7,
}

impl Exit {
    /// The code of an error's kind; `code` is what a refusal came with.
    pub(crate) fn of(kind: ErrorKind, code: Option<Code>) -> Exit {
        match kind {
            ErrorKind::Timeout | ErrorKind::Unreachable | ErrorKind::UnknownPeer | ErrorKind::SessionLost => {
                Exit::Unreachable
            }
            ErrorKind::AuthenticationFailed => Exit::Authentication,
            ErrorKind::Configuration => Exit::Configuration,
            ErrorKind::Refused => match code.map(Code::class) {
                Some(4) => Exit::ClientError,
                Some(5) => Exit::ServerError,
                _ => Exit::Other,
            },
            ErrorKind::TooLarge | ErrorKind::Io | ErrorKind::Closed => Exit::Other,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Why a command could not do its work.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The library said so.
    Net {
        /// What it said.
        error: m2m::Error,
        /// What was being done, where the error alone does not tell it.
        during: Option<String>,
    },
    /// No answer within the time that `--timeout` gives, in words.
    TimedOut(String),
    /// Files, environment or settings cannot work: what, where, and what to try.
    Configuration(String),
    /// Anything else, in words.
    Other(String),
    /// Whoever read our stdout has enough. No failure, and nothing to say.
    ClosedPipe,
}

impl Failure {
    /// What to exit with.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Failure::Net { error, .. } => Exit::of(error.kind(), error.code()),
            Failure::TimedOut(_) => Exit::Unreachable,
            Failure::Configuration(_) => Exit::Configuration,
            Failure::Other(_) => Exit::Other,
            Failure::ClosedPipe => Exit::Ok,
        }
    }

    /// One or two words that a script can rely on.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Failure::Net { error, .. } => error.kind().name(),
            Failure::TimedOut(_) => ErrorKind::Timeout.name(),
            Failure::Configuration(_) => ErrorKind::Configuration.name(),
            Failure::Other(_) => "other",
            Failure::ClosedPipe => "closed",
        }
    }

    /// The sentence for a person.
    pub(crate) fn message(&self) -> String {
        match self {
            Failure::Net { error, during: Some(during) } => format!("{during}: {error}"),
            Failure::Net { error, during: None } => error.to_string(),
            Failure::TimedOut(words) | Failure::Configuration(words) | Failure::Other(words) => words.clone(),
            Failure::ClosedPipe => "the output was closed".into(),
        }
    }

    /// The same failure, with what was being done before it.
    pub(crate) fn during(self, during: impl Into<String>) -> Failure {
        let during = during.into();
        match self {
            Failure::Net { error, .. } => Failure::Net { error, during: Some(during) },
            Failure::TimedOut(words) => Failure::TimedOut(format!("{during}: {words}")),
            Failure::Configuration(words) => Failure::Configuration(format!("{during}: {words}")),
            Failure::Other(words) => Failure::Other(format!("{during}: {words}")),
            Failure::ClosedPipe => Failure::ClosedPipe,
        }
    }
}

impl From<m2m::Error> for Failure {
    fn from(error: m2m::Error) -> Failure {
        Failure::Net { error, during: None }
    }
}

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Failure {
        Failure::Configuration(error.to_string())
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Failure {
        Failure::Configuration(error.to_string())
    }
}

/// Prints what clap has to say, help included, and gives its exit code: 0 for help and version, 2 for the rest.
pub(crate) fn of_usage(error: &clap::Error) -> ExitCode {
    // A closed pipe (`m2m --help | head -1`) is nobody's fault.
    let _ = error.print();
    if error.use_stderr() { Exit::Usage.into() } else { Exit::Ok.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_code() {
        let cases = [
            (ErrorKind::Timeout, 3),
            (ErrorKind::Unreachable, 3),
            (ErrorKind::UnknownPeer, 3),
            (ErrorKind::SessionLost, 3),
            (ErrorKind::AuthenticationFailed, 6),
            (ErrorKind::Refused, 1),
            (ErrorKind::TooLarge, 1),
            (ErrorKind::Configuration, 7),
            (ErrorKind::Io, 1),
            (ErrorKind::Closed, 1),
        ];
        for (kind, code) in cases {
            assert_eq!(Exit::of(kind, None) as u8, code, "{kind}");
        }
    }

    #[test]
    fn a_refusal_is_told_by_its_class() {
        assert_eq!(Exit::of(ErrorKind::Refused, Some(Code::NOT_FOUND)), Exit::ClientError);
        assert_eq!(Exit::of(ErrorKind::Refused, Some(Code::SERVICE_UNAVAILABLE)), Exit::ServerError);
    }

    #[test]
    fn what_was_being_done_stands_first() {
        let failure = Failure::Other("no space".into()).during("line 3");
        assert_eq!((failure.message().as_str(), failure.exit()), ("line 3: no space", Exit::Other));
    }
}

//! From bytes to [`Frame`].
use super::{
    BUNDLE, CloseCode, Epoch, ErrorCode, FoundStatus, Frame, FrameError, KeyBytes, Label, MAX_CLOSE_TEXT,
    MAX_PATH, MESSAGE, MIN_INNER, Memory, RegisterStatus, RelayFlags, Req, ShortId, kind,
};
use crate::{
    id::Id,
    wire::cursor::{Reader, Truncated},
};
use core::net::{IpAddr, SocketAddr};

impl From<Truncated> for FrameError {
    fn from(_: Truncated) -> FrameError {
        FrameError::Truncated
    }
}

pub(super) fn frame(bytes: &[u8]) -> Result<Frame<'_>, FrameError> {
    let mut r = Reader::new(bytes);
    match r.u8().map_err(|_| FrameError::Empty)? {
        BUNDLE => Err(FrameError::Nested),
        first if MESSAGE.contains(&first) => Err(FrameError::NotAFrame),
        kind @ (kind::PAD..=kind::DONE | kind::CLOSE | kind::RESUMED) => session_frame(kind, &mut r),
        kind @ (kind::REGISTER..=kind::UNBIND) => relay_frame(kind, &mut r),
        other => Ok(Frame::Unknown(other)),
    }
}

/// Section 5.1.
fn session_frame<'a>(kind: u8, r: &mut Reader<'a>) -> Result<Frame<'a>, FrameError> {
    Ok(match kind {
        kind::PAD => Frame::Pad,
        kind::PING => Frame::Ping { req: req(r)?, next_s: r.u16()? },
        kind::PONG => Frame::Pong { req: req(r)?, draining: r.u8()? & 1 != 0, observed: address(r)? },
        kind::CONFIRM => {
            let resumes = r.u8()? & 1 != 0;
            Frame::Confirm { mem: r.u32()?, resume: if resumes { Some(*r.array()?) } else { None } }
        }
        kind::RESUMED => Frame::Resumed { memory: Memory(r.u8()?), mem: r.u32()? },
        kind::PATH_CHALLENGE => Frame::PathChallenge(*r.array()?),
        kind::PATH_RESPONSE => Frame::PathResponse(*r.array()?),
        kind::REKEY => {
            let (req, generation, keyed) = (req(r)?, r.u32()?, r.u8()? & 1 != 0);
            let ephemeral = r.array()?;
            Frame::Rekey { req, generation, ephemeral, key: if keyed { key(r)? } else { KeyBytes::NONE } }
        }
        kind::REKEYED => Frame::Rekeyed { req: req(r)?, generation: r.u32()?, ephemeral: r.array()? },
        kind::PROVE => Frame::Prove { public: r.array()?, mac: r.array()? },
        kind::PROVE_ASK => Frame::ProveAsk { req: req(r)? },
        kind::NEW_TOKEN => Frame::NewToken { req: req(r)?, token: r.u32()? },
        kind::DONE => Frame::Done { req: req(r)?, status: r.u8()? },
        kind::CLOSE => Frame::Close { code: CloseCode(r.u8()?), text: close_text(r.rest())? },
        other => Frame::Unknown(other),
    })
}

/// Section 5.2.
fn relay_frame<'a>(kind: u8, r: &mut Reader<'a>) -> Result<Frame<'a>, FrameError> {
    Ok(match kind {
        kind::REGISTER => {
            Frame::Register { req: req(r)?, ephemeral: r.u8()? & 1 != 0, epoch: epoch(r)?, lease_s: r.u32()? }
        }
        kind::REGISTERED => Frame::Registered {
            req: req(r)?,
            status: RegisterStatus(r.u8()?),
            epoch: epoch(r)?,
            lease_s: r.u32()?,
            since: r.u32()?,
            path: path(r)?,
        },
        kind::UNREGISTER => Frame::Unregister { req: req(r)?, epoch: epoch(r)? },
        kind::LOOKUP => Frame::Lookup { req: req(r)?, id: r.id()? },
        kind::FOUND => Frame::Found { req: req(r)?, status: FoundStatus(r.u8()?), home: r.id()? },
        kind::RELAY => Frame::Relay {
            hop_limit: r.u8()?,
            flags: RelayFlags(r.u8()?),
            dst: r.id()?,
            src: r.id()?,
            inner: inner(r.rest())?,
        },
        kind::ERROR => {
            let (code, _flags) = (ErrorCode(r.u8()?), r.u8()?);
            Frame::Error { code, dst: r.id()?, src: r.id()?, packet: *r.array()? }
        }
        kind::LABEL_BIND => {
            Frame::LabelBind { req: req(r)?, label: Label(r.u32()?), dst: r.id()?, src: r.id()? }
        }
        kind::LABEL_BOUND => Frame::LabelBound { req: req(r)?, label: Label(r.u32()?) },
        kind::LABEL_UNBIND => Frame::LabelUnbind { label: Label(r.u32()?) },
        kind::MOVED => Frame::Moved { id: r.id()?, host: r.id()?, epoch: epoch(r)? },
        kind::DRAIN => Frame::Drain { reconnect_s: r.u16()?, try_s: r.u16()?, hosts: hosts(r)? },
        kind::NETKEY => Frame::NetKey { req: req(r)?, key_id: r.u16()?, mac: r.array()?, key: key(r)? },
        kind::UNBIND => Frame::Unbind { id: r.id()?, epoch: epoch(r)? },
        other => Frame::Unknown(other),
    })
}

fn req(r: &mut Reader<'_>) -> Result<Req, Truncated> {
    r.u16().map(Req)
}

fn epoch(r: &mut Reader<'_>) -> Result<Epoch, Truncated> {
    r.u64().map(Epoch)
}

/// family 1, port 2, ip 4 or 16. A family of a later version cannot be skipped, for its length is unknown.
fn address(r: &mut Reader<'_>) -> Result<Option<SocketAddr>, FrameError> {
    let family = r.u8()?;
    if family == 0 {
        return Ok(None);
    }
    let port = r.u16()?;
    let ip = match family {
        4 => IpAddr::from(*r.array::<4>()?),
        6 => IpAddr::from(*r.array::<16>()?),
        _ => return Err(FrameError::Value),
    };
    Ok(Some(SocketAddr::new(ip, port)))
}

/// length 1, key.
fn key<'a>(r: &mut Reader<'a>) -> Result<KeyBytes<'a>, FrameError> {
    let len = r.u8()?;
    KeyBytes::new(r.bytes(len.into())?).ok_or(FrameError::Value)
}

/// count 1, short ids 4 each.
fn path<'a>(r: &mut Reader<'a>) -> Result<&'a [ShortId], FrameError> {
    let count = usize::from(r.u8()?);
    if count > MAX_PATH {
        return Err(FrameError::Value);
    }
    Ok(r.bytes(4 * count)?.as_chunks().0)
}

/// count 1, ids 16 each.
fn hosts<'a>(r: &mut Reader<'a>) -> Result<&'a [[u8; Id::LEN]], FrameError> {
    let count = usize::from(r.u8()?);
    Ok(r.bytes(Id::LEN * count)?.as_chunks().0)
}

/// A relay quotes the last 8 bytes of what it drops: nothing shorter than the shortest packet may get that far.
fn inner(bytes: &[u8]) -> Result<&[u8], FrameError> {
    if bytes.len() < MIN_INNER { Err(FrameError::Truncated) } else { Ok(bytes) }
}

/// The text's first 64 bytes; as with every frame, what is longer than this version says is ignored.
fn close_text(bytes: &[u8]) -> Result<&str, FrameError> {
    let head = bytes.get(..MAX_CLOSE_TEXT).unwrap_or(bytes);
    match core::str::from_utf8(head) {
        Ok(text) => Ok(text),
        // The cut went through a character, which is not the sender's fault.
        Err(error) if error.error_len().is_none() && head.len() < bytes.len() => {
            let whole = head.get(..error.valid_up_to()).unwrap_or_default();
            core::str::from_utf8(whole).map_err(|_| FrameError::Value)
        }
        Err(_) => Err(FrameError::Value),
    }
}

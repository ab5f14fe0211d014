//! Targets such as `/a/b?x=1` as options, and back (RFC 7252 sections 6.4 and 6.5; characters by RFC 3986).
//!
//! What stands before the path (scheme, host, port) is not read here: inside a session it is known.
use super::{
    option::{CoapOption, OptionNumber},
    option_set::OptionSet,
};
use alloc::vec::Vec;
use core::fmt;

/// Adds Uri-Path and Uri-Query options for a target: a path, or a path and a query. The leading slash may be left
/// out. `%41` is decoded; `/` alone and the empty text are the root, which has no option.
///
/// ```
/// use m2m_proto::coap::{option::OptionNumber, option_set::OptionSet, uri};
/// let mut options = OptionSet::new();
/// uri::split_target(&mut options, "/sensors/temp?unit=C")?;
/// assert_eq!(options.len(), 3);
/// assert_eq!(uri::join_target(options.iter()).to_string(), "/sensors/temp?unit=C");
/// # Ok::<(), uri::UriError>(())
/// ```
///
/// After an error, some of the options may have been added.
pub fn split_target(options: &mut OptionSet, target: &str) -> Result<(), UriError> {
    if target.contains('#') {
        return Err(UriError::Fragment);
    }
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let path = path.strip_prefix('/').unwrap_or(path);
    if !path.is_empty() {
        for segment in path.split('/') {
            let segment = percent_decode(segment)?;
            if matches!(segment.as_slice(), b"." | b"..") {
                return Err(UriError::DotSegment);
            }
            options.add(OptionNumber::URI_PATH, &segment).map_err(|_| UriError::TooLong)?;
        }
    }
    let Some(query) = query else { return Ok(()) };
    for argument in query.split('&') {
        let argument = percent_decode(argument)?;
        options.add(OptionNumber::URI_QUERY, &argument).map_err(|_| UriError::TooLong)?;
    }
    Ok(())
}

/// Shows the Uri-Path and Uri-Query options among `options` as a target; `/` if there are none.
pub fn join_target<'a, I>(options: I) -> Target<I>
where
    I: Iterator<Item = CoapOption<'a>> + Clone,
{
    Target { options, path: OptionNumber::URI_PATH, query: OptionNumber::URI_QUERY }
}

/// Shows the Location-Path and Location-Query options among `options` as a target (RFC 7252 section 5.10.7).
pub fn join_location<'a, I>(options: I) -> Target<I>
where
    I: Iterator<Item = CoapOption<'a>> + Clone,
{
    Target { options, path: OptionNumber::LOCATION_PATH, query: OptionNumber::LOCATION_QUERY }
}

/// A target, to be written with `Display`.
#[derive(Clone)]
pub struct Target<I> {
    options: I,
    path: OptionNumber,
    query: OptionNumber,
}

impl<'a, I> fmt::Display for Target<I>
where
    I: Iterator<Item = CoapOption<'a>> + Clone,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut segments = self.options.clone().filter(|option| option.number == self.path).peekable();
        if segments.peek().is_none() {
            f.write_str("/")?;
        }
        for segment in segments {
            f.write_str("/")?;
            percent_encode(f, segment.value, is_segment_char)?;
        }
        let mut separator = "?";
        for argument in self.options.clone().filter(|option| option.number == self.query) {
            f.write_str(separator)?;
            percent_encode(f, argument.value, is_argument_char)?;
            separator = "&";
        }
        Ok(())
    }
}

impl<'a, I> fmt::Debug for Target<I>
where
    I: Iterator<Item = CoapOption<'a>> + Clone,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// RFC 3986 `pchar` without percent: what a segment may hold as it is.
fn is_segment_char(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&byte)
}

/// RFC 7252 section 6.5 step 7: as in a segment, with `/` and `?`, but not `&`, which separates.
fn is_argument_char(byte: u8) -> bool {
    byte != b'&' && (is_segment_char(byte) || b"/?".contains(&byte))
}

fn percent_encode(f: &mut fmt::Formatter<'_>, value: &[u8], is_plain: fn(u8) -> bool) -> fmt::Result {
    for byte in value {
        if is_plain(*byte) {
            write!(f, "{}", char::from(*byte))?;
        } else {
            write!(f, "%{byte:02X}")?;
        }
    }
    Ok(())
}

fn percent_decode(text: &str) -> Result<Vec<u8>, UriError> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit =
            || rest.next().and_then(|digit| char::from(digit).to_digit(16)).ok_or(UriError::Percent);
        decoded.push((digit()? << 4 | digit()?) as u8);
    }
    Ok(decoded)
}

/// Why a text is no target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UriError {
    /// It has a `#`, which never travels (RFC 7252 section 6.4 step 2).
    Fragment,
    /// A segment is `.` or `..`, which a Uri-Path must not be (RFC 7252 section 5.10.1).
    DotSegment,
    /// A `%` without two hex digits after it.
    Percent,
    /// A segment or argument has more than 255 bytes.
    TooLong,
}

impl fmt::Display for UriError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            UriError::Fragment => "a target has no fragment (#)",
            UriError::DotSegment => "a path has no segments `.` or `..`",
            UriError::Percent => "a % is followed by two hex digits",
            UriError::TooLong => "a segment or argument has at most 255 bytes",
        })
    }
}

impl core::error::Error for UriError {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{format, string::ToString, vec::Vec};

    fn split(target: &str) -> Result<OptionSet, UriError> {
        let mut options = OptionSet::new();
        split_target(&mut options, target).map(|()| options)
    }

    #[test]
    fn splits_into_segments_and_arguments() {
        let rows = [
            ("/a/b?x=1&y", r#"[Uri-Path="a", Uri-Path="b", Uri-Query="x=1", Uri-Query="y"]"#),
            ("a/b", r#"[Uri-Path="a", Uri-Path="b"]"#),
            ("/", "[]"),
            ("", "[]"),
            ("?x", r#"[Uri-Query="x"]"#),
            ("/a/", r#"[Uri-Path="a", Uri-Path=""]"#),
            ("//", r#"[Uri-Path="", Uri-Path=""]"#),
            ("/%2F%3f?a%26b", r#"[Uri-Path="/?", Uri-Query="a&b"]"#),
            ("/ä", r#"[Uri-Path="ä"]"#),
            ("/a?", r#"[Uri-Path="a", Uri-Query=""]"#),
        ];
        for (target, expected) in rows {
            assert_eq!(format!("{:?}", split(target).unwrap()), expected, "{target}");
        }
    }

    #[test]
    fn refuses_what_cannot_travel() {
        assert_eq!(split("/a#b").unwrap_err(), UriError::Fragment);
        assert_eq!(split("/a/../b").unwrap_err(), UriError::DotSegment);
        assert_eq!(split("/%2e").unwrap_err(), UriError::DotSegment);
        assert_eq!(split("/%4").unwrap_err(), UriError::Percent);
        assert_eq!(split("/%g0").unwrap_err(), UriError::Percent);
        assert_eq!(split(&"x".repeat(256)).unwrap_err(), UriError::TooLong);
        assert!(split(&"x".repeat(255)).is_ok());
    }

    #[test]
    fn joins_with_escapes_where_needed() {
        for target in ["/", "/a", "/a/b?x=1&y=/?", "/a/", "//", "/%2F?%26", "/%C3%A4", "/:@!$&'()*+,;="] {
            assert_eq!(join_target(split(target).unwrap().iter()).to_string(), target);
        }
        let mut options = OptionSet::new();
        options
            .add(OptionNumber::LOCATION_PATH, b"new")
            .unwrap()
            .add(OptionNumber::LOCATION_QUERY, b"v 1")
            .unwrap();
        assert_eq!(join_location(options.iter()).to_string(), "/new?v%201");
    }

    proptest! {
        #[test]
        fn any_segments_survive(segments in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..5)) {
            prop_assume!(segments.iter().all(|segment| segment != b"." && segment != b".."));
            let mut options = OptionSet::new();
            for segment in &segments {
                options.add(OptionNumber::URI_PATH, segment).unwrap();
            }
            let again = split(&join_target(options.iter()).to_string()).unwrap();
            let values: Vec<_> = again.iter().map(|option| option.value.to_vec()).collect();
            prop_assert_eq!(values, segments);
        }
    }
}

//! Content-Formats: what a payload is (RFC 7252 section 12.3 and the IANA registry).
use core::fmt;

/// The number that Content-Format and Accept carry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentFormat(pub u16);

impl ContentFormat {
    /// `text/plain; charset=utf-8`
    pub const TEXT: ContentFormat = ContentFormat(0);
    /// `application/link-format` (RFC 6690), what `/.well-known/core` answers.
    pub const LINK_FORMAT: ContentFormat = ContentFormat(40);
    /// `application/xml`
    pub const XML: ContentFormat = ContentFormat(41);
    /// `application/octet-stream`
    pub const OCTET_STREAM: ContentFormat = ContentFormat(42);
    /// `application/exi`
    pub const EXI: ContentFormat = ContentFormat(47);
    /// `application/json`
    pub const JSON: ContentFormat = ContentFormat(50);
    /// `application/json-patch+json` (RFC 6902)
    pub const JSON_PATCH: ContentFormat = ContentFormat(51);
    /// `application/merge-patch+json` (RFC 7396)
    pub const MERGE_PATCH: ContentFormat = ContentFormat(52);
    /// `application/cbor` (RFC 8949)
    pub const CBOR: ContentFormat = ContentFormat(60);
    /// `application/cwt` (RFC 8392)
    pub const CWT: ContentFormat = ContentFormat(61);
    /// `application/multipart-core` (RFC 8710)
    pub const MULTIPART: ContentFormat = ContentFormat(62);
    /// `application/cbor-seq` (RFC 8742)
    pub const CBOR_SEQ: ContentFormat = ContentFormat(63);
    /// `application/senml+json` (RFC 8428)
    pub const SENML_JSON: ContentFormat = ContentFormat(110);
    /// `application/senml+cbor` (RFC 8428)
    pub const SENML_CBOR: ContentFormat = ContentFormat(112);
    /// `application/concise-problem-details+cbor` (RFC 9290)
    pub const PROBLEM_DETAILS: ContentFormat = ContentFormat(257);
    /// `application/vnd.oma.lwm2m+tlv`
    pub const LWM2M_TLV: ContentFormat = ContentFormat(11542);
    /// `application/vnd.oma.lwm2m+json`
    pub const LWM2M_JSON: ContentFormat = ContentFormat(11543);
    /// `application/vnd.oma.lwm2m+cbor`
    pub const LWM2M_CBOR: ContentFormat = ContentFormat(11544);

    /// The media type, where it is one of those above.
    pub fn media_type(self) -> Option<&'static str> {
        MEDIA_TYPES.iter().find(|(format, _)| *format == self).map(|(_, name)| *name)
    }

    /// The number of a media type as it is written here, or of its short form (`json` for `application/json`).
    pub fn from_media_type(text: &str) -> Option<ContentFormat> {
        if text.is_empty() {
            return None;
        }
        let essence = text.split(';').next().unwrap_or(text).trim_end();
        let is_named = |name: &str| {
            let name = name.split(';').next().unwrap_or(name);
            name == essence || name.strip_prefix("application/") == Some(essence)
        };
        MEDIA_TYPES.iter().find(|(_, name)| is_named(name)).map(|(format, _)| *format)
    }
}

const MEDIA_TYPES: &[(ContentFormat, &str)] = &[
    (ContentFormat::TEXT, "text/plain; charset=utf-8"),
    (ContentFormat::LINK_FORMAT, "application/link-format"),
    (ContentFormat::XML, "application/xml"),
    (ContentFormat::OCTET_STREAM, "application/octet-stream"),
    (ContentFormat::EXI, "application/exi"),
    (ContentFormat::JSON, "application/json"),
    (ContentFormat::JSON_PATCH, "application/json-patch+json"),
    (ContentFormat::MERGE_PATCH, "application/merge-patch+json"),
    (ContentFormat::CBOR, "application/cbor"),
    (ContentFormat::CWT, "application/cwt"),
    (ContentFormat::MULTIPART, "application/multipart-core"),
    (ContentFormat::CBOR_SEQ, "application/cbor-seq"),
    (ContentFormat::SENML_JSON, "application/senml+json"),
    (ContentFormat::SENML_CBOR, "application/senml+cbor"),
    (ContentFormat::PROBLEM_DETAILS, "application/concise-problem-details+cbor"),
    (ContentFormat::LWM2M_TLV, "application/vnd.oma.lwm2m+tlv"),
    (ContentFormat::LWM2M_JSON, "application/vnd.oma.lwm2m+json"),
    (ContentFormat::LWM2M_CBOR, "application/vnd.oma.lwm2m+cbor"),
];

impl fmt::Display for ContentFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.media_type() {
            Some(name) => f.write_str(name),
            None => write!(f, "content-format {}", self.0),
        }
    }
}

impl fmt::Debug for ContentFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn every_media_type_leads_back_to_its_number() {
        assert!(MEDIA_TYPES.is_sorted_by(|a, b| a.0 < b.0));
        for (format, name) in MEDIA_TYPES {
            assert_eq!(ContentFormat::from_media_type(name), Some(*format));
            assert_eq!(format.media_type(), Some(*name));
        }
    }

    #[test]
    fn reads_short_and_bare_forms() {
        assert_eq!(ContentFormat::from_media_type("json"), Some(ContentFormat::JSON));
        assert_eq!(ContentFormat::from_media_type("text/plain"), Some(ContentFormat::TEXT));
        assert_eq!(ContentFormat::from_media_type("application/none"), None);
        assert_eq!(ContentFormat::from_media_type(""), None);
        assert_eq!(ContentFormat(9).to_string(), "content-format 9");
    }
}

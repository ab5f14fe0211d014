//! Keys in files: read, made, written; and made from a passphrase.
//!
//! A key file is text. Empty lines, and what follows a `#`, are ignored; one line remains, and is either
//!
//! ```text
//! 2f1c…                                   a net key: 32 to 128 hex digits, so 16 to 64 bytes
//! m2m-pair v1 <id A> <id B> <64 digits>   a pair key: lets A open sessions to B and nothing else
//! ```
//!
//! Passphrases become keys through Argon2id (RFC 9106). No text here ever shows what a file holds.
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use argon2::{Algorithm, Argon2, Params, Version};
use m2m_proto::id::{Id, IdError};
use zeroize::Zeroizing;

use crate::state::file;

/// Bytes of a net key, least and most.
const NET_KEY: std::ops::RangeInclusive<usize> = 16..=64;
/// Bytes of a pair key, and of a net key that is made here.
const KEY_LEN: usize = 32;
/// Bytes of a key that is made at random: 128 bits, 32 digits.
const RANDOM_LEN: usize = 16;
/// A key file with a page of comments is far below it; a file above it was named by mistake.
const MAX_FILE: usize = 4096;
const PAIR_WORD: &str = "m2m-pair";

/// Argon2id's memory in KiB, passes and lanes: RFC 9106 section 4, the second recommended choice.
const ARGON2_KIB: u32 = 64 * 1024;
const ARGON2_PASSES: u32 = 3;
const ARGON2_LANES: u32 = 4;
/// The salt is this and then the label: the same words must give the same key on every machine.
const ARGON2_SALT: &[u8] = b"m2m/1 passphrase";
/// Characters. The handshake lets an eavesdropper try guesses off-line, so a password of eight is none.
const MIN_PASSPHRASE: usize = 12;

/// What a key file holds. The bytes are wiped when it is dropped, and there is no `Debug`.
pub enum KeyFile {
    /// A net's own key, 16 to 64 bytes: opens sessions from anyone to that net, and from that net to anyone.
    Net(Zeroizing<Vec<u8>>),
    /// The key of one direction between two nets.
    Pair {
        /// Who may initiate.
        initiator: Id,
        /// To whom.
        responder: Id,
        /// The pair key itself.
        key: Zeroizing<[u8; KEY_LEN]>,
    },
}

impl KeyFile {
    /// Makes a net key of 16 random bytes.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn generate() -> Result<KeyFile, KeyError> {
        let mut key = Zeroizing::new(vec![0; RANDOM_LEN]);
        getrandom::fill(&mut key).map_err(|error| KeyError::Random(error.into()))?;
        Ok(KeyFile::Net(key))
    }

    /// Makes a net key of 32 bytes from a passphrase: the same words and label give the same key everywhere.
    ///
    /// `passphrase` is taken byte by byte, without its line end. `label` keeps two fleets with the same words apart,
    /// and makes a table of guesses useless for more than one of them; it is no secret and may be empty. Takes
    /// 64 MiB and a good part of a second: call it off the event loop.
    ///
    /// # Errors
    /// The passphrase has fewer than 12 characters.
    pub fn from_passphrase(passphrase: &str, label: &str) -> Result<KeyFile, KeyError> {
        let length = passphrase.chars().count();
        if length < MIN_PASSPHRASE {
            return Err(KeyError::ShortPassphrase(length));
        }
        let salt = [ARGON2_SALT, label.as_bytes()].concat();
        let mut key = Zeroizing::new(vec![0; KEY_LEN]);
        Params::new(ARGON2_KIB, ARGON2_PASSES, ARGON2_LANES, Some(KEY_LEN))
            .map(|params| Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
            .and_then(|argon2| argon2.hash_password_into(passphrase.as_bytes(), &salt, &mut key))
            .map_err(KeyError::Passphrase)?;
        Ok(KeyFile::Net(key))
    }

    /// Reads the text of a key file, from an environment variable for instance.
    ///
    /// # Errors
    /// It is no key, and why.
    pub fn parse(text: &str) -> Result<KeyFile, KeyTextError> {
        let text = text.trim_start_matches('\u{feff}');
        let lines = text.lines().map(|line| line.split_once('#').map_or(line, |(key, _)| key).trim());
        let mut lines = lines.filter(|line| !line.is_empty());
        let line = lines.next().ok_or(KeyTextError::Empty)?;
        if lines.next().is_some() {
            return Err(KeyTextError::SecondLine);
        }
        let mut words = line.split_whitespace();
        if words.next() == Some(PAIR_WORD) {
            return parse_pair(words);
        }
        let key = decode_hex(line)?;
        if !NET_KEY.contains(&key.len()) {
            return Err(KeyTextError::Length(key.len()));
        }
        Ok(KeyFile::Net(key))
    }

    /// Reads a key file, and says what looks unsafe about it.
    ///
    /// # Errors
    /// The file can't be read or holds no key.
    pub fn read(path: &Path) -> Result<(KeyFile, Vec<KeyWarning>), KeyError> {
        let failed = |source| KeyError::Read { path: path.into(), source };
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        // Room for all that may come: a vector that grows would leave copies of the key behind.
        let mut text = Zeroizing::new(Vec::with_capacity(MAX_FILE + 64));
        file.take(MAX_FILE as u64 + 1).read_to_end(&mut text).map_err(failed)?;
        let invalid = |reason| KeyError::Invalid { path: path.into(), reason };
        if text.len() > MAX_FILE {
            return Err(invalid(KeyTextError::TooLarge));
        }
        let text = std::str::from_utf8(&text).map_err(|_| invalid(KeyTextError::NotText))?;
        let key = KeyFile::parse(text).map_err(invalid)?;
        let mut warnings = Vec::new();
        if readable_by_others(&metadata) {
            warnings.push(KeyWarning::ReadableByOthers(path.into()));
        }
        if key.is_printable() {
            warnings.push(KeyWarning::Printable(Some(path.into())));
        }
        Ok((key, warnings))
    }

    /// Writes a new key file that only its owner can read, on the disk before this returns.
    ///
    /// # Errors
    /// A file of that name exists, which is never overwritten; or it can't be written.
    pub fn write(&self, path: &Path) -> Result<(), KeyError> {
        let text = self.to_text();
        let written = file::create_private(path).and_then(|mut file| {
            let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
            if written.is_err() {
                // Half a key is worse than none, and what the first error says matters more than this one.
                let _ = fs::remove_file(path);
            }
            written
        });
        let durable = written.and_then(|()| file::sync_folder_of(path));
        durable.map_err(|source| KeyError::Write { path: path.into(), source })
    }

    /// The key's bytes, of either kind.
    pub fn bytes(&self) -> &[u8] {
        match self {
            KeyFile::Net(key) => key,
            KeyFile::Pair { key, .. } => &key[..],
        }
    }

    /// True if all bytes are printable ASCII: a word somebody typed, which others can guess.
    pub fn is_printable(&self) -> bool {
        self.bytes().iter().all(|byte| (b' '..=b'~').contains(byte))
    }

    /// The text that [`KeyFile::parse`] reads, with its line end.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(MAX_FILE));
        if let KeyFile::Pair { initiator, responder, .. } = self {
            text.push_str(&format!("{PAIR_WORD} v1 {initiator} {responder} "));
        }
        push_hex(&mut text, self.bytes());
        text.push('\n');
        text
    }
}

/// Reads what follows the word `m2m-pair`.
fn parse_pair<'a>(mut words: impl Iterator<Item = &'a str>) -> Result<KeyFile, KeyTextError> {
    if words.next() != Some("v1") {
        return Err(KeyTextError::PairVersion);
    }
    let (Some(initiator), Some(responder), Some(key), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(KeyTextError::PairForm);
    };
    let initiator = Id::from_hex(initiator).map_err(KeyTextError::PairId)?;
    let responder = Id::from_hex(responder).map_err(KeyTextError::PairId)?;
    if initiator == responder {
        return Err(KeyTextError::PairOfOne);
    }
    let bytes = decode_hex(key)?;
    let mut key = Zeroizing::new([0; KEY_LEN]);
    if bytes.len() != key.len() {
        return Err(KeyTextError::PairLength(bytes.len()));
    }
    key.copy_from_slice(&bytes);
    Ok(KeyFile::Pair { initiator, responder, key })
}

/// Reads hex digits, an even number of them.
pub(crate) fn decode_hex(text: &str) -> Result<Zeroizing<Vec<u8>>, KeyTextError> {
    let digit = |digit: u8| char::from(digit).to_digit(16).ok_or(KeyTextError::NotHex);
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len() / 2));
    let mut pairs = text.as_bytes().chunks_exact(2);
    for pair in &mut pairs {
        bytes.push((digit(pair[0])? * 16 + digit(pair[1])?) as u8);
    }
    match pairs.remainder() {
        [] => Ok(bytes),
        [last, ..] => digit(*last).and(Err(KeyTextError::OddDigits)),
    }
}

/// Appends hex digits; `text` has room for them, so that no copy stays behind.
pub(crate) fn push_hex(text: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}

#[cfg(unix)]
fn readable_by_others(metadata: &fs::Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt;
    // A pipe, as from `--key-file <(pass show net)`, is nobody else's to open, whatever its mode says.
    metadata.is_file() && metadata.permissions().mode() & 0o044 != 0
}

#[cfg(not(unix))]
fn readable_by_others(_: &fs::Metadata) -> bool {
    false
}

/// What is unsafe about a key that works.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyWarning {
    /// Other users of the machine may read the file.
    ReadableByOthers(PathBuf),
    /// The key's bytes are printable ASCII. The file, if it came from one.
    Printable(Option<PathBuf>),
}

impl fmt::Display for KeyWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyWarning::ReadableByOthers(path) => {
                let path = path.display();
                write!(f, "{path}: other users of this machine can read the key: chmod 600 {path}")
            }
            KeyWarning::Printable(path) => {
                if let Some(path) = path {
                    write!(f, "{}: ", path.display())?;
                }
                f.write_str(
                    "the key is readable text, which can be guessed: make a random one with `m2m keygen`",
                )
            }
        }
    }
}

/// Why a text is no key. Says nothing of what the text was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyTextError {
    /// No line holds a key.
    Empty,
    /// More than 4096 bytes.
    TooLarge,
    /// Binary, or not UTF-8.
    NotText,
    /// More than one line holds something.
    SecondLine,
    /// Something other than hex digits.
    NotHex,
    /// The last byte has only one digit.
    OddDigits,
    /// A net key has 16 to 64 bytes; it had this many.
    Length(usize),
    /// A pair line of a version other than `v1`.
    PairVersion,
    /// A pair line with too few or too many words.
    PairForm,
    /// One of a pair line's ids is none.
    PairId(IdError),
    /// Both ids of a pair are the same.
    PairOfOne,
    /// A pair key has 32 bytes; it had this many.
    PairLength(usize),
}

impl fmt::Display for KeyTextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyTextError::Empty => write!(f, "there is no key in it"),
            KeyTextError::TooLarge => write!(f, "it is too large for a key file, which has one line"),
            KeyTextError::NotText => write!(f, "it is not text; a key is written in hex digits"),
            KeyTextError::SecondLine => {
                write!(f, "it has more than one line; put each key in a file of its own")
            }
            KeyTextError::NotHex => {
                write!(f, "a key is written in hex digits (0-9, a-f) only, without spaces")
            }
            KeyTextError::OddDigits => write!(f, "it has an odd number of hex digits; one may be missing"),
            KeyTextError::Length(n) => {
                write!(f, "a net key has 16 to 64 bytes (32 to 128 hex digits), this one has {n} bytes")
            }
            KeyTextError::PairVersion => {
                write!(f, "a pair key starts with `{PAIR_WORD} v1`, this one does not")
            }
            KeyTextError::PairForm => write!(f, "a pair key is `{PAIR_WORD} v1 ID-A ID-B KEY` on one line"),
            KeyTextError::PairId(error) => write!(f, "an id in the pair is wrong: {error}"),
            KeyTextError::PairOfOne => write!(f, "both ids of the pair are the same"),
            KeyTextError::PairLength(n) => {
                write!(f, "a pair key has 32 bytes (64 hex digits), this one has {n} bytes")
            }
        }
    }
}

impl std::error::Error for KeyTextError {}

/// Why a key could not be read, made or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The file can't be opened or read.
    #[error("{}: can't read the key: {source}{}", path.display(), advice_to_read(source))]
    Read {
        /// The key file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file holds no key.
    #[error("{}: {reason}. `m2m keygen` makes a key file", path.display())]
    Invalid {
        /// The key file.
        path: PathBuf,
        /// What is wrong with it.
        reason: KeyTextError,
    },
    /// The file can't be written.
    #[error("{}: can't write the key: {}", path.display(), advice_to_write(source))]
    Write {
        /// The key file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A passphrase of this many characters.
    #[error(
        "a passphrase needs at least {MIN_PASSPHRASE} characters, this one has {0}; five random words are a good one"
    )]
    ShortPassphrase(usize),
    /// Argon2id refused the passphrase or the label: one of them has gigabytes.
    #[error("no key can be made from the passphrase: {0}")]
    Passphrase(argon2::Error),
    /// The system gave no random bytes.
    #[error("the system gives no random bytes: {0}")]
    Random(io::Error),
}

fn advice_to_read(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => ". `m2m keygen` makes a key file",
        io::ErrorKind::PermissionDenied => ". The key file must belong to the user who runs this",
        _ => "",
    }
}

fn advice_to_write(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AlreadyExists => {
            "a file of that name exists, and a key is never overwritten: move it away or choose another name"
                .into()
        }
        io::ErrorKind::NotFound => "its folder does not exist: make it first".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NET: &str = "00112233445566778899AABBCCDDEEFF";

    /// The text's error; a key has no `Debug` for `unwrap_err`.
    fn refused(text: &str) -> KeyTextError {
        KeyFile::parse(text).err().expect("it was taken for a key")
    }

    #[test]
    fn a_net_key_among_comments() {
        let text = format!("\u{feff}# the orchard's key\r\n\r\n  {NET} # made in May\r\n");
        let key = KeyFile::parse(&text).unwrap_or_else(|error| panic!("{error}"));
        assert!(matches!(key, KeyFile::Net(_)));
        assert_eq!(key.bytes()[..3], [0x00, 0x11, 0x22]);
        assert_eq!(key.bytes().len(), 16);
        assert_eq!(*key.to_text(), format!("{}\n", NET.to_lowercase()));
    }

    #[test]
    fn a_net_key_has_16_to_64_bytes() {
        assert_eq!(refused(&"ab".repeat(15)), KeyTextError::Length(15));
        assert!(KeyFile::parse(&"ab".repeat(64)).is_ok());
        assert_eq!(refused(&"ab".repeat(65)), KeyTextError::Length(65));
    }

    #[test]
    fn a_pair_key_names_its_direction() {
        let text = format!("# for the pump\nm2m-pair v1 a1 B2 {}\n", "5e".repeat(32));
        let key = KeyFile::parse(&text).unwrap_or_else(|error| panic!("{error}"));
        let KeyFile::Pair { initiator, responder, key: bytes } = &key else { panic!("taken for a net key") };
        assert_eq!((initiator.0[15], responder.0[15]), (0xa1, 0xb2));
        assert_eq!(**bytes, [0x5e; 32]);
        let again = KeyFile::parse(&key.to_text()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(*again.to_text(), *key.to_text());
    }

    #[test]
    fn what_is_no_key_is_told_apart() {
        let key = "5e".repeat(32);
        let cases = [
            (String::new(), KeyTextError::Empty),
            ("# only words\n\n".into(), KeyTextError::Empty),
            (format!("{NET}\n{NET}"), KeyTextError::SecondLine),
            (format!("{NET}f"), KeyTextError::OddDigits),
            (format!("{NET}x"), KeyTextError::NotHex),
            ("00 11 22 33".into(), KeyTextError::NotHex),
            ("correct horse battery staple".into(), KeyTextError::NotHex),
            ("ключключключключ".into(), KeyTextError::NotHex),
            (format!("m2m-pair v2 1 2 {key}"), KeyTextError::PairVersion),
            ("m2m-pair".into(), KeyTextError::PairVersion),
            ("m2m-pair v1 1 2".into(), KeyTextError::PairForm),
            (format!("m2m-pair v1 1 2 {key} 3"), KeyTextError::PairForm),
            (format!("m2m-pair v1 1 z {key}"), KeyTextError::PairId(IdError::NotHex)),
            (format!("m2m-pair v1 1 01 {key}"), KeyTextError::PairOfOne),
            (format!("m2m-pair v1 1 2 {NET}"), KeyTextError::PairLength(16)),
        ];
        for (text, reason) in cases {
            assert_eq!(refused(&text), reason, "{text}");
        }
    }

    #[test]
    fn a_file_is_written_once_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("net.key");
        let made = KeyFile::generate().unwrap_or_else(|error| panic!("{error}"));
        made.write(&path).unwrap();
        let (read, warnings) = KeyFile::read(&path).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(read.bytes(), made.bytes());
        assert_eq!(warnings, []);

        let other = KeyFile::generate().unwrap_or_else(|error| panic!("{error}"));
        assert_ne!(other.bytes(), made.bytes());
        let error = other.write(&path).unwrap_err().to_string();
        assert!(error.contains("net.key") && error.contains("never overwritten"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), *made.to_text());
    }

    #[cfg(unix)]
    #[test]
    fn a_new_file_is_its_owner_s_and_an_open_one_is_warned_about() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("net.key");
        // The bytes are the text "0000000000000000".
        KeyFile::parse(&"30".repeat(16)).ok().unwrap().write(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let (_, warnings) = KeyFile::read(&path).ok().unwrap();
        assert_eq!(warnings, [KeyWarning::ReadableByOthers(path.clone()), KeyWarning::Printable(Some(path))]);
        assert!(warnings[0].to_string().contains("chmod 600"));
        assert!(!warnings[1].to_string().contains("3030"));
    }

    #[test]
    fn errors_name_the_file_and_the_remedy_and_no_content() {
        let folder = tempfile::tempdir().unwrap();
        let read = |path: &Path| KeyFile::read(path).err().unwrap().to_string();
        let missing = read(&folder.path().join("none.key"));
        assert!(missing.contains("none.key") && missing.contains("m2m keygen"), "{missing}");

        let path = folder.path().join("net.key");
        fs::write(&path, "swordfish").unwrap();
        let wrong = read(&path);
        assert!(wrong.contains("net.key") && wrong.contains("hex digits"), "{wrong}");
        assert!(!wrong.contains("swordfish"), "{wrong}");
        fs::write(&path, [0xff; 32]).unwrap();
        assert!(read(&path).contains("not text"));
        fs::write(&path, "#".repeat(MAX_FILE + 1)).unwrap();
        assert!(read(&path).contains("too large"));

        let nowhere = folder.path().join("no/such/net.key");
        let error = KeyFile::generate().ok().unwrap().write(&nowhere).unwrap_err().to_string();
        assert!(error.contains("folder does not exist"), "{error}");
    }

    #[test]
    fn a_passphrase_gives_the_same_key_everywhere() {
        // From the reference implementation, by argon2-cffi: t = 3, m = 65536 KiB, p = 4, version 0x13.
        let words = "correct horse battery staple";
        let plain = KeyFile::from_passphrase(words, "").ok().unwrap();
        let expected = "b14ba92b439397cf1627aa602f86f84c103b67421b4dbf26d4df9699ed3ef655\n";
        assert_eq!(*plain.to_text(), expected);
        let labelled = KeyFile::from_passphrase(words, "orchard").ok().unwrap();
        let expected = "985c50fcdd210ad3be5138fa7122f066bae516d1414f1e12747355e7af9d4044\n";
        assert_eq!(*labelled.to_text(), expected);
    }

    #[test]
    fn a_short_passphrase_is_refused() {
        let error = KeyFile::from_passphrase("längeresWor", "").err().unwrap().to_string();
        assert!(error.contains("this one has 11"), "{error}");
    }
}

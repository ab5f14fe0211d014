//! A key as a program holds it: read from a file, made, or given as bytes.
use std::{path::Path, sync::Arc};

use m2m_proto::{
    error::ErrorKind,
    id::Id,
    session::keys::{NetKey, PairKey, PeerKey},
};
use zeroize::Zeroizing;

use crate::{
    Error,
    keyfile::{KeyFile, KeyTextError, KeyWarning},
};

/// A net key or a pair key. Clones share one copy in memory, which is wiped with the last; there is no `Debug`.
#[derive(Clone)]
pub struct Key {
    file: Arc<KeyFile>,
    warnings: Arc<[KeyWarning]>,
}

impl Key {
    /// Reads a key file ([`crate::keyfile`] has its form). Blocks on the disk for a moment.
    ///
    /// # Errors
    /// `Configuration`: it can't be read or holds no key.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Key, Error> {
        let (file, warnings) = KeyFile::read(path.as_ref())?;
        Ok(Key { file: Arc::new(file), warnings: warnings.into() })
    }

    /// Reads the text of a key file: 32 to 128 hex digits, or a line with a pair key.
    ///
    /// # Errors
    /// `Configuration`: it is no key.
    pub fn from_hex(text: &str) -> Result<Key, Error> {
        KeyFile::parse(text).map(Key::from).map_err(not_a_key)
    }

    /// A net key of these 16 to 64 random bytes.
    ///
    /// # Errors
    /// `Configuration`: too short or too long.
    pub fn from_bytes(bytes: &[u8]) -> Result<Key, Error> {
        if !(NetKey::MIN_LEN..=NetKey::MAX_LEN).contains(&bytes.len()) {
            return Err(not_a_key(KeyTextError::Length(bytes.len())));
        }
        Ok(Key::from(KeyFile::Net(Zeroizing::new(bytes.to_vec()))))
    }

    /// Makes a net key of 32 random bytes.
    ///
    /// # Errors
    /// `Configuration`: the system has no randomness to give.
    pub fn generate() -> Result<Key, Error> {
        Ok(Key::from(KeyFile::generate()?))
    }

    /// What looks unsafe about it, or about the file that it was read from.
    pub fn warnings(&self) -> &[KeyWarning] {
        &self.warnings
    }

    /// What it is made of, to write it to a file for instance.
    pub fn as_file(&self) -> &KeyFile {
        &self.file
    }

    /// The key as a net's own.
    pub(crate) fn to_net_key(&self) -> Result<NetKey, Error> {
        match &*self.file {
            KeyFile::Net(bytes) => NetKey::new(bytes)
                .map_err(|why| Error::caused(ErrorKind::Configuration, why.to_string(), why)),
            KeyFile::Pair { .. } => Err(Error::new(
                ErrorKind::Configuration,
                "a net needs a net key, this is a pair key: it only opens sessions of one net to one other",
            )),
        }
    }

    /// The key for sessions from `own` to `peer`, and the peer's id where a pair key tells it.
    pub(crate) fn to_peer_key(&self, own: Id, peer: Id) -> Result<(PeerKey, Id), Error> {
        let KeyFile::Pair { initiator, responder, key } = &*self.file else {
            return Ok((PeerKey::Net(self.to_net_key()?), peer));
        };
        if *initiator != own || (*responder != peer && peer != Id::ANY) {
            let text = format!("the pair key lets {initiator} reach {responder}, not {own} reach {peer}");
            return Err(Error::new(ErrorKind::Configuration, text));
        }
        Ok((PeerKey::Pair(PairKey::from_bytes(**key)), *responder))
    }

    /// True if both are the same net key.
    pub(crate) fn is_same_net_key(&self, other: &Key) -> bool {
        match (&*self.file, &*other.file) {
            // Both are ours: nobody outside learns how long this takes.
            (KeyFile::Net(ours), KeyFile::Net(theirs)) => ours == theirs,
            _ => false,
        }
    }
}

impl From<KeyFile> for Key {
    fn from(file: KeyFile) -> Key {
        let warnings = file.is_printable().then_some(KeyWarning::Printable(None));
        Key { file: Arc::new(file), warnings: warnings.into_iter().collect() }
    }
}

fn not_a_key(why: KeyTextError) -> Error {
    Error::caused(ErrorKind::Configuration, format!("not a key: {why}"), why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> Id {
        Id([n; 16])
    }

    #[test]
    fn a_short_key_is_refused_in_words() {
        let error = Key::from_bytes(&[7; 15]).err().expect("15 bytes are no key");
        assert_eq!(error.kind(), ErrorKind::Configuration);
        assert!(Key::from_bytes(&[7; 16]).is_ok() && Key::from_bytes(&[7; 64]).is_ok());
        assert!(Key::from_bytes(&[7; 65]).is_err() && Key::from_hex("xyz").is_err());
    }

    #[test]
    fn a_word_is_no_good_key_wherever_it_comes_from() {
        let word = b"correct horse battery";
        let hex: String = word.iter().map(|byte| format!("{byte:02x}")).collect();
        for key in [Key::from_bytes(word).unwrap(), Key::from_hex(&hex).unwrap()] {
            assert_eq!(key.warnings(), [KeyWarning::Printable(None)]);
        }
        assert!(Key::from_bytes(&[7; 16]).unwrap().warnings().is_empty());
    }

    #[test]
    fn a_pair_key_fits_one_direction_of_one_pair() {
        let text = format!("m2m-pair v1 {} {} {}", id(1), id(2), "ab".repeat(32));
        let key = Key::from_hex(&text).unwrap();
        assert_eq!(key.to_peer_key(id(1), id(2)).unwrap().1, id(2));
        // It names the peer where only the address is known.
        assert_eq!(key.to_peer_key(id(1), Id::ANY).unwrap().1, id(2));
        for (own, peer) in [(id(2), id(1)), (id(1), id(3)), (id(3), Id::ANY)] {
            let error = key.to_peer_key(own, peer).err().expect("the pair is another");
            assert_eq!(error.kind(), ErrorKind::Configuration);
        }
        assert!(key.to_net_key().is_err());
    }

    #[test]
    fn the_same_key_is_recognised() {
        let (one, other) = (Key::generate().unwrap(), Key::generate().unwrap());
        assert!(one.is_same_net_key(&one.clone()) && !one.is_same_net_key(&other));
        assert!(one.warnings().is_empty());
    }
}

//! A net key that was changed from afar: what a net is to use in place of the key that it is configured with.
//!
//! ```text
//! m2m-netkey v1
//! base <64 hex digits: SHA-256("m2m/1 base" ‖ the key that was configured then)>
//! version <decimal>
//! changed <Unix time in seconds>
//! current <hex digits>
//! previous <hex digits>
//! ```
//!
//! At a start the configured key decides: is it still the base, the current key of the record counts; is it the current
//! one, the administrator has followed the change. Any other was put there by hand since: it wins, and the record goes.
use std::path::Path;

use sha2::{Digest, Sha256};
use tracing::warn;
use zeroize::Zeroizing;

use super::{StateDir, StateError, file, io_error, read_at_most};
use crate::keyfile::{decode_hex, push_hex};

const NET_KEY: &str = "net.key";
const FORM: &str = "m2m-netkey v1";
/// Two keys of 64 bytes in hex, a hash, two numbers, six words.
const MAX_RECORD: u64 = 1024;

/// The record of the last change.
pub(crate) struct KeptKey {
    base: [u8; 32],
    /// The version of the current key.
    pub(crate) key_id: u16,
    /// When it came, Unix time in seconds.
    pub(crate) changed: u64,
    pub(crate) current: Zeroizing<Vec<u8>>,
    pub(crate) previous: Zeroizing<Vec<u8>>,
}

impl KeptKey {
    /// `current` in the place of `previous`, in a net that is configured with `configured`.
    pub(crate) fn new(
        configured: &[u8],
        key_id: u16,
        changed: u64,
        current: Zeroizing<Vec<u8>>,
        previous: Zeroizing<Vec<u8>>,
    ) -> KeptKey {
        KeptKey { base: fingerprint(configured), key_id, changed, current, previous }
    }

    fn to_text(&self) -> Zeroizing<String> {
        // Room for all of it, so that no copy stays behind.
        let mut text = Zeroizing::new(String::with_capacity(MAX_RECORD as usize));
        text.push_str(FORM);
        text.push_str("\nbase ");
        push_hex(&mut text, &self.base);
        text.push_str(&format!("\nversion {}\nchanged {}\ncurrent ", self.key_id, self.changed));
        push_hex(&mut text, &self.current);
        text.push_str("\nprevious ");
        push_hex(&mut text, &self.previous);
        text.push('\n');
        text
    }

    fn parse(text: &str) -> Option<KeptKey> {
        let mut lines = text.lines();
        if lines.next()? != FORM {
            return None;
        }
        let mut value = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        let base = decode_hex(value("base")?).ok()?;
        let kept = KeptKey {
            base: base[..].try_into().ok()?,
            key_id: value("version")?.parse().ok()?,
            changed: value("changed")?.parse().ok()?,
            current: decode_hex(value("current")?).ok()?,
            previous: decode_hex(value("previous")?).ok()?,
        };
        let is_key = |key: &[u8]| (16..=64).contains(&key.len());
        (is_key(&kept.current) && is_key(&kept.previous) && lines.next().is_none()).then_some(kept)
    }
}

impl StateDir {
    /// The key that took the place of the configured one, if one did.
    ///
    /// # Errors
    /// [`StateError::Damaged`]: the configured key would let in who was locked out. [`StateError::Io`].
    pub(crate) fn net_key(&self, configured: &[u8]) -> Result<Option<KeptKey>, StateError> {
        let path = self.path.join(NET_KEY);
        let Some(text) = read_at_most(&path, MAX_RECORD)? else { return Ok(None) };
        let kept = std::str::from_utf8(&text).ok().and_then(KeptKey::parse);
        let kept = kept.ok_or_else(|| StateError::Damaged {
            path: path.clone(),
            remedy: "it holds the net key that was set from afar: restore it from a backup; or delete it, and put the \
                     key that this net is to have into its key file",
        })?;
        if kept.base == fingerprint(configured) || *kept.current == configured {
            return Ok(Some(kept));
        }
        warn!(
            "the configured net key is neither the one that was changed from afar nor the one that took its place: \
             the configured one is used from now on"
        );
        forget(&path)?;
        Ok(None)
    }

    /// Keeps a change, durably.
    ///
    /// # Errors
    /// [`StateError::Io`]: the record before it is still there.
    pub(crate) fn keep_net_key(&self, kept: &KeptKey) -> Result<(), StateError> {
        let path = self.path.join(NET_KEY);
        file::replace(&path, kept.to_text().as_bytes()).map_err(io_error("write", &path))
    }
}

fn forget(path: &Path) -> Result<(), StateError> {
    std::fs::remove_file(path).map_err(io_error("remove", path))?;
    file::sync_folder_of(path).map_err(io_error("write", path))
}

fn fingerprint(key: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(b"m2m/1 base").chain_update(key).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: [u8; 16] = [1; 16];
    const SECOND: [u8; 64] = [2; 64];
    const THIRD: [u8; 32] = [3; 32];

    fn change(configured: &[u8], key_id: u16, current: &[u8], previous: &[u8]) -> KeptKey {
        let secret = |key: &[u8]| Zeroizing::new(key.to_vec());
        KeptKey::new(configured, key_id, 1_795_000_000, secret(current), secret(previous))
    }

    fn used(dir: &StateDir, configured: &[u8]) -> Option<(u16, Vec<u8>, Vec<u8>)> {
        let kept = dir.net_key(configured).unwrap_or_else(|error| panic!("{error}"))?;
        assert_eq!(kept.changed, 1_795_000_000);
        Some((kept.key_id, kept.current.to_vec(), kept.previous.to_vec()))
    }

    fn folder() -> (tempfile::TempDir, StateDir) {
        let folder = tempfile::tempdir().unwrap();
        let dir = StateDir::open(folder.path()).unwrap();
        (folder, dir)
    }

    #[test]
    fn the_changed_key_counts_while_the_configured_one_stays() {
        let (_folder, dir) = folder();
        assert_eq!(used(&dir, &FIRST), None);
        dir.keep_net_key(&change(&FIRST, 1, &SECOND, &FIRST)).unwrap();
        assert_eq!(used(&dir, &FIRST), Some((1, SECOND.to_vec(), FIRST.to_vec())));
        // The second change has the same base.
        dir.keep_net_key(&change(&FIRST, 2, &THIRD, &SECOND)).unwrap();
        assert_eq!(used(&dir, &FIRST), Some((2, THIRD.to_vec(), SECOND.to_vec())));
    }

    #[test]
    fn an_administrator_may_follow_a_change() {
        let (_folder, dir) = folder();
        dir.keep_net_key(&change(&FIRST, 1, &SECOND, &FIRST)).unwrap();
        assert_eq!(used(&dir, &SECOND), Some((1, SECOND.to_vec(), FIRST.to_vec())));
        // The base of the next one is what is configured then.
        dir.keep_net_key(&change(&SECOND, 2, &THIRD, &SECOND)).unwrap();
        assert_eq!(used(&dir, &SECOND).map(|(key_id, ..)| key_id), Some(2));
        assert_eq!(used(&dir, &FIRST), None, "an older key is one put there by hand");
    }

    #[test]
    fn a_key_that_was_put_there_by_hand_wins_for_good() {
        let (_folder, dir) = folder();
        dir.keep_net_key(&change(&FIRST, 1, &SECOND, &FIRST)).unwrap();
        assert_eq!(used(&dir, &THIRD), None);
        assert_eq!(used(&dir, &FIRST), None, "the record is gone");
    }

    #[test]
    fn a_damaged_record_stops_the_net_and_says_what_to_do() {
        let (folder, dir) = folder();
        dir.keep_net_key(&change(&FIRST, 1, &SECOND, &FIRST)).unwrap();
        let path = folder.path().join(NET_KEY);
        let whole = std::fs::read_to_string(&path).unwrap();
        let damages = [String::new(), whole.replace("v1", "v2"), whole[..whole.len() - 2].to_owned()];
        let damages = damages.into_iter().chain([
            whole.replace("version 1", "version 65536"),
            format!("{whole}more\n"),
            whole.replace("base ", "base g"),
        ]);
        for damage in damages {
            std::fs::write(&path, &damage).unwrap();
            let error = dir.net_key(&FIRST).err().expect("it is damaged").to_string();
            assert!(error.contains("net.key") && error.contains("delete it"), "{error}");
            assert!(!error.contains("0202"), "no key is shown: {error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn only_its_owner_may_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let (folder, dir) = folder();
        dir.keep_net_key(&change(&FIRST, 1, &SECOND, &FIRST)).unwrap();
        let mode = std::fs::metadata(folder.path().join(NET_KEY)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

//! What a net keeps between two runs: a folder with its device key, its last epoch and, for a host, the claims.
//!
//! ```text
//! $XDG_STATE_HOME/m2m/<id>-<8 hex digits of SHA-256("m2m/1 state" ‖ key)>/     or --state-dir DIR
//!     lock          held while a net runs; names its process
//!     device.key    64 hex digits, made at the first start
//!     net.key       the net key that was set from afar, if one was
//!     epoch         the last registration's epoch, in decimal
//!     claims.redb   who may register which id (a host's)
//! ```
//!
//! The folder and its files are their owner's alone. Writes are durable when the call returns, and a power cut
//! leaves the old or the new contents, never a mixture. All calls block: keep them off the event loop.
mod claims;
pub(crate) mod file;
mod netkey;

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use m2m_proto::id::Id;
use sha2::{Digest, Sha256};
use tracing::warn;
use zeroize::Zeroizing;

use crate::keyfile::{decode_hex, push_hex};

pub use claims::{Claim, ClaimOutcome, Claims, Edits};
pub(crate) use netkey::KeptKey;

const LOCK: &str = "lock";
const DEVICE_KEY: &str = "device.key";
const EPOCH: &str = "epoch";
const CLAIMS: &str = "claims.redb";
/// Longer than any of the small files; a larger one is damaged.
const MAX_FILE: u64 = 256;

/// The state folder of one net, held by this process until it is dropped.
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// The folder of the net with this id and key, which need not exist yet: below `$XDG_STATE_HOME`, or else
    /// below `~/.local/state`.
    ///
    /// The key's hash keeps nets apart that have the same id in two fleets. It is that of the key that the net is
    /// *configured* with: a net whose key was changed from afar still finds its state.
    ///
    /// # Errors
    /// [`StateError::NoHome`].
    pub fn default_path(id: Id, key: &[u8]) -> Result<PathBuf, StateError> {
        default_path(id, key, |name| std::env::var_os(name))
    }

    /// Opens a state folder, made if it is missing, and holds it.
    ///
    /// # Errors
    /// [`StateError::InUse`] if another net holds it; [`StateError::Io`] if it can't be made or written.
    pub fn open(path: &Path) -> Result<StateDir, StateError> {
        file::create_private_folder(path).map_err(io_error("make the state folder", path))?;
        let lock_path = path.join(LOCK);
        let mut lock = file::open_private(&lock_path).map_err(io_error("write to the state folder", path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StateError::InUse { path: path.into(), process: holder(&mut lock) });
            }
            Err(TryLockError::Error(error)) => return Err(io_error("lock", &lock_path)(error)),
        }
        let named = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
        named.map_err(io_error("write", &lock_path))?;
        Ok(StateDir { path: path.into(), _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The secret that the device key is made from: 32 random bytes, the same at every start of this net.
    ///
    /// # Errors
    /// [`StateError::Damaged`] if the file holds something else. A new key is never made silently in its place, for
    /// hosts that know the old one would refuse the net.
    pub fn device_key(&self) -> Result<Zeroizing<[u8; 32]>, StateError> {
        let path = self.path.join(DEVICE_KEY);
        let Some(text) = read_small(&path)? else { return self.make_device_key(&path) };
        let damaged = || StateError::Damaged {
            path: path.clone(),
            remedy: "restore it from a backup; or delete it, and then give this net another id, or free its id on \
                     each host with `m2m server claims forget ID`",
        };
        let text = std::str::from_utf8(&text).map_err(|_| damaged())?;
        let bytes = decode_hex(text.trim()).map_err(|_| damaged())?;
        let mut key = Zeroizing::new([0; 32]);
        if bytes.len() != key.len() {
            return Err(damaged());
        }
        key.copy_from_slice(&bytes);
        Ok(key)
    }

    fn make_device_key(&self, path: &Path) -> Result<Zeroizing<[u8; 32]>, StateError> {
        let mut key = Zeroizing::new([0; 32]);
        getrandom::fill(&mut key[..])
            .map_err(|error| io_error("get random bytes for", path)(error.into()))?;
        let mut text = Zeroizing::new(String::with_capacity(2 * key.len() + 1));
        push_hex(&mut text, &key[..]);
        text.push('\n');
        file::replace(path, text.as_bytes()).map_err(io_error("write", path))?;
        Ok(key)
    }

    /// The epoch that was kept last; 0 before the first, and if the file is damaged: the host's clock gives new ones
    /// anyway, so that this is worth a warning and no more.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn epoch(&self) -> Result<u64, StateError> {
        let path = self.path.join(EPOCH);
        let Some(text) = read_small(&path)? else { return Ok(0) };
        let number = std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
        Ok(number.unwrap_or_else(|| {
            warn!("{}: the file is damaged: the next registration makes a new one", path.display());
            0
        }))
    }

    /// Keeps an epoch, before it is sent: what a host has seen must never be used again.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn keep_epoch(&self, epoch: u64) -> Result<(), StateError> {
        let path = self.path.join(EPOCH);
        file::replace(&path, format!("{epoch}\n").as_bytes()).map_err(io_error("write", &path))
    }

    /// Opens the claims of the host whose state this is.
    ///
    /// # Errors
    /// [`StateError::Damaged`], [`StateError::Claims`] or [`StateError::Io`].
    pub fn claims(&self) -> Result<Claims, StateError> {
        Claims::open(&StateDir::claims_path(&self.path))
    }

    /// Where the claims are in a state folder, for a tool that edits them beside a running host.
    pub fn claims_path(folder: &Path) -> PathBuf {
        folder.join(CLAIMS)
    }
}

fn default_path(id: Id, key: &[u8], var: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, StateError> {
    // The XDG base directory specification: a relative path is invalid and must be ignored.
    let folder = |name| var(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = folder("XDG_STATE_HOME")
        .or_else(|| folder("HOME").map(|home| home.join(".local/state")))
        .or_else(|| folder("LOCALAPPDATA"))
        .ok_or(StateError::NoHome)?;
    let hash = Sha256::new().chain_update(b"m2m/1 state").chain_update(key).finalize();
    let mut name = format!("{id}-");
    push_hex(&mut name, &hash[..4]);
    Ok(state.join("m2m").join(name))
}

/// The process that a lock file names, if it can be read: some systems don't let others read a locked file.
fn holder(lock: &mut File) -> Option<u32> {
    let mut text = String::new();
    lock.take(MAX_FILE).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// A small file's contents, at most 256 bytes of them; nothing if there is no such file.
fn read_small(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, StateError> {
    read_at_most(path, MAX_FILE)
}

fn read_at_most(path: &Path, max: u64) -> Result<Option<Zeroizing<Vec<u8>>>, StateError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(io_error("read", path))?,
    };
    let mut contents = Zeroizing::new(Vec::with_capacity(2 * max as usize));
    file.take(max).read_to_end(&mut contents).map_err(io_error("read", path))?;
    Ok(Some(contents))
}

/// Why a net's state can't be read or kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// Nothing says where state belongs.
    #[error(
        "no place for the state: neither XDG_STATE_HOME nor HOME is set. Name a folder with --state-dir DIR"
    )]
    NoHome,
    /// The system refused to read or write.
    #[error("{}: can't {action}: {source}. {}", path.display(), advice(source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Another net runs with this folder.
    #[error(
        "{}: in use by {}. Stop it first, or give this net an id or a --state-dir of its own",
        path.display(), process.map_or("another m2m".into(), |number| format!("process {number}"))
    )]
    InUse {
        /// The state folder.
        path: PathBuf,
        /// Whose it is, where that is known.
        process: Option<u32>,
    },
    /// A file does not hold what was written to it.
    #[error("{}: the file is damaged: {remedy}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The claims' database refused.
    #[error("{}: can't use the claims: {source}. Is the disk full, or the file open in another version of m2m?", path.display())]
    Claims {
        /// The database.
        path: PathBuf,
        /// What it said.
        source: Box<redb::Error>,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    move |source| StateError::Io { path: path.into(), action, source }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "Make it writable for the user who runs this, or name another folder with --state-dir DIR"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "Free some space on that disk",
        io::ErrorKind::Unsupported => {
            "That file system has no locks: name a local folder with --state-dir DIR"
        }
        _ => "Name another folder with --state-dir DIR",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn open(path: &Path) -> StateDir {
        StateDir::open(path).unwrap_or_else(|error| panic!("{error}"))
    }

    fn refused(path: &Path) -> StateError {
        StateDir::open(path).err().expect("it opened")
    }

    #[test]
    fn the_default_folder_follows_xdg() {
        let id = Id::from_hex("a1").unwrap();
        let with = |vars: &'static [(&str, &str)]| {
            let var = |name: &str| Some(vars.iter().find(|(key, _)| *key == name)?.1.into());
            default_path(id, &[7; 16], var)
        };
        // sha256 of "m2m/1 state" and sixteen bytes of 7 starts like this.
        let name = "m2m/000000000000000000000000000000a1-9977c168";
        let path = with(&[("XDG_STATE_HOME", "/state"), ("HOME", "/home/u")]).unwrap();
        assert_eq!(path, Path::new("/state").join(name));
        let path = with(&[("XDG_STATE_HOME", "relative"), ("HOME", "/home/u")]).unwrap();
        assert_eq!(path, Path::new("/home/u/.local/state").join(name));
        let error = with(&[("HOME", "")]).unwrap_err();
        assert!(error.to_string().contains("--state-dir"), "{error}");
    }

    #[test]
    fn nets_of_two_fleets_have_folders_of_their_own() {
        let path = |key: &[u8]| default_path(Id::ANY, key, |_| Some("/s".into())).unwrap();
        assert_ne!(path(&[1; 16]), path(&[2; 16]));
    }

    #[test]
    fn the_device_key_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        let state = open(&path);
        let key = state.device_key().unwrap();
        assert_ne!(*key, [0; 32]);
        assert_eq!(state.device_key().unwrap(), key);
        drop(state);
        assert_eq!(open(&path).device_key().unwrap(), key);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(open(other.path()).device_key().unwrap(), key);
    }

    #[test]
    fn a_damaged_device_key_is_kept_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let state = open(folder.path());
        let path = folder.path().join(DEVICE_KEY);
        let damages = ["", "abcd", &"g".repeat(64), &"a".repeat(63), &"a".repeat(66)];
        for damage in damages {
            fs::write(&path, damage).unwrap();
            let error = state.device_key().unwrap_err();
            assert!(matches!(error, StateError::Damaged { .. }), "{error}");
            assert!(error.to_string().contains("device.key"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), damage);
        }
        fs::write(&path, [0xff; 64]).unwrap();
        assert!(state.device_key().is_err());
    }

    #[test]
    fn the_epoch_lasts() {
        let folder = tempfile::tempdir().unwrap();
        let state = open(folder.path());
        assert_eq!(state.epoch().unwrap(), 0);
        state.keep_epoch(1_795_000_000_000).unwrap();
        state.keep_epoch(u64::MAX).unwrap();
        drop(state);
        let state = open(folder.path());
        assert_eq!(state.epoch().unwrap(), u64::MAX);
        for damage in ["", "12 monkeys", "-1"] {
            fs::write(folder.path().join(EPOCH), damage).unwrap();
            assert_eq!(state.epoch().unwrap(), 0, "{damage}");
        }
        state.keep_epoch(7).unwrap();
        assert_eq!(state.epoch().unwrap(), 7);
    }

    #[test]
    fn one_net_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let state = open(folder.path());
        let error = refused(folder.path());
        let StateError::InUse { process, .. } = &error else { panic!("{error}") };
        if cfg!(unix) {
            assert_eq!(*process, Some(std::process::id()));
        }
        assert!(error.to_string().contains("--state-dir"), "{error}");
        drop(state);
        // A longer number than this process's, left by a run that was killed.
        fs::write(folder.path().join(LOCK), "4294967295\n").unwrap();
        open(folder.path());
        let left = fs::read_to_string(folder.path().join(LOCK)).unwrap();
        assert_eq!(left, format!("{}\n", std::process::id()));
    }

    #[test]
    fn a_folder_that_can_t_be_made_is_one_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "").unwrap();
        let error = refused(&path.join("state")).to_string();
        assert!(error.contains("can't make the state folder") && error.contains("--state-dir"), "{error}");
        assert_eq!(error.lines().count(), 1);
    }

    #[test]
    fn a_folder_that_can_t_be_written_is_one_sentence() {
        let folder = tempfile::tempdir().unwrap();
        // Nobody writes to a folder as if it were a file, not even root.
        fs::create_dir(folder.path().join(LOCK)).unwrap();
        let error = refused(folder.path()).to_string();
        assert!(
            error.contains("can't write to the state folder") && error.contains("--state-dir"),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1);
        let denied = io_error("write to the state folder", folder.path());
        let error = denied(io::ErrorKind::PermissionDenied.into()).to_string();
        assert!(error.contains("Make it writable"), "{error}");
    }
}

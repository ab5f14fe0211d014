//! Claims: which device key each id belongs to. First come, first remembered.
//!
//! The database may be open in several processes, so that claims can be listed, pinned and forgotten beside a
//! running host, which sees the change at once. What was pinned and forgotten is numbered, so that a host learns which
//! of those who are registered with it that concerns.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use m2m_proto::id::Id;
use redb::{
    ConcurrencyMode, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
    TableError,
};

use super::{StateError, file, io_error};

/// A row: the id.
type Key = &'static [u8; Id::LEN];
/// The device's public key, and since when in Unix time.
type Value = (&'static [u8; 32], u64);

const TABLE: TableDefinition<'_, Key, Value> = TableDefinition::new("claims");

/// The ids whose claims were changed by hand, by number; the last so many of them.
const EDITS: TableDefinition<'_, u64, Key> = TableDefinition::new("edits");
/// A host looks every second, and no tool makes so many in that time.
const KEPT_EDITS: u64 = 1 << 16;

/// The database's page cache: enough for a hundred thousand claims, little beside a server's sessions.
const CACHE_BYTES: usize = 8 * 1024 * 1024;

/// To whom an id belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The X25519 public key of the device.
    pub public: [u8; 32],
    /// When it was first seen or pinned, Unix time in seconds.
    pub since: u64,
}

/// What a claim to an id came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimOutcome {
    /// It is this device's already.
    Held,
    /// Nobody had it: it is this device's from now on.
    New,
    /// It is another device's.
    Taken {
        /// Since when, Unix time in seconds.
        since: u64,
    },
}

/// Claims that were pinned or forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits {
    /// The number of the latest of all.
    pub latest: u64,
    /// The ids, and what holds for each now.
    pub ids: Vec<(Id, Option<Claim>)>,
}

/// The claims of a host. All methods take `&self` and may be called from any thread; they block on the disk.
///
/// Once the disk has failed, every call fails until the file is opened anew.
pub struct Claims {
    store: Store,
}

enum Store {
    // The path is for messages.
    Disk(Database, PathBuf),
    Memory(Mutex<BTreeMap<Id, Claim>>),
}

impl Claims {
    /// Opens a claims file, made if it is missing. Every page of it is checked.
    ///
    /// # Errors
    /// [`StateError::Damaged`], and the file stays as it is; [`StateError::Io`]; [`StateError::Claims`].
    pub fn open(path: &Path) -> Result<Claims, StateError> {
        // Made here first, for the mode and so that its name is on the disk.
        file::open_private(path).map_err(io_error("open the claims", path))?;
        file::sync_folder_of(path).map_err(io_error("write", path))?;
        let opened = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .set_concurrency_mode(ConcurrencyMode::MultiWriter)
            .set_check_integrity_on_open(true)
            .create(path);
        let database = opened.map_err(|error| match error {
            DatabaseError::Storage(StorageError::Corrupted(_)) => damaged(path),
            // What redb says to a file that is none of its own.
            DatabaseError::Storage(StorageError::Io(error))
                if error.kind() == std::io::ErrorKind::InvalidData =>
            {
                damaged(path)
            }
            other => refused(path)(other),
        })?;
        Ok(Claims { store: Store::Disk(database, path.into()) })
    }

    /// Claims that last as long as this value: for a host without a state folder.
    pub fn in_memory() -> Claims {
        Claims { store: Store::Memory(Mutex::default()) }
    }

    /// Compares a device's public key with the claim to an id, and keeps it if there is none; `now` is Unix time in
    /// seconds. What it answers is on the disk.
    ///
    /// # Errors
    /// [`StateError::Claims`]: nothing was kept.
    pub fn check_or_insert(&self, id: Id, public: &[u8; 32], now: u64) -> Result<ClaimOutcome, StateError> {
        let outcomes = self.check_or_insert_all(&[(id, *public)], now)?;
        // One answer a claim.
        Ok(outcomes[0])
    }

    /// [`Claims::check_or_insert`] for many at once, in order: one write to the disk for all that are new. A host
    /// that has just been set up meets its whole fleet within a minute.
    ///
    /// # Errors
    /// [`StateError::Claims`]: none of them was kept.
    pub fn check_or_insert_all(
        &self,
        claims: &[(Id, [u8; 32])],
        now: u64,
    ) -> Result<Vec<ClaimOutcome>, StateError> {
        match &self.store {
            Store::Disk(database, path) => insert_on_disk(database, claims, now).map_err(refused(path)),
            Store::Memory(map) => {
                let mut map = lock(map);
                let insert = |(id, public): &(Id, [u8; 32])| match map.get(id) {
                    Some(held) => held.answer(public),
                    None => {
                        map.insert(*id, Claim { public: *public, since: now });
                        ClaimOutcome::New
                    }
                };
                Ok(claims.iter().map(insert).collect())
            }
        }
    }

    /// The claim to an id, if there is one.
    ///
    /// # Errors
    /// [`StateError::Claims`].
    pub fn get(&self, id: Id) -> Result<Option<Claim>, StateError> {
        match &self.store {
            Store::Disk(database, path) => get_on_disk(database, id).map_err(refused(path)),
            Store::Memory(map) => Ok(lock(map).get(&id).copied()),
        }
    }

    /// All claims, by id.
    ///
    /// # Errors
    /// [`StateError::Claims`].
    pub fn list(&self) -> Result<Vec<(Id, Claim)>, StateError> {
        match &self.store {
            Store::Disk(database, path) => list_on_disk(database).map_err(refused(path)),
            Store::Memory(map) => Ok(lock(map).iter().map(|(id, claim)| (*id, *claim)).collect()),
        }
    }

    /// Gives an id to a device, whoever had it; `now` is Unix time in seconds.
    ///
    /// # Errors
    /// [`StateError::Claims`]: nothing was changed.
    pub fn pin(&self, id: Id, public: &[u8; 32], now: u64) -> Result<(), StateError> {
        match &self.store {
            Store::Disk(database, path) => pin_on_disk(database, id, public, now).map_err(refused(path)),
            Store::Memory(map) => {
                lock(map).insert(id, Claim { public: *public, since: now });
                Ok(())
            }
        }
    }

    /// What was pinned or forgotten after the edit of this number, 0 being before the first: by this program or another.
    /// Claims in memory are nobody else's, and none is numbered.
    ///
    /// # Errors
    /// [`StateError::Claims`].
    pub fn edits_since(&self, number: u64) -> Result<Edits, StateError> {
        match &self.store {
            Store::Disk(database, path) => edits_on_disk(database, number).map_err(refused(path)),
            Store::Memory(_) => Ok(Edits::default()),
        }
    }

    /// Drops the claim to an id, so that the next device to come gets it. False if there was none.
    ///
    /// # Errors
    /// [`StateError::Claims`]: nothing was changed.
    pub fn forget(&self, id: Id) -> Result<bool, StateError> {
        match &self.store {
            Store::Disk(database, path) => forget_on_disk(database, id).map_err(refused(path)),
            Store::Memory(map) => Ok(lock(map).remove(&id).is_some()),
        }
    }
}

impl Claim {
    /// What a device is told that comes to an id claimed so. Public keys are no secret: compared as they are.
    fn answer(&self, public: &[u8; 32]) -> ClaimOutcome {
        if self.public == *public {
            return ClaimOutcome::Held;
        }
        ClaimOutcome::Taken { since: self.since }
    }
}

fn insert_on_disk(
    database: &Database,
    claims: &[(Id, [u8; 32])],
    now: u64,
) -> Result<Vec<ClaimOutcome>, redb::Error> {
    // Nearly always all are held: reading waits for no other writer and for no disk.
    if let Some(answers) = answers_on_disk(database, claims)? {
        return Ok(answers);
    }
    let transaction = database.begin_write()?;
    let outcomes = {
        let mut table = transaction.open_table(TABLE)?;
        claims.iter().map(|(id, public)| insert(&mut table, *id, public, now)).collect::<Result<_, _>>()?
    };
    transaction.commit()?;
    Ok(outcomes)
}

fn insert(
    table: &mut redb::Table<'_, Key, Value>,
    id: Id,
    public: &[u8; 32],
    now: u64,
) -> Result<ClaimOutcome, redb::Error> {
    if let Some(held) = read(table, id)? {
        return Ok(held.answer(public));
    }
    table.insert(&id.0, (public, now))?;
    Ok(ClaimOutcome::New)
}

/// The answers if none of the claims is new.
fn answers_on_disk(
    database: &Database,
    claims: &[(Id, [u8; 32])],
) -> Result<Option<Vec<ClaimOutcome>>, redb::Error> {
    let Some(table) = table_to_read(database)? else { return Ok(None) };
    claims.iter().map(|(id, public)| Ok(read(&table, *id)?.map(|held| held.answer(public)))).collect()
}

fn get_on_disk(database: &Database, id: Id) -> Result<Option<Claim>, redb::Error> {
    let Some(table) = table_to_read(database)? else { return Ok(None) };
    read(&table, id)
}

fn list_on_disk(database: &Database) -> Result<Vec<(Id, Claim)>, redb::Error> {
    let Some(table) = table_to_read(database)? else { return Ok(Vec::new()) };
    let mut claims = Vec::new();
    for entry in table.iter()? {
        let (id, claim) = entry?;
        let (public, since) = claim.value();
        claims.push((Id(*id.value()), Claim { public: *public, since }));
    }
    Ok(claims)
}

fn pin_on_disk(database: &Database, id: Id, public: &[u8; 32], now: u64) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(TABLE)?.insert(&id.0, (public, now))?;
    note_edit(&transaction, id)?;
    Ok(transaction.commit()?)
}

fn forget_on_disk(database: &Database, id: Id) -> Result<bool, redb::Error> {
    let transaction = database.begin_write()?;
    let had = transaction.open_table(TABLE)?.remove(&id.0)?.is_some();
    note_edit(&transaction, id)?;
    transaction.commit()?;
    Ok(had)
}

/// Numbers a change of this id's claim, in the transaction that makes it.
fn note_edit(transaction: &redb::WriteTransaction, id: Id) -> Result<(), redb::Error> {
    let mut edits = transaction.open_table(EDITS)?;
    let number = edits.last()?.map_or(0, |(latest, _)| latest.value()) + 1;
    edits.insert(number, &id.0)?;
    if let Some(oldest) = number.checked_sub(KEPT_EDITS) {
        edits.remove(oldest)?;
    }
    Ok(())
}

fn edits_on_disk(database: &Database, since: u64) -> Result<Edits, redb::Error> {
    // One transaction: what holds now is what held after the latest edit.
    let transaction = database.begin_read()?;
    let (edits, claims) = match (transaction.open_table(EDITS), transaction.open_table(TABLE)) {
        (Err(TableError::TableDoesNotExist(_)), _) => return Ok(Edits::default()),
        (edits, claims) => (edits?, claims?),
    };
    let mut found = Edits { latest: since, ids: Vec::new() };
    for entry in edits.range(since.saturating_add(1)..)? {
        let (number, id) = entry?;
        let id = Id(*id.value());
        found.latest = number.value();
        found.ids.push((id, read(&claims, id)?));
    }
    Ok(found)
}

/// The table, or nothing before the first claim has made it.
fn table_to_read(database: &Database) -> Result<Option<redb::ReadOnlyTable<Key, Value>>, redb::Error> {
    match database.begin_read()?.open_table(TABLE) {
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        table => Ok(Some(table?)),
    }
}

fn read(table: &impl ReadableTable<Key, Value>, id: Id) -> Result<Option<Claim>, redb::Error> {
    let Some(claim) = table.get(&id.0)? else { return Ok(None) };
    let (public, since) = claim.value();
    Ok(Some(Claim { public: *public, since }))
}

/// The map is whole whenever its lock is free, even if a thread died: each change is one insert or remove.
fn lock(map: &Mutex<BTreeMap<Id, Claim>>) -> MutexGuard<'_, BTreeMap<Id, Claim>> {
    map.lock().unwrap_or_else(PoisonError::into_inner)
}

fn damaged(path: &Path) -> StateError {
    let remedy = "restore it from a backup; or delete it, and each id goes to the first device that comes";
    StateError::Damaged { path: path.into(), remedy }
}

fn refused<E: Into<redb::Error>>(path: &Path) -> impl FnOnce(E) -> StateError {
    move |source| StateError::Claims { path: path.into(), source: Box::new(source.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const ID: Id = Id([7; 16]);
    const FIRST: [u8; 32] = [1; 32];
    const SECOND: [u8; 32] = [2; 32];

    fn open(path: &Path) -> Claims {
        Claims::open(path).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The rules, for whichever store.
    fn obeys_the_rules(claims: &Claims) {
        assert_eq!(claims.get(ID).unwrap(), None);
        assert_eq!(claims.list().unwrap(), []);
        assert!(!claims.forget(ID).unwrap());
        assert_eq!(claims.check_or_insert(ID, &FIRST, 100).unwrap(), ClaimOutcome::New);
        assert_eq!(claims.check_or_insert(ID, &FIRST, 200).unwrap(), ClaimOutcome::Held);
        assert_eq!(claims.check_or_insert(ID, &SECOND, 300).unwrap(), ClaimOutcome::Taken { since: 100 });
        assert_eq!(claims.get(ID).unwrap(), Some(Claim { public: FIRST, since: 100 }));

        claims.pin(ID, &SECOND, 400).unwrap();
        assert_eq!(claims.check_or_insert(ID, &FIRST, 500).unwrap(), ClaimOutcome::Taken { since: 400 });
        assert_eq!(claims.check_or_insert(ID, &SECOND, 500).unwrap(), ClaimOutcome::Held);
        let earlier = Id([3; 16]);
        claims.pin(earlier, &FIRST, 600).unwrap();
        let listed: Vec<_> =
            claims.list().unwrap().into_iter().map(|(id, claim)| (id, claim.since)).collect();
        assert_eq!(listed, [(earlier, 600), (ID, 400)]);

        assert!(claims.forget(ID).unwrap());
        assert_eq!(claims.check_or_insert(ID, &FIRST, 700).unwrap(), ClaimOutcome::New);
    }

    #[test]
    fn first_come_first_remembered_in_memory() {
        obeys_the_rules(&Claims::in_memory());
    }

    #[test]
    fn first_come_first_remembered_on_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("claims.redb");
        obeys_the_rules(&open(&path));
        // Another run finds what the first left.
        let claims = open(&path);
        assert_eq!(claims.get(ID).unwrap(), Some(Claim { public: FIRST, since: 700 }));
        assert_eq!(claims.check_or_insert(ID, &SECOND, 800).unwrap(), ClaimOutcome::Taken { since: 700 });
    }

    #[test]
    fn a_batch_is_decided_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let other = Id([8; 16]);
        for claims in [Claims::in_memory(), open(&folder.path().join("claims.redb"))] {
            let batch = [(ID, FIRST), (ID, SECOND), (other, SECOND), (ID, FIRST)];
            let outcomes = claims.check_or_insert_all(&batch, 9).unwrap();
            let taken = ClaimOutcome::Taken { since: 9 };
            assert_eq!(outcomes, [ClaimOutcome::New, taken, ClaimOutcome::New, ClaimOutcome::Held]);
            assert_eq!(claims.check_or_insert_all(&[], 9).unwrap(), []);
        }
    }

    #[test]
    fn a_tool_edits_the_claims_beside_a_running_host() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("claims.redb");
        let host = open(&path);
        host.check_or_insert(ID, &FIRST, 100).unwrap();
        let tool = open(&path);
        assert_eq!(tool.list().unwrap().len(), 1);
        assert!(tool.forget(ID).unwrap());
        assert_eq!(host.check_or_insert(ID, &SECOND, 200).unwrap(), ClaimOutcome::New);
        assert_eq!(tool.get(ID).unwrap(), Some(Claim { public: SECOND, since: 200 }));
    }

    #[test]
    fn what_a_tool_edits_is_numbered_for_the_host() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("claims.redb");
        let (host, tool) = (open(&path), open(&path));
        assert_eq!(host.edits_since(0).unwrap(), Edits::default());
        host.check_or_insert(ID, &FIRST, 100).unwrap();
        assert_eq!(host.edits_since(0).unwrap(), Edits::default(), "the host's own are no news to it");

        tool.pin(ID, &SECOND, 200).unwrap();
        let pinned = Some(Claim { public: SECOND, since: 200 });
        assert_eq!(host.edits_since(0).unwrap(), Edits { latest: 1, ids: vec![(ID, pinned)] });
        tool.forget(ID).unwrap();
        assert_eq!(host.edits_since(1).unwrap(), Edits { latest: 2, ids: vec![(ID, None)] });
        assert_eq!(host.edits_since(2).unwrap(), Edits { latest: 2, ids: vec![] });
    }

    #[test]
    fn two_threads_never_both_get_an_id() {
        let folder = tempfile::tempdir().unwrap();
        let claims = open(&folder.path().join("claims.redb"));
        let claim = |public: [u8; 32]| claims.check_or_insert(ID, &public, 1).unwrap();
        let outcomes = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|n| scope.spawn(move || claim([n; 32]))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        let news = outcomes.iter().filter(|outcome| **outcome == ClaimOutcome::New).count();
        assert_eq!(news, 1, "{outcomes:?}");
    }

    #[test]
    fn a_damaged_file_is_kept_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("claims.redb");
        open(&path).check_or_insert(ID, &FIRST, 100).unwrap();
        let good = fs::read(&path).unwrap();

        // The claim itself, so that the pages' checksums are wrong; another file altogether; a file cut short.
        let at = good.windows(16).position(|bytes| bytes == ID.0).unwrap();
        let mut flipped = good.clone();
        flipped[at] ^= 1;
        let (foreign, short) = (vec![0x42; good.len()], good[..good.len() / 2].to_vec());
        for (what, damage) in [("flipped", flipped), ("foreign", foreign), ("short", short)] {
            fs::write(&path, &damage).unwrap();
            let error = Claims::open(&path).err().unwrap_or_else(|| panic!("{what}: it opened"));
            assert!(matches!(error, StateError::Damaged { .. }), "{what}: {error:?}");
            assert!(error.to_string().contains("claims.redb"), "{error}");
        }
        fs::write(&path, &good).unwrap();
        assert!(open(&path).get(ID).unwrap().is_some());
    }
}

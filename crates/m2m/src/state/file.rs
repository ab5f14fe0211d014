//! Files that must survive a power cut, and that only their owner may read.
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Makes a new file, mode 0600; fails if the name is taken, were it by a dangling link.
pub(crate) fn create_private(path: &Path) -> io::Result<File> {
    private(OpenOptions::new().write(true).create_new(true)).open(path)
}

/// Opens a file to read and write, made with mode 0600 if it is missing; what it holds stays.
pub(super) fn open_private(path: &Path) -> io::Result<File> {
    private(OpenOptions::new().read(true).write(true).create(true).truncate(false)).open(path)
}

/// Makes a folder, mode 0700, and those above it that are missing.
pub(super) fn create_private_folder(path: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// Puts `contents` in the place of a file: whatever happens, the old or the new ones are there, whole, and the
/// new ones are on the disk when this returns. One writer at a time.
pub(super) fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    let temporary = temporary_name(path);
    // What a crash left behind.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = create_private(&temporary)?;
    file.write_all(contents)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, path)?;
    sync_folder_of(path)
}

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    path.with_file_name(name)
}

/// Makes a name in a folder as durable as the file behind it.
pub(crate) fn sync_folder_of(path: &Path) -> io::Result<()> {
    // Only Unix can open a folder to sync it.
    if cfg!(not(unix)) {
        return Ok(());
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_the_whole_file_and_clears_what_a_crash_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("epoch");
        replace(&path, b"a long first text").unwrap();
        fs::write(folder.path().join("epoch.new"), "half of a te").unwrap();
        replace(&path, b"short").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"short");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn never_takes_a_name_that_exists() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        create_private(&path).unwrap();
        assert_eq!(create_private(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_may_look() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("a/b");
        create_private_folder(&inner).unwrap();
        replace(&inner.join("key"), b"secret").unwrap();
        open_private(&inner.join("claims")).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&inner), 0o700);
        assert_eq!(mode(&inner.join("key")), 0o600);
        assert_eq!(mode(&inner.join("claims")), 0o600);
    }

    #[test]
    fn a_bare_name_stands_in_the_current_folder() {
        assert!(sync_folder_of(Path::new("Cargo.toml")).is_ok());
        assert_eq!(temporary_name(Path::new("a/epoch")), Path::new("a/epoch.new"));
    }
}

//! Small files that are either the old or the new one after a crash, never half of one.
//! In: path, bytes, mode. Out: the file, on disk.
//! Invariant: written aside, fsynced, renamed, directory fsynced, in this order.
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Mode of files that hold keys or tokens.
pub const PRIVATE: u32 = 0o600;
/// Mode of files that anyone on the machine may read.
pub const PUBLIC: u32 = 0o644;

/// Replaces `path` with `bytes`, durably. `mode` holds from the first byte on. Blocks on the disk.
///
/// # Errors
/// Any of the steps failed; `path` then still is what it was.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let (dir, aside) = aside(path)?;
    let written = write_new(&aside, bytes, mode).and_then(|()| std::fs::rename(&aside, path));
    if written.is_err() {
        // The name is ours alone; what remains of it would only confuse.
        let _ = std::fs::remove_file(&aside);
    }
    written?;
    File::open(dir)?.sync_all()
}

/// Makes `dir` and its parents; those that are made get `mode`.
///
/// # Errors
/// It cannot be made, or is something else.
pub fn create_dir(dir: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(dir)?;
    if dir.is_dir() {
        Ok(())
    } else {
        Err(io::Error::from(ErrorKind::NotADirectory))
    }
}

/// Reads a small file whole.
///
/// # Errors
/// It cannot be read, or is longer than `limit` bytes.
pub fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let read = File::open(path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(read).unwrap_or(u64::MAX) > limit {
        return Err(io::Error::new(ErrorKind::FileTooLarge, format!("larger than {limit} bytes")));
    }
    Ok(bytes)
}

fn aside(path: &Path) -> io::Result<(PathBuf, PathBuf)> {
    let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
        _ => PathBuf::from("."),
    };
    let mut aside = std::ffi::OsString::from(".");
    aside.push(name);
    aside.push(format!(".{:016x}.tmp", rand::random::<u64>()));
    let aside = dir.join(aside);
    Ok((dir, aside))
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    // The umask may have taken bits away.
    file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_with_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_atomic(&path, b"old, and longer", PUBLIC).unwrap();
        write_atomic(&path, b"new", PRIVATE).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, PRIVATE);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_failure_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        create_dir(&path.join("by-a-folder"), 0o700).unwrap();
        assert!(write_atomic(&path, b"x", PUBLIC).is_err());
        assert!(path.join("by-a-folder").is_dir());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(write_atomic(Path::new("/"), b"x", PUBLIC).is_err());
    }

    #[test]
    fn a_long_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_atomic(&path, b"12345", PUBLIC).unwrap();
        assert_eq!(read_bounded(&path, 5).unwrap(), b"12345");
        assert_eq!(read_bounded(&path, 4).unwrap_err().kind(), ErrorKind::FileTooLarge);
    }
}

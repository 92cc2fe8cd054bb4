//! One process per data folder.
//! In: the folder. Out: a lock for as long as the value lives, or who holds it.
//! Invariant: the lock is the kernel's, so it ends with the process whatever happens; the pid in the file only tells people who it is.
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// File in the folder that is locked.
const FILE: &str = "lock";

/// Why the folder is not ours.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process works in it.
    #[error("{} is in use by process {}", dir.display(), holder.as_deref().unwrap_or("(unknown)"))]
    Held { dir: PathBuf, holder: Option<String> },
    /// The lock file cannot be made, read or locked.
    #[error("cannot lock {}", dir.display())]
    Io { dir: PathBuf, source: io::Error },
}

/// Holds a data folder until dropped.
#[derive(Debug)]
pub struct DataLock {
    _file: File,
}

impl DataLock {
    /// Takes the folder, making it (mode 0700) if it is missing.
    ///
    /// # Errors
    /// [`Error::Held`] at once if another process has it; nothing is waited for.
    pub fn acquire(dir: &Path) -> Result<Self, Error> {
        let error = |source| Error::Io {
            dir: dir.to_owned(),
            source,
        };
        crate::fs::create_dir(dir, 0o700).map_err(error)?;
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false).mode(crate::fs::PRIVATE);
        let mut file = options.open(dir.join(FILE)).map_err(error)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Held {
                    dir: dir.to_owned(),
                    holder: holder(&mut file),
                });
            }
            Err(TryLockError::Error(source)) => return Err(error(source)),
        }
        file.set_len(0).map_err(error)?;
        file.rewind().map_err(error)?;
        writeln!(file, "{}", std::process::id()).map_err(error)?;
        Ok(Self { _file: file })
    }
}

/// The pid that the holder wrote, if it is one.
fn holder(file: &mut File) -> Option<String> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse::<u32>().ok().map(|pid| pid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_holder_and_the_other_is_told_who() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("made/on/demand");
        let lock = DataLock::acquire(&dir).unwrap();
        let refused = DataLock::acquire(&dir).unwrap_err();
        assert!(
            refused.to_string().ends_with(&format!("by process {}", std::process::id())),
            "{refused}"
        );
        drop(lock);
        DataLock::acquire(&dir).unwrap();
    }

    #[test]
    fn a_file_left_behind_does_not_lock() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "123456789 and more").unwrap();
        let _lock = DataLock::acquire(dir.path()).unwrap();
        assert_eq!(
            std::fs::read_to_string(dir.path().join(FILE)).unwrap(),
            format!("{}\n", std::process::id())
        );
    }
}

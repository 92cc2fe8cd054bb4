//! Snapshots under another key: each file is written anew, one after the other.
//! In: the folder. Out: the same snapshots, sealed with the active key. Invariant: at any moment the old or the new file is whole under its
//! name; what is inside does not change.
use std::path::PathBuf;

use super::file::Intact;
use super::{DAMAGED, Error, NEW, SUFFIX, Snapshots};
use crate::seal;

impl Snapshots {
    /// Files that are not sealed with the active key. Blocks on the disk, and while a snapshot is written.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub(crate) fn foreign(&self) -> Result<Vec<PathBuf>, Error> {
        let Some(active) = self.keys.active_id() else {
            return Ok(Vec::new());
        };
        let failed = |action, path: PathBuf| move |source| Error::Io { action, path, source };
        // One that is being written may have begun with the key of before: it counts once it is there.
        let _files = self.files.lock();
        let mut foreign = Vec::new();
        for name in self.disk.list(&self.dir).map_err(failed("list", self.dir.clone()))? {
            let is_ours = name.ends_with(SUFFIX) || name.ends_with(DAMAGED);
            let path = self.dir.join(&name);
            if !is_ours || name.ends_with(NEW) {
                continue;
            }
            let key = match self.disk.open(&path).and_then(|file| seal::file::key_of(&*file)) {
                Ok(key) => key,
                // It has just been replaced by newer ones.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) if error.kind() == std::io::ErrorKind::InvalidData => None,
                Err(error) => return Err(failed("read", path)(error)),
            };
            if key != Some(active) {
                foreign.push(path);
            }
        }
        Ok(foreign)
    }

    /// Seals with the active key whatever is not. Damaged files that were set aside go: nobody could read them any more. Blocks on the disk.
    ///
    /// # Errors
    /// Some of it may be left; nothing is lost.
    pub(crate) fn reseal(&self) -> Result<(), Error> {
        for path in self.foreign()? {
            let _files = self.files.lock();
            let is_known = self.known.lock().iter().any(|(_, known)| *known == path);
            let failed = |action| {
                let path = path.clone();
                move |source| Error::Io { action, path, source }
            };
            if is_known {
                let intact = Intact::check(super::file::open(&*self.disk, &path, &self.keys)?, &path)?;
                self.put(&path, |file, _| intact.copy_to(file).map_err(failed("encrypt anew")))?;
                continue;
            }
            if path.to_string_lossy().ends_with(DAMAGED) {
                tracing::warn!(path = %path.display(), "a damaged snapshot is removed: the key under which it was written goes");
            }
            // Any other that is not known has made way for newer ones.
            match self.disk.remove(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed("remove")(error)),
                _ => {}
            }
        }
        Ok(())
    }
}

//! A disk that is only read: what is written to it stays in memory, and is forgotten.
//! In: a disk. Out: one that looks the same. Invariant: nothing below ever changes, whatever is done to it; so what opens a data folder
//! and mends it as it goes (a torn tail is cut, a start is counted) can be used to look at one.
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::disk::{Disk, DiskFile};

/// A file: the one below, until it is written to.
#[derive(Debug)]
struct Kept {
    below: Option<Arc<dyn DiskFile>>,
    /// All of it, once it was changed.
    changed: Mutex<Option<Vec<u8>>>,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Unchanged {
    below: Arc<dyn Disk>,
    /// Files that were opened, made, or (`None`) removed.
    files: Mutex<BTreeMap<PathBuf, Option<Arc<Kept>>>>,
}

impl Unchanged {
    pub(super) fn new(below: Arc<dyn Disk>) -> Self {
        let files = Mutex::default();
        Self { below, files }
    }
}

impl Disk for Unchanged {
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = match self.below.list(dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            names => names?,
        };
        for (path, kept) in &*self.files.lock() {
            let Some(name) = path
                .file_name()
                .and_then(|name| name.to_str())
                .filter(|_| path.parent() == Some(dir))
            else {
                continue;
            };
            names.retain(|other| other != name);
            if kept.is_some() {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        match self.open(path) {
            Ok(_) => return Err(ErrorKind::AlreadyExists.into()),
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            Err(_) => {}
        }
        let made = Arc::new(Kept {
            below: None,
            changed: Mutex::new(Some(Vec::new())),
        });
        self.files.lock().insert(path.to_owned(), Some(made.clone()));
        Ok(made)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut files = self.files.lock();
        match files.get(path) {
            Some(Some(kept)) => return Ok(kept.clone()),
            Some(None) => return Err(ErrorKind::NotFound.into()),
            None => {}
        }
        let kept = Arc::new(Kept {
            below: Some(self.below.open(path)?),
            changed: Mutex::default(),
        });
        files.insert(path.to_owned(), Some(kept.clone()));
        Ok(kept)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.open(from)?;
        let mut files = self.files.lock();
        let moved = files.insert(from.to_owned(), None).flatten();
        files.insert(to.to_owned(), moved);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.open(path)?;
        self.files.lock().insert(path.to_owned(), None);
        Ok(())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn waits(&self) -> bool {
        self.below.waits()
    }

    fn real_path(&self, _: &Path) -> Option<PathBuf> {
        None
    }
}

impl Kept {
    fn change(&self, change: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut changed = self.changed.lock();
        if changed.is_none() {
            let below = self
                .below
                .as_ref()
                .map(|file| crate::disk::read_all(&**file, u64::MAX))
                .transpose()?;
            *changed = Some(below.unwrap_or_default());
        }
        if let Some(bytes) = &mut *changed {
            change(bytes);
        }
        Ok(())
    }
}

fn place(number: u64) -> io::Result<usize> {
    usize::try_from(number).map_err(io::Error::other)
}

impl DiskFile for Kept {
    fn size(&self) -> io::Result<u64> {
        match (&*self.changed.lock(), &self.below) {
            (Some(bytes), _) => Ok(bytes.len() as u64),
            (None, Some(below)) => below.size(),
            (None, None) => Ok(0),
        }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        match (&*self.changed.lock(), &self.below) {
            (Some(bytes), _) => {
                let rest = bytes.get(place(offset)?..).unwrap_or_default();
                let taken = rest.len().min(buf.len());
                if let (Some(to), Some(from)) = (buf.get_mut(..taken), rest.get(..taken)) {
                    to.copy_from_slice(from);
                }
                Ok(taken)
            }
            (None, Some(below)) => below.read_at(offset, buf),
            (None, None) => Ok(0),
        }
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let from = place(offset)?;
        let end = from.checked_add(data.len()).ok_or(ErrorKind::FileTooLarge)?;
        self.change(|bytes| {
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            if let Some(to) = bytes.get_mut(from..end) {
                to.copy_from_slice(data);
            }
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = place(len)?;
        self.change(|bytes| bytes.resize(len, 0))
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{SimDisk, read_file};

    #[test]
    fn what_is_written_is_seen_here_and_nowhere_else() {
        let below = SimDisk::new(1);
        let dir = Path::new("/d");
        below.create_dir(dir).unwrap();
        for name in ["a", "b", "c"] {
            below.create(&dir.join(name)).unwrap().write_at(0, b"old").unwrap();
        }
        let before = below.files(dir).unwrap();
        let disk = Unchanged::new(Arc::new(below.clone()));
        disk.open(&dir.join("a")).unwrap().write_at(2, b"xyz").unwrap();
        disk.open(&dir.join("b")).unwrap().set_len(1).unwrap();
        disk.rename(&dir.join("b"), &dir.join("d")).unwrap();
        disk.remove(&dir.join("c")).unwrap();
        disk.create(&dir.join("e")).unwrap().write_at(1, b"!").unwrap();
        assert_eq!(disk.list(dir).unwrap(), ["a", "d", "e"]);
        let read = |name: &str| read_file(&disk, &dir.join(name), 10).map_err(|error| error.kind());
        assert_eq!((read("a"), read("d")), (Ok(b"olxyz".to_vec()), Ok(b"o".to_vec())));
        assert_eq!((read("e"), read("c")), (Ok(b"\0!".to_vec()), Err(ErrorKind::NotFound)));
        assert_eq!(disk.create(&dir.join("a")).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert!(disk.create(&dir.join("c")).is_ok() && disk.remove(&dir.join("b")).is_err());
        assert_eq!(below.files(dir).unwrap(), before);
    }
}

//! Fault `damage`: a file of a node that is down is cut short, or one of its bits is another one.
//!
//! In: the folder of a node that does not run. Out: one damaged file, and a copy of the folder from before.
//! Source: "Protocol-Aware Recovery" (FAST 2018); a minority node with such a file must never make the others lose or change anything.
use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// What is done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// Its last bytes are gone: this fraction (in hundredths), at least one byte.
    Cut(u64),
    /// One bit is flipped, at this hundredth of its length.
    Flip(u64),
    /// It is not there.
    Gone,
}

/// One damage: to the newest (last by name) of the files below `part` of the data folder whose name ends in `suffix`.
#[derive(Clone, Copy, Debug)]
pub struct Damage {
    /// Its name.
    pub name: &'static str,
    /// A folder below the node's, or empty.
    pub part: &'static str,
    /// The end of the file's name.
    pub suffix: &'static str,
    /// What is done.
    pub harm: Harm,
}

const fn damage(name: &'static str, part: &'static str, suffix: &'static str, harm: Harm) -> Damage {
    Damage { name, part, suffix, harm }
}

/// All of them.
pub const ALL: [Damage; 10] = [
    damage("the log lacks its last bytes", "log", ".log", Harm::Cut(0)),
    damage("a bit of the log's middle is flipped", "log", ".log", Harm::Flip(50)),
    damage("a bit of the log's end is flipped", "log", ".log", Harm::Flip(100)),
    damage("a bit of the log's header is flipped", "log", ".log", Harm::Flip(0)),
    damage("the log is gone", "log", ".log", Harm::Gone),
    damage("a bit of the cache is flipped", "cache/db", "", Harm::Flip(50)),
    damage("the cache is cut in half", "cache/db", "", Harm::Cut(50)),
    damage("node.json is cut in half", "", "node.json", Harm::Cut(50)),
    damage("peers.json is gone", "", "peers.json", Harm::Gone),
    damage("the log lacks its last tenth", "log", ".log", Harm::Cut(10)),
];

/// A damaged folder, and its copy.
#[derive(Debug)]
pub struct Damaged {
    folder: PathBuf,
    copy: PathBuf,
    /// The file, and what was done to it, for the report.
    pub what: String,
}

impl Damage {
    /// Copies the folder and damages one file in it. None if there is no such file.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn begin(&self, folder: &Path) -> anyhow::Result<Option<Damaged>> {
        let mut files = Vec::new();
        walk(&folder.join(self.part), self.part.starts_with("cache"), &mut files)?;
        files.retain(|f| f.to_string_lossy().ends_with(self.suffix) && fs::metadata(f).is_ok_and(|m| m.len() > 0));
        files.sort();
        let Some(file) = files.last() else { return Ok(None) };
        let copy = folder.with_extension("copy");
        copy_all(folder, &copy)?;
        // Space that is reserved ahead is nothing to damage.
        let length = data_end(file)?.max(1);
        let at = match self.harm {
            Harm::Cut(percent) => {
                let left = length - (length * percent / 100).max(1);
                fs::OpenOptions::new().write(true).open(file)?.set_len(left)?;
                format!("{left} of {length} bytes left")
            }
            Harm::Flip(percent) => {
                let at = (length * percent / 100).min(length - 1);
                flip(file, at)?;
                format!("byte {at} of {length}")
            }
            Harm::Gone => {
                fs::remove_file(file)?;
                format!("{length} bytes")
            }
        };
        let name = file.strip_prefix(folder).unwrap_or(file).display().to_string();
        Ok(Some(Damaged {
            folder: folder.to_owned(),
            copy,
            what: format!("{}: {name}, {at}", self.name),
        }))
    }
}

impl Damaged {
    /// Puts the copy back.
    ///
    /// # Errors
    /// If it cannot be moved.
    pub fn undo(self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.folder).with_context(|| format!("cannot remove {}", self.folder.display()))?;
        fs::rename(&self.copy, &self.folder).with_context(|| format!("cannot move {}", self.copy.display()))
    }

    /// Leaves the folder as it is by now.
    ///
    /// # Errors
    /// If the copy cannot be removed.
    pub fn keep(self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.copy).with_context(|| format!("cannot remove {}", self.copy.display()))
    }
}

/// The end of a file's last byte that is not zero.
pub(super) fn data_end(file: &Path) -> anyhow::Result<u64> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at as u64 + 1))
}

fn flip(file: &Path, at: u64) -> anyhow::Result<()> {
    let mut open = fs::OpenOptions::new().read(true).write(true).open(file)?;
    let mut byte = [0];
    open.seek(SeekFrom::Start(at))?;
    open.read_exact(&mut byte)?;
    open.seek(SeekFrom::Start(at))?;
    open.write_all(&[byte[0] ^ 0x10])?;
    Ok(())
}

fn walk(dir: &Path, deep: bool, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_file() {
            files.push(path);
        } else if deep {
            walk(&path, deep, files)?;
        }
    }
    Ok(())
}

fn copy_all(from: &Path, to: &Path) -> anyhow::Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_all(&path, &target)?;
        } else {
            fs::copy(&path, &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_damage_changes_one_file_and_can_be_undone() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("node");
        for part in ["log", "cache/db/blobs"] {
            fs::create_dir_all(folder.join(part)).unwrap();
        }
        let files = [
            ("log/1.log", "older log"),
            ("log/2.log", "newest log"),
            ("cache/db/blobs/x", "cached"),
            ("node.json", "{}{}"),
            ("peers.json", "{}"),
        ];
        for (name, text) in files {
            fs::write(folder.join(name), text).unwrap();
        }
        let now = || files.map(|(name, _)| fs::read(folder.join(name)).ok());
        let before = now();
        for damage in ALL {
            let damaged = damage.begin(&folder).unwrap().unwrap();
            let changed: Vec<usize> = (0..files.len()).filter(|at| now()[*at] != before[*at]).collect();
            assert_eq!(changed.len(), 1, "{}", damaged.what);
            assert_ne!(changed, [0], "the newest log is damaged");
            damaged.undo().unwrap();
            assert_eq!(now(), before);
        }
        let absent = damage("no such file", "log", ".nothing", Harm::Gone);
        assert!(absent.begin(&folder).unwrap().is_none());
    }
}

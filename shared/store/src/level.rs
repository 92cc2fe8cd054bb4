//! Feature levels: what all nodes of a group may do, because all of them can.
//! In: the levels that this build knows, the level that the group is at. Out: whether the two fit; the note of it in the data folder.
//! Invariants: the level is part of the replicated state and never falls; nobody raises it before every member, with or without a vote, has
//! said that it knows the next one; what changes the meaning or the encoding of entries waits for its level; a folder is never opened by a
//! program that does not know its level. File: `level` in the data folder, from level 2 on.
//!
//! Level 1 is everything from before there were levels: guarded changesets, requests remembered by time, bounded history, the second format
//! of snapshots.
//! How a level is added: raise [`Levels::BUILT`], ask [`crate::Store::feature_level`] where the new behaviour begins, and keep the old one
//! until `min` is raised past it, at the earliest one release later.
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::disk::{self, Disk};
use crate::error::OpenError;
use crate::folder::{Folder, Held};

/// Everything from before there were levels; a store that says nothing is at this one.
pub(crate) const FIRST: u32 = 1;
/// An example, by which upgrades are tested: commands have another version in front.
#[cfg(any(test, feature = "testing"))]
pub(crate) const EXAMPLE: u32 = 2;

const NAME: &str = "level";
/// A number.
const MAX_FILE: u64 = 64;

/// The feature levels that a program knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Levels {
    pub min: u32,
    pub max: u32,
}

impl Levels {
    /// Of this build.
    pub const BUILT: Self = Self { min: FIRST, max: FIRST };

    /// Of programs that do not say.
    pub(crate) const UNSAID: Self = Self { min: FIRST, max: FIRST };

    /// Whether this level is among them.
    pub fn know(&self, level: u32) -> bool {
        (self.min..=self.max).contains(&level)
    }
}

impl std::fmt::Display for Levels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} to {}", self.min, self.max)
    }
}

/// The level that a stored number means.
pub(crate) fn of(stored: u32) -> u32 {
    stored.max(FIRST)
}

/// The level to raise to, given what every member has said; `None`: not yet. Pure.
pub(crate) fn next(now: u32, members: &[Option<Levels>]) -> Option<u32> {
    let said: Vec<Levels> = members.iter().copied().collect::<Option<_>>()?;
    let (least, most) = (
        said.iter().map(|levels| levels.max).min()?,
        said.iter().map(|levels| levels.min).max()?,
    );
    (least > now && most <= least).then_some(least)
}

/// The note in the data folder, by which a program that does not know the level is kept from it before it reads anything else.
#[derive(Debug)]
pub(crate) struct Noted {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    held: Held,
    levels: Levels,
    level: u32,
}

impl Noted {
    /// Reads the note. Blocks on the disk.
    ///
    /// # Errors
    /// [`OpenError::Level`]; it cannot be read.
    pub(crate) fn open(disk: Arc<dyn Disk>, folder: &Folder, levels: Levels) -> Result<Self, OpenError> {
        let path = folder.part(NAME);
        let level = match disk::read_file(&*disk, &path, MAX_FILE) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes);
                text.trim().parse().map_err(|_| OpenError::Folder {
                    path: path.clone(),
                    reason: "it is no number".to_owned(),
                })?
            }
            Err(error) if error.kind() == ErrorKind::NotFound => FIRST,
            Err(source) => {
                let action = "read";
                return Err(OpenError::Io { action, path, source });
            }
        };
        if level > levels.max || level < levels.min && folder.is_used() {
            return Err(OpenError::Level {
                dir: folder.part(""),
                level,
                known: levels,
            });
        }
        let held = folder.held();
        Ok(Self {
            disk,
            path,
            held,
            levels,
            level,
        })
    }

    /// Whether what is at this level may be taken in.
    ///
    /// # Errors
    /// A newer program wrote it.
    pub(crate) fn may_hold(&self, level: u32) -> Result<(), String> {
        let known = self.levels;
        if level > known.max {
            return Err(format!(
                "the group has gone to feature level {level}, and this program knows levels {known}: install the version that the other nodes run"
            ));
        }
        Ok(())
    }

    /// The group goes to this level: noted durably, before anything at that level is.
    ///
    /// # Errors
    /// This program does not know it; the disk.
    pub(crate) async fn rise(&mut self, level: u32) -> std::io::Result<()> {
        if level <= self.level {
            return Ok(());
        }
        self.may_hold(level).map_err(std::io::Error::other)?;
        let (disk, path, held) = (self.disk.clone(), self.path.clone(), self.held.clone());
        disk::run(&*self.disk, move || {
            let _held = held.keep()?;
            disk::write_atomic(&*disk, &path, format!("{level}\n").as_bytes())
        })
        .await?;
        self.level = level;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SimDisk;

    const fn levels(min: u32, max: u32) -> Levels {
        Levels { min, max }
    }

    #[test]
    fn the_level_rises_to_what_all_know_and_no_further() {
        let (one, two, three) = (Some(levels(1, 1)), Some(levels(1, 2)), Some(levels(1, 3)));
        assert_eq!(next(1, &[two, two, one]), None);
        assert_eq!(next(1, &[two, two, None]), None, "one has not said");
        assert_eq!(next(1, &[two, three, two]), Some(2));
        assert_eq!(next(2, &[two, three, two]), None);
        assert_eq!(next(1, &[three, three]), Some(3), "a step over one");
        assert_eq!(next(1, &[two, Some(levels(3, 3))]), None, "they have none in common");
        assert_eq!(next(1, &[]), None);
    }

    #[tokio::test]
    async fn a_folder_is_kept_from_programs_that_do_not_know_its_level() {
        let disk = SimDisk::new(1);
        let open = |disk: &SimDisk, levels| {
            let disk: Arc<dyn Disk> = Arc::new(disk.clone());
            let (folder, _) = Folder::open(disk.clone(), "/node".as_ref(), 1).unwrap();
            Noted::open(disk, &folder, levels)
        };
        let mut noted = open(&disk, levels(1, 2)).unwrap();
        noted.rise(1).await.unwrap();
        assert!(
            !disk.files("/node".as_ref()).unwrap().contains_key(NAME),
            "older programs know nothing of it"
        );
        noted.rise(2).await.unwrap();
        let error = noted.rise(3).await.unwrap_err();
        assert!(
            error.to_string().contains("level 3") && error.to_string().contains("levels 1 to 2"),
            "{error}"
        );
        let disk = disk.power_loss();
        let error = open(&disk, levels(1, 1)).unwrap_err();
        assert!(matches!(error, OpenError::Level { level: 2, .. }), "{error}");
        assert!(
            error.to_string().contains("level 2") && error.to_string().contains("install"),
            "{error}"
        );
        open(&disk, levels(2, 3)).unwrap();
        disk.damage("/node/level".as_ref(), |bytes| *bytes = b"two".to_vec()).unwrap();
        assert!(matches!(open(&disk, levels(1, 2)), Err(OpenError::Folder { .. })));
    }
}

//! Fault `wipe`: a node's data folder is lost while the node is down, as with a disk that was replaced.
//!
//! In: the folder of a node that does not run. Out: no folder; it is kept aside and can be put back, as from a backup of the machine.
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// A folder that was taken away.
#[derive(Debug)]
pub struct Wiped {
    folder: PathBuf,
    aside: PathBuf,
}

impl Wiped {
    /// Takes the folder away.
    ///
    /// # Errors
    /// If it cannot be moved.
    pub fn begin(folder: &Path) -> anyhow::Result<Self> {
        let aside = folder.with_extension("aside");
        std::fs::rename(folder, &aside).with_context(|| format!("cannot move {}", folder.display()))?;
        Ok(Self {
            folder: folder.to_owned(),
            aside,
        })
    }

    /// Puts it back; what came in its place is removed.
    ///
    /// # Errors
    /// If it cannot be moved.
    pub fn end(self) -> anyhow::Result<()> {
        if self.folder.exists() {
            std::fs::remove_dir_all(&self.folder).with_context(|| format!("cannot remove {}", self.folder.display()))?;
        }
        std::fs::rename(&self.aside, &self.folder).with_context(|| format!("cannot move {}", self.aside.display()))
    }
}

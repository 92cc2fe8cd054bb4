//! Fault `power loss`: a node is gone at once, and with it all that its log had written and not synced.
//!
//! In: a node that was killed and had run with the shim. Out: its folder as a disk without power may have it.
//! Invariant: what a sync had covered stays. A segment that was never synced is gone whole. The cache goes: it is trusted only after a
//! clean close or within one boot of the machine, and a loss of power ends that. Other files are synced before they get their names.
use std::fs;
use std::path::Path;

use anyhow::Context as _;

use super::shim::Shim;

/// Takes away what would be lost. Returns how many bytes.
///
/// # Errors
/// If the folder cannot be read or changed.
pub fn begin(shim: &Shim, process: &str, folder: &Path) -> anyhow::Result<u64> {
    let synced = shim.synced(process)?;
    let mut lost = 0;
    let log = folder.join("log");
    for entry in fs::read_dir(&log).with_context(|| format!("cannot read {}", log.display()))? {
        let path = entry?.path();
        if path.extension().is_none_or(|e| e != "log") {
            continue;
        }
        let length = fs::metadata(&path)?.len();
        match synced.get(&path.canonicalize()?) {
            Some(kept) if *kept < length => {
                fs::OpenOptions::new().write(true).open(&path)?.set_len(*kept)?;
                lost += length - kept;
            }
            Some(_) => {}
            None => {
                fs::remove_file(&path)?;
                lost += length;
            }
        }
    }
    let cache = folder.join("cache");
    if cache.exists() {
        fs::remove_dir_all(&cache)?;
    }
    Ok(lost)
}

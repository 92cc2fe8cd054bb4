//! Fault `power loss`: a node is gone at once, and with it all that its log had written and not synced.
//!
//! In: a node that was killed and had run with the shim. Out: its folder as a disk without power may have it.
//! Invariant: what a sync had covered stays. A segment that was never synced is gone whole. The cache goes: it is trusted only after a
//! clean close or within one boot of the machine, and a loss of power ends that. Other files are synced before they get their names.
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::Context as _;

use super::damage::data_end;
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
        let end = data_end(&path)?;
        match synced.get(&path.canonicalize()?) {
            // Space that was reserved ahead stays, and is zeros.
            Some(kept) if *kept < end => {
                let gone = vec![0; usize::try_from(end - kept)?];
                fs::OpenOptions::new().write(true).open(&path)?.write_all_at(&gone, *kept)?;
                lost += end - kept;
            }
            Some(_) => {}
            None => {
                fs::remove_file(&path)?;
                lost += end;
            }
        }
    }
    let cache = folder.join("cache");
    if cache.exists() {
        fs::remove_dir_all(&cache)?;
    }
    Ok(lost)
}

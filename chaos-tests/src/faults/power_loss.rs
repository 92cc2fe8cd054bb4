//! Fault `power loss`: a node is gone at once, and with it all that it had written and not synced.
//!
//! In: a node that was killed and had run with the shim. Out: its folder as a disk without power may have it.
//! Invariant: what a sync had covered stays, under whatever name the file has by now. A segment of the log that was never synced is gone
//! whole; of other files what follows the synced part is gone. The cache goes: it is trusted only after a clean close or within one boot
//! of the machine, and a loss of power ends that.
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::damage::data_end;
use super::shim::Shim;

/// Takes away what would be lost. Returns how many bytes.
///
/// # Errors
/// If the folder cannot be read or changed.
pub fn begin(shim: &Shim, process: &str, folder: &Path) -> anyhow::Result<u64> {
    let synced = shim.synced(process)?;
    let cache = folder.join("cache");
    if cache.exists() {
        fs::remove_dir_all(&cache)?;
    }
    let (mut lost, mut folders) = (0, vec![folder.canonicalize()?]);
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).with_context(|| format!("cannot read {}", next.display()))? {
            let path: PathBuf = entry?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let kept = synced.get(&path).copied();
            lost += match path.extension().is_some_and(|e| e == "log") {
                true => of_segment(&path, kept)?,
                false => of_file(&path, kept.unwrap_or_default())?,
            };
        }
    }
    Ok(lost)
}

fn of_segment(path: &Path, kept: Option<u64>) -> anyhow::Result<u64> {
    let end = data_end(path)?;
    let Some(kept) = kept else {
        fs::remove_file(path)?;
        return Ok(end);
    };
    let lost = end.saturating_sub(kept);
    if lost > 0 {
        // Space that was reserved ahead stays, and is zeros.
        let gone = vec![0; usize::try_from(lost)?];
        fs::OpenOptions::new().write(true).open(path)?.write_all_at(&gone, kept)?;
    }
    Ok(lost)
}

fn of_file(path: &Path, kept: u64) -> anyhow::Result<u64> {
    let lost = fs::metadata(path)?.len().saturating_sub(kept);
    if lost > 0 {
        fs::OpenOptions::new().write(true).open(path)?.set_len(kept)?;
    }
    Ok(lost)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_was_not_synced_is_gone_and_all_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let shim = Shim::build(dir.path()).unwrap();
        let folder = dir.path().canonicalize().unwrap().join("node");
        fs::create_dir_all(folder.join("log")).unwrap();
        fs::create_dir_all(folder.join("cache")).unwrap();
        fs::write(folder.join("cache/db"), "rebuilt").unwrap();
        let script = format!(
            "import os\n\
             def put(name, *parts):\n\
             \x20   f = os.open(os.path.join({:?}, name), os.O_WRONLY | os.O_CREAT)\n\
             \x20   for part in parts:\n\
             \x20       os.fsync(f) if part is None else os.write(f, part)\n\
             put('log/1.log', b'12345', None, b'678')\n\
             put('log/2.log', b'123')\n\
             put('good.tmp', b'12345', None)\n\
             os.rename(os.path.join({:?}, 'good.tmp'), os.path.join({:?}, 'good.json'))\n\
             put('half.json', b'12', None, b'345')\n\
             put('bad.json', b'123')",
            folder, folder, folder
        );
        let run = Command::new("python3")
            .args(["-c", &script])
            .envs(shim.environment("p").unwrap())
            .output()
            .unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        assert_eq!(begin(&shim, "p", &folder).unwrap(), 3 + 3 + 3 + 3);
        let read = |name: &str| fs::read(folder.join(name)).ok();
        assert_eq!(read("log/1.log").unwrap(), b"12345\0\0\0");
        assert_eq!(read("log/2.log"), None);
        assert_eq!(
            (read("good.json").unwrap(), read("half.json").unwrap()),
            (b"12345".to_vec(), b"12".to_vec())
        );
        assert_eq!((read("bad.json").unwrap(), read("cache/db")), (Vec::new(), None));
        // What is there now is what a disk without power has: nothing more to lose.
        assert_eq!(begin(&shim, "p", &folder).unwrap(), 0);
    }
}

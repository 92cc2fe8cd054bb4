//! Faults inside a process that its kernel would bring about: of its disk and of its clock.
//!
//! In: a C compiler, the name of a process. Out: a library to preload, and a [`Control`] of what it does in that process.
//! Invariant: without a fault the library passes every call on as it is. The code is `shim/shim.c`, which says what is touched.
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

const SOURCE: &str = include_str!("shim/shim.c");
/// Numbers in a control file.
const NUMBERS: usize = 4;

/// What can be set; the order is that of `enum` in the C code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Writes fail with this error number.
    WriteError,
    /// Syncs fail with this error number.
    SyncError,
    /// Syncs take so many microseconds longer.
    SyncDelay,
    /// The time of day is off by so many milliseconds.
    ClockOffset,
}

/// The built library.
#[derive(Clone, Debug)]
pub struct Shim {
    dir: PathBuf,
    library: PathBuf,
}

impl Shim {
    /// Builds it in a folder of its own below `dir`.
    ///
    /// # Errors
    /// If there is no C compiler, or the folder cannot be written.
    pub fn build(dir: &Path) -> anyhow::Result<Self> {
        let dir = dir.join("shim");
        fs::create_dir_all(&dir)?;
        let (source, library) = (dir.join("shim.c"), dir.join("shim.so"));
        fs::write(&source, SOURCE)?;
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O2", "-o"])
            .args([&library, &source])
            .output()
            .context("there is no C compiler `cc`: install build-essential")?;
        anyhow::ensure!(built.status.success(), "cc failed: {}", String::from_utf8_lossy(&built.stderr));
        Ok(Self { dir, library })
    }

    /// The environment of a process that shall have faults.
    ///
    /// # Errors
    /// If its control file cannot be made.
    pub fn environment(&self, process: &str) -> anyhow::Result<[(&'static str, String); 3]> {
        let file = self.file(process);
        if !file.exists() {
            fs::write(&file, [0; NUMBERS * 8]).with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok([
            ("LD_PRELOAD", self.library.display().to_string()),
            ("CHAOS_SHIM", file.display().to_string()),
            ("CHAOS_SYNCED", self.synced_file(process).display().to_string()),
        ])
    }

    /// Has this happen in the process from now on, also after its next start. 0 ends it.
    ///
    /// # Errors
    /// If the process was not started with [`Shim::environment`].
    pub fn set(&self, process: &str, effect: Effect, value: i64) -> anyhow::Result<()> {
        let file = self.file(process);
        let open = fs::OpenOptions::new().write(true).open(&file);
        let open = open.with_context(|| format!("{process} has no {}", file.display()))?;
        Ok(open.write_all_at(&value.to_le_bytes(), effect as u64 * 8)?)
    }

    /// Up to where each file had been written when its last sync began that succeeded. A file that is not named was never synced, under
    /// whatever name.
    ///
    /// # Errors
    /// If the record cannot be read.
    pub fn synced(&self, process: &str) -> anyhow::Result<BTreeMap<PathBuf, u64>> {
        let file = self.synced_file(process);
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let mut synced = BTreeMap::new();
        for line in text.lines() {
            if let Some((from, to)) = line.strip_prefix("mv\t").and_then(|names| names.split_once('\t')) {
                match synced.remove(Path::new(from)) {
                    Some(end) => synced.insert(PathBuf::from(to), end),
                    None => synced.remove(Path::new(to)),
                };
            } else if let Some((end, path)) = line.split_once(' ')
                && let Ok(end) = end.parse()
            {
                synced.insert(PathBuf::from(path), end);
            }
        }
        Ok(synced)
    }

    fn synced_file(&self, process: &str) -> PathBuf {
        self.dir.join(format!("{process}.synced"))
    }

    fn file(&self, process: &str) -> PathBuf {
        self.dir.join(format!("{process}.control"))
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    /// A program in which the library works.
    fn run(shim: &Shim, script: &str) -> (bool, String) {
        let done = Command::new("python3")
            .args(["-c", &format!("import os, time\n{script}")])
            .envs(shim.environment("p").unwrap())
            .output()
            .unwrap();
        let text = [done.stdout, done.stderr].concat();
        (done.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    #[test]
    fn every_effect_is_seen_and_ends() {
        let dir = tempfile::tempdir().unwrap();
        let (shim, file) = (Shim::build(dir.path()).unwrap(), dir.path().join("file"));
        let open = format!(
            "f = os.open({:?}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)",
            file.display().to_string()
        );
        let unsynced = format!("{open}; os.write(f, b'12345')");
        let synced = format!("{unsynced}; os.fsync(f)");
        let year = || {
            let (done, text) = run(&shim, "print(time.gmtime(time.time()).tm_year)");
            assert!(done, "{text}");
            text.trim().parse::<i64>().unwrap()
        };
        let now = year();
        let (done, said) = run(&shim, &synced);
        assert!(done, "{said}");

        shim.set("p", Effect::WriteError, Errno::ENOSPC as i64).unwrap();
        let (done, said) = run(&shim, &synced);
        assert!(!done && said.contains("No space left"), "{said}");
        // What has its space already is taken.
        let over = format!(
            "f = os.open({:?}, os.O_WRONLY); os.pwrite(f, b'abc', 1)",
            file.display().to_string()
        );
        let (done, said) = run(&shim, &over);
        assert!(done, "{said}");
        let (done, said) = run(&shim, &over.replace(", 1)", ", 100000)"));
        assert!(!done && said.contains("No space left"), "{said}");
        shim.set("p", Effect::WriteError, Errno::EROFS as i64).unwrap();
        let (done, said) = run(&shim, &over);
        assert!(!done && said.contains("Read-only file system"), "{said}");
        shim.set("p", Effect::WriteError, 0).unwrap();

        shim.set("p", Effect::SyncError, Errno::EIO as i64).unwrap();
        let (done, said) = run(&shim, &synced);
        assert!(!done && said.contains("Input/output error"), "{said}");
        shim.set("p", Effect::SyncError, 0).unwrap();

        shim.set("p", Effect::SyncDelay, 300_000).unwrap();
        let start = tokio::time::Instant::now();
        assert!(run(&shim, &synced).0);
        assert!(start.elapsed().as_millis() >= 300);
        shim.set("p", Effect::SyncDelay, 0).unwrap();

        shim.set("p", Effect::ClockOffset, 800 * 86_400_000).unwrap();
        assert!(year() >= now + 2);
        shim.set("p", Effect::ClockOffset, -800 * 86_400_000).unwrap();
        assert!(year() <= now - 2);
        shim.set("p", Effect::ClockOffset, 0).unwrap();
        assert!((now..=now + 1).contains(&year()));
        assert!(shim.set("other", Effect::WriteError, 1).is_err());
    }

    #[test]
    fn what_was_written_after_the_last_sync_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let (shim, file) = (Shim::build(dir.path()).unwrap(), dir.path().canonicalize().unwrap().join("file"));
        let script = format!(
            "f = os.open({:?}, os.O_WRONLY | os.O_CREAT); os.posix_fallocate(f, 0, 4096)\n\
             os.pwrite(f, b'12345', 0); os.fdatasync(f); os.pwrite(f, b'678', 5)",
            file.display().to_string()
        );
        let (done, said) = run(&shim, &script);
        assert!(done, "{said}");
        assert_eq!(
            shim.synced("p").unwrap().get(&file),
            Some(&5),
            "neither what came later nor what is reserved"
        );
        assert_eq!(fs::read(&file).unwrap()[..9], *b"12345678\0");
    }

    #[test]
    fn a_file_keeps_what_was_synced_under_another_name() {
        let dir = tempfile::tempdir().unwrap();
        let (shim, folder) = (Shim::build(dir.path()).unwrap(), dir.path().canonicalize().unwrap());
        let path = |name: &str| folder.join(name).display().to_string();
        let made = |from: &str, to: &str, sync: &str| {
            let script = format!(
                "f = os.open({:?}, os.O_WRONLY | os.O_CREAT); os.write(f, b'12345'); {sync}; os.rename({:?}, {:?})",
                path(from),
                path(from),
                path(to)
            );
            let (done, said) = run(&shim, &script);
            assert!(done, "{said}");
            shim.synced("p").unwrap().get(&folder.join(to)).copied()
        };
        assert_eq!(made("a.tmp", "a", "os.fsync(f)"), Some(5));
        assert_eq!(made("b.tmp", "b", "pass"), None);
        assert_eq!(made("c.tmp", "a", "pass"), None, "what was synced was another file of that name");
    }
}

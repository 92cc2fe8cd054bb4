//! What the disk gives at the moment: append and fdatasync of so many bytes, one after the other, by one thread.
//!
//! In: a folder on the disk in question, the bytes per sync, a time. Out: how long each append with its sync took.
//! Invariant: nothing but `pwrite` and `fdatasync` on one open file, which is what a log cannot do without.
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::traffic::stats::Times;

/// The file is begun anew at this length, so that a long run does not fill the disk.
const LONGEST: u64 = 256 << 20;

/// A file to append to.
#[derive(Clone, Debug)]
pub struct Probe {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    path: PathBuf,
    file: File,
    offset: u64,
}

impl Probe {
    /// In this folder, which must exist.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn new(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join("probe");
        let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let state = State { path, file, offset: 0 };
        Ok(Self {
            state: Arc::new(Mutex::new(state)),
        })
    }

    /// Appends and syncs `bytes` at a time, again and again for this long.
    ///
    /// # Errors
    /// The disk's.
    pub async fn run(&self, bytes: usize, time: Duration) -> anyhow::Result<Times> {
        let state = self.state.clone();
        let ran = tokio::task::spawn_blocking(move || state.lock().run(bytes, time)).await;
        ran.context("the thread of the probe")?
    }
}

impl State {
    fn run(&mut self, bytes: usize, time: Duration) -> anyhow::Result<Times> {
        let content = vec![b'x'; bytes.max(1)];
        let mut times = Times::default();
        let end = Instant::now() + time;
        loop {
            let start = Instant::now();
            if start >= end {
                return Ok(times);
            }
            self.append(&content)
                .with_context(|| format!("the probe at {}", self.path.display()))?;
            times.record(start.elapsed());
        }
    }

    fn append(&mut self, content: &[u8]) -> std::io::Result<()> {
        if self.offset > LONGEST {
            self.file.set_len(0)?;
            self.offset = 0;
        }
        self.file.write_all_at(content, self.offset)?;
        self.file.sync_data()?;
        self.offset += content.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_appends_what_it_is_told_and_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let probe = Probe::new(dir.path()).unwrap();
        let times = probe.run(1000, Duration::from_millis(20)).await.unwrap();
        let length = std::fs::metadata(dir.path().join("probe")).unwrap().len();
        assert!(times.count() > 0);
        assert_eq!(length, times.count() * 1000);
        probe.state.lock().offset = LONGEST + 1;
        probe.state.lock().append(b"anew").unwrap();
        assert_eq!(std::fs::read(dir.path().join("probe")).unwrap(), b"anew");
    }
}

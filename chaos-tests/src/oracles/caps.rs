//! Judges memory and disk: a fault must not make a process grow without end.
//!
//! In: the processes of a fleet and their data folder. Out: the most that each used, and who used more than its cap.
//! Invariant: sampled once a second while it runs; a process that was started again counts with all its lives.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::harness::wait::Pace;
use crate::harness::{Fleet, procfs};

/// Between two samples.
const PERIOD: Duration = Duration::from_secs(1);
/// Resident memory of one process of ours. A control plane of the demo takes a tenth.
pub const MEMORY: u64 = 512 << 20;
/// Everything below the data folder of one process. Two snapshots and the log behind the older one, of some thousands of writes.
pub const DISK: u64 = 512 << 20;

/// The most that a process used, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Resident memory.
    pub memory: u64,
    /// Its folder.
    pub disk: u64,
}

/// Watches. Dropping it stops it.
#[derive(Debug)]
pub struct Watch {
    most: Arc<Mutex<BTreeMap<String, Used>>>,
    _task: JoinSet<()>,
}

impl Watch {
    /// Starts sampling all processes of the fleet, whose folders lie below the fleet's under their names.
    #[must_use]
    pub fn start(fleet: &Fleet) -> Self {
        let (most, mut task) = (Arc::<Mutex<BTreeMap<String, Used>>>::default(), JoinSet::new());
        let (seen, fleet) = (most.clone(), fleet.clone());
        task.spawn(async move {
            let mut pace = Pace::every(PERIOD);
            loop {
                pace.slot().await;
                for (name, pid) in fleet.pids() {
                    let folder = fleet.dir().join(&name);
                    let now = Used {
                        memory: procfs::resident(pid).unwrap_or_default(),
                        disk: size(&folder),
                    };
                    let mut seen = seen.lock();
                    let most = seen.entry(name).or_default();
                    *most = Used {
                        memory: most.memory.max(now.memory),
                        disk: most.disk.max(now.disk),
                    };
                }
            }
        });
        Self { most, _task: task }
    }

    /// The most that each process has used so far.
    #[must_use]
    pub fn most(&self) -> BTreeMap<String, Used> {
        self.most.lock().clone()
    }
}

/// Who used more than it may.
#[must_use]
pub fn over(most: &BTreeMap<String, Used>) -> Vec<String> {
    most.iter()
        .filter(|(_, used)| used.memory > MEMORY || used.disk > DISK)
        .map(|(name, used)| format!("{name}: {} MiB of memory, {} MiB of disk", used.memory >> 20, used.disk >> 20))
        .collect()
}

/// All files below a folder. What vanishes while it is looked at does not count.
fn size(folder: &Path) -> u64 {
    let mut queue: Vec<PathBuf> = vec![folder.to_owned()];
    let mut sum = 0;
    while let Some(next) = queue.pop() {
        for entry in std::fs::read_dir(&next).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => queue.push(entry.path()),
                Ok(meta) => sum += meta.len(),
                Err(_vanished) => {}
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{POLL, Poll, Spec, wait_until};

    #[test]
    fn who_is_over_its_cap_is_named() {
        let used = |memory, disk| Used { memory, disk };
        let most = BTreeMap::from([
            ("fine".to_owned(), used(MEMORY, DISK)),
            ("fat".to_owned(), used(MEMORY + 1, 0)),
            ("long".to_owned(), used(0, DISK + 1)),
        ]);
        let over = over(&most);
        assert!(
            over.len() == 2 && over[0].starts_with("fat: ") && over[1].starts_with("long: "),
            "{over:?}"
        );
    }

    #[tokio::test]
    async fn memory_and_disk_of_a_process_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let fleet = Fleet::new(dir.path()).unwrap();
        std::fs::create_dir_all(fleet.dir().join("a/deep")).unwrap();
        std::fs::write(fleet.dir().join("a/deep/file"), [0; 1000]).unwrap();
        fleet.start(Spec::new("a", "/bin/sleep").arg("1000")).unwrap();
        let watch = Watch::start(&fleet);
        let seen = async || {
            let most = watch.most();
            let seen = most.get("a").is_some_and(|used| used.memory > 10_000 && used.disk == 1000);
            Ok(Poll::when(seen, (), || format!("{most:?}")))
        };
        wait_until("a sample", Duration::from_secs(30), POLL, seen).await.unwrap();
    }
}

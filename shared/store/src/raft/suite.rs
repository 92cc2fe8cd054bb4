//! openraft's own tests of a log and a state machine, on ours: over the simulated disk and over files.
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

use super::{Confirmed, Entries, Machine, TypeConfig};
use crate::disk::{Disk, RealDisk, SimDisk};
use crate::folder::Folder;
use crate::level::{Levels, Noted};
use crate::log::{Log, Options};
use crate::snapshot::Snapshots;

/// Small files and next to no cache, so that the suite meets both.
fn options() -> Options {
    Options {
        segment_bytes: 4096,
        cache_bytes: 256,
        ..Options::default()
    }
}

fn build(disk: Arc<dyn Disk>, dir: &Path) -> (Entries, Machine) {
    let log = Log::open(disk.clone(), &dir.join("log"), options(), &crate::seal::Keys::default(), None).unwrap();
    let (snapshots, loaded, _) = Snapshots::open(disk.clone(), &dir.join("snapshots"), &crate::seal::Keys::default()).unwrap();
    let confirmed = Arc::new(Confirmed::open(&*disk, dir, &log.state()).unwrap());
    let entries = Entries::new(log, confirmed, disk.clone());
    let (folder, _) = Folder::open(disk.clone(), &dir.join("folder"), 1).unwrap();
    let noted = Noted::open(disk.clone(), &folder, Levels::BUILT).unwrap();
    (entries, Machine::new(disk, Arc::new(snapshots), loaded, noted).unwrap())
}

struct Simulated;

impl StoreBuilder<TypeConfig, Entries, Machine> for Simulated {
    async fn build(&self) -> Result<((), Entries, Machine), StorageError<TypeConfig>> {
        let (entries, machine) = build(Arc::new(SimDisk::new(1)), &PathBuf::from("/node"));
        Ok(((), entries, machine))
    }
}

struct Files;

impl StoreBuilder<TypeConfig, Entries, Machine, tempfile::TempDir> for Files {
    async fn build(&self) -> Result<(tempfile::TempDir, Entries, Machine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let (entries, machine) = build(Arc::new(RealDisk), dir.path());
        Ok((dir, entries, machine))
    }
}

#[tokio::test]
async fn openrafts_suite_passes_on_the_simulated_disk() {
    Suite::test_all(Simulated).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn openrafts_suite_passes_on_files() {
    Suite::test_all(Files).await.unwrap();
}

//! Encryption of the whole store: nothing readable on any disk, and rotations that are cut short anywhere.
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ursa_runtime::lease::{Deadline, within};
use ursa_runtime::tasks::Tasks;

use super::{PATIENCE, value, write};
use crate::disk::{Disk, RealDisk};
use crate::testing::{SimDisk, on_disk};
use crate::{EncryptionStatus, KeyId, OpenError, Store, StoreConfig, seal};

/// Every file of the node, by its path.
fn files(disk: &SimDisk) -> BTreeMap<String, Vec<u8>> {
    let dirs = ["/node", "/node/log", "/node/snapshots"];
    let of = |dir: &str| disk.files(Path::new(dir)).unwrap_or_default();
    dirs.iter()
        .flat_map(|dir| of(dir).into_iter().map(move |(name, bytes)| (format!("{dir}/{name}"), bytes)))
        .collect()
}

fn holding(disk: &SimDisk, wanted: &[u8]) -> Vec<String> {
    let holds = |bytes: &[u8]| bytes.windows(wanted.len()).any(|window| window == wanted);
    files(disk)
        .into_iter()
        .filter(|(_, bytes)| holds(bytes))
        .map(|(name, _)| name)
        .collect()
}

/// A key's id as it is in files, and as text.
fn naming(disk: &SimDisk, id: KeyId) -> Vec<String> {
    [holding(disk, &id.0), holding(disk, id.to_string().as_bytes())].concat()
}

async fn settled(store: &Store) -> EncryptionStatus {
    let mut status = store.watch_encryption();
    let settled = within(PATIENCE, status.wait_for(|status| status.settled)).await;
    settled.expect("it settles in time").unwrap().clone()
}

async fn snapshot(store: &Store) {
    let applied = store.status().applied;
    store.snapshot().await.unwrap();
    let deadline = Deadline::after(PATIENCE);
    while store.status().snapshot < applied {
        assert!(!deadline.has_passed(), "no snapshot");
        tokio::task::yield_now().await;
    }
}

/// Entries, two snapshots, more entries.
async fn filled(store: &Store) {
    for n in 0..12 {
        write(store, &format!("m{}", n % 5), n).await.unwrap();
        if n % 5 == 4 {
            snapshot(store).await;
        }
    }
}

#[tokio::test]
async fn nothing_readable_is_on_the_disk_and_a_rotation_leaves_nothing_of_the_old_key() {
    let disk = SimDisk::new(1);
    let store = on_disk(&disk, &Tasks::new()).await.unwrap();
    filled(&store).await;
    let first = settled(&store).await;
    assert_eq!((first.old_keys.len(), first.log_files, first.snapshots), (0, 0, 0));
    let old = first.key.unwrap();
    let names = files(&disk);
    assert!(
        names.keys().filter(|name| name.ends_with(".snap")).count() == 2 && naming(&disk, old).len() >= 4,
        "{:?}",
        names.keys()
    );
    assert_eq!(holding(&disk, b"xxxxxxxx"), Vec::<String>::new());
    let copy = files(&disk);

    let new = store.rotate_key().await.unwrap();
    let status = settled(&store).await;
    assert_eq!((status.key, status.old_keys.len(), status.problem), (Some(new), 0, None));
    assert_eq!(naming(&disk, old), Vec::<String>::new());
    assert!(naming(&disk, new).len() >= 4);
    write(&store, "later", 99).await.unwrap();
    store.shutdown().await.unwrap();
    let disk = disk.power_loss();
    let store = on_disk(&disk, &Tasks::new()).await.unwrap();
    assert_eq!((value(&store.view(), "m1"), value(&store.view(), "later")), (Some(11), Some(99)));
    store.shutdown().await.unwrap();

    // Files of before do not open with the ring of now.
    for part in ["log", "snapshots"] {
        let dir = Path::new("/node").join(part);
        disk.list(&dir)
            .unwrap()
            .iter()
            .for_each(|name| disk.remove(&dir.join(name)).unwrap());
    }
    for (path, bytes) in copy.iter().filter(|(path, _)| path.matches('/').count() > 2) {
        disk.create(Path::new(path)).unwrap().write_at(0, bytes).unwrap();
    }
    let before = files(&disk);
    let error = on_disk(&disk, &Tasks::new()).await.unwrap_err();
    assert!(matches!(&error, OpenError::Snapshot(crate::snapshot::Error::Key { .. })), "{error}");
    let after = files(&disk);
    assert!(
        copy.keys()
            .filter(|path| path.matches('/').count() > 2)
            .all(|path| before[path] == after[path]),
        "nothing is cut"
    );
}

#[tokio::test]
async fn a_store_that_was_in_the_clear_is_encrypted_and_stays_so() {
    let disk = SimDisk::new(1);
    let open = |encryption| {
        let config = StoreConfig {
            encryption,
            ..StoreConfig::new("/node", 1)
        };
        let disk = disk.clone();
        async move { Store::open(config, Arc::new(disk), &Tasks::new()).await }
    };
    let store = open(None).await.unwrap();
    filled(&store).await;
    assert_eq!(
        store.encryption(),
        EncryptionStatus {
            settled: true,
            ..EncryptionStatus::default()
        }
    );
    assert!(matches!(store.rotate_key().await, Err(seal::Error::Off)));
    store.shutdown().await.unwrap();
    assert!(holding(&disk, b"xxxxxxxx").len() >= 3, "the same search finds it in the clear");

    let store = open(Some(Default::default())).await.unwrap();
    settled(&store).await;
    assert_eq!(holding(&disk, b"xxxxxxxx"), Vec::<String>::new());
    assert_eq!(value(&store.view(), "m1"), Some(11));
    store.shutdown().await.unwrap();
    let error = open(None).await.unwrap_err();
    assert!(matches!(error, OpenError::Encryption(seal::Error::SwitchedOff)), "{error}");
    let store = open(Some(Default::default())).await.unwrap();
    assert_eq!(value(&store.view(), "m1"), Some(11));
}

/// Writes, snapshots and rotations, with the power going at some call; then it is given time.
async fn play(seed: u64) -> u32 {
    let mut disk = SimDisk::new(seed);
    let (mut acknowledged, mut n, mut rotations) = (BTreeMap::new(), 0, 0);
    let mut keys = Vec::new();
    for life in 0..3_u64 {
        let Ok(store) = on_disk(&disk, &Tasks::new()).await else {
            disk = disk.power_loss();
            continue;
        };
        disk.power_off_in((seed * 11 + life * 29) % 90);
        for step in 0..8 {
            n += 1;
            let name = format!("m{}", n % 3);
            if write(&store, &name, n).await.is_ok() {
                acknowledged.insert(name, n);
            }
            if (seed + step).is_multiple_of(3) && disk.is_on() {
                let _ = store.snapshot().await;
            }
            if (seed + step).is_multiple_of(4)
                && let Ok(key) = store.rotate_key().await
            {
                keys.push(key);
                rotations += 1;
            }
            for _ in 0..(seed + step) % 30 {
                tokio::task::yield_now().await;
            }
        }
        disk = disk.power_loss();
    }
    let store = on_disk(&disk, &Tasks::new())
        .await
        .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    for (name, newest) in &acknowledged {
        assert!(value(&store.view(), name) >= Some(*newest), "seed {seed}: {name}");
    }
    let status = settled(&store).await;
    assert!(
        status.old_keys.is_empty() && status.log_files == 0 && status.snapshots == 0,
        "seed {seed}: {status:?}"
    );
    for key in keys.into_iter().filter(|key| Some(*key) != status.key) {
        assert_eq!(naming(&disk, key), Vec::<String>::new(), "seed {seed}");
    }
    assert_eq!(holding(&disk, b"xxxxxxxx"), Vec::<String>::new(), "seed {seed}");
    let again = on_disk(&disk.power_loss(), &Tasks::new()).await;
    let again = again.unwrap_or_else(|error| panic!("seed {seed}, settled: {error}"));
    assert_eq!(again.view().revision(), store.view().revision(), "seed {seed}");
    rotations
}

#[tokio::test]
async fn a_rotation_goes_on_wherever_the_power_went() {
    let mut rotations = 0;
    for seed in 0..300 {
        rotations += play(seed).await;
    }
    assert!(rotations > 400, "only {rotations} rotations");
}

/// Everything below a folder of the machine.
fn every_file(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(every_file(&path));
        } else {
            found.push((path.display().to_string(), std::fs::read(&path).unwrap()));
        }
    }
    found
}

#[tokio::test]
async fn the_cache_of_a_real_disk_holds_nothing_readable_either() {
    let dir = tempfile::tempdir().unwrap();
    let tasks = Tasks::new();
    let store = Store::open(StoreConfig::new(dir.path(), 1), Arc::new(RealDisk), &tasks)
        .await
        .unwrap();
    filled(&store).await;
    let caught_up = |store: &Store| {
        let (mut status, revision) = (store.cache().unwrap().watch_status(), store.view().revision());
        let cache = store.cache().unwrap().clone();
        async move {
            cache.wake();
            let reached = within(PATIENCE, status.wait_for(|status| status.revision >= revision)).await;
            reached.expect("the cache catches up").unwrap().key
        }
    };
    assert_eq!(caught_up(&store).await, settled(&store).await.key);
    let key = ursa_model::ResourceKey::mesh_itself("m1").unwrap();
    assert!(store.cache().unwrap().get(key.clone()).await.unwrap().is_some(), "it can be read");
    let old = settled(&store).await.key.unwrap();
    store.shutdown().await.unwrap();
    let text = STANDARD.encode("x".repeat(30));
    let finds = |wanted: &[u8]| {
        let files = every_file(dir.path()).into_iter();
        files
            .filter(|(_, bytes)| bytes.windows(wanted.len()).any(|window| window == wanted))
            .map(|(name, _)| name)
            .collect::<Vec<_>>()
    };
    assert_eq!([finds(b"xxxxxxxx"), finds(text.as_bytes())].concat(), Vec::<String>::new());
    assert!(
        finds(old.to_string().as_bytes()).iter().any(|name| name.contains("cache")),
        "the cache names its key"
    );

    let tasks = Tasks::new();
    let store = Store::open(StoreConfig::new(dir.path(), 1), Arc::new(RealDisk), &tasks)
        .await
        .unwrap();
    assert!(store.cache().unwrap().get(key.clone()).await.unwrap().is_some());
    assert!(store.cache().unwrap().status().reused, "with the same key it is used again");
    let new = store.rotate_key().await.unwrap();
    settled(&store).await;
    assert_eq!((caught_up(&store).await, store.cache().unwrap().status().rebuilt), (Some(new), 1));
    assert!(store.cache().unwrap().get(key).await.unwrap().is_some());
    store.shutdown().await.unwrap();
    assert_eq!(
        [finds(&old.0), finds(old.to_string().as_bytes()), finds(b"xxxxxxxx")].concat(),
        Vec::<String>::new()
    );
}

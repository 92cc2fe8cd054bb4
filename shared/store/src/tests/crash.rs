//! The whole store on a disk that loses power at any call.
use std::collections::BTreeMap;
use std::sync::Arc;

use ursa_runtime::tasks::Tasks;

use super::group::wait;
use super::{picture, value, write};
use crate::disk::Disk;
use crate::testing::{SimDisk, on_disk};
use crate::{FirstStart, OpenError, Store, StoreConfig};

/// Lives per seed.
const LIVES: u64 = 4;

async fn play(seed: u64) -> u64 {
    let mut disk = SimDisk::new(seed);
    // Newest acknowledged value of each name, and what was sent without an answer.
    let mut acknowledged: BTreeMap<String, u64> = BTreeMap::new();
    let mut sent: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let (mut n, mut history, mut revision, mut term) = (0, None, 0, 0);
    for life in 0..LIVES {
        // At times during the start itself.
        if seed % 3 == life % 3 {
            disk.power_off_in(seed % 40);
        }
        let store = match on_disk(&disk, &Tasks::new()).await {
            Ok(store) => store,
            Err(_) => {
                disk = disk.power_loss();
                on_disk(&disk, &Tasks::new())
                    .await
                    .unwrap_or_else(|error| panic!("seed {seed}, life {life}: {error}"))
            }
        };
        let view = store.view();
        assert!(
            *history.get_or_insert(view.history_id()) == view.history_id() || n == 0,
            "seed {seed}, life {life}: another history"
        );
        assert!(
            view.revision() >= revision,
            "seed {seed}, life {life}: revision {} after {revision}",
            view.revision()
        );
        assert!(store.status().term > term, "seed {seed}, life {life}: the vote went back");
        for (name, newest) in &acknowledged {
            let found = value(&view, name);
            let possible = found == Some(*newest)
                || sent
                    .get(name)
                    .is_some_and(|sent| sent.iter().any(|n| n > newest && Some(*n) == found));
            assert!(
                possible,
                "seed {seed}, life {life}: {name} is {found:?}, acknowledged {newest}, sent {sent:?}"
            );
        }
        (history, term) = (Some(view.history_id()), store.status().term);
        acknowledged.extend(view.iter().filter_map(|r| {
            r.spec
                .get("n")
                .and_then(serde_json::Value::as_u64)
                .map(|n| (r.key.name().to_owned(), n))
        }));
        sent.clear();
        disk.power_off_in((seed * 7 + life * 13) % 60);
        for _ in 0..30 {
            n += 1;
            let name = format!("m{}", n % 5);
            match write(&store, &name, n).await {
                Ok(at) => {
                    assert!(at > revision);
                    revision = at;
                    acknowledged.insert(name, n);
                }
                Err(_) => {
                    sent.entry(name).or_default().push(n);
                    break;
                }
            }
        }
        disk = disk.power_loss();
    }
    n
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_whenever_the_power_goes() {
    let mut written = 0;
    for seed in 0..600 {
        written += play(seed).await;
    }
    assert!(written > 10_000, "only {written} writes");
}

#[tokio::test]
async fn a_log_that_vanished_is_not_taken_for_a_new_one() {
    let disk = SimDisk::new(1);
    let store = on_disk(&disk, &Tasks::new()).await.unwrap();
    write(&store, "a", 1).await.unwrap();
    let before = picture(&store.view());
    store.shutdown().await.unwrap();
    let dir = StoreConfig::new("/node", 1).data_dir.join("log");
    let names = disk.list(&dir).unwrap();
    let [name] = &names[..] else { panic!("{names:?}") };
    let path = dir.join(name);
    let content = disk.files(&dir).unwrap()[name].clone();
    disk.damage(&path, Vec::clear).unwrap();
    let error = on_disk(&disk, &Tasks::new()).await.unwrap_err();
    assert!(matches!(error, OpenError::LogLost { .. }), "{error}");
    for name in disk.list(&dir).unwrap() {
        disk.remove(&dir.join(name)).unwrap();
    }
    disk.create(&path).unwrap().write_at(0, &content).unwrap();
    let store = on_disk(&disk, &Tasks::new()).await.unwrap();
    assert_eq!(picture(&store.view()), before);
}

/// Found by the simulation: a node that waited for the others was asked for a snapshot, and could not be started again.
#[tokio::test]
async fn a_snapshot_of_nothing_is_no_sign_of_a_log() {
    let mut disk = SimDisk::new(1);
    for _ in 0..2 {
        let mut config = StoreConfig::new("/node", 1);
        config.first_start = FirstStart::WaitToBeAdded;
        let store = Store::open(config, Arc::new(disk.clone()), &Tasks::new()).await.unwrap();
        store.snapshot().await.unwrap();
        let (meta, _) = wait("there is a snapshot", || store.inner().snapshots.newest()).await;
        assert_eq!(meta.last, None);
        disk = disk.process_kill();
    }
}

//! A store in memory: proposing, reading, refusing.
use std::sync::Arc;
use std::time::Duration;

use ursa_runtime::lease::Deadline;
use ursa_runtime::tasks::{StopReason, Tasks};
use ursa_state::{Expect, HistoryId, OpError};

use super::{key, picture, put, put_expecting, set, value, write};
use crate::disk::Disk;
use crate::testing::{SimDisk, changeset, in_memory, on_disk};
use crate::{Error, Role, Store, StoreConfig, Timings};

#[tokio::test]
async fn a_first_start_leads_a_new_history() {
    let store = in_memory(&Tasks::new()).await;
    let status = store.status();
    assert_eq!((status.role, status.leader, status.recovered), (Role::Leader, Some(1), true));
    assert_ne!(status.history, HistoryId::default());
    let other = in_memory(&Tasks::new()).await;
    assert_ne!(status.history, other.status().history);
}

#[tokio::test(start_paused = true)]
async fn a_write_is_seen_at_once_and_takes_no_time() {
    let start = tokio::time::Instant::now();
    let store = in_memory(&Tasks::new()).await;
    let mut views = store.subscribe();
    views.mark_unchanged();
    let revision = write(&store, "a", 1).await.unwrap();
    assert_eq!(store.view().revision(), revision);
    assert!(views.has_changed().unwrap());
    assert_eq!(value(&views.borrow_and_update(), "a"), Some(1));
    assert_eq!(value(&store.read().await.unwrap(), "a"), Some(1));
    let next = write(&store, "a", 2).await.unwrap();
    assert!(next > revision);
    assert_eq!(tokio::time::Instant::now(), start, "no timer is on the way of a write");
}

#[tokio::test]
async fn revisions_can_be_waited_for() {
    let store = in_memory(&Tasks::new()).await;
    let first = write(&store, "a", 1).await.unwrap();
    let view = store.wait_applied(first, Deadline::after(Duration::ZERO)).await.unwrap();
    assert_eq!(view.revision(), first);
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.wait_applied(first + 1, Deadline::after(super::PATIENCE)).await }
    });
    write(&store, "a", 2).await.unwrap();
    assert_eq!(value(&waiting.await.unwrap().unwrap(), "a"), Some(2));
    let error = store
        .wait_applied(first + 100, Deadline::after(Duration::from_millis(5)))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
}

#[tokio::test]
async fn refusals_say_why_and_change_nothing() {
    let store = in_memory(&Tasks::new()).await;
    let revision = write(&store, "a", 1).await.unwrap();
    let before = picture(&store.view());
    let set = changeset(1, vec![put("b", 1), put_expecting("a", 2, Expect::Absent)]);
    match store.propose(set.clone()).await.unwrap_err() {
        Error::Rejected {
            op: 1,
            reason: OpError::Exists(refused),
            revision: at,
        } => assert_eq!((refused, at), (key("a"), revision)),
        error => panic!("{error}"),
    }
    assert!(
        matches!(store.propose(set).await.unwrap_err(), Error::Rejected { op: 1, .. }),
        "the same answer for the same request"
    );
    let large = changeset(1, (0..40_000).map(|n| put(&format!("m{n}"), n)).collect());
    assert!(matches!(store.propose(large).await.unwrap_err(), Error::TooLarge { limit, .. } if limit == 3 << 20));
    let mut deep = serde_json::json!(1);
    (0..200).for_each(|_| deep = serde_json::json!([deep]));
    let mut op = put("deep", 1);
    if let ursa_state::Op::Put(put) = &mut op {
        put.spec = deep;
    }
    let error = store.propose(changeset(1, vec![op])).await.unwrap_err();
    assert!(matches!(&error, Error::Invalid(_)) && !error.is_retryable(), "{error}");
    assert_eq!(picture(&store.view()), before);
}

#[tokio::test]
async fn a_retry_gets_the_first_result() {
    let disk = SimDisk::new(1);
    let store = on_disk(&disk, &Tasks::new()).await.unwrap();
    let set = set("a", 1);
    let first = store.propose(set.clone()).await.unwrap();
    write(&store, "a", 2).await.unwrap();
    assert_eq!(store.propose(set.clone()).await.unwrap(), first);
    assert_eq!(value(&store.view(), "a"), Some(2));
    let store = on_disk(&disk.power_loss(), &Tasks::new()).await.unwrap();
    assert_eq!(store.propose(set).await.unwrap(), first, "also after a restart");
}

#[tokio::test]
async fn concurrent_proposals_share_syncs() {
    let disk = SimDisk::new(1);
    let store = on_disk(&disk, &Tasks::new()).await.unwrap();
    let before = disk.syncs();
    let writers: Vec<_> = (0..500)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move { write(&store, &format!("m{}", n % 50), n).await.unwrap() })
        })
        .collect();
    let mut revisions = Vec::new();
    for writer in writers {
        revisions.push(writer.await.unwrap());
    }
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), 500);
    let syncs = disk.syncs() - before;
    assert!(syncs < 100, "{syncs} syncs for 500 proposals");
}

#[tokio::test]
async fn a_disk_that_fails_stops_the_process() {
    let (disk, tasks) = (SimDisk::new(1), Tasks::new());
    let store = on_disk(&disk, &tasks).await.unwrap();
    let acknowledged = write(&store, "a", 1).await.unwrap();
    disk.fail_sync_in(0);
    let error = write(&store, "a", 2).await.unwrap_err();
    assert!(matches!(error, Error::Unknown(_) | Error::Stopped(_)), "{error}");
    tasks.cancel_token().cancelled().await;
    let reason = tasks.stop_reason();
    assert!(
        matches!(&reason, Some(StopReason::Failed { task, error }) if task == "store" && error.contains("input/output error")),
        "{reason:?}"
    );
    let error = write(&store, "a", 3).await.unwrap_err();
    assert!(matches!(error, Error::Stopped(_)) && !error.is_retryable(), "{error}");
    assert_eq!(store.status().role, Role::Stopped);
    let store = on_disk(&disk.power_loss(), &Tasks::new()).await.unwrap();
    assert!(store.view().revision() >= acknowledged);
    assert_ne!(value(&store.view(), "a"), Some(3));
}

#[tokio::test]
async fn after_a_shutdown_the_store_is_closed_and_can_be_opened_again() {
    let (disk, tasks) = (SimDisk::new(1), Tasks::new());
    let store = on_disk(&disk, &tasks).await.unwrap();
    write(&store, "a", 1).await.unwrap();
    let before = picture(&store.view());
    store.shutdown().await.unwrap();
    store.shutdown().await.unwrap();
    assert!(matches!(write(&store, "a", 2).await.unwrap_err(), Error::Stopped(_)));
    assert!(matches!(store.read().await.unwrap_err(), Error::Stopped(_)));
    tasks.idle().await;
    assert_eq!(tasks.stop_reason(), None, "a store that was closed stops nothing");
    let store = on_disk(&disk, &Tasks::new()).await.unwrap();
    assert_eq!(picture(&store.view()), before);
}

#[tokio::test]
async fn a_node_that_waits_to_be_added_founds_nothing() {
    let config = StoreConfig {
        first_start: crate::FirstStart::WaitToBeAdded,
        ..StoreConfig::new("/node", 2)
    };
    let store = Store::open(config, Arc::new(SimDisk::new(1)), &Tasks::new()).await.unwrap();
    assert_eq!((store.status().role, store.status().recovered), (Role::Learner, false));
    assert!(matches!(
        write(&store, "a", 1).await.unwrap_err(),
        Error::NotLeader { leader: None, .. }
    ));
}

/// A number that came back as its neighbour would make replicas differ, and every resource that has one look changed.
#[tokio::test]
async fn floats_survive_the_log_and_a_snapshot_to_the_last_bit() {
    let disk = SimDisk::new(1);
    let store = on_disk(&disk, &Tasks::new()).await.unwrap();
    let numbers = [
        0.1 + 0.2,
        5e-324,
        2.225_073_858_507_201e-308,
        f64::MAX,
        -1.0 / 3.0,
        1e21,
        123_456.789e-7,
        9_007_199_254_740_993.0,
        8.41,
        0.000_001,
    ];
    let spec = serde_json::json!({ "n": 1, "floats": numbers });
    let text = spec.to_string();
    let mut op = put("a", 1);
    if let ursa_state::Op::Put(put) = &mut op {
        put.spec = spec;
    }
    store.propose(changeset(1, vec![op.clone()])).await.unwrap();
    let before = picture(&store.view());
    let spec_of = |store: &Store| store.view().get(&key("a")).unwrap().spec.to_string();
    assert_eq!(spec_of(&store), text);
    // From the log.
    let mut disk = disk.power_loss();
    let mut store = on_disk(&disk, &Tasks::new()).await.unwrap();
    assert_eq!((spec_of(&store), picture(&store.view()) == before), (text.clone(), true));
    // From a snapshot, and from the snapshot of a state that came from one.
    for n in 2..4 {
        store.snapshot().await.unwrap();
        let applied = store.status().applied;
        let taken = store.inner().raft.wait(Some(super::PATIENCE));
        let covers = |index: Option<u64>| index >= applied;
        taken
            .metrics(|metrics| covers(metrics.snapshot.as_ref().map(|id| id.index)), "a snapshot")
            .await
            .unwrap();
        disk = disk.power_loss();
        store = on_disk(&disk, &Tasks::new()).await.unwrap();
        assert_eq!((spec_of(&store), picture(&store.view()) == before), (text.clone(), true));
        let same = store.propose(changeset(n, vec![op.clone()])).await.unwrap();
        assert_eq!(same.results, [ursa_state::OpResult::Unchanged]);
    }
}

#[tokio::test]
async fn snapshots_are_taken_and_the_log_is_purged_behind_the_older() {
    let disk = SimDisk::new(1);
    let config = StoreConfig {
        timings: Timings {
            snapshot_every: 20,
            ..Timings::default()
        },
        ..StoreConfig::new("/node", 1)
    };
    let store = Store::open(config.clone(), Arc::new(disk.clone()), &Tasks::new()).await.unwrap();
    for n in 0..100 {
        write(&store, &format!("m{}", n % 7), n).await.unwrap();
    }
    let purged = store.inner().raft.wait(Some(super::PATIENCE));
    purged
        .metrics(|metrics| metrics.purged.is_some(), "two snapshots and a purge")
        .await
        .unwrap();
    let status = store.status();
    assert!(status.purged < status.snapshot, "{status:?}");
    let before = picture(&store.view());
    drop(store);
    let disk = disk.power_loss();
    let newest = disk
        .list(std::path::Path::new("/node/snapshots"))
        .unwrap()
        .into_iter()
        .rfind(|name| name.ends_with(".snap"))
        .unwrap();
    let store = Store::open(config.clone(), Arc::new(disk.clone()), &Tasks::new()).await.unwrap();
    assert_eq!(picture(&store.view()), before);
    drop(store);
    // The newest snapshot is damaged: the older one and the log give the same state.
    let disk = disk.power_loss();
    let path = std::path::Path::new("/node/snapshots").join(newest);
    disk.damage(&path, |bytes| bytes[200] ^= 1).unwrap();
    let store = Store::open(config.clone(), Arc::new(disk.clone()), &Tasks::new()).await.unwrap();
    assert_eq!(picture(&store.view()), before);
    drop(store);
    // Without any, the log begins too late, and that is said.
    let disk = disk.power_loss();
    for name in disk.list(std::path::Path::new("/node/snapshots")).unwrap() {
        disk.remove(&std::path::Path::new("/node/snapshots").join(name)).unwrap();
    }
    let error = Store::open(config, Arc::new(disk), &Tasks::new()).await.unwrap_err();
    assert!(matches!(error, crate::OpenError::Gap { .. }), "{error}");
}

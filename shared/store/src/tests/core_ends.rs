//! When the core ends, or takes in what comes from elsewhere.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ursa_runtime::tasks::{StopReason, Tasks};

use super::group::{Group, wait};
use super::hooked::{Doing, Hooked};
use super::{value, write};
use crate::disk::RealDisk;
use crate::log::Vote;
use crate::raft::answers;
use crate::snapshot::RaftSnapshot;
use crate::{FirstStart, Role, Store, StoreConfig};

/// openraft notes a fatal error where it can be read, but a panic leaves no word there.
#[tokio::test(flavor = "multi_thread")]
async fn a_core_that_panics_stops_the_node_though_nobody_calls() {
    let mut group = Group::of_three().await;
    let leader = group.leader().await;
    write(group.store(leader), "a", 1).await.unwrap();
    let store = group.store(leader).clone();
    let raft = store.inner().raft.clone();
    // Not waited for by anything of the store.
    raft.external_request(|_| panic!("a defect, made by a test")).await.unwrap();
    wait("the store knows", || store.why_stopped()).await;
    assert_eq!((store.status().role, store.status().leader), (Role::Stopped, None));
    let reason = wait("the node stops", || match group.nodes[&leader].tasks().stop_reason() {
        Some(StopReason::Failed { error, .. }) => Some(error),
        _ => None,
    });
    assert!(reason.await.contains("defect"));
    assert!(!write(&store, "a", 2).await.unwrap_err().is_retryable());
    drop((store, raft));
    group.node(leader).kill().await;
    let other = group.leader_other_than(leader).await;
    write(group.store(other), "a", 3).await.unwrap();
}

/// The leader's call ends by its deadline or with its connection, while the core has the snapshot queued.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_whose_sender_has_gone_is_installed_all_the_same() {
    let (dir, tasks) = (tempfile::tempdir().unwrap(), Tasks::new());
    let first = Store::open(StoreConfig::new(dir.path().join("1"), 1), Arc::new(RealDisk), &tasks)
        .await
        .unwrap();
    write(&first, "a", 7).await.unwrap();
    first.snapshot().await.unwrap();
    let (_, newest) = wait("there is a snapshot", || first.inner().snapshots.newest()).await;
    let bytes = crate::disk::read_all(&*newest.open().unwrap(), 1 << 20).unwrap();

    let (begun, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (seen, may) = (begun.clone(), go.clone());
    let disk = Arc::new(Hooked::new(move |doing, path| {
        // It was checked, and the state machine takes it in: as a snapshot of its own.
        let own = path.to_string_lossy().ends_with(".snap.new");
        if doing == Doing::Create && own && seen.fetch_add(1, Ordering::SeqCst) == 0 {
            while !may.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }));
    let mut config = StoreConfig::new(dir.path().join("2"), 2);
    config.first_start = FirstStart::WaitToBeAdded;
    let store = Store::open(config, disk.clone(), &tasks).await.unwrap();
    let (file, path) = store.inner().snapshots.receiving().unwrap();
    file.write_at(0, &bytes).unwrap();
    let received = RaftSnapshot::aside(disk, path.clone(), file.clone());
    let by = Vote {
        term: 9,
        node_id: 1,
        committed: true,
    };
    let raft = store.inner().raft.clone();
    let handler = tokio::spawn(async move { answers::install(&raft, by, received).await });
    wait("the state machine takes it in", || {
        (begun.load(Ordering::SeqCst) == 1).then_some(())
    })
    .await;
    handler.abort();
    assert!(handler.await.unwrap_err().is_cancelled());
    go.store(true, Ordering::SeqCst);
    wait("it is installed", || (value(&store.view(), "a") == Some(7)).then_some(())).await;
    assert_eq!(store.why_stopped(), None);
    wait("nothing is left aside", || (!path.exists()).then_some(())).await;
}

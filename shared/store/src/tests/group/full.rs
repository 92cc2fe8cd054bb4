//! Disks of a group that take nothing for a while.
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};

use super::super::hooked::{Doing, Hooked};
use super::super::{put, set, value};
use super::*;
use crate::Error;
use crate::testing::changeset;

/// What a disk does.
const WELL: u8 = 0;
/// It takes what has its space already.
const FULL: u8 = 1;
const READ_ONLY: u8 = 2;

struct Disks {
    group: Group,
    now: BTreeMap<u64, Arc<AtomicU8>>,
}

fn answer(now: u8, doing: Doing, path: &Path) -> io::Result<()> {
    let is_log = path.extension().is_some_and(|extension| extension == "log");
    match (now, doing) {
        (READ_ONLY, Doing::Create | Doing::Write | Doing::Reserve) => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
        (FULL, Doing::Write) if is_log => Ok(()),
        (FULL, Doing::Create | Doing::Write | Doing::Reserve) => Err(io::ErrorKind::StorageFull.into()),
        _ => Ok(()),
    }
}

impl Disks {
    async fn new() -> Self {
        let mut group = Group::new(3, timings()).await;
        let mut now = BTreeMap::new();
        for (id, node) in &mut group.nodes {
            let its = Arc::new(AtomicU8::new(WELL));
            now.insert(*id, its.clone());
            node.disk = Arc::new(Hooked::new(move |doing, path| answer(its.load(Ordering::SeqCst), doing, path)));
            node.config.log.segment_bytes = 32 << 10;
            // An answer before that is one at once.
            node.config.propose_timeout = Duration::from_secs(600);
        }
        group.start_all().await;
        group.leader().await;
        // Whom a node has never met it must note before it listens, which a full disk does not let it.
        group
            .wait("all have met", || {
                let met = |id: &u64| group.store(*id).status().peers.values().all(|peer| peer.answered_ago.is_some());
                now.keys().all(met).then_some(())
            })
            .await;
        Self { group, now }
    }

    fn set(&self, id: u64, now: u8) {
        self.now[&id].store(now, Ordering::SeqCst);
    }

    fn refuses(&self, id: u64) -> bool {
        self.group.store(id).refusing().is_some()
    }

    /// Writes through this node, within the patience of tests.
    async fn write(&self, id: u64, n: u64) -> Result<(), Error> {
        let writing = tokio::time::timeout(PATIENCE, self.group.store(id).propose(set("a", n)));
        let Ok(written) = writing.await else {
            panic!("no answer to write {n} through node {id}{}", self.group.report())
        };
        written.map(drop)
    }

    async fn well_again(&self) {
        for id in self.now.keys() {
            self.set(*id, WELL);
        }
        self.group
            .wait("all take writes again", || {
                self.now.keys().all(|id| !self.refuses(*id)).then_some(())
            })
            .await;
    }
}

/// Every write through the other nodes gets through, whatever becomes of the leader.
async fn the_leaders_disk(takes: u8) {
    let disks = Disks::new().await;
    let group = &disks.group;
    let old = group.leader().await;
    let others: Vec<u64> = disks.now.keys().copied().filter(|id| *id != old).collect();
    disks.write(old, 0).await.unwrap();
    disks.set(old, takes);
    let mut n = 0;
    while !disks.refuses(old) || group.store(old).is_leader() && takes == FULL || !others.iter().any(|id| group.store(*id).is_leader()) {
        n += 1;
        disks.write(others[0], n).await.unwrap();
    }
    disks.write(others[1], n + 1).await.unwrap();
    let error = disks.write(old, 9).await.unwrap_err();
    assert!(
        matches!(error, Error::NoSpace(_)) && error.to_string().contains(&group.folder(old).display().to_string()),
        "{error}"
    );
    assert_eq!(value(&group.store(others[0]).read().await.unwrap(), "a"), Some(n + 1));
    group
        .wait("the others know it", || {
            let status = group.store(others[0]).status();
            status.peers[&old].disk_refuses.clone()
        })
        .await;
    disks.well_again().await;
    disks.write(others[0], n + 2).await.unwrap();
    group.level().await;
    disks.write(old, n + 3).await.unwrap();
    assert_eq!(value(&group.store(old).view(), "a"), Some(n + 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_disk_is_full_gives_the_lead_away() {
    the_leaders_disk(FULL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_disk_is_read_only_is_replaced() {
    the_leaders_disk(READ_ONLY).await;
}

/// It goes on to vote, to hear the leader and to be asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_whose_disk_is_full_stays_part_of_the_group() {
    let disks = Disks::new().await;
    let group = &disks.group;
    let leader = group.leader().await;
    let (full, other) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    disks.set(full, FULL);
    let mut n = 0;
    while !disks.refuses(full) {
        n += 1;
        disks.write(leader, n).await.unwrap();
    }
    assert!(matches!(disks.write(full, 9).await, Err(Error::NoSpace(_))));
    // Nobody can lead without its vote.
    group.isolate(leader, Some(Cut::Requests));
    group.leader_other_than(leader).await;
    assert!(disks.refuses(full));
    // No majority has a disk that takes it.
    let error = disks.write(other, n + 1).await.unwrap_err();
    assert!(matches!(error, Error::NoSpace(_)), "{error}");
    group.isolate(leader, None);
    disks.well_again().await;
    group.level().await;
    disks.write(full, n + 2).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_all_disks_full_writes_are_refused_at_once_and_reads_go_on() {
    let disks = Disks::new().await;
    let group = &disks.group;
    for id in disks.now.keys() {
        disks.set(*id, FULL);
    }
    // Handed in as long as anybody takes something; what came just too late is waited for.
    let mut unsure = Vec::new();
    let mut refused = std::collections::BTreeSet::new();
    let mut last = 0;
    let deadline = Deadline::after(PATIENCE);
    while refused.len() < 3 {
        assert!(!deadline.has_passed(), "not refused{}", group.report());
        for id in disks.now.keys() {
            last += 1;
            let (store, set) = (group.store(*id).clone(), changeset(last, vec![put("a", last)]));
            let mut one = tokio::spawn(async move { store.propose(set).await });
            tokio::select! {
                done = &mut one => match done.unwrap() {
                    Ok(_) => _ = refused.remove(id),
                    Err(Error::NoSpace(_)) => _ = refused.insert(*id),
                    Err(other) => panic!("{other}"),
                },
                () = tokio::time::sleep(Duration::from_millis(500)) => unsure.push(one),
            }
        }
    }
    let leader = group.leader().await;
    let read = group.store(leader).read().await.unwrap();
    assert!(value(&read, "a").is_some());
    let full = disks.now.keys().filter(|id| disks.refuses(**id)).count();
    assert!(full >= 2, "a majority");
    disks.well_again().await;
    // Without a restart, and without anybody who writes.
    for one in unsure {
        tokio::time::timeout(PATIENCE, one)
            .await
            .expect("it gets through")
            .unwrap()
            .unwrap();
    }
    for id in disks.now.keys() {
        last += 1;
        disks.write(*id, last).await.unwrap();
    }
    group.level().await;
}

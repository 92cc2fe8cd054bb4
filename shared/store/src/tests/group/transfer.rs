//! Snapshots on their way to a node that is too far behind: broken off, slow, overtaken.
use std::sync::atomic::Ordering;

use super::{Group, timings, wait, write};
use crate::net::faults::Stop;
use crate::testing::changeset;
use crate::tests::{key, value};

/// Several chunks.
const LARGE: usize = 400 << 10;

async fn write_large(group: &Group, leader: u64, name: &str, seed: u64) {
    // Nothing that is smaller when it is packed.
    let text: String = (0..LARGE as u64 / 16)
        .map(|n| {
            format!(
                "{:016x}",
                (n + 1)
                    .wrapping_mul(seed.wrapping_mul(2_654_435_761) | 1)
                    .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            )
        })
        .collect();
    let put = ursa_state::Op::Put(ursa_state::Put {
        key: key(name),
        labels: Default::default(),
        spec: serde_json::json!({ "n": seed, "text": text }),
        status: None,
        owner: None,
        expect: ursa_state::Expect::Any,
    });
    let set = changeset(1_700_000_000_000, vec![put]);
    group.store(leader).propose(set).await.unwrap();
}

/// A snapshot of what there is.
async fn snapshot(group: &Group, at: &[u64]) {
    for id in at {
        let store = group.store(*id);
        let now = store.status().applied.unwrap();
        store.snapshot().await.unwrap();
        group
            .wait("a snapshot is made", || store.status().snapshot.filter(|at| *at >= now))
            .await;
    }
}

/// Three nodes of which one is down, and needs a snapshot of about 2 MiB; the leader, that one, and the third.
async fn with_one_far_behind() -> (Group, u64, u64, u64) {
    let mut group = Group::of_three_with(timings()).await;
    write(group.store(1), "before", 1).await.unwrap();
    group.level().await;
    let leader = group.leader().await;
    let (away, other) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    group.node(away).kill().await;
    for n in 0..5 {
        write_large(&group, leader, &format!("m{n}"), n).await;
    }
    let behind = group.store(leader).status().applied.unwrap();
    for n in 0..2 {
        write(group.store(leader), "a", n).await.unwrap();
        snapshot(&group, &[leader, other]).await;
    }
    wait("the log is purged", || {
        let purged = [leader, other].map(|id| group.store(id).status().purged);
        purged.into_iter().min().flatten().filter(|purged| *purged >= behind)
    })
    .await;
    (group, leader, away, other)
}

fn sent(group: &Group, id: u64) -> u64 {
    group.store(id).peers().unwrap().shared.snapshot_bytes.load(Ordering::Acquire)
}

fn stop(group: &Group, id: u64, stop: Option<Stop>) {
    group.store(id).peers().unwrap().shared.faults.stop_snapshots(stop);
}

/// Bytes of the newest snapshot of a node: a little more than what is sent, if it is encrypted.
fn size(group: &Group, id: u64) -> u64 {
    let files = std::fs::read_dir(group.folder(id).join("snapshots")).unwrap();
    let newest = files.map(|entry| entry.unwrap().path()).max().unwrap();
    std::fs::metadata(newest).unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_is_cut_goes_on_where_it_stopped() {
    let (mut group, leader, away, _) = with_one_far_behind().await;
    let whole = size(&group, leader);
    assert!(whole > 3 << 18, "{whole} bytes");
    let at = whole / 2;
    stop(&group, leader, Some(Stop { at, breaks: true }));
    group.node(away).start().await.unwrap();
    let view = group.store(away).read().await.unwrap();
    assert_eq!((value(&view, "m4"), value(&view, "a")), (Some(4), Some(1)));
    let sent = sent(&group, leader);
    // Not even the chunk at which it broke.
    assert!(
        sent >= whole - whole / 50 && sent < whole + whole / 4,
        "{sent} bytes sent of {whole}"
    );
    let left = std::fs::read_dir(group.folder(away).join("snapshots")).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(left.iter().all(|name| name.ends_with(".snap")), "nothing is left aside: {left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_does_not_read_on_holds_up_nobody_else() {
    let (mut group, leader, away, other) = with_one_far_behind().await;
    stop(&group, leader, Some(Stop { at: 1, breaks: false }));
    group.node(away).start().await.unwrap();
    wait("the transfer has begun", || (sent(&group, leader) > 0).then_some(())).await;
    let term = group.term();
    for n in 0..100 {
        write(group.store([leader, other][n % 2]), "b", n as u64).await.unwrap();
    }
    assert_eq!((group.term(), value(&group.store(away).view(), "m4")), (term, None));
    // Snapshots that are made meanwhile take neither the file away, nor the log that follows it.
    let on_its_way = size(&group, leader);
    for n in 0..3 {
        write_large(&group, leader, "late", n).await;
        snapshot(&group, &[leader, other]).await;
    }
    let before = sent(&group, leader);
    stop(&group, leader, None);
    let view = group.store(away).read().await.unwrap();
    assert_eq!((value(&view, "m4"), value(&view, "late")), (Some(4), Some(2)));
    let rest = sent(&group, leader) - before;
    assert!(rest <= on_its_way, "{rest} bytes, of a file of {on_its_way}: a single one was sent");
    group.level().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_snapshot_is_sent_from_its_start() {
    let (mut group, leader, away, other) = with_one_far_behind().await;
    let whole = size(&group, leader);
    stop(
        &group,
        leader,
        Some(Stop {
            at: whole / 2,
            breaks: false,
        }),
    );
    group.node(away).start().await.unwrap();
    wait("half of it is there", || (sent(&group, leader) >= whole / 2).then_some(())).await;
    // Its sender goes, and the next leader has another one.
    write_large(&group, leader, "more", 7).await;
    group.level_of(&[leader, other]).await;
    snapshot(&group, &[other]).await;
    let another = size(&group, other);
    group.node(leader).kill().await;
    let view = group.store(away).read().await.unwrap();
    assert_eq!((value(&view, "m4"), value(&view, "more")), (Some(4), Some(7)));
    assert!(
        sent(&group, other) >= another - another / 50,
        "{} of {another}",
        sent(&group, other)
    );
}
